package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"controld"
	"controld/internal/api/apitest"
	"controld/internal/api/command"
	"controld/internal/api/gen"
	"controld/internal/cluster"
	"controld/internal/operation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	viewerToken   = "viewer-secret-0001"
	operatorToken = "operator-secret-0002"
	adminToken    = "admin-secret-0003"
)

type bench struct {
	t      *testing.T
	fake   *apitest.Fake
	server *Server
	http   *httptest.Server
	log    *bytes.Buffer
}

func start(t *testing.T, change ...func(*Options)) *bench {
	t.Helper()
	tokens, err := NewTokens(map[Role]string{Viewer: viewerToken, Operator: operatorToken, Admin: adminToken})
	if err != nil {
		t.Fatal(err)
	}
	fake, log := apitest.New(), &bytes.Buffer{}
	o := Options{
		Cluster: fake, Operations: fake, Tokens: tokens, Nodes: fake.Nodes(), Interval: apitest.Interval,
		Capabilities: served(fake), Version: "test",
		Log:     slog.New(slog.NewTextHandler(&locked{w: log}, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "pg_up 1\n") }),
	}
	for _, c := range change {
		c(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(s.Handler())
	srv.Config.MaxHeaderBytes = maxHeaderBytes
	srv.Start()
	t.Cleanup(func() {
		s.StopStreams()
		srv.Close()
	})
	return &bench{t: t, fake: fake, server: s, http: srv, log: log}
}

// locked makes a buffer safe for the server's goroutines.
type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

type call struct {
	method, path, body string
	token              string
	header             http.Header
}

// reply is a response whose body was read.
type reply struct {
	StatusCode int
	Header     http.Header
}

func (b *bench) do(c call) (reply, []byte) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), c.method, b.http.URL+c.path, strings.NewReader(c.body))
	if err != nil {
		b.t.Fatal(err)
	}
	if c.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	for name, values := range c.header {
		req.Header[name] = values
	}
	resp, err := b.http.Client().Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header}, body
}

func (b *bench) problem(resp reply, body []byte) gen.Problem {
	b.t.Helper()
	if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
		b.t.Fatalf("content type %q of %s", ct, body)
	}
	var p gen.Problem
	if err := json.Unmarshal(body, &p); err != nil {
		b.t.Fatalf("%v in %s", err, body)
	}
	if p.Status != resp.StatusCode || p.Title == "" || p.Detail == "" || p.RequestID == nil {
		b.t.Errorf("problem is incomplete: %s", body)
	}
	return p
}

