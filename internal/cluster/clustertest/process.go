package clustertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/node/rules"
	"controld/internal/pgcontrol"
	"controld/internal/pgwal"
	"controld/internal/wal"
)

// A Process is one run of controld, as the world sees it: its connections end
// with it, and after its death none of its calls does anything any more.
type Process struct {
	w    *World
	dead atomic.Bool
	// Died is closed by Die.
	Died chan struct{}
	// Hook, if set, stands around every call; it may do it or not, end the
	// process before or after it, or say that it failed.
	Hook func(ctx context.Context, call string, do func() error) error
}

// Process begins one.
func (w *World) Process() *Process { return &Process{w: w, Died: make(chan struct{})} }

// Die is kill -9.
func (p *Process) Die() {
	if !p.dead.Swap(true) {
		close(p.Died)
	}
}

// errDead is what the calls of a dead process return when the world is closed,
// so that their goroutines can end.
var errDead = errors.New("this process is dead")

// Outside is what the process reaches.
func (p *Process) Outside() cluster.Outside {
	return cluster.Outside{
		Engine: engine{p}, Volumes: volumes{p}, Servers: servers{p}, Pooler: pooler{p},
	}
}

func (p *Process) do(ctx context.Context, call string, f func() error) error {
	if p.dead.Load() {
		<-p.w.gone
		return errDead
	}
	err := f
	if p.Hook != nil {
		err = func() error { return p.Hook(ctx, call, f) }
	}
	result := err()
	if p.dead.Load() {
		<-p.w.gone
		return errDead
	}
	return result
}

// locked does f under the world's lock.
func (p *Process) locked(ctx context.Context, call string, f func() error) error {
	return p.do(ctx, call, func() error {
		if err := p.w.wait(ctx, now); err != nil {
			return err
		}
		defer p.w.mu.Unlock()
		err := f()
		p.w.pump()
		p.w.bump()
		return err
	})
}

type engine struct{ p *Process }

func (e engine) Inspect(ctx context.Context, name string) (c cluster.Container, err error) {
	err = e.p.locked(ctx, "Engine.Inspect "+name, func() error {
		if name == PoolerContainer {
			c = cluster.Container{Exists: true, Running: e.p.w.pooler.up, Connected: true, Address: poolerAddress, PID: 100}
			return nil
		}
		h := e.p.w.host(name)
		c = cluster.Container{
			Exists: h.exists, Running: h.up, Paused: h.paused, Connected: h.connected,
			StartedAt: h.startedAt, EndedAt: h.endedAt, Health: "running",
		}
		if h.up {
			c.PID = 10
			if h.connected {
				c.Address = h.address
			}
		} else {
			c.Health = "exited"
		}
		return nil
	})
	return c, err
}

// Throttled is what the engine's counter says of a host that is throttled: nearly all
// the time since.
func (e engine) Throttled(ctx context.Context, name string) (d time.Duration, err error) {
	err = e.p.locked(ctx, "Engine.Throttled "+name, func() error {
		if h := e.p.w.host(name); !h.throttledAt.IsZero() {
			d = time.Since(h.throttledAt) * 9 / 10
		}
		return nil
	})
	return d, err
}

// Exec runs psql alone, which tells its database last.
func (e engine) Exec(ctx context.Context, name string, command []string, stdin string) (string, error) {
	return "", e.p.locked(ctx, "Engine.Exec "+name, func() error {
		h := e.p.w.host(name)
		switch {
		case !h.up || h.paused:
			return errors.New("container is not running")
		case command[0] != "psql":
			return fmt.Errorf("%s: not found", command[0])
		}
		if why := h.runs(command[len(command)-1], stdin); why != "" {
			return errors.New(why)
		}
		return nil
	})
}

// PoolerContainer is the name of the pooler's container.
const PoolerContainer = "pgbouncer"

func (e engine) Start(ctx context.Context, name string) error {
	return e.p.locked(ctx, "Engine.Start "+name, func() error {
		e.p.w.host(name).startContainer()
		return nil
	})
}

func (e engine) Kill(ctx context.Context, name string) error {
	return e.p.locked(ctx, "Engine.Kill "+name, func() error {
		h := e.p.w.host(name)
		boot := h.boot
		e.p.w.after(deathDelay, func() {
			if h.boot == boot {
				h.die()
			}
		})
		return nil
	})
}

func (e engine) Disconnect(ctx context.Context, name string) error {
	return e.p.locked(ctx, "Engine.Disconnect "+name, func() error {
		e.p.w.host(name).connected = false
		return nil
	})
}

