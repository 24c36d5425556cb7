// Package apitest is a cluster for tests of the API and of what calls it. It
// behaves: a failover moves the primary, a second operation is refused while
// one runs, a repeated key joins the first. It has no servers.
package apitest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"controld/internal/api/gen"
	"controld/internal/cluster"
	"controld/internal/health"
	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/rights"
	"controld/internal/wal"
)

// Interval is the observation interval that the fake goes by when not told otherwise.
const Interval = time.Second

// A Fake is the cluster and its operations.
type Fake struct {
	mu          sync.Mutex
	calls       []string
	names       []string // the nodes
	primary     string
	withdrawn   bool
	at          time.Time // of the observation
	records     []operation.Record
	done        map[string]chan struct{}
	keys        map[string]bound
	subscribers map[chan operation.Event]string
	seq         uint64

	// Interval is the observation interval.
	Interval time.Duration
	// Gate, when not nil, holds each operation until it is closed.
	Gate chan struct{}
	// Refusal, when not nil, refuses the next operations.
	Refusal *operation.Problem
	// End, when not empty, is how the next operations end. Incomplete is no end:
	// such a one stays open, as if it were retried, until it is cancelled.
	End operation.State
	// Err, when not nil, is what starting an operation returns.
	Err error
	// Panic makes View panic.
	Panic bool
	// BackupList, OneBackup and Cycle are what the commands of backups answer; nil: there is none.
	BackupList, OneBackup, Cycle any
	// RetentionPlan and BackupUsage are what the other commands of backups answer.
	RetentionPlan, BackupUsage any
	// Orphans are the records of the catalogue that tell of no backup.
	Orphans []gen.Orphan
	// Parts are what capabilities say of their health.
	Parts []health.Component
	// Last is what the last operation was asked for, and by whom.
	Last   any
	Caller operation.Caller
}

type bound struct {
	key operation.Idempotency
	id  string
}

// Steps are the steps that the fake's operations take: some of a planned failover's.
var Steps = []string{"pause pooler", "stop old primary", "promote", "resume pooler"}

// New makes a cluster of postgres_master, which leads, and postgres_slave.
func New() *Fake {
	return &Fake{
		names: []string{"postgres_master", "postgres_slave"}, primary: "postgres_master", at: time.Now(), Interval: Interval,
		done: map[string]chan struct{}{}, keys: map[string]bound{}, subscribers: map[chan operation.Event]string{},
	}
}

// Nodes are the configured nodes.
func (f *Fake) Nodes() []cluster.Node {
	var nodes []cluster.Node
	for _, name := range f.names {
		nodes = append(nodes, cluster.Node{Name: name, Container: name, Dir: "/pg/" + name, Port: 5432})
	}
	return nodes
}

// Calls are the calls that change something, in order.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Observed sets when the last observation was made.
func (f *Fake) Observed(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = at
}

// Withdraw takes the primary's order away, or gives it back.
func (f *Fake) Withdraw(yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.withdrawn = yes
}

// SetPrimary moves the primary; an empty name leaves none.
func (f *Fake) SetPrimary(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.primary = name
}

// View is the cluster as it is.
func (f *Fake) View() cluster.View {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Panic {
		panic("asked to")
	}
	v := cluster.View{At: f.at}
	if f.at.IsZero() {
		return v
	}
	for i, n := range f.Nodes() {
		v.Nodes = append(v.Nodes, f.state(n, fmt.Sprintf("172.20.0.%d", i+2)))
	}
	on := cluster.Container{Exists: true, Running: true, Connected: true, Health: "running", Address: "172.20.0.9"}
	v.Pooler = cluster.PoolerState{SeenAt: f.at, Container: on, Databases: []cluster.PoolerDatabase{
		{Name: "imdb", Host: f.address(f.primary)}, {Name: "imdb_ro", Host: "172.20.0.3"},
	}}
	return v
}

