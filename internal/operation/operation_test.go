package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A script is work whose steps do what a test tells them, and note that they did.
type script struct {
	mu     sync.Mutex
	done   []string
	do     map[string]func(context.Context) error // by step; undo's are "undo NAME"
	past   func(context.Context) (bool, error)
	policy Work[scriptState]
}

type scriptState struct {
	Names []string `json:"names"`
	Seen  int      `json:"seen"`
}

// note is what step name does.
func (s *script) note(name string) func(context.Context, *scriptState) error {
	return func(ctx context.Context, state *scriptState) error {
		s.mu.Lock()
		s.done = append(s.done, name)
		do := s.do[name]
		s.mu.Unlock()
		state.Seen++
		if do != nil {
			return do(ctx)
		}
		return nil
	}
}

func (s *script) trace() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.done, " ")
}

// work has the steps a, b!, c, leap!, d, e! where ! asks for an entry; leap is
// the point of no return.
func (s *script) work() Runnable {
	w := s.policy
	if w.Prepare == nil {
		w.Prepare = func(context.Context, *scriptState) (Prepared, error) { return Prepared{Mode: "tried"}, nil }
	}
	w.Steps = func(*scriptState) []Step[scriptState] {
		var out []Step[scriptState]
		for _, name := range []string{"a!", "b!", "c", "leap!", "d", "e!"} {
			plain := strings.TrimSuffix(name, "!")
			out = append(out, Step[scriptState]{Name: plain, Entry: plain != name, Do: s.note(plain), Undo: s.note("undo " + plain)})
		}
		return out
	}
	if !w.Forward {
		w.NoReturn = "leap"
		w.Past = func(ctx context.Context, _ *scriptState) (bool, error) {
			if s.past == nil {
				return false, nil
			}
			return s.past(ctx)
		}
	}
	w.Result = func(state *scriptState) map[string]any { return map[string]any{"seen": state.Seen} }
	return w
}

type bench struct {
	t   *testing.T
	dir string
	j   *Journal
	m   *Manager
	// table is what NewManager gets; nil: Claims.
	table Table
	build Builder // for every kind
}

func (b *bench) claims() Table {
	if b.table == nil {
		return Claims
	}
	return b.table
}

// kinds are those of the table that have a builder.
func (b *bench) kinds() map[string]bool {
	out := map[string]bool{}
	for _, row := range b.claims() {
		if row.Kind != KindCleanup {
			out[row.Kind] = true
		}
	}
	return out
}

// onBench runs f in virtual time with a manager.
func onBench(t *testing.T, f func(b *bench)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, dir: dir}
		b.open()
		defer b.close()
		f(b)
	})
}

func (b *bench) open() {
	b.t.Helper()
	j, err := OpenJournal(b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	if b.m, err = NewManager(j, b.claims(), slog.New(slog.DiscardHandler)); err != nil {
		b.t.Fatal(err)
	}
	for kind := range b.kinds() {
		err := b.m.Register(kind, func(r Record, params json.RawMessage) (Runnable, error) { return b.build(r, params) })
		if err != nil {
			b.t.Fatal(err)
		}
	}
	b.j = j
}

func (b *bench) close() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.m.Stop(ctx); err != nil {
		b.t.Error(err)
	}
	if err := b.j.Close(); err != nil {
		b.t.Error(err)
	}
}

// crash leaves the journal as it stands: nothing of the old manager reaches it
// any more. Release lets its goroutines end.
func (b *bench) crash(release func()) {
	b.t.Helper()
	if err := b.j.Close(); err != nil {
		b.t.Fatal(err)
	}
	old := b.m
	b.open()
	release()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := old.Stop(ctx); err != nil {
		b.t.Error(err)
	}
}

func (b *bench) start(kind string, s *script) (Record, error) {
	return b.m.Start(context.Background(), Spec{Kind: kind, Caller: Caller{Name: "t"}, Params: json.RawMessage(`{}`)}, s.work())
}

// run starts an operation and waits until it is settled.
func (b *bench) run(s *script) Record {
	b.t.Helper()
	rec, err := b.start("failover", s)
	var p *Problem
	if err != nil && !errors.As(err, &p) {
		b.t.Fatal(err)
	}
	rec, err = b.m.Wait(context.Background(), rec.ID)
	if err != nil {
		b.t.Fatal(err)
	}
	return rec
}

