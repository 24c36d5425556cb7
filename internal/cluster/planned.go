package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/wal"
)

// stepPromote is the point of no return of every failover.
const stepPromote = "promote"

// plannedSteps is the failover from a healthy primary, in order. Everything
// that can be done while clients run is done before the pause: the reverse
// slot, the settings, the checkpoints, a warm connection of the pooler to the
// candidate. In the pause the old primary is shut down, which ships all its WAL
// and is the fence; the candidate proves that it has the last record; only then
// is it promoted. The old primary's return waits until the clients are served.
func (f *failover) plannedSteps() []operation.Step[failoverState] {
	return []operation.Step[failoverState]{
		{Name: "reserve slot", Do: within(settingDeadline, f.reserveSlot), Undo: f.dropSlot, Entry: true},
		{Name: "quiet archiving", Do: within(settingDeadline, f.quietArchiving), Undo: within(settingDeadline, f.restoreArchiving)},
		{Name: "warm pooler", Do: within(settingDeadline, f.warmPooler), Undo: within(settingDeadline, f.coolPooler)},
		{Name: "checkpoint", Do: within(checkpointDeadline, f.checkpoint)},
		{Name: "drain pools", Do: within(settingDeadline, f.drainPools), Undo: within(settingDeadline, f.refillPools)},
		{Name: "fill segment", Do: within(checkpointDeadline, f.fillSegment)},
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
		{Name: "restore archiving", Do: within(checkpointDeadline, f.restoreNew)},
		{Name: "wait for standby", Do: f.waitForStandby},
	}
}

// within gives a step a deadline of its own: what hangs outside must not hold
// the cluster for ever.
func within[S any](d time.Duration, do func(context.Context, *S) error) func(context.Context, *S) error {
	return func(ctx context.Context, s *S) error {
		bounded, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		return do(bounded, s)
	}
}

// reserveSlot makes the slot by which the old primary will stream, on the
// candidate, so that no WAL of the new timeline can be removed before it does.
func (f *failover) reserveSlot(ctx context.Context, s *failoverState) error {
	from, to := f.nodes(s)
	return f.sessions.with(ctx, to, func(session Session) error { return session.CreateSlot(ctx, from.Slot()) })
}

func (f *failover) dropSlot(ctx context.Context, s *failoverState) error {
	from, to := f.nodes(s)
	// The candidate may be down, which is why this is undone. A slot left on it
	// is dropped when it is next brought back.
	f.m.dropUnused(ctx, &f.sessions, to, from)
	return nil
}

// dropUnused drops the slot that the standby n kept for the node that leads now:
// it would keep WAL for nobody. A standby that is starting is waited for.
func (m *Manager) dropUnused(ctx context.Context, sessions *sessionCache, n, leader Node) {
	ctx, cancel := context.WithTimeout(ctx, dropDeadline)
	defer cancel()
	var last error
	err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		last = sessions.with(ctx, n, func(session Session) error { return session.DropSlot(ctx, leader.Slot()) })
		return last == nil, nil
	})
	if err != nil {
		m.log.Warn("unused slot not dropped", "node", n.Name, "slot", leader.Slot(), "err", errors.Join(err, last))
	}
}

// quietArchiving empties the archive command of both nodes and the candidate's
// restore command, and lets autovacuum's launcher end: each would start or end
// processes inside the pause. In replication mode sync it notes, before the
// candidate leads without a synchronous standby, that commits may be unsynced.
func (f *failover) quietArchiving(ctx context.Context, s *failoverState) error {
	from, to := f.nodes(s)
	before := f.m.primarySettings(from, s.Synced)
	before.ArchiveCommand, before.Switching = "", true
	if err := f.m.applySettings(ctx, &f.sessions, from, before); err != nil {
		return err
	}
	after := f.m.standbySettings(ctx, to, from)
	after.ArchiveCommand, after.Switching = "", true
	if err := f.m.applySettings(ctx, &f.sessions, to, after); err != nil {
		return err
	}
	if f.m.set.Replication == Sync {
		return f.m.changeIdentity(func(id *Identity) { id.Unsynced = true })
	}
	return nil
}

