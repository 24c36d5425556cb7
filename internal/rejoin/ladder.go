package rejoin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/pgwal"
	"controld/internal/wait"
)

// State is what the steps of a rejoin learn from each other.
type State struct {
	Node   string `json:"node"`
	Leader string `json:"leader"`
	Method string `json:"method"`
	Empty  bool   `json:"empty"`  // nothing to keep: only a base backup can help
	Marked bool   `json:"marked"` // its data may be half overwritten: only a base backup can help
	Forked bool   `json:"forked"` // on a later timeline than the primary's: it led past controld
	// Relation is what the node's WAL is to the primary's; Why says it in words.
	Relation pgwal.Relation `json:"relation"`
	Why      string         `json:"why"`
	Rung     string         `json:"rung"`    // the one that held
	Failure  string         `json:"failure"` // of the rung before, which did not hold
}

// The rungs of the ladder, the cheapest first.
const (
	rungFollow     = "follow"
	rungRewind     = "rewind"
	rungBaseBackup = "base backup"
)

// A Ladder brings one node back. It is made anew by a controld that goes on with it.
type Ladder struct {
	act      *actuator.Actuator
	method   string
	asked    bool // by a person: also what forked off is overwritten
	node     cluster.Node
	sessions actuator.Sessions
}

// NewLadder is for a node that another operation brings back on its way.
func NewLadder(act *actuator.Actuator, n cluster.Node) *Ladder {
	return &Ladder{act: act, node: n, sessions: act.Sessions()}
}

// Close closes the sessions of the steps.
func (r *Ladder) Close() { r.sessions.CloseAll() }

// Bounds of the rungs: for how long nothing may move. A server that follows may have to
// redo much WAL first, which takes as long as it takes.
const (
	followDeadline = 20 * time.Second
	rewindDeadline = 30 * time.Minute
	copyDeadline   = 24 * time.Hour
)

// Steps is the ladder. A rung is skipped when one before it held, or when it
// cannot help.
func (r *Ladder) Steps() []operation.Step[State] {
	return []operation.Step[State]{
		{Name: "reserve slot", Do: r.reserveSlot, Entry: true},
		{Name: rungFollow, Do: r.follow},
		{Name: rungRewind, Do: r.rewind, Entry: true},
		{Name: rungBaseBackup, Do: r.baseBackup, Entry: true},
		{Name: "point readers", Do: r.pointReaders, Entry: true},
	}
}

// leader is the primary to follow.
func (r *Ladder) leader(s *State) cluster.Node {
	n, _ := r.act.Node(s.Leader)
	return n
}

// reserveSlot makes the primary keep the WAL that the node will need.
func (r *Ladder) reserveSlot(ctx context.Context, s *State) error {
	if err := r.act.Outside.Volumes.WriteSettings(r.node, r.act.StandbySettings(ctx, r.node, r.leader(s))); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, actuator.SettingDeadline)
	defer cancel()
	return r.sessions.With(ctx, r.leader(s), func(session cluster.Session) error {
		return session.CreateSlot(ctx, r.node.Slot())
	})
}

// follow is the first rung: the node starts as a standby on the data it has. That holds
// where all WAL that it has is the primary's too.
func (r *Ladder) follow(ctx context.Context, s *State) error {
	if s.Method == cluster.MethodBaseBackup || s.Empty || s.Marked {
		return nil
	}
	if err := r.compare(ctx, s); err != nil {
		return err
	}
	switch {
	case s.Forked || s.Relation == pgwal.Past || s.Relation == pgwal.Diverged:
		return nil
	case s.Method == cluster.MethodRewind && s.Relation == pgwal.Unknown:
		return nil
	}
	if err := r.orderStandby(ctx, s, node.Order{}); err != nil {
		return err
	}
	if err := r.applySettings(ctx, s, actuator.LoginTimeout); err != nil { // a server that is starting reads them anyway
		r.act.Log.Debug("settings of the standby not reloaded", "node", s.Node, "err", err)
	}
	if err := r.settle(ctx, s, rungFollow, followDeadline); err != nil || s.Rung != "" {
		return err
	}
	return r.mayOverwrite(ctx, s)
}

