package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"controld/internal/node"
	"controld/internal/pgcontrol"
	"controld/internal/wal"
)

// Bounds of one observation, and of a login that an operation needs.
const (
	observeTimeout = 900 * time.Millisecond
	freshTimeout   = 2 * observeTimeout
	loginTimeout   = 5 * time.Second
	frozenTimeout  = 2 * time.Second // for what an undo can do without
)

// engineEvery: what the engine says of a container is asked for again after this
// time, and at once when it reports a change or something is not as it should be.
const engineEvery = 10 * time.Second

// Observe looks at everything once, keeps the result for View, and returns it.
// During the pause of an operation the servers are left alone: what they last
// said is kept, with the time at which it was true.
//
// A server that is late keeps its last word: on a busy machine an answer takes
// long, and to call a primary gone for that would turn load balancers away from
// it. It loses it to a fact (no process is left, its container is frozen or cut
// off, it says itself that it does not serve), or after silenceLimit.
func (m *Manager) Observe(ctx context.Context) View {
	return m.observe(ctx, look{limit: observeTimeout, quiet: m.isQuiet(time.Now()), patient: true})
}

// fresh is an observation that began now, for a decision that must not rest on
// an older one: a server that is late has said nothing. The servers are asked
// even in a pause.
func (m *Manager) fresh(ctx context.Context) View {
	m.quietUntil.Store(0)
	return m.observe(ctx, look{limit: freshTimeout, since: time.Now()})
}

// lookAgain is an observation that began now, in which the last word of a server
// that is late counts.
func (m *Manager) lookAgain(ctx context.Context) View {
	return m.observe(ctx, look{limit: freshTimeout, since: time.Now(), patient: true})
}

// A look is how an observation is made.
type look struct {
	limit   time.Duration // it ends then
	since   time.Time     // what was asked before does not count
	quiet   bool          // the servers are left alone
	patient bool          // a server that is late keeps its last word
}

func (m *Manager) observe(ctx context.Context, l look) View {
	ctx, cancel := context.WithTimeout(ctx, l.limit)
	defer cancel()
	last := m.View()
	v := View{Nodes: make([]NodeState, len(m.set.Nodes))}
	var wg sync.WaitGroup
	for i, n := range m.set.Nodes {
		wg.Go(func() {
			before, known := last.Node(n.Name)
			v.Nodes[i] = m.observeDisk(ctx, n, l, before)
			if l.quiet && known {
				v.Nodes[i].Server, v.Nodes[i].ServerErr, v.Nodes[i].AnsweredAt = before.Server, before.ServerErr, before.AnsweredAt
				return
			}
			m.observeServer(ctx, &v.Nodes[i], l)
			if now := v.Nodes[i].Server; now != nil && (before.Server == nil || !now.StartedAt.Equal(before.Server.StartedAt)) {
				m.inspected.forgetOne(n.Container) // with its container, maybe, which then is at another address
			}
		})
	}
	wg.Go(func() { v.Pooler = m.observePooler(ctx, l, last.Pooler) })
	wg.Go(func() { v.Redis = m.observeRedis(ctx) })
	wg.Go(m.late.measure)
	wg.Wait()
	for i, n := range m.set.Nodes {
		v.Nodes[i].OtherWAL = m.otherWAL.of(n)
	}
	if !l.quiet {
		m.seenAtWork(&v, last)
		m.findAhead(ctx, &v)
	}
	v.At = time.Now()
	if !l.quiet { // what was said before is no measure of what was written since
		m.rate.note(v)
	}
	m.keep(&v)
	if !l.patient {
		return v.withoutLate()
	}
	return v
}

