package node_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"controld/internal/node"
	"controld/internal/pgwal"
	"controld/internal/wal"
)

// compare holds this node's WAL against the other's, as it lies there now.
func (n *testNode) compare() pgwal.Comparison {
	n.t.Helper()
	c, err := pgwal.Compare(n.t.Context(), filepath.Join(n.dir, node.DataDir), filepath.Join(n.other().dir, node.DataDir), 0)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// lsn asks the node for a position.
func (n *testNode) lsn(function string) wal.LSN {
	n.t.Helper()
	lsn, err := wal.ParseLSN(n.mustSQL("select " + function))
	if err != nil {
		n.t.Fatal(err)
	}
	return lsn
}

// singleUser starts a server without its signal file and ends it again, as pg_rewind does
// to a server that was not shut down. It writes WAL of its own.
func (n *testNode) singleUser() {
	n.t.Helper()
	args := []string{"run", "--rm", "--label", "controld.test=1", "--user", "5432:5432", "--entrypoint", "bash"}
	for _, v := range n.runArgs("x") { // the volumes alone
		if strings.Contains(v, ":/pg/") || strings.Contains(v, ":/order") {
			args = append(args, "-v", v)
		}
	}
	line := fmt.Sprintf(`rm -f %[1]s/standby.signal %[1]s/postmaster.pid &&
		/usr/lib/postgresql/15/bin/postgres --single -D %[1]s -c config_file=/order/postgresql.conf postgres </dev/null`, n.dataDir())
	docker(n.t, append(args, image(), "-c", line)...)
}

// All kinds of WAL that PostgreSQL writes are read to the end, of a node that runs and of
// one that was killed.
func TestTheWALOfTwoNodesIsTheSame(t *testing.T) {
	p := newPair(t)
	one, two := p.both()
	caughtUp := func() {
		t.Helper()
		waitFor(t, "the standby to have all", func() bool {
			out, err := one.sql("select count(*) from pg_stat_replication where replay_lsn = pg_current_wal_insert_lsn()")
			return err == nil && out == "1"
		}, nil)
	}
	for _, sql := range []string{
		"create table t (i int, x text)",
		"insert into t select g, repeat(md5(g::text), 40) from generate_series(1, 20000) g",
		"create index on t (x) include (i)",
		"select pg_switch_wal()",
		"checkpoint; update t set i = -i where i < 5000",
		"vacuum full t",
		"select pg_logical_emit_message(false, 'x', repeat('y', 9000000))", // more than two segments
		"select pg_switch_wal(); select pg_switch_wal()",
		"insert into t values (0, 'last')",
	} {
		for _, statement := range strings.Split(sql, ";") {
			one.mustSQL(statement)
		}
		caughtUp()
		// The background writes too, so the end is somewhere between two looks.
		least := two.lsn("pg_last_wal_replay_lsn()")
		c := two.compare()
		most := two.lsn("pg_last_wal_receive_lsn()")
		if strings.HasPrefix(sql, "select pg_switch") {
			least = 0 // a switch's record ends before the segment that it leaves empty
		}
		if c.Relation != pgwal.Same || c.End < least || c.End > most {
			t.Fatalf("after %q: %+v, want the same up to %s, or %s at the most", sql, c, least, most)
		}
	}
	one.mustSQL("insert into t select g, 'more' from generate_series(1, 5000) g")
	two.kill()
	one.mustSQL("insert into t select g, 'even more' from generate_series(1, 5000) g")
	if c := two.compare(); c.Relation != pgwal.Same || c.Bytes == 0 {
		t.Errorf("killed, and the primary has gone on: %+v", c)
	}
	// One that crashed as a primary goes on where its WAL was whole.
	one.give(node.Order{Role: node.RolePrimary})
	one.await(node.StateRunning)
	one.kill()
	one.start()
	one.give(node.Order{Role: node.RolePrimary})
	one.await(node.StateRunning)
	two.give(node.Order{Role: node.RoleStandby, LeaderDir: one.dataDir()}) // before the start, which would go by the last one
	two.start()
	if s := two.await(node.StateRunning); s.Compared == nil || s.Compared.Relation != pgwal.Same {
		t.Errorf("status %+v", s)
	}
	p.awaitStreaming(one)
	caughtUp()
	if c := two.compare(); c.Relation != pgwal.Same {
		t.Errorf("after the primary's crash: %+v", c)
	}
}

// A standby that left recovery by itself has WAL of its own. It does not start, and
// streaming does not write over the evidence.
func TestAStandbyThatLeftRecoveryDoesNotFollow(t *testing.T) {
	p := newPair(t)
	one, two := p.both()
	one.mustSQL("create table t as select generate_series(1, 5) i")
	for range 2 {
		one.mustSQL("checkpoint")
		two.mustSQL("checkpoint")
	}
	two.kill()
	two.singleUser()
	one.mustSQL("insert into t select generate_series(6, 1000)")
	if c := two.compare(); c.Relation != pgwal.Diverged {
		t.Fatalf("%+v, want diverged", c)
	}
	two.give(node.Order{Role: node.RoleNone})
	two.start()
	for range 2 { // again, and without anything to compare with
		two.give(node.Order{Role: node.RoleStandby, LeaderDir: one.dataDir()})
		if s := two.await(node.StateRefused); s.Diverged() == "" || two.locked() {
			t.Errorf("status %+v", s)
		}
		two.give(node.Order{Role: node.RoleStandby})
		if s := two.await(node.StateRefused); s.Diverged() == "" || two.locked() {
			t.Errorf("status %+v", s)
		}
		two.rewindFrom(one.upstream())
		if s := two.await(node.StateRefused); s.Unfinished != "" || two.locked() {
			t.Errorf("status %+v", s)
		}
	}
	two.give(node.Order{Role: node.RoleStandby, Action: node.ActionBaseBackup, Upstream: one.upstream(), LeaderDir: one.dataDir()})
	if s := two.await(node.StateRunning); s.Diverged() != "" || s.Compared.Relation != pgwal.Same {
		t.Errorf("status %+v after a base backup", s)
	}
	p.awaitStreaming(one)
	waitFor(t, "all rows", func() bool { out, err := two.sql("select count(*) from t"); return err == nil && out == "1000" }, nil)
}

// The primary has an old copy of its volume, as a disk leaves it that lost what it had
// promised to keep. The standby has more than the primary then.
func TestAStandbyAheadOfThePrimaryDoesNotFollow(t *testing.T) {
	p := newPair(t)
	one, two := p.both()
	one.mustSQL("create table t as select generate_series(1, 5) i")
	one.give(node.Order{Role: node.RoleNone})
	one.await(node.StateWaiting)
	data, copied := filepath.Join(one.dir, node.DataDir), filepath.Join(one.dir, "copied")
	run(t, "cp", "-a", data, copied)
	one.give(node.Order{Role: node.RolePrimary})
	one.await(node.StateRunning)
	p.awaitStreaming(one)
	one.mustSQL("insert into t select generate_series(6, 1000)")
	waitFor(t, "the standby to have all", func() bool {
		out, err := two.sql("select count(*) from t")
		return err == nil && out == "1000"
	}, nil)
	for _, n := range []*testNode{one, two} {
		n.give(node.Order{Role: node.RoleNone})
		n.await(node.StateWaiting)
	}
	run(t, "rm", "-r", data)
	run(t, "mv", copied, data)
	one.give(node.Order{Role: node.RolePrimary})
	one.await(node.StateRunning)
	one.mustSQL("insert into t values (-1)")
	two.give(node.Order{Role: node.RoleStandby, LeaderDir: one.dataDir()})
	if s := two.await(node.StateRefused); s.Diverged() == "" || two.locked() {
		t.Errorf("status %+v", s)
	}
}

// Two nodes were promoted from one timeline, each for itself, and lead timelines of one
// number. pg_rewind would find nothing to do.
func TestTwoPromotionsToOneTimeline(t *testing.T) {
	p := newPair(t)
	one, two := p.both()
	one.mustSQL("create table t as select generate_series(1, 5) i")
	for _, n := range []*testNode{two, one} { // neither sees what the other does
		n.other().give(node.Order{Role: node.RoleNone})
		n.other().await(node.StateWaiting)
		n.give(node.Order{Role: node.RoleStandby})
		n.await(node.StateRunning)
		n.mustSQL("select pg_promote(true)")
		n.mustSQL("checkpoint; insert into t values (" + n.name[4:] + ")")
	}
	if one, two := one.control().Timeline(), two.control().Timeline(); one != 2 || two != 2 {
		t.Fatalf("timelines %d and %d, want 2 twice", one, two)
	}
	one.give(node.Order{Role: node.RoleNone})
	one.await(node.StateWaiting)
	two.give(node.Order{Role: node.RolePrimary})
	two.await(node.StateRunning)
	two.recovers()
	one.rewindFrom(two.upstream())
	if s := one.await(node.StateRefused); s.Unfinished != "" {
		t.Errorf("a rewind: %+v", s)
	}
	one.give(node.Order{Role: node.RoleStandby, LeaderDir: two.dataDir()})
	if s := one.await(node.StateRefused); s.Diverged() == "" {
		t.Errorf("to follow: %+v", s)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}
