package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"controld/internal/probe"
	"controld/internal/testcluster"
)

// hammer starts a client that writes to the node itself every 10 ms, past the
// pooler, and takes every failure as a reason to try again.
func (c *cluster) hammer(node string, workers int) *probe.Prober {
	c.t.Helper()
	return c.writers(probe.Config{
		DSN: c.NodeDSN(node, "app", "imdb"), Workers: workers, Every: 10 * time.Millisecond,
		ConnectTimeout: 2 * time.Second, TransactionTimeout: 10 * time.Second,
	})
}

// TestFrozenPrimaryAcknowledgesNothing freezes the primary in several ways, under writers through
// the pooler and at its own port. auto decides for an emergency. Whatever thaws the old primary
// then, it acknowledges nothing any more that the new primary does not have.
func TestFrozenPrimaryAcknowledgesNothing(t *testing.T) {
	t.Parallel()
	c := up(t)
	const signalAll = `for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || [ $p = $$ ] || kill -%s $p; done`
	for _, tt := range []struct {
		name         string
		freeze, thaw func(c *cluster, node string) error // thaw nil: only controld's own kill thaws it
	}{
		{
			name:   "postmaster and backends are stopped",
			freeze: func(c *cluster, node string) error { return c.inContainer(node, fmt.Sprintf(signalAll, "STOP")) },
			thaw:   func(c *cluster, node string) error { return c.inContainer(node, fmt.Sprintf(signalAll, "CONT")) },
		},
		{
			name: "only the postmaster is stopped",
			freeze: func(c *cluster, node string) error {
				return c.inContainer(node, "kill -STOP $(head -n 1 $NODE_DIR/data/postmaster.pid)")
			},
			thaw: func(*cluster, string) error { return nil },
		},
		{
			name: "the container is paused",
			freeze: func(c *cluster, node string) error {
				return c.pause(node)
			},
		},
		{
			name: "the container is paused and unpaused while it is fenced",
			freeze: func(c *cluster, node string) error {
				return c.pause(node)
			},
			thaw: func(c *cluster, node string) error {
				_, err := c.Docker(c.t.Context(), "unpause", c.Container(node))
				return err
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := c.in(t)
			primary, _ := c.roles()
			pooled := c.writers(probe.Config{})
			direct := c.hammer(primary, 8)
			time.Sleep(500 * time.Millisecond)
			if err := tt.freeze(c, primary); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond) // what was on its way has arrived
			called := time.Now()
			thaws := 0
			// Once it is being fenced, somebody thaws it again and again.
			stop := c.again(func(ctx context.Context) {
				var top topology
				a, err := c.Call(ctx, "viewer", "GET", "/cluster", nil)
				if err = errors.Join(err, json.Unmarshal(a.Body, &top)); err != nil {
					return
				}
				if slices.ContainsFunc(top.Nodes, func(n node) bool { return n.Fenced }) && tt.thaw != nil {
					_ = tt.thaw(c, primary) // mostly there is nothing left to thaw
					thaws++
				}
			})
			op := c.run("/failover", nil)
			ended := time.Now()
			time.Sleep(time.Second)
			stop()
			c.waitOK(comesBack)
			pooledReport, directReport := pooled.Stop(), direct.Stop()
			c.sameData()

			if op.Mode != "emergency" || op.Result.LostBytes != 0 {
				t.Errorf("mode %s, lost %d bytes", op.Mode, op.Result.LostBytes)
			}
			if stats := directReport.Since(ended); stats.Acked > 0 {
				t.Errorf("the old primary acknowledged %d commits after the failover", stats.Acked)
			}
			if tt.thaw != nil && thaws == 0 {
				t.Error("nobody thawed it while it was fenced")
			}
			if stats := directReport.Since(called); tt.thaw == nil && stats.Acked > 0 {
				t.Errorf("it acknowledged %d commits while controld killed it", stats.Acked)
			}
			t.Logf("direct writers: %d acknowledged before the call, %d in the failover",
				directReport.Between(directReport.Base, called).Acked, directReport.Between(called, ended).Acked)
			c.check(pooledReport, op.Result.To)
			c.check(directReport, op.Result.To)
		})
	}
}

// pause freezes a container. The kernel does not always manage at once,
// which the engine reports as an error.
func (c *cluster) pause(service string) error {
	return testcluster.Poll(c.t.Context(), time.Minute, 100*time.Millisecond, func(ctx context.Context) error {
		_, err := c.Docker(ctx, "pause", c.Container(service))
		return err
	})
}

// freeze is pause for a test that cannot go on without.
func (c *cluster) freeze(service string) {
	c.t.Helper()
	if err := c.pause(service); err != nil {
		c.t.Fatal(err)
	}
}

// inContainer runs a line of shell in a node's container.
func (c *cluster) inContainer(node, line string) error {
	_, err := c.Docker(c.t.Context(), "exec", c.Container(node), "sh", "-c", line)
	return err
}

