// Package monitor keeps looking: it observes the cluster at intervals and when
// the engine reports something, decides by the pure functions of package
// cluster, and starts operations. It does no work itself, and it never moves
// the primary.
package monitor

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"controld/internal/cluster"
	"controld/internal/operation"
)

// Cluster is what the monitor needs of the cluster.
type Cluster interface {
	Observe(ctx context.Context) cluster.View
	EngineChanged()
	Begin(ctx context.Context) (bool, error)
	Identity() cluster.Identity
	Wanted() cluster.Wanted
	Rejoin(ctx context.Context, r cluster.NodeRequest, by operation.Caller) (operation.Record, error)
	Align(ctx context.Context, reason string, by operation.Caller) (operation.Record, error)
	Provision(ctx context.Context, reason string, by operation.Caller) (operation.Record, error)
	Protect(ctx context.Context, how, reason string, by operation.Caller) (operation.Record, error)
}

// Operations is what the monitor needs of the runner.
type Operations interface {
	Holding(x operation.Resource) []operation.Record
	Wait(ctx context.Context, id string) (operation.Record, error)
	Subscribe(id string) (<-chan operation.Event, func())
}

// Config is how the monitor looks.
type Config struct {
	Interval    time.Duration
	Replication cluster.ReplicationMode
	SyncTimeout time.Duration
	// Events wakes the monitor when the engine reports a change; nil: only the interval does.
	Events <-chan struct{}
}

// A Monitor is one loop over one cluster.
type Monitor struct {
	cfg        Config
	cluster    Cluster
	operations Operations
	log        *slog.Logger

	begun        bool
	beginAfter   time.Time // a start that a person has to settle is not tried all the time
	heard        time.Time // when the synchronous standby last said something, or nobody was waited for
	blockedSince time.Time
	retries      map[cluster.Action]*retry
}

// A retry spaces out the attempts at what keeps failing.
type retry struct {
	after time.Time
	delay time.Duration
}

// Delays between two attempts of the same action that failed.
const (
	firstDelay   = 5 * time.Second
	longestDelay = 5 * time.Minute
)

// self is who asks in the audit.
var self = operation.Caller{Name: "controld", Kind: operation.Daemon}

// New makes a monitor.
func New(cfg Config, c Cluster, ops Operations, log *slog.Logger) *Monitor {
	return &Monitor{cfg: cfg, cluster: c, operations: ops, log: log, retries: map[cluster.Action]*retry{}}
}

// Run observes until ctx ends. Actions run beside it, one at a time, so that a
// long one does not keep it from looking.
func (m *Monitor) Run(ctx context.Context) error {
	ticker := time.NewTicker(m.cfg.Interval)
	defer ticker.Stop()
	ended, cancel := m.operations.Subscribe("")
	defer func() { cancel() }()
	acting := make(chan struct{}, 1)
	finished := make(chan func(), 1)
	m.heard = time.Now() // what was before is not known
	for {
		v := m.cluster.Observe(ctx)
		m.noteBlocked(v)
		select {
		case acting <- struct{}{}:
			if act := m.next(ctx, v); act != nil {
				go func() { finished <- act() }()
			} else {
				<-acting
			}
		default:
		}
	wait:
		select {
		case <-ctx.Done():
			if len(acting) > 0 {
				<-finished
			}
			return nil
		case <-ticker.C:
		case <-m.cfg.Events:
			m.cluster.EngineChanged()
		case settle := <-finished:
			settle()
			<-acting
		case ev, ok := <-ended:
			if !ok { // cut off for being slow: listen again
				cancel()
				ended, cancel = m.operations.Subscribe("")
			} else if !ev.Ended() {
				goto wait
			}
		}
	}
}

// noteBlocked keeps since when commits wait in vain, which is since the standby was
// last heard. How long it has been silent is told by wall clocks: when one steps, or a
// machine was suspended, it seems to be any length. So it is counted from no earlier
// than the last word that was known before, by the monotonic clock. Otherwise two
// healthy nodes would be taken for blocked.
func (m *Monitor) noteBlocked(v cluster.View) {
	silent, blocked := cluster.CommitsBlocked(v)
	heard := time.Now().Add(-silent)
	switch {
	case !blocked:
		m.heard, m.blockedSince = heard, time.Time{}
	case m.blockedSince.IsZero() && heard.Before(m.heard):
		m.blockedSince = m.heard
	case m.blockedSince.IsZero():
		m.blockedSince = heard
	}
}

