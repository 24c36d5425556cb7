package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

// A Step is one named part of an operation on the state S.
type Step[S any] struct {
	Name string
	// Do may run twice: controld can end between the act and the journal's
	// entry. It looks at the world and does what is still missing.
	Do func(ctx context.Context, state *S) error
	// Undo, where there is one, runs when this step or a later one fails
	// before the point of no return. Do may have happened whole, in part or
	// not at all. What it returns may be ErrGoOn.
	Undo func(ctx context.Context, state *S) error
	// Entry asks for a durable journal entry before Do. The entry covers this
	// step and those after it up to the next entry: after a crash all of them
	// may have been done.
	Entry bool
	// HoldsClients: clients wait while it runs. What others write to the disk rests
	// meanwhile.
	HoldsClients bool
}

// Work is an operation on the state S. The state is what one step learns for
// the next; the journal keeps it.
type Work[S any] struct {
	// Decide, if set, looks at the world and chooses the mode. It is called before
	// anything is claimed, since who gives way to whom depends on the mode, and again
	// when what was in the way has ended. It touches nothing. A *Problem refuses.
	Decide func(ctx context.Context, state *S) (Decision, error)
	// Prepare observes and checks, and touches nothing. The claims are taken by now:
	// no other operation changes what it sees, as one could during Decide. A *Problem
	// refuses the operation. A resumed operation is not prepared again.
	Prepare func(ctx context.Context, state *S) (Prepared, error)
	// Steps is the list for a prepared state. It is a function of the state
	// alone, so that a resumed operation has the same list.
	Steps func(state *S) []Step[S]
	// NoReturn names the step from which on Past is asked whether the
	// operation can still be undone. Empty: it is undone at any step.
	NoReturn string
	// Past reports whether the point of no return is passed. It asks the world, for
	// the journal cannot know. It may act to find out, such as fence a server that
	// does not answer. An error means: not known, ask again.
	Past func(ctx context.Context, state *S) (bool, error)
	// Left, if set, looks at what an undo has left. Where nobody can be left with that,
	// it returns an error that says what to do, and the operation ends as incomplete.
	Left func(ctx context.Context, state *S) error
	// GiveUp, if set, is called when a person cancels the operation past its point of
	// no return. It notes down what is true then.
	GiveUp func(ctx context.Context, state *S) error
	// Forward makes a restarted daemon go on with the steps instead of
	// undoing them, for operations whose steps can all be repeated.
	Forward bool
	// Close, if set, gives back what the work held open in this process.
	Close func()
	// Result is what the operation has to tell so far.
	Result func(state *S) map[string]any
}

// Prepared is what Prepare decided.
type Prepared struct {
	Mode   string // the mode that was chosen, where the kind has modes
	Checks []Check
	// Already ends the operation as succeeded without a step, with the reason.
	Already string
}

// A Runnable is Work of any state; only Work implements it.
type Runnable interface {
	decide(ctx context.Context, r *run) (Decision, error)
	prepare(ctx context.Context, r *run) (Prepared, error)
	execute(ctx context.Context, r *run) State
	resume(ctx context.Context, r *run) State
	cleanUp(ctx context.Context, r *run) State
	forward() bool
	close()
}

// Bounds of the runner.
const (
	undoTimeout   = 60 * time.Second
	retryShortest = 100 * time.Millisecond
	retryLongest  = 2 * time.Second
)

// ErrGoOn is what an Undo returns when what its step did cannot be taken back,
// and the way on is the better one: the steps after it are done after all, and
// those before it stay done.
var ErrGoOn = errors.New("cannot be taken back: going on")

// cancelled is the cause of the context of an operation that was cancelled.
type cancelled struct {
	why string
	to  string // the operation that it gives way to; empty: somebody asked for it
}

func (c *cancelled) Error() string { return c.why }

// Is lets errors.Is(err, errCancelled) find every cancelled, whatever its reason.
func (c *cancelled) Is(target error) bool { return target == error(errCancelled) }

var errCancelled = &cancelled{why: "cancelled on request"}

func (w Work[S]) decide(ctx context.Context, r *run) (Decision, error) {
	if w.Decide == nil {
		return Decision{}, nil
	}
	var state S
	d, err := w.Decide(ctx, &state)
	if err != nil {
		r.begin(nil, w.result(&state))
		return d, err
	}
	return d, r.keepState(state)
}

func (w Work[S]) prepare(ctx context.Context, r *run) (Prepared, error) {
	state, err := w.load(r)
	if err != nil {
		return Prepared{}, err
	}
	p, err := w.Prepare(ctx, &state)
	if err != nil || p.Already != "" {
		r.begin(nil, w.result(&state))
		return p, err
	}
	r.begin(stepNames(w.Steps(&state)), w.result(&state))
	return p, r.keepState(state)
}