func (e engine) Connect(ctx context.Context, name string) error {
	return e.p.locked(ctx, "Engine.Connect "+name, func() error {
		if h := e.p.w.host(name); !h.connected {
			h.connected = true
			h.newAddress()
		}
		return nil
	})
}

type volumes struct{ p *Process }

func (v volumes) on(call string, n cluster.Node, f func(*host) error) error {
	return v.p.locked(context.Background(), call+" "+n.Name, func() error { return f(v.p.w.host(n.Name)) })
}

// read is on for the data volume.
func (v volumes) read(call string, n cluster.Node, f func(*host) error) error {
	return v.on(call, n, func(h *host) error {
		if h.unreadable {
			return fmt.Errorf("node %s: input/output error", n.Name)
		}
		return f(h)
	})
}

func (v volumes) Order(n cluster.Node) (o node.Order, err error) {
	err = v.on("Volumes.Order", n, func(h *host) error { o = h.order; return nil })
	return o, err
}

func (v volumes) WriteOrder(n cluster.Node, o node.Order) error {
	return v.on("Volumes.WriteOrder "+string(o.Role), n, func(h *host) error {
		if err := o.Validate(); err != nil {
			return err
		}
		if o.Epoch <= h.order.Epoch {
			v.p.w.fault("order %d for %s does not follow order %d", o.Epoch, n.Name, h.order.Epoch)
		}
		h.order = o
		v.p.w.after(noticeDelay, h.consider)
		return nil
	})
}

func (v volumes) WriteSettings(n cluster.Node, s cluster.RoleSettings) error {
	return v.on("Volumes.WriteSettings", n, func(h *host) error { h.settings = s; return nil })
}

func (v volumes) Status(n cluster.Node) (s node.Status, err error) {
	err = v.read("Volumes.Status", n, func(h *host) error { s = h.status; return nil })
	return s, err
}

func (v volumes) Control(n cluster.Node) (d pgcontrol.Data, err error) {
	err = v.read("Volumes.Control", n, func(h *host) error {
		if h.data == nil || h.status.Unfinished == node.ActionInitDB || h.status.Unfinished == node.ActionBaseBackup {
			return pgcontrol.ErrNoCluster
		}
		d = h.data.control
		return nil
	})
	return d, err
}

func (v volumes) Locked(n cluster.Node) (yes bool, err error) {
	err = v.read("Volumes.Locked", n, func(h *host) error { yes = h.locked(); return nil })
	return yes, err
}

func (v volumes) Empty(n cluster.Node) (yes bool, err error) {
	err = v.read("Volumes.Empty", n, func(h *host) error { yes = h.data == nil; return nil })
	return yes, err
}

func (v volumes) Space(n cluster.Node) (free, total int64, err error) {
	err = v.read("Volumes.Space", n, func(h *host) error { free, total = h.free, 2*h.free; return nil })
	return free, total, err
}

func (v volumes) StandbySignal(n cluster.Node) (yes bool, err error) {
	err = v.read("Volumes.StandbySignal", n, func(h *host) error { yes = h.data != nil && h.data.standby; return nil })
	return yes, err
}

func (v volumes) HasWAL(n cluster.Node, lsn wal.LSN, _ int64) (yes bool, err error) {
	err = v.read("Volumes.HasWAL", n, func(h *host) error { yes = h.data != nil && h.data.oldest <= lsn; return nil })
	return yes, err
}

func (v volumes) HasHistory(n cluster.Node, t wal.Timeline) (yes bool, err error) {
	err = v.read("Volumes.HasHistory", n, func(h *host) error { yes = h.data != nil && h.data.history[t]; return nil })
	return yes, err
}

func (v volumes) Compare(ctx context.Context, n, leader cluster.Node, _ int64) (c pgwal.Comparison, err error) {
	err = v.p.locked(ctx, "Volumes.Compare "+n.Name, func() error {
		if c = compare(v.p.w.host(n.Name), v.p.w.host(leader.Name)); v.p.w.host(n.Name).unreadable {
			c = pgwal.Comparison{Relation: pgwal.Unknown, Why: "its volume cannot be read"}
		}
		return nil
	})
	return c, err
}

type servers struct{ p *Process }

