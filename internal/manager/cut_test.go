package manager_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/manager"
	"controld/internal/node"
	"controld/internal/operation"
)

// A begin starts an operation and returns when it has ended.
type begin func(ctx context.Context, m *manager.Manager, ops *operation.Manager) (operation.Record, error)

// A scenario is one operation and what must be true after it, whatever was cut.
type scenario struct {
	name string
	// empty: the operation is the cluster's first start.
	empty bool
	// set changes the cluster's settings.
	set func(*cluster.Settings)
	// ready brings the world into the state in which the operation begins.
	ready func(l *lab)
	run   begin
	// beside is a kind of long work that is open when the operation is asked for.
	beside string
	// again is what a person does where the cut operation was taken back and
	// nothing leads: to ask once more is always right.
	again func(l *lab)
}

func scenarios() []scenario {
	crash := (*clustertest.Host).Crash
	hurt := func(name string, f func(*clustertest.Host)) func(l *lab) {
		return func(l *lab) {
			l.w.Do(name, f)
			time.Sleep(100 * time.Millisecond)
		}
	}
	crashed := func(name string) func(l *lab) { return hurt(name, crash) }
	replicated := func(mode cluster.ReplicationMode) func(*cluster.Settings) {
		return func(s *cluster.Settings) { s.Replication = mode }
	}
	sync, strict := replicated(cluster.Sync), replicated(cluster.Strict)
	auto := asking(cluster.FailoverRequest{})
	planned := asking(cluster.FailoverRequest{Mode: cluster.ModePlanned})
	return []scenario{
		{name: "planned", run: planned},
		{name: "planned, no way back", ready: func(l *lab) {
			l.w.Do(first, func(h *clustertest.Host) { h.Fail(node.ActionNone, true) })
			l.w.Do(second, (*clustertest.Host).Conflict)
		}, run: planned, again: askAgain(false)},
		{name: "planned, sync", set: sync, run: planned},
		{name: "planned, strict", set: strict, run: planned},
		{name: "planned, beside what gives way", beside: kindCopy, run: planned},
		{name: "emergency, beside what gives way", beside: kindCopy, ready: crashed(first), run: auto},
		{name: "failback", ready: func(l *lab) {
			l.want(failover(l, cluster.FailoverRequest{}), operation.Succeeded)
			l.settle("the failover before")
		}, run: failingBack},
		{name: "failback, rejoin first", ready: func(l *lab) {
			l.w.Do(first, crash)
			l.want(failover(l, cluster.FailoverRequest{}), operation.Succeeded)
		}, run: failingBack},
		{name: "emergency, dead", ready: crashed(first), run: auto},
		{name: "emergency, dead, sync", set: sync, ready: crashed(first), run: auto},
		{name: "emergency, frozen", ready: hurt(first, (*clustertest.Host).Freeze), run: auto, again: askAgain(false)},
		{name: "emergency, paused", ready: hurt(first, (*clustertest.Host).Pause), run: auto, again: askAgain(false)},
		{name: "emergency, chosen", run: asking(cluster.FailoverRequest{Mode: cluster.ModeEmergency})},
		{name: "emergency, unreadable", ready: hurt(first, func(h *clustertest.Host) { h.Crash(); h.Unreadable(true) }),
			run: asking(cluster.FailoverRequest{MaxLossBytes: new(int64(cluster.AcceptAnyLoss))}), again: askAgain(true)},
		{name: "first start", empty: true, run: beginning},
		{name: "cold start", ready: everythingDies, run: beginning},
		{name: "start", ready: everythingDies, run: starting},
		{name: "rejoin, follow", ready: crashed(second), run: rejoining("")},
		{name: "rejoin, follow, sync", set: sync, ready: crashed(second), run: rejoining("")},
		{name: "rejoin, rewind", ready: diverged, run: rejoining("")},
		{name: "rejoin, base backup", ready: func(l *lab) {
			diverged(l)
			l.w.Do(second, func(h *clustertest.Host) { h.Fail(node.ActionRewind, true) })
		}, run: rejoining("")},
		{name: "rejoin, of one that wrote beside the primary",
			ready: hurt(second, func(h *clustertest.Host) { h.Crash(); h.Diverge() }), run: rejoining("")},
		{name: "rejoin, rewind of one that has nothing to take back",
			ready: crashed(second), run: rejoining(cluster.MethodRewind)},
		{name: "rejoin, by base backup", run: rejoining(cluster.MethodBaseBackup)},
		{name: "align", ready: ledElsewhere, run: aligning},
		{name: "align, settings of a move", ready: leftMoving, run: aligning},
		{name: "protect, set", set: sync, ready: func(l *lab) {
			l.now.m.Observe(context.Background())
			l.want(l.await(l.now.m.Protect(context.Background(), "lift", "", test)), operation.Succeeded)
		}, run: protecting("set")},
		{name: "protect, lift", set: sync, ready: crashed(second), run: protecting("lift")},
	}
}

