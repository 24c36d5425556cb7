package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"controld/internal/api/gen"
)

func event(state string) string {
	end := `,"ended_at":"2026-03-01T12:00:02Z"`
	if state == "running" {
		end = ""
	}
	op := fmt.Sprintf(`{"id":"x","kind":"failover","state":%q,"requested_by":"operator",`+
		`"started_at":"2026-03-01T12:00:00Z"%s,"steps":[]}`, state, end)
	return "id: 1\nevent: operation\n" +
		`data: {"seq":1,"at":"2026-03-01T12:00:00Z","type":"operation","operation":` + op + "}\n\n"
}

func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := New(srv.URL, "secret-token")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ended(op gen.Operation) bool { return op.EndedAt != nil }

// A daemon that restarts breaks the stream off: it is taken up again.
func TestFollowTakesUpABrokenStream(t *testing.T) {
	var calls atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret-token" || r.URL.Path != "/operations/x/events" {
			t.Errorf("%s %v", r.URL, r.Header)
		}
		w.Header().Set("Content-Type", "text/event-stream")
		switch calls.Add(1) {
		case 1: // ends without an end of the operation
			fmt.Fprint(w, ": still here\n\n"+event("running"))
		case 2:
			w.WriteHeader(http.StatusBadGateway)
		default:
			fmt.Fprint(w, event("running")+event("succeeded"))
		}
	})
	seen := 0
	op, err := c.Follow(t.Context(), "x", ended, func(gen.Operation) { seen++ })
	if err != nil || op.State != "succeeded" || seen != 3 {
		t.Errorf("%+v, %v, seen %d", op, err, seen)
	}
}

func TestFollowGivesUpOnARefusal(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"type":"/problems/unknown-operation","title":"t","status":404,"detail":"There is no operation"}`)
	})
	_, err := c.Follow(t.Context(), "x", ended, func(gen.Operation) {})
	var p *Problem
	if !errors.As(err, &p) || p.Type != "/problems/unknown-operation" {
		t.Errorf("%v", err)
	}
}

// A caller that leaves is not told that the daemon does not answer.
func TestLeaving(t *testing.T) {
	asked := make(chan struct{}, 2)
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})
	for name, call := range map[string]func(context.Context) error{
		"a call": func(ctx context.Context) error { _, err := c.Cluster(ctx); return err },
		"a stream": func(ctx context.Context) error {
			_, err := c.Follow(ctx, "x", ended, func(gen.Operation) {})
			return err
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-asked; cancel() }()
		if err := call(ctx); !errors.Is(err, ErrLeft) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/cluster":
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"type":"/problems/lag","title":"Lag","status":409,"detail":"pg2 lags",`+
				`"numbers":{"lag_bytes":17000000,"ratio":0.5},`+
				`"operation":{"id":"op1","kind":"failover","state":"refused","requested_by":"x",`+
				`"started_at":"2026-03-01T12:00:00Z","steps":[]}}`)
		case "/health":
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, "<h1>proxy</h1>")
		}
	})
	_, err := c.Cluster(t.Context())
	for _, want := range []string{"pg2 lags", "/problems/lag", "lag_bytes=17000000 ratio=0.5", "op1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not tell %q", err, want)
		}
	}
	// A proxy's 503 is no health.
	if _, err := c.Health(t.Context()); err == nil || !strings.Contains(err.Error(), "does not answer as controld does") {
		t.Errorf("%v", err)
	}
	gone, err := New("http://127.0.0.1:1", "secret-token")
	if err != nil {
		t.Fatal(err)
	}
	_, err = gone.Health(t.Context())
	var unreachable *Unreachable
	if !errors.As(err, &unreachable) || !strings.Contains(err.Error(), "make up") || strings.Contains(err.Error(), "secret-token") {
		t.Errorf("%v", err)
	}
}

func TestNewRefusesWhatIsNoAddress(t *testing.T) {
	for _, base := range []string{"", "127.0.0.1:8088", "localhost", "ftp://x", "http://", "://"} {
		if _, err := New(base, ""); err == nil {
			t.Errorf("%q was accepted", base)
		}
	}
}