// Connect waits for a frozen server until ctx ends.
func (s servers) Connect(ctx context.Context, n cluster.Node) (session cluster.Session, err error) {
	err = s.p.do(ctx, "Servers.Connect "+n.Name, func() error {
		w := s.p.w
		h := w.host(n.Name)
		if err := w.wait(ctx, func() bool { return !h.frozen() }); err != nil {
			return fmt.Errorf("connect to %s: %w", n.Name, err)
		}
		defer w.mu.Unlock()
		switch {
		case !h.up || !h.connected || h.server == nil:
			return fmt.Errorf("connect to %s: %w", n.Name, cluster.ErrRefused)
		case h.server.stopping:
			return fmt.Errorf("connect to %s: the database system is shutting down: %w", n.Name, cluster.ErrRefused)
		case !h.server.up:
			return fmt.Errorf("connect to %s: %w", n.Name, cluster.ErrStarting)
		}
		session = &connection{p: s.p, h: h, server: h.server}
		return nil
	})
	return session, err
}

// Knock waits for a frozen server until ctx ends.
func (s servers) Knock(ctx context.Context, n cluster.Node) error {
	return s.p.do(ctx, "Servers.Knock "+n.Name, func() error {
		w := s.p.w
		h := w.host(n.Name)
		if err := w.wait(ctx, func() bool { return !h.frozen() }); err != nil {
			return fmt.Errorf("knock at %s: %w", n.Name, err)
		}
		defer w.mu.Unlock()
		if !h.up || !h.connected || h.server == nil {
			return fmt.Errorf("knock at %s: %w", n.Name, cluster.ErrRefused)
		}
		return nil
	})
}

// A connection is one login to one run of a server.
type connection struct {
	p      *Process
	h      *host
	server *server
	closed bool
}

var errBroken = errors.New("terminating connection: the server is not there any more")

// broken reports whether the connection is of no more use.
func (c *connection) broken() bool {
	return c.closed || c.h.server != c.server || c.server.stopping || !c.h.connected
}