// Every bad input gets its problem, names what is wrong, and calls nothing.
func TestBadInputChangesNothing(t *testing.T) {
	get := func(path, token string) call { return call{method: "GET", path: path, token: token} }
	post := func(path, token string) call { return call{method: "POST", path: path, token: token} }
	operate := func(path, body string) call {
		return call{method: "POST", path: path, token: operatorToken, body: body}
	}
	failover := func(body string) call { return operate("/failover", body) }
	with := func(c call, name, value string) call {
		c.header = http.Header{name: {value}}
		return c
	}
	b := start(t)
	for _, tt := range []struct {
		name   string
		call   call
		status int
		typ    string // after /problems/
		field  string
		wants  []string // in the detail or what is allowed
	}{
		{"no token", post("/failover", ""), 401, "unauthorized", "Authorization", []string{"make env"}},
		{"unknown token", post("/failover", "guess"), 401, "unauthorized", "Authorization", []string{"make env"}},
		{"basic auth", with(get("/cluster", ""), "Authorization", "Basic "+adminToken), 401, "unauthorized", "", nil},
		{"token in the query", get("/cluster?token="+adminToken, ""), 401, "unauthorized", "", nil},
		{"viewer starts", post("/failover", viewerToken), 403, "forbidden", "", []string{"role operator", "role viewer"}},
		{"viewer cancels", post("/operations/x/cancel", viewerToken), 403, "forbidden", "", nil},
		{"no token for metrics", get("/metrics", ""), 401, "unauthorized", "", nil},
		{"no token for events", get("/operations/x/events", ""), 401, "unauthorized", "", nil},
		{"unknown path", get("/failovers", adminToken), 404, "no-such-path", "", []string{"GET /"}},
		{"path with a slash more", post("/failover/", adminToken), 404, "no-such-path", "", nil},
		{"wrong method", get("/failover", adminToken), 405, "method-not-allowed", "", []string{"POST"}},
		{"wrong method on a node", call{method: "DELETE", path: "/nodes/postgres_master/primary"}, 405, "method-not-allowed", "",
			[]string{"GET, HEAD"}},
		{"odd method", call{method: "BREW", path: "/health"}, 405, "method-not-allowed", "", nil},
		{"wrong content type", with(failover(`{"mode":"planned"}`), "Content-Type", "application/x-www-form-urlencoded"),
			415, "content-type", "", []string{"application/json"}},
		{"broken JSON", failover(`{"mode": "plan`), 400, "bad-request", "body", []string{"at byte"}},
		{"two documents", failover(`{} {"dry_run":true}`), 400, "bad-request", "body", nil},
		{"a list", failover(`[]`), 400, "bad-request", "body", []string{"object"}},
		{"null", failover(`null`), 400, "bad-request", "body", nil},
		{"wrong type", failover(`{"dry_run":"yes"}`), 400, "bad-request", "dry_run", []string{"boolean"}},
		{"wrong type of a number", failover(`{"max_loss_bytes":"16MB"}`), 400, "bad-request", "max_loss_bytes", []string{"integer"}},
		{"a fraction of a byte", failover(`{"max_loss_bytes":1.5}`), 400, "bad-request", "max_loss_bytes", []string{"integer"}},
		{"below the minimum", failover(`{"max_loss_bytes":-2}`), 400, "bad-request", "max_loss_bytes", []string{"-1"}},
		{"unknown value", failover(`{"mode":"quick"}`), 400, "bad-request", "mode", []string{"auto, planned, emergency"}},
		{"unknown field", failover(`{"dryrun":true}`), 400, "bad-request", "dryrun", []string{"dry_run", "max_loss_bytes"}},
		{"field of the body in the query", post("/failover?dry_run=true", operatorToken), 400, "bad-request", "dry_run",
			[]string{"JSON body"}},
		{"long reason", failover(`{"reason":"` + strings.Repeat("x", 501) + `"}`), 400, "bad-request", "reason", []string{"500"}},
		{"unknown target", failover(`{"target":"pg9"}`), 404, "unknown-node", "target", []string{"postgres_master, postgres_slave"}},
		{"unknown expected primary", failover(`{"expected_primary":"pg9"}`), 404, "unknown-node", "expected_primary",
			[]string{"postgres_master"}},
		{"start of an unknown node", post("/nodes/pg9/start", operatorToken), 404, "unknown-node", "name", []string{"postgres_slave"}},
		{"rejoin of an unknown node", post("/nodes/pg9/rejoin", operatorToken), 404, "unknown-node", "name", []string{"postgres_slave"}},
		{"unknown method of a rejoin", operate("/nodes/postgres_slave/rejoin", `{"method":"magic"}`), 400, "bad-request", "method",
			[]string{"auto, rewind, basebackup"}},
		{"check of an unknown node", get("/nodes/pg9/primary", ""), 404, "unknown-node", "name", nil},
		{"lag is no size", get("/nodes/postgres_slave/replica?lag=much", ""), 400, "bad-request", "lag", nil},
		{"lag is too much", get("/nodes/postgres_slave/replica?lag=999999999999999GB", ""), 400, "bad-request", "lag", nil},
		{"failback with a target", operate("/failback", `{"target":"postgres_slave"}`), 400, "bad-request", "target", []string{"reason"}},
		{"unknown operation", get("/operations/nine", viewerToken), 404, "unknown-operation", "id", []string{"GET /operations"}},
		{"events of an unknown operation", get("/operations/nine/events", viewerToken), 404, "unknown-operation", "id", nil},
		{"limit", get("/operations?limit=0", viewerToken), 400, "bad-request", "limit", []string{"at least 1"}},
		{"limit is no number", get("/operations?limit=all", viewerToken), 400, "bad-request", "limit", nil},
		{"state", get("/operations?state=done", viewerToken), 400, "bad-request", "state", []string{"succeeded"}},
		{"after", get("/operations?after=x", viewerToken), 400, "bad-request", "after", nil},
		{"unknown parameter", get("/operations?page=2", viewerToken), 400, "bad-request", "page", []string{"after"}},
		{"empty idempotency key", with(failover(""), "Idempotency-Key", ""), 400, "bad-request", "Idempotency-Key", nil},
		{"long idempotency key", with(failover(""), "Idempotency-Key", strings.Repeat("k", 201)), 400, "bad-request", "Idempotency-Key",
			[]string{"200"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.t = t
			resp, body := b.do(tt.call)
			p := b.problem(resp, body)
			if resp.StatusCode != tt.status || p.Type != "/problems/"+tt.typ {
				t.Errorf("%d %s, want %d %s: %s", resp.StatusCode, p.Type, tt.status, tt.typ, body)
			}
			if tt.field != "" && gen.Value(p.Field) != tt.field {
				t.Errorf("field %q, want %q: %s", gen.Value(p.Field), tt.field, body)
			}
			for _, want := range tt.wants {
				if !strings.Contains(p.Detail+"\n"+gen.Value(p.Allowed), want) {
					t.Errorf("nothing names %q: %s", want, body)
				}
			}
			if tt.status == 401 && !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Bearer") {
				t.Error("no WWW-Authenticate")
			}
			if tt.status == 405 && resp.Header.Get("Allow") == "" {
				t.Error("no Allow")
			}
			if calls := b.fake.Calls(); len(calls) != 0 {
				t.Errorf("called %v", calls)
			}
		})
	}
}

