package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/pgwal"
	"controld/internal/wal"
)

// startState is what the steps of a start learn from each other.
type startState struct {
	Node     string       `json:"node"`
	InitDB   bool         `json:"initdb"`
	SystemID uint64       `json:"system_id"`
	Timeline wal.Timeline `json:"timeline"`
}

type starter struct {
	m        *Manager
	node     Node
	initdb   bool
	sessions sessionCache
}

// StartNode brings a node that is down back in its recorded role: the recorded
// primary leads again in place, another node rejoins.
func (m *Manager) StartNode(ctx context.Context, request NodeRequest, by operation.Caller) (operation.Record, error) {
	if err := request.Validate(m.set.Nodes); err != nil {
		return operation.Record{}, err
	}
	name := request.Node
	// Observed anew: right after a crash the last view still has a primary.
	if leader, problem := Leader(m.Observe(ctx)); problem == nil && leader.Node.Name != name {
		return m.startNodeWork(ctx, KindRejoin, nodeRequest{Node: name}, request, by)
	}
	r := nodeRequest{Node: name}
	if n, err := m.node(name); err == nil && m.recordedAsStandby(n) {
		r.Method = startAsStandby
	}
	return m.startNodeWork(ctx, KindStart, r, request, by)
}

// startAsStandby is the method of a start of a standby.
const startAsStandby = "standby"

// recordedAsStandby: another node is the recorded primary, and the node's data
// would start in recovery. Made to lead by a mere start it would write on the
// timeline that the recorded primary may have gone further on.
func (m *Manager) recordedAsStandby(n Node) bool {
	primary := m.Identity().Primary
	signal, err := m.out.Volumes.StandbySignal(n)
	return err == nil && signal && primary != "" && primary != n.Name
}

// startStandbyWork brings a standby up where no node leads: then it can be asked
// where it is, and a failover can make it lead.
func (m *Manager) startStandbyWork(n Node) operation.Runnable {
	sessions := sessionCache{servers: m.out.Servers}
	prepare := func(ctx context.Context, s *startState) (operation.Prepared, error) {
		v := m.fresh(ctx)
		*s = startState{Node: n.Name}
		state, _ := v.Node(n.Name)
		if state.Role() == RoleStandby {
			return operation.Prepared{Already: n.Name + " runs as a standby; to make it lead: controld failover --mode emergency --target " + n.Name}, nil
		}
		checks := []operation.Check{
			containerCheck(state),
			check("data-is-whole", usable(state), "unfinished", nil, "%s: %s", n.Name, wholeness(state)),
		}
		return operation.Prepared{Checks: checks}, refusalOf(checks)
	}
	start := func(ctx context.Context, s *startState) error {
		ctx, cancel := context.WithTimeout(ctx, bootDeadline)
		defer cancel()
		upstream, err := m.node(m.Identity().Primary)
		if err != nil {
			return err
		}
		if err := m.out.Volumes.WriteSettings(n, m.standbySettings(ctx, n, upstream)); err != nil {
			return err
		}
		if _, err := m.orderToFollow(n, upstream, node.Order{}); err != nil {
			return err
		}
		pos, err := m.awaitAnswer(ctx, &sessions, n)
		s.Timeline = pos.Timeline
		return err
	}
	return operation.Work[startState]{
		Prepare: prepare,
		Steps: func(*startState) []operation.Step[startState] {
			return []operation.Step[startState]{{Name: "start standby", Do: start, Entry: true}}
		},
		Forward: true,
		Result:  func(s *startState) map[string]any { return map[string]any{"node": s.Node, "timeline": s.Timeline} },
		Close:   func() { sessions.closeAll(); m.lookAgain(context.Background()) },
	}
}

// awaitAnswer waits until a node that was ordered to start says where it stands.
func (m *Manager) awaitAnswer(ctx context.Context, sessions *sessionCache, n Node) (pos Position, err error) {
	if err := m.ensureRunning(ctx, n); err != nil {
		return pos, err
	}
	err = poll(ctx, 100*time.Millisecond, func() (bool, error) {
		if err := m.orderFailed(n); err != nil {
			return false, err
		}
		var asked error
		pos, asked = sessions.position(ctx, n)
		return asked == nil, nil // it is starting
	})
	return pos, err
}

