package failover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/node"
	"controld/internal/observer"
	"controld/internal/operation"
	"controld/internal/pgwal"
)

var pair = []cluster.Node{clustertest.A, clustertest.B}

// primary and candidate are the two nodes of the tables, as they are in order.
func primary() cluster.NodeState {
	return clustertest.State(clustertest.A, clustertest.Leading(1), clustertest.With("b"))
}

func candidate() cluster.NodeState {
	return clustertest.State(clustertest.B, clustertest.Standing(1, 0x200))
}

// attempt is one in a cluster of these settings and this world.
func attempt(t *testing.T, set cluster.Settings, out cluster.Outside) *failover {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	act, err := actuator.New(set, out, observer.New(set, out, log), noFacts{}, log)
	if err != nil {
		t.Fatal(err)
	}
	return (&Failovers{act: act}).attempt(cluster.KindFailover, cluster.FailoverRequest{})
}

type noFacts struct{ cluster.Facts }

func (noFacts) Fact(string, any) (bool, error) { return false, nil }

type roomy struct{ cluster.Volumes }

func (roomy) Space(cluster.Node) (int64, int64, error) { return 1 << 40, 1 << 41, nil }

func (roomy) Compare(context.Context, cluster.Node, cluster.Node, int64) (pgwal.Comparison, error) {
	return pgwal.Comparison{Relation: pgwal.Same}, nil
}

// split are two nodes whose WAL is something else than the same.
type split struct {
	roomy
	relation pgwal.Relation
}

func (p split) Compare(context.Context, cluster.Node, cluster.Node, int64) (pgwal.Comparison, error) {
	return pgwal.Comparison{Relation: p.relation, Why: "so it is"}, nil
}

type full struct {
	roomy
	left map[string]int64
}

func (f full) Space(n cluster.Node) (int64, int64, error) { return f.left[n.Name], 1 << 41, nil }

// TestPlannedChecks makes each precheck fail by the one thing that it is about.
func TestPlannedChecks(t *testing.T) {
	for _, tt := range []struct {
		fails string
		hurt  func(v *cluster.View, from, to *cluster.NodeState)
	}{
		{"", func(*cluster.View, *cluster.NodeState, *cluster.NodeState) {}},
		{"primary-serves", func(_ *cluster.View, from, _ *cluster.NodeState) { from.Server = nil }},
		{"candidate-answers", func(_ *cluster.View, _, to *cluster.NodeState) { to.Server = nil }},
		{"candidate-is-whole", func(_ *cluster.View, _, to *cluster.NodeState) { to.Init.Unfinished = node.ActionRewind }},
		{"candidate-streams", func(_ *cluster.View, from, _ *cluster.NodeState) { from.Server.Senders = nil }},
		{"same-timeline", func(_ *cluster.View, _, to *cluster.NodeState) { to.Server.Timeline = 9 }},
		{"same-cluster", func(_ *cluster.View, _, to *cluster.NodeState) { to.Server.SystemID = 9 }},
		{"replay-runs", func(_ *cluster.View, _, to *cluster.NodeState) { to.Server.ReplayPaused = true }},
		{"candidate-lag", func(_ *cluster.View, from, to *cluster.NodeState) { from.Server.Flushed = to.Server.Replayed + 1001 }},
		{"reverse-replication", func(_ *cluster.View, _, to *cluster.NodeState) { to.Server.MaxSenders = 0 }},
		{"reverse-replication", func(_ *cluster.View, _, to *cluster.NodeState) { to.Server.MaxSlots = 0 }},
		{"settings-are-controlds", func(_ *cluster.View, from, _ *cluster.NodeState) {
			from.Server.Overridden = []string{"archive_command"}
		}},
		{"archive-is-not-behind", func(_ *cluster.View, from, _ *cluster.NodeState) { from.Server.ArchiveReady = maxPendingArchive + 1 }},
		{"no-prepared-transaction", func(_ *cluster.View, from, _ *cluster.NodeState) { from.Server.PreparedCount = 1 }},
		{"no-long-transaction", func(_ *cluster.View, from, _ *cluster.NodeState) {
			from.Server.Transactions = []cluster.Transaction{{Age: 6 * time.Second}}
		}},
		{"no-base-backup", func(_ *cluster.View, from, _ *cluster.NodeState) { from.Server.BackupRunning = true }},
		{"pooler-answers", func(v *cluster.View, _, _ *cluster.NodeState) { v.Pooler.Err = "refused" }},
	} {
		set := cluster.Settings{Nodes: pair, MaxLagBytes: 1000, PauseDeadline: 5 * time.Second}
		f := attempt(t, set, cluster.Outside{Volumes: roomy{}})
		v, from, to := cluster.View{}, primary(), candidate()
		tt.hurt(&v, &from, &to)
		var failed []string
		for _, c := range f.plannedChecks(v, from, to) {
			if !c.OK {
				failed = append(failed, c.Name)
			}
			if c.Detail == "" || c.Problem == "" {
				t.Errorf("%s says nothing", c.Name)
			}
		}
		if tt.fails == "" && len(failed) > 0 || tt.fails != "" && !strings.Contains(fmt.Sprint(failed), tt.fails) {
			t.Errorf("failed %v, want %q", failed, tt.fails)
		}
	}
}

func TestPlannedChecksCompareTheWAL(t *testing.T) {
	for relation, problem := range map[pgwal.Relation]string{
		pgwal.Diverged: "diverged",
		pgwal.Past:     "diverged",
		pgwal.Unknown:  "wal-not-compared",
	} {
		f := attempt(t, cluster.Settings{Nodes: pair}, cluster.Outside{Volumes: split{relation: relation}})
		var refusal *operation.Problem
		err := operation.Refusal(f.plannedChecks(cluster.View{}, primary(), candidate()))
		if !errors.As(err, &refusal) || refusal.Type != "/problems/"+problem || !strings.Contains(refusal.Detail, "so it is") {
			t.Errorf("WAL that is %s: %v", relation, err)
		}
	}
}

func TestPlannedChecksAskForRoom(t *testing.T) {
	for _, tt := range []struct {
		left map[string]int64
		want string
	}{
		{map[string]int64{"a": 800, "b": 799}, "799 bytes are free on the volume of b; 800 are needed"},
		{map[string]int64{"a": 99, "b": 800}, "99 bytes are free on the volume of a; 100 are needed, for"},
	} {
		f := attempt(t, cluster.Settings{Nodes: pair, MinFreeBytes: 800}, cluster.Outside{Volumes: full{left: tt.left}})
		err := operation.Refusal(f.plannedChecks(cluster.View{}, primary(), candidate()))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("a full disk: %v, want %q", err, tt.want)
		}
	}
}

// A failback that must rejoin its target first says before that what would refuse
// it afterwards.
func TestRejoinFirstChecks(t *testing.T) {
	f := attempt(t, cluster.Settings{Nodes: pair, PauseDeadline: time.Second}, cluster.Outside{Volumes: full{}})
	prepared := func(s *cluster.NodeState) { s.Server.PreparedCount = 2 }
	for _, tt := range []struct {
		from cluster.NodeState
		want string
	}{
		{clustertest.State(clustertest.A, clustertest.Leading(1)), ""},
		{clustertest.State(clustertest.A, clustertest.Leading(1), prepared), "2 prepared transactions"},
		{clustertest.State(clustertest.A), "a: "},
	} {
		err := operation.Refusal(f.rejoinFirstChecks(cluster.View{}, tt.from))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
}
