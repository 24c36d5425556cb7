// Package e2e holds the tests against real containers: PostgreSQL, PgBouncer,
// Redis and controld, brought up by the scripts that users run. Each test has a
// cluster of its own, which it may break as it likes.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"controld/internal/probe"
	"controld/internal/testcluster"
)

// tag names the images under test; make test builds them. The failpoint images
// hold the same code with package failpoint around what leaves the process.
func tag() string {
	if t := os.Getenv("CONTROLD_TAG"); t != "" {
		return t
	}
	return "test"
}

// A cluster is a test's own cluster.
type cluster struct {
	*testcluster.Cluster
	t *testing.T
}

// up gives the test a cluster: one that another test has left as good as new, or else
// its own. Where the test leaves it so, the next one gets it: see shared_test.go. One
// with settings (CONTROLD_NAME=value) is the test's own.
func up(t *testing.T, settings ...string) *cluster {
	t.Helper()
	return upWith(t, tag(), len(settings) == 0, settings...)
}

// upFailpoint is up with the images whose controld has failpoints.
func upFailpoint(t *testing.T, settings ...string) *cluster {
	t.Helper()
	return upWith(t, tag()+"-failpoint", slices.Equal(settings, killSettings), settings...)
}

// upAlone is up for a test that looks at all that a cluster has ever done, or breaks
// what nobody mends.
func upAlone(t *testing.T, settings ...string) *cluster {
	t.Helper()
	return upWith(t, tag(), false, settings...)
}

// destroyLimit is how long a cluster may take to be looked over and removed.
const destroyLimit = 3 * time.Minute

func upWith(t *testing.T, tag string, share bool, settings ...string) *cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("needs containers, which -short leaves out")
	}
	if out, err := exec.Command("docker", "image", "inspect", "controld/controld:"+tag).CombinedOutput(); err != nil {
		t.Skipf("the images controld/*:%s are missing (%s); make test builds them", tag, out)
	}
	what := asked(tag, settings)
	var inner *testcluster.Cluster
	if share {
		inner = borrow(what)
	}
	borrowed := inner != nil
	if !borrowed {
		var err error
		if inner, err = testcluster.New(t.Context(), tag, settings...); err != nil {
			t.Fatal(err)
		}
	}
	c := &cluster{inner, t}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), destroyLimit)
		defer cancel()
		if t.Failed() {
			t.Log(c.Logs(ctx))
		} else if share {
			err := tidy(ctx, inner)
			if err == nil {
				giveBack(what, inner)
				return
			}
			t.Log("no other test gets this cluster:", err)
		}
		if err := c.Destroy(ctx); err != nil {
			t.Error(err)
		}
	})
	if !borrowed {
		if err := c.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.waitOK(time.Minute)
	return c
}

