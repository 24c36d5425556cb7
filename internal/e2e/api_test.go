package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"controld/internal/testcluster"
)

// TestAPI is the API and the commands as their users have them, on the real
// server. One cluster serves all.
func TestAPI(t *testing.T) {
	t.Parallel()
	c := upAlone(t)
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"bad input gets a problem to act on and changes nothing", badInput},
		{"health answers from the last observation", healthIsQuick},
		{"pages and checks", pages},
		{"the README's examples work as written", readmeExamples},
		{"metrics tell what happened", metricsTell},
		{"commands", commands},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, &cluster{c.Cluster, t}) })
	}
}

const anyID = "01954d0e-7b1a-7c3e-9f00-0a1b2c3d4e5f"

func badInput(t *testing.T, c *cluster) {
	for i := range 2 { // something to be changed
		c.run([]string{"/failover", "/failback"}[i], nil)
		c.waitOK(time.Minute)
	}
	before := c.whatMustNotChange()
	for _, tt := range []struct {
		name, role, method, path string
		body                     any
		header                   []string
		status                   int
		kind                     string
		detail                   []string // what its reader needs to act
	}{
		{"no token", "", "POST", "/failover", nil, nil,
			401, "unauthorized", []string{"make env", "Authorization: Bearer", "CONTROLD_API_ANONYMOUS=operator"}},
		{"no token to read", "", "GET", "/cluster", nil, nil, 401, "unauthorized", []string{"make env"}},
		{"wrong token", "", "POST", "/failover", nil, []string{"Authorization", "Bearer nonsense"},
			401, "unauthorized", []string{"not known", "make env"}},
		{"wrong scheme", "", "POST", "/failover", nil, []string{"Authorization", "Basic " + c.Token["admin"]},
			401, "unauthorized", []string{"Bearer"}},
		{"wrong role", "viewer", "POST", "/failover", nil, nil, 403, "forbidden", []string{"operator", "viewer"}},
		{"wrong role to fail back", "viewer", "POST", "/failback", nil, nil, 403, "forbidden", []string{"operator"}},
		{"wrong role to start", "viewer", "POST", "/nodes/postgres_slave/start", nil, nil, 403, "forbidden", []string{"operator"}},
		{"wrong role to rejoin", "viewer", "POST", "/nodes/postgres_slave/rejoin", nil, nil, 403, "forbidden", []string{"operator"}},
		{"wrong role to cancel", "viewer", "POST", "/operations/" + anyID + "/cancel", nil, nil, 403, "forbidden", []string{"operator"}},
		{"unknown target", "operator", "POST", "/failover", `{"target": "nosuch"}`, nil,
			404, "unknown-node", []string{"nosuch", "postgres_master", "postgres_slave"}},
		{"unknown node", "operator", "POST", "/nodes/nosuch/start", nil, nil, 404, "unknown-node", []string{"nosuch", "postgres_slave"}},
		{"unknown node to rejoin", "operator", "POST", "/nodes/nosuch/rejoin", nil, nil,
			404, "unknown-node", []string{"nosuch", "postgres_slave"}},
		{"unknown node to check", "", "GET", "/nodes/nosuch/primary", nil, nil, 404, "unknown-node", []string{"nosuch", "postgres_slave"}},
		{"unknown operation", "viewer", "GET", "/operations/" + anyID, nil, nil, 404, "unknown-operation", []string{anyID}},
		{"unknown operation to cancel", "operator", "POST", "/operations/" + anyID + "/cancel", nil, nil,
			404, "unknown-operation", []string{anyID}},
		{"unknown path", "admin", "POST", "/fallover", nil, nil, 404, "no-such-path", []string{"/fallover", "GET /"}},
		{"wrong method", "admin", "DELETE", "/failover", nil, nil, 405, "method-not-allowed", []string{"DELETE", "POST"}},
		{"wrong method to read", "admin", "POST", "/cluster", nil, nil, 405, "method-not-allowed", []string{"GET"}},
		{"wrong type", "admin", "POST", "/failover", `{"dry_run": "yes"}`, nil, 400, "bad-request", []string{"dry_run", "boolean"}},
		{"wrong type of a number", "admin", "POST", "/failover", `{"max_loss_bytes": "1MB"}`, nil,
			400, "bad-request", []string{"max_loss_bytes", "integer"}},
		{"broken number", "admin", "POST", "/failover", `{"max_loss_bytes": 1.5}`, nil,
			400, "bad-request", []string{"max_loss_bytes", "integer"}},
		{"number out of range", "admin", "POST", "/failover", `{"max_loss_bytes": -2}`, nil,
			400, "bad-request", []string{"max_loss_bytes", "-1"}},
		{"unknown mode", "admin", "POST", "/failover", `{"mode": "fast"}`, nil,
			400, "bad-request", []string{"mode", "auto", "planned", "emergency"}},
		{"unknown method of rejoin", "admin", "POST", "/nodes/postgres_slave/rejoin", `{"method": "copy"}`, nil,
			400, "bad-request", []string{"method", "basebackup"}},
		{"unknown field", "admin", "POST", "/failover", `{"dryrun": true}`, nil, 400, "bad-request", []string{"dryrun", "dry_run"}},
		{"unknown field of failback", "admin", "POST", "/failback", `{"target": "postgres_slave"}`, nil,
			400, "bad-request", []string{"target", "dry_run"}},
		{"broken JSON", "admin", "POST", "/failover", `{"mode":`, nil, 400, "bad-request", []string{"no JSON", "byte"}},
		{"two values", "admin", "POST", "/failover", `{} {}`, nil, 400, "bad-request", []string{"no JSON"}},
		{"a list", "admin", "POST", "/failover", `[]`, nil, 400, "bad-request", []string{"object"}},
		{"null", "admin", "POST", "/failover", `null`, nil, 400, "bad-request", []string{"body"}},
		{"a long reason", "admin", "POST", "/failover", map[string]any{"reason": strings.Repeat("x", 10000)}, nil,
			400, "bad-request", []string{"reason", "characters"}},
		{"wrong content type", "admin", "POST", "/failover", `{"dry_run": true}`,
			[]string{"Content-Type", "text/plain"},
			415, "content-type", []string{"application/json"}},
		{"curl's content type", "admin", "POST", "/failover", `{"dry_run": true}`,
			[]string{"Content-Type", "application/x-www-form-urlencoded"},
			415, "content-type", []string{"application/json"}},
		{"unknown query parameter", "admin", "POST", "/failover?dry_run=true", nil, nil, 400, "bad-request", []string{"dry_run"}},
		{"unknown query parameter to read", "viewer", "GET", "/operations?stat=undone", nil, nil, 400, "bad-request", []string{"stat"}},
		{"wrong query parameter", "viewer", "GET", "/operations?limit=many", nil, nil, 400, "bad-request", []string{"limit"}},
		{"wrong size", "", "GET", "/nodes/postgres_slave/replica?lag=much", nil, nil, 400, "bad-request", []string{"lag"}},
		{"bad idempotency key", "admin", "POST", "/failover", nil, []string{"Idempotency-Key", "two words"},
			400, "bad-request", []string{"Idempotency-Key"}},
		{"long idempotency key", "admin", "POST", "/failover", nil, []string{"Idempotency-Key", strings.Repeat("k", 300)},
			400, "bad-request", []string{"Idempotency-Key", "200"}},
	} {
		a := c.call(tt.role, tt.method, tt.path, tt.body, tt.header...)
		checkProblem(t, tt.name, a.Status, a.Header, a.Body, tt.status, tt.kind, tt.detail...)
		if tt.status == 405 && a.Header.Get("Allow") == "" {
			t.Errorf("%s: no header Allow", tt.name)
		}
		if tt.status == 401 && a.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: no header WWW-Authenticate", tt.name)
		}
	}
	hugeBodies(t, c)
	if after := c.whatMustNotChange(); after != before {
		t.Errorf("the bad requests changed something:\n%s\nwas:\n%s", after, before)
	}
}

