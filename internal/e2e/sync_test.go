package e2e

import (
	"context"
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

// syncTimeout is how long these tests let a dead standby block commits.
const syncTimeout = 2 * time.Second

// blockedAtMost bounds how long commits may be seen to block: the timeout, three
// seconds in which a frozen standby may say nothing, an observation before and
// after, and a busy machine.
const blockedAtMost = syncTimeout + 12*time.Second

// TestSynchronousReplication is mode sync as docs/safety.md has it, on one cluster
// that each part leaves healthy.
func TestSynchronousReplication(t *testing.T) {
	t.Parallel()
	c := up(t, "CONTROLD_REPLICATION_MODE=sync", "CONTROLD_REPLICATION_SYNC_TIMEOUT=2s")
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"the standby becomes synchronous by itself", func(_ *testing.T, c *cluster) { c.waitSync() }},
		{"a planned failover loses nothing and tells how long commits were unprotected", syncPlanned},
		{"a dead standby blocks commits no longer than the timeout", syncStandbyGone},
		{"a frozen standby blocks commits no longer than the timeout", syncStandbyFrozen},
		{"nothing acknowledged is lost with the primary's volume gone", syncVolumeGone},
		{"a loss after the wait was lifted needs the request's own consent", syncForced},
		{"settings that were changed take effect", changedSettings},
	} {
		if !t.Run(tt.name, func(t *testing.T) { tt.run(t, &cluster{c.Cluster, t}) }) {
			return // what follows needs a healthy cluster
		}
	}
}

func syncPlanned(t *testing.T, c *cluster) {
	w := c.writers(probe.Config{})
	time.Sleep(300 * time.Millisecond)
	op := c.run("/failover", nil)
	c.waitSync()
	time.Sleep(300 * time.Millisecond)
	r := w.Stop()
	if s := r.All(); s.Failed > 0 || s.FailedConnects > 0 {
		t.Errorf("%d failed transactions, %d failed connects: %v %v", s.Failed, s.FailedConnects, r.Failures, r.FailedConnects)
	}
	c.check(r, op.Result.To)
	if op.Result.UnprotectedMS <= 0 || !op.Result.Rejoined {
		t.Errorf("unprotected for %v ms, rejoined %v; want both told", op.Result.UnprotectedMS, op.Result.Rejoined)
	}
	if got := c.syncNames(op.Result.To); !strings.Contains(got, op.Result.From) {
		t.Errorf("commits on the new primary wait for %q, want %s", got, op.Result.From)
	}
}

// syncStandbyGone removes the standby's container: a stopped one would be
// started again at once.
func syncStandbyGone(_ *testing.T, c *cluster) {
	_, standby := c.roles()
	remove := func() { c.docker("rm", "-f", c.Container(standby)) }
	makeAnew := func() { c.compose("up", "-d", "--no-recreate", standby) }
	c.blocksAndFlows(standby, remove, makeAnew)
}

func syncStandbyFrozen(_ *testing.T, c *cluster) {
	_, standby := c.roles()
	freeze := func() { c.freeze(standby) }
	thaw := func() { c.docker("unpause", c.Container(standby)) }
	c.blocksAndFlows(standby, freeze, thaw)
}

// blocksAndFlows takes the standby away under load: commits stop, and go on
// when the wait is lifted; then it comes back and is in sync again.
func (c *cluster) blocksAndFlows(standby string, takeAway, giveBack func()) {
	c.t.Helper()
	w := c.writers(probe.Config{})
	time.Sleep(300 * time.Millisecond)
	gone := time.Now()
	takeAway()
	primary := c.waitLifted(20 * time.Second)
	time.Sleep(500 * time.Millisecond)
	if status, body := c.health(); status != "degraded" {
		c.t.Errorf("without the standby /health says %v", body)
	}
	giveBack()
	c.waitSync()
	r := w.Stop()
	s := r.Since(gone)
	if s.Failed > 0 || s.Outage.Length() > blockedAtMost {
		c.t.Errorf("without %s commits blocked for %s (at most %s is allowed), %d failed: %v",
			standby, s.Outage.Length(), blockedAtMost, s.Failed, r.Failures)
	}
	c.check(r, primary)
	c.t.Logf("commits blocked for %s", s.Outage.Length())
}

