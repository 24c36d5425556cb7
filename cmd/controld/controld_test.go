package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"controld/internal/api"
	"controld/internal/api/apitest"
	"controld/internal/api/gen"
	"controld/internal/operation"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon is a test server, with a cluster that behaves behind it.
type daemon struct {
	t    *testing.T
	fake *apitest.Fake
	env  map[string]string
	at   time.Time
}

const (
	viewerToken   = "viewer-secret-0001"
	operatorToken = "operator-secret-0002"
)

func startDaemon(t *testing.T) *daemon {
	t.Helper()
	tokens, err := api.NewTokens(map[api.Role]string{api.Viewer: viewerToken, api.Operator: operatorToken})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 3, 1, 12, 5, 0, 0, time.UTC)
	fake := apitest.New()
	fake.Observed(at)
	fake.Interval = 10 * 365 * 24 * time.Hour // the test's clock stands still
	s, err := api.New(api.Options{
		Cluster: fake, Operations: fake, Tokens: tokens, Nodes: fake.Nodes(), Interval: fake.Interval,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler())
	t.Cleanup(func() {
		s.StopStreams()
		srv.Close()
	})
	return &daemon{t: t, fake: fake, at: at, env: map[string]string{"CONTROLD_URL": srv.URL, "CONTROLD_TOKEN": operatorToken}}
}

type outcome struct {
	stdout, stderr string
	code           int
}

func (d *daemon) run(args ...string) outcome {
	d.t.Helper()
	return d.runAs(false, args...)
}

func (d *daemon) runAs(terminal bool, args ...string) outcome {
	var stdout, stderr bytes.Buffer
	e := env{
		stdout: &stdout, stderr: &stderr, getenv: func(name string) string { return d.env[name] },
		terminal: terminal, now: func() time.Time { return d.at.Add(400 * time.Millisecond) },
	}
	code := run(d.t.Context(), args, e)
	if t, ok := http.DefaultTransport.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
	return outcome{stdout.String(), stderr.String(), code}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update rewrites it); got:\n%s\nwant:\n%s", file, got, want)
	}
}

// What a person sees is held by golden files.
func TestOutput(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*apitest.Fake)
		before [][]string // commands that are run first
		args   []string
		code   int
	}{
		{name: "status", args: []string{"status"}},
		{name: "status-after-failover", before: [][]string{{"failover"}}, args: []string{"status"}},
		{name: "status-no-primary", change: func(f *apitest.Fake) { f.SetPrimary("") }, args: []string{"status"}, code: exitError},
		{name: "status-nothing-observed", change: func(f *apitest.Fake) { f.Observed(time.Time{}) }, args: []string{"status"}, code: exitError},
		{name: "failover", args: []string{"failover", "--reason", "kernel update"}},
		{name: "failover-json", args: []string{"failover", "-o", "json"}},
		{name: "failover-dry-run", args: []string{"failover", "--dry-run"}},
		{name: "failover-dry-run-refused", change: refusal, args: []string{"failover", "--dry-run"}, code: exitRefused},
		{name: "failover-refused", change: refusal, args: []string{"failover"}, code: exitRefused},
		{name: "failover-undone", change: func(f *apitest.Fake) { f.End = operation.Undone }, args: []string{"failover"}, code: exitUndone},
		{name: "failover-incomplete", change: func(f *apitest.Fake) { f.End = operation.Incomplete }, args: []string{"failover"}, code: exitIncomplete},
		{name: "failover-unknown-target", args: []string{"failover", "--target", "pg9"}, code: exitUsage},
		{name: "failover-unknown-mode", args: []string{"failover", "--mode", "quick"}, code: exitUsage},
		{name: "failback-dry-run-already", args: []string{"failback", "--dry-run"}},
		{name: "failback-already", args: []string{"failback"}},
		{name: "start", args: []string{"start", "postgres_slave"}},
		{name: "rejoin", args: []string{"rejoin", "postgres_slave", "--method", "rewind"}},
		{name: "operations-list", before: [][]string{{"failover", "--reason", "a b"}, {"failback"}}, args: []string{"operations", "list"}},
		{name: "operations-list-page", before: [][]string{{"failover"}, {"failback"}}, args: []string{"operations", "list", "--limit", "1"}},
		{name: "operations", before: [][]string{{"failover"}, {"failback"}}, args: []string{"operations", "--kind", "failback"}},
		{name: "operations-list-empty", args: []string{"operations", "list"}},
		{name: "operations-show", before: [][]string{{"failover"}}, args: []string{"operations", "show", "01954d0e-7b1a-7c3e-9f00-000000000001"}},
		{name: "operations-follow", before: [][]string{{"failover"}}, args: []string{"operations", "follow", "01954d0e-7b1a-7c3e-9f00-000000000001"}},
		{name: "operations-cancel-ended", before: [][]string{{"failover"}}, args: []string{"operations", "cancel", "01954d0e-7b1a-7c3e-9f00-000000000001"}, code: exitRefused},
		{name: "operations-show-unknown", args: []string{"operations", "show", "nine"}, code: exitUsage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := startDaemon(t)
			for _, args := range tt.before {
				if out := d.run(args...); out.code != 0 {
					t.Fatalf("%v: %+v", args, out)
				}
			}
			if tt.change != nil {
				tt.change(d.fake)
			}
			out := d.run(tt.args...)
			if out.code != tt.code {
				t.Errorf("exit code %d, want %d; stderr: %s", out.code, tt.code, out.stderr)
			}
			golden(t, tt.name, "--- stdout\n"+out.stdout+"--- stderr\n"+out.stderr)
		})
	}
}