func (f *failover) restoreArchiving(ctx context.Context, s *failoverState) error {
	from, to := f.nodes(s)
	err := f.m.applySettings(ctx, &f.sessions, from, f.m.primarySettings(from, s.Synced))
	// The candidate may be down or frozen; its file is right for its next start,
	// and supervision has a server that goes on read it.
	bounded, cancel := context.WithTimeout(ctx, frozenTimeout)
	defer cancel()
	if err := f.m.applySettings(bounded, &f.sessions, to, f.m.standbySettings(ctx, to, from)); err != nil {
		f.m.log.Warn("settings of the candidate not reloaded", "node", to.Name, "err", err)
	}
	return err
}

// warmPooler points the probes' entry at the candidate and opens its server
// connection: it proves before the pause that the pooler can log in there, and
// the write probe in the pause finds it open. The candidate refuses the write.
func (f *failover) warmPooler(ctx context.Context, s *failoverState) error {
	t := s.Back
	t.Probe = s.Targets.Probe
	if err := f.m.out.Pooler.Point(ctx, t); err != nil {
		return err
	}
	if err := f.m.out.Pooler.Probe(ctx, ProbeEntry); err != nil && !errors.Is(err, ErrReadOnly) {
		return fmt.Errorf("log in to the candidate through the pooler: %w", err)
	}
	return nil
}

func (f *failover) coolPooler(ctx context.Context, s *failoverState) error {
	return f.m.out.Pooler.Point(ctx, s.Back)
}

// checkpoint leaves the shutdown and the promotion little to write. The second
// one writes what was dirtied during the first.
func (f *failover) checkpoint(ctx context.Context, s *failoverState) error {
	from, to := f.nodes(s)
	var wg sync.WaitGroup
	var restartpoint, onPrimary error
	wg.Go(func() {
		session, err := f.m.out.Servers.Connect(ctx, to)
		if err != nil {
			restartpoint = err
			return
		}
		defer session.Close()
		restartpoint = session.Checkpoint(ctx)
	})
	for range 2 {
		if onPrimary == nil {
			onPrimary = f.sessions.with(ctx, from, func(session Session) error { return session.Checkpoint(ctx) })
		}
	}
	wg.Wait()
	return errors.Join(onPrimary, restartpoint)
}

// Bounds of the drain: PgBouncer closes surplus connections three times a
// second, and a login takes a few tens of milliseconds.
const (
	drainDeadline = 400 * time.Millisecond
	loginDeadline = 2 * time.Second
)

// drainPools lets the pools shrink to what is in use and no new login begin.
// Each connection less is one process less to end in the pause; and a login
// that PAUSE cuts off would count as a failed one, for which PgBouncer throws
// out the clients that come first after RESUME.
func (f *failover) drainPools(ctx context.Context, _ *failoverState) error {
	size := 1
	for _, db := range f.m.set.Databases {
		load, err := f.m.out.Pooler.Load(ctx, db)
		if err != nil {
			return err
		}
		// Never more than is open: the difference would be logged in.
		size = max(size, min(load.Busy+1, load.Largest))
	}
	if err := f.m.out.Pooler.Drain(ctx, size); err != nil {
		return err
	}
	began := time.Now()
	return poll(ctx, 5*tick, func() (bool, error) {
		settled, drained := true, true
		for _, db := range f.m.set.Databases {
			load, err := f.m.out.Pooler.Load(ctx, db)
			if err != nil {
				return false, err
			}
			settled = settled && load.Logins == 0
			drained = drained && load.Largest <= size
		}
		waited := time.Since(began)
		return settled && (drained || waited > drainDeadline) || waited > loginDeadline, nil
	})
}

func (f *failover) refillPools(ctx context.Context, _ *failoverState) error {
	return f.m.out.Pooler.Drain(ctx, 0)
}

// Bounds of fillSegment: what is left for what clients write until they are
// held, and how long the candidate may take to follow.
const (
	fillLeaves   = 128 << 10
	fillWindow   = 100 * time.Millisecond
	fillDeadline = 200 * time.Millisecond
)