// syncVolumeGone kills the primary of a pair in sync and takes its data away
// before anybody can read it.
func syncVolumeGone(t *testing.T, c *cluster) {
	primary, standby := c.roles()
	w := c.writers(probe.Config{})
	time.Sleep(300 * time.Millisecond)
	c.loseData(primary)
	op := c.run("/failover", nil)
	if err := w.WaitCommit(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	r := w.Stop()
	if op.Mode != "emergency" || op.Result.To != standby {
		t.Errorf("mode %s to %s, want emergency to %s", op.Mode, op.Result.To, standby)
	}
	c.check(r, standby)
	// The old primary is copied anew, and commits wait for it again.
	c.waitSync()
}

// syncForced is the one case in which a failover has to be forced. The standby lacks commits that
// were acknowledged after the wait for it was lifted, and they cannot be salvaged.
func syncForced(t *testing.T, c *cluster) {
	primary, standby := c.roles()
	c.psql(primary, "create table forced (n int)")
	c.docker("rm", "-f", c.Container(standby))
	c.waitLifted(20 * time.Second)
	c.psql(primary, "insert into forced select generate_series(1, 20000)")
	time.Sleep(2500 * time.Millisecond) // controld has observed them
	c.loseData(primary)
	c.compose("up", "-d", "--no-recreate", standby)
	c.waitRole(standby, "standby")

	p := c.refused("/failover", nil, 409, "loss-not-accepted")
	lost, _ := p.Numbers["lost_bytes"].(float64)
	if lost < 20000 || !strings.Contains(p.Detail, fmt.Sprintf("%.0f bytes", lost)) || !strings.Contains(p.Detail, "max_loss_bytes") {
		t.Errorf("the refusal does not state the loss: %v %s", p.Numbers, p.Detail)
	}
	c.refused("/failover", map[string]any{"max_loss_bytes": lost - 1}, 409, "loss-over-bound")
	for _, consent := range []any{lost, -1} {
		a := c.call("admin", "POST", "/failover", map[string]any{"max_loss_bytes": consent, "dry_run": true})
		if plan := a.JSON(); plan["would_run"] != true {
			t.Errorf("with max_loss_bytes %v the plan says %s", consent, a.Body)
		}
	}
	if top := c.topology(); top.Primary != "" {
		t.Fatalf("%s leads after refusals and dry runs", top.Primary)
	}
	op := c.run("/failover", map[string]any{"max_loss_bytes": lost})
	if op.Result.To != standby || !op.Result.Estimate || float64(op.Result.LostBytes) < lost*0.9 {
		t.Errorf("result %+v, want an estimate of about %.0f lost bytes", op.Result, lost)
	}
	if got := c.psql(standby, "select count(*) from forced"); got != "0" {
		t.Errorf("the standby has %s of the rows that were committed without it", got)
	}
	c.waitSync()
}

// changedSettings: a changed mode and changed sizes take effect without a failover or a restart.
func changedSettings(t *testing.T, c *cluster) {
	c.Env = slices.DeleteFunc(c.Env, func(s string) bool { return strings.HasPrefix(s, "CONTROLD_REPLICATION_MODE=") })
	c.Env = append(c.Env, "CONTROLD_REPLICATION_MODE=async", "CONTROLD_POSTGRES_MAX_WAL_SIZE=3GB", "CONTROLD_POOLER_POOL_SIZE=7")
	if err := c.Script(t.Context(), "up.sh"); err != nil {
		t.Fatal(err)
	}
	c.waitOK(time.Minute)
	c.waitLifted(30 * time.Second)
	err := testcluster.Poll(t.Context(), 30*time.Second, 100*time.Millisecond, func(ctx context.Context) error {
		for _, n := range testcluster.Nodes {
			var size string
			if err := c.query(ctx, n, "select current_setting('max_wal_size')", &size); err != nil {
				return err
			}
			if size != "3GB" {
				return fmt.Errorf("%s has max_wal_size %s, want 3GB", n, size)
			}
		}
		entries, err := c.entries(ctx)
		if err == nil && (entries["imdb"].poolSize != "7" || entries["imdb_ro"].poolSize != "7") {
			err = fmt.Errorf("the pooler has the entries %+v, want pools of 7", entries)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestStrictReplication: the names are set before a node leads and are never
// lifted.
func TestStrictReplication(t *testing.T) {
	t.Parallel()
	c := up(t, "CONTROLD_REPLICATION_MODE=strict", "CONTROLD_REPLICATION_SYNC_TIMEOUT=1s")
	c.waitSync()
	old, candidate := c.roles()
	if got := c.syncNames(candidate); !strings.Contains(got, old) {
		t.Errorf("before it leads %s is set to wait for %q, want %s", candidate, got, old)
	}
	w := c.writers(probe.Config{})
	time.Sleep(300 * time.Millisecond)
	// On a machine so busy that a login takes a second, auto would mean emergency.
	op := c.run("/failover", map[string]any{"mode": "planned"})
	c.waitSync()
	if err := w.WaitCommit(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	r := w.Stop()
	if s := r.All(); s.Failed > 0 || s.FailedConnects > 0 {
		t.Errorf("%d failed transactions, %d failed connects: %v %v", s.Failed, s.FailedConnects, r.Failures, r.FailedConnects)
	}
	c.check(r, op.Result.To)
	if op.Result.UnprotectedMS > 0 {
		t.Errorf("unprotected for %v ms; strict never is", op.Result.UnprotectedMS)
	}
	// Commits waited for the old primary's return, which the pause does not include.
	held, pause := r.All().Outage.Length(), time.Duration(op.Result.PauseMS)*time.Millisecond
	if held < pause {
		t.Errorf("clients waited %s, the pause alone took %s", held, pause)
	}
	t.Logf("pause %s, commits waited for %s", pause, held)

	primary, standby := c.roles()
	app := c.connect(c.DatabaseURL)
	if _, err := app.Exec(t.Context(), "create table strict (n int)"); err != nil {
		t.Fatal(err)
	}
	c.docker("rm", "-f", c.Container(standby))
	committed := make(chan error, 1)
	go func() {
		_, err := app.Exec(context.WithoutCancel(t.Context()), "insert into strict values (1)")
		committed <- err
	}()
	select {
	case err := <-committed:
		t.Errorf("a commit without a standby was answered: %v", err)
	case <-time.After(6 * time.Second): // six times the timeout of mode sync
	}
	if status, body := c.health(); status != "degraded" || body["reason"] != "sync-blocked" {
		t.Errorf("/health says %v, want degraded with reason sync-blocked", body)
	}
	if got := c.syncNames(primary); got == "" {
		t.Error("the wait was lifted")
	}
	c.compose("up", "-d", "--no-recreate", standby)
	select {
	case err := <-committed:
		if err != nil {
			t.Errorf("with the standby back the commit failed: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("with the standby back the commit still waits")
	}
	c.waitOK(time.Minute)
}

// compose runs compose for this cluster.
func (c *cluster) compose(args ...string) {
	c.t.Helper()
	if out, err := c.command(c.t.Context(), filepath.Join(c.Root, "deploy/compose/compose.sh"), args...).CombinedOutput(); err != nil {
		c.t.Fatalf("compose %v: %v\n%s", args, err, out)
	}
}

// syncNames is what commits on a node wait for.
func (c *cluster) syncNames(node string) string {
	c.t.Helper()
	return c.psql(node, "show synchronous_standby_names")
}

// waitSync waits until all is well and the standby is in sync.
func (c *cluster) waitSync() {
	c.t.Helper()
	err := testcluster.Poll(c.t.Context(), time.Minute, 200*time.Millisecond, func(ctx context.Context) error {
		primary, err := c.observedPrimary(ctx)
		if err != nil {
			return err
		}
		got, err := c.Psql(ctx, primary, "imdb", "select string_agg(sync_state, ',') from pg_stat_replication")
		if err == nil && got != "sync" {
			err = fmt.Errorf("sync_state on %s is %q", primary, got)
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.waitOK(time.Minute)
}

// waitLifted waits until commits wait for nobody, and returns who leads.
func (c *cluster) waitLifted(limit time.Duration) (primary string) {
	c.t.Helper()
	err := testcluster.Poll(c.t.Context(), limit, 100*time.Millisecond, func(ctx context.Context) (err error) {
		if primary, err = c.observedPrimary(ctx); err != nil {
			return err
		}
		names, err := c.Psql(ctx, primary, "imdb", "show synchronous_standby_names")
		if err == nil && names != "" {
			err = fmt.Errorf("commits on %s wait for %s", primary, names)
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return primary
}

func (c *cluster) observedPrimary(ctx context.Context) (string, error) {
	a, err := c.Call(ctx, "viewer", "GET", "/cluster", nil)
	if err != nil {
		return "", err
	}
	name, _ := a.JSON()["primary"].(string)
	if name == "" {
		return "", errors.New("no node leads")
	}
	return name, nil
}

// waitRole waits until controld has observed a node in a role.
func (c *cluster) waitRole(name, role string) {
	c.t.Helper()
	err := testcluster.Poll(c.t.Context(), time.Minute, 100*time.Millisecond, func(context.Context) error {
		for _, n := range c.topology().Nodes {
			if n.Name == name && n.Role == role {
				return nil
			}
		}
		return fmt.Errorf("%s is no %s", name, role)
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// loseData kills a node and moves its data directory out of everybody's reach.
func (c *cluster) loseData(node string) {
	c.t.Helper()
	dir := map[string]string{testcluster.Nodes[0]: "node1", testcluster.Nodes[1]: "node2"}[node]
	c.kill(node)
	c.docker("run", "--rm", "--network", "none", "-v", c.Prefix+dir+"-data:/v", "--entrypoint", "mv",
		"controld/postgres:"+tag(), "/v/data", "/v/lost")
}
