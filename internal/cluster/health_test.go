package cluster_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/health"
	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/rights"
)

const healthInterval = time.Second

var healthNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// healthyView is a cluster without a fault: each case of a table adds its own.
func healthyView() cluster.View {
	container := func(n int) cluster.Container {
		return cluster.Container{Exists: true, Running: true, Connected: true, Health: "running", Address: fmt.Sprintf("10.0.0.%d", n)}
	}
	primary := cluster.NodeState{
		Node: cluster.Node{Name: "pg1", Container: "t-pg1"}, SeenAt: healthNow, Container: container(1), Locked: cluster.Yes,
		Order: node.Order{Epoch: 3, Role: node.RolePrimary}, Init: node.Status{State: node.StateRunning},
		Server: &cluster.Server{Timeline: 2, Flushed: 1000, Rights: rights.Version, Settings: map[string]string{},
			Senders: []cluster.Sender{{Application: "pg2", State: "streaming", SyncState: "async"}},
			Slots:   []cluster.Slot{{Name: "pg2", Active: true, WALStatus: "reserved"}}},
	}
	standby := cluster.NodeState{
		Node: cluster.Node{Name: "pg2", Container: "t-pg2"}, SeenAt: healthNow, Container: container(2), Locked: cluster.Yes,
		Order: node.Order{Epoch: 2, Role: node.RoleStandby}, Init: node.Status{State: node.StateRunning},
		Server: &cluster.Server{InRecovery: true, Timeline: 2, Received: 1000, Replayed: 1000,
			Receiver: &cluster.Receiver{Status: "streaming"}},
	}
	pooler := cluster.PoolerState{
		SeenAt: healthNow, Container: container(3),
		Databases: []cluster.PoolerDatabase{{Name: "imdb", Host: "10.0.0.1"}, {Name: "imdb_ro", Host: "10.0.0.2"}},
	}
	return cluster.View{At: healthNow, Nodes: []cluster.NodeState{primary, standby}, Pooler: pooler}
}

func stop(s *cluster.NodeState) {
	s.Container.Running, s.Container.Health, s.Container.ExitCode = false, "exited", 137
	s.Server, s.Locked = nil, cluster.No
}

