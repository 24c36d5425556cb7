package clustertest

import (
	"fmt"
	"testing"
	"time"

	"controld/internal/node"
)

// An InitEnv is what the contract of a node's init is tried on: two nodes with
// running containers and empty volumes, which nothing was ordered yet. Their
// settings make each a standby of the other.
type InitEnv struct {
	First, Second InitNode
}

// An InitNode is a node as its init sees it.
type InitNode struct {
	Give     func(node.Order) // writes it to the order volume
	Status   func() node.Status
	Locked   func() bool // a process of the server is left
	Answers  func() bool // the server takes connections
	Kill     func()      // the container, at once
	Start    func()
	Upstream node.Upstream // where the other node reaches it
	DataDir  string        // where the other node's init finds its data

	epoch uint64
}

// RunInitContract tries what every init of a node must do with its orders. The
// parts build on each other.
func RunInitContract(t *testing.T, env InitEnv) {
	for _, tt := range []struct {
		name string
		try  func(t *testing.T, one, two *InitNode)
	}{
		{"nothing starts of nothing", initNothing},
		{"an order to lead is good for one start", initLead},
		{"a standby starts by its order again", initFollow},
		{"an older order is none", initOlder},
		{"what runs is provisioned and goes on", initProvision},
		{"what runs is not overwritten", initRunning},
		{"what is there is not overwritten", initAtRest},
		{"a leader stops before it follows", initDemote},
		{"a standby that is to lead is not restarted", initAdopt},
	} {
		if !t.Run(tt.name, func(t *testing.T) { tt.try(t, &env.First, &env.Second) }) {
			return
		}
	}
}

// order gives the node its next order.
func (n *InitNode) order(role node.Role, action node.Action, more ...func(*node.Order)) {
	n.epoch++
	o := node.Order{Epoch: n.epoch, Role: role, Action: action}
	for _, f := range more {
		f(&o)
	}
	n.Give(o)
}

// await waits until the node reports the state for its last order, and holds
// the lock to it.
func (n *InitNode) await(t *testing.T, want node.State) node.Status {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("lock held %v, status %+v", n.Locked(), n.Status())
		}
	}()
	until(t, fmt.Sprintf("%s of order %d", want, n.epoch), func() bool {
		s := n.Status()
		return s.Epoch == n.epoch && s.State == want && n.Locked() == (s.PID != 0)
	})
	return n.Status()
}

func until(t *testing.T, what string, ready func() bool) {
	t.Helper()
	for began := time.Now(); !ready(); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("waited for %s", what)
		}
	}
}

// restart is the container's, without a goodbye.
func (n *InitNode) restart() {
	n.Kill()
	n.Start()
}

func initNothing(t *testing.T, one, two *InitNode) {
	if one.Locked() || one.Status().PID != 0 {
		t.Fatalf("without an order something runs: %+v", one.Status())
	}
	one.order(node.RoleStandby, node.ActionNone)
	if s := one.await(t, node.StateRefused); s.Error == "" {
		t.Errorf("refused without a reason: %+v", s)
	}
	two.order(node.RoleNone, node.ActionNone)
	two.await(t, node.StateWaiting)
}

func initLead(t *testing.T, one, _ *InitNode) {
	one.order(node.RolePrimary, node.ActionInitDB)
	s := one.await(t, node.StateRunning)
	if s.Role != node.RolePrimary || s.UsedEpoch != one.epoch || s.ActionEpoch != one.epoch || s.Unfinished != "" {
		t.Errorf("a new primary: %+v", s)
	}
	one.restart()
	if s := one.await(t, node.StateRefused); s.Error == "" || s.Role != node.RoleNone {
		t.Errorf("the second start: %+v", s)
	}
	one.order(node.RolePrimary, node.ActionNone)
	if s := one.await(t, node.StateRunning); s.Role != node.RolePrimary || s.UsedEpoch != one.epoch {
		t.Errorf("a new order to lead: %+v", s)
	}
}

func initFollow(t *testing.T, one, two *InitNode) {
	until(t, "the primary to answer", one.Answers)
	two.order(node.RoleStandby, node.ActionBaseBackup, from(one))
	s := two.await(t, node.StateRunning)
	if s.Role != node.RoleStandby || s.ActionEpoch != two.epoch || s.UsedEpoch != 0 || s.Unfinished != "" {
		t.Errorf("a new standby: %+v", s)
	}
	two.restart()
	if s := two.await(t, node.StateRunning); s.Role != node.RoleStandby {
		t.Errorf("the second start: %+v", s)
	}
}

