package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"controld/internal/probe"
	"controld/internal/testcluster"
)

// TestNoTwoNodesWriteOneTimeline: whatever is done to a standby, either all that it has is the
// primary's, or it does not follow and never leads.
func TestNoTwoNodesWriteOneTimeline(t *testing.T) {
	t.Parallel()
	c := up(t)
	for _, tt := range []struct {
		name string
		try  func(*cluster)
	}{
		{"a rewind of a standby that never led", rewindOfAFollower},
		{"a standby that left recovery by itself", leftRecovery},
		{"a tablespace", tablespaceKeepsTheStandby},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.try(c.in(t)) })
	}
}

// checkpointed makes both control files name the present timeline.
func (c *cluster) checkpointed() {
	c.t.Helper()
	primary, standby := c.roles()
	for range 2 {
		c.psql(primary, "checkpoint")
		c.psql(standby, "checkpoint")
	}
}

// rows inserts through the pooler, so that each row is acknowledged.
func (c *cluster) rows(table string, from, to int) {
	c.t.Helper()
	c.acknowledged(fmt.Sprintf("insert into %s select generate_series(%d, %d)", table, from, to))
}

// acknowledged runs SQL as the application does, through the pooler.
func (c *cluster) acknowledged(sql string) {
	c.t.Helper()
	if _, err := c.connect(c.DatabaseURL).Exec(c.t.Context(), sql); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) count(node, table string) string {
	c.t.Helper()
	return c.psql(node, "select count(*) from "+table)
}

// rewindOfAFollower lost 995 of 1000 acknowledged rows once: pg_rewind let the
// killed standby end its recovery, and it wrote WAL beside the primary's.
func rewindOfAFollower(c *cluster) {
	t := c.t
	primary, standby := c.roles()
	c.acknowledged("create table rewound (n int)")
	c.rows("rewound", 1, 5)
	c.checkpointed()
	c.kill(standby)
	c.ask("/nodes/"+standby+"/rejoin", map[string]any{"method": "rewind"}) // whatever becomes of it
	c.rows("rewound", 6, 1005)
	c.waitOK(time.Minute)
	c.script("down.sh")
	c.script("up.sh")
	c.waitOK(time.Minute)
	c.sameRows("rewound")
	if op := c.run("/failover", nil); op.Result.LostBytes != 0 {
		t.Errorf("lost %d bytes", op.Result.LostBytes)
	}
	c.waitOK(time.Minute)
	for _, node := range []string{primary, standby} {
		if got := c.count(node, "rewound"); got != "1005" {
			t.Errorf("%s has %s rows of 1005", node, got)
		}
	}
}

// leaveRecovery makes the standby's data write WAL of its own, as a server does
// that is started without its signal file.
func (c *cluster) leaveRecovery(node string) {
	c.t.Helper()
	volume, dir := c.volume(node)
	number := strings.Split(dir, "/")[2]
	writeAlone := fmt.Sprintf(`rm -f %[1]s/standby.signal %[1]s/postmaster.pid &&
		/usr/lib/postgresql/15/bin/postgres --single -D %[1]s -c config_file=/order/postgresql.conf postgres </dev/null`, dir)
	c.helper(node, []string{
		"--rm", "--user", "5432:5432",
		"-v", c.Prefix + number + "-order:/order:ro",
		"-v", volume + ":" + strings.TrimSuffix(dir, "/data"),
	}, "bash", "-c", writeAlone)
}

// leftRecovery: a standby that wrote by itself is found out before it streams,
// told, refused as a candidate, and copied anew.
func leftRecovery(c *cluster) {
	t := c.t
	primary, standby := c.roles()
	c.acknowledged("create table own (n int)")
	c.rows("own", 1, 5)
	c.checkpointed()
	show := c.killHidden(standby)
	c.leaveRecovery(standby)
	c.rows("own", 6, 1005)
	// Nothing can be copied while there is a tablespace, so that it stays as it is.
	c.spaceFor(primary, "/tmp/space")
	c.psql(primary, "create tablespace space location '/tmp/space'")
	lost := time.Now()
	show()
	c.healthSays(t, time.Minute, "degraded", "replication", "diverged")
	for _, n := range c.topology().Nodes {
		if n.Name == standby && n.LagBytes != nil {
			t.Errorf("%s has diverged, and a lag of %d bytes", standby, *n.LagBytes)
		}
	}
	if p := c.refused("/failover", nil, 409, "no-candidate"); !strings.Contains(p.Detail, "diverged") {
		t.Errorf("the refusal does not say why: %s", p.Detail)
	}
	c.kill(primary)
	if p := c.refused("/failover", nil, 409, "no-candidate"); !strings.Contains(p.Detail, "diverged") {
		t.Errorf("with the primary dead: %s", p.Detail)
	}
	c.run("/nodes/"+primary+"/start", nil)
	c.psql(primary, "drop tablespace space")
	c.comesBackBy("base backup", standby, lost)
	c.sameRows("own")
	if op := c.run("/failover", nil); op.Result.LostBytes != 0 || op.Result.To != standby {
		t.Errorf("%+v", op.Result)
	}
	c.waitOK(time.Minute)
	for _, node := range []string{primary, standby} {
		if got := c.count(node, "own"); got != "1005" {
			t.Errorf("%s has %s rows of 1005", node, got)
		}
	}
}

// killHidden kills a node and keeps controld from starting it again.
func (c *cluster) killHidden(node string) (show func()) {
	c.t.Helper()
	show = c.hide(node)
	c.docker("kill", "-s", "KILL", c.Container(node)+"-hidden")
	return show
}