// withoutLate is v as a decision takes it: a server that is late has said nothing.
func (v View) withoutLate() View {
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
func (m *Manager) seenAtWork(v *View, last View) {
	for i := range v.Nodes {
		s := &v.Nodes[i]
		if s.Late && s.Role() == RolePrimary && v.Pooler.answered(s.Container.Address) > last.Pooler.answered(s.Container.Address) {
			m.contacts[s.Node.Name].seenAtWork()
		}
	}
}

// findAhead looks for standbys that have more than the primary has written. They
// were asked at about the same time, so the primary is asked once more for it.
func (m *Manager) findAhead(ctx context.Context, v *View) {
	leader, problem := Leader(*v)
	if problem != nil {
		return
	}
	for i := range v.Nodes {
		s := &v.Nodes[i]
		if s.Late || leader.Late || !aheadOf(*s, leader.Server.Timeline, leader.Server.Flushed) {
			continue
		}
		w, late := m.contacts[leader.Node.Name].look(ctx, time.Now())
		if !late && w.err == nil && !w.server.InRecovery && aheadOf(*s, w.server.Timeline, w.server.Flushed) {
			s.OtherWAL = fmt.Sprintf("it has WAL up to %s, more than the primary has written", s.Server.Received)
		}
	}
}

func aheadOf(s NodeState, t wal.Timeline, flushed wal.LSN) bool {
	return s.Role() == RoleStandby && s.Server.Timeline == t && s.Server.Received > flushed
}

// keep makes v the view, with the orders as they stand now: one may have been
// written while the rest was observed.
func (m *Manager) keep(v *View) {
	m.viewMu.Lock()
	defer m.viewMu.Unlock()
	for i := range v.Nodes {
		if o, err := m.out.Volumes.Order(v.Nodes[i].Node); err == nil {
			v.Nodes[i].Order = o
		}
	}
	m.view.Store(v)
}

// observeDisk asks the engine, where that is due, and reads the node's volumes:
// what costs nothing. An engine that does not answer leaves time to ask the
// server, and what it said last: its silence ends no container.
func (m *Manager) observeDisk(ctx context.Context, n Node, l look, before NodeState) NodeState {
	s := NodeState{Node: n, SeenAt: time.Now(), Locked: Unknown}
	s.Container, s.ServerErr = m.inspect(ctx, n.Container, l, before.Container)
	if o, err := m.out.Volumes.Order(n); err == nil {
		s.Order = o
	}
	if st, err := m.out.Volumes.Status(n); err == nil {
		s.Init = st
	}
	if control, err := m.out.Volumes.Control(n); err == nil {
		s.Control = &control
	}
	if free, total, err := m.out.Volumes.Space(n); err == nil {
		s.FreeBytes, s.TotalBytes = free, total
	}
	if locked, err := m.out.Volumes.Locked(n); err == nil {
		s.Locked = No
		if locked {
			s.Locked = Yes
		}
	}
	return s
}

// inspect returns what the engine says of a container, or what it said before
// where nothing speaks for a change since. why says how it does not answer.
func (m *Manager) inspect(ctx context.Context, name string, l look, before Container) (c Container, why string) {
	if l.since.IsZero() && before.serves() && !m.inspected.due(name) {
		return before, ""
	}
	ctx, cancel := context.WithTimeout(ctx, l.limit/3)
	defer cancel()
	asked := time.Now()
	c, err := m.out.Engine.Inspect(ctx, name)
	if err != nil {
		return before, "the engine does not answer: " + err.Error()
	}
	m.inspected.note(name, asked)
	return c, ""
}

// EngineChanged is called when the engine reports an event of a container: what it
// said before counts no more.
func (m *Manager) EngineChanged() { m.inspected.forget() }

// inspections are when each container was last asked after.
type inspections struct {
	mu   sync.Mutex
	at   map[string]time.Time
	from time.Time // what was asked before counts no more
}

func (i *inspections) due(name string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	at := i.at[name]
	return at.Before(i.from) || time.Since(at) >= engineEvery
}

func (i *inspections) note(name string, asked time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.at == nil {
		i.at = map[string]time.Time{}
	}
	i.at[name] = asked
}

func (i *inspections) forget() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.from = time.Now()
}

// forgetOne has a container asked after at the next look.
func (i *inspections) forgetOne(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.at, name)
}

