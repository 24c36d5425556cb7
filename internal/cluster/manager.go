package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/wal"
)

// Settings is how a cluster is to be run.
type Settings struct {
	Nodes           []Node
	Preferred       string   // the node that a failback returns to
	PoolerContainer string   // with the cluster's prefix
	Databases       []string // the client databases of the pooler; the first is the probes' too
	Replication     ReplicationMode
	SyncTimeout     time.Duration // sync: how long a dead standby may block commits
	MaxLossBytes    int64         // emergency: accepted where the request says nothing
	MaxLagBytes     int64         // planned: the candidate may lag so much
	MinFreeBytes    int64         // planned: room for segments, a history file and writes on the candidate's volume; an eighth of it on the primary's
	PauseDeadline   time.Duration // how long PAUSE may wait for open transactions
	PauseLimit      time.Duration // how long the clients may be held in all
	Interval        time.Duration // between two observations
	ArchiveCommand  string
}

// Outside is everything that a cluster reaches out of the process for.
type Outside struct {
	Engine  Engine
	Volumes Volumes
	Servers Servers
	Pooler  Pooler
	Redis   func(context.Context) error // a ping
}

// Facts keeps the few things that a restart must know, durably.
type Facts interface {
	PutFact(name string, value any) error
	Fact(name string, value any) (bool, error)
}

// Identity is what the journal knows of the cluster.
type Identity struct {
	SystemID  uint64       `json:"system_id"`
	Primary   string       `json:"primary"`
	Timeline  wal.Timeline `json:"timeline"`
	Epoch     uint64       `json:"epoch"` // of the order by which Primary leads
	ChangedAt time.Time    `json:"changed_at"`
	// Unsynced is set, durably and before it happens, when commits stop
	// waiting for the standby (replication mode sync): from then on it may
	// lack acknowledged commits, until it was in sync again.
	Unsynced bool `json:"unsynced"`
}

const identityFact = "identity"

// A Manager looks after one cluster: it holds the last observation and the
// identity, and starts the operations.
type Manager struct {
	set        Settings
	out        Outside
	operations *operation.Manager
	facts      Facts
	log        *slog.Logger

	view       atomic.Pointer[View]
	viewMu     sync.Mutex          // keeps an observation from putting back an older order
	quietUntil atomic.Int64        // unix nanoseconds: the servers are not asked for observation before
	contacts   map[string]*contact // by node
	inspected  inspections
	late       lateness
	end        context.CancelFunc
	rate       rateMeter
	otherWAL   findings
	stuck      atomic.Pointer[string] // why the start found no primary

	mu       sync.Mutex
	identity Identity
}