func (b *bench) resume(s *script) Record {
	b.t.Helper()
	var id string
	b.build = func(r Record, _ json.RawMessage) (Runnable, error) {
		id = r.ID
		return s.work(), nil
	}
	if err := b.m.Resume(context.Background()); err != nil {
		b.t.Fatal(err)
	}
	rec, err := b.m.Get(id)
	if err != nil {
		b.t.Fatal(err)
	}
	return rec
}

var errBoom = errors.New("boom")

func failing(context.Context) error { return errBoom }

// times returns a step that fails the first n times.
func times(n int, err error) func(context.Context) error {
	return func(context.Context) error {
		if n--; n >= 0 {
			return err
		}
		return nil
	}
}

func yes(context.Context) (bool, error) { return true, nil }

const undoOfC = "undo c undo b undo a"

func TestSteps(t *testing.T) {
	for _, tt := range []struct {
		name  string
		do    map[string]func(context.Context) error
		past  func(context.Context) (bool, error)
		state State
		trace string
		says  string
	}{
		{"all succeed", nil, nil, Succeeded, "a b c leap d e", ""},
		{"one fails: those before it are undone, newest first", map[string]func(context.Context) error{"c": failing}, nil, Undone, "a b c " + undoOfC, "c: boom"},
		{"the first fails", map[string]func(context.Context) error{"a": failing}, nil, Undone, "a undo a", "a: boom"},
		{"a refusal in a step", map[string]func(context.Context) error{"c": func(context.Context) error { return Refuse("no-candidate", nil, "none") }}, nil, Refused, "a b c " + undoOfC, "none"},
		{"a refusal whose undo fails is no refusal", map[string]func(context.Context) error{
			"c": func(context.Context) error { return Refuse("no-candidate", nil, "none") }, "undo b": failing,
		}, nil, Undone, "a b c " + undoOfC, "undo b: boom"},
		{"an undo fails: the others go on", map[string]func(context.Context) error{"c": failing, "undo b": failing}, nil, Undone, "a b c " + undoOfC, "undo b: boom"},
		{"a panic", map[string]func(context.Context) error{"c": func(context.Context) error { panic("oh") }}, nil, Undone, "a b c " + undoOfC, "internal fault: oh"},
		{"a panic in an undo", map[string]func(context.Context) error{"c": failing, "undo c": func(context.Context) error { panic("oh") }}, nil, Undone, "a b c " + undoOfC, "internal fault: oh"},
		{"the leap fails and was none", map[string]func(context.Context) error{"leap": failing}, nil, Undone, "a b c leap undo leap " + undoOfC, "leap: boom"},
		{"what cannot be taken back is gone on from", map[string]func(context.Context) error{
			"leap": times(1, errBoom), "undo b": func(context.Context) error { return fmt.Errorf("%w: b", ErrGoOn) },
		}, nil, Succeeded, "a b c leap undo leap undo c undo b c leap d e", ""},
		{"gone on, and failed again", map[string]func(context.Context) error{
			"leap": failing, "undo b": times(1, ErrGoOn),
		}, nil, Undone, "a b c leap undo leap undo c undo b c leap undo leap " + undoOfC, "leap: boom"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onBench(t, func(b *bench) {
				s := &script{do: tt.do, past: tt.past}
				rec := b.run(s)
				if rec.State != tt.state || s.trace() != tt.trace {
					t.Errorf("%s after %q, want %s after %q", rec.State, s.trace(), tt.state, tt.trace)
				}
				if (rec.Problem == nil) != (tt.says == "") || rec.Problem != nil && !strings.Contains(rec.Problem.Detail, tt.says) {
					t.Errorf("problem %+v, want %q", rec.Problem, tt.says)
				}
				if len(b.m.Open()) != 0 {
					t.Errorf("still open: %+v", b.m.Open())
				}
				if kept, err := b.j.get(rec.ID); err != nil || kept.Record.State != tt.state || kept.Record.EndedAt.IsZero() {
					t.Errorf("journal: %+v, %v", kept.Record, err)
				}
			})
		})
	}
}