func checkProblem(t *testing.T, name string, status int, header http.Header, body []byte, wantStatus int, kind string, detail ...string) {
	t.Helper()
	var p problem
	err := json.Unmarshal(body, &p)
	if err != nil || status != wantStatus || p.Status != status || p.Type != "/problems/"+kind || p.Title == "" {
		t.Errorf("%s: %d %s; want %d /problems/%s", name, status, body, wantStatus, kind)
		return
	}
	if got := header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("%s: Content-Type %q", name, got)
	}
	for _, word := range detail {
		if !strings.Contains(p.Detail, word) && !strings.Contains(string(body), word) {
			t.Errorf("%s: the answer does not name %q: %s", name, word, body)
		}
	}
}

// hugeBodies sends bodies over a bare connection, as clients do that do not listen while they
// send.
func hugeBodies(t *testing.T, c *cluster) {
	const size = 10 << 20
	head := "POST /failover HTTP/1.1\r\nHost: controld\r\nContent-Type: application/json\r\n" +
		"Authorization: Bearer " + c.Token["admin"] + "\r\n"
	for _, tt := range []struct {
		name string
		send func(io.Writer)
	}{
		// Nothing of this one is sent but its length.
		{"by its length", func(w io.Writer) { fmt.Fprintf(w, "%sContent-Length: %d\r\n\r\n", head, size) }},
		{"in chunks", func(w io.Writer) {
			fmt.Fprintf(w, "%sTransfer-Encoding: chunked\r\n\r\n", head)
			chunk := fmt.Sprintf("%x\r\n%s\r\n", 1<<16, strings.Repeat(" ", 1<<16))
			for range size >> 16 {
				if _, err := io.WriteString(w, chunk); err != nil {
					return // cut off, which is what shall happen
				}
			}
			_, _ = io.WriteString(w, "0\r\n\r\n")
		}},
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		go tt.send(conn)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("10 MB %s: %v", tt.name, err)
		} else {
			body, _ := io.ReadAll(resp.Body)
			checkProblem(t, "10 MB "+tt.name, resp.StatusCode, resp.Header, body, 413, "body-too-large", "1 MiB")
			resp.Body.Close()
		}
		conn.Close()
	}
}

