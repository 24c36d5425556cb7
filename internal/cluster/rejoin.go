package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/pgwal"
)

// Bounds of the rungs of a rejoin. Following may have to redo WAL first, which
// is waited for as long as it moves.
const (
	followDeadline = 20 * time.Second
	rewindDeadline = 30 * time.Minute
	copyDeadline   = 24 * time.Hour
)

// rejoinState is what the steps of a rejoin learn from each other.
type rejoinState struct {
	Node   string `json:"node"`
	Leader string `json:"leader"`
	Method string `json:"method"`
	Empty  bool   `json:"empty"` // nothing to keep: only a base backup can help
	Marked bool   `json:"marked"`
	Forked bool   `json:"forked"` // on a later timeline than the primary's: it led past controld
	// Relation is what the node's WAL is to the primary's, and why that matters.
	Relation pgwal.Relation `json:"relation"`
	Why      string         `json:"why"`
	Rung     string         `json:"rung"` // the one that held
	Failure  string         `json:"failure"`
}

// The rungs of the ladder, the cheapest first.
const (
	rungFollow     = "follow"
	rungRewind     = "rewind"
	rungBaseBackup = "base backup"
)

type rejoin struct {
	m        *Manager
	method   string
	asked    bool // by a person: also what forked off is overwritten
	node     Node
	sessions sessionCache
}

// Rejoin makes a node follow the primary by the first rung that holds.
func (m *Manager) Rejoin(ctx context.Context, r NodeRequest, by operation.Caller) (operation.Record, error) {
	if err := r.Validate(m.set.Nodes); err != nil {
		return operation.Record{}, err
	}
	asked := by.Kind != operation.Daemon
	return m.startNodeWork(ctx, KindRejoin, nodeRequest{Node: r.Node, Method: cmp.Or(r.Method, MethodAuto), Asked: asked}, r, by)
}

// startNodeWork starts work on one node, as r says, for the request.
func (m *Manager) startNodeWork(ctx context.Context, kind string, r nodeRequest, request NodeRequest, by operation.Caller) (operation.Record, error) {
	params, err := json.Marshal(r)
	if err != nil {
		return operation.Record{}, fmt.Errorf("encode request: %w", err)
	}
	work, err := m.nodeWork(kind, r)
	if err != nil {
		return operation.Record{}, err
	}
	spec := operation.Spec{
		Kind: kind, Mode: r.Method, Reason: request.Reason, Caller: by, Params: params, Follows: m.followed(kind, r.Node),
		Foreseen: map[string]any{"node": r.Node}, CancelRunning: request.CancelRunning,
	}
	return m.operations.Start(ctx, spec, work)
}

// followed is the failover that left the node to be rejoined, if that was the
// last thing that happened.
func (m *Manager) followed(kind, name string) string {
	if kind != KindRejoin {
		return ""
	}
	for _, k := range []string{KindFailover, KindFailback} {
		recs, _, err := m.operations.List(operation.Filter{Kind: k, State: operation.Succeeded, Limit: 1})
		if err == nil && len(recs) == 1 && recs[0].Result["from"] == name && recs[0].Result["rejoined"] == false && recs[0].FollowedBy == "" {
			return recs[0].ID
		}
	}
	return ""
}

func (m *Manager) rejoinWork(n Node, req nodeRequest) operation.Runnable {
	r := &rejoin{m: m, node: n, method: req.Method, asked: req.Asked, sessions: sessionCache{servers: m.out.Servers}}
	return operation.Work[rejoinState]{
		Prepare: r.prepare,
		Steps:   func(*rejoinState) []operation.Step[rejoinState] { return r.steps() },
		Forward: true,
		Result: func(s *rejoinState) map[string]any {
			return map[string]any{"node": s.Node, "primary": s.Leader, "method": s.Rung}
		},
		Close: func() { r.sessions.closeAll(); r.m.lookAgain(context.Background()) },
	}
}