func stepNames[S any](steps []Step[S]) []string {
	names := make([]string, len(steps))
	for i, st := range steps {
		names[i] = st.Name
	}
	return names
}

func (w Work[S]) forward() bool { return w.Forward }

func (w Work[S]) close() {
	if w.Close != nil {
		w.Close()
	}
}

func (w Work[S]) result(state *S) map[string]any {
	if w.Result == nil {
		return nil
	}
	return w.Result(state)
}

// load reads the state that is kept; one that nothing has kept yet is zero.
func (w Work[S]) load(r *run) (S, error) {
	var state S
	if len(r.state()) == 0 {
		return state, nil
	}
	if err := json.Unmarshal(r.state(), &state); err != nil {
		return state, fmt.Errorf("read the state of operation %s: %w", r.id, err)
	}
	return state, nil
}

func (w Work[S]) execute(ctx context.Context, r *run) State {
	state, err := w.load(r)
	if err != nil {
		return r.fail(Undone, err)
	}
	return w.run(ctx, r, &state, w.Steps(&state), 0)
}

// run does the steps from index first on, and settles what fails.
func (w Work[S]) run(ctx context.Context, r *run, state *S, steps []Step[S], first int) State {
	for i := first; i < len(steps); i++ {
		err := context.Cause(ctx)
		if err == nil {
			err = w.step(ctx, r, state, steps[i], i)
		}
		if err == nil {
			continue
		}
		outcome, again := w.settle(ctx, r, state, steps, i, err)
		if !again {
			return outcome
		}
		i = w.reenter(steps, i) - 1 // past the point of no return: again
	}
	r.result(w.result(state))
	if r.wasLetGo() { // while its last step ran
		w.leaveState(r, state)
	}
	return Succeeded
}

// leaveState hands what was learned to the clean-up.
func (w Work[S]) leaveState(r *run, state *S) {
	if err := r.keepState(*state); err != nil {
		r.log.Error("state not kept", "err", err)
	}
}

// reenter is the step from which an operation is tried again that has failed past its
// point of no return. It is the last one with an entry, as after a restart: what the
// steps since then had done may be lost again.
func (w Work[S]) reenter(steps []Step[S], failed int) int {
	noReturn := index(steps, w.NoReturn)
	for i := failed; i > noReturn; i-- {
		if steps[i].Entry {
			return i
		}
	}
	return noReturn
}

func (w Work[S]) step(ctx context.Context, r *run, state *S, st Step[S], i int) error {
	r.m.holdsClients(r, st.HoldsClients)
	if st.Entry {
		if err := r.m.awaitRelease(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", st.Name, err)
		}
		if err := r.entry(i, *state); err != nil {
			return fmt.Errorf("%s: journal: %w", st.Name, err)
		}
	}
	began := r.stepBegins(i)
	if err := guarded(r.log, func() error { return st.Do(ctx, state) }); err != nil {
		r.stepFails(i, began, err)
		return fmt.Errorf("%s: %w", st.Name, err)
	}
	r.stepEnds(i, began, w.result(state))
	return nil
}

// guarded turns a panic into an error: a fault in one step must not take the
// daemon down again at each resume, with the clients of a paused pooler waiting.
func guarded(log *slog.Logger, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("step panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("internal fault: %v", p)
		}
	}()
	return f()
}

// settle does what the failure of step i asks for. Before the point of no return the
// operation is undone; past it, it is to be tried again, and settle has waited a while.
func (w Work[S]) settle(ctx context.Context, r *run, state *S, steps []Step[S], i int, failure error) (outcome State, again bool) {
	if r.wasLetGo() { // it has ended already, and another operation cleans up after it
		w.leaveState(r, state)
		return Cancelled, false
	}
	past, known := false, true
	switch at := index(steps, w.NoReturn); {
	case at >= 0 && i > at:
		past = true // that step has ended; the world might not show it at this moment
	case at >= 0 && i == at && r.untouched(i):
		// It was never begun: its entry was refused, or the operation was cancelled
		// before it. To ask the world could fence a server for nothing.
	case at >= 0 && i == at:
		past, known = w.past(ctx, r, state)
	}
	cause := context.Cause(ctx)
	switch {
	case w.Forward && errors.Is(cause, ErrStopping):
		return Running, false // every step can be repeated: the next start goes on
	case known && !past:
		return w.undo(ctx, r, state, steps, i, failure), false
	case errors.Is(cause, ErrStopping):
		return Running, false // the journal stays open; the next start goes on
	case errors.Is(cause, errCancelled):
		return w.giveUp(ctx, r, state, failure), false
	}
	r.incomplete(failure)
	r.pauseBeforeRetry(ctx)
	return "", true
}