// whatMustNotChange is the audit and the nodes' orders.
func (c *cluster) whatMustNotChange() string {
	c.t.Helper()
	var out strings.Builder
	out.Write(c.call("viewer", "GET", "/operations", nil).Body)
	for _, node := range testcluster.Nodes {
		out.WriteString(c.docker("exec", c.Container(node), "cat", "/order/order.json"))
	}
	return out.String()
}

func healthIsQuick(t *testing.T, c *cluster) {
	var took []time.Duration
	for range 101 {
		began := time.Now()
		c.call("", "GET", "/health", nil)
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	if median := took[len(took)/2]; median > 50*time.Millisecond {
		t.Errorf("GET /health takes %s in the median", median)
	}
	_, body := c.health()
	at, err := time.Parse(time.RFC3339, fmt.Sprint(body["observed_at"]))
	if age := time.Since(at); err != nil || age > 10*time.Second || age < -time.Second {
		t.Errorf("observed_at %v is %s old: %v", body["observed_at"], age, err)
	}
}

func pages(t *testing.T, c *cluster) {
	primary, standby := c.roles()
	for _, tt := range []struct {
		role, method, path, accept string
		status                     int
		content, has               string
	}{
		{"", "GET", "/", "", 200, "application/json", `"/failover"`},
		{"", "GET", "/", "text/html,application/xhtml+xml,*/*;q=0.8", 200, "text/html", "/failover"},
		{"", "GET", "/docs", "", 200, "text/html", "openapi.yaml"},
		{"", "GET", "/openapi.yaml", "", 200, "application/yaml", "openapi: 3."},
		{"", "GET", "/health/live", "", 200, "application/json", `"ok"`},
		{"", "GET", "/health/ready", "", 200, "application/json", `"ok"`},
		{"viewer", "GET", "/metrics", "", 200, "text/plain", "controld_build_info"},
		{"", "GET", "/nodes/" + primary + "/primary", "", 200, "application/json", `true`},
		{"", "HEAD", "/nodes/" + primary + "/primary", "", 200, "application/json", ""},
		{"", "HEAD", "/nodes/" + standby + "/primary", "", 503, "application/json", ""},
		{"", "HEAD", "/nodes/" + standby + "/replica", "", 200, "application/json", ""},
		{"", "HEAD", "/nodes/" + standby + "/replica?lag=100MB", "", 200, "application/json", ""},
		{"", "HEAD", "/nodes/" + primary + "/replica", "", 503, "application/json", ""},
		{"", "HEAD", "/nodes/nosuch/primary", "", 404, "application/problem+json", ""},
		{"", "GET", "/nodes/" + standby + "/primary", "", 503, "application/json", "standby"},
	} {
		var header []string
		if tt.accept != "" {
			header = []string{"Accept", tt.accept}
		}
		a := c.call(tt.role, tt.method, tt.path, nil, header...)
		name := tt.method + " " + tt.path
		content := a.Header.Get("Content-Type")
		if a.Status != tt.status || !strings.HasPrefix(content, tt.content) || !bytes.Contains(a.Body, []byte(tt.has)) {
			t.Errorf("%s: %d %s, want %d %s with %q: %.300s", name, a.Status, content, tt.status, tt.content, tt.has, a.Body)
		}
		if tt.method == "HEAD" && len(a.Body) > 0 {
			t.Errorf("%s has a body", name)
		}
	}
}

// readmeExamples runs each line of the README's section on the API, in order,
// in a shell that was set up by make env.
func readmeExamples(t *testing.T, c *cluster) {
	readme, err := os.ReadFile(filepath.Join(c.Root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(readme), "## The API by example")
	_, section, hasCode := strings.Cut(section, "```sh\n")
	code, _, closed := strings.Cut(section, "```")
	if !found || !hasCode || !closed {
		t.Fatal("README.md has no section with the API's examples")
	}
	env, err := c.command(t.Context(), filepath.Join(c.Root, "deploy/compose/env.sh")).Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(code, "\\\n", " ")), "\n")
	setUp, ran := string(env), 0
	for _, line := range lines {
		if strings.HasPrefix(line, "api()") {
			setUp += line + "\n"
			continue
		}
		if strings.TrimSpace(line) == "" {
			continue
		}
		ran++
		line = strings.ReplaceAll(line, "/operations/ID", "/operations/"+c.lastOperation())
		out, err := c.command(t.Context(), "bash", "-c", setUp+line).CombinedOutput()
		text := string(out)
		if err != nil || text == "" || strings.Contains(text, "/problems/") || strings.Contains(text, "curl:") {
			t.Errorf("%s\n%v: %.600s", line, err, text)
		}
		c.waitOK(time.Minute)
	}
	if ran < 10 {
		t.Errorf("only %d examples found", ran)
	}
}