func (f *Fake) address(name string) string {
	if i := slices.Index(f.names, name); i >= 0 {
		return fmt.Sprintf("172.20.0.%d", i+2)
	}
	return ""
}

func (f *Fake) state(n cluster.Node, address string) cluster.NodeState {
	s := cluster.NodeState{
		Node: n, SeenAt: f.at, Locked: cluster.Yes,
		Container: cluster.Container{Exists: true, Running: true, Connected: true, Health: "running", Address: address},
		Init:      node.Status{State: node.StateRunning, Epoch: 3},
		Order:     node.Order{Epoch: 3, Role: node.RoleStandby, Action: node.ActionNone},
	}
	const flushed = wal.LSN(0x5000148)
	if n.Name == f.primary {
		s.Order.Role = node.RolePrimary
		if f.withdrawn {
			s.Order.Role = node.RoleNone
		}
		s.Server = &cluster.Server{Timeline: 3, SystemID: 7350112233445566778, Flushed: flushed, Rights: rights.Version}
		for _, other := range f.names {
			if other != f.primary {
				s.Server.Senders = append(s.Server.Senders, cluster.Sender{Application: other, State: "streaming", SyncState: "async"})
				s.Server.Slots = append(s.Server.Slots, cluster.Slot{Name: other, Active: true, Restart: flushed, WALStatus: "reserved"})
			}
		}
		return s
	}
	s.Server = &cluster.Server{
		InRecovery: true, Timeline: 3, SystemID: 7350112233445566778, Received: flushed, Replayed: flushed - 0x100,
		Receiver: &cluster.Receiver{Status: "streaming", Host: f.primary, Slot: n.Name},
	}
	return s
}

// Health judges the view as the daemon does.
func (f *Fake) Health() health.Report {
	return cluster.AssessHealth(f.View(), f.Describe(), f.open(), time.Now(), f.Interval).With(f.Parts...)
}

// Redis answers.
func (f *Fake) Redis() health.Part {
	f.mu.Lock()
	defer f.mu.Unlock()
	return health.Part{SeenAt: f.at, OK: true}
}

// Describe is what the journal would hold.
func (f *Fake) Describe() cluster.Expectation {
	f.mu.Lock()
	defer f.mu.Unlock()
	return cluster.Expectation{Primary: f.primary, Epoch: 3, Preferred: "postgres_master"}
}

func (f *Fake) open() []operation.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	var open []operation.Record
	for _, r := range f.records {
		if r.Open() {
			open = append(open, r)
		}
	}
	return open
}

// Failover moves the primary to the target or the other node.
func (f *Fake) Failover(_ context.Context, r cluster.FailoverRequest, by operation.Caller) (operation.Record, error) {
	if err := r.Validate(f.Nodes()); err != nil {
		return operation.Record{}, err
	}
	return f.start("failover", "planned", r.Reason, r, by, func() map[string]any { return f.move(r.Target) })
}

// Failback moves it to postgres_master.
func (f *Fake) Failback(_ context.Context, r cluster.FailbackRequest, by operation.Caller) (operation.Record, error) {
	if err := r.Validate(); err != nil {
		return operation.Record{}, err
	}
	return f.start("failback", "planned", r.Reason, r, by, func() map[string]any { return f.move("postgres_master") })
}

// StartNode changes nothing.
func (f *Fake) StartNode(_ context.Context, r cluster.NodeRequest, by operation.Caller) (operation.Record, error) {
	if err := r.Validate(f.Nodes()); err != nil {
		return operation.Record{}, err
	}
	return f.start("start", "", r.Reason, r, by, func() map[string]any { return map[string]any{"already": r.Node + " runs already"} })
}

// Rejoin changes nothing.
func (f *Fake) Rejoin(_ context.Context, r cluster.NodeRequest, by operation.Caller) (operation.Record, error) {
	if err := r.Validate(f.Nodes()); err != nil {
		return operation.Record{}, err
	}
	return f.start("rejoin", r.Method, r.Reason, r, by, func() map[string]any { return map[string]any{"method": "follow"} })
}