// fillSegment leaves the shutdown little to fill: with archive_mode on, it ends
// the WAL segment, writing and sending zeros up to its end, and its own record
// begins the next one. A checkpoint and a restartpoint near the end of a segment
// make the next one's file on either node. Each of the three is worth 5 to 10 ms
// of the pause; a failover that cannot have them goes on without.
func (f *failover) fillSegment(ctx context.Context, s *failoverState) error {
	from, to := f.nodes(s)
	leave := fillLeaves + f.m.rate.over(from.Name, fillWindow)
	if leave >= s.SegmentBytes {
		return nil // clients fill it themselves
	}
	if err := f.fillAndFollow(ctx, from, to, leave); err != nil {
		f.m.log.Warn("the pause will be longer", "from", from.Name, "to", to.Name, "err", err)
	}
	return nil
}

func (f *failover) fillAndFollow(ctx context.Context, from, to Node, leave int64) error {
	var filled Position
	err := f.sessions.with(ctx, from, func(session Session) (err error) {
		if err = session.FillSegment(ctx, leave); err != nil {
			return err
		}
		if err = session.Checkpoint(ctx); err != nil {
			return err
		}
		filled, err = session.Position(ctx)
		return err
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, settingDeadline) // it may be frozen, and the pools are small
	defer cancel()
	return f.sessions.with(ctx, to, func(session Session) error {
		bounded, cancel := context.WithTimeout(ctx, fillDeadline)
		defer cancel()
		err := poll(bounded, tick, func() (bool, error) { // proveCandidate waits for what is missing
			pos, err := session.Position(bounded)
			return pos.Replayed >= filled.Flushed, err
		})
		if err != nil {
			return fmt.Errorf("%s has not replayed the filled segment: %w", to.Name, err)
		}
		return session.Checkpoint(ctx)
	})
}

// pausePooler holds the clients. A transaction that outlasts the deadline
// releases them all, and refuses the failover with its name.
func (f *failover) pausePooler(ctx context.Context, s *failoverState) error {
	from, to := f.nodes(s)
	if _, err := f.sessions.get(ctx, to); err != nil { // what is polled in the pause is open before it
		return err
	}
	if err := f.holdLease(); err != nil {
		return err
	}
	f.m.quiet(2 * time.Second)
	f.m.contacts[from.Name].release() // a backend less for the shutdown to end
	sent := time.Now()
	bounded, cancel := context.WithTimeout(ctx, f.m.set.PauseDeadline)
	defer cancel()
	err := f.each(bounded, f.m.out.Pooler.Pause)
	if err == nil {
		s.pausedAt = time.Now()
		f.sessions.drop(from) // its backend is one more process for the shutdown to end
		return nil
	}
	s.pausedAt = sent // whoever was between two transactions has been held since
	if bounded.Err() == nil || ctx.Err() != nil {
		return err
	}
	return f.blocked(ctx, from)
}

// blocked names the transaction that PAUSE waited for in vain: the oldest that
// came through the pooler, and not a session on the server itself.
func (f *failover) blocked(ctx context.Context, from Node) error {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	var server Server
	err := f.sessions.with(ctx, from, func(session Session) (err error) {
		server, err = session.Observe(ctx)
		return err
	})
	pooler, inspectErr := f.m.out.Engine.Inspect(ctx, f.m.set.PoolerContainer)
	at := slices.IndexFunc(server.Transactions, func(t Transaction) bool { return t.Address == pooler.Address })
	if err := errors.Join(err, inspectErr); err != nil || at < 0 {
		return operation.Refuse("long-transaction", map[string]any{"limit_ms": f.m.set.PauseDeadline.Milliseconds()},
			"transactions of clients did not end within %s; nothing was changed, try again", f.m.set.PauseDeadline)
	}
	t := server.Transactions[at]
	return operation.Refuse("long-transaction", transactionNumbers(t, f.m.set.PauseDeadline),
		"%s, longer than the %s that clients may be held for it; nothing was changed. Wait for it or end it (pg_terminate_backend(%d)), then try again",
		describeTransaction(t), f.m.set.PauseDeadline, t.PID)
}

// resumeUndone releases the clients to the old primary.
func (f *failover) resumeUndone(ctx context.Context, s *failoverState) error {
	pointed := f.pointed != nil
	f.forgetPause()
	var err error
	if pointed { // beside the steps that are undone, and restartOld was none of them
		err = f.pointBack(ctx, s)
	}
	err = errors.Join(err, f.release(ctx))
	f.stopLease()
	if !s.pausedAt.IsZero() && s.resumedAt.IsZero() {
		s.resumedAt = time.Now()
		s.PauseMS = milliseconds(s.resumedAt.Sub(s.pausedAt))
	}
	return errors.Join(err, f.m.out.Pooler.RemoveLease())
}

// forgetPause ends an emergency's PAUSE that still waits. A RESUME before its
// end would leave it waiting, and one before its beginning would be lost on it.
func (f *failover) forgetPause() {
	if f.paused == nil {
		return
	}
	f.stopPause()
	if err := <-f.paused; err != nil {
		f.m.log.Info("pause given up", "err", err)
	}
	f.paused = nil
}

// release resumes every client database.
func (f *failover) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resumeDeadline)
	defer cancel()
	return f.each(ctx, f.m.out.Pooler.Resume)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// stopOld orders the old primary to stop and returns when its control file