// What an undo has left may be nothing to leave it at, whatever failed.
func TestWhatAnUndoHasLeft(t *testing.T) {
	refusing := func(context.Context) error { return Refuse("no-candidate", nil, "none") }
	for _, do := range []map[string]func(context.Context) error{{"c": failing}, {"c": refusing}, {"c": failing, "undo b": failing}} {
		onBench(t, func(b *bench) {
			s := &script{do: do}
			s.policy.Left = func(context.Context, *scriptState) error { return errors.New("nobody leads: start a") }
			rec := b.run(s)
			if rec.State != Incomplete || rec.EndedAt.IsZero() || !strings.HasPrefix(rec.Problem.Detail, "nobody leads: start a") {
				t.Errorf("%s %+v", rec.State, rec.Problem)
			}
			if open := b.m.Open(); len(open) > 0 {
				t.Errorf("still open: %+v", open)
			}
		})
	}
	onBench(t, func(b *bench) {
		s := &script{do: map[string]func(context.Context) error{"c": failing}}
		s.policy.Left = func(context.Context, *scriptState) error { return nil }
		if rec := b.run(s); rec.State != Undone {
			t.Errorf("%s %+v", rec.State, rec.Problem)
		}
	})
}

// What was cancelled goes on as well, where there is no way back.
func TestACancelledOperationGoesOn(t *testing.T) {
	onBench(t, func(b *bench) {
		at := make(chan struct{})
		s := &script{do: map[string]func(context.Context) error{
			"c": func(ctx context.Context) error {
				select {
				case <-at: // the second time
					return nil
				default:
				}
				close(at)
				<-ctx.Done()
				return ctx.Err()
			},
			"undo b": func(context.Context) error { return ErrGoOn },
		}}
		rec, err := b.start("failover", s)
		if err != nil {
			t.Fatal(err)
		}
		<-at
		if rec, err = b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"}); err != nil || rec.State != Succeeded || s.trace() != "a b c undo c undo b c leap d e" {
			t.Errorf("%s after %q, %v", rec.State, s.trace(), err)
		}
	})
}

func TestPastThePointOfNoReturn(t *testing.T) {
	for _, tt := range []struct {
		name  string
		do    map[string]func(context.Context) error
		past  func() func(context.Context) (bool, error)
		trace string
	}{
		{"the leap fails and was one: again", map[string]func(context.Context) error{"leap": times(1, errBoom)},
			func() func(context.Context) (bool, error) { return yes }, "a b c leap leap d e"},
		{"not known at first", map[string]func(context.Context) error{"leap": times(1, errBoom)},
			func() func(context.Context) (bool, error) {
				n := 0
				return func(context.Context) (bool, error) {
					if n++; n < 3 {
						return false, errBoom
					}
					return true, nil
				}
			}, "a b c leap leap d e"},
		{"a later step fails: from the leap on, and nobody asks whether it was one", map[string]func(context.Context) error{"d": times(2, errBoom)},
			func() func(context.Context) (bool, error) {
				return func(context.Context) (bool, error) { panic("asked") }
			}, "a b c leap d leap d leap d e"},
		{"a step with an entry fails: from that entry on", map[string]func(context.Context) error{"e": times(1, errBoom)},
			func() func(context.Context) (bool, error) { return yes }, "a b c leap d e e"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onBench(t, func(b *bench) {
				s := &script{do: tt.do, past: tt.past()}
				rec := b.run(s)
				if rec.State != Incomplete || rec.Problem == nil {
					t.Errorf("settled %s, %+v, want incomplete with a problem", rec.State, rec.Problem)
				}
				time.Sleep(time.Minute)
				if rec, _ = b.m.Get(rec.ID); rec.State != Succeeded || rec.Problem != nil {
					t.Errorf("in the end %s, %+v", rec.State, rec.Problem)
				}
				if s.trace() != tt.trace {
					t.Errorf("did %q, want %q", s.trace(), tt.trace)
				}
			})
		})
	}
}

