package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/wait"
)

// Bounds of what auto rests on, and of a planned failover on a busy machine.
const (
	// decideWithin is for how long a primary that may only be slow is tried.
	decideWithin = 5 * time.Second
	retryEvery   = 100 * time.Millisecond // within that
	// throttledPart of decideWithin is what a server may be held back by its container's
	// limit of the processor before it counts as slow.
	throttledPart = 10
	engineAnswer  = time.Second // about a container
	looks         = 3           // at a server that a failover needs, before it is taken for silent
	// A server that needs longer for a login or a commit than these would hold the
	// clients for longer than they may be held: in the pause come a shutdown, a
	// promotion, and a login for each of their connections.
	slowLogin  = 3 * time.Second
	slowCommit = 2 * time.Second
)

// lookForCandidate observes anew. Where no standby answers, though one may only be busy,
// it looks again: without a standby nothing can be chosen.
func (f *failover) lookForCandidate(ctx context.Context) cluster.View {
	mayBeBusy := func(s cluster.NodeState) bool { return s.Silent && s.Order.Role != node.RolePrimary }
	return f.lookWhile(ctx, f.act.Look.Fresh(ctx), func(v cluster.View) bool {
		_, none := cluster.BestStandby(v, "")
		return none != nil && slices.ContainsFunc(v.Nodes, mayBeBusy)
	})
}

// awaitAnswers looks again until both nodes of a planned failover have answered: auto
// has seen that the primary serves.
func (f *failover) awaitAnswers(ctx context.Context, v cluster.View, s *state) cluster.View {
	return f.lookWhile(ctx, v, func(v cluster.View) bool {
		from, _ := v.Node(s.From)
		to, _ := v.Node(s.To)
		return from.Silent || to.Silent
	})
}

// lookWhile looks again while something is missing in v, a few times.
func (f *failover) lookWhile(ctx context.Context, v cluster.View, missing func(cluster.View) bool) cluster.View {
	for i := 1; i < looks && missing(v); i++ {
		v = f.act.Look.Fresh(ctx)
	}
	return v
}

// chooseMode decides auto, once: a planned failover that fails never becomes an
// emergency one. It is an emergency where the primary is proved not to serve, or where
// it has answered no write for decideWithin though it had the processor to answer.
func (f *failover) chooseMode(ctx context.Context, leader cluster.NodeState) (string, error) {
	if f.req.Mode == cluster.ModePlanned || f.req.Mode == cluster.ModeEmergency {
		return f.req.Mode, nil
	}
	if leader.Dead() || leader.Container.Paused {
		return cluster.ModeEmergency, nil
	}
	if f.tried.holds(leader.Node.Name) { // decided anew after a wait: it is not tried for 5 s again
		return f.tried.mode, nil
	}
	mode, err := f.tryMode(ctx, leader)
	if err == nil {
		f.tried = verdict{node: leader.Node.Name, mode: mode, at: time.Now()}
	}
	return mode, err
}

// A verdict is the mode that a primary's answers have led to.
type verdict struct {
	node, mode string
	at         time.Time
}

// verdictHolds is how long what a server answered counts.
const verdictHolds = 10 * time.Second

func (v verdict) holds(node string) bool { return v.node == node && time.Since(v.at) < verdictHolds }

// tryMode decides auto by trying to write on the primary. Where that fails it is an
// emergency, unless something says that the primary may only be slow: then it refuses,
// and a person decides.
func (f *failover) tryMode(ctx context.Context, leader cluster.NodeState) (string, error) {
	t := f.tryWrites(ctx, leader.Node)
	slow := func(format string, args ...any) (string, error) {
		return "", refuseSlow(leader, t, fmt.Sprintf(format, args...))
	}
	late, starved := f.act.Look.Starved()
	switch {
	case t.wrote, errors.Is(t.err, cluster.ErrFull): // it serves those who have a connection: no reason to kill it
		f.primary = t.pace
		return cluster.ModePlanned, nil
	case errors.Is(t.err, cluster.ErrReadOnly): // it does not lead
		return cluster.ModeEmergency, nil
	case t.throttled > decideWithin/throttledPart:
		return slow("its container was held back by its limit of the processor for %s, all cores together", round(t.throttled))
	case t.knocked && t.wroteOpen:
		return slow("it answers new connections, and a write over one that was open")
	case starved:
		return slow("the machine is starved: controld itself was held up for %s", late.Round(time.Millisecond))
	}
	f.act.Log.Warn("primary does not answer a write", "node", leader.Node.Name, "err", t.err)
	return cluster.ModeEmergency, nil
}

// refuseSlow refuses to choose for a primary that may only be slow. seen says why.
func refuseSlow(leader cluster.NodeState, t tries, seen string) error {
	numbers := map[string]any{
		"tried_ms": decideWithin.Milliseconds(), "answers_connections": t.knocked, "answers_open_connection": t.wroteOpen,
	}
	return operation.Refuse("primary-slow", numbers,
		"%s has not let anybody in to write for %s (%v), but may only be slow: %s. "+
			"Wait for its load to end, or say what shall be done: "+
			"mode planned waits for its clients and is refused where that would take too long; "+
			"mode emergency kills it, and ends their transactions", leader.Node.Name, decideWithin, t.err, seen)
}

