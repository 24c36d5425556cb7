package failover

import (
	"context"
	"fmt"
	"time"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/wait"
)

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
func (f *failover) fillSegment(ctx context.Context, s *state) error {
	from, to := f.nodes(s)
	leave := fillLeaves + f.act.Look.Written(from.Name, fillWindow)
	if leave >= s.SegmentBytes {
		return nil // clients fill it themselves
	}
	if err := f.fillAndFollow(ctx, from, to, leave); err != nil {
		f.act.Log.Warn("the pause will be longer", "from", from.Name, "to", to.Name, "err", err)
	}
	return nil
}

func (f *failover) fillAndFollow(ctx context.Context, from, to cluster.Node, leave int64) error {
	var filled cluster.Position
	err := f.sessions.With(ctx, from, func(session cluster.Session) (err error) {
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
	ctx, cancel := context.WithTimeout(ctx, actuator.SettingDeadline) // it may be frozen, and the pools are small
	defer cancel()
	return f.sessions.With(ctx, to, func(session cluster.Session) error {
		bounded, cancel := context.WithTimeout(ctx, fillDeadline)
		defer cancel()
		err := wait.Poll(bounded, actuator.Tick, func() (bool, error) { // proveCandidate waits for what is missing
			pos, err := session.Position(bounded)
			return pos.Replayed >= filled.Flushed, err
		})
		if err != nil {
			return fmt.Errorf("%s has not replayed the filled segment: %w", to.Name, err)
		}
		return session.Checkpoint(ctx)
	})
}
