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
	journal *Journal
	log     *slog.Logger
	ctx     context.Context // ends, with the cause ErrStopping, when operations must stop
	stop    context.CancelCauseFunc
	running sync.WaitGroup

	mu       sync.Mutex
	stopping bool
	runs     map[string]*run // open operations by ID
	// waiting are those that another process left open and Resume has not taken up:
	// they exclude others like those that run.
	waiting []entry
	// unsaved are those that have ended while the disk refused to take that.
	unsaved     map[string]Record
	subscribers map[*subscriber]struct{}
	seq         uint64
}

// NewManager makes a manager on a journal. What the journal has open excludes
// others from now on; Resume goes on with it.
func NewManager(j *Journal, log *slog.Logger) (*Manager, error) {
	waiting, err := j.open()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancelCause(context.Background())
	return &Manager{
		journal: j, log: log, ctx: ctx, stop: stop,
		runs: map[string]*run{}, waiting: waiting, unsaved: map[string]Record{}, subscribers: map[*subscriber]struct{}{},
	}, nil
}

// Start begins an operation and returns when it was prepared: with the running
// record; with a refused one and the *Problem that refused it; or with an error
// (*Busy, ErrKeyReused, ErrStopping) when nothing was begun. A repeated
// idempotency key returns the operation that it began. Ending ctx ends nothing.
func (m *Manager) Start(ctx context.Context, spec Spec, work Runnable) (Record, error) {
	r, bound, err := m.admit(spec)
	if err != nil {
		return Record{}, err
	}
	if r == nil { // the key's operation
		return m.joined(bound)
	}
	prepared := make(chan error, 1)
	go func() {
		defer m.running.Done()
		m.work(r, work, prepared)
	}()
	select {
	case err := <-prepared:
		return r.snapshot(), err
	case <-ctx.Done():
		return r.snapshot(), nil
	}
}

// admit applies the rule of exclusion and makes the run, or returns the ID of
// the operation that the key in spec is bound to already.
func (m *Manager) admit(spec Spec) (admitted *run, bound string, err error) {
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
	for _, running := range m.openLocked() {
		if exclude(spec.Kind, running.Kind) {
			if key != nil {
				if err := m.journal.unbindKey(*key); err != nil {
					return nil, "", err
				}
			}
			return nil, "", m.busy(spec, id.String(), running)
		}
	}
	rec := spec.record(id.String(), Running)
	rec.Checks, rec.Follows = spec.Checks, spec.Follows
	r := m.newRun(entry{Params: spec.Params, Record: rec})
	if spec.Follows != "" {
		if err := m.journal.link(spec.Follows, r.id); err != nil {
			return nil, "", err
		}
	}
	m.runs[r.id] = r
	m.running.Add(1)
	return r, "", nil
}

// openLocked are the operations that run, and those that wait to be resumed.
func (m *Manager) openLocked() []Record {
	out := make([]Record, 0, len(m.runs)+len(m.waiting))
	for _, e := range m.waiting {
		out = append(out, e.Record)
	}
	for _, r := range m.runs {
		out = append(out, r.snapshot())
	}
	return out
}

