package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/pgcontrol"
	"controld/internal/pgwal"
	"controld/internal/wal"
)

// The nodes of the tables: a state is built by naming it and changing it.
var a, b, c = Node{Name: "a", Container: "a"}, Node{Name: "b", Container: "b"}, Node{Name: "c", Container: "c"}

type change func(*NodeState)

func state(n Node, changes ...change) NodeState {
	s := NodeState{
		Node: n, Container: Container{Exists: true, Running: true, Connected: true, Address: "10.0.0." + n.Name}, Locked: No,
		Control: &pgcontrol.Data{SystemID: 7, CheckpointTimeline: 1, Checkpoint: 0x100, State: pgcontrol.StateShutDown},
	}
	for _, f := range changes {
		f(&s)
	}
	return s
}

func leading(t wal.Timeline) change {
	return func(s *NodeState) {
		s.Locked, s.Control.CheckpointTimeline = Yes, t
		s.Server = &Server{SystemID: 7, Timeline: t, Flushed: 0x200, MaxSenders: 10, MaxSlots: 10, Settings: map[string]string{}}
	}
}

func standing(t wal.Timeline, received wal.LSN) change {
	return func(s *NodeState) {
		leading(t)(s)
		s.Server.InRecovery, s.Server.Flushed, s.Server.Received, s.Server.Replayed = true, 0, received, received
		s.Server.UpstreamAddress = "10.0.0.a"
	}
}

func down(t wal.Timeline) change { return func(s *NodeState) { s.Control.CheckpointTimeline = t } }

// promotedThenDown: only minRecoveryPoint's timeline tells.
func promotedThenDown(t wal.Timeline) change {
	return func(s *NodeState) { s.Control.MinRecoveryTimeline = t }
}

func noData(s *NodeState) { s.Control = nil }

func half(action node.Action) change { return func(s *NodeState) { s.Init.Unfinished = action } }

func foreign(s *NodeState) { s.Control.SystemID = 8 }

func mute(s *NodeState) { s.Locked, s.ServerErr = Yes, "timeout" }

func with(names ...string) change { // streaming from it
	return func(s *NodeState) {
		for _, n := range names {
			s.Server.Senders = append(s.Server.Senders, Sender{Application: n, State: "streaming", SyncState: "async"})
		}
	}
}

func withdrawn(s *NodeState) {
	s.Order = node.Order{Epoch: 8, Role: node.RoleNone, Action: node.ActionNone}
}

func view(states ...NodeState) View { return View{Nodes: states} }

func TestLeader(t *testing.T) {
	for _, tt := range []struct {
		name    string
		v       View
		want    string
		problem string
	}{
		{"one", view(state(a, leading(1)), state(b, standing(1, 1))), "a", ""},
		{"none", view(state(a), state(b, standing(1, 1))), "", "/problems/no-primary"},
		{"two", view(state(a, leading(1)), state(b, leading(2))), "", "/problems/two-primaries"},
		{"nobody at all", view(), "", "/problems/no-primary"},
	} {
		got, problem := Leader(tt.v)
		if got.Node.Name != tt.want || (problem == nil) != (tt.problem == "") || problem != nil && problem.Type != tt.problem {
			t.Errorf("%s: %q, %v", tt.name, got.Node.Name, problem)
		}
	}
}

func TestBestStandby(t *testing.T) {
	for _, tt := range []struct {
		name string
		v    View
		want string
	}{
		{"most WAL wins", view(state(a, leading(1)), state(b, standing(1, 0x10)), state(c, standing(1, 0x20))), "c"},
		{"a later timeline wins over more WAL", view(state(b, standing(2, 0x10)), state(c, standing(1, 0x20))), "b"},
		{"a tie goes to the first", view(state(b, standing(1, 0x10)), state(c, standing(1, 0x10))), "b"},
		{"half-made data never leads", view(state(b, standing(1, 0x20), half(node.ActionBaseBackup)), state(c, standing(1, 0x10))), "c"},
		{"the primary itself is none", view(state(a, standing(1, 0x20)), state(b, standing(1, 0x10))), "b"},
		{"one that leads is none", view(state(b, leading(1))), ""},
		{"one that does not answer is none", view(state(b)), ""},
	} {
		got, problem := BestStandby(tt.v, "a")
		if got.Node.Name != tt.want || (problem != nil) != (tt.want == "") {
			t.Errorf("%s: %q, %v; want %q", tt.name, got.Node.Name, problem, tt.want)
		}
	}
}