// prepare finds the primary to follow, and what is left of the node's data.
func (r *rejoin) prepare(ctx context.Context, s *rejoinState) (operation.Prepared, error) {
	v := r.m.fresh(ctx)
	leader, problem := Leader(v)
	if problem != nil {
		return operation.Prepared{}, problem
	}
	if leader.Node.Name == r.node.Name {
		return operation.Prepared{}, operation.Refuse("already-primary", map[string]any{"primary": leader.Node.Name},
			"%s leads; move the primary first: controld failover", r.node.Name)
	}
	state, _ := v.Node(r.node.Name)
	*s = rejoinState{Node: r.node.Name, Leader: leader.Node.Name, Method: r.method}
	if s.Method == "" {
		s.Method = MethodAuto
	}
	if state.Container.Paused {
		return operation.Prepared{}, operation.Refuse("container-paused", nil,
			"the container of %s is frozen; thaw it (docker unpause %s) and ask again", r.node.Name, r.node.Container)
	}
	if s.Forked = forked(state, leader); s.Forked && !r.asked {
		return operation.Prepared{}, operation.Refuse("later-timeline",
			map[string]any{"timeline": state.Timeline(), "primary_timeline": leader.Timeline()},
			"%s is on timeline %d, later than %d of the primary %s: it was promoted past controld. Its data is left as it is; controld rejoin %s overwrites what it wrote since",
			s.Node, state.Timeline(), leader.Timeline(), s.Leader, s.Node)
	}
	if problem := r.notOurs(state, leader); problem != nil && !r.asked {
		return operation.Prepared{}, problem
	}
	s.Empty = state.Control == nil || state.Control.SystemID != leader.Server.SystemID
	s.Marked = !usable(state)
	p := operation.Prepared{Mode: s.Method}
	if s.Method == MethodAuto && follows(state, leader) && leftOver(state, leader) == "" && state.Init.State == node.StateRunning && state.Order.Role == node.RoleStandby {
		p.Already = r.node.Name + " streams from " + leader.Node.Name + " already"
	}
	return p, nil
}

// notOurs: what lies on the node's volume is no copy of this cluster, as after a
// container was made with another's volume, or cannot be told. Only a person may
// have that overwritten.
func (r *rejoin) notOurs(state, leader NodeState) error {
	overwrite := fmt.Sprintf("Its data is left as it is; controld rejoin %s overwrites it", r.node.Name)
	switch empty, err := r.m.out.Volumes.Empty(r.node); {
	case !usable(state): // half of a copy that was being made
	case state.Control != nil && state.Control.SystemID != leader.Server.SystemID:
		return operation.Refuse("system-identifier", map[string]any{"system_id": state.Control.SystemID, "primary_system_id": leader.Server.SystemID},
			"the volume of %s holds another cluster (system identifier %d, the primary's is %d). %s", r.node.Name, state.Control.SystemID, leader.Server.SystemID, overwrite)
	case err != nil:
		return fmt.Errorf("look at the volume of %s: %w", r.node.Name, err)
	case state.Control == nil && !empty:
		return operation.Refuse("precheck-failed", nil, "the volume of %s holds data whose control file cannot be read. %s", r.node.Name, overwrite)
	}
	return nil
}

// steps is the ladder. A rung is skipped when one before it held, or when it
// cannot help.
func (r *rejoin) steps() []operation.Step[rejoinState] {
	return []operation.Step[rejoinState]{
		{Name: "reserve slot", Do: r.reserveSlot, Entry: true},
		{Name: rungFollow, Do: r.follow},
		{Name: rungRewind, Do: r.rewind, Entry: true},
		{Name: rungBaseBackup, Do: r.baseBackup, Entry: true},
		{Name: "point readers", Do: r.pointReaders, Entry: true},
	}
}

func (r *rejoin) leader(s *rejoinState) Node {
	n, _ := r.m.node(s.Leader)
	return n
}

// reserveSlot keeps on the primary what the node will need.
func (r *rejoin) reserveSlot(ctx context.Context, s *rejoinState) error {
	if err := r.m.out.Volumes.WriteSettings(r.node, r.m.standbySettings(ctx, r.node, r.leader(s))); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, settingDeadline)
	defer cancel()
	return r.sessions.with(ctx, r.leader(s), func(session Session) error { return session.CreateSlot(ctx, r.node.Slot()) })
}

// follow starts the node as a standby on the data it has. That holds where all
// WAL that it has is the primary's too.
func (r *rejoin) follow(ctx context.Context, s *rejoinState) error {
	if s.Method == MethodBaseBackup || s.Empty || s.Marked {
		return nil
	}
	if err := r.compare(ctx, s); err != nil {
		return err
	}
	switch {
	case s.Forked || s.Relation == pgwal.Past || s.Relation == pgwal.Diverged:
		return nil
	case s.Method == MethodRewind && s.Relation == pgwal.Unknown:
		return nil
	}
	if err := r.orderStandby(ctx, s, node.Order{}); err != nil {
		return err
	}
	if err := r.applySettings(ctx, s, loginTimeout); err != nil { // one that is starting reads them anyway
		r.m.log.Debug("settings of the standby not reloaded", "node", s.Node, "err", err)
	}
	if err := r.settle(ctx, s, rungFollow, followDeadline); err != nil || s.Rung != "" {
		return err
	}
	return r.mayOverwrite(ctx, s)
}

