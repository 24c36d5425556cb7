package failover

import (
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
	"controld/internal/pgcontrol"
	"controld/internal/wait"
)

// plannedSteps is the failover from a healthy primary, in order. Everything
// that can be done while clients run is done before the pause: the reverse
// slot, the settings, the checkpoints, a warm connection of the pooler to the
// candidate. In the pause the old primary is shut down, which ships all its WAL
// and is the fence; the candidate proves that it has the last record; only then
// is it promoted. The old primary's return waits until the clients are served.
func (f *failover) plannedSteps() []operation.Step[state] {
	type act = func(context.Context, *state) error
	quick := func(do act) act { return operation.Within(actuator.SettingDeadline, do) }
	long := func(do act) act { return operation.Within(actuator.CheckpointDeadline, do) }
	return []operation.Step[state]{
		{Name: "reserve slot", Do: quick(f.reserveSlot), Undo: f.dropSlot, Entry: true},
		{Name: "quiet archiving", Do: quick(f.quietArchiving), Undo: quick(f.restoreArchiving)},
		{Name: "warm pooler", Do: quick(f.warmPooler), Undo: quick(f.coolPooler)},
		{Name: "checkpoint", Do: long(f.checkpoint)},
		{Name: "drain pools", Do: quick(f.drainPools), Undo: quick(f.refillPools)},
		{Name: "fill segment", Do: long(f.fillSegment)},
		{Name: "pause pooler", Do: f.pausePooler, Undo: f.resumeUndone, Entry: true, HoldsClients: true},
		{Name: "stop old primary", Do: f.stopOld, Undo: f.restartOld, HoldsClients: true},
		{Name: "prove candidate", Do: f.proveCandidate, HoldsClients: true},
		{Name: stepPromote, Do: f.promote, Undo: f.demoteCandidate, Entry: true, HoldsClients: true},
		{Name: "repoint pooler", Do: f.repoint, HoldsClients: true},
		{Name: "probe", Do: f.probe, HoldsClients: true},
		{Name: "resume pooler", Do: f.resume, HoldsClients: true},
		{Name: "record primary", Do: f.record, Entry: true},
		{Name: "probe as client", Do: f.probeAsClient},
		{Name: "start old primary as standby", Do: f.startOldAsStandby},
		{Name: "restore archiving", Do: long(f.restoreNew)},
		{Name: "wait for standby", Do: f.waitForStandby},
	}
}

// reserveSlot makes the slot by which the old primary will stream, on the
// candidate, so that no WAL of the new timeline can be removed before it does.
func (f *failover) reserveSlot(ctx context.Context, s *state) error {
	from, to := f.nodes(s)
	return f.sessions.With(ctx, to, func(session cluster.Session) error { return session.CreateSlot(ctx, from.Slot()) })
}

func (f *failover) dropSlot(ctx context.Context, s *state) error {
	from, to := f.nodes(s)
	// No error: the candidate may be down, which may be why this is undone. A slot
	// that is left on it is dropped when it is next brought back.
	f.act.DropUnused(ctx, &f.sessions, to, from)
	return nil
}

// quietArchiving empties the archive command of both nodes and the candidate's
// restore command, and lets autovacuum's launcher end: each of them would start or
// end processes inside the pause. In replication mode sync the candidate will lead
// without a synchronous standby for a while: that commits may be unsynced is noted here.
func (f *failover) quietArchiving(ctx context.Context, s *state) error {
	from, to := f.nodes(s)
	before := f.act.PrimarySettings(from, s.Synced)
	before.ArchiveCommand, before.Switching = "", true
	if err := f.act.ApplySettings(ctx, &f.sessions, from, before); err != nil {
		return err
	}
	after := f.act.StandbySettings(ctx, to, from)
	after.ArchiveCommand, after.Switching = "", true
	if err := f.act.ApplySettings(ctx, &f.sessions, to, after); err != nil {
		return err
	}
	if f.act.Settings.Replication == cluster.Sync {
		return f.act.ChangeIdentity(func(id *cluster.Identity) { id.Unsynced = true })
	}
	return nil
}

func (f *failover) restoreArchiving(ctx context.Context, s *state) error {
	from, to := f.nodes(s)
	err := f.act.ApplySettings(ctx, &f.sessions, from, f.act.PrimarySettings(from, s.Synced))
	// The candidate may be down or frozen; its file is right for its next start,
	// and supervision has a server that goes on read it.
	bounded, cancel := context.WithTimeout(ctx, actuator.FrozenTimeout)
	defer cancel()
	if err := f.act.ApplySettings(bounded, &f.sessions, to, f.act.StandbySettings(ctx, to, from)); err != nil {
		f.act.Log.Warn("settings of the candidate not reloaded", "node", to.Name, "err", err)
	}
	return err
}