func fact(s NodeState, signal bool) StartFact {
	return StartFact{NodeState: s, Empty: s.Control == nil || s.Init.Unfinished == node.ActionInitDB, StandbySignal: signal}
}

func TestDecideStart(t *testing.T) {
	known := Identity{SystemID: 7, Primary: "a", Timeline: 2, Epoch: 9}
	none := Identity{}
	pair := func(x, y NodeState) []StartFact { return []StartFact{fact(x, false), fact(y, true)} }
	for _, tt := range []struct {
		name  string
		id    Identity
		nodes []StartFact
		kind  StartKind
		lead  string
	}{
		// A primary serves.
		{"the recorded primary serves", known, pair(state(a, leading(2)), state(b, standing(2, 1))), StartRunning, "a"},
		{"another one serves, on a later timeline", known, pair(state(b, leading(3)), state(a, down(2))), StartRunning, "b"},
		{"one serves, the journal is lost", none, pair(state(a, leading(2)), state(b, noData)), StartRunning, "a"},
		{"the one that serves is being stopped", known, pair(state(a, leading(2), withdrawn), state(b, standing(2, 1))), StartNothing, ""},
		{"two serve", known, pair(state(a, leading(2)), state(b, leading(3))), StartNothing, ""},
		{"another node has gone past the one that serves", known, pair(state(a, leading(2)), state(b, down(3))), StartNothing, ""},
		{"by minRecoveryPoint alone", known, pair(state(a, leading(2)), state(b, promotedThenDown(3))), StartNothing, ""},
		{"the one that serves is older than the journal", known, pair(state(b, leading(1)), state(a, noData)), StartNothing, ""},
		{"a foreign cluster serves", Identity{SystemID: 8, Primary: "a"}, pair(state(a, leading(2)), state(b, noData)), StartNothing, ""},

		// The journal knows who led.
		{"cold", known, pair(state(a, down(2)), state(b, down(2))), StartCold, "a"},
		{"cold, the standby already runs", known, pair(state(a, down(2)), state(b, standing(2, 1))), StartCold, "a"},
		{"cold, the other is behind", known, pair(state(a, down(2)), state(b, down(1))), StartCold, "a"},
		{"cold, the other is empty", known, pair(state(a, down(2)), state(b, noData)), StartCold, "a"},
		{"cold, the other is half copied, whatever its file says", known, pair(state(a, down(2)), state(b, down(9), half(node.ActionBaseBackup))), StartCold, "a"},
		{"cold, a fast promotion before its checkpoint", known, pair(state(a, promotedThenDown(2)), state(b, down(1))), StartCold, "a"},
		{"the other is on a later timeline", known, pair(state(a, down(2)), state(b, down(3))), StartNothing, ""},
		{"the other was just promoted", known, pair(state(a, down(2)), state(b, down(2), promotedThenDown(3))), StartNothing, ""},
		{"its data is older than the journal", known, pair(state(a, down(1)), state(b, down(1))), StartNothing, ""},
		{"its data is gone", known, pair(state(a, noData), state(b, down(2))), StartNothing, ""},
		{"its data is half made", known, pair(state(a, down(2), half(node.ActionRewind)), state(b, down(2))), StartNothing, ""},
		{"all is gone", known, pair(state(a, noData), state(b, noData)), StartNothing, ""},
		{"its data is foreign", known, pair(state(a, down(2), foreign), state(b, down(2))), StartNothing, ""},
		{"the other's data is foreign", known, pair(state(a, down(2)), state(b, down(2), foreign)), StartNothing, ""},
		{"it runs and does not answer", known, pair(state(a, down(2), mute), state(b, standing(2, 1))), StartNothing, ""},
		{"it is not configured", Identity{SystemID: 7, Primary: "z", Timeline: 2}, pair(state(a, down(2)), state(b, down(2))), StartNothing, ""},

		// The journal knows nothing.
		{"first", none, pair(state(a, noData), state(b, noData)), StartFirst, "a"},
		{"first, after an initdb that was cut off", none, pair(state(a, half(node.ActionInitDB)), state(b, noData)), StartFirst, "a"},
		{"adopt", none, pair(state(a, down(2)), state(b, down(2))), StartAdopt, "a"},
		{"adopt beside an empty node", none, pair(state(a, down(2)), state(b, noData)), StartAdopt, "a"},
		{"both look like a primary", none, []StartFact{fact(state(a, down(2)), false), fact(state(b, down(1)), false)}, StartNothing, ""},
		{"none does", none, []StartFact{fact(state(a, down(2)), true), fact(state(b, down(2)), true)}, StartNothing, ""},
		{"the standby is ahead", none, pair(state(a, down(1)), state(b, down(2))), StartNothing, ""},
		{"the standby has the later checkpoint", none, pair(state(a), state(b, func(s *NodeState) { s.Control.Checkpoint = 0x200 })), StartNothing, ""},
		{"the two are strangers", none, pair(state(a, down(2)), state(b, down(1), foreign)), StartNothing, ""},
		{"the one is half made", none, pair(state(a, down(2), half(node.ActionBaseBackup)), state(b, down(2))), StartNothing, ""},
	} {
		got := DecideStart(tt.id, tt.nodes, "a")
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
		var id Identity
		if v := next(); v&1 != 0 {
			id = Identity{SystemID: 7, Primary: string("abz"[v>>1%3]), Timeline: wal.Timeline(v >> 4 % 4)}
		}
		var nodes []StartFact
		for _, n := range []Node{a, b} {
			s := state(n, down(wal.Timeline(1+next()%4)), promotedThenDown(wal.Timeline(next()%4)))
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
		d := DecideStart(id, nodes, "a")
		if d.Kind == StartNothing || d.Kind == StartFirst {
			if d.Kind == StartFirst && (id.Primary != "" || !nodes[0].Empty || !nodes[1].Empty) {
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
				if o.Node.Name != d.Lead && o.Control != nil && usable(o.NodeState) && o.Timeline() > n.Timeline() {
					t.Errorf("%s: %s leads on timeline %d, %s is on %d", d.Kind, d.Lead, n.Timeline(), o.Node.Name, o.Timeline())
				}
			}
			if d.Kind != StartRunning && !usable(n.NodeState) {
				t.Errorf("%s leads with half-made data", d.Lead)
			}
		}
	})
}