// TestOldPrimaryStartedByHandTakesNoWrite brings the old primary's container
// back past controld after a failover, in every way that people have for it.
func TestOldPrimaryStartedByHandTakesNoWrite(t *testing.T) {
	t.Parallel()
	c := up(t)
	for _, tt := range []struct {
		name  string
		start func(c *cluster, node string) // controld is stopped, and the order of the node withdrawn
	}{
		{"docker start while the failover runs", nil},
		{"docker start without controld", func(c *cluster, node string) {
			c.docker("start", c.Container(node))
			time.Sleep(20 * time.Second)
			c.docker("start", c.Container("controld"))
		}},
		{"compose up", func(c *cluster, _ string) { c.script("compose.sh", "up", "-d") }},
		{"up.sh twice", func(c *cluster, _ string) { c.script("up.sh"); c.script("up.sh") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := c.in(t)
			primary, _ := c.roles()
			w := c.hammer(primary, 1)
			if err := w.WaitCommit(t.Context(), time.Now()); err != nil {
				t.Fatal(err)
			}
			c.kill(primary)
			killed := time.Now()
			var op operation
			if tt.start == nil {
				stop := c.again(func(ctx context.Context) { _, _ = c.Docker(ctx, "start", c.Container(primary)) })
				op = c.run("/failover", nil)
				stop()
			} else {
				show := c.hide(primary) // controld would bring it back before it can be stopped
				op = c.run("/failover", nil)
				c.docker("stop", c.Container("controld"))
				show()
				tt.start(c, primary)
			}
			c.waitOK(comesBack)
			c.sameData()
			r := w.Stop()
			if stats := r.Since(killed); stats.Acked > 0 {
				t.Errorf("%s acknowledged %d commits after it was killed", primary, stats.Acked)
			}
			c.check(r, op.Result.To)
			if top := c.topology(); top.Primary != op.Result.To {
				t.Errorf("%s leads, want %s", top.Primary, op.Result.To)
			}
		})
	}
}

// script runs one of the scripts of deploy/compose, with arguments.
func (c *cluster) script(name string, args ...string) {
	c.t.Helper()
	if err := c.Script(c.t.Context(), name, args...); err != nil {
		c.t.Fatal(err)
	}
}

// setting makes controld anew with one setting changed; an empty value changes it back.
func (c *cluster) setting(name, value string) {
	c.t.Helper()
	changed := *c.Cluster
	if value != "" {
		changed.Env = append(slices.Clone(c.Env), name+"="+value)
	}
	if err := changed.Script(c.t.Context(), "compose.sh", "up", "-d", "--no-deps", "controld"); err != nil {
		c.t.Fatalf("controld with %s=%s: %v", name, value, err)
	}
	c.waitOK(30 * time.Second)
}

// again does something every 20 ms until it is stopped.
func (c *cluster) again(do func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			do(ctx)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return func() { cancel(); <-ended }
}

// TestUnprovedDeathPromotesNothing holds the lock on the dead primary's volume
// from elsewhere and hides its container from the engine: neither proves its
// death.
func TestUnprovedDeathPromotesNothing(t *testing.T) {
	t.Parallel()
	c := up(t)
	primary, standby := c.roles()
	c.kill(primary)
	holder := c.helper(primary, []string{"-d"}, "flock", "/v/lock", "sleep", "600")
	show := c.hide(primary)

	began := time.Now()
	p := c.refused("/failover", map[string]any{"mode": "emergency"}, 500, "incomplete") // nobody leads
	if waited := time.Since(began); waited < 10*time.Second {
		t.Errorf("given up after %s, the proof has 10 s", waited)
	}
	if p.Operation == nil || p.Operation.State != "incomplete" ||
		!strings.Contains(p.Detail, "the death of "+primary+" is not proved") || !strings.Contains(p.Detail, "lock") {
		t.Errorf("the missing proof is not named: %+v", p)
	}
	if got := c.psql(standby, "select pg_is_in_recovery()"); got != "t" {
		t.Errorf("%s was promoted", standby)
	}
	if paused := c.paused(); len(paused) > 0 {
		t.Errorf("left paused: %v", paused)
	}
	_, dir := c.volume(primary)
	order := c.docker("exec", c.Container("controld"), "cat", "/orders/"+filepath.Base(filepath.Dir(dir))+"/order.json")
	if !strings.Contains(order, `"role": "none"`) {
		t.Errorf("the order of %s is not withdrawn: %s", primary, order)
	}

	c.docker("rm", "-f", holder)
	op := c.run("/failover", nil)
	if op.Mode != "emergency" || op.Result.To != standby || op.Result.LostBytes != 0 {
		t.Errorf("mode %s to %s, lost %d bytes", op.Mode, op.Result.To, op.Result.LostBytes)
	}
	show()
	c.waitOK(comesBack)
	c.sameData()
}

// paused are the pooler's entries that are paused, as GET /cluster says.
func (c *cluster) paused() (names []string) {
	c.t.Helper()
	pooler, _ := c.call("viewer", "GET", "/cluster", nil).JSON()["pooler"].(map[string]any)
	databases, _ := pooler["databases"].([]any)
	if len(databases) == 0 {
		c.t.Errorf("the pooler shows no databases: %v", pooler)
	}
	for _, d := range databases {
		if d, _ := d.(map[string]any); d["paused"] == true {
			names = append(names, fmt.Sprint(d["name"]))
		}
	}
	return names
}

// TestSecondDaemonRefusesToStart: two would give contradicting orders.
func TestSecondDaemonRefusesToStart(t *testing.T) {
	t.Parallel()
	c := up(t)
	first := c.Container("controld")
	out, err := c.Docker(t.Context(), "run", "--rm", "--label", "controld.cluster="+c.Prefix, "--volumes-from", first,
		"--network", c.Prefix+"controld", "--env", "CONTROLD_PREFIX="+c.Prefix, "--cap-drop", "ALL", "--cap-add", "DAC_READ_SEARCH",
		"controld/controld:"+tag())
	if err == nil {
		t.Fatalf("a second daemon ran: %s", out)
	}
	if !strings.Contains(err.Error(), "another controld looks after this cluster") {
		t.Errorf("it does not say why it ends: %v", err)
	}
	c.waitOK(10 * time.Second)
}