func containerCheck(s NodeState) operation.Check {
	return check("container-exists", s.Container.Exists, "container-missing", nil, "container %s: %s", s.Node.Container, yesNo(s.Container.Exists, "exists", "does not exist; make up creates it"))
}

// startWork makes a node lead, where none does: at the first start on an empty
// volume, otherwise on the data it has.
func (m *Manager) startWork(n Node, initdb bool) operation.Runnable {
	st := &starter{m: m, node: n, initdb: initdb, sessions: sessionCache{servers: m.out.Servers}}
	return operation.Work[startState]{
		Prepare: st.prepare,
		Steps:   func(*startState) []operation.Step[startState] { return st.steps() },
		Forward: true,
		Left:    st.left,
		Result:  func(s *startState) map[string]any { return map[string]any{"node": s.Node, "timeline": s.Timeline} },
		Close:   func() { st.sessions.closeAll(); st.m.lookAgain(context.Background()) },
	}
}

// prepare refuses to make a second primary, and to start what another node has
// gone past.
func (st *starter) prepare(ctx context.Context, s *startState) (operation.Prepared, error) {
	v := st.m.fresh(ctx)
	*s = startState{Node: st.node.Name, InitDB: st.initdb}
	state, _ := v.Node(st.node.Name)
	if leader, problem := Leader(v); problem == nil && leader.Node.Name == st.node.Name && state.Order.Role == node.RolePrimary {
		s.SystemID, s.Timeline = state.Server.SystemID, state.Server.Timeline
		if st.m.Identity().Primary == st.node.Name {
			return operation.Prepared{Already: st.node.Name + " leads already"}, nil
		}
		return operation.Prepared{}, nil
	}
	checks := st.checks(v, state)
	if recovering, err := st.startsInRecovery(); err == nil && recovering && !st.initdb {
		checks = append(checks, st.aheadChecks(v)...)
	}
	return operation.Prepared{Checks: checks}, refusalOf(checks)
}

// aheadChecks: a standby that is made to lead gives up what another node has more.
func (st *starter) aheadChecks(v View) (checks []operation.Check) {
	for _, s := range v.Nodes {
		if s.Node.Name == st.node.Name || !usable(s) {
			continue
		}
		c := st.m.compare(s.Node, st.node)
		more := c.Relation == pgwal.Diverged || c.Relation == pgwal.Past
		checks = append(checks, check("has-all-wal", !more, "diverged", nil, "%s", yesNo(!more, "nothing is known of more WAL on "+s.Node.Name,
			fmt.Sprintf("%s has WAL that %s lacks, and that would be given up (%s). To lead with it: controld start %[1]s. To keep what %[2]s has instead, empty the data volume of %[1]s", s.Node.Name, st.node.Name, c.Why))))
	}
	return checks
}

func (st *starter) checks(v View, state NodeState) []operation.Check {
	var rivals []NodeState
	ahead := ""
	for _, s := range v.Nodes {
		if s.Node.Name == st.node.Name {
			continue
		}
		if s.Role() == RolePrimary {
			rivals = append(rivals, s)
		}
		if usable(s) && state.Control != nil && s.Timeline() > state.Timeline() {
			ahead = fmt.Sprintf("%s is on the later timeline %d; this node's data is older. To lead with the newer: controld failover --mode emergency --target %[1]s; to keep this node's instead, empty the data volume of %[1]s", s.Node.Name, s.Timeline())
		}
	}
	checks := []operation.Check{
		containerCheck(state),
		check("no-other-primary", len(rivals) == 0, "other-primary", nil, "%s", yesNo(len(rivals) == 0, "no other node leads", names(rivals)+" leads; rejoin this node instead: controld rejoin "+st.node.Name)),
		check("not-behind", ahead == "", "later-timeline", nil, "%s", yesNo(ahead == "", "no other node is on a later timeline", ahead)),
	}
	if !st.initdb {
		checks = append(checks, check("data-is-whole", usable(state), "unfinished", nil, "%s", yesNo(usable(state), "its data is whole",
			"its volume holds no whole data directory; bring the other node back, then controld rejoin "+st.node.Name)))
	}
	return checks
}

