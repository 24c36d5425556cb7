package cluster_test

import (
	"fmt"
	"strings"
	"testing"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/node"
	"controld/internal/wal"
)

// The nodes of the tables. Each is down, in order, but for what changes it.
func a(changes ...clustertest.Change) cluster.NodeState {
	return clustertest.State(clustertest.A, changes...)
}

func b(changes ...clustertest.Change) cluster.NodeState {
	return clustertest.State(clustertest.B, changes...)
}

func c(changes ...clustertest.Change) cluster.NodeState {
	return clustertest.State(clustertest.C, changes...)
}

var (
	leading  = clustertest.Leading
	standing = clustertest.Standing
	with     = clustertest.With
	view     = clustertest.View
)

// down is on timeline t.
func down(t wal.Timeline) clustertest.Change {
	return func(s *cluster.NodeState) { s.Control.CheckpointTimeline = t }
}

// promotedThenDown: only minRecoveryPoint's timeline tells.
func promotedThenDown(t wal.Timeline) clustertest.Change {
	return func(s *cluster.NodeState) { s.Control.MinRecoveryTimeline = t }
}

func noData(s *cluster.NodeState) { s.Control = nil }

func half(action node.Action) clustertest.Change {
	return func(s *cluster.NodeState) { s.Init.Unfinished = action }
}

func foreign(s *cluster.NodeState) { s.Control.SystemID = 8 }

func mute(s *cluster.NodeState) { s.Locked, s.ServerErr = cluster.Yes, "timeout" }

func withdrawn(s *cluster.NodeState) {
	s.Order = node.Order{Epoch: 8, Role: node.RoleNone, Action: node.ActionNone}
}

func TestLeader(t *testing.T) {
	for _, tt := range []struct {
		name    string
		v       cluster.View
		want    string
		problem string
	}{
		{"one", view(a(leading(1)), b(standing(1, 1))), "a", ""},
		{"none", view(a(), b(standing(1, 1))), "", "/problems/no-primary"},
		{"two", view(a(leading(1)), b(leading(2))), "", "/problems/two-primaries"},
		{"nobody at all", view(), "", "/problems/no-primary"},
	} {
		got, problem := cluster.Leader(tt.v)
		if got.Node.Name != tt.want || (problem == nil) != (tt.problem == "") || problem != nil && problem.Type != tt.problem {
			t.Errorf("%s: %q, %v", tt.name, got.Node.Name, problem)
		}
	}
}

func TestBestStandby(t *testing.T) {
	for _, tt := range []struct {
		name string
		v    cluster.View
		want string
	}{
		{"most WAL wins", view(a(leading(1)), b(standing(1, 0x10)), c(standing(1, 0x20))), "c"},
		{"a later timeline wins over more WAL", view(b(standing(2, 0x10)), c(standing(1, 0x20))), "b"},
		{"a tie goes to the first", view(b(standing(1, 0x10)), c(standing(1, 0x10))), "b"},
		{"half-made data never leads", view(b(standing(1, 0x20), half(node.ActionBaseBackup)), c(standing(1, 0x10))), "c"},
		{"the primary itself is none", view(a(standing(1, 0x20)), b(standing(1, 0x10))), "b"},
		{"one that leads is none", view(b(leading(1))), ""},
		{"one that does not answer is none", view(b()), ""},
	} {
		got, problem := cluster.BestStandby(tt.v, "a")
		if got.Node.Name != tt.want || (problem != nil) != (tt.want == "") {
			t.Errorf("%s: %q, %v; want %q", tt.name, got.Node.Name, problem, tt.want)
		}
	}
}

func fact(s cluster.NodeState, signal bool) cluster.StartFact {
	return cluster.StartFact{NodeState: s, Empty: s.Control == nil || s.Init.Unfinished == node.ActionInitDB, StandbySignal: signal}
}