// What is refused before a mode is chosen has none.
func TestPlanWithoutAMode(t *testing.T) {
	var out bytes.Buffer
	from := "postgres_master"
	writePlan(&out, gen.Plan{Kind: "failover", From: &from})
	if want := "dry run: failover postgres_master -> -;"; !strings.HasPrefix(out.String(), want) {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func refusal(f *apitest.Fake) {
	f.Refusal = operation.Refuse("long-transaction", map[string]any{"pid": 4711, "age_ms": 15000}, "pid 4711 (app, report) has a transaction open for 15 s; end it or wait for it")
}

func TestJSONIsTheAPIs(t *testing.T) {
	d := startDaemon(t)
	var s status
	if err := json.Unmarshal([]byte(d.run("status", "-o", "json").stdout), &s); err != nil || deref(s.Cluster.Primary) != "postgres_master" || s.Health.Status != "ok" {
		t.Errorf("%+v %v", s, err)
	}
	var op gen.Operation
	out := d.run("failover", "-o", "json")
	if err := json.Unmarshal([]byte(out.stdout), &op); err != nil || op.State != "succeeded" || out.stderr != "" {
		t.Errorf("%+v %v", out, err)
	}
}

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		name  string
		env   map[string]string
		args  []string
		code  int
		wants string // on stderr
	}{
		{"no token", map[string]string{"CONTROLD_TOKEN": ""}, []string{"status"}, exitForbidden, "make env"},
		{"wrong role", map[string]string{"CONTROLD_TOKEN": viewerToken}, []string{"failover"}, exitForbidden, "role operator"},
		{"nobody there", map[string]string{"CONTROLD_URL": "http://127.0.0.1:1"}, []string{"status"}, exitUnreachable, "make up"},
		{"no address", map[string]string{"CONTROLD_URL": "localhost:8088"}, []string{"status"}, exitUsage, "http://127.0.0.1:8088"},
		{"unknown command", nil, []string{"failovr"}, exitUsage, "failover"},
		{"unknown subcommand", nil, []string{"operations", "lst"}, exitUsage, "lst"},
		{"unknown flag", nil, []string{"failover", "--forse"}, exitUsage, "--forse"},
		{"a token is no flag", nil, []string{"status", "--token", "x"}, exitUsage, "--token"},
		{"argument missing", nil, []string{"start"}, exitUsage, "1 arg"},
		{"argument too many", nil, []string{"failover", "postgres_slave"}, exitUsage, ""},
		{"no number", nil, []string{"failover", "--max-loss-bytes", "16MB"}, exitUsage, "max-loss-bytes"},
		{"unknown output", nil, []string{"status", "-o", "xml"}, exitUsage, "table, json"},
		{"token file missing", nil, []string{"status", "--token-file", "/nowhere/token"}, exitError, "/nowhere/token"},
		{"unknown setting", nil, []string{"serve", "--config", "testdata/unknown.yaml"}, exitUsage, "postgres.shared_bufers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := startDaemon(t)
			for name, v := range tt.env {
				d.env[name] = v
			}
			out := d.run(tt.args...)
			if out.code != tt.code || !strings.Contains(out.stderr, tt.wants) {
				t.Errorf("%+v, want code %d and %q", out, tt.code, tt.wants)
			}
			if calls := d.fake.Calls(); len(calls) != 0 {
				t.Errorf("called %v", calls)
			}
		})
	}
}

