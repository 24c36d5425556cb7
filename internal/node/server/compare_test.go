package server

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"controld/internal/node"
	"controld/internal/pgwal"
)

// finds makes the comparison find this.
func (b *bench) finds(relation *pgwal.Relation) {
	b.cfg.Compare = func(_ context.Context, own, leader string) (pgwal.Comparison, error) {
		if own != b.cfg.dataDir() || leader != "/other/data" {
			b.t.Errorf("compared %s with %s", own, leader)
		}
		return pgwal.Comparison{Relation: *relation, Why: "so it is"}, nil
	}
}

// A standby whose WAL is not the leader's does not start, whatever becomes of
// the evidence, until it is copied anew.
func TestADivergedStandbyDoesNotStart(t *testing.T) {
	b := newBench(t).withCluster()
	relation := pgwal.Same
	b.finds(&relation)
	follow := standby
	follow.LeaderDir = "/other/data"
	b.run()
	b.give(follow)
	if s := b.await(node.StateRunning); s.Compared == nil || s.Compared.Relation != pgwal.Same {
		t.Errorf("the same WAL: %+v", s)
	}
	b.awaitStarts(1)
	refused := func(what string, o node.Order) {
		t.Helper()
		b.give(none)
		b.await(node.StateWaiting)
		b.give(o)
		s := b.await(node.StateRefused)
		if s.Diverged() != "so it is" || !strings.Contains(s.Error, "order a basebackup") {
			t.Errorf("%s: %+v", what, s)
		}
	}
	relation = pgwal.Diverged
	refused("other WAL", follow)
	relation = pgwal.Unknown
	refused("nothing to compare with any more", follow)
	refused("an order without a comparison", standby)
	b.end()
	b.run()
	if s := b.await(node.StateRefused); s.Diverged() == "" {
		t.Errorf("after the container's start: %+v", s)
	}
	relation = pgwal.Same
	o := backup
	o.LeaderDir = "/other/data"
	b.give(o)
	if s := b.await(node.StateRunning); s.Diverged() != "" {
		t.Errorf("copied anew: %+v", s)
	}
	if got := b.awaitStarts(2); len(got) != 2 {
		t.Errorf("starts %v", got)
	}
}

// Only a node that went on where the leader's timeline branched off is rewound. Every
// other one would be made by pg_rewind to write beside the leader.
func TestOnlyWhatWentOnIsRewound(t *testing.T) {
	for relation, want := range map[pgwal.Relation]string{
		pgwal.Past: "", pgwal.Same: "nothing to take back", pgwal.Diverged: "so it is", pgwal.Unknown: "so it is",
	} {
		t.Run(string(relation), func(t *testing.T) {
			b := newBench(t).withCluster()
			kept := b.keep()
			b.finds(&relation)
			b.run()
			b.give(rewound)
			if want == "" {
				b.await(node.StateRunning)
				return
			}
			s := b.await(node.StateRefused)
			if s.Unfinished != "" || !strings.Contains(s.Error, want) || !kept() {
				t.Errorf("%+v, kept %v", s, kept())
			}
			if got := b.starts(); len(got) > 0 {
				t.Errorf("starts %v", got)
			}
		})
	}
	b := newBench(t).withCluster()
	b.run()
	o := rewound
	o.LeaderDir = ""
	b.give(o)
	if s := b.await(node.StateRefused); !strings.Contains(s.Error, "nobody can tell") {
		t.Errorf("nothing to compare with: %+v", s)
	}
}

// A standby leads by a promotion, never because its signal file was taken away.
func TestAStandbysDataIsNotStartedToLead(t *testing.T) {
	for _, state := range []string{"standby", "standby-shutdown"} {
		b := newBench(t).withCluster()
		b.put(filepath.Join(node.DataDir, standbySignal))
		setControl(b.cfg.dataDir(), state)
		b.run()
		b.give(primary)
		if s := b.await(node.StateRefused); !strings.Contains(s.Error, "a standby's") || s.UsedEpoch != 0 {
			t.Errorf("%s: %+v", state, s)
		}
		if got := b.starts(); len(got) > 0 {
			t.Errorf("starts %v", got)
		}
	}
}

// What pg_rewind leaves of a timeline that it took back is removed before a standby starts:
// the next promotion begins a timeline of the same number.
func TestOrphansGoBeforeAStart(t *testing.T) {
	b := newBench(t).withCluster()
	walDir := filepath.Join(b.cfg.dataDir(), pgwal.DirName)
	for _, name := range []string{
		"000000010000000000000002",
		"00000009000000000000000A",
		"00000009000000000000000B.partial",
		"archive_status/00000009000000000000000A.ready",
		"000000080000000000000009",
		"00000008.history",
	} {
		if err := os.WriteFile(filepath.Join(walDir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.run()
	b.give(standby)
	b.await(node.StateRunning)
	for name, left := range map[string]bool{
		"000000010000000000000002":                      true,
		"000000080000000000000009":                      true,
		"00000008.history":                              true,
		"00000009000000000000000A":                      false,
		"00000009000000000000000B.partial":              false,
		"archive_status/00000009000000000000000A.ready": false,
	} {
		if exists(filepath.Join(walDir, name)) != left {
			t.Errorf("%s: left %v, want %v", name, !left, left)
		}
	}
}
