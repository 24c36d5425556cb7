package main

import (
	"context"
	"errors"
	"net/http"

	"controld/internal/api/gen"
	"controld/internal/client"
)

// Exit codes. Scripts rely on them.
const (
	exitOK          = 0
	exitError       = 1 // also: interrupted, status when the cluster is down, check when a check fails
	exitUsage       = 2
	exitRefused     = 3
	exitUndone      = 4
	exitIncomplete  = 5
	exitUnreachable = 6
	exitForbidden   = 7
)

const exitCodeHelp = `Exit codes:
  0  it succeeded, or there was nothing to do
  1  an error, or interrupted; status: the cluster is down; check: a check failed
  2  the command or the request was wrong; nothing was done
  3  refused: by a check, because another operation runs, or because the one to
     cancel has ended; nothing was touched
  4  it failed and was undone, or was cancelled: the old primary leads. After an
     emergency failover its order stays withdrawn (controld start gives it back)
  5  it failed and could not be undone: past the point of no return the daemon
     goes on retrying. With an end it was given up there, or nobody leads, and it
     says who could
  6  the daemon does not answer, or the time of --timeout is over
  7  no token where one is needed, or a role that does not suffice`

// A usageError is one of how the program was called.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// reported is the error of a result that was printed already: only its exit
// code is left to tell.
type reported struct{ code int }

func (e *reported) Error() string { return "" }

func exitCode(err error) int {
	var (
		usage       *usageError
		done        *reported
		problem     *client.Problem
		unreachable *client.Unreachable
	)
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &done):
		return done.code
	case errors.As(err, &problem):
		return problemCode(problem)
	case errors.As(err, &unreachable), errors.Is(err, context.DeadlineExceeded):
		return exitUnreachable
	}
	return exitError
}

func problemCode(p *client.Problem) int {
	switch p.Type {
	case "/problems/undone", "/problems/cancelled":
		return exitUndone
	case "/problems/incomplete":
		return exitIncomplete
	}
	switch p.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitForbidden
	case http.StatusConflict:
		return exitRefused
	case http.StatusBadRequest, http.StatusNotFound, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return exitUsage
	case http.StatusServiceUnavailable:
		return exitUnreachable
	}
	return exitError
}

// operationCode is the exit code of how an operation stands.
func operationCode(state gen.OperationState) int {
	switch string(state) {
	case "succeeded", "running":
		return exitOK
	case "refused":
		return exitRefused
	case "undone", "cancelled":
		return exitUndone
	case "incomplete":
		return exitIncomplete
	}
	return exitError
}
