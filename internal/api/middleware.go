package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"time"

	"github.com/go-chi/chi/v5/middleware"
	"github.com/google/uuid"
)

const maxHeaderBytes = 32 << 10

// info is what the middlewares learn of a request, for those after them.
type info struct {
	id     string
	caller string // the token's role, or anonymous
	method string // as it was sent: HEAD is served as GET
	accept string
	path   string
	query  string
	digest []byte // the body's SHA-256; nil: a stream that came without one
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
		i := &info{
			id: id, method: r.Method, accept: r.Header.Get("Accept"),
			path: r.URL.Path, query: r.URL.RawQuery, began: time.Now(),
		}
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

// answerLimit is how long a request may take until its answer was read: it may
// wait for an operation before.
func (s *Server) answerLimit() time.Duration { return s.waitLimit + 30*time.Second }

// boundTimes bounds how long a client may take to send a body, and to read an
// answer. net/http waits for some of a body also where nobody reads it, as that
// of a request without a token. The stream of events sets a deadline of its own
// for each of its writes; what takes a stream one for each read and for its answer.
func (s *Server) boundTimes(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Writers of tests have no deadlines, which is no error.
		controller := http.NewResponseController(w)
		_ = controller.SetWriteDeadline(time.Now().Add(s.answerLimit()))
		// Without a body net/http watches whether the client leaves, and takes a
		// deadline that passes for that.
		if r.Body != http.NoBody {
			_ = controller.SetReadDeadline(time.Now().Add(bodyTimeout))
		}
		next.ServeHTTP(w, r)
	})
}