// compare finds out which rungs can hold, before one changes anything. What the node's
// init has found before counts too: it has seen WAL that may not be there any more.
func (r *Ladder) compare(ctx context.Context, s *State) error {
	ctx, cancel := context.WithTimeout(ctx, actuator.CheckpointDeadline)
	defer cancel()
	c, err := r.act.Outside.Volumes.Compare(ctx, r.node, r.leader(s), 0)
	if err != nil {
		return err
	}
	r.act.Look.NoteWAL(r.node, c)
	s.Relation, s.Why = c.Relation, c.Why
	if status, err := r.act.Outside.Volumes.Status(r.node); err == nil && status.Diverged() != "" {
		s.Relation, s.Why = pgwal.Diverged, status.Diverged()
	}
	r.act.Log.Info("WAL compared", "node", s.Node, "primary", s.Leader,
		"relation", s.Relation, "end", c.End, "bytes", c.Bytes, "why", s.Why)
	return nil
}

// applySettings gives the node's server the settings of today. One that ran all the time
// may have others, or look for the primary where it was before.
func (r *Ladder) applySettings(ctx context.Context, s *State, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return r.act.ApplySettings(ctx, &r.sessions, r.node, r.act.StandbySettings(ctx, r.node, r.leader(s)))
}

// mayOverwrite decides, after the first rung did not hold, whether the other two may be
// tried: they overwrite data. It refuses them where the node is on the primary's timeline
// and the primary still has the WAL that it needs. Such a node has not diverged and could
// follow; what keeps it from that, most likely the network, would keep the others from
// holding too.
func (r *Ladder) mayOverwrite(ctx context.Context, s *State) error {
	ctx, cancel := context.WithTimeout(ctx, actuator.SettingDeadline)
	defer cancel()
	var leader cluster.Server
	err := r.sessions.With(ctx, r.leader(s), func(session cluster.Session) (err error) {
		leader, err = session.Observe(ctx)
		return err
	})
	if err != nil {
		return err
	}
	pos, err := r.sessions.Position(ctx, r.node)
	if err != nil {
		return r.mayOverwriteUnasked(s, leader, err)
	}
	lost := slices.ContainsFunc(leader.Slots, func(x cluster.Slot) bool {
		return x.Name == r.node.Slot() && x.WALStatus == "lost"
	})
	if pos.Timeline >= leader.Timeline && !lost {
		return fmt.Errorf("%s is on the primary's timeline %d but does not stream; its data was left as it is: %s",
			s.Node, pos.Timeline, s.Failure)
	}
	return nil
}

// mayOverwriteUnasked is mayOverwrite for a node whose server does not answer; why is
// how. There are four cases.
//
//   - The server is starting: it had the whole deadline and nothing has moved, so the
//     other rungs may be tried.
//   - The init reports no failure: nobody knows what is wrong, and the data is left.
//   - The server ended at its start, and a person asked for the rejoin: they may be tried.
//   - It ended at its start, and nobody asked: where its data is on the primary's timeline
//     it mostly ends for its settings or its memory. A copy would end alike, so the data
//     is left. Where its data is on an older one they may be tried.
func (r *Ladder) mayOverwriteUnasked(s *State, leader cluster.Server, why error) error {
	failed := r.act.OrderFailed(r.node)
	switch {
	case failed == nil && errors.Is(why, cluster.ErrStarting):
		return nil
	case failed == nil:
		return fmt.Errorf("%s cannot be asked why it does not stream; its data was left as it is: %w", s.Node, why)
	case r.asked:
		return nil
	}
	if control, err := r.act.Outside.Volumes.Control(r.node); err == nil && control.Timeline() >= leader.Timeline {
		return fmt.Errorf("the server of %[1]s does not come up on data of the primary's timeline %[2]d, which was left as it is: %[3]w. "+
			"Its log says why; controld rejoin %[1]s copies it anew", s.Node, control.Timeline(), failed)
	}
	return nil
}

