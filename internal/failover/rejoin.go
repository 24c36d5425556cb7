package failover

import (
	"context"

	"controld/internal/operation"
	"controld/internal/rejoin"
)

// rejoinSteps are those of a rejoin, which come first in a failback whose target does
// not stream. The prechecks that only hold after it are made at their end.
func (f *failover) rejoinSteps(s *state) []operation.Step[state] {
	_, to := f.nodes(s)
	r := rejoin.NewLadder(f.act, to)
	var out []operation.Step[state]
	for i, st := range r.Steps() {
		out = append(out, operation.Step[state]{
			Name: "rejoin: " + st.Name, Entry: st.Entry,
			Do: func(ctx context.Context, s *state) error {
				defer r.Close()
				if i == 0 || s.Rejoin.Node == "" { // an earlier version did not journal it
					p, err := r.Prepare(ctx, &s.Rejoin)
					if err != nil {
						return err
					}
					s.Rejoin.Rung = p.Already
				}
				return st.Do(ctx, &s.Rejoin)
			},
		})
	}
	return append(out, operation.Step[state]{Name: "prechecks", Do: f.checkRejoined})
}

// checkRejoined makes the prechecks of the planned failover that comes now, from a fresh
// observation. RejoinFirst stays set, though the target streams: a process that resumes
// the failback must find the same list of steps.
func (f *failover) checkRejoined(ctx context.Context, s *state) error {
	v := f.act.Look.Fresh(ctx)
	f.lookUp(ctx, v, s)
	s.RejoinFirst = true
	from, _ := v.Node(s.From)
	target, _ := v.Node(s.To)
	s.Timeline = from.Timeline()
	if err := operation.Refusal(f.plannedChecks(v, from, target)); err != nil {
		return err
	}
	return f.reachable(s)
}
