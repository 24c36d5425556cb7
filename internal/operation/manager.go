package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

// A Manager runs operations, one goroutine each.
type Manager struct {
	journal  *Journal
	table    Table
	log      *slog.Logger
	ctx      context.Context // ends, with the cause ErrStopping, when operations must stop
	stop     context.CancelCauseFunc
	running  sync.WaitGroup
	saving   sync.WaitGroup // of what is unsaved
	builders map[string]Builder

	mu       sync.Mutex
	stopping bool
	runs     map[string]*run // open operations by ID
	// left are those that another process left open, until Resume takes them up. They
	// hold their claims like those that run.
	left     []entry
	releases uint64        // how often claims have ended
	changed  chan struct{} // closed, and made anew, when claims end
	// unsaved are those that have ended, and the disk has refused to note it so far.
	unsaved     map[string]Record
	subscribers map[*subscriber]struct{}
	seq         uint64
	holding     map[*run]time.Time // those that have clients waiting, and since when
	// unbuilt are those of left that this version cannot build.
	unbuilt map[string]bool
}

// A Builder makes the work of a record anew from its parameters, so that a
// restarted daemon can go on with it.
type Builder func(Record, json.RawMessage) (Runnable, error)

// NewManager makes a manager on a journal. What the journal has open holds its
// claims, by the table, from now on; Resume goes on with it.
func NewManager(j *Journal, table Table, log *slog.Logger) (*Manager, error) {
	if err := table.Check(); err != nil {
		return nil, err
	}
	left, err := j.open()
	if err != nil {
		return nil, err
	}
	if j.setAside != nil {
		log.Error("checkpoints begin anew: their file is broken, and was set aside", "err", j.setAside)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	return &Manager{
		journal: j, table: table, log: log, ctx: ctx, stop: stop, builders: map[string]Builder{},
		runs: map[string]*run{}, left: left, changed: make(chan struct{}), unsaved: map[string]Record{},
		subscribers: map[*subscriber]struct{}{}, holding: map[*run]time.Time{}, unbuilt: map[string]bool{},
	}, nil
}

// Register tells how operations of a kind are built, before any is started or
// resumed. A kind that the table of claims lacks would exclude nothing, and is an
// error.
func (m *Manager) Register(kind string, build Builder) error {
	if !m.table.has(kind) {
		return fmt.Errorf("operations of kind %q: the table of claims has no row for them", kind)
	}
	if m.builders[kind] != nil {
		return fmt.Errorf("operations of kind %q are registered twice", kind)
	}
	m.builders[kind] = build
	return nil
}

// Start begins an operation. It returns when that is prepared, or when it waits for
// another for as long as that takes. It returns the running record; or a refused one
// and the *Problem that refused it; or, when nothing was begun, an error (*Busy,
// ErrKeyReused, ErrStopping). A repeated idempotency key returns the operation that it
// began. When ctx ends Start returns, and the operation goes on.
func (m *Manager) Start(ctx context.Context, spec Spec, work Runnable) (Record, error) {
	r, bound, err := m.admit(spec)
	if err != nil {
		return Record{}, err
	}
	if r == nil { // the key's operation
		return m.joined(bound)
	}
	begun := make(chan error, 2)
	go func() {
		defer m.running.Done()
		m.work(r, work, begun)
	}()
	select {
	case err := <-begun:
		if errors.As(err, new(*Busy)) {
			return Record{}, err
		}
		return r.snapshot(), err
	case <-ctx.Done():
		return r.snapshot(), nil
	}
}

// admit makes the run, or returns the ID of the operation that the key in spec is
// bound to already. A request that is refused in every mode is refused here.
func (m *Manager) admit(spec Spec) (admitted *run, bound string, err error) {
	if m.builders[spec.Kind] == nil {
		return nil, "", fmt.Errorf("operations of kind %q are not registered", spec.Kind)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, "", fmt.Errorf("operation id: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopping {
		return nil, "", ErrStopping
	}
	key := spec.Caller.Idempotency
	if key != nil {
		known := func(id string) bool { return m.runs[id] != nil }
		bound, err := m.journal.bindKey(*key, id.String(), time.Now(), known)
		if err != nil {
			return nil, "", err
		}
		if bound != "" {
			return nil, bound, nil
		}
	}
	rec := spec.record(id.String(), Running)
	rec.Checks, rec.Follows = spec.Checks, spec.Follows
	r := m.newRun(entry{Params: spec.Params, Record: rec, Key: key, CancelRunning: spec.CancelRunning})
	req := request{kind: spec.Kind, by: rec.CallerKind, cancelRunning: spec.CancelRunning}
	if running := m.refusedAnyLocked(req); running != nil {
		refusal := m.busy(*running)
		m.refuseLocked(r, refusal)
		return nil, "", refusal
	}
	m.runs[r.id] = r
	m.running.Add(1)
	return r, "", nil
}

// refuseLocked ends an attempt that another operation excludes. Its key is free:
// nothing was begun. m.mu is held.
func (m *Manager) refuseLocked(r *run, refusal *Busy) {
	r.mu.Lock()
	rec := &r.e.Record
	rec.State, rec.EndedAt, rec.WaitsFor, rec.Follows = Refused, time.Now().UTC(), "", ""
	rec.Problem = Refuse("operation-running", map[string]any{"operation": refusal.Running.ID}, "%s", refusal.Error())
	ended := r.entryLocked()
	ended.Waiting = false
	r.mu.Unlock()
	m.freeKey(r)
	if err := m.journal.put(ended); err != nil {
		r.log.Error("journal refused the refusal of the operation", "err", err)
		m.saveLaterLocked(ended)
	}
	m.publishLocked(Event{Type: EventOperation, ID: r.id, Record: ended.Record})
}

// freeKey unbinds the key of an operation that was never begun. Where the disk refuses
// that, the key is bound to its refusal until it is forgotten.
func (m *Manager) freeKey(r *run) {
	r.mu.Lock()
	key := r.e.Key
	r.mu.Unlock()
	if key == nil {
		return
	}
	if err := m.journal.unbindKey(*key); err != nil {
		r.log.Error("idempotency key not freed", "err", err)
	}
}

func (m *Manager) joined(id string) (Record, error) {
	rec, err := m.Get(id)
	if err != nil {
		return Record{}, err
	}
	if rec.State == Refused {
		return rec, rec.Problem
	}
	return rec, nil
}

// work is the life of one operation. begun is told once how its beginning went.
func (m *Manager) work(r *run, work Runnable, begun chan<- error) {
	defer close(r.returned)
	err := m.acquire(r, work, func() { begun <- nil })
	if busy := new(*Busy); errors.As(err, busy) {
		work.close()
		m.endBusy(r, *busy)
		begun <- *busy
		return
	}
	var p Prepared
	if err == nil {
		err = guarded(r.log, func() (err error) { p, err = work.prepare(r.ctx, r); return err })
		r.prepared(p)
	}
	if cause := context.Cause(r.ctx); cause != nil { // what it saw since is of no account
		err = cause
	}
	if err == nil && p.Already == "" {
		err = m.begin(r)
	}
	switch {
	case errors.Is(err, ErrStopping):
		work.close()
		m.endStopped(r)
		begun <- ErrStopping
	case err != nil:
		m.finish(r, work, r.failBegin(err))
		begun <- r.snapshot().Problem
	case p.Already != "":
		r.already(p.Already)
		m.finish(r, work, Succeeded)
		begun <- nil
	default:
		begun <- nil
		m.finish(r, work, work.execute(r.ctx, r))
	}
}

// endStopped leaves an operation that was not begun when controld stopped. If the
// journal knows that it waits, the next start goes on waiting. Of any other there is no
// trace, and its key is free.
func (m *Manager) endStopped(r *run) {
	if !r.waitJournalled() {
		m.freeKey(r)
	}
	r.leave()
	r.ended()
}

// begin journals that the first step may begin. If the operation follows another, that
// one's record gets to know by which.
func (m *Manager) begin(r *run) error {
	if err := r.entry(0, nil); err != nil {
		return err
	}
	if follows := r.snapshot().Follows; follows != "" {
		return m.journal.link(follows, r.id)
	}
	return nil
}

// endBusy ends an operation that another one refuses, after it had waited for it.
func (m *Manager) endBusy(r *run, refusal *Busy) {
	m.mu.Lock()
	m.refuseLocked(r, refusal)
	delete(m.runs, r.id)
	m.mu.Unlock()
	r.ended()
}

// finish gives back what the work held before anybody is told that it ended.
func (m *Manager) finish(r *run, work Runnable, state State) {
	work.close()
	r.end(state)
}

// Resume goes on with every operation that another process left open: forward where
// its point of no return is passed, back where it is not. They ran side by side, and
// do so again; those that may have clients waiting begin first. Resume returns when all
// have ended, or when ctx has. An operation of another version, which this one cannot
// build, keeps its claims until somebody cancels it.
func (m *Manager) Resume(ctx context.Context) error {
	m.mu.Lock()
	left := slices.Clone(m.left)
	m.mu.Unlock()
	slices.SortStableFunc(left, func(a, b entry) int { return m.rank(a) - m.rank(b) })
	var errs []error
	var ids []string
	for _, e := range left {
		if err := m.takeUp(e); err != nil {
			m.log.Error("operation cannot be resumed, and keeps what it claims until it is cancelled",
				"operation", e.Record.ID, "kind", e.Record.Kind, "err", err)
			errs = append(errs, fmt.Errorf("resume operation %s: %w", e.Record.ID, err))
			continue
		}
		ids = append(ids, e.Record.ID)
	}
	for _, id := range ids {
		if _, err := m.Wait(ctx, id); err != nil {
			errs = append(errs, fmt.Errorf("resume operation %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// rank sorts what may have clients waiting before the rest.
func (m *Manager) rank(e entry) int {
	if m.table.row(e.Record.Kind, e.Record.Mode).HoldsClients {
		return 0
	}
	return 1
}

// build makes the work of an entry anew.
func (m *Manager) build(e entry) (Runnable, error) {
	rec := e.Record
	if rec.Kind == KindCleanup { // the work is that of what it cleans up after
		rec.Kind, rec.Mode = rec.Mode, ""
	}
	build := m.builders[rec.Kind]
	if build == nil {
		return nil, fmt.Errorf("operations of kind %q are not known to this version", rec.Kind)
	}
	return build(rec, e.Params)
}

// takeUp begins to go on with one that was left open.
func (m *Manager) takeUp(e entry) error {
	work, err := m.build(e)
	m.mu.Lock()
	if err != nil {
		m.unbuilt[e.Record.ID] = true
		m.mu.Unlock()
		return err
	}
	at := slices.IndexFunc(m.left, func(x entry) bool { return x.Record.ID == e.Record.ID })
	if at < 0 || m.stopping { // cancelled meanwhile
		m.mu.Unlock()
		return nil
	}
	m.left = slices.Delete(m.left, at, at+1)
	r := m.newRun(e)
	if !e.Waiting {
		row := m.table.row(e.Record.Kind, e.Record.Mode)
		r.held = &row
	}
	m.runs[r.id] = r
	m.running.Add(1)
	m.mu.Unlock()
	m.log.Info("operation resumed", "operation", r.id, "kind", e.Record.Kind, "reached", e.Reached, "waiting", e.Waiting)
	go func() {
		defer m.running.Done()
		if !e.Waiting || !work.forward() { // work does it otherwise
			defer close(r.returned)
		}
		switch {
		case e.Record.Kind == KindCleanup:
			m.finish(r, work, work.cleanUp(r.ctx, r))
		case e.Waiting && work.forward():
			m.work(r, work, make(chan error, 2))
		case e.Waiting:
			m.finish(r, work, r.fail(Undone, errors.New("controld ended while it waited for another operation; nothing was touched")))
		default:
			m.finish(r, work, work.resume(r.ctx, r))
		}
	}()
	return nil
}

// Get returns an operation as it stands.
func (m *Manager) Get(id string) (Record, error) {
	m.mu.Lock()
	r, open := m.runs[id]
	ended, unsaved := m.unsaved[id]
	m.mu.Unlock()
	switch {
	case open:
		return r.snapshot(), nil
	case unsaved:
		return ended, nil
	}
	e, err := m.journal.get(id)
	return e.Record, err
}

// List returns what f selects, newest first, open operations as they stand,
// and the ID to go on after when there are more.
func (m *Manager) List(f Filter) ([]Record, string, error) {
	records, next, err := m.journal.list(f)
	for i := range records {
		if live, err := m.Get(records[i].ID); err == nil {
			records[i] = live
		}
	}
	// The journal may be behind what was asked for.
	records = slices.DeleteFunc(records, func(r Record) bool { return f.State != "" && r.State != f.State })
	return records, next, err
}

// Open returns the open operations, oldest first. Whether one is in another's way
// is what Holding says.
func (m *Manager) Open() []Record {
	m.mu.Lock()
	out := []Record{}
	for _, e := range m.left {
		out = append(out, e.Record)
	}
	for _, r := range m.runs {
		out = append(out, r.snapshot())
	}
	m.mu.Unlock()
	slices.SortFunc(out, func(a, b Record) int { return a.StartedAt.Compare(b.StartedAt) })
	return out
}

// Wait returns the operation when it has ended, or, with its state, when it is
// incomplete: the work goes on, but not soon.
func (m *Manager) Wait(ctx context.Context, id string) (Record, error) {
	m.mu.Lock()
	r, open := m.runs[id]
	m.mu.Unlock()
	if !open {
		return m.Get(id)
	}
	select {
	case <-r.settled:
		return r.snapshot(), nil
	case <-ctx.Done():
		return r.snapshot(), fmt.Errorf("wait for operation %s: %w", id, ctx.Err())
	}
}

// Cancel asks an open operation to stop. Before its point of no return it is
// undone; past it, it is given up as it stands.
func (m *Manager) Cancel(ctx context.Context, id string, by Caller) (Record, error) {
	m.log.Info("operation cancelled", "operation", id, "by", by.Name)
	return m.cancel(ctx, id, errCancelled)
}

func (m *Manager) cancel(ctx context.Context, id string, why *cancelled) (Record, error) {
	r, err := m.takenUp(ctx, id)
	switch {
	case errors.Is(err, ErrEnded):
		rec, getErr := m.Get(id)
		return rec, errors.Join(err, getErr)
	case err != nil:
		return Record{}, err
	case r == nil:
		return m.forsake(id, why)
	}
	if done, rec, err := m.letGo(r, why); done || err != nil {
		return rec, err
	}
	r.cancel(why)
	select {
	case <-r.done:
	case <-ctx.Done():
	}
	return r.snapshot(), nil
}

// takenUp is the run of an open operation. For one that another process left it waits
// until that is resumed. It is nil where this version cannot resume it.
func (m *Manager) takenUp(ctx context.Context, id string) (*run, error) {
	for {
		m.mu.Lock()
		r, runs := m.runs[id]
		left := slices.ContainsFunc(m.left, func(e entry) bool { return e.Record.ID == id })
		unbuilt := m.unbuilt[id]
		m.mu.Unlock()
		switch {
		case runs:
			return r, nil
		case left && unbuilt:
			return nil, nil //nolint:nilnil // there is none, and that is no error
		case !left:
			rec, err := m.Get(id)
			if err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("operation %s is %s: %w", id, rec.State, ErrEnded)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("operation %s is about to be resumed; try again: %w", id, ctx.Err())
		}
	}
}

// forsake ends an operation that another process left open and that this version does
// not know how to undo.
func (m *Manager) forsake(id string, why *cancelled) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := slices.IndexFunc(m.left, func(e entry) bool { return e.Record.ID == id })
	if at < 0 {
		return Record{}, fmt.Errorf("operation %s: %w", id, ErrEnded)
	}
	e := m.left[at]
	e.Record.State, e.Record.EndedAt = Incomplete, time.Now().UTC()
	e.Record.Problem = asProblem(Incomplete,
		fmt.Errorf("%w; this version of controld does not know how to undo it, and left it as it stands", why))
	if err := m.journal.put(e); err != nil {
		return Record{}, err
	}
	m.left = slices.Delete(m.left, at, at+1)
	m.releasedLocked()
	m.publishLocked(Event{Type: EventOperation, ID: id, Record: e.Record})
	return e.Record, nil
}

// Stop ends the manager. Nothing new begins. What waits, or can be gone on with later,
// is left at once. What else runs has until ctx ends to finish; then it is undone, or,
// past its point of no return, left open in the journal.
func (m *Manager) Stop(ctx context.Context) error {
	m.mu.Lock()
	m.stopping = true
	for _, r := range m.runs {
		if held := r.claims(); held == nil || held.Restartable || held.Kind == KindCleanup {
			r.cancel(ErrStopping)
		}
	}
	m.mu.Unlock()
	ended := make(chan struct{})
	go func() { m.running.Wait(); close(ended) }()
	select {
	case <-ended:
		m.stop(ErrStopping)
		m.saving.Wait()
		return nil
	case <-ctx.Done():
	}
	m.stop(ErrStopping)
	select {
	case <-ended:
		m.saving.Wait()
		return nil
	case <-time.After(undoTimeout):
		return errors.New("operations did not stop")
	}
}

// restAtMost bounds how long an operation that has clients waiting keeps others from
// the disk. Every pause is shorter.
const restAtMost = 30 * time.Second

// holdsClients notes whether r has clients waiting.
func (m *Manager) holdsClients(r *run, yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, before := m.holding[r]
	switch {
	case yes && !before:
		m.holding[r] = time.Now()
	case !yes && before:
		delete(m.holding, r)
	}
}

// awaitRelease waits while an operation other than r has clients waiting: that one's
// entries must not queue behind others at the disk.
func (m *Manager) awaitRelease(ctx context.Context, r *run) error {
	for m.othersHold(r) {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (m *Manager) othersHold(r *run) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for other, since := range m.holding {
		if other != r && time.Since(since) < restAtMost {
			return true
		}
	}
	return false
}

// maintainEvery is how often the audit is pruned.
const maintainEvery = time.Hour

// pruneAtOnce bounds one transaction, for which others wait.
const pruneAtOnce = 500

// Maintain prunes the audit and forgets checkpoints that nobody has any more, now and
// then until ctx ends.
func (m *Manager) Maintain(ctx context.Context, keep Retention) {
	for {
		if err := m.tidy(ctx, keep); err != nil {
			m.log.Warn("audit not pruned", "err", err)
		}
		select {
		case <-time.After(maintainEvery):
		case <-ctx.Done():
			return
		}
	}
}

func (m *Manager) tidy(ctx context.Context, keep Retention) error {
	ids, err := m.journal.dispensable(keep, time.Now())
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(ids, pruneAtOnce) {
		if err := m.awaitRelease(ctx, nil); err != nil {
			return nil // controld stops; it is done after the next start
		}
		if err := m.journal.forget(batch); err != nil {
			return err
		}
	}
	if len(ids) > 0 {
		m.log.Info("audit pruned", "operations", len(ids))
	}
	// These are asked for before the open operations: what begins in between has then
	// no checkpoints here that could be forgotten.
	names, err := m.journal.withCheckpoints()
	if err != nil || len(names) == 0 {
		return err
	}
	entries, err := m.journal.open()
	if err != nil {
		return err
	}
	open := map[string]bool{}
	for _, e := range entries {
		open[e.Record.ID] = true
		if e.Record.Kind == KindCleanup {
			open[e.Record.Follows] = true
		}
	}
	for _, name := range names {
		if !open[name] {
			err = errors.Join(err, m.journal.dropCheckpointsOf(name))
		}
	}
	return err
}

// saveEvery is how often a disk that refused the end of an operation is tried.
const saveEvery = time.Second

// saveLater keeps the end of an operation, which the disk refused, until the
// disk takes it or the process ends; then the operation is found open.
func (m *Manager) saveLater(e entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saveLaterLocked(e)
}

func (m *Manager) saveLaterLocked(e entry) {
	id := e.Record.ID
	m.unsaved[id] = e.Record
	m.saving.Add(1)
	go func() {
		defer m.saving.Done()
		for stopping := false; !stopping; {
			select {
			case <-m.ctx.Done():
				stopping = true // and it is tried once more
			case <-time.After(saveEvery):
			}
			if m.journal.put(e) == nil {
				m.log.Info("end of the operation journalled after all", "operation", id)
				m.mu.Lock()
				delete(m.unsaved, id)
				m.mu.Unlock()
				return
			}
		}
	}()
}

type subscriber struct {
	id     string // of one operation; empty: all
	events chan Event
}

// Subscribe returns the events of one operation (of all when id is empty) from
// now on. A subscriber that does not keep up is cut off: its channel is closed.
func (m *Manager) Subscribe(id string) (events <-chan Event, cancel func()) {
	s := &subscriber{id: id, events: make(chan Event, 256)}
	m.mu.Lock()
	m.subscribers[s] = struct{}{}
	m.mu.Unlock()
	return s.events, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.dropLocked(s)
	}
}

func (m *Manager) dropLocked(s *subscriber) {
	if _, there := m.subscribers[s]; there {
		delete(m.subscribers, s)
		close(s.events)
	}
}

// publish sends ev to whom it concerns. It never blocks.
func (m *Manager) publish(ev Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.publishLocked(ev)
}

func (m *Manager) publishLocked(ev Event) {
	m.seq++
	ev.Seq, ev.At = m.seq, time.Now().UTC()
	for s := range m.subscribers {
		if s.id != "" && s.id != ev.ID {
			continue
		}
		select {
		case s.events <- ev:
		default:
			m.dropLocked(s)
		}
	}
}
