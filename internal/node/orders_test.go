package node_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"controld/internal/node"
	"controld/internal/pgcontrol"
	"controld/internal/wal"
)

// staysDown fails when a server runs on the node within a second. It looks at the lock,
// which a server holds, and an init that is about to start one.
func (n *testNode) staysDown(why string) {
	n.t.Helper()
	for range 100 {
		time.Sleep(10 * time.Millisecond)
		if n.locked() {
			n.t.Fatalf("%s: the lock is held; status %+v", why, n.status())
		}
	}
	if _, err := n.sql("select 1"); err == nil {
		n.t.Fatalf("%s: a server runs; status %+v", why, n.status())
	}
}

// postmaster is the postmaster's process in the container.
func (n *testNode) postmaster() string {
	n.t.Helper()
	return strconv.Itoa(n.status().PID)
}

// signal sends a signal to processes in the container.
func (n *testNode) signal(sig string, pids ...string) {
	n.t.Helper()
	docker(n.t, "exec", n.container, "sh", "-c", "kill -"+sig+" "+strings.Join(pids, " ")) // the shell's own kill
}

// backend finds a server process by what it does.
func (n *testNode) backend(what string) string {
	n.t.Helper()
	var pid string
	waitFor(n.t, what+" on "+n.name, func() bool {
		out, err := tryDocker("exec", n.container, "sh", "-c",
			`for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline 2>/dev/null | grep -q "^postgres: .*`+what+`" && basename $p; done; true`)
		pid = strings.TrimSpace(out)
		return err == nil && pid != "" && !strings.Contains(pid, "\n")
	}, nil)
	return pid
}

func TestNothingStartsWithoutAnOrder(t *testing.T) {
	p := newPair(t)
	one := p.lead()
	for _, tt := range []struct {
		name string
		make func() error
	}{
		{"none", func() error { one.give(node.Order{Role: node.RoleNone}); return nil }},
		{"empty", func() error { return os.WriteFile(filepath.Join(one.order, node.OrderFile), nil, 0o644) }},
		{"cut off", func() error {
			return os.WriteFile(filepath.Join(one.order, node.OrderFile), []byte(`{"epoch": 900, "role": "prim`), 0o644)
		}},
		{"missing", func() error { return os.Remove(filepath.Join(one.order, node.OrderFile)) }},
	} {
		if err := tt.make(); err != nil {
			t.Fatal(err)
		}
		one.kill()
		one.start()
		one.staysDown("order " + tt.name)
	}
	one.give(node.Order{Role: node.RolePrimary})
	one.await(node.StateRunning)
	one.recovers()
}

func TestAPrimarysOrderIsGoodForOneStart(t *testing.T) {
	p := newPair(t)
	one := p.lead()

	one.kill()
	one.start()
	if s := one.await(node.StateRefused); s.Error == "" {
		t.Errorf("refused without a reason: %+v", s)
	}
	one.staysDown("used order, container started by hand")
	one.give(node.Order{Role: node.RolePrimary})
	one.await(node.StateRunning)
	one.recovers()

	one.signal("KILL", one.postmaster())
	if s := one.await(node.StateEnded); !strings.Contains(s.Error, "signal 9") {
		t.Errorf("status %+v does not tell how the server ended", s)
	}
	waitFor(t, "the killed server's processes to end", func() bool { return !one.locked() }, nil)
	one.staysDown("postmaster killed under a used order")

	// An older epoch is no order.
	current := one.epoch
	one.epoch = 0
	one.give(node.Order{Role: node.RolePrimary})
	one.epoch = current
	one.staysDown("older epoch")
	one.kill()
	one.start()
	waitFor(t, "the refusal of an older epoch", func() bool { return one.status().State == node.StateRefused }, nil)
	one.staysDown("older epoch, container started by hand")

	one.give(node.Order{Role: node.RolePrimary})
	one.await(node.StateRunning)
	one.recovers()
}

