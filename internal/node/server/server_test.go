package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"controld/internal/node"
	"controld/internal/pgcontrol"
)

var (
	primary = node.Order{Role: node.RolePrimary}
	standby = node.Order{Role: node.RoleStandby}
	none    = node.Order{Role: node.RoleNone}
	backup  = node.Order{Role: node.RoleStandby, Action: node.ActionBaseBackup, Upstream: &node.Upstream{Host: "other", Port: 5432}}
	rewound = node.Order{
		Role:      node.RoleStandby,
		Action:    node.ActionRewind,
		Upstream:  &node.Upstream{Host: "other", Port: 5432},
		LeaderDir: "/other/data",
	}
)

func TestStartAndStopByOrder(t *testing.T) {
	b := newBench(t).withCluster()
	b.run()
	b.give(standby)
	if s := b.await(node.StateRunning); s.Role != node.RoleStandby || s.UsedEpoch != 0 || s.PID == 0 {
		t.Errorf("standby started: %+v", s)
	}
	b.awaitStarts(1)
	b.give(none)
	if s := b.await(node.StateWaiting); s.PID != 0 || s.Role != node.RoleNone {
		t.Errorf("stopped: %+v", s)
	}
	b.give(primary)
	if s := b.await(node.StateRunning); s.Role != node.RolePrimary || s.UsedEpoch != b.epoch {
		t.Errorf("primary started: %+v", s)
	}
	if got := b.awaitStarts(2); !slices.Equal(got, []string{"standby", "primary"}) {
		t.Errorf("starts %v", got)
	}
	b.end()
	if s := b.status(); s.State != node.StateWaiting || s.PID != 0 {
		t.Errorf("ended: %+v", s)
	}
	if held, err := node.Locked(b.cfg.NodeDir); held || err != nil {
		t.Errorf("locked %v %v after the end", held, err)
	}
}

// An order is never reported with what came of the order before it. Whoever waits for it
// would take that for its end.
func TestARefusalIsNotTheNextOrders(t *testing.T) {
	b := newBench(t).withCluster()
	b.run()
	b.give(primary)
	b.await(node.StateRunning)
	b.awaitStarts(1)
	b.end()
	b.run()
	for range 20 {
		b.await(node.StateRefused) // it was used
		b.give(primary)
		for s := b.status(); s.Epoch < b.epoch || s.State != node.StateRunning; s = b.status() {
			if s.Epoch == b.epoch && s.Error != "" {
				t.Fatalf("order %d: %+v", b.epoch, s)
			}
		}
		b.end()
		b.run()
	}
}

// What a container's start may do with the order that it finds.
func TestContainerStartUnderAnOldOrder(t *testing.T) {
	b := newBench(t).withCluster()
	b.run()
	b.give(standby)
	b.await(node.StateRunning)
	b.awaitStarts(1)
	b.end()
	b.run()
	b.awaitStarts(2) // a standby's order is good for any number
	b.give(primary)
	b.await(node.StateRunning) // adopted: no restart
	b.end()
	b.run()
	if s := b.await(node.StateRefused); !strings.Contains(s.Error, "used already") {
		t.Errorf("used order: %+v", s)
	}
	b.epoch = 0
	b.give(primary)
	b.end()
	b.run()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s := b.status()
		if s.State == node.StateRefused && strings.Contains(s.Error, "older") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("older order: %+v", s)
		}
	}
	if got := b.starts(); len(got) != 2 {
		t.Errorf("starts %v", got)
	}
}

func TestAServerThatEndsByItselfIsReported(t *testing.T) {
	b := newBench(t).withCluster()
	b.run()
	b.give(standby)
	s := b.await(node.StateRunning)
	b.awaitStarts(1)
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := b.await(node.StateEnded); !strings.Contains(s.Error, "signal 9") || s.PID != 0 {
		t.Errorf("ended: %+v", s)
	}
	time.Sleep(1200 * time.Millisecond) // a poll of the same order
	if got := b.starts(); len(got) != 1 {
		t.Errorf("starts %v: the init started it again by itself", got)
	}
	b.give(standby) // with a stale postmaster.pid
	b.await(node.StateRunning)
	b.awaitStarts(2)
}

