package operation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// An operation whose row says Loose is let go when it is cancelled. It has ended as soon
// as the journal says so. Its step may still run, since what it asks may not answer.
//
// What it leaves is cleaned up by an operation of its own, which begins when that step
// has returned, and may take as long as it needs. The clean-up takes over those claims
// that its row names, at the moment when the others end: nothing begins beside the
// remains, and a failover never waits for the clean-up of what gave way to it.

func (r *run) wasLetGo() bool {
	r.journalling.Lock() // letGo may be about to say so, or to fail
	defer r.journalling.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gone
}

// letGo ends r as cancelled and begins its clean-up; the journal gets both at once. done
// is false, and nothing was done, where r's row is not Loose, or r has not begun.
func (m *Manager) letGo(r *run, why *cancelled) (done bool, rec Record, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return false, Record{}, fmt.Errorf("operation id: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r.journalling.Lock()
	defer r.journalling.Unlock()
	ended, cleanup, may := r.lettingGo(id.String(), why)
	if !may {
		return false, Record{}, nil
	}
	if err := m.journal.put(ended, cleanup); err != nil {
		return false, Record{}, err
	}
	r.mu.Lock()
	r.gone, r.e.Record = true, ended.Record
	r.mu.Unlock()
	r.cancel(why)
	delete(m.runs, r.id)
	delete(m.holding, r)
	c := m.beginCleanup(r, cleanup)
	r.releaseLocked()
	m.publishLocked(Event{Type: EventOperation, ID: r.id, Record: ended.Record})
	m.publishLocked(Event{Type: EventOperation, ID: c.id, Record: c.snapshot()})
	r.closeDone()
	return true, ended.Record, nil
}

// lettingGo is what the journal will hold of r and its clean-up.
func (r *run) lettingGo(id string, why *cancelled) (ended, cleanup entry, may bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone || r.ends || !r.begun || r.held == nil || !r.held.Loose {
		return entry{}, entry{}, false
	}
	ended, cleanup = r.entryLocked(), r.cleanupLocked(id, why)
	ended.Record.State, ended.Record.EndedAt, ended.Record.FollowedBy = Cancelled, time.Now().UTC(), id
	ended.Record.GaveWayTo = why.to
	ended.Record.Problem = asProblem(Cancelled, fmt.Errorf("%w; %s cleans up after it", why, id))
	return ended, cleanup, true
}

// cleanupLocked is the entry of r's clean-up: the same steps, to be undone.
func (r *run) cleanupLocked(id string, why *cancelled) entry {
	subject := r.e.Record
	e := entry{Params: r.e.Params, State: r.e.State, Reached: r.e.Reached, Undoing: why.Error()}
	e.Record = Record{
		ID: id, Kind: KindCleanup, Mode: subject.Kind, State: Running, RequestedBy: string(Daemon), CallerKind: Daemon,
		Reason: why.Error(), StartedAt: time.Now().UTC(), Steps: slices.Clone(subject.Steps), Follows: subject.ID,
	}
	return e
}

// beginCleanup runs the clean-up of r when r's last step has returned, and never beside
// it. When controld stops before that, the next one does it. m.mu is held.
func (m *Manager) beginCleanup(r *run, e entry) *run {
	c := m.newRun(e)
	row := m.table.row(e.Record.Kind, e.Record.Mode)
	c.held = &row
	m.runs[c.id] = c
	m.running.Add(1)
	go func() {
		defer m.running.Done()
		select {
		case <-r.returned:
		case <-c.ctx.Done():
			c.end(c.leftBy(c.ctx, errors.New("what it was to clean up after had not returned")))
			return
		}
		state := r.state() // its last step may have learned more than the journal knows
		c.mu.Lock()
		c.e.State = slices.Clone(state)
		e := c.entryLocked()
		c.mu.Unlock()
		work, err := m.build(e)
		if err != nil {
			m.setAside(c, e, err)
			return
		}
		m.finish(c, work, work.cleanUp(c.ctx, c))
	}()
	return c
}

// setAside keeps a clean-up that cannot be done open, with what it holds, until
// somebody cancels it.
func (m *Manager) setAside(c *run, e entry, err error) {
	c.log.Error("clean-up cannot be done, and keeps what it claims until it is cancelled", "err", err)
	m.mu.Lock()
	delete(m.runs, c.id)
	m.left, m.unbuilt[c.id] = append(m.left, e), true
	m.mu.Unlock()
	c.ended()
}

// cleanUp undoes every step that may have begun, newest first, each until it is
// undone.
func (w Work[S]) cleanUp(ctx context.Context, r *run) State {
	state, err := w.load(r)
	if err != nil {
		return r.fail(Incomplete, err)
	}
	steps := w.Steps(&state)
	r.sameSteps(stepNames(steps), w.result(&state)) // another version's are not those of the record
	for i := len(steps) - 1; i >= 0; i-- {
		for steps[i].Undo != nil {
			if err := context.Cause(ctx); err != nil {
				return r.leftBy(ctx, err)
			}
			began := time.Now()
			err := guarded(r.log, func() error { return steps[i].Undo(ctx, &state) })
			r.stepUndone(i, began, err)
			if err == nil {
				break
			}
			r.incomplete(fmt.Errorf("undo %s: %w", steps[i].Name, err))
			r.pauseBeforeRetry(ctx)
		}
	}
	r.result(w.result(&state))
	return Succeeded
}

// leftBy is the state of work that its context has ended: open, where controld stops.
func (r *run) leftBy(ctx context.Context, err error) State {
	if errors.Is(context.Cause(ctx), ErrStopping) {
		return Running
	}
	return r.fail(Incomplete, fmt.Errorf("given up on request after: %w", err))
}
