package clustertest

import (
	"controld/internal/cluster"
	"controld/internal/pgcontrol"
	"controld/internal/rights"
	"controld/internal/wal"
)

// The nodes of tables of states: one is built by naming it and changing it.
var (
	A = cluster.Node{Name: "a", Container: "a"}
	B = cluster.Node{Name: "b", Container: "b"}
	C = cluster.Node{Name: "c", Container: "c"}
)

// A Change makes one thing of a state different.
type Change func(*cluster.NodeState)

// State is a node that is down in order.
func State(n cluster.Node, changes ...Change) cluster.NodeState {
	s := cluster.NodeState{
		Node: n, Locked: cluster.No,
		Container: cluster.Container{Exists: true, Running: true, Connected: true, Address: "10.0.0." + n.Name},
		Control:   &pgcontrol.Data{SystemID: 7, CheckpointTimeline: 1, Checkpoint: 0x100, State: pgcontrol.StateShutDown},
	}
	for _, f := range changes {
		f(&s)
	}
	return s
}

// Leading makes it a primary on timeline t.
func Leading(t wal.Timeline) Change {
	return func(s *cluster.NodeState) {
		s.Locked, s.Control.CheckpointTimeline = cluster.Yes, t
		s.Server = &cluster.Server{
			SystemID: 7, Timeline: t, Flushed: 0x200, MaxSenders: 10, MaxSlots: 10, Settings: map[string]string{},
			Rights: rights.Version,
		}
	}
}

// Standing makes it a standby that has received, and replayed, up to received.
func Standing(t wal.Timeline, received wal.LSN) Change {
	return func(s *cluster.NodeState) {
		Leading(t)(s)
		s.Server.InRecovery, s.Server.Flushed, s.Server.Received, s.Server.Replayed = true, 0, received, received
		s.Server.UpstreamAddress = "10.0.0.a"
	}
}

// With lets these nodes stream from it.
func With(names ...string) Change {
	return func(s *cluster.NodeState) {
		for _, n := range names {
			s.Server.Senders = append(s.Server.Senders, cluster.Sender{Application: n, State: "streaming", SyncState: "async"})
		}
	}
}

// View is an observation of these states.
func View(states ...cluster.NodeState) cluster.View { return cluster.View{Nodes: states} }
