package observer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"controld/internal/cluster"
	"controld/internal/wal"
)

// Bounds of one observation.
const (
	observeTimeout = 900 * time.Millisecond
	freshTimeout   = 2 * observeTimeout
)

// Observe looks at everything once, keeps the result for View, and returns it.
// During the pause of an operation the servers are left alone: what they last
// said is kept, with the time at which it was true.
//
// A server that is late keeps its last word: on a busy machine an answer takes
// long, and to call a primary gone for that would turn load balancers away from
// it. It loses it to a fact (no process is left, its container is frozen or cut
// off, it says itself that it does not serve), or after cluster.SilenceLimit.
func (o *Observer) Observe(ctx context.Context) cluster.View {
	return o.observe(ctx, look{limit: observeTimeout, quiet: o.isQuiet(time.Now()), patient: true})
}

// Fresh is an observation that began now, for a decision that must not rest on
// an older one: a server that is late has said nothing. The servers are asked
// even in a pause.
func (o *Observer) Fresh(ctx context.Context) cluster.View {
	o.quietUntil.Store(0)
	return o.observe(ctx, look{limit: freshTimeout, since: time.Now()})
}

// LookAgain is an observation that began now, in which the last word of a server
// that is late counts.
func (o *Observer) LookAgain(ctx context.Context) cluster.View {
	return o.observe(ctx, look{limit: freshTimeout, since: time.Now(), patient: true})
}

// A look is how an observation is made.
type look struct {
	limit   time.Duration // it ends then
	since   time.Time     // what was asked before does not count
	quiet   bool          // the servers are left alone
	patient bool          // a server that is late keeps its last word
}

func (o *Observer) observe(ctx context.Context, l look) cluster.View {
	ctx, cancel := context.WithTimeout(ctx, l.limit)
	defer cancel()
	last := o.View()
	v := cluster.View{Nodes: make([]cluster.NodeState, len(o.nodes))}
	var wg sync.WaitGroup
	for i, n := range o.nodes {
		wg.Go(func() {
			before, known := last.Node(n.Name)
			v.Nodes[i] = o.observeDisk(ctx, n, l, before)
			if l.quiet && known {
				v.Nodes[i].Server, v.Nodes[i].ServerErr, v.Nodes[i].AnsweredAt = before.Server, before.ServerErr, before.AnsweredAt
				return
			}
			o.observeServer(ctx, &v.Nodes[i], l)
			if now := v.Nodes[i].Server; now != nil && (before.Server == nil || !now.StartedAt.Equal(before.Server.StartedAt)) {
				o.inspected.forgetOne(n.Container) // with its container, maybe, which then is at another address
			}
		})
	}
	wg.Go(func() { v.Pooler = o.observePooler(ctx, l, last.Pooler) })
	wg.Go(o.late.measure)
	wg.Wait()
	for i, n := range o.nodes {
		v.Nodes[i].OtherWAL = o.otherWAL.of(n)
	}
	if !l.quiet {
		o.seenAtWork(&v, last)
		o.findAhead(ctx, &v)
	}
	v.At = time.Now()
	if !l.quiet { // what was said before is no measure of what was written since
		o.rate.note(v)
	}
	o.keep(&v)
	if !l.patient {
		return withoutLate(v)
	}
	return v
}

// withoutLate is v as a decision takes it: a server that is late has said nothing.
func withoutLate(v cluster.View) cluster.View {
	v.Nodes = slices.Clone(v.Nodes)
	for i := range v.Nodes {
		if s := &v.Nodes[i]; s.Late {
			s.Server, s.Late, s.Silent = nil, false, true
		}
	}
	return v
}

// seenAtWork looks whether a primary that is late serves all the same: the pooler
// knows whether it has answered clients.
func (o *Observer) seenAtWork(v *cluster.View, last cluster.View) {
	for i := range v.Nodes {
		s := &v.Nodes[i]
		if s.Late && s.Role() == cluster.RolePrimary && v.Pooler.Answered(s.Container.Address) > last.Pooler.Answered(s.Container.Address) {
			o.contacts[s.Node.Name].seenAtWork()
		}
	}
}

