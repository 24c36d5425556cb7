package bootstrap

import (
	"context"

	"controld/internal/cluster"
	"controld/internal/operation"
)

// StartNode brings a node that is down back in its recorded role: the recorded
// primary leads again in place, another node rejoins.
func (ss *Starts) StartNode(ctx context.Context, r cluster.NodeRequest, by operation.Caller) (operation.Record, error) {
	if err := r.Validate(ss.act.Settings.Nodes); err != nil {
		return operation.Record{}, err
	}
	// Observed anew: right after a crash the last view still has a primary.
	if leader, problem := cluster.Leader(ss.act.Look.Observe(ctx)); problem == nil && leader.Node.Name != r.Node {
		return ss.rejoins.BringBack(ctx, r, by)
	}
	p := params{Node: r.Node}
	if n, err := ss.act.Node(r.Node); err == nil && ss.recordedAsStandby(n) {
		p.Method = startAsStandby
	}
	return ss.start(ctx, cluster.KindStart, p, r, by)
}

// startAsStandby is the method of a start of a standby.
const startAsStandby = "standby"

// recordedAsStandby reports whether another node is the recorded primary, and the node's
// data would start in recovery. Made to lead by a mere start such a node would write on
// the timeline on which the recorded primary may have gone further.
func (ss *Starts) recordedAsStandby(n cluster.Node) bool {
	primary := ss.act.Identity().Primary
	signal, err := ss.act.Outside.Volumes.StandbySignal(n)
	return err == nil && signal && primary != "" && primary != n.Name
}