func TestAssessHealth(t *testing.T) {
	running := []operation.Record{{ID: "op1", Kind: "failover", State: operation.Running}}
	incomplete := []operation.Record{{ID: "op2", Kind: "failover", State: operation.Incomplete}}
	noJournal := &cluster.Expectation{}
	primary := func(change func(p *cluster.NodeState)) func(*cluster.View) {
		return func(v *cluster.View) { change(&v.Nodes[0]) }
	}
	standby := func(change func(s *cluster.NodeState)) func(*cluster.View) {
		return func(v *cluster.View) { change(&v.Nodes[1]) }
	}
	pooler := func(change func(p *cluster.PoolerState)) func(*cluster.View) {
		return func(v *cluster.View) { change(&v.Pooler) }
	}
	pause := func(v *cluster.View) { v.Pooler.Databases[0].Paused = true }
	bothLead := func(v *cluster.View) { v.Nodes[1].Server.InRecovery = false }
	bothStop := func(v *cluster.View) { stop(&v.Nodes[0]); stop(&v.Nodes[1]) }
	seenAgo := func(d time.Duration) func(*cluster.View) {
		return func(v *cluster.View) { v.At = healthNow.Add(-d) }
	}
	withdrawn := func(s *cluster.NodeState) { s.Order.Role = node.RoleNone }
	fenced := func(s *cluster.NodeState) { stop(s); withdrawn(s) }
	waits := func(names string) func(*cluster.View) {
		return func(v *cluster.View) { v.Nodes[0].Server.Settings["synchronous_standby_names"] = names }
	}
	for _, tt := range []struct {
		name     string
		change   func(*cluster.View)
		open     []operation.Record
		expected *cluster.Expectation
		status   health.Status
		reason   string
		do       string // a part of what to do
		detail   string // a part of it
		also     string // another component that must not be ok
	}{
		{name: "all is well", status: health.OK},
		{name: "all is well while an operation runs", open: running, status: health.OK},

		{name: "nothing observed yet", change: func(v *cluster.View) { *v = cluster.View{} },
			status: health.Down, reason: "stale", do: "Wait"},
		{name: "at the limit of stale", change: seenAgo(3 * healthInterval), status: health.OK},
		{name: "stale", change: seenAgo(3*healthInterval + 1), status: health.Down, reason: "stale", do: "log"},
		{name: "stale also in a pause", change: func(v *cluster.View) { v.At = healthNow.Add(-time.Minute); pause(v) }, open: running,
			status: health.Down, reason: "stale"},
		{name: "the primary was not observed lately", change: primary(func(p *cluster.NodeState) {
			p.SeenAt = healthNow.Add(-time.Minute)
		}), status: health.Down, reason: "no-primary", also: "pg1"},

		{name: "two primaries", change: bothLead, status: health.Down, reason: "two-primaries", do: "docker kill -s KILL t-pg2"},
		{name: "two primaries and no journal", change: bothLead, expected: noJournal,
			status: health.Down, reason: "two-primaries", do: "Decide"},
		{name: "two primaries while an operation runs", change: bothLead, open: running, status: health.Down, reason: "two-primaries"},
		{name: "both in recovery", change: primary(func(p *cluster.NodeState) { p.Server.InRecovery = true }),
			status: health.Down, reason: "all-in-recovery", do: "controld start pg1"},
		{name: "the primary died", change: primary(stop), status: health.Down, reason: "no-primary", do: "controld failover",
			detail: "pg2 is in recovery", also: "pg1"},
		{name: "both died", change: bothStop, status: health.Down, reason: "no-primary", do: "controld start pg1",
			detail: "no standby answers", also: "pg2"},
		{name: "nothing was ever started", change: bothStop, expected: noJournal,
			status: health.Down, reason: "no-primary", do: "first start"},
		{name: "the primary is fenced and an operation works on it", change: primary(fenced), open: running,
			status: health.Down, reason: "no-primary", do: "controld operations follow op1"},

		{name: "a pause", change: pause, open: running, status: health.Degraded, reason: "pause", do: "op1"},
		{name: "a pause without a primary", change: func(v *cluster.View) { pause(v); v.Nodes[0].Server = nil }, open: running,
			status: health.Degraded, reason: "pause"},
		{name: "a pause that nobody holds", change: pause, status: health.Degraded, reason: "paused", do: "RESUME", also: "pooler"},
		{name: "incomplete", open: incomplete, status: health.Degraded, reason: "incomplete", do: "controld operations show op2"},
		{name: "incomplete and no primary", change: primary(stop), open: incomplete, status: health.Down, reason: "no-primary", do: "op2"},

		{name: "another leads than recorded", expected: &cluster.Expectation{Primary: "pg2"},
			status: health.Degraded, reason: "unexpected-primary", do: "controld start pg1"},
		{name: "it leads with its order withdrawn", change: primary(withdrawn),
			status: health.Degraded, reason: "order-withdrawn", do: "controld start pg1"},
		{name: "it has no connection left", change: primary(func(p *cluster.NodeState) { p.Full = true }),
			status: health.Degraded, reason: "connections-full", do: "max_connections"},
		{name: "orders change on purpose", change: primary(withdrawn), open: running, status: health.OK},

		{name: "it answers late", change: primary(func(p *cluster.NodeState) {
			p.Late, p.AnsweredAt = true, healthNow.Add(-3*healthInterval)
		}), status: health.OK},
		{name: "it has not answered for long", change: primary(func(p *cluster.NodeState) {
			p.Late, p.AnsweredAt = true, healthNow.Add(-3*healthInterval-1)
		}), status: health.Degraded, reason: "not-answering", do: "docker stats t-pg1", detail: "has not answered for 3s;"},
		{name: "it lets nobody in for a while", change: primary(func(p *cluster.NodeState) {
			p.LoginFailingSince = healthNow.Add(-15 * time.Second)
		}), status: health.OK},
		{name: "it lets nobody in for long", change: primary(func(p *cluster.NodeState) {
			p.LoginFailingSince = healthNow.Add(-15*time.Second - 1)
		}), status: health.Degraded, reason: "not-answering"},
		{name: "it is left alone by an operation", change: primary(func(p *cluster.NodeState) {
			p.Late, p.AnsweredAt = true, healthNow.Add(-time.Minute)
		}), open: running, status: health.OK},
		{name: "an earlier version made it", change: primary(func(p *cluster.NodeState) { p.Server.Rights-- }),
			status: health.Degraded, reason: "rights-outdated"},
		{name: "an earlier version made it, and an operation runs", change: primary(func(p *cluster.NodeState) {
			p.Server.Rights--
		}), open: running, status: health.OK},
		{name: "settings wait for its start", change: primary(func(p *cluster.NodeState) {
			p.Server.PendingRestart = []string{"max_connections"}
		}), status: health.Degraded, reason: "restart-pending", do: "controld failover", also: "pg1"},
		{name: "settings wait for the standby's start", change: standby(func(s *cluster.NodeState) {
			s.Server.PendingRestart = []string{"max_connections"}
		}), status: health.Degraded, reason: "restart-pending", do: "docker restart t-pg2", also: "pg2"},
		{name: "its only node is in recovery", change: func(v *cluster.View) { v.Nodes = v.Nodes[1:] },
			status: health.Down, reason: "no-primary", do: "controld failover"},
		{name: "two of three are in recovery", change: func(v *cluster.View) {
			third := v.Nodes[1]
			third.Node.Name = "pg3"
			v.Nodes = append(v.Nodes, third)
			stop(&v.Nodes[0])
		}, status: health.Down, reason: "no-primary", do: "controld failover", detail: "pg2, pg3 are", also: "pg1"},
		{name: "an entry of the pooler's own", change: pooler(func(p *cluster.PoolerState) {
			p.Databases = append(p.Databases, cluster.PoolerDatabase{Name: "controld_probe", Host: "10.0.0.2"})
		}), status: health.OK},
		{name: "an entry that leads to a stranger", change: pooler(func(p *cluster.PoolerState) { p.Databases[0].Host = "10.0.0.9" }),
			status: health.OK},
		{name: "an entry that leads nowhere", change: func(v *cluster.View) {
			v.Pooler.Databases[0].Host = ""
			v.Nodes[1].Container.Address = ""
		}, status: health.OK},

		{name: "the standby died", change: standby(stop),
			status: health.Degraded, reason: "no-standby", do: "controld start pg2", also: "pg2"},
		{name: "the standby is fenced", change: standby(func(s *cluster.NodeState) { s.Server, s.Order.Role = nil, node.RoleNone }),
			status: health.Degraded, reason: "no-standby", also: "pg2"},
		{name: "the standby is frozen", change: standby(func(s *cluster.NodeState) { s.Server, s.Container.Paused = nil, true }),
			status: health.Degraded, reason: "no-standby", also: "pg2"},
		{name: "the standby does not stream", change: standby(func(s *cluster.NodeState) { s.Server.Receiver = nil }),
			status: health.Degraded, reason: "not-streaming", do: "controld rejoin pg2"},
		{name: "the standby waits", change: standby(func(s *cluster.NodeState) { s.Server.Receiver.Status = "waiting" }),
			status: health.Degraded, reason: "not-streaming"},
		{name: "the standby is on an old timeline", change: standby(func(s *cluster.NodeState) { s.Server.Timeline = 1 }),
			status: health.Degraded, reason: "timeline"},
		{name: "the slot is lost", change: primary(func(p *cluster.NodeState) { p.Server.Slots[0].WALStatus = "lost" }),
			status: health.Degraded, reason: "slot-lost", do: "basebackup"},
		{name: "replay is paused", change: standby(func(s *cluster.NodeState) { s.Server.ReplayPaused = true }),
			status: health.Degraded, reason: "replay-paused", do: "pg_wal_replay_resume"},
		{name: "lag in bytes", change: primary(func(p *cluster.NodeState) { p.Server.Flushed = 1001 + cluster.UnhealthyLagBytes }),
			status: health.Degraded, reason: "lag"},
		{name: "a lag that is none", change: primary(func(p *cluster.NodeState) { p.Server.Flushed = 1000 + cluster.UnhealthyLagBytes }),
			status: health.OK},
		{name: "a lag in time that is none", change: standby(func(s *cluster.NodeState) { s.Server.Lag = 30 * time.Second }),
			status: health.OK},
		{name: "lag in time", change: standby(func(s *cluster.NodeState) { s.Server.Lag = 30*time.Second + 1 }),
			status: health.Degraded, reason: "lag"},
		{name: "commits wait for nobody by ALTER SYSTEM", change: func(v *cluster.View) {
			waits("*")(v)
			v.Nodes[0].Server.Overridden = []string{"synchronous_standby_names"}
		}, status: health.Degraded, reason: "sync-blocked", do: "ALTER SYSTEM RESET"},
		{name: "commits wait for nobody", change: waits("FIRST 1 (pg2)"), status: health.Degraded, reason: "sync-blocked"},
		{name: "commits wait for the standby", change: func(v *cluster.View) {
			waits("FIRST 1 (pg2)")(v)
			v.Nodes[0].Server.Senders[0].SyncState = "sync"
		}, status: health.OK},

		{name: "archiving fails", change: primary(func(p *cluster.NodeState) { p.Server.ArchiveLastFailedAt = healthNow }),
			status: health.Degraded, reason: "archiving-failing", do: "log"},
		{name: "archiving failed once", change: primary(func(p *cluster.NodeState) {
			p.Server.ArchiveLastFailedAt, p.Server.ArchiveLastAt = healthNow.Add(-time.Minute), healthNow
		}), status: health.OK},
		{name: "archiving is as far behind as it may be", change: primary(func(p *cluster.NodeState) {
			p.Server.ArchiveReady = cluster.UnhealthyArchiveReady
		}), status: health.OK},
		{name: "archiving is behind", change: primary(func(p *cluster.NodeState) {
			p.Server.ArchiveReady = cluster.UnhealthyArchiveReady + 1
		}), status: health.Degraded, reason: "archiving-behind"},

		{name: "the pooler died", change: pooler(func(p *cluster.PoolerState) { p.Container.Running = false }),
			status: health.Degraded, reason: "container-stopped", do: "docker start pgbouncer", also: "pooler"},
		{name: "the pooler is gone", change: pooler(func(p *cluster.PoolerState) { p.Container = cluster.Container{} }),
			status: health.Degraded, reason: "container-missing", do: "make up"},
		{name: "the pooler hangs", change: pooler(func(p *cluster.PoolerState) { p.Err = "timeout" }),
			status: health.Degraded, reason: "not-answering"},
		{name: "the pooler leads to the standby", change: pooler(func(p *cluster.PoolerState) { p.Databases[0].Host = "10.0.0.2" }),
			status: health.Degraded, reason: "points-elsewhere"},
		{name: "the standby's entry leads to the primary", change: pooler(func(p *cluster.PoolerState) {
			p.Databases[1].Host = "10.0.0.1"
		}), status: health.OK},

		{name: "an action runs", change: func(v *cluster.View) {
			s := &v.Nodes[1]
			s.Server, s.Order.Action = nil, node.ActionBaseBackup
			s.Init.State, s.Init.Unfinished = node.StateWorking, node.ActionBaseBackup
		}, status: health.Degraded, reason: "no-standby", also: "pg2"},
		{name: "a container is cut off", change: standby(func(s *cluster.NodeState) { s.Container.Connected = false }),
			status: health.Degraded, reason: "disconnected"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := healthyView()
			if tt.change != nil {
				tt.change(&v)
			}
			expected := cluster.Expectation{Primary: "pg1", Epoch: 3, Preferred: "pg1"}
			if tt.expected != nil {
				expected = *tt.expected
			}
			h := cluster.AssessHealth(v, expected, tt.open, healthNow, healthInterval)
			if h.Status != tt.status || h.Reason != tt.reason || !strings.Contains(h.Do, tt.do) || !strings.Contains(h.Detail, tt.detail) {
				t.Errorf("%s %q, %q, do %q; want %s %q, %q, do %q", h.Status, h.Reason, h.Detail, h.Do, tt.status, tt.reason,
					tt.detail, tt.do)
			}
			if len(tt.open) > 0 && h.Operation != tt.open[0].ID {
				t.Errorf("names operation %q", h.Operation)
			}
			seen := tt.also == ""
			for _, c := range h.Components {
				seen = seen || c.Name == tt.also && c.Status != health.OK
				if c.Status != health.OK && (c.Reason == "" || c.Detail == "" || c.Do == "") {
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
		change func(*cluster.NodeState)
		reason string
		do     string
	}{
		{"well", func(*cluster.NodeState) {}, "", ""},
		{"container missing", func(s *cluster.NodeState) { s.Container = cluster.Container{} }, "container-missing", "make up"},
		{"container stopped", stop, "container-stopped", "controld start pg2"},
		{"frozen", func(s *cluster.NodeState) { s.Container.Paused = true }, "container-paused", "docker unpause t-pg2"},
		{"unfinished", func(s *cluster.NodeState) {
			s.Server, s.Init.Unfinished = nil, node.ActionRewind
		}, "unfinished", "--method basebackup"},
		{"working", func(s *cluster.NodeState) {
			s.Server, s.Init = nil, node.Status{State: node.StateWorking, Unfinished: node.ActionBaseBackup}
		}, "working", "Wait"},
		{"order refused", func(s *cluster.NodeState) {
			s.Server, s.Init = nil, node.Status{State: node.StateRefused, Error: "used"}
		}, "order-refused", "controld rejoin pg2"},
		{"fenced", func(s *cluster.NodeState) { s.Server, s.Order.Role = nil, node.RoleNone }, "fenced", "controld rejoin pg2"},
		{"no order yet", func(s *cluster.NodeState) { s.Server, s.Order = nil, node.Order{} }, "no-order", "first start"},
		{"ended by itself", func(s *cluster.NodeState) { s.Server, s.Init.State = nil, node.StateEnded }, "ended", "controld start pg2"},
		{"hangs", func(s *cluster.NodeState) { s.Server, s.ServerErr = nil, "timeout" }, "not-answering", "docker logs t-pg2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := healthyView()
			tt.change(&v.Nodes[1])
			h := cluster.AssessHealth(v, cluster.Expectation{Primary: "pg1"}, nil, healthNow, healthInterval)
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
		want        health.Status
	}{
		{50 * gb, 100 * gb, health.OK},
		{2 * gb, 100 * gb, health.OK}, // enough to go on for a while
		{gb / 2, 2 * gb, health.OK},   // a small disk that is not full
		{gb, 100 * gb, health.OK},
		{gb - 1, 100 * gb, health.Degraded},
		{gb / 10, gb, health.Degraded},
		{500, 5000, health.OK}, // a tenth
		{499, 5000, health.Degraded},
		{0, 100 * gb, health.Degraded},
	} {
		c := cluster.AssessDisk("pg1", tt.free, tt.total)
		if c.Status != tt.want {
			t.Errorf("%d of %d free: %s, want %s", tt.free, tt.total, c.Status, tt.want)
		}
	}
	v := healthyView()
	disks := func(h health.Report) (names []string) {
		for _, c := range h.Components {
			if strings.HasPrefix(c.Name, cluster.ComponentDisk) {
				names = append(names, c.Name)
			}
		}
		return names
	}
	h := cluster.AssessHealth(v, cluster.Expectation{Primary: "pg1"}, nil, healthNow, healthInterval)
	if got := disks(h); got != nil {
		t.Errorf("disks of which nothing is known are judged: %q", got)
	}
	v.Nodes[0].FreeBytes, v.Nodes[0].TotalBytes = 0, gb
	h = cluster.AssessHealth(v, cluster.Expectation{Primary: "pg1"}, nil, healthNow, healthInterval)
	if got := disks(h); len(got) != 1 {
		t.Errorf("one disk is known, judged are %q", got)
	}
	if h.Status != health.Degraded || h.Reason != "disk-low" {
		t.Errorf("%+v", h)
	}
}

func TestWritable(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*cluster.View)
		node   string
		want   bool
	}{
		{"leads", func(*cluster.View) {}, "pg1", true},
		{"standby", func(*cluster.View) {}, "pg2", false},
		{"no such node", func(*cluster.View) {}, "pg9", false},
		{"withdrawn", func(v *cluster.View) { v.Nodes[0].Order.Role = node.RoleNone }, "pg1", false},
		{"leads without an order", func(v *cluster.View) { v.Nodes[0].Order = node.Order{} }, "pg1", false},
		{"stale", func(v *cluster.View) { v.At = healthNow.Add(-time.Minute) }, "pg1", false},
		{"stale node", func(v *cluster.View) { v.Nodes[0].SeenAt = time.Time{} }, "pg1", false},
		{"another leads by a newer order", func(v *cluster.View) {
			v.Nodes[1].Server.InRecovery, v.Nodes[1].Order = false, node.Order{Epoch: 4, Role: node.RolePrimary}
		}, "pg1", false},
		{"as old as a fresh look may be", func(v *cluster.View) {
			v.At, v.Nodes[0].SeenAt = healthNow.Add(-3*healthInterval), healthNow.Add(-3*healthInterval)
		}, "pg1", true},
		{"another leads by the same order", func(v *cluster.View) {
			v.Nodes[1].Server.InRecovery, v.Nodes[1].Order = false, v.Nodes[0].Order
		}, "pg1", true},
		{"another has a newer order and follows", func(v *cluster.View) {
			v.Nodes[1].Order = node.Order{Epoch: 4, Role: node.RolePrimary}
		}, "pg1", true},
		{"another leads by an older order", func(v *cluster.View) {
			v.Nodes[1].Server.InRecovery, v.Nodes[1].Order = false, node.Order{Epoch: 2, Role: node.RolePrimary}
		}, "pg1", true},
	} {
		v := healthyView()
		tt.change(&v)
		got, why := cluster.Writable(v, tt.node, healthNow, healthInterval)
		if got != tt.want || got == (why != "") {
			t.Errorf("%s: %v %q", tt.name, got, why)
		}
	}
}

func TestReadable(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*cluster.View)
		node   string
		lag    int64
		want   bool
	}{
		{"standby", func(*cluster.View) {}, "pg2", 0, true},
		{"primary", func(*cluster.View) {}, "pg1", -1, false},
		{"behind, any lag will do", func(v *cluster.View) { v.Nodes[0].Server.Flushed = 5000 }, "pg2", -1, true},
		{"behind", func(v *cluster.View) { v.Nodes[0].Server.Flushed = 5000 }, "pg2", 3999, false},
		{"behind, and no lag is allowed", func(v *cluster.View) { v.Nodes[0].Server.Flushed = 5000 }, "pg2", 0, false},
		{"just not behind", func(v *cluster.View) { v.Nodes[0].Server.Flushed = 5000 }, "pg2", 4000, true},
		{"lag unknown", func(v *cluster.View) { v.Nodes[0].Server = nil }, "pg2", 4000, false},
		{"lag unknown, any will do", func(v *cluster.View) { v.Nodes[0].Server = nil }, "pg2", -1, true},
		{"stale", func(v *cluster.View) { v.Nodes[1].SeenAt = time.Time{} }, "pg2", -1, false},
		{"as old as a fresh look may be", func(v *cluster.View) {
			v.At, v.Nodes[1].SeenAt = healthNow.Add(-3*healthInterval), healthNow.Add(-3*healthInterval)
		}, "pg2", -1, true},
		{"stale view", func(v *cluster.View) { v.At = healthNow.Add(-3*healthInterval - 1) }, "pg2", -1, false},
		{"no such node", func(*cluster.View) {}, "pg9", -1, false},
		{"diverged", func(v *cluster.View) { v.Nodes[1].OtherWAL = "at 0/1000" }, "pg2", -1, false},
	} {
		v := healthyView()
		tt.change(&v)
		got, why := cluster.Readable(v, tt.node, healthNow, healthInterval, tt.lag)
		if got != tt.want || got == (why != "") {
			t.Errorf("%s: %v %q", tt.name, got, why)
		}
	}
}