// says "shut down": PostgreSQL writes that after the last backend has ended, so
// nothing can be acknowledged by it any more. Beside it the pooler's new
// configuration is written, which its paused entries allow.
func (f *failover) stopOld(ctx context.Context, s *failoverState) error {
	if err := f.held(); err != nil {
		return err
	}
	from, _ := f.nodes(s)
	if err := f.m.withdraw(from); err != nil {
		return err
	}
	if err := f.held(); err != nil { // a host may change only under a pause
		return err
	}
	f.pointed = make(chan error, 1)
	go f.pointBeside(ctx, s.Targets, f.pointed)
	bounded, cancel := context.WithTimeout(ctx, stopDeadline)
	defer cancel()
	err := poll(bounded, tick/2, func() (bool, error) {
		control, err := f.m.out.Volumes.Control(from)
		if err != nil {
			return false, err
		}
		s.Checkpoint = control.Checkpoint
		return stopped(control), nil
	})
	if err != nil {
		return fmt.Errorf("wait for the shutdown of %s: %w", from.Name, err)
	}
	return nil
}

// pointBeside points the pooler while something else goes on, and says how that went.
func (f *failover) pointBeside(ctx context.Context, t Targets, done chan<- error) {
	ctx, cancel := context.WithTimeout(ctx, pointDeadline)
	defer cancel()
	done <- f.m.out.Pooler.Point(ctx, t)
}

// restartOld makes the old primary serve again, and points the pooler back to
// it, even where it does not serve yet: its entries are paused only now.
func (f *failover) restartOld(ctx context.Context, s *failoverState) error {
	from, _ := f.nodes(s)
	bounded, cancel := context.WithTimeout(ctx, serveDeadline)
	defer cancel()
	err := f.serve(bounded, s, from)
	if err != nil && !f.wentOn && f.mayGoOn(ctx, s) {
		f.wentOn, s.NoWayBack = true, err.Error()
		f.m.log.Error("the old primary does not start again: the candidate is promoted after all", "node", from.Name, "err", err)
		return fmt.Errorf("%w: %w", err, operation.ErrGoOn)
	}
	return errors.Join(err, f.pointBack(ctx, s))
}

// mayGoOn reports whether the candidate can lead in the place of an old primary
// that does not start again, for a setting of its own that it cannot start with:
// the old one is proved dead, and the candidate answers. What it lacks is
// fetched before it leads.
func (f *failover) mayGoOn(ctx context.Context, s *failoverState) bool {
	from, to := f.nodes(s)
	err := f.m.fence(ctx, from, nil)
	if err == nil {
		bounded, cancel := context.WithTimeout(ctx, serveDeadline)
		defer cancel()
		err = poll(bounded, 20*time.Millisecond, func() (bool, error) { // an undone promotion has it started again
			pos, err := f.sessions.position(bounded, to)
			return err == nil && pos.InRecovery, nil
		})
	}
	if err != nil {
		f.m.log.Error("the candidate cannot lead instead", "node", to.Name, "err", err)
	}
	return err == nil
}

// serve makes n lead, and the targets name the address that it has then: the
// engine gives a container another one when it starts it.
func (f *failover) serve(ctx context.Context, s *failoverState, n Node) error {
	if err := f.m.serve(ctx, &f.sessions, n); err != nil {
		return err
	}
	c, err := f.m.out.Engine.Inspect(ctx, n.Container)
	if err != nil {
		return err
	}
	was := s.Targets.Primary
	if n.Name == s.From {
		was = s.Back.Primary
	}
	s.Targets, s.Back = s.Targets.moved(was, c.Address), s.Back.moved(was, c.Address)
	return nil
}