// findAhead looks for standbys that have more than the primary has written. They
// were asked at about the same time, so the primary is asked once more for it.
func (o *Observer) findAhead(ctx context.Context, v *cluster.View) {
	leader, problem := cluster.Leader(*v)
	if problem != nil {
		return
	}
	for i := range v.Nodes {
		s := &v.Nodes[i]
		if s.Late || leader.Late || !aheadOf(*s, leader.Server.Timeline, leader.Server.Flushed) {
			continue
		}
		w, late := o.contacts[leader.Node.Name].look(ctx, time.Now())
		if !late && w.err == nil && !w.server.InRecovery && aheadOf(*s, w.server.Timeline, w.server.Flushed) {
			s.OtherWAL = fmt.Sprintf("it has WAL up to %s, more than the primary has written", s.Server.Received)
		}
	}
}

func aheadOf(s cluster.NodeState, t wal.Timeline, flushed wal.LSN) bool {
	return s.Role() == cluster.RoleStandby && s.Server.Timeline == t && s.Server.Received > flushed
}

// observeDisk asks the engine, where that is due, and reads the node's volumes:
// what costs nothing. An engine that does not answer leaves time to ask the
// server, and what it said last: its silence ends no container.
func (o *Observer) observeDisk(ctx context.Context, n cluster.Node, l look, before cluster.NodeState) cluster.NodeState {
	s := cluster.NodeState{Node: n, SeenAt: time.Now(), Locked: cluster.Unknown}
	s.Container, s.ServerErr = o.inspect(ctx, n.Container, l, before.Container)
	if order, err := o.out.Volumes.Order(n); err == nil {
		s.Order = order
	}
	if st, err := o.out.Volumes.Status(n); err == nil {
		s.Init = st
	}
	if control, err := o.out.Volumes.Control(n); err == nil {
		s.Control = &control
	}
	if free, total, err := o.out.Volumes.Space(n); err == nil {
		s.FreeBytes, s.TotalBytes = free, total
	}
	if locked, err := o.out.Volumes.Locked(n); err == nil {
		s.Locked = cluster.No
		if locked {
			s.Locked = cluster.Yes
		}
	}
	return s
}

// observeServer asks the server, unless a fact says that it does not serve.
func (o *Observer) observeServer(ctx context.Context, s *cluster.NodeState, l look) {
	c := o.contacts[s.Node.Name]
	if fact := cannotServe(*s); fact != "" {
		c.contradict()
		s.ServerErr = fact
		return
	}
	c.follow(s.Container.Address)
	w, late := c.look(ctx, l.since)
	s.Server, s.AnsweredAt, s.Full = w.server, w.at, w.full
	s.LoginFailingSince, s.LoginErr = c.takesNone()
	if !late && w.err == nil {
		s.ServerErr = ""
		return
	}
	o.inspected.forgetOne(s.Node.Container)
	s.ServerErr = silent(w.err)
	if w.full && !late || saysNo(w.err) {
		return
	}
	limit, why := o.late.silence()
	s.Late = s.Server != nil
	if silence := time.Since(w.alive); !s.Late || silence > limit {
		s.Server, s.Late, s.Silent = nil, false, true
		if w.alive.IsZero() {
			return
		}
		s.ServerErr = fmt.Sprintf("it has answered nothing for %s%s: %s", silence.Round(100*time.Millisecond), why, s.ServerErr)
	}
}

// silent is how the last question went; nil: it is under way.
func silent(err error) string {
	if err == nil {
		return "an answer is awaited"
	}
	return err.Error()
}

// cannotServe names a fact by which no client reaches the node's server; empty:
// there is none.
func cannotServe(s cluster.NodeState) string {
	switch c := s.Container; {
	case s.Dead():
		return "no process of the server is left"
	case c.Exists && c.Paused:
		return "its container is frozen"
	case c.Exists && !c.Connected:
		return "its container is not on the cluster's network"
	}
	return ""
}

// serves: nothing is wrong with the container. One that has just been started has no
// address for a moment.
func serves(c cluster.Container) bool {
	return c.Exists && c.Running && !c.Paused && c.Connected && c.Address != ""
}

// observePooler asks its console. One that is late keeps what it said, with the
// time at which that was true.
func (o *Observer) observePooler(ctx context.Context, l look, before cluster.PoolerState) cluster.PoolerState {
	container, why := o.inspect(ctx, o.pooler, l, before.Container)
	p, err := o.out.Pooler.Observe(ctx)
	if err != nil {
		o.inspected.forgetOne(o.pooler)
	}
	limit, _ := o.late.silence()
	if ctx.Err() != nil && err != nil && l.patient && before.Err == "" && serves(container) && time.Since(before.SeenAt) < limit {
		before.Container = container
		return before
	}
	p.Container, p.SeenAt = container, time.Now()
	if err != nil {
		p.Err = err.Error()
	} else {
		p.Err = why
	}
	return p
}
