package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// A run is one open operation: its entry in memory, which is ahead of the
// journal between two durable entries.
type run struct {
	m      *Manager
	id     string
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelCauseFunc

	settled     chan struct{} // closed when it has ended or is incomplete
	settledOnce sync.Once
	done        chan struct{} // closed when it has ended
	returned    chan struct{} // closed when its goroutine does nothing any more

	// journalling is held while an entry is made and written. So nothing is written of
	// an operation that was let go in between. The order of the locks is Manager.mu,
	// journalling, mu.
	journalling sync.Mutex

	mu    sync.Mutex
	e     entry
	held  *Row          // what it claims; nil: nothing yet, or nothing any more
	begun bool          // the journal says that its first step may have begun
	gone  bool          // it was let go: see letGo
	ends  bool          // its end is being journalled, and it cannot be let go any more
	delay time.Duration // before the next retry
	// progress is of the running step.
	progress meter
	// resumed: another process began it, and may have done more than the entry says.
	resumed bool
}

func (m *Manager) newRun(e entry) *run {
	ctx, cancel := context.WithCancelCause(m.ctx)
	r := &run{
		m: m, id: e.Record.ID, e: e, cancel: cancel, begun: !e.Waiting && len(e.Record.Steps) > 0,
		log:     m.log.With("operation", e.Record.ID, "kind", e.Record.Kind),
		settled: make(chan struct{}), done: make(chan struct{}), returned: make(chan struct{}), delay: retryShortest,
	}
	r.ctx = context.WithValue(ctx, runKey{}, r)
	return r
}

// runKey finds the run in the context of its steps.
type runKey struct{}

// ID is that of the operation whose step has this context; empty outside of one. In a
// clean-up it is that of what is cleaned up after. What a step begins elsewhere is found
// again by it.
func ID(ctx context.Context) string {
	r, ok := ctx.Value(runKey{}).(*run)
	if !ok {
		return ""
	}
	return r.subject()
}

// claims is what it holds, nil for nothing.
func (r *run) claims() *Row {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held
}

// snapshot is a copy of the record that nobody else writes to.
func (r *run) snapshot() Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.copyLocked()
}

// entryLocked is a copy of the entry that nobody else writes to.
func (r *run) entryLocked() entry {
	e := r.e
	e.Record = r.copyLocked()
	return e
}

func (r *run) copyLocked() Record {
	rec := r.e.Record
	rec.Steps = slices.Clone(rec.Steps)
	rec.Checks = slices.Clone(rec.Checks)
	rec.Result = maps.Clone(rec.Result)
	rec.Progress = r.progress.current()
	return rec
}

// change applies f to the entry and tells the subscribers.
func (r *run) change(kind, step string, f func(e *entry)) {
	r.mu.Lock()
	f(&r.e)
	rec := r.copyLocked()
	r.mu.Unlock()
	r.m.publish(Event{Type: kind, Step: step, ID: r.id, Record: rec})
}

// begin sets the list of steps.
func (r *run) begin(names []string, result map[string]any) {
	r.change("operation", "", func(e *entry) {
		e.Record.Steps = make([]StepRecord, len(names))
		for i, name := range names {
			e.Record.Steps[i] = StepRecord{Name: name, State: StepPending}
		}
		e.Record.Result = result
	})
}

// sameSteps reports whether the journal has the steps with these names, and has
// reached one of them. Another version of controld may have written other steps; then
// the record gets these.
func (r *run) sameSteps(names []string, result map[string]any) bool {
	r.mu.Lock()
	same := slices.EqualFunc(r.e.Record.Steps, names, func(s StepRecord, name string) bool { return s.Name == name })
	reached := r.e.Reached
	r.mu.Unlock()
	if !same {
		r.begin(names, result)
	}
	return same && reached >= 0 && reached < len(names)
}

func (r *run) prepared(p Prepared) {
	r.change("operation", "", func(e *entry) {
		if p.Mode != "" {
			e.Record.Mode = p.Mode
		}
		e.Record.Checks = append(e.Record.Checks, p.Checks...)
	})
}

func (r *run) already(why string) {
	r.change("operation", "", func(e *entry) {
		if e.Record.Result == nil {
			e.Record.Result = map[string]any{}
		}
		e.Record.Result["already"] = why
	})
}

func (r *run) result(result map[string]any) {
	r.mu.Lock()
	r.e.Record.Result = result
	r.mu.Unlock()
}

