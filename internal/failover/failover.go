// Package failover moves the primary: planned, while it serves, or in an emergency, when
// it is dead, hung or out of reach. Both are lists of named steps around a pause in which
// the pooler holds the clients.
package failover

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/operation"
)

// Bounds of the steps inside a pause. Clients wait meanwhile, so each is short.
const (
	stopDeadline = 8 * time.Second // a fast shutdown after a checkpoint
	// A candidate that stands still for promoteDeadline does not lead: it is fenced, and
	// its control file read. One that replays what it has will lead.
	promoteDeadline = 5 * time.Second
	replayDeadline  = 5 * time.Minute
	salvageDeadline = 20 * time.Second
)

// Failovers starts failovers and failbacks.
type Failovers struct {
	act        *actuator.Actuator
	operations *operation.Manager
}

// New registers the kinds of operation.
func New(act *actuator.Actuator, operations *operation.Manager) (*Failovers, error) {
	fs := &Failovers{act: act, operations: operations}
	for _, kind := range []string{cluster.KindFailover, cluster.KindFailback} {
		if err := operations.Register(kind, fs.build); err != nil {
			return nil, err
		}
	}
	return fs, nil
}

func (fs *Failovers) build(rec operation.Record, encoded json.RawMessage) (operation.Runnable, error) {
	var r cluster.FailoverRequest
	if err := json.Unmarshal(encoded, &r); err != nil {
		return nil, fmt.Errorf("parameters: %w", err)
	}
	return fs.work(rec.Kind, r), nil
}

// Failover starts one: planned or emergency, as the request's mode says. A
// refused precheck returns the refused record and the *operation.Problem.
func (fs *Failovers) Failover(ctx context.Context, r cluster.FailoverRequest, by operation.Caller) (operation.Record, error) {
	if err := r.Validate(fs.act.Settings.Nodes); err != nil {
		return operation.Record{}, err
	}
	return fs.start(ctx, cluster.KindFailover, r, by)
}

// Failback starts a planned failover to the preferred primary, which is
// brought to stream first where it does not.
func (fs *Failovers) Failback(ctx context.Context, r cluster.FailbackRequest, by operation.Caller) (operation.Record, error) {
	if err := r.Validate(); err != nil {
		return operation.Record{}, err
	}
	return fs.start(ctx, cluster.KindFailback, fs.failbackRequest(r), by)
}

func (fs *Failovers) failbackRequest(r cluster.FailbackRequest) cluster.FailoverRequest {
	return cluster.FailoverRequest{
		Target: fs.act.Settings.Preferred, Mode: cluster.ModePlanned, Reason: r.Reason, CancelRunning: r.CancelRunning,
	}
}

func (fs *Failovers) start(ctx context.Context, kind string, r cluster.FailoverRequest, by operation.Caller) (operation.Record, error) {
	params, err := json.Marshal(r)
	if err != nil {
		return operation.Record{}, fmt.Errorf("encode request: %w", err)
	}
	spec := operation.Spec{
		Kind: kind, Mode: cmp.Or(r.Mode, cluster.ModeAuto), Reason: r.Reason, Caller: by, Params: params,
		Foreseen: fs.foreseen(r), CancelRunning: r.CancelRunning,
	}
	return fs.operations.Start(ctx, spec, fs.work(kind, r))
}

// foreseen is the way that a request would take by what was last known.
func (fs *Failovers) foreseen(r cluster.FailoverRequest) map[string]any {
	from, to := fs.act.Identity().Primary, r.Target
	if others := fs.act.Others(from); to == "" && len(others) == 1 {
		to = others[0].Name
	}
	return map[string]any{"from": from, "to": to}
}

func (fs *Failovers) work(kind string, r cluster.FailoverRequest) operation.Runnable {
	f := fs.attempt(kind, r)
	return operation.Work[state]{
		Decide:   f.decide,
		Prepare:  f.prepare,
		Steps:    f.steps,
		NoReturn: stepPromote,
		Past:     f.past,
		Left:     f.left,
		GiveUp:   f.giveUp,
		Result:   f.result,
		Close:    f.close,
	}
}

// A failover is one attempt: the parts that its steps share and that a
// restarted daemon makes anew.
type failover struct {
	act      *actuator.Actuator
	kind     string
	req      cluster.FailoverRequest
	sessions actuator.Sessions

	seen    cluster.View // what the mode was decided from
	asked   string       // who led when the mode was decided for the first time
	tried   verdict      // what auto has found out by trying the primary
	primary *pace        // of the primary, as auto has measured it; nil: it has not
	pause   pause        // reached by pauseOf, which gives it its state
	wentOn  bool         // this process has gone on once where there was no way back
}

func (fs *Failovers) attempt(kind string, r cluster.FailoverRequest) *failover {
	return &failover{
		act: fs.act, kind: kind, req: r, sessions: fs.act.Sessions(), pause: pause{act: fs.act, kind: kind},
	}
}

// steps is the list for the mode that was chosen.
func (f *failover) steps(s *state) []operation.Step[state] {
	if s.Mode == cluster.ModeEmergency {
		return f.emergencySteps()
	}
	if s.RejoinFirst {
		return append(f.rejoinSteps(s), f.plannedSteps()...)
	}
	return f.plannedSteps()
}

// nodes are the old primary and the candidate, as they are configured.
func (f *failover) nodes(s *state) (from, to cluster.Node) {
	from, _ = f.act.Node(s.From)
	to, _ = f.act.Node(s.To)
	return from, to
}

// pauseOf is the pause that holds the clients, with what s keeps of it.
func (f *failover) pauseOf(s *state) *pause {
	f.pause.state = &s.Pause
	if s.Pause.Entries == nil { // an earlier version did not journal them
		s.Pause.Entries = heldEntries(f.act.Settings.Databases, f.act.Look.View().Pooler)
	}
	return &f.pause
}

// close gives back what the operation held open, and looks once more: whoever
// is told that it ended finds its result in the next view.
func (f *failover) close() {
	f.pause.drop()
	f.sessions.CloseAll()
	f.act.Look.LookAgain(context.Background())
}