// compare finds out which rungs can hold, before one changes anything.
func (r *rejoin) compare(ctx context.Context, s *rejoinState) error {
	ctx, cancel := context.WithTimeout(ctx, checkpointDeadline)
	defer cancel()
	c, err := r.m.out.Volumes.Compare(ctx, r.node, r.leader(s), 0)
	if err != nil {
		return err
	}
	r.m.otherWAL.note(r.node, c)
	s.Relation, s.Why = c.Relation, c.Why
	if status, err := r.m.out.Volumes.Status(r.node); err == nil && status.Diverged() != "" {
		s.Relation, s.Why = pgwal.Diverged, status.Diverged() // its init has seen what may not be there any more
	}
	r.m.log.Info("WAL compared", "node", s.Node, "primary", s.Leader, "relation", s.Relation, "end", c.End, "bytes", c.Bytes, "why", s.Why)
	return nil
}

// applySettings lets the node follow by the settings of today: one whose server
// ran all the time may have others, or look for the primary where it was.
func (r *rejoin) applySettings(ctx context.Context, s *rejoinState, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return r.m.applySettings(ctx, &r.sessions, r.node, r.m.standbySettings(ctx, r.node, r.leader(s)))
}

// mayOverwrite refuses the rungs that overwrite data to a node that could
// follow: one that is on the primary's timeline has not diverged, and what
// keeps it from streaming (the network, most likely) would fail them too.
func (r *rejoin) mayOverwrite(ctx context.Context, s *rejoinState) error {
	ctx, cancel := context.WithTimeout(ctx, settingDeadline)
	defer cancel()
	var leader Server
	err := r.sessions.with(ctx, r.leader(s), func(session Session) (err error) {
		leader, err = session.Observe(ctx)
		return err
	})
	if err != nil {
		return err
	}
	pos, err := r.sessions.position(ctx, r.node)
	if err != nil {
		return r.mayOverwriteUnasked(s, leader, err)
	}
	lost := slices.ContainsFunc(leader.Slots, func(x Slot) bool { return x.Name == r.node.Slot() && x.WALStatus == "lost" })
	if pos.Timeline >= leader.Timeline && !lost {
		return fmt.Errorf("%s is on the primary's timeline %d but does not stream; its data was left as it is: %s", s.Node, pos.Timeline, s.Failure)
	}
	return nil
}

// mayOverwriteUnasked is mayOverwrite of a node whose server does not answer
// (why). One that ends at each start, though its data is on the primary's
// timeline, mostly ends for its settings or its memory: a copy would end alike.
func (r *rejoin) mayOverwriteUnasked(s *rejoinState, leader Server, why error) error {
	failed := r.m.orderFailed(r.node)
	switch {
	case failed == nil && errors.Is(why, ErrStarting):
		return nil // and nothing has moved for the deadline
	case failed == nil:
		return fmt.Errorf("%s cannot be asked why it does not stream; its data was left as it is: %w", s.Node, why)
	case r.asked:
		return nil
	}
	if control, err := r.m.out.Volumes.Control(r.node); err == nil && control.Timeline() >= leader.Timeline {
		return fmt.Errorf("the server of %s does not come up on data of the primary's timeline %d, which was left as it is: %w. Its log says why; controld rejoin %s copies it anew",
			s.Node, control.Timeline(), failed, s.Node)
	}
	return nil
}

