package failover

import (
	"fmt"
	"time"

	"controld/internal/cluster"
	"controld/internal/observer"
	"controld/internal/operation"
	"controld/internal/wal"
)

// lossCheck says what would be lost, before anything is touched. There are five cases.
//
//   - The candidate has gone on to a later timeline: what the old primary wrote since
//     they parted is lost, nobody knows how much. judgeLoss says whether that is accepted.
//   - The candidate does not know of the old primary's timeline yet: that is refused,
//     for the old primary can be started in place.
//   - The volume of the old primary can be read, but not all that the candidate lacks
//     is on it any more: the loss is estimated, and judged.
//   - The volume can be read, and all is on it: it is salvaged, and nothing is lost.
//   - The volume cannot be read: nothing is lost where the candidate was in sync;
//     otherwise the loss is estimated, and judged.
func (f *failover) lossCheck(from, to cluster.NodeState, s *state) operation.Check {
	switch {
	case parted(from, to):
		s.Loss, s.Parted = observer.Loss{Estimate: true}, true
		return f.judgeLoss(s, fmt.Sprintf("%[1]s is on timeline %[2]d and %[3]s on the later timeline %[4]d: "+
			"what %[1]s wrote since they parted does not fit", s.From, from.Control.Timeline(), s.To, to.Timeline()))
	case from.Control == nil && f.wasInSync():
		return nothingLost(s, "%s was in sync at the last commit: it has all that was acknowledged", s.To)
	case from.Control == nil:
		s.Loss = f.act.Look.Bound(s.From, to.Server.Received, f.diedAt(from))
		return f.judgeLoss(s, unreadable(s))
	case to.Timeline() < from.Control.Timeline() && !f.knowsTimeline(to.Node, from.Control.Timeline()):
		return behindCheck(from, to)
	case !f.holdsWAL(from, to):
		s.Loss = f.act.Look.Bound(s.From, to.Server.Received, f.diedAt(from))
		return f.judgeLoss(s, fmt.Sprintf("the WAL that %[1]s lacks was removed from the volume of %[2]s, "+
			"which can be started in place (controld start %[2]s)", s.To, s.From))
	}
	return nothingLost(s, "the volume of %s can be read: what %s lacks is salvaged from it", s.From, s.To)
}

// nothingLost is the check where no acknowledged commit would be lost.
func nothingLost(s *state, why string, args ...any) operation.Check {
	s.Loss = observer.Loss{Known: true}
	return operation.NewCheck("loss", true, "loss", map[string]any{"lost_bytes": int64(0)}, why, args...)
}

// behindCheck refuses a candidate that has not followed to the old primary's timeline.
func behindCheck(from, to cluster.NodeState) operation.Check {
	t := from.Control.Timeline()
	numbers := map[string]any{"primary_timeline": t, "candidate_timeline": to.Timeline()}
	return operation.NewCheck("loss", false, "timeline", numbers,
		"%[1]s did not follow yet to timeline %[2]d of %[3]s and would lose all that was written there. "+
			"The volume of %[3]s can be read: start it in place (controld start %[3]s)", to.Node.Name, t, from.Node.Name)
}

// parted reports whether the candidate has gone on, past controld, to a later timeline
// than the node that it shall take over from. Then the WAL of the one does not continue
// that of the other.
func parted(from, to cluster.NodeState) bool {
	return from.Control != nil && to.Timeline() > from.Control.Timeline()
}

// knowsTimeline reports whether a standby has followed to timeline t, or could. What
// its server and its control file say is older than that while it does not stream: the
// control file names a timeline only from the first restartpoint on it. The history
// file is there as soon as the standby has heard of the timeline.
func (f *failover) knowsTimeline(n cluster.Node, t wal.Timeline) bool {
	has, err := f.act.Outside.Volumes.HasHistory(n, t)
	return err == nil && has
}

// holdsWAL reports whether the volume of from still holds the WAL at which the
// candidate stands. A standby that was away for longer than its slot was kept finds a
// gap there: what lies behind the gap is of no use to it. Where that cannot be looked
// at the answer is yes, for the salvage finds it out.
func (f *failover) holdsWAL(from, to cluster.NodeState) bool {
	at := min(to.Server.Received, to.Server.Replayed)
	has, err := f.act.Outside.Volumes.HasWAL(from.Node, at, from.Control.SegmentBytes)
	if err != nil {
		f.act.Log.Warn("WAL of the old primary not looked at", "node", from.Node.Name, "err", err)
	}
	return err != nil || has
}

// wasInSync reports whether the standby has every commit that was acknowledged. That
// it may not is noted in the journal before it can come true.
func (f *failover) wasInSync() bool {
	return f.act.Settings.Replication != cluster.Async && !f.act.Identity().Unsynced
}

// diedAt is until when the old primary may have written: now, unless the
// engine knows better.
func (f *failover) diedAt(from cluster.NodeState) time.Time {
	if from.Container.Exists && !from.Container.Running && !from.Container.EndedAt.IsZero() {
		return from.Container.EndedAt
	}
	return time.Now()
}

// judgeLoss holds the loss that s tells against what is accepted. why says how it comes
// that something would be lost.
func (f *failover) judgeLoss(s *state, why string) operation.Check {
	l := s.Loss
	numbers := map[string]any{
		"lost_bytes": l.Bytes, "estimate": true, "lag_bytes": l.LagBytes, "observed_ms_before": l.SinceMS,
		"write_rate_bytes_per_second": l.RateBytes, "max_loss_bytes": s.MaxLoss,
	}
	unsynced := f.act.Settings.Replication != cluster.Async && f.act.Identity().Unsynced
	switch {
	case unsynced && f.req.MaxLossBytes == nil:
		return operation.NewCheck("loss", false, "loss-not-accepted", numbers,
			"synchronous replication was lifted and %s was not in sync at the last commit, and %s: about %d bytes would be lost. "+
				"Accept that in the request: max_loss_bytes of at least as much (-1 accepts any)", s.To, why, l.Bytes)
	case !l.Known:
		return operation.NewCheck("loss", s.MaxLoss == cluster.AcceptAnyLoss, "loss-unknown", numbers,
			"%s, and controld has not seen how far it was: the loss is unknown. max_loss_bytes -1 in the request accepts that", why)
	}
	ok := s.MaxLoss == cluster.AcceptAnyLoss || l.Bytes <= s.MaxLoss
	return operation.NewCheck("loss", ok, "loss-over-bound", numbers,
		"%s: an estimated %d bytes would be lost, %d are accepted. max_loss_bytes in the request accepts more (-1 accepts any)",
		why, l.Bytes, s.MaxLoss)
}

// unreadable says why something would be lost where the volume cannot be read.
func unreadable(s *state) string { return "the volume of " + s.From + " cannot be read" }