// pointBack leads the entries to where they led. A process that did not ask for
// the pause, or has lost it, asks for its own.
func (f *failover) pointBack(ctx context.Context, s *failoverState) error {
	if f.pointed != nil {
		if err := <-f.pointed; err != nil { // awaited, or it could overwrite what follows
			f.m.log.Warn("pooler not repointed beside the stop", "err", err)
		}
		f.pointed = nil
	}
	ctx, cancel := context.WithTimeout(ctx, pointDeadline)
	defer cancel()
	if f.held() != nil {
		return f.m.align(ctx, s.Back)
	}
	return f.m.out.Pooler.Point(ctx, s.Back)
}

// proveCandidate waits until the named candidate has replayed past the shutdown
// checkpoint, the last record that the old primary wrote: nothing is left behind.
func (f *failover) proveCandidate(ctx context.Context, s *failoverState) error {
	if s.NoWayBack != "" {
		// It need not have replayed all of it: what holds that up the promotion ends.
		return f.salvage(ctx, s)
	}
	if err := f.held(); err != nil {
		return err
	}
	_, to := f.nodes(s)
	ctx, cancel := context.WithTimeout(ctx, proveDeadline)
	defer cancel()
	var pos Position
	err := poll(ctx, tick, func() (bool, error) {
		var err error
		pos, err = f.sessions.position(ctx, to)
		return err == nil && pos.Replayed > s.Checkpoint, err
	})
	if err != nil {
		return fmt.Errorf("%s has not received the shutdown checkpoint at %s (replayed %s): %w", to.Name, s.Checkpoint, pos.Replayed, err)
	}
	return nil
}

// promote makes the candidate lead, and returns when its new timeline is on its
// disk. Repeated, it finds that it leads already. A candidate that went down
// after its promotion is started as what it is, a primary.
func (f *failover) promote(ctx context.Context, s *failoverState) error {
	_, to := f.nodes(s)
	if s.NewTimeline != 0 || f.promotedButDown(to, s) {
		return f.promoteAgain(ctx, to, s)
	}
	if err := f.held(); err != nil && s.Mode != ModeEmergency && s.NoWayBack == "" {
		return err
	}
	sending, cancel := context.WithTimeout(ctx, promoteDeadline)
	defer cancel()
	if err := f.sessions.with(sending, to, func(session Session) error { return session.Promote(sending) }); err != nil {
		return err
	}
	return f.waitPromoted(ctx, to, s)
}

