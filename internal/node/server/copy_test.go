package server

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"controld/internal/node"
)

// full leaves no room for a copy beside the data.
func (b *bench) full() {
	b.cfg.Space = func(string) (int64, int64, error) { return 100, 1 << 41, nil }
}

// keep puts a file into the data directory, by which that is known again.
func (b *bench) keep() (kept func() bool) {
	b.t.Helper()
	path := filepath.Join(b.cfg.dataDir(), "kept")
	if err := os.WriteFile(path, make([]byte, 1000), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return func() bool { return exists(path) }
}

func (b *bench) noCopyIsLeft() {
	b.t.Helper()
	for _, name := range []string{node.NewDataDir, node.OldDataDir, node.UnfinishedFile} {
		if exists(filepath.Join(b.cfg.NodeDir, name)) {
			b.t.Errorf("%s is left", name)
		}
	}
}

// A copy that fails, or that is given up, costs nothing; one that succeeds takes
// the place of the data.
func TestACopyIsMadeBesideTheData(t *testing.T) {
	b := newBench(t).withCluster()
	kept := b.keep()
	b.run()
	b.put(toolFailFile)
	b.give(backup)
	if s := b.await(node.StateFailed); s.Unfinished != "" || !strings.Contains(s.Error, "the reason") || !kept() {
		t.Errorf("a copy that failed: %+v, data kept %v", s, kept())
	}
	b.noCopyIsLeft()
	b.remove(toolFailFile)

	b.put(toolHangFile)
	b.give(backup)
	for !exists(filepath.Join(b.cfg.NodeDir, node.NewDataDir, "begun")) {
		time.Sleep(time.Millisecond)
	}
	b.give(standby)
	if s := b.await(node.StateRunning); s.Unfinished != "" || !kept() {
		t.Errorf("a copy that was given up: %+v, data kept %v", s, kept())
	}
	b.awaitStarts(1)
	b.noCopyIsLeft()
	b.remove(toolHangFile)

	b.give(backup)
	if s := b.await(node.StateRunning); s.Unfinished != "" || s.ActionEpoch != b.epoch || kept() {
		t.Errorf("a copy: %+v, old data kept %v", s, kept())
	}
	if got := b.awaitStarts(2); got[1] != "standby" {
		t.Errorf("starts %v", got)
	}
	b.noCopyIsLeft()
}

// Without room beside the data it goes first; without room at all it stays.
func TestACopyWithoutRoom(t *testing.T) {
	b := newBench(t).withCluster()
	b.full()
	kept := b.keep()
	leader := t.TempDir()
	if err := os.WriteFile(filepath.Join(leader, "base"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var free atomic.Int64
	free.Store(1<<20 - 1000) // with the present data's there is enough
	b.cfg.Space = func(string) (int64, int64, error) { return free.Load(), 1 << 41, nil }
	b.run()
	o := backup
	o.LeaderDir = leader
	b.put(toolFailFile)
	b.give(o)
	if s := b.await(node.StateFailed); s.Unfinished != node.ActionBaseBackup || kept() {
		t.Errorf("in place: %+v, kept %v", s, kept())
	}
	b.remove(toolFailFile)
	free.Store(1 << 20)
	b.give(o)
	b.await(node.StateRunning)
	kept = b.keep()

	if err := os.WriteFile(filepath.Join(leader, "more"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	b.give(o)
	if s := b.await(node.StateRefused); s.Unfinished != "" || !strings.Contains(s.Error, "no room") || !kept() {
		t.Errorf("no room: %+v, kept %v", s, kept())
	}
}

// Tablespaces have no place on another node, so they cannot be copied. That is found out
// before anything is touched.
func TestTablespacesAreNotCopied(t *testing.T) {
	b := newBench(t).withCluster()
	kept := b.keep()
	leader := t.TempDir()
	if err := os.Mkdir(filepath.Join(leader, "pg_tblspc"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/somewhere/else", filepath.Join(leader, "pg_tblspc", "16400")); err != nil {
		t.Fatal(err)
	}
	b.run()
	o := backup
	o.LeaderDir = leader
	b.give(o)
	if s := b.await(node.StateRefused); s.Unfinished != "" || !strings.Contains(s.Error, "/somewhere/else") || !kept() {
		t.Errorf("%+v, kept %v", s, kept())
	}
	if exists(filepath.Join(b.cfg.NodeDir, "args")) {
		t.Error("a copy was begun")
	}
}

// The init may end at any moment of the swap.
func TestASwapThatWasCutOffIsEnded(t *testing.T) {
	for _, tt := range []struct {
		name     string
		marker   bool
		data     string // what becomes of the data: "", gone, moved
		newData  bool
		wantsNew bool
	}{
		{"before the marker: half of a copy", false, "", true, false},
		{"after the marker", true, "", true, true},
		{"between the two names", true, "moved", true, true},
		{"after the first start made an empty folder", true, "gone", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t).withCluster()
			kept := b.keep()
			for _, name := range []string{"global", "pg_wal"} {
				if err := os.MkdirAll(filepath.Join(b.cfg.NodeDir, node.NewDataDir, name), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			setControl(filepath.Join(b.cfg.NodeDir, node.NewDataDir), "standby")
			if tt.marker {
				if err := os.WriteFile(filepath.Join(b.cfg.NodeDir, node.UnfinishedFile), []byte("basebackup\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tt.data != "" {
				if err := os.Rename(b.cfg.dataDir(), filepath.Join(b.cfg.NodeDir, node.OldDataDir)); err != nil {
					t.Fatal(err)
				}
			}
			if tt.data == "gone" {
				if err := os.Mkdir(b.cfg.dataDir(), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			b.run()
			b.give(standby)
			if s := b.await(node.StateRunning); s.Unfinished != "" || kept() == tt.wantsNew {
				t.Errorf("%+v, old data kept %v", s, kept())
			}
			b.noCopyIsLeft()
		})
	}
}
