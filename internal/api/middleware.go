package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"runtime/debug"
	"time"

	"github.com/go-chi/chi/v5/middleware"
	"github.com/google/uuid"
)

const (
	maxBodyBytes   = 1 << 20
	maxHeaderBytes = 32 << 10
	bodyTimeout    = 30 * time.Second
	tooLargeDetail = "The body is larger than 1048576 bytes (1 MiB), which no request of this API needs"
)

// info is what the middlewares learn of a request, for those after them.
type info struct {
	id     string
	caller string // the token's role, or anonymous
	method string // as it was sent: HEAD is served as GET
	accept string
	path   string
	body   []byte
	began  time.Time
}

type infoKey struct{}

// infoOf returns the request's info; outside a request an empty one.
func infoOf(ctx context.Context) *info {
	if i, ok := ctx.Value(infoKey{}).(*info); ok {
		return i
	}
	return &info{}
}

var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// identify gives each request an id, the caller's own if it has one.
func (s *Server) identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		if !requestIDForm.MatchString(id) {
			id = newID()
		}
		i := &info{id: id, method: r.Method, accept: r.Header.Get("Accept"), path: r.URL.Path, began: time.Now()}
		h := w.Header()
		h.Set("X-Request-Id", id)
		h.Set("X-Content-Type-Options", "nosniff")
		// In a frame of somebody else's page a click on /docs could be led to start something.
		h.Set("X-Frame-Options", "DENY")
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), infoKey{}, i)))
	})
}

func newID() string {
	id, err := uuid.NewV7()
	if err != nil {
		return "none" // no randomness: the request matters more than its name
	}
	return id.String()
}

// logAccess writes a line per request. Neither headers nor bodies nor queries
// are in it: secrets travel there.
func (s *Server) logAccess(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		defer func() {
			i := infoOf(r.Context())
			level := slog.LevelInfo
			if i.caller == "" && ww.Status() < http.StatusBadRequest {
				level = slog.LevelDebug // monitoring asks every second
			}
			s.log.LogAttrs(r.Context(), level, "request",
				slog.String("request", i.id), slog.String("method", i.method), slog.String("path", i.path),
				slog.Int("status", ww.Status()), slog.Int("bytes", ww.BytesWritten()),
				slog.Int64("duration_ms", time.Since(i.began).Milliseconds()),
				slog.String("caller", i.caller), slog.String("remote", r.RemoteAddr))
		}()
		next.ServeHTTP(ww, r)
	})
}

// recoverPanics turns a panic into a 500: one request fails, not the daemon.
func (s *Server) recoverPanics(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			cause := recover()
			if cause == nil {
				return
			}
			if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(cause)
			}
			s.log.LogAttrs(r.Context(), slog.LevelError, "panic in a handler",
				slog.String("request", infoOf(r.Context()).id), slog.String("path", r.URL.Path),
				slog.Any("panic", cause), slog.String("stack", string(debug.Stack())))
			s.fail(w, r, fmt.Errorf("%w: %v", errPanic, cause))
		}()
		next.ServeHTTP(w, r)
	})
}

// headAsGet serves HEAD as GET. net/http drops the body by itself.
func headAsGet(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			r = r.WithContext(r.Context())
			r.Method = http.MethodGet
		}
		next.ServeHTTP(w, r)
	})
}

// boundWrites bounds how long a client may take to read an answer. The stream
// of events sets a deadline of its own for each of its writes.
func (s *Server) boundWrites(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Writers of tests have no deadlines, which is no error.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.waitLimit + 30*time.Second))
		next.ServeHTTP(w, r)
	})
}

// readBody reads the whole body, bounded in size and time, before anything is
// done. One that says it is too large is refused unread.
func (s *Server) readBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > maxBodyBytes {
			w.Header().Set("Connection", "close")
			s.fail(w, r, &requestError{kind: errBodyTooLarge, detail: tooLargeDetail})
			return
		}
		controller := http.NewResponseController(w)
		_ = controller.SetReadDeadline(time.Now().Add(bodyTimeout))
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
		_ = controller.SetReadDeadline(time.Time{})
		if err != nil {
			s.fail(w, r, bodyError(err))
			return
		}
		// curl -X POST sends no body; an editor's newline is none either. It
		// passes with any content type: curl sends the one of a form.
		body = bytes.TrimSpace(body)
		if err := checkBody(r, body); err != nil {
			s.fail(w, r, err)
			return
		}
		infoOf(r.Context()).body = body
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ContentLength = int64(len(body))
		next.ServeHTTP(w, r)
	})
}

func bodyError(err error) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &requestError{kind: errSlowBody, detail: fmt.Sprintf("The body did not arrive within %s", bodyTimeout)}
	}
	return &requestError{kind: errBadRequest, field: "body", detail: "The body could not be read: " + err.Error()}
}

// checkBody refuses what is no JSON.
func checkBody(r *http.Request, body []byte) error {
	if len(body) == 0 {
		return nil
	}
	if !json.Valid(body) {
		detail := "The body is no JSON"
		var probe any
		var syntax *json.SyntaxError
		if err := json.Unmarshal(body, &probe); errors.As(err, &syntax) {
			detail = fmt.Sprintf("The body is no JSON: %s, at byte %d of %d", syntax, syntax.Offset, len(body))
		}
		return &requestError{kind: errBadRequest, field: "body", detail: detail, allowed: "one JSON object"}
	}
	if r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/json")
	}
	return nil
}
