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

// acquire decides the mode and takes what the operation claims: all of it, or nothing.
// What waits for another holds nothing, so no two can wait for each other. A decision
// that was made before something else has ended is made anew, for the world may have
// changed. began is called when the operation waits for as long as it takes.
func (m *Manager) acquire(r *run, work Runnable, began func()) error {
	w := waiting{since: map[string]time.Time{}, cancelled: map[string]time.Time{}}
	for stale := 0; stale < decideAtMost; {
		before := m.releasesSeen()
		req, refusal := m.decide(r, work)
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		obstacles, fresh := m.take(r, req, before, &w, refusal != nil)
		var err error
		switch first := first(obstacles); {
		case !fresh: // something has ended since the decision was made
			stale++
		case refusal != nil && (first == nil || first.answer == AnswerCancel):
			return refusal // nothing that runs is the reason, and nobody is cancelled for what is refused
		case first == nil:
			return nil // taken
		case first.answer == AnswerRefuse:
			return m.busy(first.record)
		case first.answer == AnswerCancel:
			err = m.cancelAll(r, obstacles, &w)
		default:
			err = m.await(r, *first, began)
		}
		if err != nil {
			return err
		}
	}
	return Refuse("operation-running", nil, "other operations have begun and ended all the time; try again")
}

// waiting is one operation's wait for its claims. Its maps have the IDs of others.
type waiting struct {
	since     map[string]time.Time // when each was first in its way
	cancelled map[string]time.Time // when each was cancelled for its sake
}

// An obstacle is an operation that excludes a request, and how it answers.
type obstacle struct {
	record Record
	answer Answer
	limit  time.Duration // of AnswerWait: how much longer it may take; 0: as long as it takes
}

// first is the obstacle that decides. One that refuses comes first, since nobody is
// cancelled for a request that is refused anyway. Then comes one that is cancelled, and
// then one that is waited for.
func first(obstacles []obstacle) *obstacle {
	for _, answer := range []Answer{AnswerRefuse, AnswerCancel, AnswerWait} {
		for i := range obstacles {
			if obstacles[i].answer == answer {
				return &obstacles[i]
			}
		}
	}
	return nil
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
	return request{kind: rec.Kind, mode: rec.Mode, by: rec.CallerKind, facts: d.Facts, cancelRunning: r.e.CancelRunning}, err
}

// releasesSeen counts how often claims have ended.
func (m *Manager) releasesSeen() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.releases
}

// take takes the claims when nothing is in the way, and else returns what is. With look
// it takes nothing in any case. before is what releasesSeen said before the decision was
// made. When claims have ended since then the decision is not fresh: nothing is taken,
// and nobody is named as in the way.
func (m *Manager) take(r *run, req request, before uint64, w *waiting, look bool) (obstacles []obstacle, fresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.releases != before {
		return nil, false
	}
	row := m.table.row(req.kind, req.mode)
	obstacles = m.obstaclesLocked(req, row, w)
	if len(obstacles) == 0 && !look {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.held, r.e.Record.WaitsFor = &row, ""
	}
	return obstacles, true
}

// obstaclesLocked is what excludes a request, with the answer of each.
func (m *Manager) obstaclesLocked(req request, row Row, w *waiting) (out []obstacle) {
	for _, h := range m.holdersLocked() {
		if !row.excludes(h.row) {
			continue
		}
		id := h.record.ID
		if w.since[id].IsZero() {
			w.since[id] = time.Now()
		}
		answer, left := h.row.answers(req, h.record)
		from, cancelled := w.cancelled[id]
		if cancelled {
			answer, left = AnswerWait, yieldDeadline // its end is on its way
		} else {
			from = w.since[id]
		}
		if answer == AnswerWait && left > 0 {
			if left -= time.Since(from); left <= 0 {
				answer = AnswerRefuse
			}
		}
		if answer == AnswerRefuse && h.row.mayCancel(req) && !cancelled {
			answer = AnswerCancel
		}
		out = append(out, obstacle{h.record, answer, left})
	}
	return out
}