// A body over the limit is refused before it is read where it says so, and
// while it is read where it does not.
func TestLargeBody(t *testing.T) {
	b := start(t)
	conn, err := net.Dial("tcp", b.http.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Not a byte of the 10 MB is sent: the answer comes all the same.
	fmt.Fprintf(conn, "POST /failover HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"+
		"Content-Type: application/json\r\nContent-Length: 10485760\r\n\r\n", operatorToken)
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	answer := make([]byte, 64)
	if n, err := conn.Read(answer); err != nil || !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 413") {
		t.Errorf("%q, %v", answer[:n], err)
	}

	// A reader of no known length is sent in chunks.
	large := io.MultiReader(strings.NewReader(`{"reason":"` + strings.Repeat("x", 2<<20) + `"}`))
	req, err := http.NewRequestWithContext(t.Context(), "POST", b.http.URL+"/failover", large)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	req.Header.Set("Content-Type", "application/json")
	resp, err := b.http.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if p := b.problem(reply{resp.StatusCode, resp.Header}, body); p.Type != "/problems/body-too-large" || resp.StatusCode != 413 {
		t.Errorf("chunked: %s", body)
	}
	if calls := b.fake.Calls(); len(calls) != 0 {
		t.Errorf("called %v", calls)
	}
}

func TestHugeHeader(t *testing.T) {
	b := start(t)
	req, err := http.NewRequestWithContext(t.Context(), "POST", b.http.URL+"/failover", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Junk", strings.Repeat("x", 64<<10))
	resp, err := b.http.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge || len(b.fake.Calls()) != 0 {
		t.Errorf("%d, called %v", resp.StatusCode, b.fake.Calls())
	}
}

// curl -X POST sends no body, and in some forms a content type for it.
func TestEmptyBody(t *testing.T) {
	for name, header := range map[string]http.Header{
		"no content type": nil,
		"form":            {"Content-Type": {"application/x-www-form-urlencoded"}},
		"JSON":            {"Content-Type": {"application/json"}},
	} {
		for _, body := range []string{"", "\n"} {
			b := start(t)
			resp, answer := b.do(call{method: "POST", path: "/failover", token: operatorToken, header: header, body: body})
			if resp.StatusCode != 200 {
				t.Errorf("%s, body %q: %d %s", name, body, resp.StatusCode, answer)
			}
			if r, ok := b.fake.Last.(cluster.FailoverRequest); !ok || r.Mode != cluster.ModeAuto {
				t.Errorf("%s: asked for %+v", name, b.fake.Last)
			}
		}
	}
}

func TestFailoverAnswersWithTheFinishedOperation(t *testing.T) {
	b := start(t)
	resp, body := b.do(call{method: "POST", path: "/failover", token: operatorToken,
		body: `{"target":"postgres_slave","mode":"planned","reason":"test","expected_primary":"postgres_master","max_loss_bytes":0}`})
	if resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	var op gen.Operation
	if err := json.Unmarshal(body, &op); err != nil {
		t.Fatal(err)
	}
	if op.State != "succeeded" || op.RequestedBy != "operator" || gen.Value(op.Reason) != "test" || (*op.Result)["to"] != "postgres_slave" {
		t.Errorf("%s", body)
	}
	if len(op.Steps) != len(apitest.Steps) || gen.Value(op.Steps[0].DurationMs) != 12.5 {
		t.Errorf("steps: %s", body)
	}
	if resp.Header.Get("Location") != "/operations/"+op.ID {
		t.Errorf("Location %q", resp.Header.Get("Location"))
	}
	zero := int64(0)
	want := cluster.FailoverRequest{
		Target: "postgres_slave", Mode: "planned", Reason: "test", ExpectedPrimary: "postgres_master", MaxLossBytes: &zero,
	}
	got := b.fake.Last.(cluster.FailoverRequest)
	if got.Target != want.Target || got.ExpectedPrimary != want.ExpectedPrimary ||
		got.MaxLossBytes == nil || *got.MaxLossBytes != 0 {
		t.Errorf("asked for %+v", got)
	}
	resp, body = b.do(call{method: "POST", path: "/failback", token: adminToken})
	if resp.StatusCode != 200 || !bytes.Contains(body, []byte(`"to": "postgres_master"`)) {
		t.Errorf("failback: %d %s", resp.StatusCode, body)
	}
	resp, body = b.do(call{method: "POST", path: "/failback", token: adminToken})
	if resp.StatusCode != 200 || !bytes.Contains(body, []byte("already")) {
		t.Errorf("failback when already there: %d %s", resp.StatusCode, body)
	}
}

func TestDryRun(t *testing.T) {
	b := start(t)
	for path, kind := range map[string]string{"/failover": "failover", "/failback": "failback"} {
		resp, body := b.do(call{method: "POST", path: path, token: operatorToken, body: `{"dry_run":true}`})
		var plan gen.Plan
		if err := json.Unmarshal(body, &plan); err != nil || resp.StatusCode != 200 {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
		nothingToDo := kind == "failback"
		if plan.Kind != kind || !plan.WouldRun || (len(plan.Steps) == 0) != nothingToDo || len(plan.Checks) == 0 {
			t.Errorf("%s: %s", path, body)
		}
	}
	if calls := b.fake.Calls(); len(calls) != 0 {
		t.Errorf("called %v", calls)
	}
}

func TestHowOperationsEnd(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*apitest.Fake)
		status int
		typ    string
		cause  string
	}{
		{"refused", func(f *apitest.Fake) {
			f.Refusal = operation.Refuse("no-candidate", map[string]any{"standbys": 0}, "no standby streams")
		}, 409, "/problems/no-candidate", ""},
		{"undone", func(f *apitest.Fake) { f.End = operation.Undone }, 500, "/problems/undone", "/problems/not-leading"},
		{"incomplete", func(f *apitest.Fake) { f.End = operation.Incomplete }, 500, "/problems/incomplete", "/problems/not-leading"},
		{"cancelled", func(f *apitest.Fake) { f.End = operation.Cancelled }, 409, "/problems/cancelled", "/problems/not-leading"},
		{"stopping", func(f *apitest.Fake) { f.Err = operation.ErrStopping }, 503, "/problems/stopping", ""},
		{"a surprise", func(f *apitest.Fake) { f.Err = errors.New("password is hunter22") }, 500, "/problems/internal", ""},
		{"panic", func(f *apitest.Fake) { f.Panic = true }, 200, "", ""}, // POST asks for no view
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := start(t)
			tt.change(b.fake)
			resp, body := b.do(call{method: "POST", path: "/failover", token: operatorToken})
			if tt.status == 200 {
				if resp.StatusCode != 200 {
					t.Fatalf("%d %s", resp.StatusCode, body)
				}
				return
			}
			p := b.problem(resp, body)
			if resp.StatusCode != tt.status || p.Type != tt.typ || gen.Value(p.Cause) != tt.cause {
				t.Errorf("%d %s cause %q: %s", resp.StatusCode, p.Type, gen.Value(p.Cause), body)
			}
			if b.fake.Err == nil &&
				(p.Operation == nil || resp.Header.Get("Location") != "/operations/"+p.Operation.ID || p.Numbers == nil) {
				t.Errorf("without its operation or numbers: %s", body)
			}
			if bytes.Contains(body, []byte("hunter22")) {
				t.Errorf("an unknown error's text reached the client: %s", body)
			}
		})
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	b := start(t)
	b.fake.Panic = true
	resp, body := b.do(call{method: "GET", path: "/nodes/postgres_master/primary"})
	if p := b.problem(resp, body); resp.StatusCode != 500 || p.Type != "/problems/internal" {
		t.Errorf("%s", body)
	}
}

