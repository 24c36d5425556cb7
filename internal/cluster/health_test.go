package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"controld/internal/node"
	"controld/internal/operation"
)

const healthInterval = time.Second

var healthNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// healthyView is a cluster without a fault: each case of a table adds its own.
func healthyView() View {
	container := func(n int) Container {
		return Container{Exists: true, Running: true, Connected: true, Health: "running", Address: fmt.Sprintf("10.0.0.%d", n)}
	}
	primary := NodeState{
		Node: Node{Name: "pg1", Container: "t-pg1"}, SeenAt: healthNow, Container: container(1), Locked: Yes,
		Order: node.Order{Epoch: 3, Role: node.RolePrimary}, Init: node.Status{State: node.StateRunning},
		Server: &Server{Timeline: 2, Flushed: 1000, Settings: map[string]string{},
			Senders: []Sender{{Application: "pg2", State: "streaming", SyncState: "async"}},
			Slots:   []Slot{{Name: "pg2", Active: true, WALStatus: "reserved"}}},
	}
	standby := NodeState{
		Node: Node{Name: "pg2", Container: "t-pg2"}, SeenAt: healthNow, Container: container(2), Locked: Yes,
		Order: node.Order{Epoch: 2, Role: node.RoleStandby}, Init: node.Status{State: node.StateRunning},
		Server: &Server{InRecovery: true, Timeline: 2, Received: 1000, Replayed: 1000, Receiver: &Receiver{Status: "streaming"}},
	}
	return View{
		At: healthNow, Nodes: []NodeState{primary, standby},
		Pooler: PoolerState{SeenAt: healthNow, Container: container(3), Databases: []PoolerDatabase{{Name: "imdb", Host: "10.0.0.1"}, {Name: "imdb_ro", Host: "10.0.0.2"}}},
		Redis:  Component{SeenAt: healthNow, OK: true},
	}
}

func stop(s *NodeState) {
	s.Container.Running, s.Container.Health, s.Container.ExitCode = false, "exited", 137
	s.Server, s.Locked = nil, No
}

