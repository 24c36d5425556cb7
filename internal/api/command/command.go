// Package command is what a capability needs to serve commands of the API from its own
// package: routes, and the answers that all commands share. Who may call a command, and
// what it takes, stands in openapi.yaml.
package command

import (
	"context"
	"net/http"

	"controld/internal/operation"
)

// A Route is one command. Its method and path are those of openapi.yaml; what stands
// there was checked before the handler is called.
type Route struct {
	Method, Path string
	Handler      http.HandlerFunc
}

// A Set makes the commands of a capability.
type Set func(Kit) []Route

// A Start starts an operation for a caller.
type Start func(ctx context.Context, by operation.Caller) (operation.Record, error)

// A Kit answers requests as all commands do.
type Kit interface {
	// Run starts an operation and answers with it: when it has ended, or at once where
	// the request prefers that (Prefer, RFC 7240). A request that is sent again with the
	// same Idempotency-Key joins the first.
	Run(w http.ResponseWriter, r *http.Request, start Start)
	// JSON answers with a value.
	JSON(w http.ResponseWriter, status int, value any)
	// Fail answers with the problem that err is, see operation.Problem.
	Fail(w http.ResponseWriter, r *http.Request, err error)
}

// Unknown is the error of a path that names something that is not there: 404.
type Unknown struct {
	Type   string // such as /problems/unknown-backup
	Detail string
}

func (u *Unknown) Error() string { return u.Detail }