// rewind takes back what the node wrote past the point at which the primary left
// its timeline. Nothing else may be rewound: pg_rewind lets a server that was not
// shut down end its recovery, which writes WAL on the timeline that it is on. The
// primary writes a checkpoint first: until then its control file names the old
// timeline, and pg_rewind would find nothing to do.
func (r *rejoin) rewind(ctx context.Context, s *rejoinState) error {
	if s.Rung != "" || s.Method == MethodBaseBackup || s.Empty || s.Marked {
		return nil
	}
	if s.Relation != pgwal.Past {
		if s.Method == MethodRewind {
			return fmt.Errorf("rewind: nothing was changed: %s; controld rejoin %s --method basebackup copies it anew", cmp.Or(s.Why, s.Failure, "it has nothing to take back"), s.Node)
		}
		return nil
	}
	leader := r.leader(s)
	bounded, cancel := context.WithTimeout(ctx, checkpointDeadline)
	defer cancel()
	if err := r.sessions.with(bounded, leader, func(session Session) error { return session.Checkpoint(bounded) }); err != nil {
		return err
	}
	// pg_rewind reads the node's WAL back to the fork; what the node has
	// removed of it the primary's pg_wal may still hold.
	settings := r.m.standbySettings(ctx, r.node, leader)
	settings.RestoreCommand = node.RestoreCommand(leader.DataDir())
	if err := r.m.out.Volumes.WriteSettings(r.node, settings); err != nil {
		return err
	}
	o := node.Order{Action: node.ActionRewind, Upstream: upstream(leader)}
	if err := r.orderStandby(ctx, s, o); err != nil {
		return err
	}
	if err := r.settle(ctx, s, rungRewind, rewindDeadline); err != nil {
		return err
	}
	if s.Rung == "" { // its server does not run; the file is right for its next start
		return r.m.out.Volumes.WriteSettings(r.node, r.m.standbySettings(ctx, r.node, leader))
	}
	return r.applySettings(ctx, s, settingDeadline)
}

// baseBackup copies the primary. It holds where the others do not, and is the last.
func (r *rejoin) baseBackup(ctx context.Context, s *rejoinState) error {
	if s.Rung != "" {
		return nil
	}
	if s.Method == MethodRewind {
		return fmt.Errorf("rewind: %s; try controld rejoin %s --method basebackup", s.Failure, s.Node)
	}
	o := node.Order{Action: node.ActionBaseBackup, Upstream: upstream(r.leader(s)), Slot: r.node.Slot()}
	if !r.copying(ctx, s, o) {
		if err := r.orderStandby(ctx, s, o); err != nil {
			return err
		}
	}
	copying, cancel := context.WithCancel(ctx)
	var telling sync.WaitGroup
	defer telling.Wait()
	defer cancel()
	telling.Go(func() { r.tellCopy(copying, r.leader(s)) })
	if err := r.settle(ctx, s, rungBaseBackup, copyDeadline); err != nil {
		return err
	}
	if s.Rung == "" {
		return fmt.Errorf("base backup: %s", s.Failure)
	}
	return nil
}

// copying reports whether the init is at this very copy already, ordered by a controld
// that has ended since, or by an operation that was cancelled: it may have taken hours.
func (r *rejoin) copying(ctx context.Context, s *rejoinState, o node.Order) bool {
	ordered, err := r.m.out.Volumes.Order(r.node)
	if err != nil || ordered.Action != o.Action || ordered.Upstream == nil || *ordered.Upstream != *o.Upstream || ordered.Slot != o.Slot {
		return false
	}
	status, err := r.m.out.Volumes.Status(r.node)
	return err == nil && status.Epoch == ordered.Epoch && status.State == node.StateWorking && r.gone(ctx, r.leader(s)) == ""
}

// tellCopy reports how far the copy is, by what its sender says, until ctx ends.
// Where that cannot be asked nothing is told.
func (r *rejoin) tellCopy(ctx context.Context, leader Node) {
	sessions := sessionCache{servers: r.m.out.Servers}
	defer sessions.closeAll()
	for sleep(ctx, time.Second) == nil {
		address := r.m.address(ctx, r.node)
		_ = sessions.with(ctx, leader, func(session Session) error {
			copies, err := session.Copies(ctx)
			// Others may be made at the same time, by other tools.
			at := slices.IndexFunc(copies, func(c Copy) bool { return c.Address == address })
			if at >= 0 {
				c := copies[at]
				operation.Report(ctx, operation.Progress{Phase: c.Phase, Done: c.Sent, Total: c.Total, Unit: "bytes"})
			}
			return err
		})
	}
}

func upstream(n Node) *node.Upstream { return &node.Upstream{Host: n.Container, Port: n.Port} }

func (r *rejoin) orderStandby(ctx context.Context, s *rejoinState, o node.Order) error {
	if _, err := r.m.orderToFollow(r.node, r.leader(s), o); err != nil {
		return err
	}
	return r.m.ensureRunning(ctx, r.node)
}

