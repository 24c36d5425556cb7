package failover

import (
	"context"
	"errors"

	"controld/internal/cluster"
	"controld/internal/operation"
)

// PlanFailback is the dry run of a failback.
func (fs *Failovers) PlanFailback(ctx context.Context, r cluster.FailbackRequest) (cluster.Plan, error) {
	if err := r.Validate(); err != nil {
		return cluster.Plan{}, err
	}
	return fs.plan(ctx, cluster.KindFailback, fs.failbackRequest(r))
}

// Plan is the dry run of a failover: what it would do now, with every precheck.
// It changes nothing.
func (fs *Failovers) Plan(ctx context.Context, r cluster.FailoverRequest) (cluster.Plan, error) {
	if err := r.Validate(fs.act.Settings.Nodes); err != nil {
		return cluster.Plan{}, err
	}
	return fs.plan(ctx, cluster.KindFailover, r)
}

func (fs *Failovers) plan(ctx context.Context, kind string, r cluster.FailoverRequest) (cluster.Plan, error) {
	f := fs.attempt(kind, r)
	defer f.sessions.CloseAll()
	var s state
	var prepared operation.Prepared
	decided, err := f.decide(ctx, &s)
	if err == nil {
		prepared, err = f.prepare(ctx, &s)
	}
	if prepared.Already == "" {
		way := fs.wayCheck(kind, decided, r.CancelRunning)
		prepared.Checks = append(prepared.Checks, way)
		if err == nil {
			err = operation.Refusal([]operation.Check{way})
		}
	}
	plan := cluster.Plan{Kind: kind, Mode: s.Mode, From: s.From, To: s.To, Checks: prepared.Checks, WouldRun: err == nil}
	if s.Mode != "" && prepared.Already == "" {
		for _, st := range f.steps(&s) {
			plan.Steps = append(plan.Steps, st.Name)
		}
	}
	var refusal *operation.Problem
	if errors.As(err, &refusal) {
		plan.Refusal = refusal
		return plan, nil
	}
	return plan, err
}

// wayCheck says what would become of an operation that is in the way.
func (fs *Failovers) wayCheck(kind string, d operation.Decision, cancelRunning bool) operation.Check {
	what, busy := fs.operations.InTheWay(kind, d, cancelRunning)
	return operation.NewCheck("nothing-in-the-way", busy == nil, "operation-running", nil, "%s", what)
}