func TestAPromotedStandbyIsStoppedBeforeItFollows(t *testing.T) {
	b := newBench(t).withCluster()
	b.run()
	b.give(standby)
	pid := b.await(node.StateRunning).PID
	b.awaitStarts(1)
	b.give(standby)
	if s := b.await(node.StateRunning); s.PID != pid {
		t.Errorf("a standby's order restarted a standby")
	}
	if err := os.Remove(filepath.Join(b.cfg.dataDir(), standbySignal)); err != nil { // promoted by SQL
		t.Fatal(err)
	}
	b.give(standby)
	if got := b.awaitStarts(2); got[1] != "standby" {
		t.Errorf("starts %v", got)
	}
	if s := b.await(node.StateRunning); s.PID == pid {
		t.Error("the leader was left running")
	}
}

// A resumed operation may order what is too late: a leader is not stopped for it.
func TestASalvageForALeaderIsRefused(t *testing.T) {
	b := newBench(t).withCluster()
	b.run()
	b.give(standby)
	pid := b.await(node.StateRunning).PID
	b.awaitStarts(1)
	if err := os.Remove(filepath.Join(b.cfg.dataDir(), standbySignal)); err != nil { // promoted by SQL
		t.Fatal(err)
	}
	b.give(node.Order{
		Role:    node.RoleStandby,
		Action:  node.ActionSalvage,
		Salvage: &node.Salvage{DataDir: b.cfg.dataDir(), SegmentBytes: 1},
	})
	s := b.await(node.StateRefused)
	if s.PID != pid || s.Role != node.RolePrimary || s.Salvaged == nil || s.Salvaged.Epoch != b.epoch || s.Salvaged.Error == "" {
		t.Errorf("status %+v", s)
	}
	b.give(primary)
	if s := b.await(node.StateRunning); s.PID != pid || s.UsedEpoch != b.epoch {
		t.Errorf("status %+v", s)
	}
}

func TestAWithdrawalBeforeTheStartWins(t *testing.T) {
	b := newBench(t).withCluster()
	held := b.hold()
	defer held.Close()
	b.run()
	b.give(primary)
	time.Sleep(50 * time.Millisecond) // it waits for the lock
	b.give(none)
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if s := b.await(node.StateWaiting); s.UsedEpoch != 0 {
		t.Errorf("the withdrawn order was used: %+v", s)
	}
	if got := b.starts(); len(got) != 0 {
		t.Errorf("starts %v", got)
	}
}