// warmPooler points the probes' entry at the candidate and opens its server
// connection: it proves before the pause that the pooler can log in there, and
// the write probe in the pause finds it open. The candidate refuses the write.
func (f *failover) warmPooler(ctx context.Context, s *state) error {
	t := s.Back
	t.Probe = s.Targets.Probe
	if err := f.act.Outside.Pooler.Point(ctx, t); err != nil {
		return err
	}
	if err := f.act.Outside.Pooler.Probe(ctx, cluster.ProbeEntry); err != nil && !errors.Is(err, cluster.ErrReadOnly) {
		return fmt.Errorf("log in to the candidate through the pooler: %w", err)
	}
	return nil
}

func (f *failover) coolPooler(ctx context.Context, s *state) error {
	return f.act.Outside.Pooler.Point(ctx, s.Back)
}

// checkpoint leaves the shutdown and the promotion little to write. The second
// one writes what was dirtied during the first.
func (f *failover) checkpoint(ctx context.Context, s *state) error {
	from, to := f.nodes(s)
	var wg sync.WaitGroup
	var restartpoint, onPrimary error
	wg.Go(func() {
		session, err := f.act.Outside.Servers.Connect(ctx, to)
		if err != nil {
			restartpoint = err
			return
		}
		defer session.Close()
		restartpoint = session.Checkpoint(ctx)
	})
	for range 2 {
		if onPrimary == nil {
			onPrimary = f.sessions.With(ctx, from, func(session cluster.Session) error { return session.Checkpoint(ctx) })
		}
	}
	wg.Wait()
	return errors.Join(onPrimary, restartpoint)
}

// pausePooler holds the clients. A transaction that outlasts the deadline
// releases them all, and refuses the failover with its name.
func (f *failover) pausePooler(ctx context.Context, s *state) error {
	from, to := f.nodes(s)
	if _, err := f.sessions.Get(ctx, to); err != nil { // proveCandidate asks over it, in the pause
		return err
	}
	f.act.Look.Quiet(2 * time.Second)
	f.act.Look.Release(from) // one backend less for the shutdown to end
	outlasted, err := f.pauseOf(s).hold(ctx)
	if err == nil {
		f.sessions.Drop(from) // and another one less
	}
	if outlasted {
		return f.blocked(ctx, from)
	}
	return err
}

// blocked names the transaction that PAUSE waited for in vain: the oldest of those
// that came through the pooler. Sessions on the server itself do not hold up PAUSE.
func (f *failover) blocked(ctx context.Context, from cluster.Node) error {
	ctx, cancel := context.WithTimeout(ctx, actuator.LoginTimeout)
	defer cancel()
	var server cluster.Server
	err := f.sessions.With(ctx, from, func(session cluster.Session) (err error) {
		server, err = session.Observe(ctx)
		return err
	})
	pooler, inspectErr := f.act.Outside.Engine.Inspect(ctx, f.act.Settings.PoolerContainer)
	at := slices.IndexFunc(server.Transactions, func(t cluster.Transaction) bool { return t.Address == pooler.Address })
	limit := f.act.Settings.PauseDeadline
	if err := errors.Join(err, inspectErr); err != nil || at < 0 {
		return operation.Refuse("long-transaction", map[string]any{"limit_ms": limit.Milliseconds()},
			"transactions of clients did not end within %s; nothing was changed, try again", limit)
	}
	t := server.Transactions[at]
	return operation.Refuse("long-transaction", transactionNumbers(t, limit),
		"%s, longer than the %s that clients may be held for it; nothing was changed. "+
			"Wait for it or end it (pg_terminate_backend(%d)), then try again", describeTransaction(t), limit, t.PID)
}

// stopOld orders the old primary to stop, and returns when its control file says
// "shut down". PostgreSQL writes that after the last backend has ended: nothing can be
// acknowledged by it any more. Beside that the pooler's new configuration is written,
// which is allowed as long as its entries are paused.
func (f *failover) stopOld(ctx context.Context, s *state) error {
	p := f.pauseOf(s)
	if err := p.held(); err != nil {
		return err
	}
	from, _ := f.nodes(s)
	if err := f.act.Withdraw(from); err != nil {
		return err
	}
	if err := p.held(); err != nil { // a host may change only under a pause
		return err
	}
	p.pointBeside(ctx, s.Targets, nil)
	bounded, cancel := context.WithTimeout(ctx, stopDeadline)
	defer cancel()
	err := wait.Poll(bounded, actuator.Tick/2, func() (bool, error) {
		control, err := f.act.Outside.Volumes.Control(from)
		if err != nil {
			return false, err
		}
		s.Checkpoint = control.Checkpoint
		return control.State == pgcontrol.StateShutDown, nil
	})
	if err != nil {
		return fmt.Errorf("wait for the shutdown of %s: %w", from.Name, err)
	}
	return nil
}