// call sends a request as role and fails the test when nothing answers.
func (c *cluster) call(role, method, path string, body any, header ...string) testcluster.Answer {
	c.t.Helper()
	a, err := c.Call(c.t.Context(), role, method, path, body, header...)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

// An operation is what the tests read of an operation's record.
type operation struct {
	ID     string    `json:"id"`
	Kind   string    `json:"kind"`
	Mode   string    `json:"mode"`
	State  string    `json:"state"`
	Reason string    `json:"reason"`
	By     string    `json:"requested_by"`
	Began  time.Time `json:"started_at"`
	Ended  time.Time `json:"ended_at"` // zero: it goes on
	Steps  []struct {
		Name       string  `json:"name"`
		State      string  `json:"state"`
		DurationMS float64 `json:"duration_ms"`
		Error      string  `json:"error"`
	} `json:"steps"`
	Result struct {
		From          string  `json:"from"`
		To            string  `json:"to"`
		Timeline      uint32  `json:"timeline"`
		PauseMS       float64 `json:"pause_ms"`
		LostBytes     int64   `json:"lost_bytes"`
		Estimate      bool    `json:"estimate"`
		Rejoined      bool    `json:"rejoined"`
		RejoinMS      float64 `json:"rejoin_ms"`
		UnprotectedMS float64 `json:"unprotected_ms"`
		Already       string  `json:"already"`
		Method        string  `json:"method"`
		Node          string  `json:"node"`
		SalvagedBytes int64   `json:"salvaged_bytes"`
	} `json:"result"`
}

// A problem is what the tests read of a problem+json answer.
type problem struct {
	Type      string         `json:"type"`
	Title     string         `json:"title"`
	Status    int            `json:"status"`
	Detail    string         `json:"detail"`
	Numbers   map[string]any `json:"numbers"`
	Operation *operation     `json:"operation"`
}

// run asks for an operation and expects it to succeed.
func (c *cluster) run(path string, body any) operation {
	c.t.Helper()
	a := c.call("admin", "POST", path, body)
	var op operation
	if err := json.Unmarshal(a.Body, &op); err != nil || a.Status != 200 || op.State != "succeeded" {
		c.t.Fatalf("POST %s: %d %s", path, a.Status, a.Body)
	}
	return op
}

// refused asks for an operation and expects a problem with this status and type.
func (c *cluster) refused(path string, body any, status int, kind string) problem {
	c.t.Helper()
	a := c.call("admin", "POST", path, body)
	var p problem
	if err := json.Unmarshal(a.Body, &p); err != nil || a.Status != status || p.Type != "/problems/"+kind {
		c.t.Fatalf("POST %s: %d %s, want %d /problems/%s", path, a.Status, a.Body, status, kind)
	}
	return p
}

// A topology is what the tests read of GET /cluster.
type topology struct {
	Primary string `json:"primary"`
	Nodes   []node `json:"nodes"`
}

type node struct {
	Name     string `json:"name"`
	Role     string `json:"role"`
	Timeline uint32 `json:"timeline"`
	SystemID string `json:"system_identifier"`
	Fenced   bool   `json:"fenced"`
	LagBytes *int64 `json:"lag_bytes"`
}

func (c *cluster) topology() topology {
	c.t.Helper()
	a := c.call("viewer", "GET", "/cluster", nil)
	var top topology
	if err := json.Unmarshal(a.Body, &top); err != nil || a.Status != 200 {
		c.t.Fatalf("GET /cluster: %d %s", a.Status, a.Body)
	}
	return top
}

// roles returns the primary's name and the other node's.
func (c *cluster) roles() (primary, standby string) {
	c.t.Helper()
	primary = c.topology().Primary
	for _, n := range testcluster.Nodes {
		if n != primary {
			standby = n
		}
	}
	if primary == "" {
		c.t.Fatal("no node leads")
	}
	return primary, standby
}

// health returns GET /health's status and the whole answer.
func (c *cluster) health() (status string, body map[string]any) {
	c.t.Helper()
	body = c.call("", "GET", "/health", nil).JSON()
	return fmt.Sprint(body["status"]), body
}

// waitOK waits until everything is as it should be, and no operation runs.
func (c *cluster) waitOK(limit time.Duration) {
	c.t.Helper()
	if err := isOK(c.t.Context(), c.Cluster, limit); err != nil {
		c.t.Fatal(err)
	}
}

func isOK(ctx context.Context, c *testcluster.Cluster, limit time.Duration) error {
	return testcluster.Poll(ctx, limit, 100*time.Millisecond, func(ctx context.Context) error {
		a, err := c.Call(ctx, "", "GET", "/health", nil)
		if err != nil {
			return err
		}
		if h := a.JSON(); h["status"] != "ok" || h["operation"] != nil && h["operation"] != "" {
			return fmt.Errorf("health: %s", a.Body)
		}
		return nil
	})
}

// docker runs the engine's client and fails the test when it fails.
func (c *cluster) docker(args ...string) string {
	c.t.Helper()
	out, err := c.Docker(c.t.Context(), args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// psql runs SQL as the superuser on a node.
func (c *cluster) psql(node, sql string) string {
	c.t.Helper()
	out, err := c.Psql(c.t.Context(), node, "imdb", sql)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// kill ends a service's container as a crash does.
func (c *cluster) kill(service string) {
	c.t.Helper()
	c.docker("kill", "-s", "KILL", c.Container(service))
}

// connect opens a session and closes it at the end of the test.
func (c *cluster) connect(dsn string) *pgx.Conn {
	c.t.Helper()
	conn, err := pgx.Connect(c.t.Context(), dsn)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// writers starts eight clients that write through the pooler: at a pace that leaves the
// processors to the cluster, where none is asked for.
func (c *cluster) writers(cfg probe.Config) *probe.Prober {
	c.t.Helper()
	if cfg.Every == 0 {
		cfg.Every = 60 * time.Millisecond
	}
	if cfg.DSN == "" {
		cfg.DSN = c.DatabaseURL
	}
	p, err := probe.Start(c.t.Context(), cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// check holds what the writers were told against what a node has.
func (c *cluster) check(r *probe.Report, node string) {
	c.t.Helper()
	v, err := r.Check(c.t.Context(), c.NodeDSN(node, "app", "imdb"))
	if err != nil {
		c.t.Fatal(err)
	}
	if len(v.Lost) > 0 || len(v.Doubled) > 0 || len(v.Alien) > 0 {
		c.t.Errorf("%s: lost %v, doubled %v, alien %v of %d acknowledged", node, v.Lost, v.Doubled, v.Alien, v.Acked)
	}
}

// arm sets a failpoint of controld: see package failpoint.
func (c *cluster) arm(call, when string) {
	c.t.Helper()
	c.docker("exec", c.Container("controld"), "sh", "-c", "echo '"+call+" "+when+"' >/var/lib/controld/failpoint")
}
