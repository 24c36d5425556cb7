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

// emergencySteps is the failover from a primary that is dead, hung or out of
// reach. Its order is withdrawn first, so that nobody can start it again;
// nothing is promoted before its death is proved; what it had written and the
// candidate lacks is fetched before the candidate leads.
func (f *failover) emergencySteps() []operation.Step[failoverState] {
	return []operation.Step[failoverState]{
		{Name: "withdraw order", Do: f.withdrawOld, Entry: true},
		{Name: "pause pooler", Do: f.sendPause, Undo: f.resumeUndone, HoldsClients: true},
		{Name: "kill old primary", Do: f.kill, Undo: f.reconnectOld, HoldsClients: true},
		{Name: "collect pause", Do: f.collectPause, HoldsClients: true},
		{Name: "salvage WAL", Do: f.salvage, HoldsClients: true},
		{Name: stepPromote, Do: f.promote, Undo: f.demoteCandidate, Entry: true, HoldsClients: true},
		{Name: "repoint pooler", Do: f.repoint, HoldsClients: true},
		{Name: "probe", Do: f.probe, HoldsClients: true},
		{Name: "resume pooler", Do: f.resume, HoldsClients: true},
		{Name: "record primary", Do: f.record, Entry: true},
		{Name: "probe as client", Do: f.probeAsClient},
		{Name: "restore archiving", Do: within(checkpointDeadline, f.restoreNewAfterCrash)},
	}
}

// emergencyChecks are what must hold before the old primary is killed: a
// candidate that can lead, and a loss that is none, or is accepted.
func (f *failover) emergencyChecks(v View, from, to NodeState, s *failoverState) []operation.Check {
	able := to.Role() == RoleStandby
	checks := []operation.Check{
		check("candidate-is-whole", usable(to), "unfinished", nil, "%s: %s", to.Node.Name, wholeness(to)),
		check("candidate-answers", able, "no-candidate", nil, "%s: %s", to.Node.Name, roleOrWhy(to)),
		check("no-third-primary", !leadsBeside(v, s.From, s.To), "two-primaries", nil, "no other node may lead beside %s", s.From),
	}
	if !able {
		return checks
	}
	s.Timeline = max(s.Timeline, to.Timeline())
	loss := f.lossCheck(from, to, s) // says whether the two have parted
	if !s.Parted {
		checks = append(checks, f.notDivergedCheck(from, to, s))
	}
	return append(checks, loss)
}

// notDivergedCheck: what the candidate has instead of the primary's WAL hides
// acknowledged commits. Where the dead node's volume cannot be read, the loss
// says what that means.
func (f *failover) notDivergedCheck(from, to NodeState, s *failoverState) operation.Check {
	why := to.Diverged()
	if why == "" && from.Control != nil {
		if c := f.m.compare(to.Node, from.Node); c.Relation == pgwal.Diverged || c.Relation == pgwal.Past {
			why = c.Why
		}
	}
	ok := why == "" || s.MaxLoss == AcceptAnyLoss
	return check("same-wal", ok, "diverged", nil, "%s", yesNo(why == "", "nothing is known of other WAL on "+s.To,
		fmt.Sprintf("%s has other WAL than %s: %s. An unknown loss is accepted by max_loss_bytes -1; nothing is lost where %s can be started in place (controld start %[2]s)", s.To, s.From, why, s.From)))
}

func leadsBeside(v View, from, to string) bool {
	for _, n := range v.Nodes {
		if n.Node.Name != from && n.Node.Name != to && n.Role() == RolePrimary {
			return true
		}
	}
	return false
}

