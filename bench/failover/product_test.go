package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestJudgePlanned(t *testing.T) {
	s := &series{unit: 10 * ms}
	for _, c := range []struct {
		name   string
		change func(*result)
		want   string // part of the complaint; empty: none
	}{
		{"good", func(*result) {}, ""},
		{"exactly 6 U beyond the pause", func(r *result) { r.pause = 40 * ms }, ""},
		{"longer", func(r *result) { r.pause = 39 * ms }, "explains only 99.0 ms"},
		{"shorter than the pause", func(r *result) { r.pause = 101 * ms }, "longer than the outage"},
		{"no pause told", func(r *result) { r.pause = 0 }, "pause_ms"},
		{"a transaction failed", func(r *result) { r.whole.Failed = 1 }, "1 transactions and 0 connects"},
		{"a connect failed", func(r *result) { r.whole.FailedConnects = 2 }, "0 transactions and 2 connects"},
		{"nobody came during the pause", func(r *result) { r.whole.OpeningsHeld = 0 }, "no new connection"},
	} {
		r := sample(80*ms, 100*ms)
		c.change(&r)
		err := errors.Join(judgePlanned(s, r)...)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestSuccessorErr(t *testing.T) {
	a, b := server{name: "a"}, server{name: "b"}
	was := identity{"1", 4}
	for _, c := range []struct {
		name  string
		after server
		is    identity
		ok    bool
	}{
		{"good", b, identity{"1", 5}, true},
		{"nobody else", a, identity{"1", 5}, false},
		{"another system", b, identity{"2", 5}, false},
		{"the same timeline", b, identity{"1", 4}, false},
		{"two timelines on", b, identity{"1", 6}, false},
	} {
		if err := successorErr(a, c.after, was, c.is); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

const succeeded = `{"id":"1","state":"succeeded","result":{"pause_ms":81.5,"from":"a"},"steps":[
	{"name":"pause pooler","state":"done","started_at":"2026-01-02T03:04:05Z","duration_ms":5},
	{"name":"resume pooler","state":"done","started_at":"2026-01-02T03:04:05.1Z","duration_ms":1},
	{"name":"never run","state":"pending"},
	{"name":"wait for standby","state":"done","started_at":"2026-01-02T03:04:05.101Z","duration_ms":499.5}]}`

func TestStartReadsTheOperation(t *testing.T) {
	asked := 0
	mux := http.NewServeMux()
	mux.HandleFunc("POST /now", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer token" {
			t.Errorf("Authorization %q", r.Header.Get("Authorization"))
		}
		_, _ = w.Write([]byte(succeeded))
	})
	mux.HandleFunc("POST /later", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/operations/1")
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("GET /operations/1", func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 1 {
			_, _ = w.Write([]byte(`{"id":"1","state":"running"}`))
			return
		}
		_, _ = w.Write([]byte(succeeded))
	})
	mux.HandleFunc("POST /refused", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_, _ = w.Write([]byte(`{"type":"/problems/no-candidate"}`))
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	a := newAPI(server.URL, "token")

	for _, path := range []string{"/now", "/later"} {
		op, _, err := a.start(t.Context(), path)
		if err != nil {
			t.Fatal(path, err)
		}
		if pause, none := op.duration("pause_ms"), op.duration("rejoin_ms"); pause != 81500*time.Microsecond || none != 0 {
			t.Errorf("%s: pause_ms %v, rejoin_ms %v", path, pause, none)
		}
		if want := time.Date(2026, 1, 2, 3, 4, 5, 101e6, time.UTC); !op.resumed().Equal(want) {
			t.Errorf("%s: resumed at %v", path, op.resumed())
		}
		want := []step{{"pause pooler", 5 * ms}, {"resume pooler", ms}, {"wait for standby", 499500 * time.Microsecond}}
		if diff := cmp.Diff(want, op.steps(), cmp.AllowUnexported(step{})); diff != "" {
			t.Error(path, diff)
		}
	}
	if _, _, err := a.start(t.Context(), "/refused"); err == nil || !strings.Contains(err.Error(), "no-candidate") {
		t.Errorf("refused: %v", err)
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-runs", "3", "-peer", "none"})
	if err != nil || o.runs != 3 || o.emergency != 10 || o.peer != "none" {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := parse([]string{"-peer", "other"}); err == nil {
		t.Error("an unknown peer was accepted")
	}
}