// A container's end at any moment after an order leaves what the order allows.
func TestInitKilledAfterAnOrder(t *testing.T) {
	p := newPair(t)
	one, two := p.both()
	for _, after := range []time.Duration{0, 10, 30, 60, 120} {
		after *= time.Millisecond
		cut := func(n *testNode, o node.Order) {
			n.give(o)
			time.Sleep(after)
			n.kill()
			n.start()
		}
		cut(two, node.Order{Role: node.RoleNone})
		two.await(node.StateWaiting)
		two.staysDown(fmt.Sprintf("order none, killed after %v", after))

		cut(two, node.Order{Role: node.RoleStandby})
		two.await(node.StateRunning)
		if got := two.recovers(); got != "t" {
			t.Fatalf("standby's order, killed after %v: in recovery %s", after, got)
		}

		cut(one, node.Order{Role: node.RoleNone})
		one.await(node.StateWaiting)
		// Killed before the order was used, the server starts. Killed after, it is
		// refused. Never is the order used twice.
		cut(one, node.Order{Role: node.RolePrimary})
		waitFor(t, "a start or a refusal", func() bool {
			s := one.status()
			return s.Epoch == one.epoch && (s.State == node.StateRefused || s.State == node.StateRunning)
		}, nil)
		if s := one.status(); s.UsedEpoch != one.epoch {
			t.Fatalf("primary's order, killed after %v: %+v", after, s)
		}
		one.give(node.Order{Role: node.RolePrimary})
		one.await(node.StateRunning)
		if got := one.recovers(); got != "f" {
			t.Fatalf("new epoch after a kill after %v: in recovery %s", after, got)
		}
	}
}

// Orders that follow each other faster than a server starts or stops: the last
// one wins.
func TestTheLastOrderWins(t *testing.T) {
	p := newPair(t)
	one, two := p.both()
	primary, standby, none := node.Order{Role: node.RolePrimary}, node.Order{Role: node.RoleStandby}, node.Order{Role: node.RoleNone}
	for _, pause := range []time.Duration{0, 5 * time.Millisecond, 40 * time.Millisecond, 150 * time.Millisecond} {
		for _, seq := range [][]node.Order{
			{none, primary},
			{none, primary, none},
			{primary, none, primary, none, primary},
		} {
			for i, o := range seq {
				if i > 0 {
					time.Sleep(pause)
				}
				one.give(o)
			}
			if seq[len(seq)-1].Role == node.RoleNone {
				one.await(node.StateWaiting)
				one.staysDown("last order none")
				continue
			}
			one.await(node.StateRunning)
			if got := one.recovers(); got != "f" {
				t.Fatalf("%v every %v: in recovery %s", seq, pause, got)
			}
		}
		for _, o := range []node.Order{none, standby, none, standby} {
			two.give(o)
			time.Sleep(pause)
		}
		two.await(node.StateRunning)
		if got := two.recovers(); got != "t" {
			t.Fatalf("standby's orders every %v: in recovery %s", pause, got)
		}
	}
}

func TestASecondContainerOnTheVolumeIsRefused(t *testing.T) {
	p := newPair(t)
	one := p.lead()
	intruder := one.container + "-second"
	t.Cleanup(func() { _, _ = tryDocker("rm", "-f", "-v", intruder) })
	// The second container has a copy of the order that nobody has used.
	order := t.TempDir()
	docker(t, "run", "--rm", "-v", one.order+":/from:ro", "-v", order+":/to", "--entrypoint", "cp", image(), "-r", "/from/.", "/to/")
	args := one.runArgs(intruder)
	for i, a := range args {
		if a == one.order+":/order:ro" {
			args[i] = order + ":/order:ro"
		}
	}
	if err := node.WriteOrder(order, node.Order{Epoch: one.epoch + 1, Role: node.RolePrimary, Action: node.ActionNone}); err != nil {
		t.Fatal(err)
	}
	docker(t, args...)
	waitFor(t, "the refusal", func() bool {
		s := one.status()
		return s.State == node.StateRefused && strings.Contains(s.Error, "lock")
	}, nil)
	if got := one.recovers(); got != "f" {
		t.Errorf("the first server in recovery: %s", got)
	}
}

// After a kill the lock files of the socket stay. The process id in them can be anybody's
// by then.
func TestStaleFilesDoNotStopAStart(t *testing.T) {
	p := newPair(t)
	one := p.lead()
	one.kill()
	for _, path := range []string{"data/postmaster.pid", "run/.s.PGSQL.5432.lock"} {
		path = filepath.Join(one.dir, path)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), "\n")
		if err := os.WriteFile(path, []byte("1\n"+rest), 0o600); err != nil { // the init's own
			t.Fatal(err)
		}
	}
	one.start()
	one.give(node.Order{Role: node.RolePrimary})
	one.await(node.StateRunning)
	one.recovers()
}

