package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"controld/internal/api"
	"controld/internal/api/apitest"
	"controld/internal/api/command"
	"controld/internal/api/gen"
	"controld/internal/config"
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
	// stdin is what the next command is answered.
	stdin string
}

const (
	viewerToken   = "viewer-secret-0001"
	operatorToken = "operator-secret-0002"

	firstID = "01954d0e-7b1a-7c3e-9f00-000000000001" // of the first operation that the fake begins
)

func startDaemon(t *testing.T, change ...func(*api.Options)) *daemon {
	t.Helper()
	tokens, err := api.NewTokens(map[api.Role]string{api.Viewer: viewerToken, api.Operator: operatorToken})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 3, 1, 12, 5, 0, 0, time.UTC)
	fake := apitest.New()
	fake.Observed(at)
	fake.Interval = 10 * 365 * 24 * time.Hour // the test's clock stands still
	o := api.Options{
		Cluster: fake, Operations: fake, Tokens: tokens, Nodes: fake.Nodes(), Interval: fake.Interval,
		Capabilities: []command.Set{fake.Backups},
		Log:          slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&o)
	}
	s, err := api.New(o)
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
	return d.runWith(d.t.Context(), args...)
}

func (d *daemon) runWith(ctx context.Context, args ...string) outcome {
	var stdout, stderr bytes.Buffer
	e := env{
		stdin: strings.NewReader(d.stdin), stdout: &stdout, stderr: &stderr, getenv: func(name string) string { return d.env[name] },
		now: func() time.Time { return d.at.Add(400 * time.Millisecond) },
	}
	code := run(ctx, args, e)
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
		before func(*daemon) // what is done first
		args   []string
		code   int
	}{
		{name: "status", args: []string{"status"}},
		{name: "status-after-failover", before: commands("failover"), args: []string{"status"}},
		{name: "status-no-primary", change: func(f *apitest.Fake) { f.SetPrimary("") }, args: []string{"status"}, code: exitError},
		{name: "status-nothing-observed", change: func(f *apitest.Fake) { f.Observed(time.Time{}) },
			args: []string{"status"}, code: exitError},
		{name: "failover", args: []string{"failover", "--reason", "kernel update"}},
		{name: "failover-json", args: []string{"failover", "-o", "json"}},
		{name: "failover-dry-run", args: []string{"failover", "--dry-run"}},
		{name: "failover-dry-run-refused", change: refusal, args: []string{"failover", "--dry-run"}, code: exitRefused},
		{name: "failover-refused", change: refusal, args: []string{"failover"}, code: exitRefused},
		{name: "failover-undone", change: func(f *apitest.Fake) { f.End = operation.Undone }, args: []string{"failover"}, code: exitUndone},
		{name: "failover-incomplete", change: func(f *apitest.Fake) { f.End = operation.Incomplete },
			args: []string{"failover"}, code: exitIncomplete},
		{name: "failover-unknown-target", args: []string{"failover", "--target", "pg9"}, code: exitUsage},
		{name: "failover-unknown-mode", args: []string{"failover", "--mode", "quick"}, code: exitUsage},
		{name: "failback-dry-run-already", args: []string{"failback", "--dry-run"}},
		{name: "failback-already", args: []string{"failback"}},
		{name: "start", args: []string{"start", "postgres_slave"}},
		{name: "rejoin", args: []string{"rejoin", "postgres_slave", "--method", "rewind"}},
		{name: "operations-list", before: commands("failover --reason why", "failback"), args: []string{"operations", "list"}},
		{name: "operations-list-page", before: commands("failover", "failback"), args: []string{"operations", "list", "--limit", "1"}},
		{name: "operations", before: commands("failover", "failback"), args: []string{"operations", "--kind", "failback"}},
		{name: "operations-list-empty", args: []string{"operations", "list"}},
		{name: "operations-show", before: commands("failover"), args: []string{"operations", "show", firstID}},
		{name: "operations-follow", before: commands("failover"), args: []string{"operations", "follow", firstID}},
		{name: "operations-cancel-ended", before: commands("failover"), args: []string{"operations", "cancel", firstID}, code: exitRefused},
		{name: "operations-show-incomplete", before: incomplete, args: []string{"operations", "show", firstID}},
		{name: "operations-cancel-incomplete", before: incomplete, args: []string{"operations", "cancel", firstID}},
		{name: "operations-list-given-up", before: givenUp, args: []string{"operations"}},
		{name: "operations-follow-given-up", before: givenUp, args: []string{"operations", "follow", firstID}, code: exitIncomplete},
		{name: "backup-cycle", change: someCycle, args: []string{"backup", "cycle"}},
		{name: "backup-cycle-off", change: cycleOff, args: []string{"backup", "cycle"}},
		{name: "backup-day", args: []string{"backup", "day", "3"}},
		{name: "backup-day-unknown", args: []string{"backup", "day", "monday"}, code: exitUsage},
		{name: "operations-show-unknown", args: []string{"operations", "show", "nine"}, code: exitUsage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := startDaemon(t)
			if tt.before != nil {
				tt.before(d)
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

// commands are run before the one that is looked at.
func commands(lines ...string) func(*daemon) {
	return func(d *daemon) {
		for _, line := range lines {
			if out := d.run(strings.Fields(line)...); out.code != 0 {
				d.t.Fatalf("%s: %+v", line, out)
			}
		}
	}
}

// someCycle has a day that is due, and fails.
func someCycle(f *apitest.Fake) {
	at := func(day, hour int) time.Time { return time.Date(2026, 3, day, hour, 0, 0, 0, time.UTC) }
	ended, missed, running := at(2, 4), 1, firstID
	f.Cycle = gen.Cycle{
		Schedule: "0 3 * * *", Zone: "Europe/Madrid", Day: 1,
		Days: []gen.CycleDay{
			{Day: 1, Types: []gen.BackupType{"full"}}, {Day: 2, Types: []gen.BackupType{"incr"}},
			{Day: 3, Types: []gen.BackupType{"incr", "diff"}}, {Day: 4, Types: []gen.BackupType{"diff", "full"}},
		},
		Last: &gen.CycleLast{Day: 1, EndedAt: &ended}, Running: &running,
		Due:     &gen.CycleRun{Day: 3, Types: []gen.BackupType{"diff"}, At: at(4, 2), Missed: &missed},
		Next:    &gen.CycleRun{Day: 4, Types: []gen.BackupType{"diff", "full"}, At: at(5, 2)},
		Failing: &gen.CycleFailure{Day: 3, Attempts: 2, Since: at(4, 2), Detail: "the repository's disk is full"},
	}
}

func cycleOff(f *apitest.Fake) {
	f.Cycle = gen.Cycle{Schedule: "off", Zone: "UTC", Days: []gen.CycleDay{{Day: 1, Types: []gen.BackupType{"full"}}}}
}

// incomplete leaves a failover that is retried past its point of no return.
func incomplete(d *daemon) {
	d.fake.End = operation.Incomplete
	if out := d.run("failover"); out.code != exitIncomplete {
		d.t.Fatalf("%+v", out)
	}
}

// givenUp leaves one that was cancelled there.
func givenUp(d *daemon) {
	incomplete(d)
	commands("operations cancel " + firstID)(d)
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
	f.Refusal = operation.Refuse("long-transaction", map[string]any{"pid": 4711, "age_ms": 15000},
		"pid 4711 (app, report) has a transaction open for 15 s; end it or wait for it")
}

func TestJSONIsTheAPIs(t *testing.T) {
	d := startDaemon(t)
	var s status
	err := json.Unmarshal([]byte(d.run("status", "-o", "json").stdout), &s)
	if err != nil || gen.Value(s.Cluster.Primary) != "postgres_master" || s.Health.Status != "ok" {
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

// Where the daemon lets callers on its machine in, the commands need no token.
func TestNoTokenNeeded(t *testing.T) {
	d := startDaemon(t, func(o *api.Options) { o.Anonymous = api.Operator })
	delete(d.env, "CONTROLD_TOKEN")
	if out := d.run("failover"); out.code != 0 || d.fake.Caller.Name != "anonymous" {
		t.Errorf("%+v, asked for by %q", out, d.fake.Caller.Name)
	}
	if out := d.run("status"); out.code != 0 {
		t.Errorf("%+v", out)
	}
	if out := d.run("check"); !strings.Contains(out.stdout, "none is needed") {
		t.Errorf("%+v", out)
	}
	d.env["CONTROLD_TOKEN"] = "guess"
	if out := d.run("failover"); out.code != exitForbidden || !strings.Contains(out.stderr, "not known") {
		t.Errorf("%+v", out)
	}
	viewer := startDaemon(t, func(o *api.Options) { o.Anonymous = api.Viewer })
	delete(viewer.env, "CONTROLD_TOKEN")
	if out := viewer.run("failover"); out.code != exitForbidden || !strings.Contains(out.stderr, "role operator") {
		t.Errorf("%+v", out)
	}
	if out := viewer.run("status"); out.code != 0 {
		t.Errorf("%+v", out)
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
	late := d.run("failover", "--idempotency-key", "k", "--timeout", "100ms")
	if late.code != exitUnreachable || !strings.Contains(late.stderr, "not finished within 100ms (--timeout); the operation goes on") {
		t.Errorf("%+v", late)
	}
	close(d.fake.Gate)
}

// A wait that ends early says so in words, and what becomes of the operation.
func TestWaitEndsEarly(t *testing.T) {
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then the server notices that the client left
		<-r.Context().Done()
	}))
	t.Cleanup(hanging.Close)
	const late = "not finished within 100ms (--timeout)"
	for _, tt := range []struct {
		name      string
		url       string // empty: a daemon whose operations do not end
		args      string
		interrupt bool
		code      int
		wants     []string
	}{
		{"timeout", "", "failover --timeout 100ms", false, exitUnreachable,
			[]string{late, "operations follow 01954d0e", "operations cancel 01954d0e"}},
		{"timeout before an answer", hanging.URL, "failover --timeout 100ms", false, exitUnreachable,
			[]string{late, "controld operations"}},
		{"timeout of a dry run", hanging.URL, "failback --dry-run --timeout 100ms", false, exitUnreachable,
			[]string{late, "nothing was changed"}},
		{"interrupt", "", "failover", true, exitError,
			[]string{"interrupted; the operation goes on in the daemon", "operations follow 01954d0e"}},
		{"interrupt before an answer", hanging.URL, "failover", true, exitError, []string{"interrupted; if the daemon has begun"}},
		{"interrupt of a reading command", hanging.URL, "operations list", true, exitError, []string{"controld: interrupted\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := startDaemon(t)
			d.fake.Gate = make(chan struct{})
			defer close(d.fake.Gate)
			if tt.url != "" {
				d.env["CONTROLD_URL"] = tt.url
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.interrupt {
				time.AfterFunc(200*time.Millisecond, cancel)
			}
			out := d.runWith(ctx, strings.Fields(tt.args)...)
			if out.code != tt.code || strings.Contains(out.stderr, "context") {
				t.Errorf("%+v, want code %d", out, tt.code)
			}
			for _, want := range tt.wants {
				if !strings.Contains(out.stderr, want) {
					t.Errorf("%q does not say %q", out.stderr, want)
				}
			}
		})
	}
}

func TestTerminalShowsTheStepThatRuns(t *testing.T) {
	var b bytes.Buffer
	p := &progress{w: &b, terminal: true, written: map[string]string{}}
	took := 12.5
	p.show(gen.Operation{Steps: []gen.Step{{Name: "pause pooler", State: "running"}}})
	p.show(gen.Operation{Steps: []gen.Step{{Name: "pause pooler", State: "done", DurationMs: &took}, {Name: "promote", State: "pending"}}})
	p.end()
	out := b.String()
	if !strings.Contains(out, "...               pause pooler\r") || !strings.HasSuffix(out, "done        12 ms  pause pooler\n") {
		t.Errorf("%q", out)
	}
}

// TestProgressOfAStep: on a terminal a bar where the total is known, words where it is
// not; elsewhere a line now and then.
func TestProgressOfAStep(t *testing.T) {
	far := func(done, total int64) gen.Operation {
		p := gen.Progress{Phase: "streaming", Done: done, Unit: "bytes", Rate: new(float64(50 << 20)), EtaMs: new(float64(90_000))}
		if total > 0 {
			p.Total = &total
		}
		return gen.Operation{Steps: []gen.Step{{Name: "base backup", State: "running"}}, Progress: &p}
	}
	var b bytes.Buffer
	p := &progress{w: &b, terminal: true, written: map[string]string{}}
	p.show(far(0, 0))
	if out := b.String(); !strings.Contains(out, "base backup: streaming 0 B, 50.0 MB/s, 1 min left") || strings.Contains(out, "%") {
		t.Errorf("%q", out)
	}
	b.Reset()
	p.show(far(512<<20, 1<<30))
	if out := b.String(); !strings.Contains(out, "base backup: streaming 512.0 MB of 1.0 GB, 50.0 MB/s, 1 min left  50%") {
		t.Errorf("%q", out)
	}
	p.show(far(1<<30, 1<<30))
	p.show(gen.Operation{Steps: []gen.Step{{Name: "base backup", State: "done"}}})
	p.end()
	if out := b.String(); !strings.HasSuffix(out, "base backup\n") || strings.Count(out, "\n") != 1 {
		t.Errorf("%q", out)
	}
	b.Reset()
	p = &progress{w: &b, written: map[string]string{}}
	for range 3 {
		p.show(far(512<<20, 1<<30))
	}
	if out := b.String(); out != "  ...      base backup: streaming 512.0 MB of 1.0 GB, 50.0 MB/s, 1 min left\n" {
		t.Errorf("%q", out)
	}
	b.Reset()
	p = &progress{w: &b, terminal: true, written: map[string]string{}}
	p.show(gen.Operation{State: gen.OperationStateRunning, WaitsFor: new("0195")})
	if out := b.String(); !strings.Contains(out, "waits for operation 0195") {
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
	for _, want := range []string{
		"container engine  failed", "start Docker", "API               ok", "token             ok", "health            ok",
	} {
		if !strings.Contains(out.stdout, want) {
			t.Errorf("no %q in\n%s", want, out.stdout)
		}
	}
	d.env["CONTROLD_URL"] = "http://127.0.0.1:1"
	if out := d.run("check", "-o", "json"); out.code != exitError || !strings.Contains(out.stdout, `"failed"`) {
		t.Errorf("%+v", out)
	}
	out = d.run("check", "--daemon")
	if out.code != exitError || strings.Contains(out.stdout, "API") || !strings.Contains(out.stdout, "container engine  failed") {
		t.Errorf("%+v", out)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if out := d.run("check", "--daemon"); out.code != 0 || !strings.Contains(out.stdout, "container engine  ok") {
		t.Errorf("%+v", out)
	}
	out = d.run("check", "--daemon", "--config", "testdata/schedule.yaml")
	if out.code != exitError || !strings.Contains(out.stdout, `backup.schedule="@every 24h"`) {
		t.Errorf("%+v", out)
	}
	out = d.run("check", "--daemon", "--config", "testdata/unknown.yaml")
	if out.code != exitError || !strings.Contains(out.stdout, "postgres.shared_bufers") {
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

// Whoever writes a script finds the exit codes where the command is explained.
func TestExitCodesAreExplained(t *testing.T) {
	d := startDaemon(t)
	for _, line := range []string{
		"", "status", "failover", "failback", "start", "rejoin", "check",
		"operations", "operations list", "operations show", "operations follow", "operations cancel",
		"backup", "backup run", "backup day", "backup cycle", "backup list", "backup show",
	} {
		if out := d.run(append(strings.Fields(line), "--help")...); !strings.Contains(out.stdout, exitCodeHelp) {
			t.Errorf("controld %s --help does not list the exit codes", line)
		}
	}
	doc := document(t, "operating.md")
	for code, line := range strings.Split(exitCodeTable(), "\n") {
		if !strings.Contains(doc, fmt.Sprintf("| %d |", code)) {
			t.Errorf("docs/operating.md does not list exit code %d: %s", code, line)
		}
	}
}

// exitCodeTable is a line per exit code.
func exitCodeTable() string {
	_, lines, _ := strings.Cut(exitCodeHelp, "\n")
	return strings.ReplaceAll(lines, "\n     ", " ")
}

func document(t *testing.T, name string) string {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("../../docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

// The file of settings in docs/operating.md has every key, with its default.
func TestDocumentedSettings(t *testing.T) {
	_, block, _ := strings.Cut(document(t, "operating.md"), "```yaml\n")
	block, _, found := strings.Cut(block, "```")
	if !found {
		t.Fatal("docs/operating.md has no block of YAML")
	}
	file := filepath.Join(t.TempDir(), "controld.yaml")
	if err := os.WriteFile(file, []byte(block), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	want, err := config.Load("", nil)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("it says\n%+v, the defaults are\n%+v", got, want)
	}
	for _, key := range settingKeys(reflect.TypeFor[config.Config]()) {
		if !regexp.MustCompile(`(?m)[ {]` + key + `:|^` + key + `:`).MatchString(block) {
			t.Errorf("it does not name %s", key)
		}
	}
}

// settingKeys are the names of all settings, without their sections.
func settingKeys(typ reflect.Type) (keys []string) {
	for i := range typ.NumField() {
		field := typ.Field(i)
		key := field.Tag.Get("koanf")
		if key == "" || key == "-" {
			continue
		}
		keys = append(keys, key)
		inner := field.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			keys = append(keys, settingKeys(inner)...)
		}
	}
	return keys
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