func TestAssessHealth(t *testing.T) {
	running := []operation.Record{{ID: "op1", Kind: "failover", State: operation.Running}}
	incomplete := []operation.Record{{ID: "op2", Kind: "failover", State: operation.Incomplete}}
	pause := func(v *View) { v.Pooler.Databases[0].Paused = true }
	for _, tt := range []struct {
		name     string
		change   func(*View)
		open     []operation.Record
		expected *Expectation
		status   HealthStatus
		reason   string
		do       string // a part of what to do
		also     string // another component that must not be ok
	}{
		{name: "all is well", status: HealthOK},
		{name: "all is well while an operation runs", open: running, status: HealthOK},

		{name: "nothing observed yet", change: func(v *View) { *v = View{} }, status: HealthDown, reason: "stale", do: "Wait"},
		{name: "at the limit of stale", change: func(v *View) { v.At = healthNow.Add(-3 * healthInterval) }, status: HealthOK},
		{name: "stale", change: func(v *View) { v.At = healthNow.Add(-3*healthInterval - 1) }, status: HealthDown, reason: "stale", do: "log"},
		{name: "stale also in a pause", change: func(v *View) { v.At = healthNow.Add(-time.Minute); pause(v) }, open: running, status: HealthDown, reason: "stale"},
		{name: "the primary was not observed lately", change: func(v *View) { v.Nodes[0].SeenAt = healthNow.Add(-time.Minute) }, status: HealthDown, reason: "no-primary", also: "pg1"},

		{name: "two primaries", change: func(v *View) { v.Nodes[1].Server.InRecovery = false }, status: HealthDown, reason: "two-primaries", do: "docker kill -s KILL t-pg2"},
		{name: "two primaries and no journal", change: func(v *View) { v.Nodes[1].Server.InRecovery = false }, expected: &Expectation{}, status: HealthDown, reason: "two-primaries", do: "Decide"},
		{name: "two primaries while an operation runs", change: func(v *View) { v.Nodes[1].Server.InRecovery = false }, open: running, status: HealthDown, reason: "two-primaries"},
		{name: "both in recovery", change: func(v *View) { v.Nodes[0].Server.InRecovery = true }, status: HealthDown, reason: "all-in-recovery", do: "controld start pg1"},
		{name: "the primary died", change: func(v *View) { stop(&v.Nodes[0]) }, status: HealthDown, reason: "no-primary", do: "controld failover", also: "pg1"},
		{name: "both died", change: func(v *View) { stop(&v.Nodes[0]); stop(&v.Nodes[1]) }, status: HealthDown, reason: "no-primary", do: "controld start pg1", also: "pg2"},
		{name: "nothing was ever started", change: func(v *View) { stop(&v.Nodes[0]); stop(&v.Nodes[1]) }, expected: &Expectation{}, status: HealthDown, reason: "no-primary", do: "first start"},
		{name: "the primary is fenced and an operation works on it", change: func(v *View) { stop(&v.Nodes[0]); v.Nodes[0].Order.Role = node.RoleNone }, open: running, status: HealthDown, reason: "no-primary", do: "controld operations follow op1"},

		{name: "a pause", change: pause, open: running, status: HealthDegraded, reason: "pause", do: "op1"},
		{name: "a pause without a primary", change: func(v *View) { pause(v); v.Nodes[0].Server = nil }, open: running, status: HealthDegraded, reason: "pause"},
		{name: "a pause that nobody holds", change: pause, status: HealthDegraded, reason: "paused", do: "RESUME", also: "pooler"},
		{name: "incomplete", open: incomplete, status: HealthDegraded, reason: "incomplete", do: "controld operations show op2"},
		{name: "incomplete and no primary", change: func(v *View) { stop(&v.Nodes[0]) }, open: incomplete, status: HealthDown, reason: "no-primary", do: "op2"},

		{name: "another leads than recorded", expected: &Expectation{Primary: "pg2"}, status: HealthDegraded, reason: "unexpected-primary", do: "controld start pg1"},
		{name: "it leads with its order withdrawn", change: func(v *View) { v.Nodes[0].Order.Role = node.RoleNone }, status: HealthDegraded, reason: "order-withdrawn", do: "controld start pg1"},
		{name: "it has no connection left", change: func(v *View) { v.Nodes[0].Full = true }, status: HealthDegraded, reason: "connections-full", do: "max_connections"},
		{name: "orders change on purpose", change: func(v *View) { v.Nodes[0].Order.Role = node.RoleNone }, open: running, status: HealthOK},

		{name: "the standby died", change: func(v *View) { stop(&v.Nodes[1]) }, status: HealthDegraded, reason: "no-standby", do: "controld start pg2", also: "pg2"},
		{name: "the standby is fenced", change: func(v *View) { v.Nodes[1].Server, v.Nodes[1].Order.Role = nil, node.RoleNone }, status: HealthDegraded, reason: "no-standby", also: "pg2"},
		{name: "the standby is frozen", change: func(v *View) { v.Nodes[1].Server, v.Nodes[1].Container.Paused = nil, true }, status: HealthDegraded, reason: "no-standby", also: "pg2"},
		{name: "the standby does not stream", change: func(v *View) { v.Nodes[1].Server.Receiver = nil }, status: HealthDegraded, reason: "not-streaming", do: "controld rejoin pg2"},
		{name: "the standby waits", change: func(v *View) { v.Nodes[1].Server.Receiver.Status = "waiting" }, status: HealthDegraded, reason: "not-streaming"},
		{name: "the standby is on an old timeline", change: func(v *View) { v.Nodes[1].Server.Timeline = 1 }, status: HealthDegraded, reason: "timeline"},
		{name: "the slot is lost", change: func(v *View) { v.Nodes[0].Server.Slots[0].WALStatus = "lost" }, status: HealthDegraded, reason: "slot-lost", do: "basebackup"},
		{name: "replay is paused", change: func(v *View) { v.Nodes[1].Server.ReplayPaused = true }, status: HealthDegraded, reason: "replay-paused", do: "pg_wal_replay_resume"},
		{name: "lag in bytes", change: func(v *View) { v.Nodes[0].Server.Flushed = 1001 + UnhealthyLagBytes }, status: HealthDegraded, reason: "lag"},
		{name: "a lag that is none", change: func(v *View) { v.Nodes[0].Server.Flushed = 1000 + UnhealthyLagBytes }, status: HealthOK},
		{name: "lag in time", change: func(v *View) { v.Nodes[1].Server.Lag = UnhealthyLag + 1 }, status: HealthDegraded, reason: "lag"},
		{name: "commits wait for nobody by ALTER SYSTEM", change: func(v *View) {
			v.Nodes[0].Server.Settings["synchronous_standby_names"] = "*"
			v.Nodes[0].Server.Overridden = []string{"synchronous_standby_names"}
		}, status: HealthDegraded, reason: "sync-blocked", do: "ALTER SYSTEM RESET"},
		{name: "commits wait for nobody", change: func(v *View) { v.Nodes[0].Server.Settings["synchronous_standby_names"] = "FIRST 1 (pg2)" }, status: HealthDegraded, reason: "sync-blocked"},
		{name: "commits wait for the standby", change: func(v *View) {
			v.Nodes[0].Server.Settings["synchronous_standby_names"] = "FIRST 1 (pg2)"
			v.Nodes[0].Server.Senders[0].SyncState = "sync"
		}, status: HealthOK},

		{name: "redis is down", change: func(v *View) { v.Redis = Component{SeenAt: healthNow, Detail: "refused"} }, status: HealthDegraded, reason: "redis-down", do: "docker start redis", also: "redis"},
		{name: "redis was never seen", change: func(v *View) { v.Redis = Component{} }, status: HealthDegraded, reason: "redis-unknown"},
		{name: "archiving fails", change: func(v *View) { v.Nodes[0].Server.ArchiveLastFailedAt = healthNow }, status: HealthDegraded, reason: "archiving-failing", do: "log"},
		{name: "archiving failed once", change: func(v *View) {
			v.Nodes[0].Server.ArchiveLastFailedAt, v.Nodes[0].Server.ArchiveLastAt = healthNow.Add(-time.Minute), healthNow
		}, status: HealthOK},
		{name: "archiving is behind", change: func(v *View) { v.Nodes[0].Server.ArchiveReady = UnhealthyArchiveReady + 1 }, status: HealthDegraded, reason: "archiving-behind"},

		{name: "the pooler died", change: func(v *View) { v.Pooler.Container.Running = false }, status: HealthDegraded, reason: "container-stopped", do: "docker start pgbouncer", also: "pooler"},
		{name: "the pooler is gone", change: func(v *View) { v.Pooler.Container = Container{} }, status: HealthDegraded, reason: "container-missing", do: "make up"},
		{name: "the pooler hangs", change: func(v *View) { v.Pooler.Err = "timeout" }, status: HealthDegraded, reason: "not-answering"},
		{name: "the pooler leads to the standby", change: func(v *View) { v.Pooler.Databases[0].Host = "10.0.0.2" }, status: HealthDegraded, reason: "points-elsewhere"},
		{name: "the standby's entry leads to the primary", change: func(v *View) { v.Pooler.Databases[1].Host = "10.0.0.1" }, status: HealthOK},

		{name: "an action runs", change: func(v *View) {
			v.Nodes[1].Server, v.Nodes[1].Init.State, v.Nodes[1].Init.Unfinished, v.Nodes[1].Order.Action = nil, node.StateWorking, node.ActionBaseBackup, node.ActionBaseBackup
		}, status: HealthDegraded, reason: "no-standby", also: "pg2"},
		{name: "a container is cut off", change: func(v *View) { v.Nodes[1].Container.Connected = false }, status: HealthDegraded, reason: "disconnected"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := healthyView()
			if tt.change != nil {
				tt.change(&v)
			}
			expected := Expectation{Primary: "pg1", Epoch: 3, Preferred: "pg1"}
			if tt.expected != nil {
				expected = *tt.expected
			}
			h := AssessHealth(v, expected, tt.open, healthNow, healthInterval)
			if h.Status != tt.status || h.Reason != tt.reason || !strings.Contains(h.Do, tt.do) {
				t.Errorf("%s %q, do %q; want %s %q, do %q", h.Status, h.Reason, h.Do, tt.status, tt.reason, tt.do)
			}
			if len(tt.open) > 0 && h.Operation != tt.open[0].ID {
				t.Errorf("names operation %q", h.Operation)
			}
			seen := tt.also == ""
			for _, c := range h.Components {
				seen = seen || c.Name == tt.also && c.Status != HealthOK
				if c.Status != HealthOK && (c.Reason == "" || c.Detail == "" || c.Do == "") {
					t.Errorf("component without a reason or what to do: %+v", c)
				}
			}
			if !seen {
				t.Errorf("component %s is ok: %+v", tt.also, h.Components)
			}
		})
	}
}