// spaceFor makes a folder for a tablespace in a node's container.
func (c *cluster) spaceFor(node, dir string) {
	c.t.Helper()
	if err := c.inContainer(node, "mkdir -p "+dir+" && chown 5432:5432 "+dir); err != nil {
		c.t.Fatal(err)
	}
}

// tablespaceKeepsTheStandby: a standby cannot replay what the primary did, and cannot be copied
// for the same reason. It keeps what it has.
func tablespaceKeepsTheStandby(c *cluster) {
	t := c.t
	primary, standby := c.roles()
	_, dir := c.volume(standby)
	before := c.docker("exec", c.Container(standby), "stat", "-c", "%i", dir+"/PG_VERSION")
	c.spaceFor(primary, "/tmp/more")
	lost := time.Now()
	c.psql(primary, "create tablespace more location '/tmp/more'")
	err := testcluster.Poll(t.Context(), time.Minute, 100*time.Millisecond, func(context.Context) error {
		if op := c.last("rejoin"); op.Began.Before(lost) || op.State == "running" {
			return fmt.Errorf("controld has not tried to bring %s back", standby)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second) // and not again either
	p := decode(t, c.call("admin", "POST", "/nodes/"+standby+"/rejoin", map[string]any{"method": "basebackup"}))
	if !strings.Contains(p.Detail, "/tmp/more") || !strings.Contains(p.Detail, "tablespace") {
		t.Errorf("a base backup does not say why it cannot be: %s", p.Detail)
	}
	if after := c.docker("exec", c.Container(standby), "stat", "-c", "%i", dir+"/PG_VERSION"); after != before {
		t.Errorf("the data of %s was replaced", standby)
	}
	c.psql(primary, "drop tablespace more")
	c.rejoin(standby)
	c.waitOK(time.Minute)
	c.leadsBoth(primary, standby)
}

// leadsBoth moves there and back: both nodes have the same, and can lead.
func (c *cluster) leadsBoth(primary, standby string) {
	c.t.Helper()
	for _, want := range []string{standby, primary} {
		if op := c.run("/failover", map[string]any{"mode": "planned"}); op.Result.To != want {
			c.t.Errorf("moved to %s, want %s", op.Result.To, want)
		}
		c.waitOK(time.Minute)
	}
}

// TestSomebodyLeadsAfterAFailedFailover: where the old primary cannot start again, the candidate
// leads. Where the candidate cannot lead either, the answer says who could.
func TestSomebodyLeadsAfterAFailedFailover(t *testing.T) {
	t.Parallel()
	c := up(t)
	t.Run("the old primary does not start again", func(t *testing.T) { noWayBack(c.in(t)) })
	t.Run("neither can lead", func(t *testing.T) { neitherLeads(c.in(t)) })
}

// noWayBack: a setting that waits for the next start keeps the old primary from
// it, and a reader holds up the candidate's replay.
func noWayBack(c *cluster) {
	t := c.t
	primary, standby := c.roles()
	c.acknowledged("create table readers as select generate_series(1, 1000) n")
	c.waitOK(time.Minute)
	c.psql(primary, "alter system set shared_preload_libraries = 'pg_cron'")
	reader := c.connect(c.NodeDSN(standby, "app", "imdb"))
	for _, sql := range []string{"begin isolation level repeatable read", "select count(*) from readers"} {
		if _, err := reader.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	w := c.writers(probe.Config{})
	time.Sleep(200 * time.Millisecond)
	c.acknowledged("drop table readers") // the reader's lock conflicts with its replay
	op := c.run("/failover", map[string]any{"mode": "planned"})
	if op.Result.To != standby || op.Result.LostBytes != 0 {
		t.Errorf("%+v", op.Result)
	}
	if err := w.WaitCommit(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	r := w.Stop()
	c.check(r, standby)
	if n := len(r.Failures); n > 0 {
		t.Errorf("%d transactions failed: %v", n, r.Failures)
	}
	c.waitOK(2 * time.Minute) // its settings are those of the new primary, once it is copied
	c.sameRows("probe")
}

// neitherLeads: the killed primary is fenced, and the candidate ends as soon as
// it is promoted, because the primary had more locks than it.
func neitherLeads(c *cluster) {
	t := c.t
	primary, standby := c.roles()
	c.psql(primary, "alter system set max_locks_per_transaction = 128")
	c.docker("stop", c.Container(primary))
	c.run("/nodes/"+primary+"/start", nil)
	c.acknowledged("create table locks as select generate_series(1, 10) n")
	time.Sleep(2 * time.Second) // the standby has what pauses its replay
	c.kill(primary)
	p := c.refused("/failover", map[string]any{"mode": "emergency"}, 500, "incomplete")
	if p.Operation == nil || p.Operation.State != "incomplete" ||
		!strings.Contains(p.Detail, "nobody leads") || !strings.Contains(p.Detail, "controld start "+primary) {
		t.Errorf("%+v", p)
	}
	c.run("/nodes/"+primary+"/start", nil)
	c.psql(primary, "alter system reset max_locks_per_transaction")
	c.docker("stop", c.Container(primary))
	c.until(2*time.Minute, func() error { // controld may be bringing the standby back just now
		if a := c.call("admin", "POST", "/nodes/"+primary+"/start", nil); a.Status != 200 {
			return fmt.Errorf("start %s: %d %s", primary, a.Status, a.Body)
		}
		return nil
	})
	c.rejoin(standby)
	c.waitOK(2 * time.Minute)
	c.sameRows("locks")
}
