package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"controld/internal/node"
	"controld/internal/pgcontrol"
	"controld/internal/wal"
)

// Bounds of one observation. A server that needs longer for a login is as good
// as frozen to its clients.
const (
	observeTimeout = 900 * time.Millisecond
	loginTimeout   = time.Second
)

// Observe looks at everything once, keeps the result for View, and returns it.
// During the pause of an operation the servers are left alone: what they last
// said is kept, with the time at which it was true.
//
// A server that is late once while all else is slow too keeps its last word: on
// a busy machine a login can take longer than the limit, and to call a primary
// gone for that would turn load balancers away from it. One that is late while
// all else is quick hangs.
func (m *Manager) Observe(ctx context.Context) View {
	return m.observe(ctx, observeTimeout, m.isQuiet(time.Now()), true)
}

func (m *Manager) observe(ctx context.Context, limit time.Duration, quiet, patient bool) View {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	last := m.View()
	v := View{Nodes: make([]NodeState, len(m.set.Nodes))}
	late := make([]bool, len(m.set.Nodes))
	var elsewhere [2]time.Duration // how long what is no node took
	began := time.Now()
	var wg sync.WaitGroup
	for i, n := range m.set.Nodes {
		wg.Go(func() {
			before, known := last.Node(n.Name)
			v.Nodes[i] = m.observeDisk(ctx, n, limit/3, before.Container)
			if quiet && known {
				v.Nodes[i].Server, v.Nodes[i].ServerErr = before.Server, before.ServerErr
				return
			}
			m.observeServer(ctx, &v.Nodes[i], before.Server)
			late[i] = v.Nodes[i].Server == nil && ctx.Err() != nil
		})
	}
	wg.Go(func() { v.Pooler = m.observePooler(ctx); elsewhere[0] = time.Since(began) })
	wg.Go(func() { v.Redis = m.observeRedis(ctx); elsewhere[1] = time.Since(began) })
	wg.Wait()
	for i, n := range m.set.Nodes {
		v.Nodes[i].OtherWAL = m.otherWAL.of(n)
	}
	if !quiet {
		m.findAhead(ctx, &v)
	}
	if patient && min(elsewhere[0], elsewhere[1]) > limit/4 { // all is slow
		v.keepLastWord(last, late)
	}
	v.At = time.Now()
	if !quiet { // what was said before is no measure of what was written since
		m.rate.note(v)
	}
	m.keep(&v)
	return v
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
		if !aheadOf(*s, leader.Server.Timeline, leader.Server.Flushed) {
			continue
		}
		sessions := sessionCache{servers: m.out.Servers}
		pos, err := sessions.position(ctx, leader.Node)
		sessions.closeAll()
		if err == nil && !pos.InRecovery && aheadOf(*s, pos.Timeline, pos.Flushed) {
			s.OtherWAL = fmt.Sprintf("it has WAL up to %s, more than the primary has written", s.Server.Received)
		}
	}
}

func aheadOf(s NodeState, t wal.Timeline, flushed wal.LSN) bool {
	return s.Role() == RoleStandby && s.Server.Timeline == t && s.Server.Received > flushed
}

// keepLastWord gives the servers that were late once what they last said.
func (v *View) keepLastWord(last View, late []bool) {
	for i, s := range v.Nodes {
		before, _ := last.Node(s.Node.Name)
		if late[i] && before.Server != nil && !before.Late && !s.Container.Paused {
			v.Nodes[i].Server, v.Nodes[i].SeenAt, v.Nodes[i].Late = before.Server, before.SeenAt, true
		}
	}
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

// observeDisk asks the engine and reads the node's volumes: what costs nothing.
// An engine that does not answer within limit leaves time to ask the server, and
// what it said last: its silence ends no container.
func (m *Manager) observeDisk(ctx context.Context, n Node, limit time.Duration, before Container) NodeState {
	s := NodeState{Node: n, SeenAt: time.Now(), Locked: Unknown}
	asking, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	container, err := m.out.Engine.Inspect(asking, n.Container)
	if err != nil {
		s.ServerErr = "the engine does not answer: " + err.Error()
		container = before
	}
	s.Container = container
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

// observeServer logs in anew and asks the server: nothing less tells a frozen
// postmaster from a working one. One that has no connection left for us says so,
// which a frozen one does not: it is what it said before.
func (m *Manager) observeServer(ctx context.Context, s *NodeState, before *Server) {
	if s.Dead() {
		s.ServerErr = "no process of the server is left"
		return
	}
	session, err := m.out.Servers.Connect(ctx, s.Node)
	if errors.Is(err, ErrFull) && before != nil {
		s.Server, s.Full, s.SeenAt = before, true, time.Now()
		return
	}
	if err != nil {
		s.ServerErr = err.Error()
		return
	}
	defer session.Close()
	server, err := session.Observe(ctx)
	if err != nil {
		s.ServerErr = err.Error()
		return
	}
	s.Server, s.ServerErr, s.SeenAt = &server, "", time.Now()
}

func (m *Manager) observePooler(ctx context.Context) PoolerState {
	container, inspectErr := m.out.Engine.Inspect(ctx, m.set.PoolerContainer)
	p, err := m.out.Pooler.Observe(ctx)
	p.Container, p.SeenAt = container, time.Now()
	if err := errors.Join(inspectErr, err); err != nil {
		p.Err = err.Error()
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

// fresh is an observation that began now, for a decision that must not rest on
// an older one. The servers are asked even in a pause.
func (m *Manager) fresh(ctx context.Context) View {
	m.quietUntil.Store(0)
	return m.observe(ctx, 2*observeTimeout, false, false)
}

// lookAgain refreshes the view at the end of an operation.
func (m *Manager) lookAgain() { m.fresh(context.Background()) }

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
		if s.Role() != RolePrimary || s.SeenAt.Equal(r.at) {
			continue
		}
		if r.name != s.Node.Name {
			r.rate, r.base, r.baseAt = 0, s.Server.Flushed, s.SeenAt
		}
		if elapsed := s.SeenAt.Sub(r.baseAt); elapsed >= rateOver {
			r.rate = float64(r.base.Behind(s.Server.Flushed)) / elapsed.Seconds()
			r.base, r.baseAt = s.Server.Flushed, s.SeenAt
		}
		r.name, r.last, r.at = s.Node.Name, s.Server.Flushed, s.SeenAt
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