// observeServer asks the server, unless a fact says that it does not serve.
func (m *Manager) observeServer(ctx context.Context, s *NodeState, l look) {
	c := m.contacts[s.Node.Name]
	if fact := s.cannotServe(); fact != "" {
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
	m.inspected.forgetOne(s.Node.Container)
	s.ServerErr = silent(w.err)
	if w.full && !late || saysNo(w.err) {
		return
	}
	limit, why := m.late.silence()
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
func (s NodeState) cannotServe() string {
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
func (c Container) serves() bool {
	return c.Exists && c.Running && !c.Paused && c.Connected && c.Address != ""
}

// observePooler asks its console. One that is late keeps what it said, with the
// time at which that was true.
func (m *Manager) observePooler(ctx context.Context, l look, before PoolerState) PoolerState {
	container, why := m.inspect(ctx, m.set.PoolerContainer, l, before.Container)
	p, err := m.out.Pooler.Observe(ctx)
	if err != nil {
		m.inspected.forgetOne(m.set.PoolerContainer)
	}
	limit, _ := m.late.silence()
	if ctx.Err() != nil && err != nil && l.patient && before.Err == "" && container.serves() && time.Since(before.SeenAt) < limit {
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

func (m *Manager) observeRedis(ctx context.Context) Component {
	c := Component{OK: true}
	if err := m.out.Redis(ctx); err != nil {
		c = Component{Detail: err.Error()}
	}
	c.SeenAt = time.Now()
	return c
}

// A rateMeter remembers the last two positions of the primary: what it wrote
// since the last one is the unknown part of a loss.
type rateMeter struct {
	mu   sync.Mutex
	name string
	last wal.LSN
	at   time.Time
	rate float64 // bytes per second, over a time long enough to tell
	// What the rate is measured from: two observations can be milliseconds
	// apart, when the engine reports something, and nothing written between.
	base   wal.LSN
	baseAt time.Time
}

// rateOver is the shortest time that a rate is measured over.
const rateOver = 500 * time.Millisecond

// note takes the primary's position out of a view; a view without one keeps
// what was known.
func (r *rateMeter) note(v View) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range v.Nodes {
		if s.Role() != RolePrimary || s.AnsweredAt.Equal(r.at) {
			continue
		}
		if r.name != s.Node.Name {
			r.rate, r.base, r.baseAt = 0, s.Server.Flushed, s.AnsweredAt
		}
		if elapsed := s.AnsweredAt.Sub(r.baseAt); elapsed >= rateOver {
			r.rate = float64(r.base.Behind(s.Server.Flushed)) / elapsed.Seconds()
			r.base, r.baseAt = s.Server.Flushed, s.AnsweredAt
		}
		r.name, r.last, r.at = s.Node.Name, s.Server.Flushed, s.AnsweredAt
	}
}

// over is how many bytes the node called name writes in d, by the last observations.
func (r *rateMeter) over(name string, d time.Duration) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.name != name {
		return 0
	}
	return int64(r.rate * d.Seconds())
}

// A Loss says how many bytes of WAL a promotion would leave behind.
type Loss struct {
	Known     bool  // false: the primary was never observed
	Bytes     int64 // at the most, if nothing faster than the observed rate was written since
	LagBytes  int64 // of the candidate behind the last observed position
	SinceMS   int64 // age of that position
	RateBytes int64 // observed, per second
	Estimate  bool
}

// rateMargin covers that the last moments may have been busier than those before.
const rateMargin = 2

// bound estimates what a candidate that has received up to received lacks of
// the node called name: its observed lag, and the observed write rate times
// the age of the observation.
func (r *rateMeter) bound(name string, received wal.LSN, diedAt time.Time) Loss {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.name != name || r.at.IsZero() {
		return Loss{Estimate: true}
	}
	age := max(diedAt.Sub(r.at), 0)
	l := Loss{
		Known: true, Estimate: true, SinceMS: age.Milliseconds(), RateBytes: int64(r.rate),
		LagBytes: received.Behind(r.last),
	}
	// What streamed after the observation is no part of the loss: the
	// candidate may be ahead of the observed position.
	ahead := r.last.Behind(received)
	written := int64(rateMargin * r.rate * age.Seconds())
	l.Bytes = l.LagBytes + max(written-ahead, 0)
	return l
}

// wholeness says what usable found.
func wholeness(s NodeState) string {
	switch {
	case s.Init.Unfinished != "" && s.Init.Unfinished != node.ActionNone:
		return fmt.Sprintf("an unfinished %s overwrote its data", s.Init.Unfinished)
	case s.Control == nil:
		return "its volume holds no readable data directory"
	}
	return "its data is whole"
}

// usable reports whether a node may lead: it has data that nobody is overwriting.
func usable(s NodeState) bool {
	return s.Control != nil && (s.Init.Unfinished == "" || s.Init.Unfinished == node.ActionNone)
}

// stopped reports whether the control file says that the server was shut down
// in an orderly way.
func stopped(c pgcontrol.Data) bool { return c.State == pgcontrol.StateShutDown }
