package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestAnonymous is the API for callers without a token, with a curl on this
// machine and from where others are. One cluster is given each setting in turn.
func TestAnonymous(t *testing.T) {
	t.Parallel()
	c := up(t, "CONTROLD_API_ANONYMOUS=operator")
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"what the reference's users have in their scripts works as it stands", scriptsWork},
		{"the commands need no token", commandsWithoutToken},
		{"pages of others are refused", pagesOfOthers},
		{"other containers are refused", containersNextDoor},
		{"a viewer may read and not run", anonymousViewer},
		{"a value that is none is named and changes nothing", anonymousNonsense},
		{"published to others, nobody has the role", publishedToOthers},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, &cluster{c.Cluster, t}) })
	}
}

// curl runs it as users do, and returns the body and the status.
func (c *cluster) curl(args ...string) (body, status string) {
	c.t.Helper()
	out, err := c.command(c.t.Context(), "curl", append([]string{"-sS", "-m", "60", "-w", "\n%{http_code}"}, args...)...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("curl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	end := strings.LastIndexByte(string(out), '\n')
	return string(out[:end]), string(out[end+1:])
}

func scriptsWork(t *testing.T, c *cluster) {
	for _, args := range []string{
		"-X POST " + c.URL + "/failover",
		"-X POST " + strings.Replace(c.URL, "127.0.0.1", "localhost", 1) + "/failback",
	} {
		c.waitOK(time.Minute)
		body, status := c.curl(strings.Fields(args)...)
		var op operation
		if err := json.Unmarshal([]byte(body), &op); err != nil || status != "200" || op.State != "succeeded" || op.By != "anonymous" {
			t.Errorf("curl %s: %s %s", args, status, body)
		}
	}
	c.waitOK(time.Minute)
	const said = `"msg":"callers without a token are let in from this machine"`
	if log := c.docker("logs", c.Container("controld")); !strings.Contains(log, said) {
		t.Errorf("the log does not say whom it lets in:\n%s", log)
	}
}

func commandsWithoutToken(t *testing.T, c *cluster) {
	for args, has := range map[string]string{"operations": "anonymous", "failover --dry-run": "would", "check": "none is needed"} {
		if got := c.controld([]string{"CONTROLD_TOKEN="}, strings.Fields(args)...); !strings.Contains(got.out, has) {
			t.Errorf("controld %s: exit code %d, want %q\n%s%s", args, got.code, has, got.out, got.err)
		}
	}
	c.docker("exec", c.Container("controld"), "controld", "operations")
	if got := c.controld([]string{"CONTROLD_TOKEN=nonsense"}, "status"); got.code != 7 || !strings.Contains(got.err, "not known") {
		t.Errorf("a wrong token: exit code %d: %s", got.code, got.err)
	}
}

// askedFor are the operations that somebody has asked for: on a busy machine
// controld may begin some of its own meanwhile.
func (c *cluster) askedFor() string {
	c.t.Helper()
	var list struct {
		Operations []operation `json:"operations"`
	}
	a := c.call("viewer", "GET", "/operations?limit=500", nil)
	if err := json.Unmarshal(a.Body, &list); err != nil {
		c.t.Fatalf("GET /operations: %s", a.Body)
	}
	var asked []string
	for _, op := range list.Operations {
		if op.By != "controld" {
			asked = append(asked, op.ID+" by "+op.By)
		}
	}
	return strings.Join(asked, ", ")
}

// ownAddress is that of controld's container on the cluster's network.
func (c *cluster) ownAddress() string {
	c.t.Helper()
	return c.docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", c.Container("controld"))
}

func pagesOfOthers(t *testing.T, c *cluster) {
	before := c.askedFor()
	post := []string{"-X", "POST", c.URL + "/failover"}
	form := []string{"-H", "Content-Type: text/plain", "-d", "{}"}
	evil := []string{"-H", "Host: evil.example", "-H", "Origin: http://evil.example"}
	viewer := []string{"-H", "Authorization: Bearer " + c.Token["viewer"]}
	inside := "http://" + c.ownAddress() + ":8088"
	for _, tt := range []struct {
		name   string
		args   []string
		status string
		has    string
	}{
		{"a foreign Host", append(post, "-H", "Host: evil.example"), "403", "/problems/foreign-origin"},
		{"a foreign Host with this port", append(post, "-H", "Host: evil.example:8088"), "403", "make env"},
		{"a foreign Origin", append(post, "-H", "Origin: http://evil.example"), "403", "/problems/foreign-origin"},
		{"a foreign Origin to read", []string{c.URL + "/cluster", "-H", "Origin: http://evil.example"}, "403", "evil.example"},
		{"a foreign form", slices.Concat(post, []string{"-H", "Origin: http://evil.example"}, form), "403", "/problems/foreign-origin"},
		{"no Origin to name", append(post, "-H", "Origin: null"), "403", "/problems/foreign-origin"},
		{"another server of this machine", append(post, "-H", "Origin: http://localhost:3000"), "403", "/problems/foreign-origin"},
		{"a browser's foreign page", []string{c.URL + "/cluster", "-H", "Sec-Fetch-Site: cross-site"}, "403", "/problems/foreign-origin"},
		{"HTTP/1.0", append(post, "-0", "-H", "Host:"), "403", "/problems/foreign-origin"},
		{"the container's own address", []string{"-X", "POST", inside + "/failover"}, "403", "127.0.0.1"},
		{"a wrong token", append(post, "-H", "Authorization: Bearer nonsense"), "401", "not known"},
		{"a password", append(post, "-u", "user:password"), "401", "CONTROLD_API_ANONYMOUS"},
		{"a proxy", append(post, "-H", "X-Forwarded-For: 192.0.2.7"), "401", "X-Forwarded-For"},
		{"its own page", []string{c.URL + "/cluster", "-H", "Origin: " + c.URL}, "200", "primary"},
		{"typed into a browser", []string{c.URL + "/cluster", "-H", "Sec-Fetch-Site: none"}, "200", "primary"},
		{"a token, from anywhere", slices.Concat([]string{c.URL + "/cluster"}, evil, viewer), "200", "primary"},
		{"what is open", slices.Concat([]string{c.URL + "/health/live"}, evil), "200", "ok"},
	} {
		if body, status := c.curl(tt.args...); status != tt.status || !strings.Contains(body, tt.has) {
			t.Errorf("%s: %s, want %s with %q: %s", tt.name, status, tt.status, tt.has, body)
		}
	}
	if after := c.askedFor(); after != before {
		t.Errorf("what was refused was admitted: %s, was %s", after, before)
	}
}

// byHand is a request that any container with bash can make.
func byHand(address, port, headers string) string {
	request := `POST /failover HTTP/1.1\r\nHost: 127.0.0.1:8088\r\n` + headers + `Connection: close\r\n\r\n`
	return "exec 3<>/dev/tcp/" + address + "/" + port + " && printf '" + request + "' >&3 && cat <&3"
}

func containersNextDoor(t *testing.T, c *cluster) {
	before := c.askedFor()
	gateway := c.docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", c.Container("controld"))
	inside := c.ownAddress()
	published := c.URL[strings.LastIndexByte(c.URL, ':')+1:]
	forged := []string{
		"",
		`X-Forwarded-For: 127.0.0.1\r\n`,
		`X-Real-IP: ` + gateway + `\r\n`,
		`Forwarded: for=` + gateway + `\r\n`,
	}
	for _, service := range []string{"pgbouncer", "redis", "postgres_master", "postgres_slave"} {
		for _, headers := range forged {
			answer, err := c.Docker(t.Context(), "exec", c.Container(service), "bash", "-c", byHand("controld", "8088", headers))
			if err != nil || !strings.HasPrefix(answer, "HTTP/1.1 401 ") ||
				!strings.Contains(answer, "CONTROLD_API_ANONYMOUS") || !strings.Contains(answer, "make env") {
				t.Errorf("%s with %q: %v: %s", service, headers, err, answer)
			}
		}
		// The published port is this machine's own.
		answer, err := c.Docker(t.Context(), "exec", c.Container(service),
			"timeout", "5", "bash", "-c", byHand(gateway, published, ""))
		if err == nil {
			t.Errorf("%s reaches the published port: %s", service, answer)
		}
	}
	// A container on another bridge does not even get an answer.
	answer, err := c.Docker(t.Context(), "run", "--rm", "--entrypoint", "timeout", "controld/redis:"+tag(),
		"5", "bash", "-c", byHand(inside, "8088", ""))
	if err == nil && !strings.HasPrefix(answer, "HTTP/1.1 401 ") {
		t.Errorf("a container on another bridge: %s", answer)
	}
	if after := c.askedFor(); after != before {
		t.Errorf("what was refused was admitted: %s, was %s", after, before)
	}
}

func anonymousViewer(t *testing.T, c *cluster) {
	c.Env = append(c.Env, "CONTROLD_API_ANONYMOUS=viewer")
	if err := c.Script(t.Context(), "up.sh"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/cluster", "/operations", "/metrics"} {
		if body, status := c.curl(c.URL + path); status != "200" {
			t.Errorf("GET %s: %s %s", path, status, body)
		}
	}
	for _, path := range []string{
		"/failover", "/failback",
		"/nodes/postgres_slave/start", "/nodes/postgres_slave/rejoin",
		"/operations/" + anyID + "/cancel",
	} {
		body, status := c.curl("-X", "POST", c.URL+path)
		if status != "403" || !strings.Contains(body, "/problems/forbidden") || !strings.Contains(body, "role operator") {
			t.Errorf("POST %s: %s %s", path, status, body)
		}
	}
	if got := c.controld([]string{"CONTROLD_TOKEN="}, "failover"); got.code != 7 || !strings.Contains(got.err, "role operator") {
		t.Errorf("controld failover: exit code %d: %s", got.code, got.err)
	}
}

func anonymousNonsense(t *testing.T, c *cluster) {
	bad := *c.Cluster
	bad.Env = append(bad.Env[:len(bad.Env):len(bad.Env)], "CONTROLD_API_ANONYMOUS=root")
	err := bad.Script(t.Context(), "up.sh")
	if err == nil || !strings.Contains(err.Error(), "api.anonymous") || !strings.Contains(err.Error(), "none, viewer, operator") {
		t.Errorf("make up: %v", err)
	}
	if body, status := c.curl(c.URL + "/cluster"); status != "200" {
		t.Errorf("GET /cluster: %s %s", status, body)
	}
}

// publishedToOthers makes controld's container as somebody does who publishes
// it on every address.
func publishedToOthers(t *testing.T, c *cluster) {
	c.docker("stop", c.Container("controld"))
	published := c.URL[strings.LastIndexByte(c.URL, ':')+1:]
	wide := c.Container("wide")
	c.docker("run", "-d", "--name", wide, "--label", "controld.cluster="+c.Prefix, "--network", c.Prefix+"controld",
		"--volumes-from", c.Container("controld"), "--pid", "host",
		"--cap-drop", "ALL", "--cap-add", "KILL", "--cap-add", "DAC_READ_SEARCH",
		"-e", "CONTROLD_PREFIX="+c.Prefix, "-e", "CONTROLD_API_ANONYMOUS=operator", "-p", published+":8088", "controld/controld:"+tag())
	c.waitOK(time.Minute)
	before := c.askedFor()
	body, status := c.curl("-X", "POST", c.URL+"/failover")
	if status != "401" || !strings.Contains(body, "0.0.0.0") || !strings.Contains(body, "not on 127.0.0.1 alone") {
		t.Errorf("POST /failover: %s %s", status, body)
	}
	if got := c.controld([]string{"CONTROLD_TOKEN="}, "check"); got.code != 1 || !strings.Contains(got.out, "not on 127.0.0.1 alone") {
		t.Errorf("controld check: exit code %d: %s%s", got.code, got.out, got.err)
	}
	if log := c.docker("logs", wide); !strings.Contains(log, "not on 127.0.0.1 alone") {
		t.Errorf("the log does not say why nobody has the role:\n%s", log)
	}
	c.docker("exec", wide, "controld", "operations") // who is in the container has the role
	if after := c.askedFor(); after != before {
		t.Errorf("what was refused was admitted: %s, was %s", after, before)
	}
}