func (c *cluster) lastOperation() string {
	c.t.Helper()
	var list struct {
		Operations []operation `json:"operations"`
	}
	a := c.call("viewer", "GET", "/operations?limit=1", nil)
	if err := json.Unmarshal(a.Body, &list); err != nil || len(list.Operations) != 1 {
		c.t.Fatalf("GET /operations: %s", a.Body)
	}
	return list.Operations[0].ID
}

func metricsTell(t *testing.T, c *cluster) {
	op := c.run("/failover", nil)
	c.waitOK(time.Minute)
	top := c.topology()
	text := c.call("viewer", "GET", "/metrics", nil).Body
	for _, want := range []string{
		fmt.Sprintf(`controld_node_role{node=%q,role="primary"} 1`, op.Result.To),
		fmt.Sprintf(`controld_node_role{node=%q,role="primary"} 0`, op.Result.From),
		fmt.Sprintf(`controld_node_role{node=%q,role="standby"} 1`, op.Result.From),
		fmt.Sprintf(`pg_timeline{node=%q} %d`, op.Result.To, top.Nodes[0].Timeline),
		fmt.Sprintf(`pg_timeline{node=%q} %d`, op.Result.From, top.Nodes[0].Timeline),
		fmt.Sprintf(`pg_replication_lag_bytes{node=%q} `, op.Result.From),
		fmt.Sprintf(`pg_replication_is_replica{node=%q} 1`, op.Result.From),
		`controld_cluster_writable 1`, `controld_pooler_up 1`, `controld_redis_up 1`,
	} {
		if !bytes.Contains(text, []byte("\n"+want)) {
			t.Errorf("GET /metrics has no %s", want)
		}
	}
	for _, name := range []string{
		`controld_failover_pause_seconds_count{kind="failover",mode="planned"}`,
		`controld_failover_pause_seconds_sum{kind="failover",mode="planned"}`,
		`controld_operations_total{kind="failover",mode="planned",state="succeeded"}`,
		`controld_operation_duration_seconds_count{kind="failover",mode="planned",state="succeeded"}`,
	} {
		m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(text)
		if m == nil || string(m[1]) == "0" {
			t.Errorf("GET /metrics: %s is %s", name, m)
		}
	}
}

// A result is what a command wrote, and its exit code.
type result struct {
	out, err string
	code     int
}