// hold is a step that waits for its context or for open.
func hold(open <-chan struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func TestCancel(t *testing.T) {
	for _, tt := range []struct {
		at    string
		past  func(context.Context) (bool, error)
		state State
		trace string
	}{
		{"c", nil, Cancelled, "a b c " + undoOfC},
		{"leap", nil, Cancelled, "a b c leap undo leap " + undoOfC},
		{"leap", yes, Incomplete, "a b c leap"},
		{"d", nil, Incomplete, "a b c leap d"},
	} {
		t.Run(fmt.Sprintf("%s, past %v", tt.at, tt.past != nil), func(t *testing.T) {
			onBench(t, func(b *bench) {
				s := &script{do: map[string]func(context.Context) error{tt.at: hold(nil)}, past: tt.past}
				rec, err := b.start("failover", s)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				rec, err = b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"})
				if err != nil || rec.State != tt.state || s.trace() != tt.trace {
					t.Errorf("%s after %q (%v), want %s after %q", rec.State, s.trace(), err, tt.state, tt.trace)
				}
				if rec.Open() {
					t.Error("it has ended, and is said to be open")
				}
				if _, err := b.m.Cancel(context.Background(), rec.ID, Caller{}); !errors.Is(err, ErrEnded) {
					t.Errorf("cancelled again: %v", err)
				}
				if _, err := b.m.Cancel(context.Background(), "none", Caller{}); !errors.Is(err, ErrNotFound) {
					t.Errorf("cancel of none: %v", err)
				}
			})
		})
	}
}

// TestStop: before the point of no return it is undone, past it the journal
// stays open, and the next start goes on.
func TestStop(t *testing.T) {
	for _, tt := range []struct {
		at, trace string
		forward   bool
		open      bool
		then      string
	}{
		{"c", "a b c " + undoOfC, false, false, ""},
		{"d", "a b c leap d", false, true, "leap d e"},
		{"c", "a b c", true, true, "b c leap d e"},
	} {
		t.Run(fmt.Sprintf("at %s, forward %v", tt.at, tt.forward), func(t *testing.T) {
			onBench(t, func(b *bench) {
				s := &script{do: map[string]func(context.Context) error{tt.at: hold(nil)}, past: yes, policy: Work[scriptState]{Forward: tt.forward}}
				if tt.at == "c" {
					s.past = nil
				}
				rec, err := b.start("failover", s)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				if err := b.m.Stop(ctx); err != nil {
					t.Error(err)
				}
				if s.trace() != tt.trace {
					t.Errorf("did %q, want %q", s.trace(), tt.trace)
				}
				if _, err := b.start("failover", &script{}); !errors.Is(err, ErrStopping) {
					t.Errorf("started while stopping: %v", err)
				}
				kept, err := b.j.get(rec.ID)
				if err != nil || kept.Record.EndedAt.IsZero() != tt.open {
					t.Errorf("journal: %+v, %v", kept.Record, err)
				}
				if !tt.open {
					return
				}
				b.crash(func() {})
				next := &script{past: yes, policy: Work[scriptState]{Forward: tt.forward}}
				if rec := b.resume(next); rec.State != Succeeded || next.trace() != tt.then {
					t.Errorf("resumed: %s after %q, want %q", rec.State, next.trace(), tt.then)
				}
			})
		})
	}
}

// What this process has begun before it came to resume is not begun twice.
func TestResumeLeavesAloneWhatThisProcessBegan(t *testing.T) {
	onBench(t, func(b *bench) {
		gone := make(chan struct{})
		s := &script{do: map[string]func(context.Context) error{"a": hold(gone)}}
		rec, err := b.start("failover", s)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.build = func(r Record, _ json.RawMessage) (Runnable, error) {
			t.Errorf("%s is begun again", r.ID)
			return s.work(), nil
		}
		if err := b.m.Resume(context.Background()); err != nil {
			t.Error(err)
		}
		close(gone)
		if rec, err = b.m.Wait(context.Background(), rec.ID); err != nil || rec.State != Succeeded {
			t.Errorf("%s, %v", rec.State, err)
		}
	})
}

// TestResume: the process dies in a step, and another goes on by what the
// journal says and what the world is.
func TestResume(t *testing.T) {
	for _, tt := range []struct {
		at    string
		past  bool
		state State
		trace string
	}{
		{"a", false, Undone, "undo a"},
		{"b", false, Undone, undoOfC}, // c may have been done: it has no entry of its own
		{"c", false, Undone, undoOfC},
		{"leap", false, Undone, "undo d undo leap " + undoOfC},
		{"leap", true, Succeeded, "leap d e"},
		{"d", true, Succeeded, "leap d e"},
		{"e", true, Succeeded, "e"},
		{"e", false, Succeeded, "e"}, // nobody asks again what the entry of e proves
	} {
		t.Run(fmt.Sprintf("%s, past %v", tt.at, tt.past), func(t *testing.T) {
			onBench(t, func(b *bench) {
				gone := make(chan struct{})
				s := &script{do: map[string]func(context.Context) error{tt.at: func(context.Context) error { <-gone; return errBoom }}}
				if _, err := b.start("failover", s); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				b.crash(func() { close(gone) })
				if _, err := b.start("rejoin", &script{}); !errors.As(err, new(*Busy)) {
					t.Errorf("started beside one that waits to be resumed: %v", err)
				}
				next := &script{past: func(context.Context) (bool, error) { return tt.past, nil }}
				rec := b.resume(next)
				if rec.State != tt.state || next.trace() != tt.trace {
					t.Errorf("%s after %q, want %s after %q", rec.State, next.trace(), tt.state, tt.trace)
				}
				if tt.state == Undone && !strings.Contains(rec.Problem.Detail, "controld ended after") {
					t.Errorf("problem %+v", rec.Problem)
				}
				if len(b.m.Open()) != 0 {
					t.Error("still open")
				}
			})
		})
	}
}

// TestResumeWhileTheWorldDoesNotSay: an operation whose point of no return is not
// known excludes others for as long as it takes. Left aside and resumed at a later
// start it would go on in another world.
func TestResumeWhileTheWorldDoesNotSay(t *testing.T) {
	for _, tt := range []struct {
		cancelled bool
		state     State
		trace     string
	}{{false, Succeeded, "leap d e"}, {true, Incomplete, "given up"}} {
		onBench(t, func(b *bench) {
			gone := make(chan struct{})
			s := &script{do: map[string]func(context.Context) error{"leap": func(context.Context) error { <-gone; return errBoom }}}
			if _, err := b.start("failover", s); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			b.crash(func() { close(gone) })
			began := time.Now()
			next := &script{past: func(context.Context) (bool, error) {
				if time.Since(began) < 5*time.Minute {
					return false, errBoom
				}
				return true, nil
			}}
			next.policy.GiveUp = next.note("given up")
			rec := b.resume(next)
			time.Sleep(2 * time.Minute)
			if open := b.m.Open(); len(open) != 1 || open[0].State != Incomplete {
				t.Errorf("after two minutes: %+v", open)
			}
			if _, err := b.start("rejoin", &script{}); !errors.As(err, new(*Busy)) {
				t.Errorf("started beside it: %v", err)
			}
			if tt.cancelled {
				if _, err := b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"}); err != nil {
					t.Error(err)
				}
			}
			time.Sleep(10 * time.Minute)
			if rec, _ = b.m.Get(rec.ID); rec.State != tt.state || rec.Open() || next.trace() != tt.trace {
				t.Errorf("in the end %s after %q, want %s after %q", rec.State, next.trace(), tt.state, tt.trace)
			}
		})
	}
}

