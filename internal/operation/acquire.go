package operation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// yieldDeadline bounds the wait for the end of what was cancelled for another.
const yieldDeadline = 5 * time.Second

// decideAtMost is how often a decision is made anew because what excluded the
// operation has ended meanwhile.
const decideAtMost = 20

// A Decision is what a request has become, before it claims anything.
type Decision struct {
	Mode  string // empty: as asked for
	Facts []Fact // that the rules of giving way ask for
}

// acquire decides the mode and takes what the operation claims, all or nothing.
// While it waits for another it holds nothing, so nothing can wait in a ring; and
// what was decided before a wait is decided anew after it. began is called when it
// waits for as long as it takes.
func (m *Manager) acquire(r *run, work Runnable, began func()) error {
	w := waiting{yielded: map[string]bool{}}
	for disturbed := 0; disturbed < decideAtMost; {
		before := m.releasesSeen()
		req, refusal := m.decide(r, work)
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		hindrance, answer, taken := m.take(r, req, before, &w, refusal != nil)
		switch {
		case taken:
			return nil
		case refusal != nil && (hindrance == nil || answer == AnswerCancel):
			return refusal // and nothing that runs is the reason
		case hindrance == nil: // something has ended since the decision
			disturbed++
		case answer == AnswerRefuse:
			return m.busy(*hindrance)
		case answer == AnswerCancel && !w.yielded[hindrance.ID]:
			w.yielded[hindrance.ID] = true
			if err := m.cancelFor(r, *hindrance); err != nil {
				return err
			}
		default:
			if err := m.await(r, *hindrance, &w, began); err != nil {
				return err
			}
		}
	}
	return Refuse("operation-running", nil, "other operations have begun and ended all the time; try again")
}

// waiting is one operation's wait for its claims.
type waiting struct {
	began   time.Time     // when something was first in its way
	limit   time.Duration // of the rule that it waits by; 0: none
	yielded map[string]bool
}

func (m *Manager) decide(r *run, work Runnable) (request, error) {
	var d Decision
	err := guarded(r.log, func() (err error) { d, err = work.decide(r.ctx, r); return err })
	r.mu.Lock()
	defer r.mu.Unlock()
	if d.Mode != "" {
		r.e.Record.Mode = d.Mode
	}
	rec := r.e.Record
	return request{kind: rec.Kind, mode: rec.Mode, by: rec.CallerKind, facts: d.Facts, cancelRunning: r.cancelRunning}, err
}

// releasesSeen counts the operations whose claims have ended.
func (m *Manager) releasesSeen() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.releases
}