// ledElsewhere leads the clients to the standby, and the readers to the primary.
func ledElsewhere(l *lab) {
	o := l.w.Process().Outside()
	ctx := context.Background()
	for _, db := range []string{"imdb", "imdb_ro"} {
		if err := o.Pooler.Pause(ctx, db); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := o.Pooler.Point(ctx, cluster.Targets{Primary: l.w.Address(second), Standby: l.w.Address(first)}); err != nil {
		l.t.Fatal(err)
	}
	for _, db := range []string{"imdb", "imdb_ro"} {
		if err := o.Pooler.Resume(ctx, db); err != nil {
			l.t.Fatal(err)
		}
	}
}

// leftMoving leaves the primary with the settings of a move.
func leftMoving(l *lab) {
	o := l.w.Process().Outside()
	ctx := context.Background()
	n := l.set.Nodes[0]
	if err := o.Volumes.WriteSettings(n, cluster.RoleSettings{Switching: true}); err != nil {
		l.t.Fatal(err)
	}
	session, err := o.Servers.Connect(ctx, n)
	if err != nil {
		l.t.Fatal(err)
	}
	defer session.Close()
	if err := session.Reload(ctx, nil); err != nil {
		l.t.Fatal(err)
	}
}

func everythingDies(l *lab) {
	l.w.Do(first, (*clustertest.Host).Crash)
	l.w.Do(second, (*clustertest.Host).Crash)
	time.Sleep(100 * time.Millisecond)
}

// beginning is what controld does at its start, until it has nothing more to do.
func beginning(ctx context.Context, m *manager.Manager, ops *operation.Manager) (operation.Record, error) {
	began := false
	for tries := 0; !began && tries < 60; tries++ {
		m.Observe(ctx)
		var err error
		if began, err = m.Begin(ctx); err != nil && ctx.Err() != nil {
			return operation.Record{}, err
		}
		time.Sleep(time.Second)
	}
	recs, _, err := ops.List(operation.Filter{Kind: cluster.KindBootstrap})
	if err != nil || len(recs) == 0 {
		return operation.Record{}, errors.Join(err, ctx.Err(), errors.New("nothing was started"))
	}
	return recs[0], nil
}

func asking(r cluster.FailoverRequest) begin {
	return func(ctx context.Context, m *manager.Manager, ops *operation.Manager) (operation.Record, error) {
		return waited(ctx, ops)(m.Failover(ctx, r, test))
	}
}

func starting(ctx context.Context, m *manager.Manager, ops *operation.Manager) (operation.Record, error) {
	m.Observe(ctx)
	return waited(ctx, ops)(m.StartNode(ctx, cluster.NodeRequest{Node: first}, test))
}

func rejoining(method string) begin {
	return func(ctx context.Context, m *manager.Manager, ops *operation.Manager) (operation.Record, error) {
		m.Observe(ctx)
		return waited(ctx, ops)(m.Rejoin(ctx, cluster.NodeRequest{Node: second, Method: method}, test))
	}
}

func protecting(how string) begin {
	return func(ctx context.Context, m *manager.Manager, ops *operation.Manager) (operation.Record, error) {
		m.Observe(ctx)
		return waited(ctx, ops)(m.Protect(ctx, how, "", test))
	}
}

func aligning(ctx context.Context, m *manager.Manager, ops *operation.Manager) (operation.Record, error) {
	return waited(ctx, ops)(m.Align(ctx, "", test))
}

func failingBack(ctx context.Context, m *manager.Manager, ops *operation.Manager) (operation.Record, error) {
	return waited(ctx, ops)(m.Failback(ctx, cluster.FailbackRequest{}, test))
}

// askAgain: a primary that is frozen, or whose volume cannot be read, is not
// started by controld itself. What an unreadable volume holds is lost, as was
// accepted; it can be read in the end.
func askAgain(unreadable bool) func(l *lab) {
	return func(l *lab) {
		r := cluster.FailoverRequest{Mode: cluster.ModeEmergency, Target: second}
		if unreadable {
			r.MaxLossBytes = new(int64(cluster.AcceptAnyLoss))
		}
		time.Sleep(20 * time.Second)
		if l.w.Serving() == "" {
			l.want(failover(l, r), operation.Succeeded)
		}
		if unreadable {
			l.w.Do(first, func(h *clustertest.Host) { h.Unreadable(false) })
			l.w.Forget()
		}
	}
}

// diverged leaves the second node with WAL that the first never had: it led,
// crashed, and the first was made to lead without it.
func diverged(l *lab) {
	l.want(failover(l, cluster.FailoverRequest{}), operation.Succeeded)
	l.settle("the failover before")
	l.w.Do(second, func(h *clustertest.Host) { h.Crash(); h.Unreadable(true) })
	l.want(failover(l, cluster.FailoverRequest{MaxLossBytes: new(int64(cluster.AcceptAnyLoss))}), operation.Succeeded)
	l.w.Do(second, func(h *clustertest.Host) { h.Unreadable(false); h.Diverge() })
	l.w.Forget()
}

// waited returns the operation when it has ended or is incomplete.
func waited(ctx context.Context, ops *operation.Manager) func(operation.Record, error) (operation.Record, error) {
	return func(rec operation.Record, err error) (operation.Record, error) {
		var problem *operation.Problem
		if err != nil && !errors.As(err, &problem) {
			return rec, err
		}
		return ops.Wait(ctx, rec.ID)
	}
}

// stride: every cut is made, but under the race detector, which takes ten times as
// long, and with -short, one of a few.
func stride() int {
	if raceDetector || testing.Short() {
		return 17
	}
	return 1
}

// A cut is where controld dies.
type cut struct {
	at    int  // the call, counted from 1
	after bool // it had its effect
	away  time.Duration
}

func (c cut) String() string {
	when := "before"
	if c.after {
		when = "after"
	}
	return fmt.Sprintf("%s call %d, back after %v", when, c.at, c.away)
}

// TestKill9 cuts every operation before and after each outside call, and lets
// the next controld come soon, or after the pooler's init has ended the pause.
func TestKill9(t *testing.T) {
	for _, sc := range scenarios() {
		t.Run(sc.name, func(t *testing.T) {
			for _, c := range []cut{{after: false, away: soon}, {after: true, away: soon}, {after: true, away: late}} {
				t.Run(fmt.Sprintf("after=%v, away %v", c.after, c.away), func(t *testing.T) {
					t.Parallel()
					for c.at = 1; killAt(t, sc, c) && !t.Failed(); c.at += stride() {
					}
					if c.at == 1 {
						t.Error("nothing was cut")
					}
				})
			}
		})
	}
}

// How long no controld runs: less than the pooler's init waits, or more.
const (
	soon = 200 * time.Millisecond
	late = 14 * time.Second
)

// changes are the calls that change something outside.
var changes = regexp.MustCompile(`^(Engine\.(Start|Kill|Disconnect|Connect)|Volumes\.Write.*|` +
	`Session\.(Checkpoint|Reload|CreateSlot|DropSlot|Promote|SyncProbe)|` +
	`Pooler\.(Point|Pause|PauseNow|Resume|Kill|Drain|RenewLease|RemoveLease|Probe))\b`)

// A counter counts the calls at which a cut makes a difference: before and
// after each change, and before the first look that follows one, when the
// journal may have been written in between.
type counter struct {
	mu      sync.Mutex
	n       int
	looking bool // since the last change something was only looked at
}

func (c *counter) next(call string, afterOnly bool) (n int, counts bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change := changes.MatchString(call)
	counts = change || !afterOnly && !c.looking
	c.looking = !change
	if counts {
		c.n++
	}
	return c.n, counts
}

// inScenario runs f in the world in which the scenario's operation begins.
func inScenario(t *testing.T, sc scenario, f func(l *lab)) {
	if sc.empty {
		inEmptyLab(t, sc.set, func(l *lab) {
			l.boot(nil)
			f(l)
		})
		return
	}
	inLab(t, sc.set, func(l *lab) {
		if sc.set != nil {
			time.Sleep(10 * time.Second) // until supervision has set what commits wait for
		}
		l.quiet()
		if sc.ready != nil {
			sc.ready(l)
		}
		f(l)
	})
}

// killAt reports whether the operation made so many calls.
func killAt(t *testing.T, sc scenario, c cut) (reached bool) {
	inScenario(t, sc, func(l *lab) {
		var count counter
		where := ""
		var d *daemon
		d = l.counted(func(_ context.Context, call string, do func() error) error {
			if n, counts := count.next(call, c.after); !counts || n != c.at {
				return do()
			}
			where = call
			var err error
			if c.after {
				err = do()
			}
			d.process.Die()
			return err
		})
		l.working(sc.beside)
		ended := make(chan struct{})
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			defer close(ended)
			_, _ = sc.run(ctx, d.m, d.ops)
		}()
		select {
		case <-d.process.Died:
			reached = true
		case <-ended:
			return
		}
		defer func() {
			if l.t.Failed() {
				l.t.Logf("cut %s: %s", c, where)
			}
			cancel()
			l.w.Close()
			<-ended
		}()
		l.die()
		time.Sleep(c.away)
		l.boot(nil)
		l.look()
		if sc.again != nil {
			sc.again(l)
		}
		l.settle(fmt.Sprintf("kill -9 %s (%s)", c, where))
		if longest := l.w.LongestPause(); longest > 15*time.Second {
			l.t.Errorf("clients were held for %v, cut %s (%s)\n%s", longest, c, where, l.story())
		}
	})
	return reached
}