// rewind is the second rung. It takes back what the node wrote past the point at which
// the primary left its timeline. Nothing else may be rewound: pg_rewind lets a server
// that was not shut down end its recovery first, which writes WAL on the timeline that
// the node is on.
func (r *Ladder) rewind(ctx context.Context, s *State) error {
	if s.Rung != "" || s.Method == cluster.MethodBaseBackup || s.Empty || s.Marked {
		return nil
	}
	if s.Relation != pgwal.Past {
		if s.Method == cluster.MethodRewind {
			return fmt.Errorf("rewind: nothing was changed: %s; controld rejoin %s --method basebackup copies it anew",
				cmp.Or(s.Why, s.Failure, "it has nothing to take back"), s.Node)
		}
		return nil
	}
	if err := r.readyToRewind(ctx, s); err != nil {
		return err
	}
	o := node.Order{Action: node.ActionRewind, Upstream: upstream(r.leader(s))}
	if err := r.orderStandby(ctx, s, o); err != nil {
		return err
	}
	if err := r.settle(ctx, s, rungRewind, rewindDeadline); err != nil {
		return err
	}
	if s.Rung == "" { // its server does not run; the file is right for its next start
		return r.act.Outside.Volumes.WriteSettings(r.node, r.act.StandbySettings(ctx, r.node, r.leader(s)))
	}
	return r.applySettings(ctx, s, actuator.SettingDeadline)
}

// readyToRewind prepares both nodes for pg_rewind. The primary writes a checkpoint: until
// then its control file names the old timeline, and pg_rewind would find nothing to do.
// The node gets a restore_command: pg_rewind reads the node's WAL back to the fork, and
// what the node has removed of it the primary's pg_wal may still hold, or the archive.
func (r *Ladder) readyToRewind(ctx context.Context, s *State) error {
	leader := r.leader(s)
	bounded, cancel := context.WithTimeout(ctx, actuator.CheckpointDeadline)
	defer cancel()
	err := r.sessions.With(bounded, leader, func(session cluster.Session) error { return session.Checkpoint(bounded) })
	if err != nil {
		return err
	}
	settings := r.act.StandbySettings(ctx, r.node, leader)
	stanza := ""
	if status, err := r.act.Outside.Volumes.Status(r.node); err == nil && status.Archives {
		stanza = r.act.Settings.ArchiveStanza
	}
	settings.RestoreCommand = node.RestoreCommand(leader.DataDir(), stanza)
	return r.act.Outside.Volumes.WriteSettings(r.node, settings)
}