func (r *run) keepState(state any) error {
	data, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode the state of operation %s: %w", r.id, err)
	}
	r.mu.Lock()
	r.e.State = data
	r.mu.Unlock()
	return nil
}

func (r *run) state() json.RawMessage {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.e.State
}

func (r *run) reached() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.e.Reached
}

// errLetGo: the operation was let go, and nothing more is kept of it.
var errLetGo = errors.New("the operation was let go")

// keep changes the entry and makes it durable.
func (r *run) keep(change func(*entry)) error {
	r.journalling.Lock()
	defer r.journalling.Unlock()
	r.mu.Lock()
	if r.gone {
		r.mu.Unlock()
		return errLetGo
	}
	change(&r.e)
	e := r.entryLocked()
	r.mu.Unlock()
	return r.m.journal.put(e)
}

// entry makes it durable that step i and those up to the next entry may begin. With a
// nil state the one that is kept stays.
func (r *run) entry(i int, state any) error {
	if state != nil {
		if err := r.keepState(state); err != nil {
			return err
		}
	}
	return r.keep(func(e *entry) { e.Reached, e.Waiting, r.begun = i, false, true })
}

// waits makes it durable that the operation waits for another, having begun nothing.
func (r *run) waits(other string) error {
	return r.keep(func(e *entry) { e.Waiting, e.Record.WaitsFor = true, other })
}

func (r *run) waitJournalled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.e.Waiting
}

func (r *run) undoing(last int, state any, failure error) error {
	r.mu.Lock()
	r.e.Undoing = failure.Error()
	r.mu.Unlock()
	return r.entry(last, state)
}

// interruption is the failure that a resumed operation is undone for.
func (r *run) interruption() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.e.Undoing != "" {
		return errors.New(r.e.Undoing)
	}
	name := "the first step"
	if r.e.Reached >= 0 && r.e.Reached < len(r.e.Record.Steps) {
		name = "step " + r.e.Record.Steps[r.e.Reached].Name
	}
	return fmt.Errorf("controld ended after %s had begun; started again, it took everything back", name)
}

func (r *run) markResumed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resumed = true
}

// untouched reports whether it is certain that step i was never begun.
func (r *run) untouched(i int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.resumed && r.e.Record.Steps[i].StartedAt.IsZero()
}

func (r *run) stepBegins(i int) time.Time {
	now := time.Now()
	r.changeStep(i, func(s *StepRecord) {
		if s.StartedAt.IsZero() {
			s.StartedAt = now.UTC()
		}
		s.State = StepRunning
	})
	return now
}

func (r *run) stepEnds(i int, began time.Time, result map[string]any) {
	took := time.Since(began)
	r.result(result)
	r.forgetProgress()
	r.changeStep(i, func(s *StepRecord) {
		s.State, s.Error = StepDone, ""
		s.Duration += took
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delay = retryShortest
}

func (r *run) forgetProgress() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress.forget()
}

func (r *run) stepFails(i int, began time.Time, err error) {
	took := time.Since(began)
	r.forgetProgress()
	r.changeStep(i, func(s *StepRecord) {
		s.State, s.Error = StepFailed, err.Error()
		s.Duration += took
	})
	r.log.Warn("step failed", "step", r.stepName(i), "err", err)
}

func (r *run) stepUndone(i int, began time.Time, err error) {
	if err != nil {
		r.log.Error("undo failed", "step", r.stepName(i), "err", err)
	}
	r.changeStep(i, func(s *StepRecord) {
		if err != nil {
			s.State, s.Error = StepFailed, "undo: "+err.Error()
			return
		}
		if s.State != StepPending {
			s.State = StepUndone
		}
	})
	r.log.Info("step undone", "step", r.stepName(i), "took", time.Since(began))
}

func (r *run) stepName(i int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.e.Record.Steps[i].Name
}

func (r *run) changeStep(i int, f func(*StepRecord)) {
	r.change("step", r.stepName(i), func(e *entry) { f(&e.Record.Steps[i]) })
}

// fail notes why the operation ends in state, and returns it.
func (r *run) fail(state State, err error) State {
	problem := asProblem(state, err)
	r.mu.Lock()
	r.e.Record.Problem = problem
	r.mu.Unlock()
	return state
}

// failBegin is how an operation ends that was not begun: cancelled, or refused.
func (r *run) failBegin(err error) State {
	if errors.Is(err, errCancelled) {
		return r.fail(Cancelled, fmt.Errorf("%w before it had begun; nothing was touched", err))
	}
	return r.fail(Refused, err)
}

// asProblem gives a failure the stable type that callers read.
func asProblem(state State, err error) *Problem {
	var p *Problem
	if errors.As(err, &p) && state == Refused {
		return p
	}
	kinds := map[State]string{Refused: "precheck-failed", Undone: "undone", Incomplete: "incomplete", Cancelled: "cancelled"}
	out := &Problem{Type: "/problems/" + kinds[state], Detail: err.Error()}
	if p != nil {
		out.Numbers = p.Numbers
	}
	return out
}

// incomplete tells that the operation has failed past its point of no return
// and is tried again.
func (r *run) incomplete(err error) {
	r.fail(Incomplete, err)
	r.change("operation", "", func(e *entry) { e.Record.State = Incomplete })
	r.settledOnce.Do(func() { close(r.settled) })
}

// pauseBeforeRetry waits, longer each time. When ctx ends it returns at once: the
// next attempt fails for that, and its failure settles the operation.
func (r *run) pauseBeforeRetry(ctx context.Context) {
	r.mu.Lock()
	delay := r.delay
	r.delay = min(2*r.delay, retryLongest)
	r.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
	}
}

