package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"controld/internal/probe"
	"controld/internal/testcluster"
)

// comesBack is how long an old primary may take to stream again by itself.
const comesBack = time.Minute

// TestEmergencyFailoverLosesNothing kills the primary under load, there and
// back: what was acknowledged is there, though no standby confirmed it.
func TestEmergencyFailoverLosesNothing(t *testing.T) {
	t.Parallel()
	c := up(t)
	for range 2 {
		before := c.topology()
		w := c.writers(probe.Config{})
		time.Sleep(500 * time.Millisecond)
		lost := time.Now()
		c.kill(before.Primary)
		called := time.Now()
		op := c.run("/failover", nil)
		if err := w.WaitCommit(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		r := w.Stop()

		after := c.topology()
		if op.Mode != "emergency" || op.Result.LostBytes != 0 || op.Result.Estimate {
			t.Errorf("mode %s, lost %d bytes, estimate %v; want an emergency without loss",
				op.Mode, op.Result.LostBytes, op.Result.Estimate)
		}
		if op.Result.From != before.Primary || after.Primary != op.Result.To || op.Result.Timeline != before.Nodes[0].Timeline+1 {
			t.Errorf("from %s to %s on timeline %d; %s led on timeline %d, %s leads", op.Result.From, op.Result.To, op.Result.Timeline,
				before.Primary, before.Nodes[0].Timeline, after.Primary)
		}
		if stats := r.Since(called); stats.FailedPerConnection > 2 {
			t.Errorf("%d failed transactions on one connection since the call: %v", stats.FailedPerConnection, r.Failures)
		}
		c.check(r, after.Primary)
		c.comesBackBy("follow", before.Primary, lost)
		c.sameRows("probe")
	}
}

// comesBackBy waits until the node that was lost streams again by itself, and
// expects that the last rejoin since then was controld's own and ended with the
// rung method.
func (c *cluster) comesBackBy(method, node string, lost time.Time) {
	c.t.Helper()
	var op operation
	err := testcluster.Poll(c.t.Context(), comesBack, 100*time.Millisecond, func(context.Context) error {
		// At first the health is what it was before the loss.
		if op = c.last("rejoin"); op.Began.Before(lost) || op.State == "running" {
			return fmt.Errorf("no rejoin has ended since %s was lost", node)
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.waitOK(comesBack)
	if op = c.last("rejoin"); op.State != "succeeded" || op.By != "controld" || op.Result.Method != method || op.Result.Node != node {
		c.t.Errorf("%s: rejoined by %s: %s of %s by %q; want %q by controld",
			node, op.By, op.State, op.Result.Node, op.Result.Method, method)
	}
	c.sameData()
}

// sameData compares every table of the application's on both nodes: what streams
// can lack rows all the same.
func (c *cluster) sameData() {
	c.t.Helper()
	primary, _ := c.roles()
	tables := c.psql(primary, `select format('%I.%I', schemaname, tablename) from pg_tables
		where schemaname not in ('pg_catalog', 'information_schema', 'controld')`)
	for table := range strings.Lines(tables) {
		c.sameRows(strings.TrimSpace(table))
	}
}

// last is the newest operation of a kind.
func (c *cluster) last(kind string) operation {
	c.t.Helper()
	a := c.call("viewer", "GET", "/operations?limit=1&kind="+kind, nil)
	var list struct {
		Operations []operation `json:"operations"`
	}
	if err := json.Unmarshal(a.Body, &list); err != nil || a.Status != 200 || len(list.Operations) != 1 {
		c.t.Fatalf("GET /operations: %d %s", a.Status, a.Body)
	}
	return list.Operations[0]
}

// sameRows compares a table's whole content on both nodes, once the standby has
// replayed everything.
func (c *cluster) sameRows(table string) {
	c.t.Helper()
	sql := "select count(*) || ' ' || coalesce(md5(string_agg(t::text, ',' order by t::text)), '') from " + table + " t"
	primary, standby := c.roles()
	want := c.psql(primary, sql)
	var got string
	err := testcluster.Poll(c.t.Context(), time.Minute, 100*time.Millisecond, func(ctx context.Context) (err error) {
		if got, err = c.Psql(ctx, standby, "imdb", sql); err == nil && got != want {
			err = fmt.Errorf("%s on %s: %s, on %s: %s", table, primary, want, standby, got)
		}
		return err
	})
	if err != nil {
		c.t.Error(err)
	}
}

// volume is the name of the node's data volume, dir the path of its data
// directory in the containers.
func (c *cluster) volume(node string) (volume, dir string) {
	n := slices.Index(testcluster.Nodes, node) + 1
	return fmt.Sprintf("%snode%d-data", c.Prefix, n), fmt.Sprintf("/pg/node%d/data", n)
}

// helper runs a program of the node's image in a container of its own, with
// the node's data volume at /v. more goes before the image's name.
func (c *cluster) helper(node string, more []string, program string, args ...string) string {
	c.t.Helper()
	volume, _ := c.volume(node)
	run := append([]string{"run", "--label", "controld.cluster=" + c.Prefix, "-v", volume + ":/v", "--entrypoint", program}, more...)
	return c.docker(append(append(run, "controld/postgres:"+tag()), args...)...)
}

// hide takes a container out of the engine's sight by another name, so that
// controld cannot start it; the returned function gives it its name back.
func (c *cluster) hide(node string) (show func()) {
	c.t.Helper()
	c.docker("rename", c.Container(node), c.Container(node)+"-hidden")
	return func() {
		c.t.Helper()
		c.docker("rename", c.Container(node)+"-hidden", c.Container(node))
	}
}

// TestRejoin takes every rung of a rejoin: the one that the data calls for, and the one that is
// asked for.
func TestRejoin(t *testing.T) {
	t.Parallel()
	c := up(t)
	c.psql(testcluster.Nodes[0], "create table kept as select g n, repeat(md5(g::text), 4) t from generate_series(1, 100) g")
	c.waitOK(time.Minute)

	t.Run("without a standby a crashed primary starts in place", func(t *testing.T) {
		c := c.in(t)
		primary, standby := c.roles()
		timeline := c.topology().Nodes[0].Timeline
		c.docker("kill", "-s", "KILL", c.Container(standby), c.Container(primary))
		p := c.refused("/failover", nil, 409, "no-candidate")
		if !strings.Contains(p.Detail, standby) {
			t.Errorf("the refusal names no node: %s", p.Detail)
		}
		c.run("/nodes/"+primary+"/start", nil)
		c.waitOK(comesBack)
		c.sameData()
		if top := c.topology(); top.Primary != primary || top.Nodes[0].Timeline != timeline {
			t.Errorf("%s leads on timeline %d, want %s on %d", top.Primary, top.Nodes[0].Timeline, primary, timeline)
		}
	})

	t.Run("a standby that is started leads by a failover alone", func(t *testing.T) {
		c := c.in(t)
		primary, standby := c.roles()
		lost := time.Now()
		c.docker("kill", "-s", "KILL", c.Container(standby), c.Container(primary))
		c.run("/nodes/"+standby+"/start", nil)
		if got := c.psql(standby, "select pg_is_in_recovery()"); got != "t" {
			t.Errorf("%s leads without a timeline of its own", standby)
		}
		if op := c.run("/failover", nil); op.Mode != "emergency" || op.Result.To != standby || op.Result.LostBytes != 0 {
			t.Errorf("mode %s: %+v", op.Mode, op.Result)
		}
		c.comesBackBy("follow", primary, lost)
	})

	// A node that follows has nothing to take back: pg_rewind would make it write on the
	// primary's timeline.
	for method, want := range map[string]string{"rewind": "follow", "basebackup": "basebackup"} {
		t.Run(method+" by request", func(t *testing.T) {
			c := c.in(t)
			_, standby := c.roles()
			op := c.run("/nodes/"+standby+"/rejoin", map[string]any{"method": method})
			if got := strings.ReplaceAll(op.Result.Method, " ", ""); got != want {
				t.Errorf("method %q, want %q", op.Result.Method, want)
			}
			c.waitOK(comesBack)
			c.sameRows("kept")
		})
	}

	t.Run("a broken data directory is copied anew", func(t *testing.T) {
		c := c.in(t)
		_, standby := c.roles()
		_, dir := c.volume(standby)
		lost := time.Now()
		c.docker("exec", c.Container(standby), "rm", dir+"/global/pg_control")
		c.kill(standby)
		c.comesBackBy("base backup", standby, lost)
		c.sameRows("kept")
	})

	t.Run("a diverged old primary is rewound", func(t *testing.T) {
		c := c.in(t)
		primary, standby := c.roles()
		// The standby receives nothing of what follows: it is lost.
		resume := c.stopReceiver(standby)
		c.psql(primary, `create table lost with (autovacuum_enabled = off) as
			select g n, repeat(md5(g::text), 32) t from generate_series(1, 10000) g`)
		time.Sleep(1500 * time.Millisecond) // one observation
		lost := time.Now()
		c.kill(primary)
		show := c.hide(primary) // or its data would be copied anew at once
		c.helper(primary, []string{"--rm"}, "mv", "/v/data", "/v/away")
		resume()
		op := c.run("/failover", map[string]any{"max_loss_bytes": -1})
		if op.Mode != "emergency" || !op.Result.Estimate || op.Result.LostBytes == 0 {
			t.Errorf("mode %s, estimate %v, lost %d", op.Mode, op.Result.Estimate, op.Result.LostBytes)
		}
		c.psql(standby, "insert into kept values (0, 'on the new timeline')")
		c.helper(primary, []string{"--rm"}, "mv", "/v/away", "/v/data")
		show()
		c.comesBackBy("rewind", primary, lost)
		c.sameRows("kept")
		if got := c.psql(primary, "select count(*) from pg_class where relname = 'lost'"); got != "0" {
			t.Errorf("%s still has what was lost", primary)
		}
	})

	t.Run("a node that crashed while it was copied has what it had", func(t *testing.T) {
		c := c.in(t)
		primary, standby := c.roles()
		c.psql(primary, "create table big as select g n, repeat(md5(g::text), 32) t from generate_series(1, 150000) g")
		c.docker("update", "--cpus", "0.1", c.Container(standby))
		c.call("admin", "POST", "/nodes/"+standby+"/rejoin", map[string]any{"method": "basebackup"}, "Prefer", "respond-async")
		_, dir := c.volume(standby)
		err := testcluster.Poll(t.Context(), time.Minute, 50*time.Millisecond, func(ctx context.Context) error {
			_, err := c.Docker(ctx, "exec", c.Container(standby), "test", "-e", dir+".new/base/1", "-a", "-e", dir+"/base/1")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		lost := time.Now()
		c.docker("kill", "-s", "KILL", c.Container(standby), c.Container(primary))
		c.docker("update", "--cpus", "2", c.Container(standby))
		c.until(time.Minute, func() error { // the copy is given up first
			if a := c.call("admin", "POST", "/nodes/"+standby+"/start", nil); a.Status != 200 {
				return fmt.Errorf("start %s: %d %s", standby, a.Status, a.Body)
			}
			return nil
		})
		if op := c.run("/failover", nil); op.Mode != "emergency" || op.Result.To != standby || op.Result.LostBytes != 0 {
			t.Errorf("mode %s: %+v", op.Mode, op.Result)
		}
		c.comesBackBy("follow", primary, lost)
		c.sameRows("kept")
		c.sameRows("big")
	})

	t.Run("a node whose data is half overwritten never leads and is copied anew", func(t *testing.T) {
		c := c.in(t)
		primary, standby := c.roles()
		lost := time.Now()
		c.docker("kill", "-s", "KILL", c.Container(standby), c.Container(primary))
		show := c.hide(standby) // or it would be started
		// As a copy in place leaves it, where there is no room beside the data.
		c.helper(standby, []string{"--rm"}, "sh", "-c", `echo basebackup >/v/unfinished && rm -r /v/data/base/1 &&
			sed -i 's/"state"/"unfinished":"basebackup","state"/' /v/status.json`)
		show()
		c.refused("/failover", map[string]any{"target": standby, "mode": "emergency", "max_loss_bytes": -1}, 409, "unfinished")
		c.refused("/failover", nil, 409, "no-candidate")
		c.refused("/nodes/"+standby+"/start", nil, 409, "unfinished")
		c.run("/nodes/"+primary+"/start", nil)
		c.comesBackBy("base backup", standby, lost)
		c.sameRows("kept")
	})
}

// in is the cluster for a subtest.
func (c *cluster) in(t *testing.T) *cluster { return &cluster{c.Cluster, t} }

// TestCutStandbyKeepsItsData cuts the standby from the network, once so that controld can mend
// it and once so that it cannot. The standby has not diverged. So nothing may overwrite its
// data, and it streams again by itself.
func TestCutStandbyKeepsItsData(t *testing.T) {
	t.Parallel()
	c := up(t)
	primary, standby := c.roles()
	_, dir := c.volume(standby)
	identity := func() string {
		// pg_rewind and pg_basebackup replace or rewrite these.
		return c.docker("exec", c.Container(standby), "stat", "-c", "%i %W", dir, dir+"/PG_VERSION", dir+"/base")
	}
	actions := func() int {
		return strings.Count(c.docker("logs", c.Container(standby)), `"action begins"`)
	}
	before, done, network := identity(), actions(), c.Prefix+"controld"

	c.docker("network", "disconnect", network, c.Container(standby))
	c.psql(primary, "create table written as select g from generate_series(1, 1000) g")
	c.waitOK(comesBack)
	c.sameRows("written")

	link(c, standby, false)
	c.psql(primary, "insert into written select g from generate_series(1, 1000) g")
	time.Sleep(30 * time.Second)
	link(c, standby, true)
	c.waitOK(comesBack)
	c.sameRows("written")

	if after := identity(); after != before {
		t.Errorf("the data directory was replaced: %s, before %s", after, before)
	}
	if n := actions() - done; n != 0 {
		t.Errorf("%d actions on the data:\n%s", n, c.docker("logs", c.Container(standby)))
	}
}

// link sets the node's network interface up or down from inside its network
// namespace, where the engine does not see it.
func link(c *cluster, node string, up bool) {
	c.t.Helper()
	flags := "$f & ~1"
	if up {
		flags = "$f | 1"
	}
	const getFlags, setFlags = 0x8913, 0x8914
	script := fmt.Sprintf(
		`my ($name) = map { /(eth\d+):/ } do { open my $h, "<", "/proc/net/dev" or die "devices: $!"; <$h> };
		socket(S, PF_INET, SOCK_DGRAM, 0) or die "socket: $!";
		my $r = pack("a16 s x22", $name, 0);
		ioctl(S, %d, $r) or die "get flags: $!";
		my $f = unpack("x16 s", $r);
		ioctl(S, %d, pack("a16 s x22", $name, %s)) or die "set flags: $!";`, getFlags, setFlags, flags)
	c.helper(node, []string{"--rm", "--network", "container:" + c.Container(node), "--cap-add", "NET_ADMIN"},
		"perl", "-MSocket", "-e", script)
}

// TestColdStart stops the cluster in every way and starts it again by up.sh. The recorded
// primary leads with its data; or, where the nodes agree, the one that led; or nobody, and then
// the way out that is named works.
func TestColdStart(t *testing.T) {
	t.Parallel()
	c := up(t)
	c.run("/failover", nil) // not the node that a fresh cluster would choose
	c.waitOK(time.Minute)
	primary, standby := c.roles()
	timeline := c.topology().Nodes[0].Timeline
	c.psql(primary, "create table kept as select g from generate_series(1, 1000) g")
	all := services
	containers := func() (out []string) {
		for _, s := range all {
			out = append(out, c.Container(s))
		}
		return out
	}()
	up := func() {
		t.Helper()
		if err := c.Script(t.Context(), "up.sh"); err != nil {
			t.Fatal(err)
		}
		c.waitOK(comesBack)
		if top := c.topology(); top.Primary != primary || top.Nodes[0].Timeline != timeline {
			t.Errorf("%s leads on timeline %d, want %s on %d", top.Primary, top.Nodes[0].Timeline, primary, timeline)
		}
		c.sameRows("kept")
	}
	down := func() {
		t.Helper()
		if err := c.Script(t.Context(), "down.sh"); err != nil {
			t.Fatal(err)
		}
	}

	down()
	up()

	c.docker(append([]string{"kill", "-s", "KILL"}, containers...)...) // as a host's reboot
	up()

	down()
	c.docker("rm", c.Container("controld"))
	c.docker("volume", "rm", c.Prefix+"controld-state")
	up()

	// Somebody promotes the standby past controld; each has writes of its own.
	c.docker("stop", c.Container("controld"))
	c.psql(standby, "select pg_promote()")
	c.psql(standby, "create table chosen ()")
	c.psql(primary, "create table dropped ()")
	c.docker("stop", c.Container(standby), c.Container(primary))
	c.docker(append([]string{"start"}, containers...)...)
	c.noneLeads(standby)
	c.refused("/failover", map[string]any{"mode": "emergency", "target": standby}, 409, "loss-unknown")
	c.run("/failover", map[string]any{"mode": "emergency", "target": standby, "max_loss_bytes": -1})
	c.waitOK(comesBack)
	if top := c.topology(); top.Primary != standby {
		t.Errorf("%s leads, %s was chosen", top.Primary, standby)
	}
	c.sameRows("kept")
	c.sameRows("chosen")
	if got := c.psql(primary, "select count(*) from pg_class where relname = 'dropped'"); got != "0" {
		t.Errorf("%s still has the branch that was not chosen", primary)
	}
}

// noneLeads waits until the health says that nobody leads and names the command that makes
// target lead. It then checks that it stays so.
func (c *cluster) noneLeads(target string) {
	c.t.Helper()
	command := "controld failover --mode emergency --target " + target
	named := func(ctx context.Context) error {
		a, err := c.Call(ctx, "", "GET", "/health", nil)
		if err != nil {
			return err
		}
		if a.Status != 503 || a.JSON()["status"] != "down" || !strings.Contains(string(a.Body), command) {
			return fmt.Errorf("health: %d %s, want down and %q", a.Status, a.Body, command)
		}
		return nil
	}
	if err := testcluster.Poll(c.t.Context(), 30*time.Second, 200*time.Millisecond, named); err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	if err := errors.Join(named(c.t.Context()), c.readOnly()); err != nil {
		c.t.Error(err)
	}
}

// readOnly is an error when a node takes a write.
func (c *cluster) readOnly() error {
	for _, n := range testcluster.Nodes {
		if out, err := c.Psql(c.t.Context(), n, "imdb", "create table intruder ()"); err == nil {
			return fmt.Errorf("%s takes writes %s", n, out)
		}
	}
	return nil
}