// TestCrashWhileUndoing: it goes on undoing, for the same reason.
func TestCrashWhileUndoing(t *testing.T) {
	onBench(t, func(b *bench) {
		gone := make(chan struct{})
		s := &script{do: map[string]func(context.Context) error{"c": failing, "undo b": func(context.Context) error { <-gone; return nil }}}
		if _, err := b.start("failover", s); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.crash(func() { close(gone) })
		next := &script{}
		if rec := b.resume(next); rec.State != Undone || next.trace() != undoOfC || rec.Problem.Detail != "c: boom" {
			t.Errorf("%s after %q: %+v", rec.State, next.trace(), rec.Problem)
		}
	})
}

// TestFullDisk: refused before the first change; past the point of no return incomplete.
func TestFullDisk(t *testing.T) {
	onBench(t, func(b *bench) {
		if err := b.j.Close(); err != nil {
			t.Fatal(err)
		}
		s := &script{}
		if rec, err := b.start("failover", s); err == nil || rec.State != Refused || s.trace() != "" {
			t.Errorf("%s after %q (%v), want refused after nothing", rec.State, s.trace(), err)
		}
		synctest.Wait()
		b.crash(func() {})
		// The disk fills up while it runs: the entry before b is refused, and a is undone.
		s = &script{do: map[string]func(context.Context) error{"a": func(context.Context) error { return b.j.Close() }}}
		if _, err := b.start("failover", s); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s.trace() != "a undo b undo a" {
			t.Errorf("did %q", s.trace())
		}
		b.crash(func() {})
		if rec := b.resume(&script{}); rec.State != Undone {
			t.Errorf("after the next start: %s", rec.State)
		}
		s = &script{past: yes, do: map[string]func(context.Context) error{"d": func(context.Context) error { return b.j.Close() }}}
		rec := b.run(s)
		if rec.State != Incomplete {
			t.Errorf("past the point of no return: %s after %q", rec.State, s.trace())
		}
		b.crash(func() {})
		next := &script{past: yes}
		if rec := b.resume(next); rec.State != Succeeded || next.trace() != "leap d e" {
			t.Errorf("%s after %q", rec.State, next.trace())
		}
	})
}