// The withdrawal may be on disk before its event has come.
func TestTheOrderIsReadAgainUnderTheLock(t *testing.T) {
	b := newBench(t).withCluster()
	n := New(b.cfg, nil, nil)
	b.give(primary)
	o, err := node.ReadOrder(b.cfg.OrderDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.stillOrdered(t.Context(), o); err != nil {
		t.Errorf("the same order: %v", err)
	}
	b.give(none)
	if err := n.stillOrdered(t.Context(), o); err == nil {
		t.Error("a withdrawn order is still carried out")
	}
	b.epoch = 0
	b.give(none)
	if err := n.stillOrdered(t.Context(), o); err == nil {
		t.Error("an order that was overwritten under its epoch is still carried out")
	}
	if err := os.WriteFile(filepath.Join(b.cfg.OrderDir, node.OrderFile), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.stillOrdered(t.Context(), o); err == nil {
		t.Error("an order that is not there any more is still carried out")
	}
}

func TestALockThatIsHeldForGoodIsARefusal(t *testing.T) {
	b := newBench(t).withCluster()
	b.cfg.LockWait = 100 * time.Millisecond
	held := b.hold()
	defer held.Close()
	b.run()
	b.give(primary)
	if s := b.await(node.StateRefused); !strings.Contains(s.Error, "lock") || s.UsedEpoch != 0 {
		t.Errorf("status %+v", s)
	}
}

// A server that is shut down and waits for a frozen standby is ended when it is
// wanted again, by SIGQUIT and then by SIGKILL; otherwise it is left alone.
func TestAStoppedServerThatHangs(t *testing.T) {
	for _, hang := range []string{quitFile, hangFile} {
		t.Run(hang, func(t *testing.T) {
			b := newBench(t).withCluster()
			b.run()
			b.give(primary)
			b.await(node.StateRunning)
			b.awaitStarts(1)
			b.put(hang)
			b.give(none)
			b.await(node.StateStopping)
			time.Sleep(500 * time.Millisecond)
			if s := b.status(); s.State != node.StateStopping {
				t.Fatalf("nobody wants it, and it was not left alone: %+v", s)
			}
			b.give(primary)
			b.awaitStarts(2)
			b.await(node.StateRunning)
			b.remove(hang)
		})
	}
}

// A checkpointer that sleeps while its server stops is woken.
func TestACheckpointerIsNudged(t *testing.T) {
	b := newBench(t).withCluster()
	b.put(sleepFile)
	b.run()
	b.give(primary)
	b.await(node.StateRunning)
	b.awaitStarts(1)
	b.give(none)
	b.await(node.StateWaiting)
}

func TestOrdersWhileAServerStops(t *testing.T) {
	b := newBench(t).withCluster()
	b.cfg.StopGrace = time.Hour
	b.run()
	b.give(primary)
	b.await(node.StateRunning)
	b.awaitStarts(1)
	b.put(quitFile)
	b.give(none)
	s := b.await(node.StateStopping)
	b.give(primary)
	b.give(none)
	b.give(standby) // the last one
	time.Sleep(100 * time.Millisecond)
	if err := syscall.Kill(s.PID, syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	if got := b.awaitStarts(2); !slices.Equal(got, []string{"primary", "standby"}) {
		t.Errorf("starts %v", got)
	}
	if s := b.await(node.StateRunning); s.UsedEpoch != 1 {
		t.Errorf("an order that was never carried out is used: %+v", s)
	}
	b.remove(quitFile)
}

func TestAnActionIsKilledWhenTheOrderChanges(t *testing.T) {
	b := newBench(t)
	b.full()
	b.run()
	b.put(toolHangFile)
	b.give(backup)
	b.await(node.StateWorking)
	for !exists(filepath.Join(b.cfg.dataDir(), "begun")) {
		time.Sleep(time.Millisecond)
	}
	began := time.Now()
	b.give(none)
	if s := b.await(node.StateWaiting); s.Unfinished != node.ActionBaseBackup {
		t.Errorf("status %+v", s)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
	for deadline := time.Now().Add(time.Second); ; time.Sleep(5 * time.Millisecond) {
		held, err := node.Locked(b.cfg.NodeDir)
		if err != nil {
			t.Fatal(err)
		}
		if !held {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a process of the killed action is left")
		}
	}
	b.give(primary)
	if s := b.await(node.StateRefused); !strings.Contains(s.Error, "unfinished basebackup") {
		t.Errorf("a node with a marker: %+v", s)
	}
	b.remove(toolHangFile)
	b.give(backup)
	if s := b.await(node.StateRunning); s.Unfinished != "" || s.ActionEpoch != b.epoch {
		t.Errorf("status %+v", s)
	}
	if got := b.awaitStarts(1); got[0] != "standby" {
		t.Errorf("starts %v", got)
	}
	if exists(filepath.Join(b.cfg.NodeDir, node.UnfinishedFile)) {
		t.Error("the marker is left")
	}
}

func TestAnActionIsNotRepeatedAtTheNextStart(t *testing.T) {
	b := newBench(t)
	b.run()
	b.give(backup)
	b.await(node.StateRunning)
	b.awaitStarts(1)
	keep := filepath.Join(b.cfg.dataDir(), "written-since")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.end()
	// Stopped between the note that it is done and the marker's removal.
	if err := os.WriteFile(filepath.Join(b.cfg.NodeDir, node.UnfinishedFile), []byte("basebackup\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.run()
	b.awaitStarts(2)
	b.await(node.StateRunning)
	if !exists(keep) {
		t.Error("the data directory was overwritten again")
	}
	if s := b.status(); s.Unfinished != "" || exists(filepath.Join(b.cfg.NodeDir, node.UnfinishedFile)) {
		t.Errorf("marker left: %+v", s)
	}
}

func TestAFailedActionSaysWhy(t *testing.T) {
	b := newBench(t).withCluster()
	b.run()
	b.put(toolFailFile)
	b.give(rewound)
	s := b.await(node.StateFailed)
	for _, want := range []string{"pg_rewind", "exit code 1", "line two", "the reason"} {
		if !strings.Contains(s.Error, want) {
			t.Errorf("error %q does not say %q", s.Error, want)
		}
	}
	if s.Unfinished != node.ActionRewind {
		t.Errorf("status %+v: the marker must stay", s)
	}
	args, err := os.ReadFile(filepath.Join(b.cfg.NodeDir, "args"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(args), "secret-of-") {
		t.Error("a password stands in the process list")
	}
	b.end()
	b.run()
	if s := b.await(node.StateRefused); s.Unfinished != node.ActionRewind {
		t.Errorf("the same order after a container's start: %+v", s)
	}
	if got := b.starts(); len(got) != 0 {
		t.Errorf("starts %v", got)
	}
}

func TestDataDirectoriesThatAreNotStarted(t *testing.T) {
	initdb := node.Order{Role: node.RolePrimary, Action: node.ActionInitDB}
	for _, tt := range []struct {
		name  string
		bench func(*testing.T) *bench
		order node.Order
		want  string
	}{
		{"standby without a cluster", newBench, standby, "nothing to start"},
		{"primary without a cluster", newBench, primary, "nothing to start"},
		{"rewind without a cluster", newBench, rewound, "nothing to start"},
		{"initdb over a cluster", func(t *testing.T) *bench { return newBench(t).withCluster() }, initdb, "empty data directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.bench(t)
			b.run()
			b.give(tt.order)
			if s := b.await(node.StateRefused); !strings.Contains(s.Error, tt.want) || s.UsedEpoch != 0 {
				t.Errorf("status %+v, want %q", s, tt.want)
			}
		})
	}
}

// Without its status a node does not know which order to lead was used.
func TestAnUnreadableStatusUsesUpTheOrder(t *testing.T) {
	b := newBench(t).withCluster()
	b.give(primary)
	if err := os.WriteFile(filepath.Join(b.cfg.NodeDir, node.StatusFile), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.run()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if s, err := node.ReadStatus(b.cfg.NodeDir); err == nil && s.State == node.StateRefused {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not refused")
		}
	}
	b.give(primary)
	b.await(node.StateRunning)
}

func TestDiscardRemovesLaterTimelines(t *testing.T) {
	b := newBench(t).withCluster()
	walDir := filepath.Join(b.cfg.dataDir(), "pg_wal")
	gone := []string{
		"00000002.history",
		"000000020000000000000004",
		"archive_status/00000002.history.ready",
		"archive_status/000000020000000000000004.done",
		"00000003.history",
	}
	kept := []string{
		"000000010000000000000004",
		"000000010000000000000003.partial",
		"archive_status/000000010000000000000003.done",
		"xlogtemp.12",
	}
	for _, name := range append(slices.Clone(gone), kept...) {
		if err := os.WriteFile(filepath.Join(walDir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.run()
	b.give(node.Order{Role: node.RoleStandby, Action: node.ActionDiscard, DiscardTimeline: 2})
	b.await(node.StateRunning)
	for _, name := range gone {
		if exists(filepath.Join(walDir, name)) {
			t.Errorf("%s is left", name)
		}
	}
	for _, name := range kept {
		if !exists(filepath.Join(walDir, name)) {
			t.Errorf("%s is gone", name)
		}
	}
}

func TestPgpass(t *testing.T) {
	b := newBench(t)
	if err := os.WriteFile(filepath.Join(b.cfg.SecretsDir, "role_rewind"), []byte(`a:b\c`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.run()
	path := filepath.Join(b.cfg.OwnSecretsDir, pgpassFile)
	for !exists(path) {
		time.Sleep(time.Millisecond)
	}
	got, err := os.ReadFile(path)
	want := "*:*:*:replicator:secret-of-replicator\n*:*:*:rewind:a\\:b\\\\c\n"
	if err != nil || string(got) != want {
		t.Errorf("pgpass %q, %v; want %q", got, err, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// An upstream that does not answer must not cost the node its data.
func TestNothingIsOverwrittenWithoutAnUpstream(t *testing.T) {
	for _, o := range []node.Order{backup, rewound} {
		b := newBench(t).withCluster()
		b.cfg.Reach = func(context.Context, string) error { return errors.New("no route to host") }
		b.run()
		b.give(o)
		s := b.await(node.StateFailed)
		if !strings.Contains(s.Error, "nothing was overwritten") || !strings.Contains(s.Error, "no route to host") {
			t.Errorf("%s: error %q", o.Action, s.Error)
		}
		if s.Unfinished != "" || exists(filepath.Join(b.cfg.NodeDir, node.UnfinishedFile)) {
			t.Errorf("%s: a marker was left: %+v", o.Action, s)
		}
		if _, err := pgcontrol.Read(b.cfg.dataDir()); err != nil {
			t.Errorf("%s: the data is gone: %v", o.Action, err)
		}
	}
}