// NewManager makes the manager of a cluster and reads its identity.
func NewManager(set Settings, out Outside, operations *operation.Manager, facts Facts, log *slog.Logger) (*Manager, error) {
	ctx, end := context.WithCancel(context.Background())
	m := &Manager{set: set, out: out, operations: operations, facts: facts, log: log, contacts: map[string]*contact{}, end: end}
	if _, err := facts.Fact(identityFact, &m.identity); err != nil {
		return nil, err
	}
	for _, n := range set.Nodes {
		m.contacts[n.Name] = &contact{node: n, servers: out.Servers, ctx: ctx}
	}
	m.view.Store(&View{})
	for _, kind := range []string{KindFailover, KindFailback, KindRejoin, KindStart, KindBootstrap, KindAlign, KindProtect} {
		if err := operations.Register(kind, m.build); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Close ends the standing connections to the servers. Nothing is looked at after.
func (m *Manager) Close() {
	m.end()
	for _, c := range m.contacts {
		c.running.Wait()
		c.release()
	}
}

// Identity is what the journal knows; the zero Identity before the first start.
func (m *Manager) Identity() Identity {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.identity
}

// changeIdentity applies f and makes the result durable before it holds.
func (m *Manager) changeIdentity(f func(*Identity)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.identity
	f(&next)
	if next == m.identity {
		return nil
	}
	if err := m.facts.PutFact(identityFact, next); err != nil {
		return err
	}
	m.identity = next
	return nil
}

// View is the last observation. It never blocks.
func (m *Manager) View() View { return *m.view.Load() }

// Health judges the last observation. It never blocks.
func (m *Manager) Health() Health {
	h := AssessHealth(m.View(), m.Describe(), m.operations.Holding(operation.Cluster), time.Now(), m.set.Interval)
	if why := m.stuck.Load(); why != nil && *why != "" && h.Status == HealthDown {
		h = h.first(bad(ComponentStart, HealthDown, "no-start", *why, "Follow what the detail says; nothing is started until then."))
	}
	return h
}

// Describe is what the journal holds.
func (m *Manager) Describe() Expectation {
	id := m.Identity()
	return Expectation{Primary: id.Primary, Epoch: id.Epoch, Preferred: m.set.Preferred}
}

// Nodes are the cluster's nodes, in the order of the configuration.
func (m *Manager) Nodes() []Node { return m.set.Nodes }

// Interval is the time between two observations.
func (m *Manager) Interval() time.Duration { return m.set.Interval }

func (m *Manager) node(name string) (Node, error) {
	for _, n := range m.set.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, &UnknownNode{Field: "name", Name: name, Known: nodeNames(m.set.Nodes)}
}

func nodeNames(nodes []Node) []string {
	out := make([]string, len(nodes))
	for i, n := range nodes {
		out[i] = n.Name
	}
	return out
}

// others are the nodes that are not called name.
func (m *Manager) others(name string) []Node {
	var out []Node
	for _, n := range m.set.Nodes {
		if n.Name != name {
			out = append(out, n)
		}
	}
	return out
}

// order gives a node an order with an epoch above every one that any node was
// given or reports. It is durable when order returns.
func (m *Manager) order(n Node, o node.Order) (node.Order, error) {
	epoch, err := m.nextEpoch()
	if err != nil {
		return node.Order{}, fmt.Errorf("order %s: %w", n.Name, err)
	}
	o.Epoch = epoch
	if o.Action == "" {
		o.Action = node.ActionNone
	}
	if err := m.knows(n, o.Action); err != nil {
		return node.Order{}, fmt.Errorf("order %s: %w", n.Name, err)
	}
	if err := m.writeOrder(n, o); err != nil {
		return node.Order{}, fmt.Errorf("order %s: %w", n.Name, err)
	}
	m.log.Info("order written", "node", n.Name, "role", o.Role, "action", o.Action, "epoch", o.Epoch)
	return o, nil
}

// knows is an error where n's init is of a version that does not know the action. What
// every init knows is not asked: an order to stop is written while clients are held. An
// init whose status cannot be read has none yet, or its volume is gone.
func (m *Manager) knows(n Node, a node.Action) error {
	if a == node.ActionNone {
		return nil
	}
	s, err := m.out.Volumes.Status(n)
	if err != nil || s.Knows(a) {
		return nil //nolint:nilerr // there is nothing to hold against it
	}
	return fmt.Errorf("its init is of another version and does not know the action %s; make down && make up renews it, which is an outage", a)
}

// writeOrder makes the view say so at once: a load balancer is told that a node
// does not lead from the moment in which its order is withdrawn.
func (m *Manager) writeOrder(n Node, o node.Order) error {
	m.viewMu.Lock()
	defer m.viewMu.Unlock()
	if err := m.out.Volumes.WriteOrder(n, o); err != nil {
		return err
	}
	v := *m.view.Load()
	v.Nodes = slices.Clone(v.Nodes)
	for i := range v.Nodes {
		if v.Nodes[i].Node.Name == n.Name {
			v.Nodes[i].Order = o
		}
	}
	m.view.Store(&v)
	return nil
}

// nextEpoch is above all that the nodes' volumes and the journal know: epochs
// rise over the whole cluster, so that two orders can be told by age. Only one
// controld runs, so reading and adding one is enough.
func (m *Manager) nextEpoch() (uint64, error) {
	highest := m.Identity().Epoch
	for _, n := range m.set.Nodes {
		o, err := m.out.Volumes.Order(n)
		if err != nil {
			return 0, err
		}
		highest = max(highest, o.Epoch)
		// A status that cannot be read belongs to a node whose volume is gone:
		// its init could carry nothing out either.
		if s, err := m.out.Volumes.Status(n); err == nil {
			highest = max(highest, s.Epoch, s.UsedEpoch)
		}
	}
	return highest + 1, nil
}

// quiet keeps the observation from logging in to the servers for a while: a
// login costs the machine more than the steps of a pause do.
func (m *Manager) quiet(d time.Duration) { m.quietUntil.Store(time.Now().Add(d).UnixNano()) }

func (m *Manager) isQuiet(now time.Time) bool { return now.UnixNano() < m.quietUntil.Load() }

// build makes the work of a journalled operation anew, for the daemon's start.
func (m *Manager) build(rec operation.Record, params json.RawMessage) (operation.Runnable, error) {
	switch rec.Kind {
	case KindFailover, KindFailback:
		var r FailoverRequest
		if err := json.Unmarshal(params, &r); err != nil {
			return nil, fmt.Errorf("parameters: %w", err)
		}
		return m.failoverWork(rec.Kind, r), nil
	case KindRejoin, KindStart, KindBootstrap, KindAlign, KindProtect:
		var r nodeRequest
		if err := json.Unmarshal(params, &r); err != nil {
			return nil, fmt.Errorf("parameters: %w", err)
		}
		return m.nodeWork(rec.Kind, r)
	}
	return nil, fmt.Errorf("operations of kind %q are not known to this version", rec.Kind)
}

// The kinds of operation that this package defines.
const (
	KindFailover  = "failover"
	KindFailback  = "failback"
	KindRejoin    = "rejoin"
	KindStart     = "start"
	KindBootstrap = "bootstrap"
	KindAlign     = "align"
)

// A nodeRequest is the request of an operation on one node.
type nodeRequest struct {
	Node   string `json:"node"`
	Method string `json:"method,omitempty"`
	// Asked: a person asked for the rejoin, and knows what is overwritten.
	Asked  bool `json:"asked,omitempty"`
	InitDB bool `json:"initdb,omitempty"`
}

func (m *Manager) nodeWork(kind string, r nodeRequest) (operation.Runnable, error) {
	n, err := m.node(r.Node)
	if err != nil && kind != KindAlign && kind != KindProtect {
		return nil, err
	}
	switch kind {
	case KindRejoin:
		return m.rejoinWork(n, r), nil
	case KindStart, KindBootstrap:
		if r.Method == startAsStandby {
			return m.startStandbyWork(n), nil
		}
		return m.startWork(n, r.InitDB), nil
	case KindAlign:
		return m.alignWork(), nil
	case KindProtect:
		return m.protectWork(r.Method), nil
	}
	return nil, fmt.Errorf("operations of kind %q are not known to this version", kind)
}

// poll asks done until it says yes, fails, or ctx ends.
func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if err := sleep(ctx, every); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A sessionCache keeps one session open to each node for the time of an
// operation. It holds nothing that could not be opened again.
type sessionCache struct {
	servers Servers
	open    map[string]Session
}

// get returns the open session, or logs in.
func (c *sessionCache) get(ctx context.Context, n Node) (Session, error) {
	if s, ok := c.open[n.Name]; ok {
		return s, nil
	}
	s, err := c.servers.Connect(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", n.Name, err)
	}
	if c.open == nil {
		c.open = map[string]Session{}
	}
	c.open[n.Name] = s
	return s, nil
}

// drop closes the node's session; after an error it is worth nothing any more.
func (c *sessionCache) drop(n Node) {
	if s, ok := c.open[n.Name]; ok {
		s.Close()
		delete(c.open, n.Name)
	}
}

func (c *sessionCache) closeAll() {
	for _, s := range c.open {
		s.Close()
	}
	clear(c.open)
}

// position asks n where it stands in the WAL.
func (c *sessionCache) position(ctx context.Context, n Node) (pos Position, err error) {
	err = c.with(ctx, n, func(session Session) (err error) {
		pos, err = session.Position(ctx)
		return err
	})
	return pos, err
}

// with runs f on a session of n, over a new one if the kept one is broken: a
// first error may only say that the server was restarted since.
func (c *sessionCache) with(ctx context.Context, n Node, f func(Session) error) error {
	_, kept := c.open[n.Name]
	s, err := c.get(ctx, n)
	if err != nil {
		return err
	}
	if err = f(s); err == nil {
		return nil
	}
	c.drop(n)
	var refusal *operation.Problem
	if !kept || ctx.Err() != nil || errors.As(err, &refusal) {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	if s, err = c.get(ctx, n); err != nil {
		return err
	}
	if err := f(s); err != nil {
		c.drop(n)
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	return nil
}