func TestPrepare(t *testing.T) {
	prepare := func(p Prepared, err error) Work[scriptState] {
		return Work[scriptState]{Prepare: func(context.Context, *scriptState) (Prepared, error) { return p, err }}
	}
	panics := Work[scriptState]{Prepare: func(context.Context, *scriptState) (Prepared, error) { panic("oh") }}
	for _, tt := range []struct {
		name    string
		work    Work[scriptState]
		state   State
		problem string
	}{
		{"refused", prepare(Prepared{Checks: []Check{{Name: "lag"}}}, Refuse("lag", nil, "too far")), Refused, "/problems/lag"},
		{"fails", prepare(Prepared{}, errBoom), Refused, "/problems/precheck-failed"},
		{"already so", prepare(Prepared{Already: "there"}, nil), Succeeded, ""},
		{"panics", panics, Refused, "/problems/precheck-failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onBench(t, func(b *bench) {
				s := &script{policy: tt.work}
				rec := b.run(s)
				if rec.State != tt.state || s.trace() != "" || (rec.Problem != nil) != (tt.problem != "") {
					t.Fatalf("%s after %q: %+v", rec.State, s.trace(), rec.Problem)
				}
				if rec.Problem != nil && rec.Problem.Type != tt.problem {
					t.Errorf("problem %s", rec.Problem.Type)
				}
				if kept, err := b.j.get(rec.ID); err != nil || kept.Record.State != tt.state {
					t.Errorf("audit: %+v, %v", kept.Record, err)
				}
			})
		})
	}
}

func TestExclusion(t *testing.T) {
	apart := map[string][]string{"rejoin": {"protect"}, "align": {"protect"}, "protect": {"rejoin", "align"}}
	for _, a := range Claims {
		for _, b := range Claims {
			if got, want := a.excludes(b), !slices.Contains(apart[a.Kind], b.Kind); got != want {
				t.Errorf("%s beside %s: excluded %v, want %v", a.Kind, b.Kind, got, want)
			}
		}
	}
	for _, row := range Claims {
		if !row.excludes(Claims.row("unheard of", "")) {
			t.Errorf("a kind that the table does not know runs beside %s", row.Kind)
		}
	}
}

func TestBusy(t *testing.T) {
	onBench(t, func(b *bench) {
		open := make(chan struct{})
		s := &script{do: map[string]func(context.Context) error{"b": hold(open)}}
		running, err := b.start("failover", s)
		if err != nil {
			t.Fatal(err)
		}
		foreseen := map[string]any{"node": "a"}
		_, err = b.m.Start(context.Background(), Spec{Kind: "rejoin", Foreseen: foreseen}, (&script{}).work())
		var busy *Busy
		if !errors.As(err, &busy) || busy.Running.ID != running.ID {
			t.Fatalf("%v, want busy with %s", err, running.ID)
		}
		recs, _, err := b.m.List(Filter{Kind: "rejoin"})
		if err != nil || len(recs) != 1 || recs[0].State != Refused || recs[0].Problem.Numbers["operation"] != running.ID || recs[0].Result["node"] != "a" {
			t.Errorf("audit of the refused one: %+v, %v", recs, err)
		}
		close(open)
		if _, err := b.m.Wait(context.Background(), running.ID); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := b.start("rejoin", &script{}); err != nil {
			t.Errorf("after it: %v", err)
		}
	})
}

