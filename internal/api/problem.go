package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"controld/internal/api/command"
	"controld/internal/api/gen"
	"controld/internal/cluster"
	"controld/internal/operation"
)

// Kinds of errors that are the API's own.
var (
	errUnauthorized = errors.New("a token is needed")
	errForbidden    = errors.New("the caller's role does not suffice")
	errForeign      = errors.New("a page of another origin sent it")
	errNoRoute      = errors.New("no such path")
	errNoMethod     = errors.New("the path does not know this method")
	errBodyTooLarge = errors.New("the body is too large")
	errContentType  = errors.New("the body is declared as what is not taken here")
	errSlowBody     = errors.New("the body did not arrive in time")
	errWrongDigest  = errors.New("the body is not the one that was announced")
	errPanic        = errors.New("panic")
	errUndone       = errors.New("the operation failed and was undone")
	errIncomplete   = errors.New("the operation failed and could not be undone")
	errWasCancelled = errors.New("the operation was cancelled")
	errInternal     = errors.New("internal error")
	errBadRequest   = errors.New("the request is not valid")
	errUnknownNode  = errors.New("there is no such node")
	errRunning      = errors.New("another operation is running")
)

// problems is the one table from kinds of errors to answers. The first that
// matches counts; what matches none is an internal error, whose text goes to
// the log and not to the client.
var problems = []struct {
	kind   error
	status int
	typ    string
	title  string
}{
	{errUnauthorized, http.StatusUnauthorized, "/problems/unauthorized", "A token is needed"},
	{errForbidden, http.StatusForbidden, "/problems/forbidden", "The role does not suffice"},
	{errForeign, http.StatusForbidden, "/problems/foreign-origin", "Without a token only this API's own origin is served"},
	{errNoRoute, http.StatusNotFound, "/problems/no-such-path", "No such path"},
	{errNoMethod, http.StatusMethodNotAllowed, "/problems/method-not-allowed", "The path does not know this method"},
	{errBodyTooLarge, http.StatusRequestEntityTooLarge, "/problems/body-too-large", "The body is too large"},
	{errContentType, http.StatusUnsupportedMediaType, "/problems/content-type", "The body's type is not taken here"},
	{errSlowBody, http.StatusRequestTimeout, "/problems/slow-body", "The body did not arrive in time"},
	{errBadRequest, http.StatusBadRequest, "/problems/bad-request", "The request is not valid"},
	{errWrongDigest, http.StatusBadRequest, "/problems/digest-mismatch", "The body is not the one that Content-Digest names"},
	{errUnknownNode, http.StatusNotFound, "/problems/unknown-node", "There is no such node"},
	{operation.ErrNotFound, http.StatusNotFound, "/problems/unknown-operation", "There is no such operation"},
	{operation.ErrKeyReused, http.StatusUnprocessableEntity, "/problems/idempotency-key-reused",
		"The idempotency key was used with another request"},
	{operation.ErrEnded, http.StatusConflict, "/problems/operation-ended", "The operation has ended"},
	{operation.ErrStopping, http.StatusServiceUnavailable, "/problems/stopping", "controld is stopping"},
	{errRunning, http.StatusConflict, "/problems/operation-running", "Another operation is running"},
	{errWasCancelled, http.StatusConflict, "/problems/cancelled", "The operation was cancelled"},
	{errUndone, http.StatusInternalServerError, "/problems/undone", "The operation failed and was undone"},
	{errIncomplete, http.StatusInternalServerError, "/problems/incomplete", "The operation failed and could not be undone"},
	{errInternal, http.StatusInternalServerError, "/problems/internal", "Internal error"},
}

// A requestError is an error of the request itself: its kind, what is wrong
// where, and what is allowed there.
type requestError struct {
	kind    error
	field   string
	detail  string
	allowed string
}

func (e *requestError) Error() string { return e.detail }
func (e *requestError) Unwrap() error { return e.kind }

// An operationError is the answer of an operation that did not succeed.
type operationError struct{ record operation.Record }

func (e *operationError) Error() string {
	if e.record.Problem != nil {
		return e.record.Problem.Detail
	}
	return fmt.Sprintf("%s %s is %s", e.record.Kind, e.record.ID, e.record.State)
}

