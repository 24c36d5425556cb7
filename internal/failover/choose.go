package failover

import (
	"context"

	"controld/internal/cluster"
	"controld/internal/operation"
)

// decide observes anew, and chooses the candidate and the mode. It is asked again
// when the operation has waited for another one, which may have moved the primary
// meanwhile: then what was asked for is not what would be done.
func (f *failover) decide(ctx context.Context, s *state) (operation.Decision, error) {
	f.seen = f.lookForCandidate(ctx)
	var d operation.Decision
	if f.primaryGone(f.seen) {
		d.Facts = append(d.Facts, operation.PrimaryGone)
	}
	if err := f.choose(ctx, f.seen, s); err != nil {
		return d, err
	}
	d.Mode = s.Mode
	if f.asked == "" {
		f.asked = s.From
	}
	if f.kind == cluster.KindFailover && f.asked != s.From {
		return d, operation.Refuse("unexpected-primary", map[string]any{"primary": s.From, "expected_primary": f.asked},
			"%s led when this was asked for, %s leads now, after another operation; nothing was done", f.asked, s.From)
	}
	return d, nil
}

// primaryGone reports whether the recorded primary is dead, or v does not show that
// one node leads.
func (f *failover) primaryGone(v cluster.View) bool {
	if _, problem := cluster.Leader(v); problem != nil {
		return true
	}
	n, err := f.act.Node(f.act.Identity().Primary)
	return err == nil && f.act.Unlocked(n)
}

// prepare makes the prechecks, before anything changes. It takes what decide has
// seen: what excludes a failover has not ended since.
func (f *failover) prepare(ctx context.Context, s *state) (operation.Prepared, error) {
	v, p := f.seen, operation.Prepared{Mode: s.Mode}
	if s.Mode == cluster.ModePlanned && s.From != s.To {
		v = f.awaitAnswers(ctx, v, s)
	}
	if f.kind == cluster.KindFailback && s.From == s.To {
		p.Already = s.To + " leads already"
		return p, nil
	}
	p.Checks = f.checks(ctx, v, s)
	if err := operation.Refusal(p.Checks); err != nil || s.RejoinFirst { // a target that is down has no address yet
		return p, err
	}
	return p, f.reachable(s)
}

// reachable refuses a candidate whose address nobody knows. It is asked last: one
// that is down has no address either, and the checks say that better.
func (f *failover) reachable(s *state) error {
	_, to := f.nodes(s)
	if s.Targets.Primary == "" {
		return operation.Refuse("precheck-failed", nil,
			"where %s is to be reached is not known: the engine does not say it. See that docker inspect %s answers, then try again",
			s.To, to.Container)
	}
	return nil
}

// choose fills in who leads, who is to lead, and by which mode; then what the steps
// have to know of the two. A failback to the node that leads needs no more than that.
func (f *failover) choose(ctx context.Context, v cluster.View, s *state) error {
	old, err := f.chooseOld(v)
	if err != nil {
		return err
	}
	s.From, s.Timeline = old.Node.Name, old.Timeline()
	if expected := f.req.ExpectedPrimary; expected != "" && expected != s.From {
		return operation.Refuse("unexpected-primary", map[string]any{"primary": s.From, "expected_primary": expected},
			"%s leads, not %s as the request expects; nothing was done", s.From, expected)
	}
	if err := f.chooseTarget(v, s); err != nil {
		return err
	}
	if f.kind == cluster.KindFailback && s.From == s.To {
		return nil
	}
	mode, err := f.chooseMode(ctx, old)
	if err != nil {
		return err
	}
	s.Mode, s.MaxLoss = mode, f.act.Settings.MaxLossBytes
	if f.req.MaxLossBytes != nil {
		s.MaxLoss = *f.req.MaxLossBytes
	}
	f.lookUp(ctx, v, s)
	return nil
}

// chooseOld is the node to move away from: the one that leads. Where none leads, or
// where more than one does and the request names the target, it is missingLeader.
func (f *failover) chooseOld(v cluster.View) (cluster.NodeState, error) {
	leader, problem := cluster.Leader(v)
	switch {
	case problem == nil:
		return leader, nil
	case problem.Type == "/problems/two-primaries" && f.req.Target == "":
		return cluster.NodeState{}, problem
	}
	return f.missingLeader(v)
}

// missingLeader is the node to move away from where no single server leads: the
// recorded primary. Where none is recorded, or it is the target itself, it is the
// first node that is not the target.
func (f *failover) missingLeader(v cluster.View) (cluster.NodeState, error) {
	recorded := f.act.Identity().Primary
	if f.req.Target != "" && (recorded == "" || recorded == f.req.Target) {
		for _, s := range v.Nodes {
			if s.Node.Name != f.req.Target {
				return s, nil
			}
		}
	}
	if s, ok := v.Node(recorded); ok {
		return s, nil
	}
	return cluster.NodeState{}, operation.Refuse("no-primary", nil,
		"no node leads and the journal knows no primary; name the node that shall lead in target, with mode emergency")
}

// chooseTarget fills in who is to lead: the node that the request names, or else the
// best standby.
func (f *failover) chooseTarget(v cluster.View, s *state) error {
	if f.req.Target == "" {
		best, problem := cluster.BestStandby(v, s.From)
		if problem != nil {
			return problem
		}
		s.To = best.Node.Name
		return nil
	}
	s.To = f.req.Target
	if s.To == s.From && f.kind != cluster.KindFailback {
		return operation.Refuse("already-primary", map[string]any{"primary": s.From},
			"%s leads already; name another target or none", s.To)
	}
	return nil
}

// lookUp fills in what the steps have to know of the two nodes that were chosen: which
// entries of the pooler are held and where they lead, of which cluster the data are,
// whether commits wait for a standby, and whether the target has to be brought back first.
func (f *failover) lookUp(ctx context.Context, v cluster.View, s *state) {
	from, _ := v.Node(s.From)
	to, _ := v.Node(s.To)
	s.Pause.Entries = heldEntries(f.act.Settings.Databases, f.act.Look.View().Pooler)
	readersHeld := len(s.Pause.Entries) > len(f.act.Settings.Databases)
	s.Targets, s.Back = targets(from.Container.Address, f.act.Address(ctx, to.Node), readersHeld)
	for _, n := range []cluster.NodeState{to, from} {
		if n.Server != nil && s.SystemID == 0 {
			s.SystemID, s.SegmentBytes = n.Server.SystemID, n.Server.SegmentBytes
		}
	}
	s.Synced = from.CommitsWait()
	s.RejoinFirst = f.kind == cluster.KindFailback && !to.Follows(from)
}

// targets says where the pooler's entries shall lead: after the failover, and when it
// is undone. old and next are where the two nodes are; an empty old is not known.
// Readers that are held with the others are at the old primary yet.
func targets(old, next string, readersHeld bool) (after, undone cluster.Targets) {
	after = cluster.Targets{Primary: next, Standby: next, Probe: next}
	if old == "" {
		return after, after
	}
	undone = cluster.Targets{Primary: old, Standby: next, Probe: old}
	if readersHeld {
		undone.Standby = old
	}
	return after, undone
}