func TestIdempotency(t *testing.T) {
	key := func(body string) Caller {
		return Caller{Name: "t", Idempotency: &Idempotency{Key: "k", Caller: "t", Method: "POST", Path: "/failover", Body: []byte(body)}}
	}
	onBench(t, func(b *bench) {
		ask := func(body string, s *script) (Record, error) {
			return b.m.Start(context.Background(), Spec{Kind: "failover", Caller: key(body)}, s.work())
		}
		open := make(chan struct{})
		s := &script{do: map[string]func(context.Context) error{"b": hold(open)}}
		one, err := ask("x", s)
		if err != nil {
			t.Fatal(err)
		}
		again := &script{}
		if rec, err := ask("x", again); err != nil || rec.ID != one.ID {
			t.Errorf("joined %s, %v, want %s", rec.ID, err, one.ID)
		}
		if _, err := ask("y", again); !errors.Is(err, ErrKeyReused) {
			t.Errorf("another body: %v", err)
		}
		close(open)
		if _, err := b.m.Wait(context.Background(), one.ID); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if rec, err := ask("x", again); err != nil || rec.ID != one.ID || rec.State != Succeeded {
			t.Errorf("after its end: %+v, %v", rec, err)
		}
		time.Sleep(keptFor + time.Minute)
		if rec, err := ask("y", again); err != nil || rec.ID == one.ID {
			t.Errorf("a day later: %+v, %v", rec, err)
		}
	})
}

// TestAKeyWhoseOperationWasLost: controld ended between the key and the first
// entry. The client asks again, and gets the work done.
func TestAKeyWhoseOperationWasLost(t *testing.T) {
	onBench(t, func(b *bench) {
		key := &Idempotency{Key: "k", Caller: "t", Method: "POST", Path: "/failover"}
		gone := make(chan struct{})
		s := &script{policy: Work[scriptState]{Prepare: func(context.Context, *scriptState) (Prepared, error) { <-gone; return Prepared{}, errBoom }}}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		lost, err := b.m.Start(ctx, Spec{Kind: "failover", Caller: Caller{Idempotency: key}}, s.work())
		if err != nil {
			t.Fatal(err)
		}
		b.crash(func() { close(gone) })
		rec, err := b.m.Start(context.Background(), Spec{Kind: "failover", Caller: Caller{Idempotency: key}}, (&script{}).work())
		if err != nil || rec.ID == lost.ID {
			t.Errorf("%+v, %v", rec, err)
		}
	})
}

// TestABusyKeyIsFree: what was never begun does not bind the key.
func TestABusyKeyIsFree(t *testing.T) {
	onBench(t, func(b *bench) {
		open := make(chan struct{})
		running, err := b.start("failover", &script{do: map[string]func(context.Context) error{"b": hold(open)}})
		if err != nil {
			t.Fatal(err)
		}
		spec := Spec{Kind: "failover", Caller: Caller{Idempotency: &Idempotency{Key: "k"}}}
		if _, err := b.m.Start(context.Background(), spec, (&script{}).work()); !errors.As(err, new(*Busy)) {
			t.Fatal(err)
		}
		close(open)
		_, _ = b.m.Wait(context.Background(), running.ID)
		synctest.Wait()
		if rec, err := b.m.Start(context.Background(), spec, (&script{}).work()); err != nil || rec.ID == running.ID {
			t.Errorf("%+v, %v", rec, err)
		}
	})
}

func TestListAndPaging(t *testing.T) {
	onBench(t, func(b *bench) {
		var ids []string
		for i := range 7 {
			s := &script{}
			if i == 3 {
				s.do = map[string]func(context.Context) error{"a": failing}
			}
			ids = append(ids, b.run(s).ID)
			synctest.Wait()
		}
		slices.Reverse(ids)
		var got []string
		for after, pages := "", 0; ; pages++ {
			recs, next, err := b.m.List(Filter{Limit: 3, After: after})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range recs {
				got = append(got, r.ID)
			}
			if after = next; next == "" {
				if pages != 2 {
					t.Errorf("%d more pages", pages)
				}
				break
			}
		}
		if !slices.Equal(got, ids) {
			t.Errorf("listed %v, want %v", got, ids)
		}
		if recs, next, err := b.m.List(Filter{State: Undone, Limit: 1}); err != nil || len(recs) != 1 || recs[0].ID != ids[3] || next != "" {
			t.Errorf("undone: %v, %q, %v", recs, next, err)
		}
		if recs, _, err := b.m.List(Filter{After: "0"}); err != nil || len(recs) != 0 {
			t.Errorf("after the oldest: %v, %v", recs, err)
		}
		if recs, _, err := b.m.List(Filter{After: "z", Limit: 1}); err != nil || len(recs) != 1 || recs[0].ID != ids[0] {
			t.Errorf("after an ID newer than all: %v, %v", recs, err)
		}
	})
}