// lossCheck says what would be lost before anything is touched. Where the dead
// node's volume can be read its WAL is salvaged and nothing is. Where it cannot,
// the loss is an estimate, and is judged against what is accepted.
func (f *failover) lossCheck(from, to NodeState, s *failoverState) operation.Check {
	if parted(from, to) {
		s.Loss, s.Parted = Loss{Estimate: true}, true
		return f.judgeLoss(s, fmt.Sprintf("%s is on timeline %d and %s on the later timeline %d: what %s wrote since they parted does not fit", s.From, from.Control.Timeline(), s.To, to.Timeline(), s.From))
	}
	if from.Control != nil && to.Timeline() < from.Control.Timeline() && !f.knowsTimeline(to.Node, from.Control.Timeline()) {
		return check("loss", false, "timeline", map[string]any{"primary_timeline": from.Control.Timeline(), "candidate_timeline": to.Timeline()},
			"%[1]s did not follow yet to timeline %[2]d of %[3]s and would lose all that was written there. The volume of %[3]s can be read: start it in place (controld start %[3]s)", s.To, from.Control.Timeline(), s.From)
	}
	if from.Control != nil && !f.holdsWAL(from, to) {
		s.Loss = f.m.rate.bound(s.From, to.Server.Received, f.diedAt(from))
		return f.judgeLoss(s, fmt.Sprintf("the WAL that %s lacks was removed from the volume of %s, which can be started in place (controld start %s)", s.To, s.From, s.From))
	}
	if from.Control != nil {
		s.Loss = Loss{Known: true}
		return check("loss", true, "loss", map[string]any{"lost_bytes": int64(0)}, "the volume of %s can be read: what %s lacks is salvaged from it", s.From, s.To)
	}
	if f.wasInSync() {
		s.Loss = Loss{Known: true}
		return check("loss", true, "loss", map[string]any{"lost_bytes": int64(0)}, "%s was in sync at the last commit: it has all that was acknowledged", s.To)
	}
	s.Loss = f.m.rate.bound(s.From, to.Server.Received, f.diedAt(from))
	return f.judgeLoss(s, unreadable(s))
}

// holdsWAL reports whether the volume of from still holds the WAL at which the
// candidate stands. A standby that was away for longer than its slot was kept
// has nothing to go on from, and what is salvaged from behind the gap is of no use.
func (f *failover) holdsWAL(from, to NodeState) bool {
	has, err := f.m.out.Volumes.HasWAL(from.Node, min(to.Server.Received, to.Server.Replayed), from.Control.SegmentBytes)
	if err != nil {
		f.m.log.Warn("WAL of the old primary not looked at", "node", from.Node.Name, "err", err)
	}
	return err != nil || has // the salvage finds out
}

// wasInSync: no commit was acknowledged that the standby does not have. The
// journal notes the contrary before it can come true.
func (f *failover) wasInSync() bool {
	return f.m.set.Replication != Async && !f.m.Identity().Unsynced
}

// parted: the candidate has gone on to a later timeline than the node that it
// shall take over from, past controld. The WAL of the one is no continuation of
// the other's.
func parted(from, to NodeState) bool {
	return from.Control != nil && to.Timeline() > from.Control.Timeline()
}

func unreadable(s *failoverState) string { return "the volume of " + s.From + " cannot be read" }

// knowsTimeline reports whether a standby has followed to timeline t, or could.
// Its own word is older than that while it does not stream: the control file
// names a timeline only from the first restartpoint on it.
func (f *failover) knowsTimeline(n Node, t wal.Timeline) bool {
	has, err := f.m.out.Volumes.HasHistory(n, t)
	return err == nil && has
}

// diedAt is until when the old primary may have written: now, unless the
// engine knows better.
func (f *failover) diedAt(from NodeState) time.Time {
	if from.Container.Exists && !from.Container.Running && !from.Container.EndedAt.IsZero() {
		return from.Container.EndedAt
	}
	return time.Now()
}

// judgeLoss holds the loss against what is accepted. why says how it comes
// that something would be lost.
func (f *failover) judgeLoss(s *failoverState, why string) operation.Check {
	l := s.Loss
	numbers := map[string]any{
		"lost_bytes": l.Bytes, "estimate": true, "lag_bytes": l.LagBytes, "observed_ms_before": l.SinceMS,
		"write_rate_bytes_per_second": l.RateBytes, "max_loss_bytes": s.MaxLoss,
	}
	unsynced := f.m.set.Replication != Async && f.m.Identity().Unsynced
	switch {
	case unsynced && f.req.MaxLossBytes == nil:
		return check("loss", false, "loss-not-accepted", numbers,
			"synchronous replication was lifted and %s was not in sync at the last commit, and %s: about %d bytes would be lost. Accept that in the request: max_loss_bytes of at least as much (-1 accepts any)", s.To, why, l.Bytes)
	case !l.Known:
		return check("loss", s.MaxLoss == AcceptAnyLoss, "loss-unknown", numbers,
			"%s, and controld has not seen how far it was: the loss is unknown. max_loss_bytes -1 in the request accepts that", why)
	}
	ok := s.MaxLoss == AcceptAnyLoss || l.Bytes <= s.MaxLoss
	return check("loss", ok, "loss-over-bound", numbers,
		"%s: an estimated %d bytes would be lost, %d are accepted. max_loss_bytes in the request accepts more (-1 accepts any)", why, l.Bytes, s.MaxLoss)
}