// baseBackup is the last rung, which holds where the others do not: the node's init copies
// the primary.
func (r *Ladder) baseBackup(ctx context.Context, s *State) error {
	if s.Rung != "" {
		return nil
	}
	if s.Method == cluster.MethodRewind {
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

// copying reports whether the node's init is making the very copy that o asks for. It was
// ordered by a controld that has ended since, or by an operation that was cancelled. The
// init goes on with it, which may have taken hours: to order it anew would begin it anew.
func (r *Ladder) copying(ctx context.Context, s *State, o node.Order) bool {
	ordered, err := r.act.Outside.Volumes.Order(r.node)
	if err != nil || ordered.Action != o.Action || ordered.Slot != o.Slot {
		return false
	}
	if ordered.Upstream == nil || *ordered.Upstream != *o.Upstream {
		return false
	}
	status, err := r.act.Outside.Volumes.Status(r.node)
	atWork := err == nil && status.Epoch == ordered.Epoch && status.State == node.StateWorking
	return atWork && r.gone(ctx, r.leader(s)) == ""
}

// tellCopy reports, until ctx ends, how far the copy is. The primary, which sends it,
// knows that; where it cannot be asked nothing is told.
func (r *Ladder) tellCopy(ctx context.Context, leader cluster.Node) {
	sessions := r.act.Sessions()
	defer sessions.CloseAll()
	for wait.Sleep(ctx, time.Second) == nil {
		address := r.act.Address(ctx, r.node)
		_ = sessions.With(ctx, leader, func(session cluster.Session) error {
			copies, err := session.Copies(ctx)
			// Others may be made at the same time, by other tools.
			at := slices.IndexFunc(copies, func(c cluster.Copy) bool { return c.Address == address })
			if at >= 0 {
				c := copies[at]
				operation.Report(ctx, operation.Progress{Phase: c.Phase, Done: c.Sent, Total: c.Total, Unit: "bytes"})
			}
			return err
		})
	}
}

func upstream(n cluster.Node) *node.Upstream { return &node.Upstream{Host: n.Container, Port: n.Port} }

// orderStandby gives the node its order, and sees to it that its init can carry it out.
func (r *Ladder) orderStandby(ctx context.Context, s *State, o node.Order) error {
	if _, err := r.act.OrderToFollow(r.node, r.leader(s), o); err != nil {
		return err
	}
	return r.act.EnsureRunning(ctx, r.node)
}

// settle waits until the node streams, and notes the rung that made it. Where it does not
// stream in time, or its init says that the order failed, the rung did not hold: that is
// noted too, and no error, for the next one is tried. Where the primary or the node's
// container has ended it is an error: then no other rung would hold.
func (r *Ladder) settle(ctx context.Context, s *State, rung string, deadline time.Duration) error {
	bounded, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go r.watch(bounded, cancel, r.leader(s), deadline)
	err := r.act.WaitStreaming(bounded, &r.sessions, r.node, r.leader(s))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if why := context.Cause(bounded); err != nil && errors.Is(why, errGone) {
		return why
	}
	if err != nil {
		r.act.Log.Warn("rung did not hold", "node", s.Node, "rung", rung, "err", err)
		s.Failure = err.Error()
		if rung != rungFollow {
			s.Marked = true
		}
		return nil
	}
	s.Rung = rung
	r.act.Look.NoteWAL(r.node, pgwal.Comparison{Relation: pgwal.Same}) // its init has compared it, or it is a copy
	return nil
}

// errGone says that one of the two that a rejoin needs has ended.
var errGone = errors.New("ended meanwhile")

// watch looks after a rung once a second, and ends it with cancel in two cases: one of
// the two nodes is gone, or nothing has moved for the time of deadline. What moves is the
// state that the node's init reports, or the node's control file.
func (r *Ladder) watch(ctx context.Context, cancel context.CancelCauseFunc, leader cluster.Node, deadline time.Duration) {
	moved := time.Now()
	var before [3]any
	for wait.Sleep(ctx, time.Second) == nil {
		if gone := r.gone(ctx, leader); gone != "" {
			cancel(fmt.Errorf("%s %w", gone, errGone))
			return
		}
		status, _ := r.act.Outside.Volumes.Status(r.node)
		control, _ := r.act.Outside.Volumes.Control(r.node)
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

// gone names what has ended of what a rejoin needs: the primary's server, or the node's
// container, whose init carries the order out. Both were up before. Empty: neither has.
func (r *Ladder) gone(ctx context.Context, leader cluster.Node) string {
	if r.act.Unlocked(leader) {
		return "the server of the primary " + leader.Name
	}
	if c, err := r.act.Outside.Engine.Inspect(ctx, r.node.Container); err == nil && !c.Running {
		return "the container of " + r.node.Name
	}
	return ""
}

// pointReaders puts the node in order and lets the readers come to it. The slot that it
// kept for the primary is dropped. The settings of its file are read again: a server that
// ran all the time may not have done that.
func (r *Ladder) pointReaders(ctx context.Context, s *State) error {
	r.act.DropUnused(ctx, &r.sessions, r.node, r.leader(s))
	if err := r.applySettings(ctx, s, actuator.SettingDeadline); err != nil {
		r.act.Log.Warn("settings of the standby not reloaded", "node", s.Node, "err", err)
	}
	return r.act.PointReaders(ctx, r.node, r.leader(s))
}
