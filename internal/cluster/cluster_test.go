package cluster_test

import (
	"strings"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/pgcontrol"
)

func TestDead(t *testing.T) {
	gone := cluster.Container{}
	stopped := cluster.Container{Exists: true}
	running := cluster.Container{Exists: true, Running: true}
	for _, tt := range []struct {
		name      string
		locked    cluster.Tristate
		container cluster.Container
		want      bool
	}{
		{"its lock is free", cluster.No, running, true},
		{"its lock is held", cluster.Yes, running, false},
		{"nobody could look at its lock", cluster.Unknown, running, false},
		{"its container has ended", cluster.Unknown, stopped, true},
		{"the engine knows no such container", cluster.Unknown, gone, false},
	} {
		if got := (cluster.NodeState{Locked: tt.locked, Container: tt.container}).Dead(); got != tt.want {
			t.Errorf("%s: dead is %v", tt.name, got)
		}
	}
}

func TestWholeness(t *testing.T) {
	data := &pgcontrol.Data{}
	for _, tt := range []struct {
		name       string
		unfinished node.Action
		control    *pgcontrol.Data
		usable     bool
		says       string
	}{
		{"whole", "", data, true, "whole"},
		{"whole, after an action that is none", node.ActionNone, data, true, "whole"},
		{"half a copy", node.ActionBaseBackup, data, false, "basebackup"},
		{"nothing", "", nil, false, "no readable data directory"},
	} {
		s := cluster.NodeState{Init: node.Status{Unfinished: tt.unfinished}, Control: tt.control}
		if s.Usable() != tt.usable || !strings.Contains(s.Wholeness(), tt.says) {
			t.Errorf("%s: usable is %v, %q", tt.name, s.Usable(), s.Wholeness())
		}
	}
}

func TestOldestTransaction(t *testing.T) {
	if got := (cluster.Server{}).OldestTransaction(); got != nil {
		t.Errorf("there is none, and it is %+v", got)
	}
	s := cluster.Server{Transactions: []cluster.Transaction{{PID: 1}, {PID: 2}}}
	if got := s.OldestTransaction(); got == nil || got.PID != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestAnswered(t *testing.T) {
	p := cluster.PoolerState{Databases: []cluster.PoolerDatabase{
		{Name: "imdb", Host: "10.0.0.1", Answered: time.Second},
		{Name: "imdb2", Host: "10.0.0.1", Answered: 2 * time.Second},
		{Name: "imdb_ro", Host: "10.0.0.2", Answered: 4 * time.Second},
		{Name: "new", Answered: 8 * time.Second},
		{Name: "controld_probe", Host: "10.0.0.1", Answered: 16 * time.Second},
	}}
	for address, want := range map[string]time.Duration{"10.0.0.1": 3 * time.Second, "10.0.0.2": 4 * time.Second, "10.0.0.3": 0, "": 0} {
		if got := p.Answered(address); got != want {
			t.Errorf("at %q: %s, want %s", address, got, want)
		}
	}
}

// A refusal for want of a candidate says of each node why it is none.
func TestWhyNoCandidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*cluster.NodeState)
		says   string
	}{
		{"it does not answer", func(s *cluster.NodeState) { s.Server, s.ServerErr = nil, "connection refused" }, "pg2: connection refused"},
		{"it leads", func(s *cluster.NodeState) { s.Server.InRecovery = false }, "pg2: primary"},
		{"it has other WAL", func(s *cluster.NodeState) { s.OtherWAL = "at 0/1000" }, "pg2: diverged: at 0/1000"},
		{"its data is half", func(s *cluster.NodeState) { s.Init.Unfinished = node.ActionRewind }, "pg2: an unfinished rewind"},
	} {
		v := healthyView()
		v.Nodes[1].Control = &pgcontrol.Data{}
		tt.change(&v.Nodes[1])
		_, problem := cluster.BestStandby(v, "pg1")
		if problem == nil || !strings.Contains(problem.Detail, tt.says) || strings.Contains(problem.Detail, "pg1") {
			t.Errorf("%s: %v", tt.name, problem)
		}
	}
}

func TestSynchronousNames(t *testing.T) {
	if got := cluster.SynchronousNames(nil); got != "" {
		t.Errorf("nobody is waited for: %q", got)
	}
	if got := cluster.SynchronousNames([]string{"pg2", "pg3"}); got != `FIRST 1 ("pg2", "pg3")` {
		t.Errorf("got %q", got)
	}
}