func TestSecondOperationIsToldOfTheFirst(t *testing.T) {
	b := start(t)
	b.fake.Gate = make(chan struct{})
	resp, body := b.do(call{method: "POST", path: "/failover", token: operatorToken, header: http.Header{"Prefer": {"respond-async"}}})
	first := resp.Header.Get("Location")
	if resp.StatusCode != 202 || resp.Header.Get("Preference-Applied") != "respond-async" || !strings.HasPrefix(first, "/operations/") {
		t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	resp, body = b.do(call{method: "POST", path: "/failback", token: operatorToken})
	p := b.problem(resp, body)
	if resp.StatusCode != 409 || p.Type != "/problems/operation-running" ||
		resp.Header.Get("Location") != first || p.Operation == nil || "/operations/"+p.Operation.ID != first {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	close(b.fake.Gate)
}

func TestLongOperationIs202(t *testing.T) {
	b := start(t, func(o *Options) { o.WaitLimit = time.Second })
	b.fake.Gate = make(chan struct{})
	defer close(b.fake.Gate)
	resp, body := b.do(call{method: "POST", path: "/failover", token: operatorToken, header: http.Header{"Prefer": {"wait=0"}}})
	if resp.StatusCode != 202 || resp.Header.Get("Preference-Applied") != "" || resp.Header.Get("Location") == "" {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
}

func TestIdempotencyKey(t *testing.T) {
	b := start(t)
	key := http.Header{"Idempotency-Key": {"k1"}}
	_, first := b.do(call{method: "POST", path: "/failover", token: operatorToken, body: `{"reason":"a"}`, header: key})
	i := b.fake.Caller.Idempotency
	if i == nil || i.Key != "k1" || i.Caller != "operator" || i.Method != "POST" || i.Path != "/failover" || len(i.Body) != 32 {
		t.Errorf("passed on %+v", i)
	}
	resp, again := b.do(call{method: "POST", path: "/failover", token: operatorToken, body: `{"reason":"a"}`, header: key})
	if resp.StatusCode != 200 || !bytes.Equal(first, again) {
		t.Errorf("%d\n%s\n%s", resp.StatusCode, first, again)
	}
	resp, body := b.do(call{method: "POST", path: "/failover", token: operatorToken, body: `{"reason":"b"}`, header: key})
	if p := b.problem(resp, body); resp.StatusCode != 422 || p.Type != "/problems/idempotency-key-reused" {
		t.Errorf("%s", body)
	}
}

// A client that leaves changes nothing: the operation goes on.
func TestClientLeaves(t *testing.T) {
	b := start(t)
	b.fake.Gate = make(chan struct{})
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", b.http.URL+"/failover", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if resp, err := b.http.Client().Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	for len(b.fake.Calls()) == 0 {
		time.Sleep(time.Millisecond)
	}
	leave()
	<-gone
	close(b.fake.Gate)
	recs, _, err := b.fake.List(operation.Filter{})
	if err != nil || len(recs) != 1 {
		t.Fatal(recs, err)
	}
	rec, err := b.fake.Wait(t.Context(), recs[0].ID)
	if err != nil || rec.State != operation.Succeeded {
		t.Errorf("%+v %v", rec, err)
	}
}

func TestNodeChecks(t *testing.T) {
	stale := func(f *apitest.Fake) { f.Observed(time.Now().Add(-4 * apitest.Interval)) }
	for _, tt := range []struct {
		name   string
		change func(*apitest.Fake)
		path   string
		status int
	}{
		{"primary", nil, "/nodes/postgres_master/primary", 200},
		{"standby is no primary", nil, "/nodes/postgres_slave/primary", 503},
		{"order withdrawn", func(f *apitest.Fake) { f.Withdraw(true) }, "/nodes/postgres_master/primary", 503},
		{"stale", stale, "/nodes/postgres_master/primary", 503},
		{"nothing observed", func(f *apitest.Fake) { f.Observed(time.Time{}) }, "/nodes/postgres_master/primary", 503},
		{"replica", nil, "/nodes/postgres_slave/replica", 200},
		{"primary is no replica", nil, "/nodes/postgres_master/replica", 503},
		{"within the lag", nil, "/nodes/postgres_slave/replica?lag=10MB", 200},
		{"exactly the lag", nil, "/nodes/postgres_slave/replica?lag=256", 200},
		{"over the lag", nil, "/nodes/postgres_slave/replica?lag=255B", 503},
		{"lag without a primary", func(f *apitest.Fake) { f.SetPrimary("") }, "/nodes/postgres_slave/replica?lag=10MB", 503},
		{"stale replica", stale, "/nodes/postgres_slave/replica", 503},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := start(t)
			if tt.change != nil {
				tt.change(b.fake)
			}
			for _, method := range []string{"GET", "HEAD"} {
				resp, body := b.do(call{method: method, path: tt.path})
				if resp.StatusCode != tt.status || (method == "HEAD") != (len(body) == 0) {
					t.Errorf("%s: %d %s", method, resp.StatusCode, body)
				}
			}
		})
	}
}

