package failover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/observer"
	"controld/internal/wait"
)

// salvage has the candidate's init copy the WAL that the candidate lacks from
// the dead node's volume into its own pg_wal, where the promotion reads it.
func (f *failover) salvage(ctx context.Context, s *state) error {
	from, to := f.nodes(s)
	if s.Parted {
		return nil // judged before anything was touched
	}
	control, err := f.act.Outside.Volumes.Control(from)
	if err != nil {
		return f.withoutSalvage(ctx, s, err)
	}
	pos, err := f.positionOf(ctx, to)
	if err != nil {
		return err
	}
	what := node.Salvage{
		DataDir: from.DataDir(), FromLSN: min(pos.Received, pos.Replayed),
		FromTimeline: control.CheckpointTimeline, SegmentBytes: control.SegmentBytes,
	}
	o, err := f.act.OrderToFollow(to, from, node.Order{Action: node.ActionSalvage, Salvage: &what})
	if err != nil {
		return err
	}
	salvaged, err := f.awaitSalvage(ctx, to, o.Epoch)
	if err != nil {
		return f.salvageFailed(ctx, s, err)
	}
	s.Salvaged, s.Loss = salvaged.Bytes, observer.Loss{Known: true}
	s.Timeline = max(s.Timeline, control.Timeline())
	return nil
}

func (f *failover) awaitSalvage(ctx context.Context, to cluster.Node, epoch uint64) (node.Salvaged, error) {
	ctx, cancel := context.WithTimeout(ctx, salvageDeadline)
	defer cancel()
	var got node.Salvaged
	err := wait.Poll(ctx, actuator.Tick, func() (bool, error) {
		status, err := f.act.Outside.Volumes.Status(to)
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
func (f *failover) positionOf(ctx context.Context, to cluster.Node) (cluster.Position, error) {
	ctx, cancel := context.WithTimeout(ctx, actuator.ProveDeadline)
	defer cancel()
	return f.sessions.Position(ctx, to)
}

// salvageFailed is what to do where the WAL of the old primary was not copied. Where
// its volume can be read as before, it mostly is the candidate's fault (its disk): to
// lose that WAL is for the request itself to say, and not for the configured bound.
// Otherwise the copying is stopped and the loss is judged.
func (f *failover) salvageFailed(ctx context.Context, s *state, why error) error {
	from, to := f.nodes(s)
	if _, err := f.act.Outside.Volumes.Control(from); err == nil && f.req.MaxLossBytes == nil {
		return fmt.Errorf("%[1]w; the volume of %[2]s can be read, so nothing need be lost: "+
			"start it in place (controld start %[2]s), or mend that and ask again, "+
			"or accept a loss in the request (max_loss_bytes)", why, s.From)
	}
	if err := f.giveUpSalvage(ctx, from, to); err != nil {
		return errors.Join(why, err)
	}
	return f.withoutSalvage(ctx, s, why)
}

// giveUpSalvage orders the candidate to be a standby and no more, and waits until its
// init has taken that up: if it did so only after the promotion, it would stop the new
// primary for it.
func (f *failover) giveUpSalvage(ctx context.Context, from, to cluster.Node) error {
	if _, err := f.act.OrderToFollow(to, from, node.Order{}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, actuator.ProveDeadline)
	defer cancel()
	err := wait.Poll(ctx, actuator.Tick, func() (bool, error) { return f.act.OrderCarriedOut(to), nil })
	if err != nil {
		return fmt.Errorf("%s does not give up the salvage: %w", to.Name, err)
	}
	return nil
}

// withoutSalvage judges the loss once more, now that nothing is salvaged: at the prechecks
// the volume could be read, or not. What is over the bound is an error and no refusal,
// which would say that nothing was touched: the order is withdrawn and the node killed.
func (f *failover) withoutSalvage(ctx context.Context, s *state, why error) error {
	from, to := f.nodes(s)
	f.act.Log.Warn("nothing salvaged", "node", from.Name, "err", why)
	pos, err := f.positionOf(ctx, to)
	if err != nil {
		return err
	}
	if f.wasInSync() {
		s.Loss = observer.Loss{Known: true}
		return nil
	}
	if !s.Loss.Estimate {
		s.Loss = f.act.Look.Bound(s.From, pos.Received, time.Now())
	}
	if c := f.judgeLoss(s, unreadable(s)); !c.OK {
		return fmt.Errorf("%s (%w)", c.Detail, why)
	}
	return nil
}
