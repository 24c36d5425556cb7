package operation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// An operation whose row says Loose is let go when it is cancelled: it has ended when
// that is in the journal, while its step may still be on its way back from somewhere
// that does not answer. What it leaves is cleaned up by an operation of its own, which
// begins when that step has returned, and may take as long as it needs. Of the claims
// the clean-up keeps what its row says, from that moment on, so that nothing begins
// beside the remains; the others have ended. So a failover never waits for the clean-up
// of what gave way to it.

// loose: it is to be let go, when it is cancelled.
func (r *run) loose() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held != nil && r.held.Loose && r.begun
}

func (r *run) wasLetGo() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gone
}

// letGo ends r as cancelled, and begins its clean-up. Both are one entry.
func (m *Manager) letGo(r *run, why *cancelled) (Record, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return Record{}, fmt.Errorf("operation id: %w", err)
	}
	rec, err := m.letGoLocking(r, id.String(), why)
	if err == nil {
		r.ended()
	}
	return rec, err
}

func (m *Manager) letGoLocking(r *run, id string, why *cancelled) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.mu.Lock()
	if r.gone || m.runs[r.id] != r {
		rec := r.copyLocked()
		r.mu.Unlock()
		return rec, fmt.Errorf("operation %s is %s: %w", r.id, rec.State, ErrEnded)
	}
	ended, cleanup := r.e, r.cleanupLocked(id, why)
	ended.Record = r.copyLocked()
	r.mu.Unlock()
	ended.Record.State, ended.Record.EndedAt, ended.Record.FollowedBy = Cancelled, time.Now().UTC(), cleanup.Record.ID
	ended.Record.Problem = asProblem(Cancelled, fmt.Errorf("%w; %s cleans up after it", why, cleanup.Record.ID))
	if err := m.journal.put(ended, cleanup); err != nil {
		return Record{}, err
	}
	r.mu.Lock()
	r.gone, r.held, r.e.Record = true, nil, ended.Record
	r.mu.Unlock()
	r.cancel(why)
	delete(m.runs, r.id)
	m.releasedLocked()
	m.publishLocked(Event{Type: EventOperation, ID: r.id, Record: ended.Record})
	m.beginCleanup(r, cleanup)
	return ended.Record, nil
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

// beginCleanup runs the clean-up of r once r's last step has returned. m.mu is held.
func (m *Manager) beginCleanup(r *run, e entry) {
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
		}
		r.mu.Lock()
		state := slices.Clone(r.e.State) // its last step may have learned more than the journal knows
		r.mu.Unlock()
		c.mu.Lock()
		c.e.State = state
		c.mu.Unlock()
		work, err := m.build(c.entryCopy())
		if err != nil {
			m.finish(c, nothing{}, c.fail(Incomplete, err))
			return
		}
		m.finish(c, work, work.cleanUp(c.ctx, c))
	}()
}

// nothing is the work of an operation that could not be built.
type nothing struct{ Runnable }

func (nothing) close() {}

func (r *run) entryCopy() entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.e
}

// cleanUp undoes every step that may have begun, newest first, each until it is
// undone.
func (w Work[S]) cleanUp(ctx context.Context, r *run) State {
	state, err := w.load(r)
	if err != nil {
		return r.fail(Incomplete, err)
	}
	steps := w.Steps(&state)
	for i := len(steps) - 1; i >= 0; i-- {
		for steps[i].Undo != nil {
			began := time.Now()
			err := guarded(r.log, func() error { return steps[i].Undo(ctx, &state) })
			r.stepUndone(i, began, err)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return r.leftBy(ctx, err)
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