func TestTokenFile(t *testing.T) {
	d := startDaemon(t)
	d.env["CONTROLD_TOKEN"] = ""
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(operatorToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := d.run("status", "--token-file", file); out.code != 0 {
		t.Errorf("%+v", out)
	}
}

func TestMaxLossOfZeroIsSent(t *testing.T) {
	d := startDaemon(t)
	d.run("failover", "--max-loss-bytes", "0")
	if !strings.Contains(jsonOf(t, d.fake.Last), `"MaxLossBytes":0`) {
		t.Errorf("asked for %s", jsonOf(t, d.fake.Last))
	}
	d.run("failover")
	if !strings.Contains(jsonOf(t, d.fake.Last), `"MaxLossBytes":null`) {
		t.Errorf("asked for %s", jsonOf(t, d.fake.Last))
	}
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestNoWait(t *testing.T) {
	d := startDaemon(t)
	d.fake.Gate = make(chan struct{})
	out := d.run("failover", "--no-wait", "--idempotency-key", "k")
	if out.code != 0 || !strings.Contains(out.stdout, "operations follow") {
		t.Errorf("%+v", out)
	}
	if again := d.run("failover", "--no-wait", "--idempotency-key", "k"); again.stdout != out.stdout {
		t.Errorf("the same key: %+v", again)
	}
	if busy := d.run("failback"); busy.code != exitRefused || !strings.Contains(busy.stderr, "operation-running") {
		t.Errorf("%+v", busy)
	}
	if late := d.run("failover", "--idempotency-key", "k", "--timeout", "100ms"); late.code != exitUnreachable || !strings.Contains(late.stderr, "goes on without you") {
		t.Errorf("%+v", late)
	}
	close(d.fake.Gate)
}

func TestTerminalShowsTheStepThatRuns(t *testing.T) {
	var b bytes.Buffer
	p := &progress{w: &b, terminal: true, written: map[string]string{}}
	took := 12.5
	p.show(gen.Operation{Steps: []gen.Step{{Name: "pause pooler", State: "running"}}})
	p.show(gen.Operation{Steps: []gen.Step{{Name: "pause pooler", State: "done", DurationMs: &took}, {Name: "promote", State: "pending"}}})
	p.end()
	if out := b.String(); !strings.Contains(out, "...               pause pooler\r") || !strings.HasSuffix(out, "done        12 ms  pause pooler\n") {
		t.Errorf("%q", out)
	}
}

func TestWatchGoesOnUntilInterrupted(t *testing.T) {
	d := startDaemon(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var stdout, stderr bytes.Buffer
	code := run(ctx, []string{"status", "--watch", "--interval", "100ms"}, env{
		stdout: &stdout, stderr: &stderr, getenv: func(name string) string { return d.env[name] }, now: time.Now,
	})
	if code != 0 || strings.Count(stdout.String(), "NODE") < 2 {
		t.Errorf("%d %s %s", code, stdout.String(), stderr.String())
	}
}

func TestCheck(t *testing.T) {
	d := startDaemon(t)
	socket := filepath.Join(t.TempDir(), "none.sock")
	d.env["DOCKER_HOST"] = "unix://" + socket
	out := d.run("check")
	if out.code != exitError {
		t.Errorf("%+v", out)
	}
	for _, want := range []string{"container engine  failed", "start Docker", "API               ok", "token             ok", "health            ok"} {
		if !strings.Contains(out.stdout, want) {
			t.Errorf("no %q in\n%s", want, out.stdout)
		}
	}
	d.env["CONTROLD_URL"] = "http://127.0.0.1:1"
	if out := d.run("check", "-o", "json"); out.code != exitError || !strings.Contains(out.stdout, `"failed"`) {
		t.Errorf("%+v", out)
	}
}

// Every command explains itself with an example.
func TestEveryCommandHasAnExample(t *testing.T) {
	c := &cli{env: env{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}}
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Example == "" || !strings.Contains(cmd.Example, "controld") {
			t.Errorf("%s lacks its short text or an example", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(c.root())
}

func TestCompletion(t *testing.T) {
	d := startDaemon(t)
	if out := d.run("completion", "bash"); out.code != 0 || !strings.Contains(out.stdout, "complete") {
		t.Errorf("%d %s", out.code, out.stderr)
	}
	if out := d.run("__complete", "start", ""); !strings.Contains(out.stdout, "postgres_slave") {
		t.Errorf("%+v", out)
	}
	if out := d.run("version"); out.code != 0 || !strings.HasPrefix(out.stdout, "controld ") {
		t.Errorf("%+v", out)
	}
}