func (c *connection) do(ctx context.Context, call string, f func() error) error {
	return c.p.do(ctx, call+" "+c.h.node.Name, func() error {
		w := c.p.w
		if err := w.wait(ctx, func() bool { return c.broken() || !c.h.frozen() }); err != nil {
			return err
		}
		defer w.mu.Unlock()
		if c.broken() {
			return errBroken
		}
		err := f()
		w.pump()
		w.bump()
		return err
	})
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func (c *connection) Observe(ctx context.Context) (v cluster.Server, err error) {
	err = c.do(ctx, "Session.Observe", func() error {
		h, s, d := c.h, c.server, c.h.data
		pos := h.position()
		v = cluster.Server{
			InRecovery: s.recovery, SystemID: d.systemID, Timeline: pos.Timeline, StartedAt: s.startedAt,
			Flushed: pos.Flushed, Received: pos.Received, Replayed: pos.Replayed, Senders: h.senders(),
			MaxSenders: 10, MaxSlots: 10, SegmentBytes: segmentBytes, Rights: d.rights,
			Settings: map[string]string{
				"archive_command": s.applied.ArchiveCommand, "archive_mode": "on", "autovacuum": onOff(!s.applied.Switching),
				"primary_conninfo": "", "primary_slot_name": s.applied.Slot, "restore_command": s.applied.RestoreCommand,
				"synchronous_standby_names": cluster.SynchronousNames(s.applied.SynchronousStandbys),
			},
		}
		if s.applied.Upstream != nil {
			v.UpstreamAddress = s.applied.UpstreamAddress
		}
		v.SenderCount = len(v.Senders)
		if u := s.upstream; u != nil {
			v.Receiver = &cluster.Receiver{Status: "streaming", Host: u.node.Container, Slot: s.applied.Slot}
		}
		for _, name := range (&Host{h}).Slots() {
			slot := cluster.Slot{Name: name, Active: h.slotActive(name), Restart: d.end(), WALStatus: "reserved"}
			if x := c.p.w.byName(name); x != nil && x.data != nil && x.data.end() < d.oldest {
				slot.WALStatus = "lost"
			}
			v.Slots = append(v.Slots, slot)
		}
		for _, e := range c.p.w.pooler.entries {
			if e.active > 0 && e.host == h.address {
				v.Transactions = append(v.Transactions, cluster.Transaction{
					PID: 4711, User: "app", Application: "client", Database: e.name, Address: poolerAddress,
					State: "idle in transaction", Age: time.Second,
				})
			}
		}
		return nil
	})
	return v, err
}

func (w *World) byName(name string) *host {
	for _, h := range w.hosts {
		if h.node.Name == name {
			return h
		}
	}
	return nil
}

func (h *host) position() cluster.Position {
	d := h.data
	if h.server.recovery {
		received := max(endOf(d.wal, d.received), endOf(d.wal, d.replayed))
		return cluster.Position{InRecovery: true, Timeline: d.control.Timeline(), Received: received, Replayed: endOf(d.wal, d.replayed)}
	}
	return cluster.Position{Timeline: d.control.Timeline(), Flushed: d.end()}
}

func (h *host) senders() []cluster.Sender {
	var out []cluster.Sender
	for _, o := range h.w.hosts {
		if o.server == nil || o.server.upstream != h {
			continue
		}
		end := o.data.end()
		s := cluster.Sender{
			Application: o.node.Name, State: "streaming", Sent: end, Flushed: end, Replayed: end, SyncState: "async",
		}
		if slices.Contains(h.server.applied.SynchronousStandbys, o.node.Name) {
			s.SyncState = "sync"
		}
		out = append(out, s)
	}
	return out
}

func (h *host) slotActive(name string) bool {
	for _, o := range h.w.hosts {
		if o.server != nil && o.server.upstream == h && o.server.applied.Slot == name {
			return true
		}
	}
	return false
}

func (c *connection) Position(ctx context.Context) (p cluster.Position, err error) {
	err = c.do(ctx, "Session.Position", func() error { p = c.h.position(); return nil })
	return p, err
}

func (c *connection) EndQueries(ctx context.Context) error {
	return c.do(ctx, "Session.EndQueries", func() error { c.h.conflict = false; return nil })
}

func (c *connection) WriteProbe(ctx context.Context) error {
	return c.do(ctx, "Session.WriteProbe", func() error {
		_, err := c.h.write(c.server)
		return err
	})
}

func (c *connection) SyncProbe(ctx context.Context) error {
	id := 0
	return c.p.do(ctx, "Session.SyncProbe "+c.h.node.Name, func() error {
		w := c.p.w
		if err := w.wait(ctx, func() bool { return c.broken() || !c.h.frozen() }); err != nil {
			return err
		}
		if c.broken() {
			w.mu.Unlock()
			return errBroken
		}
		var err error
		id, err = c.h.write(c.server)
		w.mu.Unlock()
		if err != nil {
			return err
		}
		if err := w.wait(ctx, func() bool { return c.broken() || c.h.synced(id) }); err != nil {
			return err
		}
		defer w.mu.Unlock()
		if c.broken() {
			return errBroken
		}
		return nil
	})
}

func (c *connection) FillSegment(ctx context.Context, leave int64) error {
	return c.do(ctx, "Session.FillSegment", func() error {
		if c.server.recovery {
			return cluster.ErrReadOnly
		}
		c.h.fill(leave)
		return nil
	})
}

func (c *connection) Checkpoint(ctx context.Context) error {
	return c.do(ctx, "Session.Checkpoint", func() error {
		if !c.server.recovery {
			c.h.checkpoint(pgcontrol.StateInProduction)
		}
		return nil
	})
}

func (c *connection) Reload(ctx context.Context, want map[string]string) error {
	return c.do(ctx, "Session.Reload", func() error {
		c.server.applied = c.h.settings
		have := map[string]string{
			"archive_command": c.h.settings.ArchiveCommand, "restore_command": c.h.settings.RestoreCommand,
			"synchronous_standby_names": cluster.SynchronousNames(c.h.settings.SynchronousStandbys),
		}
		for name, value := range want {
			if have[name] != value {
				return fmt.Errorf("reload on %s: %s is %q, not %q", c.h.node.Name, name, have[name], value)
			}
		}
		return nil
	})
}

func (c *connection) CreateSlot(ctx context.Context, name string) error {
	return c.do(ctx, "Session.CreateSlot", func() error { c.h.data.slots[name] = true; return nil })
}

// AdvanceSlot finds every slot at the end already: they keep nothing here.
func (c *connection) AdvanceSlot(ctx context.Context, _ string, _ wal.LSN) error {
	return c.do(ctx, "Session.AdvanceSlot", func() error { return nil })
}

func (c *connection) DropSlot(ctx context.Context, name string) error {
	return c.p.do(ctx, "Session.DropSlot "+c.h.node.Name, func() error {
		w := c.p.w
		if err := w.wait(ctx, func() bool { return c.broken() || !c.h.frozen() && !c.h.slotActive(name) }); err != nil {
			return fmt.Errorf("drop slot %s: it is in use: %w", name, err)
		}
		defer w.mu.Unlock()
		if c.broken() {
			return errBroken
		}
		delete(c.h.data.slots, name)
		return nil
	})
}

func (c *connection) Senders(ctx context.Context) (out []cluster.Sender, err error) {
	err = c.do(ctx, "Session.Senders", func() error { out = c.h.senders(); return nil })
	return out, err
}

// Copies are the base backups that others are making of it, of which nothing has come yet.
func (c *connection) Databases(ctx context.Context) (out []string, err error) {
	err = c.do(ctx, "Session.Databases", func() error {
		out = append([]string{"postgres", "template1"}, c.p.w.databases...)
		return nil
	})
	return out, err
}

func (c *connection) Copies(ctx context.Context) (out []cluster.Copy, err error) {
	err = c.do(ctx, "Session.Copies", func() error {
		for _, h := range c.p.w.hosts {
			o := h.taken
			copies := o.Action == node.ActionBaseBackup && rules.ActionWanted(o, h.status)
			if copies && o.Upstream != nil && o.Upstream.Host == c.h.node.Container {
				out = append(out, cluster.Copy{Address: h.address, Phase: "initializing"})
			}
		}
		return nil
	})
	return out, err
}

// Promote refuses nothing: what it is asked for it does. That it does not lead
// beside another one is for the caller to see to, and is noted where it does.
func (c *connection) Promote(ctx context.Context) error {
	return c.do(ctx, "Session.Promote", func() error {
		if c.server.recovery {
			c.h.promote()
		}
		return nil
	})
}

func (c *connection) Close() {
	c.p.w.mu.Lock()
	defer c.p.w.mu.Unlock()
	c.closed = true
}

type pooler struct{ p *Process }

func (x pooler) b() *bouncer { return x.p.w.pooler }

// poolerAddress is the pooler's on the cluster's network.
const poolerAddress = "10.0.0.100"

func (x pooler) Observe(ctx context.Context) (p cluster.PoolerState, err error) {
	err = x.p.do(ctx, "Pooler.Observe", func() (err error) { p, err = x.b().observe(ctx); return err })
	p.SeenAt = time.Now()
	return p, err
}

func (x pooler) Point(ctx context.Context, t cluster.Targets) error {
	return x.p.do(ctx, "Pooler.Point", func() error { return x.b().point(ctx, t) })
}

func (x pooler) Pause(ctx context.Context, db string) error {
	return x.p.do(ctx, "Pooler.Pause "+db, func() error { return x.b().pause(ctx, db) })
}

func (x pooler) PauseNow(ctx context.Context, db string) error {
	return x.p.do(ctx, "Pooler.PauseNow "+db, func() error { return x.b().pause(ctx, db) })
}

func (x pooler) Resume(ctx context.Context, db string) error {
	return x.p.do(ctx, "Pooler.Resume "+db, func() error { return x.b().resume(ctx, db) })
}

func (x pooler) Kill(ctx context.Context, db string) error {
	return x.p.do(ctx, "Pooler.Kill "+db, func() error { return x.b().kill(ctx, db) })
}

func (x pooler) Drain(ctx context.Context, size int) error {
	return x.p.do(ctx, "Pooler.Drain", func() error {
		return x.b().with(ctx, func() error {
			if size == 0 {
				size = poolSize
			}
			for name, e := range x.b().entries {
				if name != cluster.ProbeEntry && !strings.HasSuffix(name, cluster.ReadOnlySuffix) {
					e.size = size
					e.connections = min(e.connections, max(size, e.active))
				}
			}
			return nil
		})
	})
}

func (x pooler) Load(ctx context.Context, db string) (l cluster.PoolLoad, err error) {
	err = x.p.do(ctx, "Pooler.Load "+db, func() error {
		return x.b().with(ctx, func() error {
			e, err := x.b().entry(db)
			if err == nil {
				l = cluster.PoolLoad{Busy: e.active, Largest: e.connections}
			}
			return err
		})
	})
	return l, err
}

func (x pooler) RenewLease(holder string, databases []string) error {
	return x.p.do(context.Background(), "Pooler.RenewLease", func() error {
		x.p.w.mu.Lock()
		defer x.p.w.mu.Unlock()
		x.b().lease = &node.Lease{Databases: databases, RenewedAt: time.Now(), Holder: holder}
		return nil
	})
}

func (x pooler) RemoveLease() error {
	return x.p.do(context.Background(), "Pooler.RemoveLease", func() error {
		x.p.w.mu.Lock()
		defer x.p.w.mu.Unlock()
		x.b().lease = nil
		return nil
	})
}

func (x pooler) Probe(ctx context.Context, db string) error {
	return x.p.do(ctx, "Pooler.Probe "+db, func() error { return x.b().probe(ctx, db) })
}