// killAfter runs the scenario called name and kills controld after the first
// call with this name; then another one comes soon.
func killAfter(t *testing.T, name, call string, then func(l *lab)) {
	scenario := scenarios()[slices.IndexFunc(scenarios(), func(sc scenario) bool { return sc.name == name })]
	inScenario(t, scenario, func(l *lab) {
		var d *daemon
		d = l.counted(func(_ context.Context, got string, do func() error) error {
			err := do()
			if strings.HasPrefix(got, call) {
				d.process.Die()
			}
			return err
		})
		ended := make(chan struct{})
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			defer close(ended)
			_, _ = scenario.run(ctx, d.m, d.ops)
		}()
		select {
		case <-d.process.Died:
		case <-ended:
			cancel()
			l.t.Fatalf("the operation ended without %s\n%s", call, l.story())
		}
		defer func() {
			cancel()
			l.w.Close()
			<-ended
		}()
		l.die()
		time.Sleep(soon)
		l.boot(nil)
		l.look()
		l.settle("the kill")
		then(l)
	})
}

// A failback that brought its target back first keeps its list of steps, though
// the target streams by the time it is resumed.
func TestAResumedFailbackKeepsItsSteps(t *testing.T) {
	killAfter(t, "failback, rejoin first", "Session.Promote", func(l *lab) {
		recs, _, err := l.now.ops.List(operation.Filter{Kind: cluster.KindFailback})
		if err != nil || len(recs) != 1 {
			l.t.Fatalf("%v, %v", recs, err)
		}
		l.want(recs[0], operation.Succeeded)
		if name := recs[0].Steps[0].Name; name != "rejoin: reserve slot" {
			l.t.Errorf("its first step is %q now", name)
		}
	})
}