func from(n *InitNode) func(*node.Order) {
	return func(o *node.Order) { u := n.Upstream; o.Upstream = &u }
}

func fromNobody(o *node.Order) { o.Upstream = &node.Upstream{Host: "nobody.invalid", Port: 5432} }

func initOlder(t *testing.T, _, two *InitNode) {
	newest := two.epoch
	two.order(node.RoleStandby, node.ActionNone)
	two.await(t, node.StateRunning)
	two.Give(node.Order{Epoch: newest, Role: node.RoleNone, Action: node.ActionNone})
	time.Sleep(100 * time.Millisecond)
	two.await(t, node.StateRunning)
	two.restart()
	two.await(t, node.StateRefused) // it is told of the order that it has had
	two.order(node.RoleStandby, node.ActionNone)
	two.await(t, node.StateRunning)
}

func initProvision(t *testing.T, one, _ *InitNode) {
	until(t, "the primary to answer", one.Answers)
	before := one.Status().PID
	for _, tt := range []struct {
		database string
		fails    bool
	}{{"postgres", false}, {"nosuch", true}, {"template1", false}} {
		one.order(node.RolePrimary, node.ActionProvision, func(o *node.Order) {
			o.Provision = []node.Batch{{Database: tt.database, SQL: []string{"COMMENT ON SCHEMA controld IS 'tried'"}}}
		})
		until(t, "a word on the provision", func() bool {
			s := one.Status().Provisioned
			return s != nil && s.Epoch == one.epoch
		})
		if s := one.Status().Provisioned; (s.Error != "") != tt.fails {
			t.Errorf("provision in %s: %+v", tt.database, s)
		}
		s := one.await(t, node.StateRunning)
		if s.Role != node.RolePrimary || s.UsedEpoch != one.epoch || s.PID != before {
			t.Errorf("process %d before, after the provision %+v", before, s)
		}
	}
	one.restart()
	one.await(t, node.StateRefused) // its order was used
	one.order(node.RolePrimary, node.ActionNone)
	one.await(t, node.StateRunning)
}

func initRunning(t *testing.T, one, two *InitNode) {
	one.order(node.RolePrimary, node.ActionInitDB)
	if s := one.await(t, node.StateRefused); s.Role != node.RolePrimary || s.UsedEpoch != one.epoch {
		t.Errorf("initdb over a primary: %+v", s)
	}
	// A primary that lives is no source: what it holds is not all that it acknowledges.
	two.order(node.RoleStandby, node.ActionSalvage, func(o *node.Order) {
		o.Salvage = &node.Salvage{DataDir: one.DataDir, FromLSN: 1, FromTimeline: 1, SegmentBytes: segmentBytes}
	})
	if s := two.await(t, node.StateRunning); s.Role != node.RoleStandby {
		t.Errorf("salvage from a server that runs: %+v", s)
	}
	until(t, "a word on the salvage", func() bool { s := two.Status().Salvaged; return s != nil && s.Epoch == two.epoch })
	if s := two.Status().Salvaged; s.Error == "" || s.Files != 0 {
		t.Errorf("salvaged %+v from a server that runs", s)
	}
}

func initAtRest(t *testing.T, one, _ *InitNode) {
	one.order(node.RoleNone, node.ActionNone)
	one.await(t, node.StateWaiting)
	one.order(node.RolePrimary, node.ActionInitDB)
	one.await(t, node.StateRefused)
	for _, action := range []node.Action{node.ActionRewind, node.ActionBaseBackup} {
		one.order(node.RoleStandby, action, fromNobody)
		if s := one.await(t, node.StateFailed); s.Unfinished != "" || s.Error == "" {
			t.Errorf("%s without an upstream: %+v", action, s)
		}
	}
	one.order(node.RolePrimary, node.ActionNone)
	one.await(t, node.StateRunning)
}

func initDemote(t *testing.T, one, _ *InitNode) {
	until(t, "the primary to answer", one.Answers)
	one.order(node.RoleStandby, node.ActionNone)
	if s := one.await(t, node.StateRunning); s.Role != node.RoleStandby {
		t.Errorf("a primary that was told to follow: %+v", s)
	}
}

func initAdopt(t *testing.T, one, _ *InitNode) {
	before := one.Status().PID
	one.order(node.RolePrimary, node.ActionNone)
	if s := one.await(t, node.StateRunning); s.PID != before || s.UsedEpoch != one.epoch {
		t.Errorf("process %d before, now %+v", before, s)
	}
	one.restart()
	one.await(t, node.StateRefused)
}
