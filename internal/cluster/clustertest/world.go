// Package clustertest is a world that behaves: nodes with containers, inits and
// servers whose WAL has positions, timelines and a history, a pooler with
// clients, and an engine. It stands behind the interfaces of package cluster, so
// that operations can be tried at every cut without containers. What the real
// ones refuse it refuses, and a second primary is noted the moment it leads. The
// contracts that it shares with the real parts are in this package too.
//
// It runs in real time and in the virtual time of testing/synctest.
package clustertest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/pgcontrol"
	"controld/internal/wal"
)

// A World is one cluster and all that surrounds it.
type World struct {
	mu      sync.Mutex
	changed chan struct{} // closed at each change
	gone    chan struct{} // closed by Close
	closed  bool
	writing sync.WaitGroup

	hosts     []*host
	pooler    *bouncer
	databases []string
	nextID    int // of WAL records
	addresses int // that were given out
	acked     []ack
	failed    []string // transactions that a client saw fail
	rejected  int      // and those that a standby refused
	faults    []string // what must never happen, and did
}

// An ack is a commit that a client was told of.
type ack struct {
	record int
	host   string
}

// Delays of the world, all short: only their order matters.
const (
	noticeDelay = time.Millisecond     // an init sees a new order
	startDelay  = 3 * time.Millisecond // a server, a container
	stopDelay   = 3 * time.Millisecond
	shipDelay   = time.Millisecond // WAL to a standby
	linkDelay   = 4 * time.Millisecond
	deathDelay  = 3 * time.Millisecond
	actionDelay = 20 * time.Millisecond // a base backup, a rewind
	lingerCheck = 20 * time.Millisecond
	senderGrace = 5 * time.Second // wal_sender_timeout
	stopGrace   = time.Second     // the init's, for a server that is shut down and lingers
	queryWait   = 60 * time.Second
)

const (
	segmentBytes = 4 << 20
	recordBytes  = 0x80
	firstLSN     = wal.LSN(0x3000000)
)

// A host is one node: its container, its volumes, its init and its server.
type host struct {
	w    *World
	node cluster.Node

	// The container.
	exists, up, paused, connected bool
	stuck                         bool          // SIGKILL does not end it
	throttledAt                   time.Time     // zero: it is not
	actions                       []node.Action // that its init knows, as it tells; nil: it does not tell
	address                       string
	startedAt, endedAt            time.Time
	boot                          int // counts starts, so that what was planned before one is void

	// The volumes.
	order      node.Order
	settings   cluster.RoleSettings
	status     node.Status
	data       *data // nil: no data directory
	unreadable bool  // the data volume cannot be read from outside
	free       int64

	// The init.
	ready   bool // it looks at orders
	taken   node.Order
	settled uint64
	job     *job // work beside the loop; its identity voids what another has planned
	working bool // the job holds the lock
	failing map[node.Action]bool

	server   *server
	deaf     bool // its walreceiver is stopped
	conflict bool // a reader holds up the replay
}

// A data is a PGDATA.
type data struct {
	systemID uint64
	wal      []record // flushed to this disk
	received int      // of them by streaming
	replayed int
	control  pgcontrol.Data
	standby  bool // standby.signal
	history  map[wal.Timeline]bool
	slots    map[string]bool
	oldest   wal.LSN // WAL before it was removed
	rights   int     // of which version: see package rights
}

// A record is one record of WAL. Its id is the same wherever it was shipped to.
type record struct {
	id         int
	timeline   wal.Timeline
	start, end wal.LSN
}

// A server is one run of a postmaster.
type server struct {
	up, recovery bool
	stopping     bool // takes no connection any more
	shut         bool // shut down in pg_control
	frozen       bool // SIGSTOP
	startedAt    time.Time
	applied      cluster.RoleSettings
	upstream     *host // from which it streams
	linking      bool
}

func (d *data) end() wal.LSN { return endOf(d.wal, len(d.wal)) }

func endOf(records []record, n int) wal.LSN {
	if n == 0 {
		return firstLSN
	}
	return records[n-1].end
}

func (d *data) newest() wal.Timeline {
	t := d.control.Timeline()
	for h := range d.history {
		t = max(t, h)
	}
	return t
}

func (d *data) clone() *data {
	c := *d
	c.wal, c.history, c.slots = slices.Clone(d.wal), maps.Clone(d.history), map[string]bool{}
	return &c
}

// isPrefix reports whether b goes on where a ends.
func isPrefix(a, b []record) bool {
	return len(a) == 0 || len(a) <= len(b) && a[len(a)-1].id == b[len(a)-1].id
}

func common(a, b []record) int {
	n := 0
	for n < min(len(a), len(b)) && a[n].id == b[n].id {
		n++
	}
	return n
}

