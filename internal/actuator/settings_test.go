package actuator

import (
	"context"
	"log/slog"
	"testing"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/observer"
)

// addresses is an engine that knows where each container is.
type addresses struct{ cluster.Engine }

func (addresses) Inspect(_ context.Context, name string) (cluster.Container, error) {
	return cluster.Container{Address: "10.0.0." + name}, nil
}

func TestWhatCommitsWaitFor(t *testing.T) {
	n, other := clustertest.A, clustertest.B
	for _, tt := range []struct {
		mode            cluster.ReplicationMode
		synced          bool
		leads, standsBy string
	}{
		{cluster.Async, false, "", ""},
		{cluster.Sync, false, "", ""},
		{cluster.Sync, true, `FIRST 1 ("b")`, ""},
		{cluster.Strict, false, `FIRST 1 ("b")`, `FIRST 1 ("b")`},
	} {
		set := cluster.Settings{Nodes: []cluster.Node{n, other}, Replication: tt.mode,
			ArchiveCommand: func(cluster.Node) string { return "archive" }}
		out := cluster.Outside{Engine: addresses{}}
		a := &Actuator{Settings: set, Outside: out, Look: observer.New(set, out, slog.New(slog.DiscardHandler))}
		if got := cluster.SynchronousNames(a.PrimarySettings(n, tt.synced).SynchronousStandbys); got != tt.leads {
			t.Errorf("%s, synced %v, leading: %q", tt.mode, tt.synced, got)
		}
		if got := a.PrimarySettings(n, tt.synced).ArchiveCommand; got != "archive" {
			t.Errorf("leading, it archives by %q", got)
		}
		s := a.StandbySettings(t.Context(), n, other)
		follows := s.Upstream.Name == "b" && s.UpstreamAddress == "10.0.0.b" && s.Slot == "a" && s.ArchiveCommand == ""
		if got := cluster.SynchronousNames(s.SynchronousStandbys); got != tt.standsBy || s.RestoreCommand != "" || !follows {
			t.Errorf("%s, standing by: %+v", tt.mode, s)
		}
	}
	if got := cluster.SynchronousNames([]string{"b", "c"}); got != `FIRST 1 ("b", "c")` {
		t.Error(got)
	}
}