// busy keeps the refused attempt in the audit. m.mu is held.
func (m *Manager) busy(spec Spec, id string, running Record) error {
	refusal := &Busy{Running: running}
	rec := spec.record(id, Refused)
	rec.EndedAt = rec.StartedAt
	rec.Problem = &Problem{Type: "/problems/operation-running", Detail: refusal.Error(), Numbers: map[string]any{"operation": running.ID}}
	if err := m.journal.put(entry{Record: rec}); err != nil {
		return err
	}
	m.publishLocked("operation", "", rec)
	return refusal
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

// work is the life of one operation.
func (m *Manager) work(r *run, work Runnable, prepared chan<- error) {
	var p Prepared
	err := guarded(r.log, func() (err error) { p, err = work.prepare(r.ctx, r); return err })
	r.prepared(p)
	if err == nil && p.Already == "" {
		err = r.entry(0, nil)
	}
	switch {
	case err != nil:
		work.close()
		r.end(r.fail(Refused, err))
		prepared <- r.snapshot().Problem
	case p.Already != "":
		work.close()
		r.already(p.Already)
		r.end(Succeeded)
		prepared <- nil
	default:
		prepared <- nil
		m.finish(r, work, work.execute(r.ctx, r))
	}
}

// finish gives back what the work held before anybody is told that it ended.
func (m *Manager) finish(r *run, work Runnable, state State) {
	work.close()
	r.end(state)
}

// Resume goes on with every operation that another process left open: forward where
// its point of no return is passed, back where it is not. build makes the work
// of a record anew from its parameters. It returns when all have ended or ctx has.
func (m *Manager) Resume(ctx context.Context, build func(Record, json.RawMessage) (Runnable, error)) error {
	for {
		e, left := m.nextWaiting()
		if !left {
			return nil
		}
		work, err := build(e.Record, e.Params)
		if err != nil {
			return fmt.Errorf("resume operation %s: %w", e.Record.ID, err)
		}
		m.mu.Lock()
		r := m.newRun(e)
		m.waiting = m.waiting[1:]
		m.runs[r.id] = r
		m.running.Add(1)
		m.mu.Unlock()
		m.log.Info("operation resumed", "operation", r.id, "kind", e.Record.Kind, "reached", e.Reached)
		go func() {
			defer m.running.Done()
			m.finish(r, work, work.resume(r.ctx, r))
		}()
		if _, err := m.Wait(ctx, r.id); err != nil {
			return fmt.Errorf("resume operation %s: %w", r.id, err)
		}
	}
}

func (m *Manager) nextWaiting() (entry, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting) == 0 {
		return entry{}, false
	}
	return m.waiting[0], true
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

// Open returns the open operations, oldest first.
func (m *Manager) Open() []Record {
	m.mu.Lock()
	out := m.openLocked()
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
	m.mu.Lock()
	r, open := m.runs[id]
	m.mu.Unlock()
	if !open {
		rec, err := m.Get(id)
		if err != nil {
			return Record{}, err
		}
		return rec, fmt.Errorf("operation %s is %s: %w", id, rec.State, ErrEnded)
	}
	m.log.Info("operation cancelled", "operation", id, "by", by.Name)
	r.cancel(errCancelled)
	select {
	case <-r.done:
	case <-ctx.Done():
	}
	return r.snapshot(), nil
}

// Stop ends the manager: nothing new begins, and what runs has until ctx ends
// to finish. Then it is cut: undone before its point of no return, left open in
// the journal past it.
func (m *Manager) Stop(ctx context.Context) error {
	m.mu.Lock()
	m.stopping = true
	m.mu.Unlock()
	ended := make(chan struct{})
	go func() { m.running.Wait(); close(ended) }()
	select {
	case <-ended:
		m.stop(ErrStopping)
		return nil
	case <-ctx.Done():
	}
	m.stop(ErrStopping)
	select {
	case <-ended:
		return nil
	case <-time.After(undoTimeout):
		return errors.New("operations did not stop")
	}
}

// saveEvery is how often a disk that refused the end of an operation is tried.
const saveEvery = time.Second

// saveLater keeps the end of an operation, which the disk refused, until the
// disk takes it or the process ends; then the operation is found open.
func (m *Manager) saveLater(e entry) {
	id := e.Record.ID
	m.mu.Lock()
	m.unsaved[id] = e.Record
	m.mu.Unlock()
	go func() {
		for {
			select {
			case <-m.ctx.Done():
				return
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

// publish sends the state of r to whom it concerns. It never blocks.
func (m *Manager) publish(kind, step string, rec Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.publishLocked(kind, step, rec)
}

func (m *Manager) publishLocked(kind, step string, rec Record) {
	m.seq++
	ev := Event{Seq: m.seq, At: time.Now().UTC(), Type: kind, Step: step, Record: rec}
	for s := range m.subscribers {
		if s.id != "" && s.id != rec.ID {
			continue
		}
		select {
		case s.events <- ev:
		default:
			m.dropLocked(s)
		}
	}
}