// What the next controld took back needs no mending: it gives the standby the
// settings that it had, and the standby's walreceiver is not started again for it.
func TestAResumedUndoLeavesNothingToMend(t *testing.T) {
	killAfter(t, "planned", "Session.Checkpoint", func(l *lab) {
		recs, _, err := l.now.ops.List(operation.Filter{Kind: cluster.KindRejoin})
		if err != nil || len(recs) != 1 { // the first start's
			l.t.Errorf("%v\n%s", err, l.story())
		}
	})
}

// What an align held when controld died is released by the next one, and not
// only by the pooler's init.
func TestAResumedAlignReleasesWhatItHeld(t *testing.T) {
	killAfter(t, "align", "Pooler.Point", func(l *lab) {
		if l.w.LongestPause() > 5*time.Second {
			l.t.Errorf("clients were held for %v", l.w.LongestPause())
		}
	})
}

// The PAUSE of an emergency is not awaited. Where the next thing fails, it must
// not come after the RESUME that takes it back.
func TestAnUndoneEmergencyLeavesNoPause(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.quiet()
		l.w.Do(first, (*clustertest.Host).Crash)
		var sent atomic.Bool
		l.counted(func(_ context.Context, call string, do func() error) error {
			switch {
			case strings.HasPrefix(call, "Pooler.PauseNow"):
				sent.Store(true)
				time.Sleep(50 * time.Millisecond)
			case strings.HasPrefix(call, "Volumes.Space") && sent.Load(): // the look at the end of the operation takes its time
				time.Sleep(500 * time.Millisecond)
			case strings.HasPrefix(call, "Servers.Connect "+second):
				time.Sleep(time.Millisecond)
				if sent.Load() {
					return errBrokenWire
				}
			}
			return do()
		})
		l.want(failover(l, cluster.FailoverRequest{}), operation.Incomplete) // and nobody leads
		time.Sleep(10 * time.Second)
		if l.w.LongestPause() > 3*time.Second {
			l.t.Errorf("clients were held for %v", l.w.LongestPause())
		}
		l.restart(nil)
		l.look()
		l.settle("the next start")
	})
}