func TestHealth(t *testing.T) {
	b := start(t)
	resp, body := b.do(call{method: "GET", path: "/health"})
	if resp.StatusCode != 200 || !bytes.Contains(body, []byte(`"status": "ok"`)) || !bytes.Contains(body, []byte(`"observed_at"`)) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	b.fake.Observed(time.Now().Add(-10 * apitest.Interval))
	resp, body = b.do(call{method: "GET", path: "/health"})
	if resp.StatusCode != 503 || !bytes.Contains(body, []byte(`"reason": "stale"`)) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	b.fake.Observed(time.Time{})
	if resp, _ = b.do(call{method: "GET", path: "/health/ready"}); resp.StatusCode != 503 {
		t.Errorf("ready before the first observation: %d", resp.StatusCode)
	}
	b.fake.Observed(time.Now())
	if resp, _ = b.do(call{method: "GET", path: "/health/ready"}); resp.StatusCode != 200 {
		t.Errorf("ready: %d", resp.StatusCode)
	}
	b.server.StopStreams()
	if resp, _ = b.do(call{method: "GET", path: "/health/ready"}); resp.StatusCode != 503 {
		t.Errorf("ready while stopping: %d", resp.StatusCode)
	}
	if resp, _ = b.do(call{method: "GET", path: "/health/live"}); resp.StatusCode != 200 {
		t.Errorf("live: %d", resp.StatusCode)
	}
}