// tries are what a primary answered within decideWithin.
type tries struct {
	wrote     bool          // it took a write over a new connection
	pace      *pace         // how long that took it
	knocked   bool          // it answers to a new connection, if not to a login
	wroteOpen bool          // it took a write over the connection that was open
	throttled time.Duration // how long its container was held back by its own limit
	err       error         // of the last login or write over a new one
}

// tryWrites tries a write over a new connection, as a client would, until one is
// answered or the time is over, and beside it what less than that may tell.
func (f *failover) tryWrites(ctx context.Context, n cluster.Node) tries {
	ctx, cancel := context.WithTimeout(ctx, decideWithin)
	defer cancel()
	var t tries
	var wg sync.WaitGroup
	wg.Go(func() { t.knocked = again(ctx, func() error { return f.act.Outside.Servers.Knock(ctx, n) }) == nil })
	wg.Go(func() { t.throttled = f.throttledMeanwhile(ctx, n) })
	wg.Go(func() { t.wroteOpen = again(ctx, func() error { return f.act.Look.Write(ctx, n) }) == nil })
	wg.Go(func() {
		t.err = again(ctx, func() error {
			p, err := f.measure(ctx, n, true)
			if err == nil {
				t.wrote, t.pace = true, &p
			}
			return err
		})
		if t.wrote || errors.Is(t.err, cluster.ErrFull) || errors.Is(t.err, cluster.ErrReadOnly) {
			cancel() // nothing else is needed
		}
	})
	wg.Wait()
	return t
}

// throttledMeanwhile is for how long the node's container was held back by its limit
// of the processor until ctx ended; 0 where that is not known. A server that answers
// is not asked about.
func (f *failover) throttledMeanwhile(ctx context.Context, n cluster.Node) time.Duration {
	if wait.Sleep(ctx, decideWithin/10) != nil {
		return 0
	}
	before, err := f.act.Outside.Engine.Throttled(ctx, n.Container)
	if err == nil {
		<-ctx.Done()
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineAnswer)
		defer cancel()
		var after time.Duration
		if after, err = f.act.Outside.Engine.Throttled(bounded, n.Container); err == nil {
			return after - before
		}
	}
	f.act.Log.Warn("not known whether the primary's container is throttled", "node", n.Name, "err", err)
	return 0
}

// again repeats f until it succeeds, ctx ends, or the answer is one that will not
// change.
func again(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil || errors.Is(err, cluster.ErrFull) || errors.Is(err, cluster.ErrReadOnly) {
			return err
		}
		if wait.Sleep(ctx, retryEvery) != nil {
			return err
		}
	}
}

// A pace is how long a server takes for what clients wait for.
type pace struct{ login, commit time.Duration }

// measure logs in to n, and commits a small record where it is asked to.
func (f *failover) measure(ctx context.Context, n cluster.Node, write bool) (p pace, err error) {
	began := time.Now()
	session, err := f.act.Outside.Servers.Connect(ctx, n)
	if err != nil {
		return p, err
	}
	defer session.Close()
	p.login = time.Since(began)
	if write {
		err = session.WriteProbe(ctx)
		p.commit = time.Since(began) - p.login
	}
	return p, err
}

// paceCheck measures what the pause would be made of: a login and a commit on the
// primary, unless auto has measured them, and a login to the candidate.
func (f *failover) paceCheck(ctx context.Context, from, to cluster.NodeState) operation.Check {
	const name, problem = "answers-in-time", "primary-slow"
	old, next, err := f.measureBoth(ctx, from.Node, to.Node)
	ms := time.Duration.Milliseconds
	numbers := map[string]any{
		"primary_login_ms": ms(old.login), "primary_commit_ms": ms(old.commit), "candidate_login_ms": ms(next.login),
		"login_limit_ms": ms(slowLogin), "commit_limit_ms": ms(slowCommit),
	}
	if err != nil {
		return operation.NewCheck(name, false, problem, numbers,
			"a login and a commit were not answered within %s: %s. Wait for the load to end; mode emergency does not wait for it",
			slowLogin+slowCommit, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	ok := old.login <= slowLogin && next.login <= slowLogin && old.commit <= slowCommit
	return operation.NewCheck(name, ok, problem, numbers,
		"%s takes %s for a login and %s for a commit, %s %s for a login; up to %s and %s do not matter%s",
		from.Node.Name, round(old.login), round(old.commit), to.Node.Name, round(next.login), slowLogin, slowCommit,
		operation.Either(ok, "", ". Clients would be held for too long: wait for the load to end"))
}

func (f *failover) measureBoth(ctx context.Context, from, to cluster.Node) (old, next pace, err error) {
	ctx, cancel := context.WithTimeout(ctx, slowLogin+slowCommit)
	defer cancel()
	var oldErr, nextErr error
	var wg sync.WaitGroup
	if f.primary != nil {
		old = *f.primary
	} else {
		wg.Go(func() { old, oldErr = f.measure(ctx, from, true) })
	}
	wg.Go(func() { next, nextErr = f.measure(ctx, to, false) })
	wg.Wait()
	if errors.Is(oldErr, cluster.ErrFull) {
		oldErr = nil // it serves those who have a connection
	}
	return old, next, errors.Join(oldErr, nextErr)
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
