package manager_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/health"
	"controld/internal/operation"
)

// Long work of other capabilities, one kind for each way of meeting a failover.
const (
	kindCopy  = "copy"  // gives way, and is cleaned up after
	kindLoad  = "load"  // is waited for, a while
	kindHeavy = "heavy" // refuses, unless it is to be cancelled
)

const repository operation.Resource = "repository"

// sorts is the table of claims with them.
var sorts = append(slices.Clone(operation.Claims), operation.Table{
	{
		Kind: kindCopy, Shared: []operation.Resource{operation.Primary}, Exclusive: []operation.Resource{repository}, Loose: true,
		Yields: []operation.Yield{{To: cluster.KindFailover, How: operation.AnswerCancel}},
	},
	{Kind: operation.KindCleanup, Modes: []string{kindCopy}, Exclusive: []operation.Resource{repository}},
	{
		Kind: kindLoad, Shared: []operation.Resource{operation.Primary},
		Yields: []operation.Yield{{To: cluster.KindFailover, How: operation.AnswerWait, Within: 5 * time.Second}},
	},
	{Kind: kindHeavy, Shared: []operation.Resource{operation.Primary}, CancelCosts: "an hour"},
}...)

// register lets d have that work.
func (l *lab) register(d *daemon) {
	for _, kind := range []string{kindCopy, kindLoad, kindHeavy} {
		err := d.ops.Register(kind, func(operation.Record, json.RawMessage) (operation.Runnable, error) { return l.longWork(d), nil })
		if err != nil {
			l.t.Fatal(err)
		}
	}
}

// longWork makes something and works on it until it is ended; its undo removes it.
func (l *lab) longWork(d *daemon) operation.Runnable {
	alive := func(remains bool) error {
		select {
		case <-d.process.Died:
			return errors.New("killed")
		default:
			l.remains.Store(remains)
			return nil
		}
	}
	return operation.Work[struct{}]{
		Prepare: func(context.Context, *struct{}) (operation.Prepared, error) { return operation.Prepared{}, nil },
		Steps: func(*struct{}) []operation.Step[struct{}] {
			return []operation.Step[struct{}]{{Name: "work", Entry: true,
				Do: func(ctx context.Context, _ *struct{}) error {
					if err := alive(true); err != nil {
						return err
					}
					<-ctx.Done()
					return context.Cause(ctx)
				},
				Undo: func(context.Context, *struct{}) error { return alive(false) },
			}}
		},
	}
}

// working starts work of a kind, if any, on the present controld.
func (l *lab) working(kind string) operation.Record {
	l.t.Helper()
	if kind == "" {
		return operation.Record{}
	}
	spec := operation.Spec{Kind: kind, Caller: test, Params: json.RawMessage(`{}`)}
	rec, err := l.now.ops.Start(context.Background(), spec, l.longWork(l.now))
	if err != nil {
		l.t.Fatal(err)
	}
	return rec
}

// TestBesideLongWork: with it open the cluster is looked after as without, a dead
// primary is seen, and POST /failover answers by the row, in the same time.
func TestBesideLongWork(t *testing.T) {
	took := map[string]time.Duration{}
	for _, tt := range []struct {
		name, kind    string
		cancelRunning bool
		busy          bool
		state         operation.State // of the work, at the end
		after         time.Duration   // more than without it
	}{
		{"nothing", "", false, false, "", 0},
		{"a copy", kindCopy, false, false, operation.Cancelled, 0},
		{"a load", kindLoad, false, true, operation.Running, 5 * time.Second},
		{"heavy work", kindHeavy, false, true, operation.Running, 0},
		{"heavy work, which is to be cancelled", kindHeavy, true, false, operation.Cancelled, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inLab(t, nil, func(l *lab) {
				work := l.working(tt.kind)
				l.w.Do(second, (*clustertest.Host).Crash)
				time.Sleep(20 * time.Second)
				if wrong := l.w.Wrong(); len(wrong) > 0 {
					l.t.Fatalf("supervision has left it: %v\n%s", wrong, l.story())
				}
				if h := l.now.m.Health(); h.Status != health.OK || h.Operation != "" {
					l.t.Errorf("beside it: %s %s %s", h.Status, h.Reason, h.Operation)
				}
				l.w.Do(first, (*clustertest.Host).Crash)
				time.Sleep(3 * time.Second)
				if h := l.now.m.Health(); h.Status != health.Down || !strings.Contains(h.Do, "controld failover") {
					l.t.Errorf("with a dead primary: %s %s: %s", h.Status, h.Reason, h.Do)
				}
				plan, err := l.now.m.Plan(context.Background(), cluster.FailoverRequest{CancelRunning: tt.cancelRunning})
				if err != nil || plan.WouldRun != (!tt.busy || tt.kind == kindLoad) {
					l.t.Errorf("the plan would run: %v, %v, %+v", plan.WouldRun, err, plan.Checks)
				}
				began := time.Now()
				rec, err := l.now.m.Failover(context.Background(), cluster.FailoverRequest{CancelRunning: tt.cancelRunning}, test)
				if errors.As(err, new(*operation.Busy)) != tt.busy {
					l.t.Fatalf("%v, want busy %v", err, tt.busy)
				}
				if tt.busy {
					if waited := time.Since(began).Round(time.Second); waited != tt.after {
						l.t.Errorf("refused after %s, want %s", waited, tt.after)
					}
				} else {
					l.want(l.await(rec, err), operation.Succeeded)
					l.leads(second)
					took[tt.name] = time.Since(began)
				}
				if work.ID == "" {
					return
				}
				if work, err = l.now.ops.Get(work.ID); err != nil || work.State != tt.state {
					l.t.Errorf("the work is %s, %v", work.State, err)
				}
				if !tt.busy {
					l.settle("the failover beside it")
				}
			})
		})
	}
	for name, d := range took {
		if d > took["nothing"]+50*time.Millisecond {
			t.Errorf("beside %s a failover took %s, without %s", name, d, took["nothing"])
		}
	}
}