// settle waits until the node streams. When it does not in time, or its init
// says that the order failed, the rung did not hold and the next one is tried.
func (r *rejoin) settle(ctx context.Context, s *rejoinState, rung string, deadline time.Duration) error {
	bounded, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go r.watch(bounded, cancel, r.leader(s), deadline)
	err := r.m.waitStreaming(bounded, &r.sessions, r.node, r.leader(s))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if why := context.Cause(bounded); err != nil && errors.Is(why, errGone) {
		return why // no other rung would hold
	}
	if err != nil {
		r.m.log.Warn("rung did not hold", "node", s.Node, "rung", rung, "err", err)
		s.Failure = err.Error()
		if rung != rungFollow {
			s.Marked = true
		}
		return nil
	}
	s.Rung = rung
	r.m.otherWAL.note(r.node, pgwal.Comparison{Relation: pgwal.Same}) // its init has compared it, or it is a copy
	return nil
}

// errGone: one of the two that a rejoin needs has ended meanwhile.
var errGone = errors.New("ended meanwhile")

// watch ends a rung when one of the two nodes is gone, or when for the time of
// deadline nothing has moved: neither the init's state nor the control file of
// the node.
func (r *rejoin) watch(ctx context.Context, cancel context.CancelCauseFunc, leader Node, deadline time.Duration) {
	moved := time.Now()
	var before [3]any
	for sleep(ctx, time.Second) == nil {
		if gone := r.gone(ctx, leader); gone != "" {
			cancel(fmt.Errorf("%s %w", gone, errGone))
			return
		}
		status, _ := r.m.out.Volumes.Status(r.node)
		control, _ := r.m.out.Volumes.Control(r.node)
		now := [3]any{status.At, control.ModifiedAt, control.State}
		if now != before {
			before, moved = now, time.Now()
		}
		if time.Since(moved) > deadline {
			cancel(fmt.Errorf("nothing has moved for %s", deadline))
			return
		}
	}
}

// gone names what a rejoin cannot go on without: the primary's server, or the
// node's container, whose init carries the order out. Both were up before.
func (r *rejoin) gone(ctx context.Context, leader Node) string {
	if r.m.unlocked(leader) {
		return "the server of the primary " + leader.Name
	}
	if c, err := r.m.out.Engine.Inspect(ctx, r.node.Container); err == nil && !c.Running {
		return "the container of " + r.node.Name
	}
	return ""
}

// pointReaders lets the readers come to a node that is in order: without a slot
// for nobody, and with the settings of its file, which a server that ran all the
// time may not have read.
func (r *rejoin) pointReaders(ctx context.Context, s *rejoinState) error {
	r.m.dropUnused(ctx, &r.sessions, r.node, r.leader(s))
	if err := r.applySettings(ctx, s, settingDeadline); err != nil {
		r.m.log.Warn("settings of the standby not reloaded", "node", s.Node, "err", err)
	}
	return r.m.pointReaders(ctx, r.node, r.leader(s))
}

// rejoinSteps puts a rejoin before a failback whose target does not stream.
func (f *failover) rejoinSteps(s *failoverState) []operation.Step[failoverState] {
	_, to := f.nodes(s)
	r := &rejoin{m: f.m, node: to, sessions: sessionCache{servers: f.m.out.Servers}}
	var out []operation.Step[failoverState]
	for i, st := range r.steps() {
		out = append(out, operation.Step[failoverState]{
			Name: "rejoin: " + st.Name, Entry: st.Entry,
			Do: func(ctx context.Context, s *failoverState) error {
				defer r.sessions.closeAll()
				if i == 0 || s.Rejoin.Node == "" { // an earlier version did not journal it
					p, err := r.prepare(ctx, &s.Rejoin)
					if err != nil {
						return err
					}
					s.Rejoin.Rung = p.Already
				}
				return st.Do(ctx, &s.Rejoin)
			},
		})
	}
	return append(out, operation.Step[failoverState]{Name: "prechecks", Do: func(ctx context.Context, s *failoverState) error {
		v := f.m.fresh(ctx)
		f.addresses(ctx, v, s)
		s.RejoinFirst = true // the list of steps must stay the same when this is resumed
		from, _ := v.Node(s.From)
		target, _ := v.Node(s.To)
		s.Timeline = from.Timeline()
		if err := refusalOf(f.m.plannedChecks(v, from, target)); err != nil {
			return err
		}
		return f.reachable(s)
	}})
}