// NewWorld makes one with these nodes, containers that run, empty volumes, and a
// pooler that leads nowhere.
func NewWorld(nodes []cluster.Node, databases ...string) *World {
	w := &World{changed: make(chan struct{}), gone: make(chan struct{}), databases: databases}
	for _, n := range nodes {
		h := &host{
			w: w, node: n, exists: true, up: true, ready: true, connected: true,
			startedAt: time.Now(), boot: 1, free: 1 << 40, failing: map[node.Action]bool{},
			settings: cluster.RoleSettings{ArchiveCommand: "/bin/true"}, actions: node.Actions,
		}
		h.newAddress()
		h.status.State = node.StateWaiting
		w.hosts = append(w.hosts, h)
	}
	w.pooler = newBouncer(w)
	return w
}

// Nodes is the usual pair.
func Nodes() []cluster.Node {
	var out []cluster.Node
	for i, name := range []string{"postgres_master", "postgres_slave"} {
		out = append(out, cluster.Node{
			Name: name, Container: name, Dir: fmt.Sprintf("/pg/node%d", i+1), OrderDir: fmt.Sprintf("/orders/node%d", i+1), Port: 5432,
		})
	}
	return out
}

// Close ends the clients and lets calls of dead processes return.
func (w *World) Close() {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.gone)
		w.bump()
	}
	w.mu.Unlock()
	w.writing.Wait()
}

// Do changes the world under its lock; f gets the host called name.
func (w *World) Do(name string, f func(*Host)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&Host{w.host(name)})
	w.pump()
	w.bump()
}

// A Host is what a test may do to a node.
type Host struct{ h *host }

// Crash ends the container at once, as the host's OOM killer or docker kill do.
func (x *Host) Crash() { x.h.die() }

// Pause freezes the container; Thaw undoes it.
func (x *Host) Pause() { x.h.paused = true }

// Thaw undoes Pause and Freeze.
func (x *Host) Thaw() {
	x.h.paused = false
	if s := x.h.server; s != nil {
		s.frozen = false
	}
	x.h.consider()
}

// Freeze sends SIGSTOP to the server's processes; the init goes on.
func (x *Host) Freeze() {
	if s := x.h.server; s != nil {
		s.frozen = true
	}
}

// Throttle lets the container have nearly nothing of the processor from now on, as
// the engine counts it. How slow its server is for that, a test says by its hook.
func (x *Host) Throttle() { x.h.throttledAt = time.Now() }

// Knows lets the node have an init of another version, that knows these actions.
func (x *Host) Knows(actions ...node.Action) {
	x.h.actions = actions
	x.h.report(func(*node.Status) {})
}

// OutdatedRights makes its rights those of an earlier version.
func (x *Host) OutdatedRights() { x.h.data.rights = 0 }

// Rights are of this version.
func (x *Host) Rights() int { return x.h.data.rights }

// Unreadable makes the data volume unreadable from outside.
func (x *Host) Unreadable(yes bool) { x.h.unreadable = yes }

// Stuck makes SIGKILL without effect.
func (x *Host) Stuck(yes bool) { x.h.stuck = yes }

// Deaf stops the walreceiver.
func (x *Host) Deaf(yes bool) { x.h.deaf = yes }

// Conflict lets a reader hold up the replay, and with it a promotion.
func (x *Host) Conflict() { x.h.conflict = true }

// Foreign makes the data those of another cluster.
func (x *Host) Foreign() { x.h.data.systemID++; x.h.data.control.SystemID++ }

// Fail makes an action of the init fail, or not any more; ActionNone: the server
// ends whenever it is started.
func (x *Host) Fail(a node.Action, yes bool) { x.h.failing[a] = yes }

// Wipe empties the data volume.
func (x *Host) Wipe() { x.h.data = nil }

// RemoveWAL removes all WAL but the newest record.
func (x *Host) RemoveWAL() { x.h.data.oldest = x.h.data.end() }

// Start starts the container as docker start does.
func (x *Host) Start() { x.h.startContainer() }

// EndServer makes the postmaster end by itself.
func (x *Host) EndServer() { x.h.serverGone(false) }

// Diverge leaves WAL on a node that nobody else has; a running standby says that
// it has received it.
func (x *Host) Diverge() {
	x.h.append(x.h.data.control.Timeline())
	x.h.data.received = len(x.h.data.wal)
}

// Slots are the node's replication slots.
func (x *Host) Slots() []string {
	if x.h.data == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(x.h.data.slots))
}

// Order is the node's order.
func (x *Host) Order() node.Order { return x.h.order }

// Status is what its init reports.
func (x *Host) Status() node.Status { return x.h.status }

// Leads reports whether the server accepts writes.
func (x *Host) Leads() bool { return x.h.leads() && !x.h.frozen() }

// Timeline is the timeline on disk.
func (x *Host) Timeline() wal.Timeline { return x.h.data.control.Timeline() }