func TestClusterSaysWhatWasObserved(t *testing.T) {
	b := start(t)
	var c gen.Cluster
	resp, body := b.do(call{method: "GET", path: "/cluster", token: viewerToken})
	if err := json.Unmarshal(body, &c); err != nil || resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	slave := c.Nodes[1]
	if gen.Value(c.Primary) != "postgres_master" || slave.Role != "standby" || gen.Value(slave.LagBytes) != 256 ||
		gen.Value(slave.SyncState) != "async" || slave.Slot == nil || gen.Value(slave.SystemIdentifier) != "7350112233445566778" {
		t.Errorf("%s", body)
	}
	if gen.Value(c.Pooler.Databases[0].Node) != "postgres_master" {
		t.Errorf("pooler: %s", body)
	}
	b.fake.SetPrimary("")
	if _, body = b.do(call{method: "GET", path: "/cluster", token: viewerToken}); !bytes.Contains(body, []byte(`"primary": null`)) {
		t.Errorf("no primary is null: %s", body)
	}
	b.fake.Observed(time.Time{})
	if _, body = b.do(call{method: "GET", path: "/cluster", token: viewerToken}); !bytes.Contains(body, []byte("postgres_slave")) {
		t.Errorf("configured nodes are listed before the first observation: %s", body)
	}
}

func TestOperationsPages(t *testing.T) {
	b := start(t)
	for range 3 {
		b.do(call{method: "POST", path: "/failover", token: operatorToken})
	}
	var ids []string
	path := "/operations?limit=2&kind=failover&state=succeeded"
	for path != "" {
		_, body := b.do(call{method: "GET", path: path, token: viewerToken})
		var page gen.OperationList
		if err := json.Unmarshal(body, &page); err != nil {
			t.Fatal(err)
		}
		for _, op := range page.Operations {
			ids = append(ids, op.ID)
		}
		path = ""
		if page.Next != nil {
			path = "/operations?limit=2&kind=failover&state=succeeded&after=" + *page.Next
		}
	}
	if len(ids) != 3 || !slices.IsSortedFunc(ids, func(a, b string) int { return strings.Compare(b, a) }) {
		t.Errorf("pages gave %v", ids)
	}
}

func TestCancel(t *testing.T) {
	b := start(t)
	b.fake.Gate = make(chan struct{})
	defer close(b.fake.Gate)
	resp, _ := b.do(call{method: "POST", path: "/failover", token: operatorToken, header: http.Header{"Prefer": {"respond-async"}}})
	path := resp.Header.Get("Location") + "/cancel"
	resp, body := b.do(call{method: "POST", path: path, token: operatorToken})
	if resp.StatusCode != 200 || !bytes.Contains(body, []byte("cancelled")) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	resp, body = b.do(call{method: "POST", path: path, token: operatorToken})
	if p := b.problem(resp, body); resp.StatusCode != 409 || p.Type != "/problems/operation-ended" {
		t.Errorf("%s", body)
	}
}