// giveUp ends an operation past its point of no return as it stands.
func (w Work[S]) giveUp(ctx context.Context, r *run, state *S, failure error) State {
	if w.GiveUp != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if err := guarded(r.log, func() error { return w.GiveUp(ctx, state) }); err != nil {
			r.log.Error("given up, and what is true now not noted", "err", err)
		}
	}
	r.result(w.result(state))
	return r.fail(Incomplete, fmt.Errorf("given up on request, past the point of no return, after: %w", failure))
}

// past asks the world until it answers or ctx ends.
func (w Work[S]) past(ctx context.Context, r *run, state *S) (past, known bool) {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for {
		var past bool
		err := guarded(r.log, func() (err error) { past, err = w.Past(bounded, state); return err })
		if err == nil {
			return past, true
		}
		r.log.Warn("point of no return not known", "err", err)
		if ctx.Err() != nil || bounded.Err() != nil {
			return false, false
		}
		r.incomplete(err)
		r.pauseBeforeRetry(bounded)
	}
}

// undo takes back step last and those before it, newest first.
func (w Work[S]) undo(ctx context.Context, r *run, state *S, steps []Step[S], last int, failure error) State {
	run, cause := ctx, context.Cause(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	// The journal says that this is an undo before it begins, so that a crash
	// in the middle goes on undoing what may be undone already.
	errs := []error{r.undoing(last, *state, failure)}
	for i := last; i >= 0; i-- {
		if steps[i].Undo == nil {
			continue
		}
		began := time.Now()
		err := guarded(r.log, func() error { return steps[i].Undo(ctx, state) })
		r.stepUndone(i, began, err)
		r.m.holdsClients(r, i > 0 && steps[i-1].HoldsClients)
		if errors.Is(err, ErrGoOn) {
			return w.goOn(run, r, state, steps, i+1)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", steps[i].Name, err))
		}
	}
	r.result(w.result(state))
	undoErr := errors.Join(errs...)
	if err := w.left(ctx, r, state); err != nil {
		return r.fail(Incomplete, errors.Join(err, failure, undoErr))
	}
	var refusal *Problem
	switch {
	case errors.Is(cause, errCancelled) && undoErr == nil:
		return r.fail(Cancelled, fmt.Errorf("%w; what could be undone was", cause))
	case errors.As(failure, &refusal) && undoErr == nil:
		return r.fail(Refused, refusal)
	}
	return r.fail(Undone, errors.Join(failure, undoErr))
}

// goOn does the steps from index first on after all. Should the operation have been
// cancelled or stopped, it goes on nevertheless: undone it cannot be.
func (w Work[S]) goOn(ctx context.Context, r *run, state *S, steps []Step[S], first int) State {
	if ctx.Err() != nil {
		ctx = context.WithoutCancel(ctx)
	}
	return w.run(ctx, r, state, steps, first)
}

func (w Work[S]) left(ctx context.Context, r *run, state *S) error {
	if w.Left == nil {
		return nil
	}
	return guarded(r.log, func() error { return w.Left(ctx, state) })
}

// resume goes on with an operation that another process began.
func (w Work[S]) resume(ctx context.Context, r *run) State {
	state, err := w.load(r)
	if err != nil {
		return r.fail(Incomplete, err)
	}
	r.markResumed()
	steps := w.Steps(&state)
	at := r.reached()
	last := at // the last step that may have begun: those without an entry are covered by this one's
	if !r.sameSteps(stepNames(steps), w.result(&state)) {
		at, last = 0, len(steps)-1 // of another version: any of them may have been done
	}
	for last+1 < len(steps) && !steps[last+1].Entry {
		last++
	}
	if w.Forward {
		return w.run(ctx, r, &state, steps, at)
	}
	noReturn := index(steps, w.NoReturn)
	past := noReturn >= 0 && at > noReturn // a later entry proves that this step had ended
	if !past && noReturn >= 0 && last >= noReturn {
		// It is asked until the world answers. To leave the operation aside would let
		// others begin, and a later start would go on with it in a world that has
		// moved on. Only a person may give it up.
		for known := false; !known; {
			past, known = w.past(ctx, r, &state)
			switch cause := context.Cause(ctx); {
			case known:
			case errors.Is(cause, errCancelled):
				return w.giveUp(ctx, r, &state, errors.New("whether its point of no return is passed is not known"))
			case cause != nil:
				return Running
			}
		}
		at = max(at, noReturn)
	}
	if past {
		return w.run(ctx, r, &state, steps, at)
	}
	return w.undo(ctx, r, &state, steps, last, r.interruption())
}

func index[S any](steps []Step[S], name string) int {
	for i, st := range steps {
		if name != "" && st.Name == name {
			return i
		}
	}
	return -1
}