func TestFrozenProcessesKeepTheLock(t *testing.T) {
	p := newPair(t)
	one := p.lead()
	docker(t, "pause", one.container)
	held := one.locked()
	docker(t, "unpause", one.container)
	if !held {
		t.Error("a paused container's lock is free")
	}
	// One frozen backend alone, its postmaster killed.
	checkpointer := one.backend("checkpointer")
	one.signal("STOP", checkpointer)
	one.signal("KILL", one.postmaster())
	one.await(node.StateEnded)
	time.Sleep(500 * time.Millisecond)
	if !one.locked() {
		t.Fatal("the lock is free while a frozen process of the server is left")
	}
	one.give(node.Order{Role: node.RolePrimary})
	time.Sleep(500 * time.Millisecond)
	if s := one.status(); s.State == node.StateRunning {
		t.Fatalf("a server was started beside a frozen one: %+v", s)
	}
	one.signal("KILL", checkpointer)
	one.await(node.StateRunning)
	one.recovers()
}

func TestTestsOfTheLockNeverStopAStart(t *testing.T) {
	p := newPair(t)
	one := p.lead()
	stop := make(chan struct{})
	done := make(chan error, 2)
	for range cap(done) {
		go func() {
			for {
				select {
				case <-stop:
					done <- nil
					return
				case <-time.After(50 * time.Microsecond):
				}
				if _, err := node.Locked(one.dir); err != nil {
					done <- err
					return
				}
			}
		}()
	}
	for range 10 {
		one.give(node.Order{Role: node.RoleNone})
		one.await(node.StateWaiting)
		one.give(node.Order{Role: node.RolePrimary})
		one.await(node.StateRunning)
	}
	close(stop)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// As pid 1 the init is given every orphan of the container.
func TestOrphansAreReaped(t *testing.T) {
	p := newPair(t)
	one := p.nodes[0]
	one.run()
	docker(t, "exec", one.container, "sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.1 &); done")
	time.Sleep(200 * time.Millisecond)
	waitFor(t, "the orphans to be reaped", func() bool {
		out := docker(t, "exec", one.container, "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true")
		return !strings.Contains(out, ") Z 1 ") && !strings.Contains(out, "(sleep)")
	}, nil)
}

func TestStopFromOutside(t *testing.T) {
	p := newPair(t)
	one := p.lead()
	began := time.Now()
	docker(t, "stop", one.container)
	t.Logf("docker stop: %v", time.Since(began))
	if code := docker(t, "inspect", "-f", "{{.State.ExitCode}}", one.container); code != "0" {
		t.Errorf("exit code %s", code)
	}
	if s := one.control().State; s != pgcontrol.StateShutDown {
		t.Errorf("control file says %s", s)
	}
}

// A planned failover there and back, with nothing but orders and pg_promote.
func TestPlannedThereAndBack(t *testing.T) {
	p := newPair(t)
	one, two := p.both()
	one.mustSQL("create table t (i int); insert into t values (1)")
	from, to := one, two
	nudged := false
	for round := range 2 {
		began := time.Now()
		from.give(node.Order{Role: node.RoleNone})
		var signalled, down time.Duration
		for from.control().State != pgcontrol.StateShutDown {
			if signalled == 0 && from.status().State == node.StateStopping {
				signalled = time.Since(began)
			}
			time.Sleep(time.Millisecond)
		}
		down = time.Since(began)
		from.await(node.StateWaiting)
		nudged = nudged || strings.Contains(docker(t, "logs", from.container), "checkpointer nudged")
		to.mustSQL("select pg_promote(true)")
		pid := to.status().PID
		to.give(node.Order{Role: node.RolePrimary})
		if s := to.await(node.StateRunning); s.PID != pid || s.UsedEpoch != to.epoch {
			t.Fatalf("an order to lead restarted a running server, or was not used: %+v", s)
		}
		waitFor(t, "the status to show the promotion", func() bool { return to.status().Role == node.RolePrimary }, nil)
		ordered := time.Now()
		from.give(node.Order{Role: node.RoleStandby})
		from.await(node.StateRunning)
		started := time.Since(ordered)
		p.awaitStreaming(to)
		t.Logf("round %d: order to report of the signal %v, to shut down %v; standby's order to started %v, to streaming %v",
			round, signalled, down, started, time.Since(ordered))
		from, to = to, from
	}
	if !nudged { // on a busy machine once may be too late
		t.Error("the checkpointer was found in neither stop")
	}
	// The one that was started as a standby and leads since: stop, then standby.
	from.give(node.Order{Role: node.RoleNone})
	from.await(node.StateWaiting)
	to.mustSQL("select pg_promote(true)")
	from.give(node.Order{Role: node.RoleStandby})
	from.await(node.StateRunning)
	to.give(node.Order{Role: node.RoleStandby})
	waitFor(t, "the promoted node to be a standby again", func() bool {
		s := to.status()
		return s.Epoch == to.epoch && s.State == node.StateRunning && s.Role == node.RoleStandby
	}, nil)
	if got := to.recovers(); got != "t" {
		t.Errorf("ordered to be a standby, it leads: in recovery %s", got)
	}
	if err := tryWrite(to); err == nil {
		t.Error("a standby took a write")
	}
}

func tryWrite(n *testNode) error {
	_, err := n.sql("insert into t values (99)")
	return err
}

// A failover was undone: the primary that is stopping waits for ever for a frozen standby,
// and is wanted again.
func TestAStoppingServerThatIsWantedAgain(t *testing.T) {
	p := newPair(t)
	one, two := p.both()
	receiver := two.backend("walreceiver")
	two.signal("STOP", receiver)
	defer two.signal("CONT", receiver)
	// This is little enough for the buffers of the connection: the walsender has sent
	// it all and waits for the answer.
	one.mustSQL("create table t as select generate_series(1, 100) i")
	one.give(node.Order{Role: node.RoleNone})
	waitFor(t, "pg_control to say shut down", func() bool { return one.control().State == pgcontrol.StateShutDown }, nil)
	time.Sleep(300 * time.Millisecond)
	if !one.locked() {
		t.Fatal("the stopping primary did not wait for the frozen standby")
	}
	began := time.Now()
	one.give(node.Order{Role: node.RolePrimary})
	one.await(node.StateRunning)
	if got := one.mustSQL("select count(*) from t"); got != "100" {
		t.Errorf("%s rows", got)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("it led again after %v", took)
	} else {
		t.Logf("it led again after %v", took)
	}
}

// What the standby never received is fetched from the dead primary's volume.
func TestSalvage(t *testing.T) {
	p := newPair(t)
	one, two := p.both()
	one.mustSQL("create table t as select generate_series(1, 1000) i")
	waitFor(t, "the standby to follow", func() bool {
		out, err := two.sql("select count(*) from t")
		return err == nil && out == "1000"
	}, nil)
	receiver := two.backend("walreceiver")
	two.signal("STOP", receiver)
	one.mustSQL("insert into t select generate_series(1, 300000)")
	one.give(node.Order{Role: node.RoleNone})
	one.kill()
	if one.locked() {
		t.Fatal("dead, and its lock is held")
	}

	from := two.mustSQL("select least(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())")
	lsn, err := wal.ParseLSN(from)
	if err != nil {
		t.Fatal(err)
	}
	order := node.Order{Role: node.RoleStandby, Action: node.ActionSalvage, Salvage: &node.Salvage{
		DataDir: "/pg/node1/data", FromLSN: lsn, FromTimeline: one.control().CheckpointTimeline, SegmentBytes: clusterBytes,
	}}
	began := time.Now()
	two.give(order)
	waitFor(t, "the salvage", func() bool { s := two.status().Salvaged; return s != nil && s.Epoch == two.epoch }, nil)
	s := *two.status().Salvaged
	t.Logf("salvage %+v in %v", s, time.Since(began))
	if s.Error != "" || s.Files < 2 || s.Bytes != int64(s.Files)*clusterBytes {
		t.Fatalf("salvage %+v", s)
	}
	two.give(order) // again: nothing is left to do
	waitFor(t, "the second salvage", func() bool { s := two.status().Salvaged; return s.Epoch == two.epoch }, nil)
	if s := *two.status().Salvaged; s.Error != "" || s.Files != 0 {
		t.Errorf("second salvage %+v", s)
	}
	two.signal("CONT", receiver)
	two.mustSQL("select pg_promote(true)")
	two.give(node.Order{Role: node.RolePrimary})
	if got := two.mustSQL("select count(*) from t"); got != "301000" {
		t.Errorf("%s rows after the salvage, want 301000", got)
	}
	// The old one follows without a rewind.
	one.start()
	one.give(node.Order{Role: node.RoleStandby})
	one.await(node.StateRunning)
	p.awaitStreaming(two)
	const sum = "select count(*), sum(hashtext(i::text)::bigint) from t"
	want := two.mustSQL(sum)
	waitFor(t, "the same rows on both nodes", func() bool { out, err := one.sql(sum); return err == nil && out == want }, nil)
}

// diverge makes node 1 an old primary with WAL that node 2, which leads now, never had.
// Node 1's container is started again, and has no order yet.
func (p *pair) diverge() (one, two *testNode) {
	t := p.t
	t.Helper()
	one, two = p.both()
	one.mustSQL("create table t as select generate_series(1, 1000) i")
	waitFor(t, "the standby to follow", func() bool {
		out, err := two.sql("select count(*) from t")
		return err == nil && out == "1000"
	}, nil)
	two.give(node.Order{Role: node.RoleNone})
	two.await(node.StateWaiting)
	one.mustSQL("insert into t select generate_series(1, 1000)") // lost: no salvage
	one.give(node.Order{Role: node.RoleNone})
	one.kill()
	two.give(node.Order{Role: node.RoleStandby})
	two.await(node.StateRunning)
	two.mustSQL("select pg_promote(true)")
	two.give(node.Order{Role: node.RolePrimary})
	two.mustSQL("checkpoint; insert into t values (0)")
	one.start()
	return one, two
}

// rewindFrom orders a rewind with u as the upstream.
func (n *testNode) rewindFrom(u *node.Upstream) {
	n.give(node.Order{Role: node.RoleStandby, Action: node.ActionRewind, Upstream: u, LeaderDir: n.other().dataDir()})
}

// A rewind takes back what was written past the fork, once.
func TestRewind(t *testing.T) {
	p := newPair(t)
	one, two := p.diverge()
	one.rewindFrom(two.upstream())
	one.await(node.StateRunning)
	p.awaitStreaming(two)
	waitFor(t, "the rewound node to follow", func() bool {
		out, err := one.sql("select count(*) from t")
		return err == nil && out == "1001"
	}, func() string { out, err := one.sql("select count(*) from t"); return fmt.Sprint(out, err) })
	// The same order again, after a container's start: it is not rewound again.
	one.kill()
	one.start()
	one.await(node.StateRunning)
	if got := one.recovers(); got != "t" {
		t.Errorf("in recovery %s", got)
	}
	// What follows has nothing to take back, and is not touched.
	one.rewindFrom(two.upstream())
	if s := one.await(node.StateRefused); s.Unfinished != "" || !strings.Contains(s.Error, "nothing to take back") {
		t.Errorf("status %+v of a rewind of what follows", s)
	}
}

// What a rewind that failed leaves, and what clears its marker.
func TestRewindAndItsMarker(t *testing.T) {
	p := newPair(t)
	one, two := p.diverge()
	one.rewindFrom(&node.Upstream{Host: "nobody.invalid", Port: 5432})
	if s := one.await(node.StateFailed); s.Unfinished != "" || !strings.Contains(s.Error, "nobody.invalid") {
		t.Errorf("status %+v of a rewind without an upstream", s)
	}
	docker(t, "exec", two.container, "psql", "-h", "/pg/node2/run", "-U", "root", "-d", "postgres", "-Xqc",
		"revoke execute on function pg_read_binary_file(text) from rewind")
	one.rewindFrom(two.upstream())
	if s := one.await(node.StateFailed); s.Unfinished != node.ActionRewind || !strings.Contains(s.Error, "pg_read_binary_file") {
		t.Errorf("status %+v of a rewind that failed half-way", s)
	}
	for _, o := range []node.Order{
		{Role: node.RolePrimary},
		{Role: node.RoleStandby},
		{Role: node.RolePrimary, Action: node.ActionInitDB},
		{Role: node.RoleStandby, Action: node.ActionRewind, Upstream: two.upstream()},
	} {
		one.give(o)
		if s := one.await(node.StateRefused); !strings.Contains(s.Error, "unfinished rewind") {
			t.Errorf("order %+v with a marker: %+v", o, s)
		}
	}
	two.mustSQL("select pg_create_physical_replication_slot('node1', true)")
	one.give(node.Order{
		Role:      node.RoleStandby,
		Action:    node.ActionBaseBackup,
		Upstream:  two.upstream(),
		Slot:      "node1",
		LeaderDir: two.dataDir(),
	})
	if s := one.await(node.StateRunning); s.Unfinished != "" {
		t.Errorf("status %+v after the base backup", s)
	}
	p.awaitStreaming(two)

	one.give(node.Order{Role: node.RolePrimary, Action: node.ActionInitDB})
	if s := one.await(node.StateRefused); s.Role != node.RoleStandby || s.PID == 0 {
		t.Errorf("initdb ordered over a running standby: %+v", s)
	}
	one.give(node.Order{Role: node.RoleNone})
	one.await(node.StateWaiting)
	one.give(node.Order{Role: node.RolePrimary, Action: node.ActionInitDB})
	if s := one.await(node.StateRefused); !strings.Contains(s.Error, "empty data directory") {
		t.Errorf("initdb over a cluster: %+v", s)
	}
}

// An initdb that is cut off begins again under the same order; an order that
// comes while a base backup runs ends it.
func TestActionsCutOff(t *testing.T) {
	p := newPair(t)
	one, two := p.nodes[0], p.nodes[1]
	begun := time.Now() // before the container's start: a file's time can lag by milliseconds
	one.run()
	one.give(node.Order{Role: node.RolePrimary, Action: node.ActionInitDB})
	// The marker is there before initdb is; pg_control is an early file of its.
	for _, name := range []string{node.UnfinishedFile, filepath.Join(node.DataDir, "global", "pg_control")} {
		waitFor(t, "initdb to write "+name, func() bool {
			info, err := os.Stat(filepath.Join(one.dir, name))
			return err == nil && info.ModTime().After(begun)
		}, nil)
		one.kill()
		if s := one.status(); s.Unfinished != node.ActionInitDB {
			t.Fatalf("initdb was over before the node was killed: %+v", s)
		}
		begun = time.Now()
		one.start()
	}
	one.await(node.StateRunning)
	one.recovers()

	two.run()
	two.give(node.Order{Role: node.RoleStandby, Action: node.ActionBaseBackup, Upstream: one.upstream()})
	waitFor(t, "the base backup to begin", func() bool { return two.status().State == node.StateWorking }, nil)
	two.give(node.Order{Role: node.RoleNone})
	s := two.await(node.StateWaiting)
	if s.Unfinished != node.ActionBaseBackup {
		t.Logf("the base backup had ended before it was withdrawn: %+v", s)
	}
	if two.locked() {
		t.Error("the lock is held after a withdrawn base backup")
	}
	two.give(node.Order{Role: node.RoleStandby, Action: node.ActionBaseBackup, Upstream: one.upstream()})
	two.await(node.StateRunning)
	p.awaitStreaming(one)
}

// A half-made timeline of an undone promotion goes before the next start.
func TestDiscard(t *testing.T) {
	p := newPair(t)
	one, two := p.both()
	walDir := filepath.Join(two.dir, "data", "pg_wal")
	segment := wal.SegmentName(2, two.control().Checkpoint.Segment(clusterBytes), clusterBytes)
	for _, name := range []string{"00000002.history", segment} {
		if err := os.WriteFile(filepath.Join(walDir, name), []byte("1\t0/1\thalf made\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	two.give(node.Order{Role: node.RoleStandby, Action: node.ActionDiscard, DiscardTimeline: 2})
	two.await(node.StateRunning)
	p.awaitStreaming(one)
	for _, name := range []string{"00000002.history", segment} {
		if _, err := os.Stat(filepath.Join(walDir, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	// Not what the node leads on.
	one.give(node.Order{Role: node.RoleNone})
	one.await(node.StateWaiting)
	two.mustSQL("select pg_promote(true); checkpoint")
	two.give(node.Order{Role: node.RoleStandby, Action: node.ActionDiscard, DiscardTimeline: 2})
	if s := two.await(node.StateRefused); s.PID == 0 || s.Role != node.RolePrimary {
		t.Errorf("status %+v", s)
	}
	if got := two.recovers(); got != "f" {
		t.Error("the new primary was stopped for an order that is refused")
	}
	if _, err := os.Stat(filepath.Join(walDir, "00000002.history")); err != nil {
		t.Error(err)
	}
}