func (e *operationError) Unwrap() error {
	switch e.record.State {
	case operation.Undone:
		return errUndone
	case operation.Incomplete:
		return errIncomplete
	case operation.Cancelled:
		return errWasCancelled
	}
	if e.record.Problem != nil {
		return e.record.Problem
	}
	return errInternal
}

// problemOf turns an error into its answer.
func problemOf(err error) gen.Problem {
	p := gen.Problem{Detail: err.Error()}
	kind := err
	var (
		bad      *requestError
		invalid  *cluster.InvalidField
		unknown  *cluster.UnknownNode
		busy     *operation.Busy
		failed   *operationError
		refusal  *operation.Problem
		tooLarge *http.MaxBytesError
	)
	switch {
	case errors.As(err, &bad):
		p.Field, p.Allowed = gen.Optional(bad.field), gen.Optional(bad.allowed)
	case errors.As(err, &invalid):
		kind = errBadRequest
		p.Field, p.Allowed = gen.Optional(invalid.Field), gen.Optional(invalid.Allowed)
	case errors.As(err, &unknown):
		kind = errUnknownNode
		p.Field, p.Allowed = gen.Optional(unknown.Field), gen.Optional(strings.Join(unknown.Known, ", "))
	case errors.As(err, &busy):
		kind = errRunning
		p.Operation = pointer(operationOf(busy.Running))
	case errors.As(err, &tooLarge):
		kind = errBodyTooLarge
		p.Detail = fmt.Sprintf("The body is larger than %d bytes (%.4g MiB), the most that is taken here",
			tooLarge.Limit, float64(tooLarge.Limit)/(1<<20))
	}
	if errors.As(err, &failed) {
		p.Operation = pointer(operationOf(failed.record))
		if cause := failed.record.Problem; cause != nil {
			p.Numbers = numbers(cause.Numbers)
			p.Cause = gen.Optional(cause.Type)
		}
	}
	for _, known := range problems {
		if errors.Is(kind, known.kind) {
			p.Type, p.Title, p.Status = known.typ, known.title, known.status
			if p.Cause != nil && *p.Cause == p.Type {
				p.Cause = nil
			}
			return p
		}
	}
	var gone *command.Unknown
	if errors.As(err, &gone) {
		p.Type, p.Title, p.Status = gone.Type, titleOf(gone.Type), http.StatusNotFound
		return p
	}
	// A refusal brings its own type: the prechecks name them.
	if errors.As(err, &refusal) {
		p.Type, p.Title, p.Status, p.Cause = refusal.Type, titleOf(refusal.Type), http.StatusConflict, nil
		p.Numbers = numbers(refusal.Numbers)
		return p
	}
	return gen.Problem{
		Type: "/problems/internal", Title: "Internal error", Status: http.StatusInternalServerError,
		Detail: "controld's log tells what went wrong; request_id finds the line", Operation: p.Operation,
	}
}

// titleOf makes words of a type such as /problems/no-candidate.
func titleOf(typ string) string {
	words := strings.ReplaceAll(strings.TrimPrefix(typ, "/problems/"), "-", " ")
	if words == "" {
		return "Refused"
	}
	return strings.ToUpper(words[:1]) + words[1:]
}

// fail answers with the problem that err is.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	info := infoOf(r.Context())
	if p.Status >= http.StatusInternalServerError && !errors.Is(err, errPanic) {
		s.log.LogAttrs(r.Context(), slog.LevelError, "request failed",
			slog.String("request", info.id), slog.String("path", r.URL.Path), slog.Any("err", err))
	}
	writeProblem(w, r, p)
}

func writeProblem(w http.ResponseWriter, r *http.Request, p gen.Problem) {
	p.Instance = gen.Optional(r.URL.Path)
	p.RequestID = gen.Optional(infoOf(r.Context()).id)
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	if p.Operation != nil {
		h.Set("Location", "/operations/"+p.Operation.ID)
	}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="controld"`)
	}
	w.WriteHeader(p.Status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(p) // a client that left is no error
}

// problemTypes lists the types of the table, for the documentation's test.
func problemTypes() []string {
	var types []string
	for _, p := range problems {
		types = append(types, p.typ)
	}
	slices.Sort(types)
	return slices.Compact(types)
}