func TestDecideStart(t *testing.T) {
	known := cluster.Identity{SystemID: 7, Primary: "a", Timeline: 2, Epoch: 9}
	foreigners := cluster.Identity{SystemID: 8, Primary: "a"}
	strangers := cluster.Identity{SystemID: 7, Primary: "z", Timeline: 2}
	none := cluster.Identity{}
	copied := half(node.ActionBaseBackup)
	later := func(s *cluster.NodeState) { s.Control.Checkpoint = 0x200 }
	pair := func(x, y cluster.NodeState) []cluster.StartFact {
		return []cluster.StartFact{fact(x, false), fact(y, true)}
	}
	for _, tt := range []struct {
		name  string
		id    cluster.Identity
		nodes []cluster.StartFact
		kind  cluster.StartKind
		lead  string
	}{
		// A primary serves.
		{"the recorded primary serves", known, pair(a(leading(2)), b(standing(2, 1))), cluster.StartRunning, "a"},
		{"another one serves, on a later timeline", known, pair(b(leading(3)), a(down(2))), cluster.StartRunning, "b"},
		{"one serves, the journal is lost", none, pair(a(leading(2)), b(noData)), cluster.StartRunning, "a"},
		{"the one that serves is being stopped", known, pair(a(leading(2), withdrawn), b(standing(2, 1))), cluster.StartNothing, ""},
		{"two serve", known, pair(a(leading(2)), b(leading(3))), cluster.StartNothing, ""},
		{"another node has gone past the one that serves", known, pair(a(leading(2)), b(down(3))), cluster.StartNothing, ""},
		{"by minRecoveryPoint alone", known, pair(a(leading(2)), b(promotedThenDown(3))), cluster.StartNothing, ""},
		{"the one that serves is older than the journal", known, pair(b(leading(1)), a(noData)), cluster.StartNothing, ""},
		{"a foreign cluster serves", foreigners, pair(a(leading(2)), b(noData)), cluster.StartNothing, ""},

		// The journal knows who led.
		{"cold", known, pair(a(down(2)), b(down(2))), cluster.StartCold, "a"},
		{"cold, the standby already runs", known, pair(a(down(2)), b(standing(2, 1))), cluster.StartCold, "a"},
		{"cold, the other is behind", known, pair(a(down(2)), b(down(1))), cluster.StartCold, "a"},
		{"cold, the other is empty", known, pair(a(down(2)), b(noData)), cluster.StartCold, "a"},
		{"cold, the other is half copied, whatever its file says", known, pair(a(down(2)), b(down(9), copied)), cluster.StartCold, "a"},
		{"cold, a fast promotion before its checkpoint", known, pair(a(promotedThenDown(2)), b(down(1))), cluster.StartCold, "a"},
		{"the other is on a later timeline", known, pair(a(down(2)), b(down(3))), cluster.StartNothing, ""},
		{"the other was just promoted", known, pair(a(down(2)), b(down(2), promotedThenDown(3))), cluster.StartNothing, ""},
		{"its data is older than the journal", known, pair(a(down(1)), b(down(1))), cluster.StartNothing, ""},
		{"its data is gone", known, pair(a(noData), b(down(2))), cluster.StartNothing, ""},
		{"its data is half made", known, pair(a(down(2), half(node.ActionRewind)), b(down(2))), cluster.StartNothing, ""},
		{"all is gone", known, pair(a(noData), b(noData)), cluster.StartNothing, ""},
		{"its data is foreign", known, pair(a(down(2), foreign), b(down(2))), cluster.StartNothing, ""},
		{"the other's data is foreign", known, pair(a(down(2)), b(down(2), foreign)), cluster.StartNothing, ""},
		{"it runs and does not answer", known, pair(a(down(2), mute), b(standing(2, 1))), cluster.StartNothing, ""},
		{"it is not configured", strangers, pair(a(down(2)), b(down(2))), cluster.StartNothing, ""},

		// The journal knows nothing.
		{"first", none, pair(a(noData), b(noData)), cluster.StartFirst, "a"},
		{"first, after an initdb that was cut off", none, pair(a(half(node.ActionInitDB)), b(noData)), cluster.StartFirst, "a"},
		{"adopt", none, pair(a(down(2)), b(down(2))), cluster.StartAdopt, "a"},
		{"adopt beside an empty node", none, pair(a(down(2)), b(noData)), cluster.StartAdopt, "a"},
		{"both look like a primary", none, []cluster.StartFact{fact(a(down(2)), false), fact(b(down(1)), false)}, cluster.StartNothing, ""},
		{"none does", none, []cluster.StartFact{fact(a(down(2)), true), fact(b(down(2)), true)}, cluster.StartNothing, ""},
		{"the standby is ahead", none, pair(a(down(1)), b(down(2))), cluster.StartNothing, ""},
		{"the standby has the later checkpoint", none, pair(a(), b(later)), cluster.StartNothing, ""},
		{"the two are strangers", none, pair(a(down(2)), b(down(1), foreign)), cluster.StartNothing, ""},
		{"the one is half made", none, pair(a(down(2), copied), b(down(2))), cluster.StartNothing, ""},
	} {
		got := cluster.DecideStart(tt.id, tt.nodes, "a")
		if got.Kind != tt.kind || got.Lead != tt.lead {
			t.Errorf("%s: %s %q (%s), want %s %q", tt.name, got.Kind, got.Lead, got.Reason, tt.kind, tt.lead)
		}
		if got.Reason == "" {
			t.Errorf("%s: no reason", tt.name)
		}
	}
}