// controld runs the command line with nothing in its environment but what make
// env gives, and more.
func (c *cluster) controld(env []string, args ...string) result {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), filepath.Join(c.Root, "build/controld"), args...)
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + c.t.TempDir(),
		"CONTROLD_URL=" + c.URL,
		"CONTROLD_TOKEN=" + c.Token["admin"],
	}, env...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatalf("build/controld (make build makes it): %v", err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func commands(t *testing.T, c *cluster) {
	c.run("/failback", nil)
	c.waitOK(time.Minute)
	viewer, wrong, nowhere := "CONTROLD_TOKEN="+c.Token["viewer"], "CONTROLD_TOKEN=nonsense", "CONTROLD_URL=http://127.0.0.1:9"
	for _, tt := range []struct {
		args string
		env  string
		code int
		out  []string
		err  []string
	}{
		{"status", "", 0, []string{"postgres_master", "primary", "postgres_slave", "standby", "ok"}, nil},
		{"check", "", 0, []string{"settings", "API", "token", "health"}, nil},
		{"failover --dry-run", "", 0, []string{"postgres_master -> postgres_slave", "promote", "It would run"}, nil},
		{"failover --reason why", "", 0,
			[]string{"succeeded", "postgres_master -> postgres_slave", "held for"},
			[]string{"pause pooler", "promote", "resume pooler"}},
		{"failover --target postgres_slave", "", 3, nil, []string{"postgres_slave leads already"}},
		{"failover --target postgres_slave --dry-run", "", 3, []string{"would be refused", "postgres_slave leads already"}, nil},
		{"failover --expected-primary postgres_master", "", 3, nil, []string{"postgres_slave leads"}},
		{"failback", "", 0, []string{"postgres_slave -> postgres_master"}, []string{"promote"}},
		{"failback", "", 0, []string{"leads already"}, nil},
		{"rejoin postgres_slave", "", 0, []string{"streams from postgres_master already"}, nil},
		{"start postgres_master", "", 0, []string{"leads already"}, nil},
		{"operations", "", 0, []string{"failback", "failover", "succeeded", "refused"}, nil},
		{"failover", viewer, 7, nil, []string{"operator"}},
		{"failover", wrong, 7, nil, []string{"make env"}},
		{"status", "CONTROLD_TOKEN=", 7, nil, []string{"make env"}},
		{"status", nowhere, 6, nil, []string{"127.0.0.1:9"}},
		{"failover", nowhere, 6, nil, []string{"127.0.0.1:9"}},
		{"failover --target nosuch", "", 2, nil, []string{"nosuch", "postgres_slave"}},
		{"failover --mode fast", "", 2, nil, []string{"mode", "planned"}},
		{"failover --fast", "", 2, nil, []string{"--fast"}},
		{"nosuch", "", 2, nil, []string{"nosuch"}},
	} {
		// Nothing of the command before is still on its way.
		c.waitOK(time.Minute)
		got := c.controld([]string{tt.env}, strings.Fields(tt.args)...)
		if got.code != tt.code {
			t.Errorf("controld %s (%.14s): exit code %d, want %d\n%s%s", tt.args, tt.env, got.code, tt.code, got.out, got.err)
			continue
		}
		for _, has := range tt.out {
			if !strings.Contains(got.out, has) {
				t.Errorf("controld %s does not write %q:\n%s", tt.args, has, got.out)
			}
		}
		for _, has := range tt.err {
			if !strings.Contains(got.err, has) {
				t.Errorf("controld %s does not say %q:\n%s", tt.args, has, got.err)
			}
		}
	}
	for _, tt := range []struct{ args, has string }{
		{"status -o json", "cluster"},
		{"failover --dry-run -o json", "would_run"},
		{"failover --mode planned -o json", "steps"},
		{"failback -o json", "result"},
		{"operations -o json", "operations"},
		{"operations show " + c.lastOperation() + " -o json", "id"},
	} {
		c.waitOK(time.Minute)
		got := c.controld(nil, strings.Fields(tt.args)...)
		var v map[string]any
		if err := json.Unmarshal([]byte(got.out), &v); err != nil || got.code != 0 || v[tt.has] == nil {
			t.Errorf("controld %s: exit code %d, %v, want JSON with %s:\n%s%s", tt.args, got.code, err, tt.has, got.out, got.err)
		}
	}
}