// restartOld makes the old primary serve again, and points the pooler back to it,
// also where it does not serve yet: the entries are paused now and not later. Where it
// cannot be started, the failover goes on instead of back, if the candidate may lead.
func (f *failover) restartOld(ctx context.Context, s *state) error {
	from, _ := f.nodes(s)
	bounded, cancel := context.WithTimeout(ctx, actuator.ServeDeadline)
	defer cancel()
	err := f.serve(bounded, s, from)
	if err != nil && !f.wentOn && f.mayGoOn(ctx, s) {
		f.wentOn, s.NoWayBack = true, err.Error()
		f.act.Log.Error("the old primary does not start again: the candidate is promoted after all", "node", from.Name, "err", err)
		return fmt.Errorf("%w: %w", err, operation.ErrGoOn)
	}
	return errors.Join(err, f.pauseOf(s).pointBack(ctx, s.Back))
}

// mayGoOn reports whether the candidate can lead in the place of an old primary that
// does not start again, as for a setting of its own. Two things are needed: the old
// primary is proved dead, and the candidate answers as a standby. What the candidate
// lacks is fetched before it leads, by proveCandidate.
func (f *failover) mayGoOn(ctx context.Context, s *state) bool {
	from, to := f.nodes(s)
	err := f.act.Fence(ctx, from, nil)
	if err == nil {
		err = f.awaitCandidate(ctx, to)
	}
	if err != nil {
		f.act.Log.Error("the candidate cannot lead instead", "node", to.Name, "err", err)
	}
	return err == nil
}

// awaitCandidate waits until the candidate answers as a standby: the undoing of its
// promotion has started it again.
func (f *failover) awaitCandidate(ctx context.Context, to cluster.Node) error {
	ctx, cancel := context.WithTimeout(ctx, actuator.ServeDeadline)
	defer cancel()
	return wait.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		pos, err := f.sessions.Position(ctx, to)
		return err == nil && pos.InRecovery, nil
	})
}

// proveCandidate waits until the candidate has replayed past the shutdown checkpoint,
// the last record that the old primary wrote: nothing is left behind. Where there is
// no way back it fetches what is missing instead. That need not be replayed here: the
// promotion waits for it, and ends what holds it up.
func (f *failover) proveCandidate(ctx context.Context, s *state) error {
	if s.NoWayBack != "" {
		return f.salvage(ctx, s)
	}
	if err := f.pauseOf(s).held(); err != nil {
		return err
	}
	_, to := f.nodes(s)
	ctx, cancel := context.WithTimeout(ctx, actuator.ProveDeadline)
	defer cancel()
	var pos cluster.Position
	err := wait.Poll(ctx, actuator.Tick, func() (bool, error) {
		var err error
		pos, err = f.sessions.Position(ctx, to)
		return err == nil && pos.Replayed > s.Checkpoint, err
	})
	if err != nil {
		return fmt.Errorf("%s has not received the shutdown checkpoint at %s (replayed %s): %w",
			to.Name, s.Checkpoint, pos.Replayed, err)
	}
	return nil
}

// startOldAsStandby orders the old primary to follow. Its init does so in its
// container; nothing is asked of the engine.
func (f *failover) startOldAsStandby(ctx context.Context, s *state) error {
	from, to := f.nodes(s)
	f.sessions.Drop(from)
	if err := f.act.Outside.Volumes.WriteSettings(from, f.act.StandbySettings(ctx, from, to)); err != nil {
		return err
	}
	_, err := f.act.OrderToFollow(from, to, node.Order{})
	return err
}

// waitForStandby ends the operation when the old primary streams again, or
// leaves its return to an operation of its own when that takes too long.
func (f *failover) waitForStandby(ctx context.Context, s *state) error {
	from, to := f.nodes(s)
	bounded, cancel := context.WithTimeout(ctx, actuator.StreamDeadline)
	defer cancel()
	err := f.act.WaitStreaming(bounded, &f.sessions, from, to)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.Rejoined = err == nil
	if err != nil {
		f.act.Log.Warn("the old primary does not stream yet", "node", from.Name, "err", err)
		return nil
	}
	s.RejoinMS = f.sinceReleaseMS()
	f.act.DropUnused(ctx, &f.sessions, from, to)
	if s.Synced {
		if err := f.act.Protect(ctx, &f.sessions, to, from); err != nil {
			f.act.Log.Warn("synchronous replication is not back yet", "err", err)
			return nil
		}
		if f.act.Settings.Replication == cluster.Sync { // strict never leads without
			s.Unprotected = f.sinceReleaseMS()
		}
	}
	return f.act.PointReaders(ctx, from, to)
}

// sinceReleaseMS is how long ago the clients were released; 0: not by this process.
func (f *failover) sinceReleaseMS() int64 {
	if f.pause.releasedAt.IsZero() {
		return 0
	}
	return time.Since(f.pause.releasedAt).Milliseconds()
}