// FuzzDecideStart: nobody leads by it who is behind another whole node, or
// behind the journal, or whose data is half made.
func FuzzDecideStart(f *testing.F) {
	for seed := range 64 {
		f.Add([]byte{byte(seed), byte(seed * 37), byte(seed * 91), byte(seed >> 2), byte(seed >> 4), byte(seed * 3), byte(seed * 5)})
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		next := func() byte {
			if len(data) == 0 {
				return 0
			}
			v := data[0]
			data = data[1:]
			return v
		}
		var id cluster.Identity
		if v := next(); v&1 != 0 {
			id = cluster.Identity{SystemID: 7, Primary: string("abz"[v>>1%3]), Timeline: wal.Timeline(v >> 4 % 4)}
		}
		var nodes []cluster.StartFact
		for _, n := range []cluster.Node{clustertest.A, clustertest.B} {
			s := clustertest.State(n, down(wal.Timeline(1+next()%4)), promotedThenDown(wal.Timeline(next()%4)))
			how, signal := next(), next()&1 != 0
			switch how % 5 {
			case 0:
				s.Control = nil
			case 1:
				timeline := s.Control.Timeline()
				leading(timeline)(&s)
			case 2:
				timeline := s.Control.Timeline()
				standing(timeline, 1)(&s)
			}
			if how&0x40 != 0 {
				s.Init.Unfinished = node.ActionRewind
			}
			nodes = append(nodes, fact(s, signal))
		}
		d := cluster.DecideStart(id, nodes, "a")
		if d.Kind == cluster.StartNothing || d.Kind == cluster.StartFirst {
			if d.Kind == cluster.StartFirst && (id.Primary != "" || !nodes[0].Empty || !nodes[1].Empty) {
				t.Errorf("initdb over data or knowledge: %+v", d)
			}
			return
		}
		for _, n := range nodes {
			if n.Node.Name != d.Lead {
				continue
			}
			if n.Timeline() < id.Timeline {
				t.Errorf("%s leads on timeline %d, the journal knows %d", d.Lead, n.Timeline(), id.Timeline)
			}
			for _, o := range nodes {
				if o.Node.Name != d.Lead && o.Control != nil && o.NodeState.Usable() && o.Timeline() > n.Timeline() {
					t.Errorf("%s: %s leads on timeline %d, %s is on %d", d.Kind, d.Lead, n.Timeline(), o.Node.Name, o.Timeline())
				}
			}
			if d.Kind != cluster.StartRunning && !n.NodeState.Usable() {
				t.Errorf("%s leads with half-made data", d.Lead)
			}
		}
	})
}