// Each state of a node is told apart, with what to do.
func TestNodeHealth(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*NodeState)
		reason string
		do     string
	}{
		{"well", func(*NodeState) {}, "", ""},
		{"container missing", func(s *NodeState) { s.Container = Container{} }, "container-missing", "make up"},
		{"container stopped", stop, "container-stopped", "controld start pg2"},
		{"frozen", func(s *NodeState) { s.Container.Paused = true }, "container-paused", "docker unpause t-pg2"},
		{"unfinished", func(s *NodeState) { s.Server, s.Init.Unfinished = nil, node.ActionRewind }, "unfinished", "--method basebackup"},
		{"working", func(s *NodeState) {
			s.Server, s.Init = nil, node.Status{State: node.StateWorking, Unfinished: node.ActionBaseBackup}
		}, "working", "Wait"},
		{"order refused", func(s *NodeState) { s.Server, s.Init.State, s.Init.Error = nil, node.StateRefused, "used" }, "order-refused", "controld rejoin pg2"},
		{"fenced", func(s *NodeState) { s.Server, s.Order.Role = nil, node.RoleNone }, "fenced", "controld rejoin pg2"},
		{"no order yet", func(s *NodeState) { s.Server, s.Order = nil, node.Order{} }, "no-order", "first start"},
		{"ended by itself", func(s *NodeState) { s.Server, s.Init.State = nil, node.StateEnded }, "ended", "controld start pg2"},
		{"hangs", func(s *NodeState) { s.Server, s.ServerErr = nil, "timeout" }, "not-answering", "docker logs t-pg2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := healthyView()
			tt.change(&v.Nodes[1])
			h := AssessHealth(v, Expectation{Primary: "pg1"}, nil, healthNow, healthInterval)
			for _, c := range h.Components {
				if c.Name == "pg2" && (c.Reason != tt.reason || !strings.Contains(c.Do, tt.do)) {
					t.Errorf("%+v, want %q, do %q", c, tt.reason, tt.do)
				}
			}
		})
	}
}