// end closes the operation in state; one in state Running stays open in the journal,
// for the next start. The end is on the disk before anybody sees it. For whoever sees
// it may start another operation, and a restart must not find both open.
func (r *run) end(state State) {
	if !r.claimEnd() { // it was let go before
		return
	}
	if state == Running {
		r.log.Warn("operation left open")
		r.leave()
	} else {
		ended, kept := r.persistEnd(state)
		if !kept {
			r.m.saveLater(ended)
		}
		rec := r.publishEnd(ended)
		if kept { // else a restart finds the operation open, and needs its checkpoints
			if err := r.m.journal.dropCheckpointsOf(r.subject()); err != nil {
				r.log.Warn("checkpoints not dropped", "err", err)
			}
		}
		r.log.Info("operation ended", "state", state, "mode", rec.Mode, "result", rec.Result, "problem", problemText(rec))
	}
	r.ended()
}

// claimEnd makes sure that the operation ends only once. It returns false when the
// operation was let go before; after true it cannot be let go any more.
func (r *run) claimEnd() bool {
	r.journalling.Lock()
	defer r.journalling.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ends = !r.gone
	return r.ends
}

// leave takes the operation from those that run, and leaves its entry as it is.
func (r *run) leave() {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	delete(r.m.runs, r.id)
	r.releaseLocked()
}

// releaseLocked ends its claims. Manager.mu is held.
func (r *run) releaseLocked() {
	r.mu.Lock()
	held := r.held
	r.held = nil
	r.mu.Unlock()
	if held != nil {
		r.m.releasedLocked()
	}
}

// ended wakes those who wait for the end.
func (r *run) ended() {
	r.m.holdsClients(r, false)
	r.closeDone()
	r.cancel(nil)
}

func (r *run) closeDone() {
	r.settledOnce.Do(func() { close(r.settled) })
	close(r.done)
}

func problemText(rec Record) string {
	if rec.Problem == nil {
		return ""
	}
	return rec.Problem.Detail
}

// persistEnd writes the last entry. kept is false when the disk has refused it; the
// caller sees to it that this is tried again. A restart before that finds the operation
// open, and that nothing is left to do.
func (r *run) persistEnd(state State) (ended entry, kept bool) {
	r.journalling.Lock()
	defer r.journalling.Unlock()
	r.mu.Lock()
	e := r.entryLocked()
	r.mu.Unlock()
	e.Record.State = state
	if state == Succeeded {
		e.Record.Problem = nil
	}
	e.Waiting, e.Record.WaitsFor = false, ""
	e.Record.EndedAt = time.Now().UTC()
	if err := r.m.journal.put(e); err != nil {
		r.log.Error("journal refused the end of the operation", "err", err)
		return e, false
	}
	return e, true
}

// publishEnd makes the end seen, and lets the next operation begin, at once.
func (r *run) publishEnd(ended entry) Record {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.mu.Lock()
	r.e = ended
	r.progress.forget()
	rec := r.copyLocked()
	r.mu.Unlock()
	delete(r.m.runs, r.id)
	r.releaseLocked()
	r.m.publishLocked(Event{Type: EventOperation, ID: r.id, Record: rec})
	return rec
}