func TestEvents(t *testing.T) {
	b := start(t, func(o *Options) { o.Heartbeat = 20 * time.Millisecond })
	b.fake.Gate = make(chan struct{})
	resp, _ := b.do(call{method: "POST", path: "/failover", token: operatorToken, header: http.Header{"Prefer": {"respond-async"}}})
	path := resp.Header.Get("Location") + "/events"
	read := make(chan string, 1)
	go func() {
		resp, body := b.do(call{method: "GET", path: path, token: viewerToken, header: http.Header{"Last-Event-ID": {"7"}}})
		if resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Errorf("content type %q", resp.Header.Get("Content-Type"))
		}
		read <- string(body)
	}()
	for b.fake.Subscribers() == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	close(b.fake.Gate)
	var text string
	select {
	case text = <-read: // the stream ends with the operation
	case <-time.After(5 * time.Second):
		t.Fatal("the stream did not end")
	}
	if !strings.Contains(text, ": still here") {
		t.Error("no heartbeat")
	}
	var events []gen.OperationEvent
	for block := range strings.SplitSeq(text, "\n\n") {
		_, data, ok := strings.Cut(block, "\ndata: ")
		if !ok {
			continue
		}
		var ev gen.OperationEvent
		if err := json.Unmarshal([]byte(data), &ev); err != nil {
			t.Fatalf("%v in %q", err, block)
		}
		if !strings.HasPrefix(block, fmt.Sprintf("id: %d\nevent: %s\n", ev.Seq, ev.Type)) {
			t.Errorf("block %q", block)
		}
		events = append(events, ev)
	}
	last := len(events) - 1
	if last != 1+len(apitest.Steps) || events[0].Operation.State != "running" ||
		events[last].Operation.State != "succeeded" || gen.Value(events[1].Step) != apitest.Steps[0] {
		t.Errorf("%d events:\n%s", len(events), text)
	}
	// Who comes late gets the end.
	_, body := b.do(call{method: "GET", path: path, token: viewerToken})
	if strings.Count(string(body), "data: ") != 1 || !strings.Contains(string(body), "succeeded") {
		t.Errorf("late: %s", body)
	}
	for b.fake.Subscribers() != 0 {
		time.Sleep(time.Millisecond)
	}
}