func TestNextActions(t *testing.T) {
	const atA, atB, atC = "10.0.0.a", "10.0.0.b", "10.0.0.c"
	id := cluster.Identity{Primary: "a"}
	pooled := func(v cluster.View, primary, standby string) cluster.View {
		v.Pooler = cluster.PoolerState{
			Container: cluster.Container{Running: true},
			Databases: []cluster.PoolerDatabase{
				{Name: "x", Host: primary}, {Name: "x_ro", Host: standby}, {Name: cluster.ProbeEntry, Host: "?"},
			},
		}
		return v
	}
	drained := func(v cluster.View) cluster.View {
		v.Pooler.Resized = []string{"x"}
		return v
	}
	// alone leads, and the pooler leads everybody to it; beside it are these nodes.
	alone := func(others ...cluster.NodeState) cluster.View {
		return pooled(view(append([]cluster.NodeState{a(leading(1))}, others...)...), atA, atA)
	}
	leader := a(leading(1), with("b"))
	follower := func(changes ...clustertest.Change) cluster.NodeState {
		return b(append([]clustertest.Change{standing(1, 1)}, changes...)...)
	}
	followed := func(changes ...clustertest.Change) cluster.View {
		return pooled(view(leader, follower(changes...)), atA, atB)
	}
	frozen := func(s *cluster.NodeState) { s.Container.Paused = true }
	missing := func(s *cluster.NodeState) { s.Container.Exists = false }
	working := func(s *cluster.NodeState) { s.Init.State = node.StateWorking }
	moving := func(s *cluster.NodeState) { s.Server.Settings = map[string]string{"autovacuum": "off"} }
	overrides := func(setting string) clustertest.Change {
		return func(s *cluster.NodeState) { s.Server.Overridden = []string{setting} }
	}
	archiving := func(command string) clustertest.Change {
		return func(s *cluster.NodeState) { s.Server.Settings = map[string]string{cluster.ArchiveSetting: command} }
	}
	astray := func(s *cluster.NodeState) { s.Server.UpstreamAddress = atC }
	kept := func(name string, active bool) clustertest.Change {
		return func(s *cluster.NodeState) { s.Server.Slots = []cluster.Slot{{Name: name, Active: active}} }
	}
	good := view(leader, follower())
	for _, tt := range []struct {
		name string
		v    cluster.View
		id   cluster.Identity
		want string // in order
	}{
		{"all is well", followed(), id, ""},
		{"no primary", view(a(), follower()), id, ""},
		{"two primaries", view(a(leading(1)), b(leading(2))), id, ""},
		{"another one than recorded", good, cluster.Identity{Primary: "b"}, ""},
		{"clients are led elsewhere and a node is down", pooled(view(a(leading(1)), b()), atC, atA), id, "align, rejoin b"},
		{"two nodes are down, and the primary runs with the settings of a move",
			pooled(view(a(leading(1), moving), b(), c()), atA, atA), id, "align, rejoin b, rejoin c"},
		{"clients are led elsewhere", pooled(good, atB, atB), id, "align"},
		{"readers are led elsewhere", pooled(good, atA, atA), id, "align"},
		{"the pools are still drained", drained(followed()), id, "align"},
		{"a node is down", alone(b()), id, "rejoin b"},
		{"a node does not stream", alone(follower()), id, "rejoin b"},
		{"a node is frozen", alone(b(frozen)), id, ""},
		{"a node's container is missing", alone(b(missing)), id, ""},
		{"a node's init is at work", alone(b(working)), id, ""},
		{"a standby keeps WAL for its primary", followed(kept("a", false)), id, "rejoin b"},
		{"somebody uses a standby's slot", followed(kept("a", true)), id, ""},
		{"a node was promoted past controld", alone(b(standing(2, 1))), id, ""},
		{"a standby runs with the settings of a move", followed(moving), id, "rejoin b"},
		{"the primary runs with the settings of a move",
			pooled(view(a(leading(1), with("b"), moving), follower()), atA, atB), id, "align"},
		{"a person turned autovacuum off",
			pooled(view(a(leading(1), with("b"), moving, overrides("autovacuum")), follower()), atA, atB), id, ""},
		{"the primary archives by another command",
			pooled(view(a(leading(1), with("b"), archiving("other")), follower()), atA, atB), id, "align"},
		{"a person set how the primary archives",
			pooled(view(a(leading(1), with("b"), archiving("other"), overrides(cluster.ArchiveSetting)), follower()), atA, atB), id, ""},
		{"a standby would archive", followed(archiving("other")), id, "rejoin b"},
		{"a standby looks for its primary where it was", followed(astray), id, "rejoin b"},
		{"a person's slot on a standby", followed(kept("mine", false)), id, ""},
	} {
		var got []string
		wanted := cluster.Wanted{Targets: cluster.WantTargets, ArchiveCommand: func(cluster.Node) string { return "" }}
		for _, action := range cluster.NextActions(tt.v, tt.id, wanted) {
			got = append(got, strings.TrimSpace(action.Kind+" "+action.Node))
			if action.Reason == "" {
				t.Errorf("%s: no reason for %+v", tt.name, action)
			}
		}
		if got := strings.Join(got, ", "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestChangingEntries(t *testing.T) {
	p := cluster.PoolerState{Databases: []cluster.PoolerDatabase{
		{Name: "pgbouncer", Host: "x"}, {Name: cluster.ProbeEntry, Host: "x"},
		{Name: "z", Host: "1"}, {Name: "z_ro", Host: "1", Paused: true}, {Name: "y", Host: "2"}, {Name: "new"},
	}}
	if got := fmt.Sprint(p.Changing(cluster.Targets{Primary: "1", Standby: "2"})); got != "[y z_ro]" {
		t.Errorf("changing: %s", got)
	}
	if got := fmt.Sprint(p.Paused()); got != "[z_ro]" {
		t.Errorf("paused: %s", got)
	}
}