func TestNextActions(t *testing.T) {
	id := Identity{Primary: "a"}
	pooled := func(v View, primary, standby string) View {
		v.Pooler = PoolerState{Container: Container{Running: true}, Databases: []PoolerDatabase{{Name: "x", Host: primary}, {Name: "x_ro", Host: standby}, {Name: ProbeEntry, Host: "?"}}}
		return v
	}
	drained := func(v View) View {
		v.Pooler.Resized = []string{"x"}
		return v
	}
	kept := func(name string, active bool) change {
		return func(s *NodeState) { s.Server.Slots = []Slot{{Name: name, Active: active}} }
	}
	good := view(state(a, leading(1), with("b")), state(b, standing(1, 1)))
	for _, tt := range []struct {
		name string
		v    View
		id   Identity
		want string // in order
	}{
		{"all is well", pooled(good, "10.0.0.a", "10.0.0.b"), id, ""},
		{"no primary", view(state(a), state(b, standing(1, 1))), id, ""},
		{"two primaries", view(state(a, leading(1)), state(b, leading(2))), id, ""},
		{"another one than recorded", good, Identity{Primary: "b"}, ""},
		{"clients are led elsewhere and a node is down", pooled(view(state(a, leading(1)), state(b)), "10.0.0.c", "10.0.0.a"), id, "align, rejoin b"},
		{"two nodes are down, and the primary runs with the settings of a move", pooled(view(state(a, leading(1), func(s *NodeState) {
			s.Server.Settings = map[string]string{"autovacuum": "off"}
		}), state(b), state(c)), "10.0.0.a", "10.0.0.a"), id, "align, rejoin b, rejoin c"},
		{"clients are led elsewhere", pooled(good, "10.0.0.b", "10.0.0.b"), id, "align"},
		{"readers are led elsewhere", pooled(good, "10.0.0.a", "10.0.0.a"), id, "align"},
		{"the pools are still drained", drained(pooled(good, "10.0.0.a", "10.0.0.b")), id, "align"},
		{"a node is down", pooled(view(state(a, leading(1)), state(b)), "10.0.0.a", "10.0.0.a"), id, "rejoin b"},
		{"a node does not stream", pooled(view(state(a, leading(1)), state(b, standing(1, 1))), "10.0.0.a", "10.0.0.a"), id, "rejoin b"},
		{"a node is frozen", pooled(view(state(a, leading(1)), state(b, func(s *NodeState) { s.Container.Paused = true })), "10.0.0.a", "10.0.0.a"), id, ""},
		{"a node's container is missing", pooled(view(state(a, leading(1)), state(b, func(s *NodeState) { s.Container.Exists = false })), "10.0.0.a", "10.0.0.a"), id, ""},
		{"a node's init is at work", pooled(view(state(a, leading(1)), state(b, func(s *NodeState) { s.Init.State = node.StateWorking })), "10.0.0.a", "10.0.0.a"), id, ""},
		{"a standby keeps WAL for its primary", pooled(view(state(a, leading(1), with("b")), state(b, standing(1, 1), kept("a", false))), "10.0.0.a", "10.0.0.b"), id, "rejoin b"},
		{"somebody uses a standby's slot", pooled(view(state(a, leading(1), with("b")), state(b, standing(1, 1), kept("a", true))), "10.0.0.a", "10.0.0.b"), id, ""},
		{"a node was promoted past controld", pooled(view(state(a, leading(1)), state(b, standing(2, 1))), "10.0.0.a", "10.0.0.a"), id, ""},
		{"a standby runs with the settings of a move", pooled(view(state(a, leading(1), with("b")), state(b, standing(1, 1), func(s *NodeState) {
			s.Server.Settings = map[string]string{"autovacuum": "off"}
		})), "10.0.0.a", "10.0.0.b"), id, "rejoin b"},
		{"the primary runs with the settings of a move", pooled(view(state(a, leading(1), with("b"), func(s *NodeState) {
			s.Server.Settings = map[string]string{"autovacuum": "off"}
		}), state(b, standing(1, 1))), "10.0.0.a", "10.0.0.b"), id, "align"},
		{"a person turned autovacuum off", pooled(view(state(a, leading(1), with("b"), func(s *NodeState) {
			s.Server.Settings, s.Server.Overridden = map[string]string{"autovacuum": "off"}, []string{"autovacuum"}
		}), state(b, standing(1, 1))), "10.0.0.a", "10.0.0.b"), id, ""},
		{"a standby looks for its primary where it was", pooled(view(state(a, leading(1), with("b")), state(b, standing(1, 1), func(s *NodeState) {
			s.Server.UpstreamAddress = "10.0.0.c"
		})), "10.0.0.a", "10.0.0.b"), id, "rejoin b"},
		{"a person's slot on a standby", pooled(view(state(a, leading(1), with("b")), state(b, standing(1, 1), kept("mine", false))), "10.0.0.a", "10.0.0.b"), id, ""},
	} {
		var got []string
		for _, a := range NextActions(tt.v, tt.id, WantTargets) {
			got = append(got, strings.TrimSpace(a.Kind+" "+a.Node))
			if a.Reason == "" {
				t.Errorf("%s: no reason for %+v", tt.name, a)
			}
		}
		if got := strings.Join(got, ", "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestRateMeter(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(1000+s), 0) }
	seen := func(n Node, lsn wal.LSN, s int) View {
		return view(state(n, leading(1), func(x *NodeState) { x.Server.Flushed, x.AnsweredAt = lsn, at(s) }))
	}
	for _, tt := range []struct {
		name     string
		views    []View
		received wal.LSN
		died     int
		want     int64
		known    bool
	}{
		{"never seen", nil, 0, 0, 0, false},
		{"seen once: no rate", []View{seen(a, 1000, 0)}, 900, 5, 100, true},
		{"a quiet primary", []View{seen(a, 1000, 0), seen(a, 1000, 1)}, 1000, 5, 0, true},
		{"lag and what was written since, twice", []View{seen(a, 1000, 0), seen(a, 2000, 1)}, 1900, 3, 100 + 2*2*1000, true},
		{"what has streamed since is no loss", []View{seen(a, 1000, 0), seen(a, 2000, 1)}, 3000, 2, 2*1000 - 1000, true},
		{"died before it was last seen", []View{seen(a, 1000, 0), seen(a, 2000, 1)}, 2000, 0, 0, true},
		{"another node led before", []View{seen(b, 1, 0), seen(a, 1000, 1)}, 1000, 9, 0, true},
		{"another node leads since", []View{seen(a, 1000, 0), seen(b, 1, 1)}, 1000, 9, 0, false},
		{"a view without a primary changes nothing", []View{seen(a, 1000, 0), seen(a, 2000, 1), view(state(a))}, 2000, 2, 2000, true},
		{"the same observation twice", []View{seen(a, 1000, 0), seen(a, 2000, 1), seen(a, 2000, 1)}, 2000, 2, 2000, true},
	} {
		var r rateMeter
		for _, v := range tt.views {
			r.note(v)
		}
		if got := r.bound("a", tt.received, at(tt.died)); got.Bytes != tt.want || got.Known != tt.known || !got.Estimate {
			t.Errorf("%s: %+v, want %d bytes, known %v", tt.name, got, tt.want, tt.known)
		}
	}
}

type roomy struct{ Volumes }

func (roomy) Space(Node) (int64, int64, error) { return 1 << 40, 1 << 41, nil }

func (roomy) Compare(context.Context, Node, Node, int64) (pgwal.Comparison, error) {
	return pgwal.Comparison{Relation: pgwal.Same}, nil
}

// split are two nodes whose WAL is something else than the same.
type split struct {
	roomy
	relation pgwal.Relation
}

func (p split) Compare(context.Context, Node, Node, int64) (pgwal.Comparison, error) {
	return pgwal.Comparison{Relation: p.relation, Why: "so it is"}, nil
}

type full struct {
	roomy
	left map[string]int64
}

func (f full) Space(n Node) (int64, int64, error) { return f.left[n.Name], 1 << 41, nil }

// TestPlannedChecks makes each precheck fail by the one thing that it is about.
func TestPlannedChecks(t *testing.T) {
	for _, tt := range []struct {
		fails string
		hurt  func(v *View, from, to *NodeState)
	}{
		{"", func(*View, *NodeState, *NodeState) {}},
		{"primary-serves", func(_ *View, from, _ *NodeState) { from.Server = nil }},
		{"candidate-answers", func(_ *View, _, to *NodeState) { to.Server = nil }},
		{"candidate-is-whole", func(_ *View, _, to *NodeState) { to.Init.Unfinished = node.ActionRewind }},
		{"candidate-streams", func(_ *View, from, _ *NodeState) { from.Server.Senders = nil }},
		{"same-timeline", func(_ *View, _, to *NodeState) { to.Server.Timeline = 9 }},
		{"same-cluster", func(_ *View, _, to *NodeState) { to.Server.SystemID = 9 }},
		{"replay-runs", func(_ *View, _, to *NodeState) { to.Server.ReplayPaused = true }},
		{"candidate-lag", func(_ *View, from, to *NodeState) { from.Server.Flushed = to.Server.Replayed + 1001 }},
		{"reverse-replication", func(_ *View, _, to *NodeState) { to.Server.MaxSenders = 0 }},
		{"reverse-replication", func(_ *View, _, to *NodeState) { to.Server.MaxSlots = 0 }},
		{"settings-are-controlds", func(_ *View, from, _ *NodeState) { from.Server.Overridden = []string{"archive_command"} }},
		{"archive-is-not-behind", func(_ *View, from, _ *NodeState) { from.Server.ArchiveReady = maxPendingArchive + 1 }},
		{"no-prepared-transaction", func(_ *View, from, _ *NodeState) { from.Server.PreparedCount = 1 }},
		{"no-long-transaction", func(_ *View, from, _ *NodeState) { from.Server.Transactions = []Transaction{{Age: 6 * time.Second}} }},
		{"no-base-backup", func(_ *View, from, _ *NodeState) { from.Server.BackupRunning = true }},
		{"pooler-answers", func(v *View, _, _ *NodeState) { v.Pooler.Err = "refused" }},
	} {
		m := &Manager{set: Settings{Nodes: []Node{a, b}, MaxLagBytes: 1000, PauseDeadline: 5 * time.Second}, out: Outside{Volumes: roomy{}}}
		v := View{}
		from, to := state(a, leading(1), with("b")), state(b, standing(1, 0x200))
		tt.hurt(&v, &from, &to)
		var failed []string
		for _, c := range m.plannedChecks(v, from, to) {
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
	for relation, problem := range map[pgwal.Relation]string{pgwal.Diverged: "diverged", pgwal.Past: "diverged", pgwal.Unknown: "wal-not-compared"} {
		m := &Manager{set: Settings{Nodes: []Node{a, b}}, out: Outside{Volumes: split{relation: relation}}}
		var refusal *operation.Problem
		err := refusalOf(m.plannedChecks(View{}, state(a, leading(1), with("b")), state(b, standing(1, 0x200))))
		if !errors.As(err, &refusal) || refusal.Type != "/problems/"+problem || !strings.Contains(refusal.Detail, "so it is") {
			t.Errorf("WAL that is %s: %v", relation, err)
		}
	}
	for _, tt := range []struct {
		left map[string]int64
		want string
	}{
		{map[string]int64{"a": 800, "b": 799}, "799 bytes are free on the volume of b; 800 are needed"},
		{map[string]int64{"a": 99, "b": 800}, "99 bytes are free on the volume of a; 100 are needed, for"},
	} {
		m := &Manager{set: Settings{Nodes: []Node{a, b}, MinFreeBytes: 800}, out: Outside{Volumes: full{left: tt.left}}}
		err := refusalOf(m.plannedChecks(View{}, state(a, leading(1), with("b")), state(b, standing(1, 0x200))))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("a full disk: %v, want %q", err, tt.want)
		}
	}
}

// A failback that must rejoin its target first says before that what would refuse
// it afterwards.
func TestRejoinFirstChecks(t *testing.T) {
	m := &Manager{set: Settings{Nodes: []Node{a, b}, PauseDeadline: time.Second}, out: Outside{Volumes: full{}}}
	prepared := func(s *NodeState) { s.Server.PreparedCount = 2 }
	for _, tt := range []struct {
		from NodeState
		want string
	}{
		{state(a, leading(1)), ""},
		{state(a, leading(1), prepared), "2 prepared transactions"},
		{state(a), "a: "},
	} {
		err := refusalOf(m.rejoinFirstChecks(View{}, tt.from))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
}

func TestWhatCommitsWaitFor(t *testing.T) {
	for _, tt := range []struct {
		mode            ReplicationMode
		synced          bool
		leads, standsBy string
	}{
		{Async, false, "", ""},
		{Sync, false, "", ""},
		{Sync, true, `FIRST 1 ("b")`, ""},
		{Strict, false, `FIRST 1 ("b")`, `FIRST 1 ("b")`},
	} {
		m := &Manager{set: Settings{Nodes: []Node{a, b}, Replication: tt.mode}}
		m.view.Store(&View{Nodes: []NodeState{state(b, leading(1))}})
		if got := SynchronousNames(m.primarySettings(a, tt.synced).SynchronousStandbys); got != tt.leads {
			t.Errorf("%s, synced %v, leading: %q", tt.mode, tt.synced, got)
		}
		s := m.standbySettings(t.Context(), a, b)
		if got := SynchronousNames(s.SynchronousStandbys); got != tt.standsBy || s.RestoreCommand != "" || s.Upstream.Name != "b" || s.UpstreamAddress != "10.0.0.b" || s.Slot != "a" {
			t.Errorf("%s, standing by: %+v", tt.mode, s)
		}
	}
	if got := SynchronousNames([]string{"b", "c"}); got != `FIRST 1 ("b", "c")` {
		t.Error(got)
	}
}

func TestChangingEntries(t *testing.T) {
	p := PoolerState{Databases: []PoolerDatabase{
		{Name: "pgbouncer", Host: "x"}, {Name: ProbeEntry, Host: "x"}, {Name: "z", Host: "1"}, {Name: "z_ro", Host: "1", Paused: true}, {Name: "y", Host: "2"}, {Name: "new"},
	}}
	if got := fmt.Sprint(changingEntries(p, Targets{Primary: "1", Standby: "2"})); got != "[y z_ro]" {
		t.Errorf("changing: %s", got)
	}
	if got := fmt.Sprint(pausedEntries(p)); got != "[z_ro]" {
		t.Errorf("paused: %s", got)
	}
}