func TestStopEndsStreamsAndWaitsForRequests(t *testing.T) {
	tokens, err := NewTokens(map[Role]string{Admin: adminToken})
	if err != nil {
		t.Fatal(err)
	}
	fake := apitest.New()
	fake.Gate = make(chan struct{})
	s, err := New(Options{
		Cluster: fake, Operations: fake, Tokens: tokens, Nodes: fake.Nodes(), Interval: apitest.Interval, Capabilities: served(fake),
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln, 10*time.Second) }()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	ask := func(method, path string) <-chan int {
		status := make(chan int, 1)
		go func() {
			req, _ := http.NewRequestWithContext(t.Context(), method, "http://"+ln.Addr().String()+path, nil)
			req.Header.Set("Authorization", "Bearer "+adminToken)
			resp, err := client.Do(req)
			if err != nil {
				status <- 0
				return
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			status <- resp.StatusCode
		}()
		return status
	}
	failover := ask("POST", "/failover")
	for len(fake.Calls()) == 0 {
		time.Sleep(time.Millisecond)
	}
	recs, _, _ := fake.List(operation.Filter{})
	stream := ask("GET", "/operations/"+recs[0].ID+"/events")
	for fake.Subscribers() == 0 {
		time.Sleep(time.Millisecond)
	}
	stop()
	if got := <-stream; got != 200 {
		t.Errorf("the stream ended with %d", got)
	}
	close(fake.Gate)
	if got := <-failover; got != 200 {
		t.Errorf("the waiting request got %d", got)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestPages(t *testing.T) {
	b := start(t)
	resp, body := b.do(call{method: "GET", path: "/"})
	var index gen.Index
	if err := json.Unmarshal(body, &index); err != nil || resp.StatusCode != 200 || len(index.Commands) < 15 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	resp, body = b.do(call{method: "GET", path: "/", header: http.Header{"Accept": {"text/html,application/xhtml+xml,*/*;q=0.8"}}})
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") || !bytes.Contains(body, []byte("/failover")) {
		t.Errorf("%v %s", resp.Header, body)
	}
	resp, body = b.do(call{method: "GET", path: "/docs"})
	if resp.StatusCode != 200 || !bytes.Contains(body, []byte("/openapi.yaml")) || bytes.Contains(body, []byte(`src="http`)) {
		t.Errorf("docs: %d %s", resp.StatusCode, body)
	}
	for _, asset := range []string{"/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"} {
		if resp, _ := b.do(call{method: "GET", path: asset}); resp.StatusCode != 200 {
			t.Errorf("%s: %d", asset, resp.StatusCode)
		}
	}
	if resp, body = b.do(call{method: "GET", path: "/metrics", token: viewerToken}); resp.StatusCode != 200 || string(body) != "pg_up 1\n" {
		t.Errorf("metrics: %d %s", resp.StatusCode, body)
	}
	resp, body = b.do(call{method: "HEAD", path: "/openapi.yaml"})
	if resp.StatusCode != 200 || len(body) != 0 || resp.Header.Get("Content-Type") != "application/yaml" {
		t.Errorf("HEAD: %d %v", resp.StatusCode, resp.Header)
	}
}

func TestLogTellsNoSecrets(t *testing.T) {
	b := start(t)
	named := http.Header{"X-Request-Id": {"abc-1"}}
	b.do(call{method: "POST", path: "/failover", token: operatorToken, body: `{"reason":"private"}`, header: named})
	b.do(call{method: "GET", path: "/cluster?token=" + adminToken})
	b.http.Close() // its handlers have ended, also in what they log
	log := b.log.String()
	for _, secret := range []string{operatorToken, adminToken, "private"} {
		if strings.Contains(log, secret) {
			t.Errorf("%s is in the log:\n%s", secret, log)
		}
	}
	for _, want := range []string{"request=abc-1", "method=POST", "path=/failover", "status=200", "caller=operator"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %s in the log:\n%s", want, log)
		}
	}
}

// What is served is described and the other way round: New refuses otherwise.
func TestContractAndRoutesAgree(t *testing.T) {
	b := start(t)
	spec, err := loadSpec(controld.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	routes := append(b.server.routes(http.NotFoundHandler()), b.server.capabilityRoutes(spec, served(b.fake))...)
	if err := agree(spec, routes); err != nil {
		t.Error(err)
	}
	if err := agree(spec, routes[1:]); err == nil {
		t.Error("a described command that nothing serves was accepted")
	}
	if err := agree(spec, append(slices.Clone(routes), route{"POST", "/backups", Admin, nil})); err == nil {
		t.Error("a served command that is not described was accepted")
	}
	routes[4].role = open
	if err := agree(spec, routes); err == nil {
		t.Error("a command that is open here and not there was accepted")
	}
}

func TestEveryProblemTypeIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range problemTypes() {
		if !bytes.Contains(doc, []byte("`"+typ+"`")) {
			t.Errorf("docs/api.md does not explain %s", typ)
		}
	}
}

// What the checks refuse with is explained too. The types are read off the
// source, so that a new one cannot be forgotten.
func TestEveryRefusalIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if kind, ok := refusalOf(n); ok {
				found++
				if !bytes.Contains(doc, []byte("`/problems/"+kind+"`")) {
					t.Errorf("docs/api.md does not explain /problems/%s, with which %s refuses", kind, name)
				}
			}
			return true
		})
	}
	if found == 0 {
		t.Error("found no refusal: the test looks for the wrong calls")
	}
}

// refusalOf finds the type in operation.Refuse("type", ...) and
// check(name, ok, "type", ...).
func refusalOf(n ast.Node) (string, bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return "", false
	}
	at, name := -1, ""
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		name = f.Sel.Name
	case *ast.Ident:
		name = f.Name
	}
	switch name {
	case "Refuse":
		at = 0
	case "check":
		at = 2
	}
	if at < 0 || len(call.Args) <= at {
		return "", false
	}
	if always, ok := call.Args[max(at-1, 0)].(*ast.Ident); ok && always.Name == "true" {
		return "", false // a check that never refuses
	}
	literal, ok := call.Args[at].(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return "", false
	}
	return strings.Trim(literal.Value, `"`), true
}

func TestTokens(t *testing.T) {
	for name, secrets := range map[string]map[Role]string{
		"none": {}, "empty": {Viewer: ""}, "unknown role": {"root": "x"}, "the same twice": {Viewer: "x", Admin: "x"},
	} {
		if _, err := NewTokens(secrets); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, role := range []Role{Viewer, Operator, Admin} {
		if !role.May(Viewer) || !Admin.May(role) {
			t.Errorf("%s", role)
		}
	}
	if Viewer.May(Operator) || Operator.May(Admin) || Role("").May(Viewer) {
		t.Error("a role may too much")
	}
}

// served are the commands of capabilities, made believe: the contract lists them, and
// somebody must serve what it lists.
func served(f *apitest.Fake) []command.Set { return []command.Set{f.Backups} }