func TestEvents(t *testing.T) {
	onBench(t, func(b *bench) {
		all, stopAll := b.m.Subscribe("")
		slow, stopSlow := b.m.Subscribe("")
		defer stopSlow()
		rec := b.run(&script{})
		synctest.Wait()
		stopAll()
		var last Event
		var seq uint64
		for ev := range all {
			if ev.Seq <= seq || ev.Record.ID != rec.ID {
				t.Errorf("event %d after %d, of %s", ev.Seq, seq, ev.Record.ID)
			}
			seq, last = ev.Seq, ev
		}
		if last.Record.State != Succeeded || last.Record.Open() {
			t.Errorf("the last event tells %s", last.Record.State)
		}
		for range 40 { // nobody reads slow
			b.run(&script{})
			synctest.Wait()
		}
		n := 0
		for range slow {
			n++
		}
		if n != cap(slow) {
			t.Errorf("a slow subscriber got %d events before it was cut off, want %d", n, cap(slow))
		}
	})
}

func TestOneJournalForOneProcess(t *testing.T) {
	dir := t.TempDir()
	j, err := OpenJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, err := OpenJournal(dir); err == nil || !strings.Contains(err.Error(), "another controld") {
		t.Errorf("opened twice: %v", err)
	}
	if _, err := OpenJournal("/dev/null/x"); err == nil {
		t.Error("opened below a file")
	}
	if err := j.PutFact("f", 7); err != nil {
		t.Fatal(err)
	}
	var n int
	if found, err := j.Fact("f", &n); !found || err != nil || n != 7 {
		t.Errorf("fact: %v %v %d", found, err, n)
	}
	if found, err := j.Fact("none", &n); found || err != nil {
		t.Errorf("no fact: %v %v", found, err)
	}
}

// TestResumeOfAnotherVersion: the list of steps has changed since.
func TestResumeOfAnotherVersion(t *testing.T) {
	for _, past := range []bool{false, true} {
		onBench(t, func(b *bench) {
			if err := b.j.put(entry{Record: Record{ID: "x", Kind: "failover", State: Running, Steps: []StepRecord{{Name: "old"}, {Name: "b"}}}, Reached: 1, State: json.RawMessage(`{}`)}); err != nil {
				t.Fatal(err)
			}
			b.crash(func() {})
			s := &script{past: func(context.Context) (bool, error) { return past, nil }}
			rec := b.resume(s)
			state, trace := Undone, "undo e undo d undo leap "+undoOfC
			if past {
				state, trace = Succeeded, "leap d e"
			}
			if rec.State != state || s.trace() != trace {
				t.Errorf("past %v: %s after %q", past, rec.State, s.trace())
			}
		})
	}
}

// FuzzBrokenEntry: what a broken journal holds is an error, never a panic.
func FuzzBrokenEntry(f *testing.F) {
	f.Add([]byte(`{"record":{"id":"x","steps":[{"name":"a"}]},"reached":99,"state":{}}`))
	f.Add([]byte(`{"record":{"id":"x"},"reached":-5,"undoing":"y","state":"no"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var e entry
		if json.Unmarshal(data, &e) != nil {
			return
		}
		dir, err := os.MkdirTemp("", "fuzz") //nolint:usetesting // one for each input: t.TempDir goes only at the end
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		synctest.Test(t, func(t *testing.T) {
			b := &bench{t: t, dir: dir}
			b.open()
			defer b.close()
			e.Record.ID, e.Record.Kind, e.Record.EndedAt, e.Waiting = "x", "failover", time.Time{}, false
			if err := b.j.put(e); err != nil {
				return
			}
			b.crash(func() {})
			if rec := b.resume(&script{}); rec.Open() && rec.State != Incomplete {
				t.Errorf("left %s", rec.State)
			}
		})
	})
}
