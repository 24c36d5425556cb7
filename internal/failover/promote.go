package failover

import (
	"context"
	"fmt"
	"time"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/wait"
	"controld/internal/wal"
)

// past reports whether the point of no return is behind: whether the candidate has a new
// timeline on its disk. That fact counts, and not that somebody asked for the promotion.
// A candidate that does not say within the deadline that it leads is fenced, so that a
// promotion which is still on its way cannot happen later; then its control file says it.
func (f *failover) past(ctx context.Context, s *state) (bool, error) {
	_, to := f.nodes(s)
	if f.leads(ctx, to, s) {
		return true, nil
	}
	f.sessions.Drop(to)
	if err := f.act.Fence(ctx, to, nil); err != nil {
		return false, fmt.Errorf("find out whether %s was promoted: %w", to.Name, err)
	}
	control, err := f.act.Outside.Volumes.Control(to)
	if err != nil {
		return false, fmt.Errorf("find out whether %s was promoted: %w", to.Name, err)
	}
	return control.Timeline() > s.Timeline, nil
}

// giveUp notes that the new primary leads, where it does: controld looks after it
// from then on, and brings about what the operation did not.
func (f *failover) giveUp(ctx context.Context, s *state) error {
	_, to := f.nodes(s)
	if f.act.Identity().Primary == to.Name || !f.leads(ctx, to, s) {
		return nil
	}
	return f.act.RecordPrimary(to, s.SystemID, s.NewTimeline, f.act.Settings.Replication != cluster.Strict)
}

// leads asks the candidate whether it leads on a new timeline, and notes which.
func (f *failover) leads(ctx context.Context, to cluster.Node, s *state) bool {
	ctx, cancel := context.WithTimeout(ctx, actuator.LoginTimeout)
	defer cancel()
	pos, err := f.sessions.Position(ctx, to)
	if err != nil || pos.InRecovery || pos.Timeline <= s.Timeline {
		return false
	}
	s.NewTimeline = pos.Timeline
	return true
}

// stepPromote is the point of no return of every failover.
const stepPromote = "promote"

// promote makes the candidate lead, and returns when its new timeline is on its
// disk. Repeated, it finds that it leads already. A candidate that went down
// after its promotion is started as what it is, a primary.
func (f *failover) promote(ctx context.Context, s *state) error {
	_, to := f.nodes(s)
	if s.NewTimeline != 0 || f.promotedButDown(to, s) {
		return f.promoteAgain(ctx, to, s)
	}
	if err := f.pauseOf(s).held(); err != nil && s.Mode != cluster.ModeEmergency && s.NoWayBack == "" {
		return err
	}
	sending, cancel := context.WithTimeout(ctx, promoteDeadline)
	defer cancel()
	if err := f.sessions.With(sending, to, func(session cluster.Session) error { return session.Promote(sending) }); err != nil {
		return err
	}
	return f.waitPromoted(ctx, to, s)
}

// waitPromoted waits until the candidate leads. Before that the candidate replays all
// that it has, and is waited for as long as the replay moves: to give it up for that
// would kill the one server that is left. A query on it can hold up the replay for
// 30 s; for the clients' sake it is ended.
func (f *failover) waitPromoted(ctx context.Context, to cluster.Node, s *state) error {
	ctx, cancel := context.WithTimeout(ctx, replayDeadline)
	defer cancel()
	var replayed wal.LSN
	var readersEnded bool
	moved := time.Now()
	err := wait.Poll(ctx, actuator.Tick, func() (bool, error) {
		asking, cancel := context.WithDeadline(ctx, moved.Add(promoteDeadline))
		defer cancel()
		pos, err := f.sessions.Position(asking, to)
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
			f.act.Log.Warn("the candidate's queries are ended: they may hold up its replay",
				"node", to.Name, "replayed", pos.Replayed.String())
			return false, f.sessions.With(asking, to, func(session cluster.Session) error { return session.EndQueries(asking) })
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("wait for the promotion of %s (replayed %s): %w", to.Name, replayed, err)
	}
	return nil
}

// promotedButDown reports whether the candidate has its new timeline on its disk, and its
// server was fenced or has ended since.
func (f *failover) promotedButDown(to cluster.Node, s *state) bool {
	control, err := f.act.Outside.Volumes.Control(to)
	if err != nil || control.Timeline() <= s.Timeline {
		return false
	}
	return f.act.Unlocked(to)
}

// promoteAgain is promote after an interruption past the point of no return.
func (f *failover) promoteAgain(ctx context.Context, to cluster.Node, s *state) error {
	if f.leads(ctx, to, s) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, actuator.ServeDeadline)
	defer cancel()
	if err := f.serve(ctx, s, to); err != nil {
		return err
	}
	if !f.leads(ctx, to, s) {
		return fmt.Errorf("%s serves, but not on a timeline after %d", to.Name, s.Timeline)
	}
	return nil
}

// demoteCandidate takes back a promotion that did not reach the disk. past has fenced the
// candidate. It comes back as a standby, and its init discards the files of the timeline
// that never was.
func (f *failover) demoteCandidate(ctx context.Context, s *state) error {
	from, to := f.nodes(s)
	if locked, err := f.act.Outside.Volumes.Locked(to); err != nil || locked {
		return err // it runs: it was not fenced, so promote was never sent
	}
	if err := f.act.Outside.Volumes.WriteSettings(to, f.act.StandbySettings(ctx, to, from)); err != nil {
		return err
	}
	o := node.Order{Action: node.ActionDiscard, DiscardTimeline: s.Timeline + 1}
	if _, err := f.act.OrderToFollow(to, from, o); err != nil {
		return err
	}
	return f.act.EnsureRunning(ctx, to)
}