// waitPromoted waits as long as the candidate replays what it has, which it does
// before it leads: to give it up for that would kill the one server that is left.
// A query on it can hold up the replay for 30 s; it is ended for the clients' sake.
func (f *failover) waitPromoted(ctx context.Context, to Node, s *failoverState) error {
	ctx, cancel := context.WithTimeout(ctx, replayDeadline)
	defer cancel()
	var replayed wal.LSN
	var readersEnded bool
	moved := time.Now()
	err := poll(ctx, tick, func() (bool, error) {
		asking, cancel := context.WithDeadline(ctx, moved.Add(promoteDeadline))
		defer cancel()
		pos, err := f.sessions.position(asking, to)
		if err != nil {
			return false, err
		}
		if !pos.InRecovery {
			s.NewTimeline = pos.Timeline
			return pos.Timeline > s.Timeline, nil
		}
		if pos.Replayed > replayed {
			replayed, moved = pos.Replayed, time.Now()
		}
		if !readersEnded && time.Since(moved) > promoteDeadline/5 {
			readersEnded = true
			f.m.log.Warn("the candidate's queries are ended: they may hold up its replay", "node", to.Name, "replayed", pos.Replayed.String())
			return false, f.sessions.with(asking, to, func(session Session) error { return session.EndQueries(asking) })
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("wait for the promotion of %s (replayed %s): %w", to.Name, replayed, err)
	}
	return nil
}

// promotedButDown: the candidate's new timeline is on its disk, and its server
// was fenced or has ended since.
func (f *failover) promotedButDown(to Node, s *failoverState) bool {
	control, err := f.m.out.Volumes.Control(to)
	if err != nil || control.Timeline() <= s.Timeline {
		return false
	}
	return f.m.unlocked(to)
}

// promoteAgain is promote after an interruption past the point of no return.
func (f *failover) promoteAgain(ctx context.Context, to Node, s *failoverState) error {
	if f.leads(ctx, to, s) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, serveDeadline)
	defer cancel()
	if err := f.serve(ctx, s, to); err != nil {
		return err
	}
	if !f.leads(ctx, to, s) {
		return fmt.Errorf("%s serves, but not on a timeline after %d", to.Name, s.Timeline)
	}
	return nil
}

// demoteCandidate takes back a promotion that did not reach the disk. past has
// fenced the candidate: it may come back only as a standby, without the files of
// the timeline that never was.
func (f *failover) demoteCandidate(ctx context.Context, s *failoverState) error {
	from, to := f.nodes(s)
	if locked, err := f.m.out.Volumes.Locked(to); err != nil || locked {
		return err // it was not fenced, so promote was never sent
	}
	if err := f.m.out.Volumes.WriteSettings(to, f.m.standbySettings(ctx, to, from)); err != nil {
		return err
	}
	o := node.Order{Action: node.ActionDiscard, DiscardTimeline: s.Timeline + 1}
	if _, err := f.m.orderToFollow(to, from, o); err != nil {
		return err
	}
	return f.m.ensureRunning(ctx, to)
}

// repoint is done beside the stop; here its result is awaited, or it is done
// again where another process had begun it.
func (f *failover) repoint(ctx context.Context, s *failoverState) error {
	if f.pointed != nil {
		err := <-f.pointed
		f.pointed = nil
		if err == nil {
			return nil
		}
		f.m.log.Warn("pooler not repointed beside the stop", "err", err)
	}
	_, to := f.nodes(s)
	ctx, cancel := context.WithTimeout(ctx, pointDeadline+f.m.set.PauseDeadline)
	defer cancel()
	// Its container may have been started again since.
	if c, err := f.m.out.Engine.Inspect(ctx, to.Container); err == nil && c.Address != "" {
		s.Targets = s.Targets.moved(s.Targets.Primary, c.Address)
	}
	// Clients that lead there already need no further pause, which with strict
	// would wait for commits that wait for the old primary's return.
	if f.held() != nil || f.spent() {
		p, err := f.m.out.Pooler.Observe(ctx)
		if err == nil && (aligned(p, s.Targets) || f.spent() && len(changingEntries(p, s.Targets)) == 0) {
			return nil
		}
	}
	if err := f.pauseAgain(ctx); err != nil {
		return err
	}
	return f.m.out.Pooler.Point(ctx, s.Targets)
}

// spent reports that this process has held the clients for as long as one pause
// may last, with all attempts at what keeps failing in it together.
func (f *failover) spent() bool {
	return !f.heldSince.IsZero() && time.Since(f.heldSince) > f.m.set.PauseLimit
}

// pauseAgain claims the pause where this process did not ask for it, or has
// lost it: it may have run out since, and a host may change only under one.
func (f *failover) pauseAgain(ctx context.Context) error {
	if f.held() == nil {
		return nil
	}
	f.stopLease()
	if err := f.holdLease(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, f.m.set.PauseDeadline)
	defer cancel()
	err := f.each(ctx, f.m.out.Pooler.PauseNow)
	if err != nil {
		f.stopLease() // nothing is claimed that is not held
	}
	return err
}

// probe writes through the pooler's warm connection to the new primary. Where
// that keeps failing the clients are not held for longer than a pause may last:
// the new primary leads, and tells them itself what is wrong.
func (f *failover) probe(ctx context.Context, _ *failoverState) error {
	bounded, cancel := context.WithTimeout(ctx, promoteDeadline)
	defer cancel()
	err := f.m.out.Pooler.Probe(bounded, ProbeEntry)
	if err != nil && f.spent() {
		f.m.log.Error("clients are released though the new primary takes no write", "err", err)
		return nil
	}
	return err
}

// resume releases the clients to the new primary.
func (f *failover) resume(ctx context.Context, s *failoverState) error {
	s.resumedAt = time.Now()
	err := f.release(ctx)
	f.m.quiet(100 * time.Millisecond) // the clients log in first
	f.stopLease()
	if !s.pausedAt.IsZero() {
		s.PauseMS = milliseconds(s.resumedAt.Sub(s.pausedAt))
	}
	if err != nil {
		return err
	}
	return f.m.out.Pooler.RemoveLease()
}

// record makes the new primary the recorded one, and gives it an order as such:
// its server runs, so the order changes nothing but what may start later.
// One that has ended since is started: nobody else does while this runs.
func (f *failover) record(ctx context.Context, s *failoverState) error {
	_, to := f.nodes(s)
	if f.m.unlocked(to) {
		ctx, cancel := context.WithTimeout(ctx, serveDeadline)
		defer cancel()
		if err := errors.Join(f.serve(ctx, s, to), f.m.align(ctx, s.Targets)); err != nil {
			return err
		}
	}
	return f.m.recordPrimary(to, s.SystemID, s.NewTimeline, f.m.set.Replication != Strict)
}

// probeAsClient writes through the clients' own databases, once the clients
// have had their turn: a login of ours beside theirs would lengthen the outage.
func (f *failover) probeAsClient(ctx context.Context, _ *failoverState) error {
	ctx, cancel := context.WithTimeout(ctx, promoteDeadline)
	defer cancel()
	f.awaitClients(ctx)
	for _, db := range f.m.set.Databases {
		if err := f.m.out.Pooler.Probe(ctx, db); err != nil {
			return err
		}
	}
	return nil
}

// awaitClients returns when the clients have a server connection, or after a moment.
func (f *failover) awaitClients(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_ = poll(ctx, 2*tick, func() (bool, error) {
		load, err := f.m.out.Pooler.Load(ctx, f.m.set.Databases[0])
		return load.Largest > 0, err
	})
}

// startOldAsStandby orders the old primary to follow. Its init does so in its
// container; nothing is asked of the engine.
func (f *failover) startOldAsStandby(ctx context.Context, s *failoverState) error {
	from, to := f.nodes(s)
	f.sessions.drop(from)
	if err := f.m.out.Volumes.WriteSettings(from, f.m.standbySettings(ctx, from, to)); err != nil {
		return err
	}
	if _, err := f.m.orderToFollow(from, to, node.Order{}); err != nil {
		return err
	}
	return nil
}

// restoreNew gives the new primary its archiving back and makes it write a
// checkpoint, which a later pg_rewind would need.
func (f *failover) restoreNew(ctx context.Context, s *failoverState) error {
	_, to := f.nodes(s)
	if err := f.m.applySettings(ctx, &f.sessions, to, f.m.primarySettings(to, false)); err != nil {
		return err
	}
	return f.sessions.with(ctx, to, func(session Session) error {
		// A slot for the new primary itself would hold WAL for nobody.
		if err := session.DropSlot(ctx, to.Slot()); err != nil {
			return err
		}
		return session.Checkpoint(ctx)
	})
}

// waitForStandby ends the operation when the old primary streams again, or
// leaves its return to an operation of its own when that takes too long.
func (f *failover) waitForStandby(ctx context.Context, s *failoverState) error {
	from, to := f.nodes(s)
	bounded, cancel := context.WithTimeout(ctx, streamDeadline)
	defer cancel()
	err := f.m.waitStreaming(bounded, &f.sessions, from, to)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.Rejoined = err == nil
	if err != nil {
		f.m.log.Warn("the old primary does not stream yet", "node", from.Name, "err", err)
		return nil
	}
	if !s.resumedAt.IsZero() {
		s.RejoinMS = time.Since(s.resumedAt).Milliseconds()
	}
	f.m.dropUnused(ctx, &f.sessions, from, to)
	if s.Synced {
		if err := f.m.protect(ctx, &f.sessions, to, from); err != nil {
			f.m.log.Warn("synchronous replication is not back yet", "err", err)
			return nil
		}
		if f.m.set.Replication == Sync { // strict never leads without
			if !s.resumedAt.IsZero() {
				s.Unprotected = time.Since(s.resumedAt).Milliseconds()
			}
		}
	}
	return f.m.pointReaders(ctx, from, to)
}