// End is the end of the WAL on disk.
func (x *Host) End() wal.LSN { return x.h.data.end() }

func (w *World) host(name string) *host {
	for _, h := range w.hosts {
		if h.node.Name == name || h.node.Container == name {
			return h
		}
	}
	panic("no node " + name)
}

func (w *World) bump() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// after does f under the lock after d.
func (w *World) after(d time.Duration, f func()) {
	time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.closed {
			return
		}
		f()
		w.bump()
	})
}

// wait returns with the lock held as soon as ok says yes, or without it when
// ctx ends first.
func (w *World) wait(ctx context.Context, ok func() bool) error {
	for {
		w.mu.Lock()
		if err := ctx.Err(); err != nil {
			w.mu.Unlock()
			return err
		}
		if ok() {
			return nil
		}
		changed := w.changed
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *World) fault(format string, args ...any) {
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

func (h *host) frozen() bool { return h.paused || h.server != nil && h.server.frozen }

func (h *host) serves() bool { return h.up && h.server != nil && h.server.up && !h.server.stopping }

func (h *host) leads() bool { return h.serves() && !h.server.recovery }

func (h *host) reachable() bool { return h.serves() && h.connected && !h.frozen() }

func (h *host) locked() bool { return h.server != nil || h.working }

func (h *host) append(t wal.Timeline) record {
	start := h.data.end()
	h.w.nextID++
	r := record{id: h.w.nextID, timeline: t, start: start, end: start + recordBytes}
	h.data.wal = append(h.data.wal, r)
	return r
}

// fill writes a record that ends leave bytes before the end of the segment.
func (h *host) fill(leave int64) {
	end := h.data.end()
	if missing := segmentBytes - int64(end%segmentBytes) - leave; missing > 0 {
		h.append(h.data.control.Timeline())
		h.data.wal[len(h.data.wal)-1].end = end + wal.LSN(missing)
	}
}

// checkpoint writes a checkpoint record on the present timeline.
func (h *host) checkpoint(state pgcontrol.State) {
	c := &h.data.control
	r := h.append(c.Timeline())
	c.Checkpoint, c.Redo, c.CheckpointTimeline, c.State = r.start, r.start, c.Timeline(), state
	c.MinRecovery, c.MinRecoveryTimeline, c.ModifiedAt = 0, 0, time.Now()
}

// pump ships WAL to whoever streams, and makes and breaks the links.
func (w *World) pump() {
	for _, h := range w.hosts {
		s := h.server
		if s == nil || !s.up || !s.recovery || s.stopping {
			continue
		}
		u := w.upstreamOf(h)
		switch {
		case u == nil:
			s.upstream = nil
		case s.upstream != u && !s.linking:
			s.linking = true
			w.after(linkDelay, func() {
				s.linking = false
				if h.server == s && w.upstreamOf(h) == u {
					s.upstream = u
					h.ship(u)
				}
			})
		case s.upstream == u:
			w.after(shipDelay, func() {
				if h.server == s && w.upstreamOf(h) == u {
					h.ship(u)
				}
			})
		}
	}
}

// upstreamOf is the server that h can stream from now; nil: none.
func (w *World) upstreamOf(h *host) *host {
	s := h.server
	if s == nil || h.frozen() || h.deaf || !h.connected || s.applied.Upstream == nil {
		return nil
	}
	u := w.host(s.applied.Upstream.Name)
	us := u.server
	if a := s.applied.UpstreamAddress; a != "" && a != u.address {
		return nil
	}
	if us == nil || !us.up || us.recovery || u.frozen() || !u.connected || u.data.systemID != h.data.systemID {
		return nil
	}
	missing := len(h.data.wal) < len(u.data.wal) && h.data.end() < u.data.oldest
	if slot := s.applied.Slot; missing || slot != "" && !u.data.slots[slot] {
		return nil
	}
	if !isPrefix(h.data.wal, u.data.wal) || h.data.newest() > u.data.control.Timeline() {
		return nil
	}
	return u
}

func (h *host) ship(u *host) {
	had := len(h.data.wal)
	h.data.wal = append(h.data.wal, u.data.wal[had:]...)
	h.data.received = len(h.data.wal)
	maps.Copy(h.data.history, u.data.history)
	h.replay()
}

// replay follows the WAL on disk, as far as no reader holds it up.
func (h *host) replay() {
	d := h.data
	if h.conflict {
		return
	}
	d.replayed = len(d.wal)
	if n := len(d.wal); n > 0 {
		d.control.MinRecovery, d.control.MinRecoveryTimeline = d.wal[n-1].end, max(d.wal[n-1].timeline, d.control.MinRecoveryTimeline)
	}
}

// startServer starts a postmaster in the role that standby.signal asks for.
func (h *host) startServer() {
	s := &server{applied: h.settings, startedAt: time.Now()}
	h.server = s
	h.w.after(startDelay, func() {
		if h.server != s || s.stopping {
			return
		}
		s.up, s.recovery = true, h.data.standby
		h.replay()
		h.data.received = len(h.data.wal)
		if s.recovery {
			h.data.control.State = pgcontrol.StateInArchiveRecovery
		} else {
			h.checkpoint(pgcontrol.StateInProduction)
			h.begunToLead()
		}
		h.w.pump()
	})
}

// begunToLead is where a second primary is seen.
func (h *host) begunToLead() {
	for _, o := range h.w.hosts {
		if o != h && o.leads() {
			h.w.fault("%s leads on timeline %d while %s still does on %d",
				h.node.Name, h.data.control.Timeline(), o.node.Name, o.data.control.Timeline())
		}
	}
}

// promote ends recovery in stages; a kill between two leaves what was done.
func (h *host) promote() {
	s := h.server
	alive := func() bool { return h.server == s && !s.stopping }
	next := h.data.newest() + 1
	h.w.after(time.Millisecond, func() {
		if !alive() || !s.recovery {
			return
		}
		if h.conflict {
			h.promote()
			return
		}
		h.replay()
		h.data.history[next], h.data.standby, s.upstream = true, false, nil
		h.w.after(time.Millisecond, func() {
			if !alive() || !s.recovery {
				return
			}
			r := h.append(next)
			h.data.replayed = len(h.data.wal)
			h.data.control.MinRecovery, h.data.control.MinRecoveryTimeline = r.end, next
			h.w.after(time.Millisecond, func() {
				if alive() && s.recovery {
					s.recovery = false
					h.data.control.State = pgcontrol.StateInProduction
					h.begunToLead()
					h.w.pump()
				}
			})
		})
	})
}

// stopServer is a fast shutdown.
func (h *host) stopServer() {
	s := h.server
	if s.stopping {
		return
	}
	s.stopping = true
	h.w.after(stopDelay, func() { h.finishStop(s) })
}

func (h *host) finishStop(s *server) {
	switch {
	case h.server != s:
		return
	case h.frozen():
		h.w.after(lingerCheck, func() { h.finishStop(s) })
		return
	case !s.up:
	case s.recovery:
		h.data.control.State = pgcontrol.StateShutDownInRecovery
	default:
		h.checkpoint(pgcontrol.StateShutDown)
	}
	s.shut = true
	h.w.pump()
	h.linger(s, time.Now())
}

// linger keeps a server that is shut down until its standbys have all of it.
func (h *host) linger(s *server, since time.Time) {
	h.w.after(2*shipDelay, func() {
		if h.server != s {
			return
		}
		wanted := h.order.Role != node.RoleNone && time.Since(since) > 2*stopGrace
		for _, o := range h.w.hosts {
			behind := o.server != nil && o.server.upstream == h && len(o.data.wal) < len(h.data.wal)
			if behind && !wanted && time.Since(since) < senderGrace {
				h.w.after(lingerCheck, func() { h.linger(s, since) })
				return
			}
		}
		h.serverGone(true)
	})
}

// serverGone: the last process of the server has ended.
func (h *host) serverGone(asked bool) {
	if h.server == nil {
		return
	}
	h.server = nil
	if !asked {
		h.settled = h.taken.Epoch
		h.report(func(s *node.Status) {
			s.State, s.Role, s.PID, s.Error = node.StateEnded, node.RoleNone, 0, "the server ended by itself"
		})
	}
	h.w.pump()
	h.consider()
	h.act()
}

// die ends every process of the container.
func (h *host) die() {
	if !h.up || h.stuck {
		return
	}
	h.up, h.paused, h.server, h.job, h.working = false, false, nil, nil, false
	h.endedAt = time.Now()
	h.boot++
	h.w.pump()
}

// newAddress is what the engine does at each start of a container, and when it
// is connected to the network again.
func (h *host) newAddress() {
	h.w.addresses++
	h.address = fmt.Sprintf("10.0.%d.%d", h.w.addresses/250, h.w.addresses%250+1)
}

// Address is where the node is now.
func (w *World) Address(name string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.host(name).address
}

func (h *host) startContainer() {
	if h.up {
		return
	}
	h.newAddress()
	h.up, h.startedAt = true, time.Now()
	h.boot++
	h.taken, h.settled, h.ready = node.Order{}, 0, false
	boot := h.boot
	h.w.after(startDelay, func() {
		if h.boot != boot {
			return
		}
		h.ready = true
		h.report(func(s *node.Status) { s.State, s.Role, s.PID, s.Error = node.StateWaiting, node.RoleNone, 0, "" })
		h.consider()
	})
}

func (h *host) report(f func(*node.Status)) {
	f(&h.status)
	h.status.At, h.status.Actions = time.Now().UTC(), h.actions
}