// refusedAnyLocked is an operation that refuses the request in every mode that it could
// be decided for. A decision takes seconds; this one need not be made.
func (m *Manager) refusedAnyLocked(req request) (refusing *Record) {
	for _, row := range m.table.rows(req.kind) {
		refusing = nil
		for _, h := range m.holdersLocked() {
			if row.excludes(h.row) && !h.row.mayAnswer(req, h.record) && !h.row.mayCancel(req) {
				refusing = &h.record
				break
			}
		}
		if refusing == nil {
			return nil
		}
	}
	return refusing
}

func (m *Manager) busy(running Record) *Busy {
	row := m.table.row(running.Kind, running.Mode)
	return &Busy{Running: running, CancelCosts: row.CancelCosts}
}

// cancelAll ends what gives way to r, and waits until its claims end.
func (m *Manager) cancelAll(r *run, obstacles []obstacle, w *waiting) error {
	ctx, cancel := context.WithTimeout(r.ctx, yieldDeadline)
	defer cancel()
	for _, o := range obstacles {
		if o.answer != AnswerCancel {
			continue
		}
		other := o.record
		w.cancelled[other.ID] = time.Now()
		r.log.Info("another operation gives way", "other", other.ID, "other_kind", other.Kind)
		why := &cancelled{why: fmt.Sprintf("cancelled: it gave way to %s %s", r.snapshot().Kind, r.id), to: r.id}
		if _, err := m.cancel(ctx, other.ID, why); err != nil && !errors.Is(err, ErrEnded) && ctx.Err() == nil {
			return fmt.Errorf("cancel %s %s: %w", other.Kind, other.ID, err)
		}
	}
	return context.Cause(r.ctx)
}

// await waits until any claims end, the limit of the rule has passed, or r is cancelled.
// It returns an error only for the last.
func (m *Manager) await(r *run, o obstacle, began func()) error {
	other := o.record
	if o.limit == 0 && !r.waitJournalled() {
		if err := r.waits(other.ID); err != nil {
			return err
		}
		began()
	}
	r.change(EventOperation, "", func(e *entry) { e.Record.WaitsFor = other.ID })
	m.mu.Lock()
	changed := m.changed
	still := slices.ContainsFunc(m.holdersLocked(), func(h holder) bool { return h.record.ID == other.ID })
	m.mu.Unlock()
	if !still {
		return nil
	}
	var limit <-chan time.Time
	if o.limit > 0 {
		timer := time.NewTimer(o.limit)
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

// InTheWay says, for a dry run, what would become of a person's request now: that
// nothing is in the way; that something is, and what would be done about it; or why the
// request would be refused, which is also returned as a *Busy.
func (m *Manager) InTheWay(kind string, d Decision, cancelRunning bool) (what string, refusal *Busy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	req := request{kind: kind, mode: d.Mode, by: Person, facts: d.Facts, cancelRunning: cancelRunning}
	o := first(m.obstaclesLocked(req, m.table.row(kind, d.Mode), &waiting{since: map[string]time.Time{}}))
	if o == nil {
		return "no other operation is in the way", nil
	}
	running := o.record
	switch {
	case o.answer == AnswerWait && o.limit > 0:
		return fmt.Sprintf("%s %s would be waited for, %s at the most", running.Kind, running.ID, o.limit.Round(time.Second)), nil
	case o.answer == AnswerWait:
		return fmt.Sprintf("%s %s would be waited for", running.Kind, running.ID), nil
	case o.answer == AnswerCancel:
		return fmt.Sprintf("%s %s would be cancelled", running.Kind, running.ID), nil
	}
	busy := m.busy(running)
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
		if slices.Contains(h.row.Exclusive, x) {
			out = append(out, h.record)
		}
	}
	return out
}

// releasedLocked tells those that wait that claims have ended. m.mu is held.
func (m *Manager) releasedLocked() {
	m.releases++
	close(m.changed)
	m.changed = make(chan struct{})
}