func TestAssessDisk(t *testing.T) {
	const gb = 1 << 30
	for _, tt := range []struct {
		free, total int64
		want        HealthStatus
	}{
		{50 * gb, 100 * gb, HealthOK},
		{2 * gb, 100 * gb, HealthOK}, // enough to go on for a while
		{gb / 2, 2 * gb, HealthOK},   // a small disk that is not full
		{gb / 2, 100 * gb, HealthDegraded},
		{0, 100 * gb, HealthDegraded},
	} {
		c := AssessDisk("pg1", tt.free, tt.total)
		if c.Status != tt.want {
			t.Errorf("%d of %d free: %s, want %s", tt.free, tt.total, c.Status, tt.want)
		}
	}
	v := healthyView()
	v.Nodes[0].FreeBytes, v.Nodes[0].TotalBytes = 0, gb
	h := AssessHealth(v, Expectation{Primary: "pg1"}, nil, healthNow, healthInterval)
	if h.Status != HealthDegraded || h.Reason != "disk-low" {
		t.Errorf("%+v", h)
	}
}

func TestWritable(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*View)
		node   string
		want   bool
	}{
		{"leads", func(*View) {}, "pg1", true},
		{"standby", func(*View) {}, "pg2", false},
		{"no such node", func(*View) {}, "pg9", false},
		{"withdrawn", func(v *View) { v.Nodes[0].Order.Role = node.RoleNone }, "pg1", false},
		{"leads without an order", func(v *View) { v.Nodes[0].Order = node.Order{} }, "pg1", false},
		{"stale", func(v *View) { v.At = healthNow.Add(-time.Minute) }, "pg1", false},
		{"stale node", func(v *View) { v.Nodes[0].SeenAt = time.Time{} }, "pg1", false},
		{"another leads by a newer order", func(v *View) {
			v.Nodes[1].Server.InRecovery, v.Nodes[1].Order = false, node.Order{Epoch: 4, Role: node.RolePrimary}
		}, "pg1", false},
		{"another leads by an older order", func(v *View) {
			v.Nodes[1].Server.InRecovery, v.Nodes[1].Order = false, node.Order{Epoch: 2, Role: node.RolePrimary}
		}, "pg1", true},
	} {
		v := healthyView()
		tt.change(&v)
		got, why := Writable(v, tt.node, healthNow, healthInterval)
		if got != tt.want || got == (why != "") {
			t.Errorf("%s: %v %q", tt.name, got, why)
		}
	}
}

func TestReadable(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*View)
		node   string
		lag    int64
		want   bool
	}{
		{"standby", func(*View) {}, "pg2", 0, true},
		{"primary", func(*View) {}, "pg1", -1, false},
		{"behind, any lag will do", func(v *View) { v.Nodes[0].Server.Flushed = 5000 }, "pg2", -1, true},
		{"behind", func(v *View) { v.Nodes[0].Server.Flushed = 5000 }, "pg2", 3999, false},
		{"just not behind", func(v *View) { v.Nodes[0].Server.Flushed = 5000 }, "pg2", 4000, true},
		{"lag unknown", func(v *View) { v.Nodes[0].Server = nil }, "pg2", 4000, false},
		{"lag unknown, any will do", func(v *View) { v.Nodes[0].Server = nil }, "pg2", -1, true},
		{"stale", func(v *View) { v.Nodes[1].SeenAt = time.Time{} }, "pg2", -1, false},
	} {
		v := healthyView()
		tt.change(&v)
		got, why := Readable(v, tt.node, healthNow, healthInterval, tt.lag)
		if got != tt.want || got == (why != "") {
			t.Errorf("%s: %v %q", tt.name, got, why)
		}
	}
}