func (f *failover) withdrawOld(_ context.Context, s *failoverState) error {
	from, _ := f.nodes(s)
	return f.m.withdraw(from)
}

// sendPause asks the pooler to hold the clients and does not wait: on a frozen
// primary only the kill ends what PAUSE waits for.
func (f *failover) sendPause(ctx context.Context, s *failoverState) error {
	_, to := f.nodes(s)
	if err := f.holdLease(); err != nil {
		return err
	}
	f.m.quiet(2 * time.Second)
	s.pausedAt = time.Now()
	f.paused = make(chan error, 1)
	bounded, cancel := context.WithTimeout(ctx, deathDeadline+proveDeadline)
	f.stopPause = cancel
	go func() {
		defer cancel()
		f.paused <- f.each(bounded, f.m.out.Pooler.PauseNow)
	}()
	login, done := context.WithTimeout(ctx, proveDeadline)
	defer done()
	_, err := f.sessions.get(login, to)
	return err
}

// kill ends the old primary and returns with the proof of its death. When the
// proof is late the node is cut from the network and the clients' connections
// dropped: something may still answer them.
func (f *failover) kill(ctx context.Context, s *failoverState) error {
	from, _ := f.nodes(s)
	f.sessions.drop(from)
	var err error
	if f.m.lockFree(from) {
		s.Proof = "lock"
		return nil
	}
	s.Proof, err = f.m.killAndProve(ctx, from, func(ctx context.Context) {
		if err := f.m.out.Engine.Disconnect(ctx, from.Container); err != nil {
			f.m.log.Warn("dying node not cut from the network", "node", from.Name, "err", err)
		}
		for _, db := range f.entries() {
			if err := f.m.out.Pooler.Kill(ctx, db); err != nil {
				f.m.log.Warn("clients of the dying node not dropped", "database", db, "err", err)
			}
		}
	})
	return err
}

// reconnectOld gives a node that did not die its network back; its order stays
// withdrawn.
func (f *failover) reconnectOld(ctx context.Context, s *failoverState) error {
	from, _ := f.nodes(s)
	if c, err := f.m.out.Engine.Inspect(ctx, from.Container); err != nil || c.Connected || !c.Running {
		return err
	}
	return f.m.out.Engine.Connect(ctx, from.Container)
}

// collectPause waits for PAUSE's answer, which the death of the server lets
// come. Beside what follows, the pooler's new configuration is written and its
// connection for the probe opened.
//
// A pooler that was started again has forgotten the pause, and is asked once
// more. One that does not run or does not answer serves nobody: the failover
// goes on without it, and is incomplete until it is back.
func (f *failover) collectPause(ctx context.Context, s *failoverState) error {
	if f.paused == nil {
		return errors.New("the pause was asked for by another process")
	}
	select {
	case err := <-f.paused:
		f.paused = nil
		if err != nil {
			f.m.log.Warn("pause not answered", "err", err)
			f.stopLease()
		}
	case <-time.After(proveDeadline):
		f.forgetPause()
		f.stopLease()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := f.pauseAgain(ctx); err != nil {
		f.m.log.Warn("the pooler does not answer: no clients are held", "err", err)
		return nil // a host may change only under a pause: repoint asks again
	}
	f.pointed = make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(ctx, pointDeadline)
		defer cancel()
		err := f.m.out.Pooler.Point(ctx, s.Targets)
		if err == nil {
			_ = f.m.out.Pooler.Probe(ctx, ProbeEntry) // refused until the promotion; it opens the connection
		}
		f.pointed <- err
	}()
	return nil
}

// salvage has the candidate's init copy the WAL that the candidate lacks from
// the dead node's volume into its own pg_wal, where the promotion reads it.
func (f *failover) salvage(ctx context.Context, s *failoverState) error {
	from, to := f.nodes(s)
	if s.Parted {
		return nil // judged before anything was touched
	}
	control, err := f.m.out.Volumes.Control(from)
	if err != nil {
		return f.withoutSalvage(ctx, s, err)
	}
	pos, err := f.positionOf(ctx, to)
	if err != nil {
		return err
	}
	o, err := f.m.orderToFollow(to, from, node.Order{Action: node.ActionSalvage, Salvage: &node.Salvage{
		DataDir: from.DataDir(), FromLSN: min(pos.Received, pos.Replayed), FromTimeline: control.CheckpointTimeline, SegmentBytes: control.SegmentBytes,
	}})
	if err != nil {
		return err
	}
	salvaged, err := f.awaitSalvage(ctx, to, o.Epoch)
	if err != nil {
		return f.salvageFailed(ctx, s, err)
	}
	s.Salvaged, s.Loss = salvaged.Bytes, Loss{Known: true}
	s.Timeline = max(s.Timeline, control.Timeline())
	return nil
}