// next returns what to do now, nil for nothing: the weightiest of what is wanted and
// has not failed just now. The function that it returns does that, in a goroutine of
// its own. The one that this returns in turn notes how it went, back in the loop.
func (m *Monitor) next(ctx context.Context, v cluster.View) func() func() {
	if !m.begun && len(m.operations.Holding(operation.Cluster)) == 0 {
		return m.beginning(ctx)
	}
	// Beside an operation that is resumed, such as a copy of hours, nothing begins. But
	// commits must not wait for a dead synchronous standby meanwhile.
	wanted := m.wanted(v)
	m.forget(v, wanted)
	for _, a := range wanted {
		if r := m.retries[key(a)]; r != nil && time.Now().Before(r.after) {
			continue
		}
		return func() func() {
			ok := m.do(ctx, a)
			return func() { m.settle(key(a), ok) }
		}
	}
	return nil
}

// key is an action as its attempts are counted: the reason may change.
func key(a cluster.Action) cluster.Action {
	a.Reason = ""
	return a
}

// forget drops the attempts at the rejoins that have held. Nothing is wanted of the
// cluster while an operation holds it, so that says nothing of them.
func (m *Monitor) forget(v cluster.View, wanted []cluster.Action) {
	if len(m.operations.Holding(operation.Cluster)) > 0 {
		return
	}
	for _, name := range cluster.Followers(v) {
		tried := cluster.Action{Kind: cluster.KindRejoin, Node: name}
		if !slices.ContainsFunc(wanted, func(a cluster.Action) bool { return key(a) == tried }) {
			delete(m.retries, tried)
		}
	}
}

func (m *Monitor) beginning(ctx context.Context) func() func() {
	if time.Now().Before(m.beginAfter) {
		return nil
	}
	return func() func() {
		begun, err := m.cluster.Begin(ctx)
		if err != nil {
			m.log.Error("cluster not started", "err", err)
		}
		return func() { m.begun, m.beginAfter = begun, time.Now().Add(m.cfg.Interval) }
	}
}

// wanted is what is to be done, the weightiest first, without what an operation that
// runs has in its hands.
func (m *Monitor) wanted(v cluster.View) []cluster.Action {
	id := m.cluster.Identity()
	blockedFor := time.Duration(0)
	if !m.blockedSince.IsZero() {
		blockedFor = time.Since(m.blockedSince)
	}
	var wanted []cluster.Action
	protection := cluster.NextProtection(v, id, m.cfg.Replication, blockedFor, m.cfg.SyncTimeout)
	if protection.Kind != "" && len(m.operations.Holding(operation.Commit)) == 0 {
		wanted = append(wanted, protection)
	}
	if len(m.operations.Holding(operation.Cluster)) > 0 {
		return wanted
	}
	return append(wanted, cluster.NextActions(v, id, m.cluster.Wanted())...)
}

// do starts the action. Only the short ones are awaited here: while a node is
// being rejoined, a dead synchronous standby must still be lifted.
func (m *Monitor) do(ctx context.Context, a cluster.Action) bool {
	var rec operation.Record
	var err error
	switch a.Kind {
	case cluster.KindRejoin:
		rec, err = m.cluster.Rejoin(ctx, cluster.NodeRequest{Node: a.Node, Reason: a.Reason}, self)
	case cluster.KindAlign:
		rec, err = m.cluster.Align(ctx, a.Reason, self)
	case cluster.KindProvision:
		rec, err = m.cluster.Provision(ctx, a.Reason, self)
	case cluster.KindProtect:
		rec, err = m.cluster.Protect(ctx, a.How, a.Reason, self)
	}
	var busy *operation.Busy
	if errors.As(err, &busy) {
		return true // somebody was quicker; look again
	}
	if err != nil {
		m.log.Warn("action refused", "action", a.Kind, "node", a.Node, "how", a.How, "err", err)
		return false
	}
	if a.Kind == cluster.KindRejoin {
		return true
	}
	rec, err = m.operations.Wait(ctx, rec.ID)
	return err == nil && rec.State == operation.Succeeded
}

// settle remembers how an action went. What has succeeded is not repeated before the
// next interval, should the view still ask for it. What has failed is tried more and
// more seldom. So is a rejoin, whose end is not known here: it counts as failed until
// forget finds that it has held.
func (m *Monitor) settle(key cluster.Action, ok bool) {
	if ok && key.Kind != cluster.KindRejoin {
		m.retries[key] = &retry{after: time.Now().Add(m.cfg.Interval)}
		return
	}
	r := m.retries[key]
	if r == nil || time.Since(r.after) > longestDelay {
		r = &retry{}
		m.retries[key] = r
	}
	r.delay = min(max(2*r.delay, firstDelay), longestDelay)
	r.after = time.Now().Add(r.delay)
}