// take takes the claims where nothing excludes them. Otherwise it returns what does,
// and how that answers; neither where something has ended since before, or where it
// is only to look.
func (m *Manager) take(r *run, req request, before uint64, w *waiting, look bool) (hindrance *Record, answer Answer, taken bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	row := m.table.row(req.kind, req.mode)
	hindrance, answer, w.limit = m.hindranceLocked(req, row, w)
	switch {
	case hindrance != nil:
		return hindrance, answer, false
	case look || m.releases != before:
		return nil, "", false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held, r.e.Waiting, r.e.Record.WaitsFor = &row, false, ""
	return nil, "", true
}

// hindranceLocked is what excludes a request, the one that refuses it first: nothing
// is cancelled for what is refused anyway.
func (m *Manager) hindranceLocked(req request, row Row, w *waiting) (hindrance *Record, answer Answer, limit time.Duration) {
	for _, h := range m.holdersLocked() {
		if !row.excludes(h.row) {
			continue
		}
		got, within := h.row.answers(req, h.record)
		if got == AnswerCancel {
			within = yieldDeadline
		}
		if w.began.IsZero() {
			w.began = time.Now()
		}
		if within > 0 && time.Since(w.began) >= within {
			got = AnswerRefuse
		}
		if got == AnswerRefuse && h.row.mayCancel(req) && !w.yielded[h.record.ID] {
			got = AnswerCancel
		}
		if hindrance == nil || got == AnswerRefuse {
			hindrance, answer, limit = &h.record, got, within
		}
		if got == AnswerRefuse {
			break
		}
	}
	return hindrance, answer, limit
}

// refusedAnyLocked is what refuses a request in whatever mode it is decided for: a
// decision of seconds is not made in vain.
func (m *Manager) refusedAnyLocked(req request) *Record {
	row := m.table.row(req.kind, "")
	for _, h := range m.holdersLocked() {
		if row.excludes(h.row) && !h.row.mayAnswer(req, h.record) && !h.row.mayCancel(req) {
			return &h.record
		}
	}
	return nil
}

func (m *Manager) busy(running Record) *Busy {
	row := m.table.row(running.Kind, running.Mode)
	return &Busy{Running: running, CancelCosts: row.CancelCosts}
}

// cancelFor ends another operation for r's sake, and waits until its claims end.
func (m *Manager) cancelFor(r *run, other Record) error {
	ctx, cancel := context.WithTimeout(r.ctx, yieldDeadline)
	defer cancel()
	r.log.Info("operation gives way", "to", r.id, "which", other.ID, "kind", other.Kind)
	why := &cancelled{fmt.Sprintf("cancelled: it gave way to %s %s", r.snapshot().Kind, r.id)}
	if _, err := m.cancel(ctx, other.ID, why); err != nil && !errors.Is(err, ErrEnded) {
		return fmt.Errorf("cancel %s %s: %w", other.Kind, other.ID, err)
	}
	return context.Cause(r.ctx)
}

// await waits until any claims end, the rule's limit has passed, or r has ended.
func (m *Manager) await(r *run, other Record, w *waiting, began func()) error {
	if w.limit == 0 && !r.waitJournalled() {
		if err := r.waits(other.ID); err != nil {
			return err
		}
		began()
	}
	r.change("operation", "", func(e *entry) { e.Record.WaitsFor = other.ID })
	m.mu.Lock()
	changed := m.changed
	still := slices.ContainsFunc(m.holdersLocked(), func(h holder) bool { return h.record.ID == other.ID })
	m.mu.Unlock()
	if !still {
		return nil
	}
	var limit <-chan time.Time
	if w.limit > 0 {
		timer := time.NewTimer(max(0, w.limit-time.Since(w.began)))
		defer timer.Stop()
		limit = timer.C
	}
	select {
	case <-changed:
	case <-limit:
	case <-r.ctx.Done():
	}
	return context.Cause(r.ctx)
}

// InTheWay says how what a person asks for would be answered now by an operation that
// excludes it: nothing is in the way; why it would be refused, as a *Busy; or what
// would be done about it.
func (m *Manager) InTheWay(kind string, d Decision, cancelRunning bool) (what string, refusal *Busy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	req := request{kind: kind, mode: d.Mode, by: Person, facts: d.Facts, cancelRunning: cancelRunning}
	running, answer, within := m.hindranceLocked(req, m.table.row(kind, d.Mode), &waiting{})
	switch {
	case running == nil:
		return "no other operation is in the way", nil
	case answer == AnswerWait && within > 0:
		return fmt.Sprintf("%s %s would be waited for, %s at the most", running.Kind, running.ID, within), nil
	case answer == AnswerWait:
		return fmt.Sprintf("%s %s would be waited for", running.Kind, running.ID), nil
	case answer == AnswerCancel:
		return fmt.Sprintf("%s %s would be cancelled", running.Kind, running.ID), nil
	}
	busy := m.busy(*running)
	return busy.Error(), busy
}

// A holder is what holds claims: a run, or what another process left open.
type holder struct {
	record Record
	row    Row
}

func (m *Manager) holdersLocked() []holder {
	var out []holder
	for _, e := range m.left {
		if !e.Waiting {
			out = append(out, holder{e.Record, m.table.row(e.Record.Kind, e.Record.Mode)})
		}
	}
	for _, r := range m.runs {
		if held := r.claims(); held != nil {
			out = append(out, holder{r.snapshot(), *held})
		}
	}
	slices.SortFunc(out, func(a, b holder) int { return a.record.StartedAt.Compare(b.record.StartedAt) })
	return out
}

// Holding returns the operations that hold x for themselves, oldest first: those
// that run, and those that wait to be resumed.
func (m *Manager) Holding(x Resource) []Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Record
	for _, h := range m.holdersLocked() {
		if m.table.Holds(h.record, x) {
			out = append(out, h.record)
		}
	}
	return out
}

// released tells those that wait that claims have ended. m.mu is held.
func (m *Manager) releasedLocked() {
	m.releases++
	close(m.changed)
	m.changed = make(chan struct{})
}