func (f *failover) awaitSalvage(ctx context.Context, to Node, epoch uint64) (node.Salvaged, error) {
	ctx, cancel := context.WithTimeout(ctx, salvageDeadline)
	defer cancel()
	var got node.Salvaged
	err := poll(ctx, tick, func() (bool, error) {
		status, err := f.m.out.Volumes.Status(to)
		if err != nil || status.Salvaged == nil || status.Salvaged.Epoch != epoch {
			return false, err
		}
		got = *status.Salvaged
		return true, nil
	})
	if err != nil {
		return got, fmt.Errorf("wait for the salvage by %s: %w", to.Name, err)
	}
	if got.Error != "" {
		return got, fmt.Errorf("salvage by %s: %s", to.Name, got.Error)
	}
	return got, nil
}

// positionOf asks a candidate that may be frozen.
func (f *failover) positionOf(ctx context.Context, to Node) (Position, error) {
	ctx, cancel := context.WithTimeout(ctx, proveDeadline)
	defer cancel()
	return f.sessions.position(ctx, to)
}

// salvageFailed: the WAL of the old primary can be read as before and was not
// copied, which mostly is the candidate's fault (its disk). To lose it all the
// same is for the request itself to say. What the init may still copy is stopped.
func (f *failover) salvageFailed(ctx context.Context, s *failoverState, why error) error {
	from, to := f.nodes(s)
	if _, err := f.m.out.Volumes.Control(from); err == nil && f.req.MaxLossBytes == nil {
		return fmt.Errorf("%w; the volume of %s can be read, so nothing need be lost: start it in place (controld start %s), or mend that and ask again, or accept a loss in the request (max_loss_bytes)", why, s.From, s.From)
	}
	if err := f.giveUpSalvage(ctx, from, to); err != nil {
		return errors.Join(why, err)
	}
	return f.withoutSalvage(ctx, s, why)
}

// giveUpSalvage orders the candidate to be a standby and no more, and waits until
// its init knows: one that found this order after the promotion would stop the
// new primary for it.
func (f *failover) giveUpSalvage(ctx context.Context, from, to Node) error {
	if _, err := f.m.orderToFollow(to, from, node.Order{}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, proveDeadline)
	defer cancel()
	err := poll(ctx, tick, func() (bool, error) { return f.m.orderCarriedOut(to), nil })
	if err != nil {
		return fmt.Errorf("%s does not give up the salvage: %w", to.Name, err)
	}
	return nil
}

// withoutSalvage judges the loss once more: the volume could be read at the
// prechecks, or not; now it cannot.
func (f *failover) withoutSalvage(ctx context.Context, s *failoverState, why error) error {
	from, to := f.nodes(s)
	f.m.log.Warn("nothing salvaged", "node", from.Name, "err", why)
	pos, err := f.positionOf(ctx, to)
	if err != nil {
		return err
	}
	if f.wasInSync() {
		s.Loss = Loss{Known: true}
		return nil
	}
	if !s.Loss.Estimate {
		s.Loss = f.m.rate.bound(s.From, pos.Received, time.Now())
	}
	if c := f.judgeLoss(s, unreadable(s)); !c.OK {
		return fmt.Errorf("%s (%w)", c.Detail, why) // no refusal: the order is withdrawn and the node killed, so something was touched
	}
	return nil
}

// restoreNewAfterCrash sets the settings of a primary without a synchronous
// standby, except where strict asks for one, and makes the checkpoint that a
// rewind of the old primary would need.
func (f *failover) restoreNewAfterCrash(ctx context.Context, s *failoverState) error {
	from, to := f.nodes(s)
	err := f.sessions.with(ctx, to, func(session Session) error { return session.CreateSlot(ctx, from.Slot()) })
	if err != nil {
		return err
	}
	return f.restoreNew(ctx, s)
}

// bootDeadline bounds a start that may have to create the cluster or to redo
// much WAL.
const bootDeadline = 10 * time.Minute
