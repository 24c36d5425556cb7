package manager_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/operation"
)

// How a call fails.
const (
	failsOnce    = "fails once"
	failsForever = "fails from then on"
	hangs        = "hangs until its context ends"
	answerLost   = "has its effect, and its answer is lost"
	standsStill  = "is late: the process stands still for longer than a pause is kept without it"
)

// standstill is longer than a claim and the keeper's period together.
const standstill = node.LeaseDuration + 5*time.Second

// TestFailingCalls lets every change that an operation makes fail. It ends, and
// the clients are served again in bounded time, whatever failed; once what
// failed works again, so does the whole.
func TestFailingCalls(t *testing.T) {
	for _, sc := range scenarios() {
		t.Run(sc.name, func(t *testing.T) {
			for _, how := range []string{failsOnce, failsForever, hangs, answerLost, standsStill} {
				t.Run(how, func(t *testing.T) {
					t.Parallel()
					for at := 1; failAt(t, sc, how, at) && !t.Failed(); at += stride() {
					}
				})
			}
		})
	}
}

// failAt reports whether the operation made so many changes.
func failAt(t *testing.T, sc scenario, how string, at int) (reached bool) {
	inScenario(t, sc, func(l *lab) {
		var count counter
		var healed atomic.Bool
		var where atomic.Pointer[string]
		var stoodSince atomic.Pointer[time.Time]
		d := l.counted(func(ctx context.Context, call string, do func() error) error {
			if healed.Load() {
				return do()
			}
			n, counts := count.next(call, true)
			first := counts && n == at
			if first {
				where.Store(&call)
				if how == standsStill {
					now := time.Now()
					stoodSince.Store(&now)
				}
			}
			if since := stoodSince.Load(); since != nil {
				time.Sleep(standstill - time.Since(*since))
				return do()
			}
			again := how == failsForever && where.Load() != nil && *where.Load() == call
			switch {
			case !first && !again:
				return do()
			case how == hangs && ctx.Done() != nil:
				<-ctx.Done()
				return ctx.Err()
			case how == answerLost:
				return errors.Join(do(), errBrokenWire)
			}
			return errBrokenWire
		})
		l.working(sc.beside)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
		defer cancel()
		rec, err := sc.run(ctx, d.m, d.ops)
		if where.Load() == nil {
			return
		}
		reached = true
		what := *where.Load() + " " + how
		if err != nil {
			l.t.Fatalf("%s: %v\n%s", what, err, l.story())
		}
		if rec.State == operation.Running {
			l.t.Errorf("%s: the operation is still running\n%s", what, l.story())
		}
		if longest := l.w.LongestPause(); longest > 45*time.Second {
			l.t.Errorf("%s: clients were held for %v\n%s", what, longest, l.story())
		}
		healed.Store(true)
		l.restart(nil)
		l.look()
		if sc.again != nil {
			sc.again(l)
		}
		l.settle(what)
	})
	return reached
}

// A primary that does not answer while its failover is undone gets its settings
// back later: it would archive nothing.
func TestSettingsThatCouldNotBeUndone(t *testing.T) {
	for _, mode := range []cluster.ReplicationMode{cluster.Async, cluster.Sync} {
		inLab(t, func(s *cluster.Settings) { s.Replication = mode }, func(l *lab) {
			time.Sleep(10 * time.Second) // until commits wait for the standby
			l.quiet()
			var broken, healed atomic.Bool
			l.counted(func(_ context.Context, call string, do func() error) error {
				if call == "Pooler.Drain" {
					broken.Store(true)
				}
				lost := call == "Pooler.Drain" || strings.HasPrefix(call, "Session.Reload") || strings.HasPrefix(call, "Servers.Connect")
				if broken.Load() && !healed.Load() && lost {
					return errBrokenWire
				}
				return do()
			})
			l.want(failover(l, cluster.FailoverRequest{}), operation.Undone)
			if wrong := l.w.Wrong(); !strings.Contains(strings.Join(wrong, "\n"), first+" runs with the settings of a move") {
				l.t.Fatalf("nothing is left to mend: %q\n%s", wrong, l.story())
			}
			healed.Store(true)
			l.restart(nil)
			l.look()
			l.settle("the undoing")
			l.leads(first)
		})
	}
}