// Plan is the dry run of Failover.
func (f *Fake) Plan(_ context.Context, r cluster.FailoverRequest) (cluster.Plan, error) {
	if err := r.Validate(f.Nodes()); err != nil {
		return cluster.Plan{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Last = r
	if f.Err != nil {
		return cluster.Plan{}, f.Err
	}
	ok := f.Refusal == nil
	streams := operation.Check{Name: "candidate-streams", OK: ok, Detail: "it streams", Numbers: map[string]any{"lag_bytes": 0}}
	return cluster.Plan{
		Kind: "failover", Mode: "planned", From: f.primary, To: f.target(r.Target), Steps: Steps,
		Checks: []operation.Check{streams}, WouldRun: ok, Refusal: f.Refusal,
	}, nil
}

// PlanFailback is the dry run of Failback.
func (f *Fake) PlanFailback(ctx context.Context, r cluster.FailbackRequest) (cluster.Plan, error) {
	p, err := f.Plan(ctx, cluster.FailoverRequest{Target: "postgres_master", Reason: r.Reason})
	p.Kind = "failback"
	if p.From == p.To {
		p.Steps = nil // it leads already
	}
	return p, err
}

func (f *Fake) target(name string) string {
	for _, n := range f.names {
		if name == "" && n != f.primary {
			return n
		}
	}
	return name
}

func (f *Fake) move(target string) map[string]any {
	from, to := f.primary, f.target(target)
	if from == to {
		return map[string]any{"already": to + " leads already"}
	}
	f.primary = to
	return map[string]any{"from": from, "to": to, "pause_ms": 290.4, "lost_bytes": 0, "estimate": false}
}

func (f *Fake) start(kind, mode, reason string, asked any, by operation.Caller, act func() map[string]any) (operation.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, kind)
	f.Last, f.Caller = asked, by
	if f.Err != nil {
		return operation.Record{}, f.Err
	}
	if joined, err := f.join(by); err != nil || joined.ID != "" {
		return joined, err
	}
	for _, r := range f.records {
		if r.Open() {
			return operation.Record{}, &operation.Busy{Running: r}
		}
	}
	rec := operation.Record{
		ID: fmt.Sprintf("01954d0e-7b1a-7c3e-9f00-%012d", len(f.records)+1), Kind: kind, Mode: mode, State: operation.Running,
		RequestedBy: by.Name, Reason: reason, StartedAt: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Steps: []operation.StepRecord{},
	}
	if by.Idempotency != nil {
		f.keys[by.Idempotency.Key] = bound{*by.Idempotency, rec.ID}
	}
	if f.Refusal != nil {
		rec.State, rec.Problem, rec.EndedAt = operation.Refused, f.Refusal, rec.StartedAt
		f.records = append(f.records, rec)
		return rec, f.Refusal
	}
	f.records = append(f.records, rec)
	f.done[rec.ID] = make(chan struct{})
	go f.work(len(f.records)-1, f.Gate, f.End, act)
	return rec, nil
}

func (f *Fake) join(by operation.Caller) (operation.Record, error) {
	if by.Idempotency == nil {
		return operation.Record{}, nil
	}
	first, ok := f.keys[by.Idempotency.Key]
	if !ok {
		return operation.Record{}, nil
	}
	had, has := first.key, by.Idempotency
	if had.Caller != has.Caller || had.Path != has.Path || !bytes.Equal(had.Body, has.Body) {
		return operation.Record{}, operation.ErrKeyReused
	}
	return f.find(first.id)
}

// work goes through the steps and ends the operation.
func (f *Fake) work(at int, gate chan struct{}, end operation.State, act func() map[string]any) {
	if gate != nil {
		<-gate
	}
	for i, name := range Steps {
		f.change(at, "step", name, func(r *operation.Record) {
			r.Steps = append(r.Steps, operation.StepRecord{
				Name: name, State: operation.StepDone,
				StartedAt: r.StartedAt.Add(time.Duration(i) * time.Second), Duration: 12500 * time.Microsecond,
			})
		})
	}
	f.change(at, "operation", "", func(r *operation.Record) {
		if r.State != operation.Running { // cancelled meanwhile
			return
		}
		r.State = operation.Succeeded
		if end != "" {
			r.State = end
			r.Problem = operation.Refuse("not-leading", map[string]any{"waited_ms": 5000}, "it does not lead after 5 s")
		} else {
			r.Result = act()
		}
		if r.State == operation.Incomplete {
			return
		}
		r.EndedAt = r.StartedAt.Add(1900 * time.Millisecond)
	})
}

func (f *Fake) change(at int, typ, step string, do func(*operation.Record)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &f.records[at]
	do(r)
	f.seq++
	shown := *r
	shown.Steps = slices.Clone(r.Steps)
	for ch, id := range f.subscribers {
		if id == "" || id == r.ID {
			ch <- operation.Event{Seq: f.seq, At: r.StartedAt, Type: typ, Step: step, Record: shown}
		}
	}
	if typ == "operation" && r.State != operation.Running {
		select {
		case <-f.done[r.ID]:
		default:
			close(f.done[r.ID])
		}
	}
}

func (f *Fake) find(id string) (operation.Record, error) {
	for _, r := range f.records {
		if r.ID == id {
			r.Steps = slices.Clone(r.Steps)
			return r, nil
		}
	}
	return operation.Record{}, operation.ErrNotFound
}

// Get returns one operation.
func (f *Fake) Get(id string) (operation.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.find(id)
}

// List returns them, newest first.
func (f *Fake) List(filter operation.Filter) (recs []operation.Record, next string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Last = filter
	for _, r := range slices.Backward(f.records) {
		if filter.Kind != "" && r.Kind != filter.Kind ||
			filter.State != "" && r.State != filter.State ||
			filter.After != "" && r.ID >= filter.After {
			continue
		}
		if filter.Limit > 0 && len(recs) == filter.Limit {
			return recs, recs[len(recs)-1].ID, nil
		}
		recs = append(recs, r)
	}
	return recs, "", nil
}

// Wait returns when the operation is no longer running.
func (f *Fake) Wait(ctx context.Context, id string) (operation.Record, error) {
	f.mu.Lock()
	done, ok := f.done[id]
	f.mu.Unlock()
	if ok {
		select {
		case <-done:
		case <-ctx.Done():
			return operation.Record{}, ctx.Err()
		}
	}
	return f.Get(id)
}

// Cancel ends a running operation at once; an incomplete one is given up.
func (f *Fake) Cancel(_ context.Context, id string, by operation.Caller) (operation.Record, error) {
	f.mu.Lock()
	f.calls = append(f.calls, "cancel")
	f.Caller = by
	at := slices.IndexFunc(f.records, func(r operation.Record) bool { return r.ID == id })
	if at < 0 {
		f.mu.Unlock()
		return operation.Record{}, operation.ErrNotFound
	}
	ended := !f.records[at].Open()
	f.mu.Unlock()
	if ended {
		return operation.Record{}, fmt.Errorf("operation %s: %w", id, operation.ErrEnded)
	}
	f.change(at, "operation", "", func(r *operation.Record) {
		if r.State != operation.Incomplete {
			r.State = operation.Cancelled
		}
		r.EndedAt = r.StartedAt.Add(1900 * time.Millisecond)
	})
	return f.Get(id)
}

// Subscribe sends what changes from now on.
func (f *Fake) Subscribe(id string) (<-chan operation.Event, func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan operation.Event, 64)
	f.subscribers[ch] = id
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.subscribers, ch)
	}
}

// Subscribers counts who listens.
func (f *Fake) Subscribers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.subscribers)
}