// steps makes the node lead. A primary's order is good for one start, so a
// repeated step gives a new one.
func (st *starter) steps() []operation.Step[startState] {
	return []operation.Step[startState]{
		{Name: "write settings", Do: st.writeSettings, Entry: true},
		{Name: "start primary", Do: st.start, Entry: true},
		{Name: "record primary", Do: st.record},
		{Name: "point pooler", Do: st.point, HoldsClients: true},
	}
}

func (st *starter) writeSettings(context.Context, *startState) error {
	// In mode sync without a synchronous standby: one that is not there yet
	// would block the first commit. Supervision sets it when one streams. That
	// commits are unsynced till then is noted before there can be one.
	if st.m.set.Replication != Strict {
		if err := st.m.changeIdentity(func(id *Identity) { id.Unsynced = true }); err != nil {
			return err
		}
	}
	return st.m.out.Volumes.WriteSettings(st.node, st.m.primarySettings(st.node, false))
}

func (st *starter) start(ctx context.Context, s *startState) error {
	bounded, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	if err := st.order(bounded, s); err != nil {
		return err
	}
	if err := st.m.waitServing(bounded, &st.sessions, st.node); err != nil {
		return err
	}
	return st.sessions.with(bounded, st.node, func(session Session) error {
		server, err := session.Observe(bounded)
		s.SystemID, s.Timeline = server.SystemID, server.Timeline
		return err
	})
}

// order gives the order to lead, unless the node does so by one already.
func (st *starter) order(ctx context.Context, s *startState) error {
	err := st.sessions.with(ctx, st.node, func(session Session) error { return session.WriteProbe(ctx) })
	if err == nil {
		return nil
	}
	standby := errors.Is(err, ErrReadOnly)
	if !standby {
		if standby, err = st.startsInRecovery(); err != nil {
			return err
		}
	}
	if standby {
		return st.promote(ctx)
	}
	o := node.Order{Role: node.RolePrimary}
	if control, err := st.m.out.Volumes.Control(st.node); s.InitDB && (err != nil || control.SystemID == 0) {
		o.Action = node.ActionInitDB
	}
	if status, err := st.m.out.Volumes.Status(st.node); s.InitDB && err == nil && status.Unfinished == node.ActionInitDB {
		o.Action = node.ActionInitDB
	}
	if _, err := st.m.order(st.node, o); err != nil {
		return err
	}
	return st.m.ensureRunning(ctx, st.node)
}

// startsInRecovery reports whether the node's data is a standby's.
func (st *starter) startsInRecovery() (bool, error) {
	signal, err := st.m.out.Volumes.StandbySignal(st.node)
	if err != nil || !signal {
		return false, err
	}
	control, err := st.m.out.Volumes.Control(st.node)
	return err == nil && control.State.Recovering(), err
}

// promote makes a node lead whose data is a standby's, on a timeline of its own.
// Merely started without its signal file it would write on the one that it
// followed, where another node may have gone on.
func (st *starter) promote(ctx context.Context) error {
	pos, err := st.sessions.position(ctx, st.node)
	if err != nil {
		if _, err := st.m.order(st.node, node.Order{Role: node.RoleStandby}); err != nil {
			return err
		}
		if pos, err = st.m.awaitAnswer(ctx, &st.sessions, st.node); err != nil {
			return err
		}
	}
	if pos.InRecovery {
		if err := st.sessions.with(ctx, st.node, func(session Session) error { return session.Promote(ctx) }); err != nil {
			return err
		}
		err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
			pos, err := st.sessions.position(ctx, st.node)
			return err == nil && !pos.InRecovery, nil
		})
		if err != nil {
			return fmt.Errorf("wait for the promotion of %s: %w", st.node.Name, err)
		}
	}
	_, err = st.m.order(st.node, node.Order{Role: node.RolePrimary}) // its init only takes note
	return err
}

func (st *starter) record(_ context.Context, s *startState) error {
	return st.m.recordPrimary(st.node, s.SystemID, s.Timeline, st.m.set.Replication != Strict)
}

// point leads the clients to the node, and releases them where something left
// them paused.
func (st *starter) point(ctx context.Context, _ *startState) error {
	c, err := st.m.out.Engine.Inspect(ctx, st.node.Container)
	if err != nil {
		return err
	}
	t := WantTargets(st.m.fresh(ctx))
	t.Primary = c.Address
	if t.Standby == "" {
		t.Standby = c.Address
	}
	return st.m.align(ctx, t)
}
