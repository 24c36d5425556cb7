package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestSteps(t *testing.T) {
	goOn := func(context.Context) error { return fmt.Errorf("%w: b", ErrGoOn) }
	for _, tt := range []struct {
		name  string
		do    acts
		state State
		trace string
		steps string // see inBrief
		says  string
		loud  int // errors that are logged
	}{
		{"all succeed", nil, Succeeded, "a b c leap d e", "dddddd", "", 0},
		{"one fails: those before it are undone, newest first", acts{"c": failing}, Undone, "a b c " + undoOfC, "uuuppp", "c: boom", 0},
		{"the first fails", acts{"a": failing}, Undone, "a undo a", "uppppp", "a: boom", 0},
		{"a refusal in a step", acts{"c": refusing}, Refused, "a b c " + undoOfC, "uuuppp", "none", 0},
		{"a refusal, and an undo fails", acts{"c": refusing, "undo b": failing}, Undone, "a b c " + undoOfC, "ufuppp", "undo b: boom", 1},
		{"an undo fails: the others go on", acts{"c": failing, "undo b": failing}, Undone, "a b c " + undoOfC, "ufuppp", "undo b: boom", 1},
		{"a panic", acts{"c": panicking}, Undone, "a b c " + undoOfC, "uuuppp", "internal fault: oh", 1},
		{"a panic in an undo", acts{"c": failing, "undo c": panicking}, Undone, "a b c " + undoOfC, "uufppp", "internal fault: oh", 2},
		{"the leap fails and was none", acts{"leap": failing}, Undone, "a b c leap undo leap " + undoOfC, "uuuupp", "leap: boom", 0},
		{"what cannot be taken back is gone on from", acts{"leap": times(1, errBoom), "undo b": goOn},
			Succeeded, "a b c leap undo leap undo c undo b c leap d e", "dfdddd", "", 1},
		{"gone on, and failed again", acts{"leap": failing, "undo b": times(1, ErrGoOn)},
			Undone, "a b c leap undo leap undo c undo b c leap undo leap " + undoOfC, "uuuupp", "leap: boom", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onBench(t, func(b *bench) {
				s := &script{do: tt.do}
				s.past = func(context.Context) (bool, error) {
					if !strings.Contains(s.trace(), "leap") {
						t.Error("the world was asked about a step that had not begun")
					}
					return false, nil
				}
				rec := b.run(s)
				if rec.State != tt.state || s.trace() != tt.trace || rec.Mode != "tried" {
					t.Errorf("%s %s after %q, want %s after %q", rec.Mode, rec.State, s.trace(), tt.state, tt.trace)
				}
				if got := inBrief(rec.Steps); got != tt.steps {
					t.Errorf("steps %s, want %s", got, tt.steps)
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
				if b.loud = true; b.told.count("level=ERROR") != tt.loud {
					t.Errorf("want %d errors told:\n%s", tt.loud, b.told.text.String())
				}
			})
		})
	}
}

// inBrief is the state of each step: pending, done, failed, undone.
func inBrief(steps []StepRecord) string {
	var out strings.Builder
	for _, s := range steps {
		out.WriteByte(s.State[0])
	}
	return out.String()
}

// What a refusal has to tell is kept, whatever it is called in the end.
func TestTheProblemOfARefusal(t *testing.T) {
	for _, tt := range []struct {
		do    acts
		kind  string
		steps string
	}{
		{acts{"c": refusing}, "/problems/no-candidate", ""},
		{acts{"c": refusing, "undo b": failing}, "/problems/undone", "undo: boom"},
	} {
		onBench(t, func(b *bench) {
			b.loud = true
			rec := b.run(&script{do: tt.do})
			if rec.Problem.Type != tt.kind || fmt.Sprint(rec.Problem.Numbers["lag"]) != "5" {
				t.Errorf("%+v, want %s with its numbers", *rec.Problem, tt.kind)
			}
			if got := rec.Steps[1].Error; got != tt.steps {
				t.Errorf("step b: %q, want %q", got, tt.steps)
			}
		})
	}
}

// Work without a point of no return is undone at any step.
func TestWorkWithoutAPointOfNoReturn(t *testing.T) {
	onBench(t, func(b *bench) {
		s := &script{policy: Work[scriptState]{Forward: true}, do: acts{"d": failing}}
		if rec := b.run(s); rec.State != Undone || s.trace() != "a b c leap d undo d undo leap "+undoOfC {
			t.Errorf("%s after %q", rec.State, s.trace())
		}
	})
}

// An undo has a minute, whatever has become of the operation's context. One that hangs
// keeps no other from being undone.
func TestAnUndoHasAMinute(t *testing.T) {
	for _, tt := range []struct {
		takes time.Duration
		took  time.Duration
		says  string
	}{{50 * time.Second, 50 * time.Second, ""}, {time.Hour, time.Minute, "undo b: context deadline exceeded"}} {
		onBench(t, func(b *bench) {
			b.loud = true
			open := make(chan struct{})
			time.AfterFunc(tt.takes, func() { close(open) })
			s := &script{do: acts{"c": failing, "undo b": hold(open)}}
			began := time.Now()
			rec := b.run(s)
			if took := time.Since(began); took != tt.took || rec.State != Undone || s.trace() != "a b c "+undoOfC {
				t.Errorf("%s after %s and %q, want %s", rec.State, took, s.trace(), tt.took)
			}
			if got := rec.Problem.Detail; strings.Contains(got, "undo b") != (tt.says != "") || !strings.Contains(got, tt.says) {
				t.Errorf("problem %q, want %q", got, tt.says)
			}
			time.Sleep(time.Hour)
		})
	}
}

// Clients that a step holds are held until its undo has ended; what others write waits
// as long, and no longer.
func TestClientsAreHeldUntilTheirStepIsUndone(t *testing.T) {
	onBench(t, func(b *bench) {
		in := func(d time.Duration, err error) func(context.Context, *scriptState) error {
			return func(context.Context, *scriptState) error { time.Sleep(d); return err }
		}
		waited := b.write()
		b.beginWork("align", []Step[scriptState]{
			{Name: "look", Do: in(0, nil), Undo: in(5*time.Second, nil)},
			{Name: "pause", HoldsClients: true, Do: in(0, nil), Undo: in(5*time.Second, nil)},
			{Name: "stop", HoldsClients: true, Do: in(2*time.Second, errBoom), Undo: in(0, nil)},
			{Name: "after"},
		})
		time.Sleep(time.Minute)
		if got := <-waited; got.Round(100*time.Millisecond) != 6*time.Second {
			t.Errorf("the other wrote after %s, want 6 s: 1 until the failure and 5 until the pause was undone", got)
		}
	})
}

// What an undo has left may be nothing to leave it at, whatever failed.
func TestWhatAnUndoHasLeft(t *testing.T) {
	for _, do := range []acts{{"c": failing}, {"c": refusing}, {"c": failing, "undo b": failing}} {
		onBench(t, func(b *bench) {
			b.loud = true
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
		s := &script{do: acts{"c": failing}}
		s.policy.Left = func(context.Context, *scriptState) error { return nil }
		if rec := b.run(s); rec.State != Undone {
			t.Errorf("%s %+v", rec.State, rec.Problem)
		}
	})
}

// What was cancelled goes on as well, where there is no way back.
func TestACancelledOperationGoesOn(t *testing.T) {
	onBench(t, func(b *bench) {
		b.loud = true
		at := make(chan struct{})
		s := &script{do: acts{
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
		rec, err = b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"})
		if err != nil || rec.State != Succeeded || s.trace() != "a b c undo c undo b c leap d e" {
			t.Errorf("%s after %q, %v", rec.State, s.trace(), err)
		}
	})
}

func TestPastThePointOfNoReturn(t *testing.T) {
	for _, tt := range []struct {
		name  string
		do    acts
		past  func() func(context.Context) (bool, error)
		trace string
	}{
		{"the leap fails and was one: again", acts{"leap": times(1, errBoom)},
			func() func(context.Context) (bool, error) { return yes }, "a b c leap leap d e"},
		{"not known at first", acts{"leap": times(1, errBoom)},
			func() func(context.Context) (bool, error) { return unknown(2, true) }, "a b c leap leap d e"},
		{"a later step fails: from the leap on, and nobody asks whether it was one", acts{"d": times(2, errBoom)},
			func() func(context.Context) (bool, error) {
				return func(context.Context) (bool, error) { panic("asked") }
			}, "a b c leap d leap d leap d e"},
		{"a step with an entry fails: from that entry on", acts{"e": times(1, errBoom)},
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

// While the world does not say whether it was the point of no return, the leap is not
// taken again; when it says that it was not, everything is undone.
func TestWhatIsNotKnownIsAskedAgain(t *testing.T) {
	onBench(t, func(b *bench) {
		s := &script{do: acts{"leap": times(1, errBoom)}, past: unknown(3, false)}
		if rec := b.run(s); rec.State != Incomplete {
			t.Errorf("settled %s, want incomplete", rec.State)
		}
		time.Sleep(time.Minute)
		if open := b.m.Open(); len(open) > 0 || s.trace() != "a b c leap undo leap "+undoOfC {
			t.Errorf("did %q, open %+v", s.trace(), open)
		}
	})
}

// unknown says the first n times that the world does not answer.
func unknown(n int, past bool) func(context.Context) (bool, error) {
	return func(context.Context) (bool, error) {
		if n--; n >= 0 {
			return false, errBoom
		}
		return past, nil
	}
}

// What fails again and again past the point of no return is tried at once, and then
// more and more seldom.
func TestRetriesAreSpacedOut(t *testing.T) {
	onBench(t, func(b *bench) {
		var tries []time.Time
		fails := times(7, errBoom)
		s := &script{do: acts{"e": func(ctx context.Context) error {
			tries = append(tries, time.Now())
			return fails(ctx)
		}}}
		b.run(s)
		time.Sleep(time.Minute)
		synctest.Wait()
		var gaps []int64
		for i := range tries[1:] {
			gaps = append(gaps, tries[i+1].Sub(tries[i]).Milliseconds())
		}
		if want := []int64{100, 200, 400, 800, 1600, 2000, 2000}; !slices.Equal(gaps, want) {
			t.Errorf("tried again after %v ms, want %v", gaps, want)
		}
	})
}

// Also the first step may be the point of no return.
func TestTheFirstStepIsThePointOfNoReturn(t *testing.T) {
	never := func(context.Context) (bool, error) { panic("asked") }
	no := func(context.Context) (bool, error) { return false, nil }
	first := Work[scriptState]{NoReturn: "a"}
	for _, tt := range []struct {
		name  string
		do    acts
		past  func(context.Context) (bool, error)
		state State
		trace string
	}{
		{"it fails, and was none", acts{"a": failing}, no, Undone, "a undo a"},
		{"it fails, and was one", acts{"a": times(1, errBoom)}, yes, Succeeded, "a a b c leap d e"},
		{"a later one fails", acts{"c": times(1, errBoom)}, never, Succeeded, "a b c b c leap d e"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onBench(t, func(b *bench) {
				s := &script{policy: first, do: tt.do, past: tt.past}
				rec := b.run(s)
				time.Sleep(time.Minute)
				if rec, _ = b.m.Get(rec.ID); rec.State != tt.state || s.trace() != tt.trace {
					t.Errorf("%s after %q, want %s after %q", rec.State, s.trace(), tt.state, tt.trace)
				}
			})
		})
	}
	for _, tt := range []struct {
		at    string
		past  func(context.Context) (bool, error)
		state State
		trace string
	}{
		{"a", no, Undone, "undo a"},
		{"a", yes, Succeeded, "a b c leap d e"},
		{"b", never, Succeeded, "b c leap d e"},
	} {
		t.Run("killed at "+tt.at, func(t *testing.T) {
			onBench(t, func(b *bench) {
				gone := make(chan struct{})
				dies := func(context.Context) error { <-gone; return errBoom }
				b.begin("failover", &script{policy: first, do: acts{tt.at: dies}, past: yes})
				b.crash(func() { close(gone) })
				next := &script{policy: first, past: tt.past}
				if rec := b.resume(next); rec.State != tt.state || next.trace() != tt.trace {
					t.Errorf("%s after %q, want %s after %q", rec.State, next.trace(), tt.state, tt.trace)
				}
			})
		})
	}
}

// To find out whether a step was the point of no return a server may be fenced. Of one
// that was certainly not begun it is known.
func TestNobodyAsksAboutAStepThatWasNotBegun(t *testing.T) {
	never := func(context.Context) (bool, error) { panic("asked") }
	t.Run("cancelled before it", func(t *testing.T) {
		onBench(t, func(b *bench) {
			s := &script{past: never, do: acts{"c": taking(time.Second)}}
			rec := b.begin("failover", s)
			rec, err := b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"})
			if err != nil || rec.State != Cancelled || s.trace() != "a b c undo leap "+undoOfC {
				t.Errorf("%s after %q, %v", rec.State, s.trace(), err)
			}
		})
	})
	t.Run("its entry is refused", func(t *testing.T) {
		onBench(t, func(b *bench) {
			b.loud = true
			s := &script{past: never, do: acts{"c": func(context.Context) error { return b.j.Close() }}}
			if rec := b.run(s); rec.State != Undone || s.trace() != "a b c undo leap "+undoOfC {
				t.Errorf("%s after %q", rec.State, s.trace())
			}
			b.crash(func() {})
		})
	})
	t.Run("cancelled before the first", func(t *testing.T) {
		onBench(t, func(b *bench) {
			b.holdClients(nil)
			s := &script{past: never, policy: Work[scriptState]{NoReturn: "a"}}
			rec := b.begin("protect", s) // and waits, for the others' entries go first
			rec, err := b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"})
			if err != nil || rec.State != Cancelled || s.trace() != "undo a" {
				t.Errorf("%s after %q, %v", rec.State, s.trace(), err)
			}
		})
	})
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
				s := &script{do: acts{tt.at: hold(nil)}, past: tt.past}
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

// TestResume: the process dies in a step, and another goes on by what the
// journal says and what the world is.
func TestResume(t *testing.T) {
	for _, tt := range []struct {
		at    string
		past  bool
		state State
		trace string
		steps string
		says  string
	}{
		{"a", false, Undone, "undo a", "pppppp", "controld ended after step a had begun"},
		// c may have been done: it has no entry of its own.
		{"b", false, Undone, undoOfC, "uppppp", "controld ended after step b had begun"},
		{"c", false, Undone, undoOfC, "uppppp", "controld ended after step b had begun"},
		{"leap", false, Undone, "undo d undo leap " + undoOfC, "uuuppp", "controld ended after step leap had begun"},
		{"leap", true, Succeeded, "leap d e", "dddddd", ""},
		{"d", true, Succeeded, "leap d e", "dddddd", ""},
		{"e", true, Succeeded, "e", "dddddd", ""},
		{"e", false, Succeeded, "e", "dddddd", ""}, // nobody asks again what the entry of e proves
	} {
		t.Run(fmt.Sprintf("%s, past %v", tt.at, tt.past), func(t *testing.T) {
			onBench(t, func(b *bench) {
				gone := make(chan struct{})
				s := &script{do: acts{tt.at: func(context.Context) error { <-gone; return errBoom }}}
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
				if got := inBrief(rec.Steps); got != tt.steps {
					t.Errorf("steps %s, want %s", got, tt.steps)
				}
				if tt.state == Undone && !strings.Contains(rec.Problem.Detail, tt.says) {
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
			s := &script{do: acts{"leap": func(context.Context) error { <-gone; return errBoom }}}
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
		s := &script{do: acts{"c": failing, "undo b": func(context.Context) error { <-gone; return nil }}}
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
		s = &script{do: acts{"a": func(context.Context) error { return b.j.Close() }}}
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
		s = &script{past: yes, do: acts{"d": func(context.Context) error { return b.j.Close() }}}
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
	checked := Prepared{Checks: []Check{{Name: "lag"}}}
	panics := Work[scriptState]{Prepare: func(context.Context, *scriptState) (Prepared, error) { panic("oh") }}
	for _, tt := range []struct {
		name    string
		work    Work[scriptState]
		state   State
		problem string
		result  string
	}{
		{"refused", prepare(checked, Refuse("lag", nil, "too far")), Refused, "/problems/lag", "map[seen:0]"},
		{"fails", prepare(Prepared{}, errBoom), Refused, "/problems/precheck-failed", "map[seen:0]"},
		{"already so", prepare(Prepared{Already: "there"}, nil), Succeeded, "", "map[already:there seen:0]"},
		{"panics", panics, Refused, "/problems/precheck-failed", "map[]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onBench(t, func(b *bench) {
				b.loud = tt.name == "panics"
				s := &script{policy: tt.work}
				rec := b.run(s)
				if rec.State != tt.state || s.trace() != "" || (rec.Problem != nil) != (tt.problem != "") {
					t.Fatalf("%s after %q: %+v", rec.State, s.trace(), rec.Problem)
				}
				if rec.Problem != nil && rec.Problem.Type != tt.problem {
					t.Errorf("problem %s", rec.Problem.Type)
				}
				if got := fmt.Sprint(rec.Result); got != tt.result {
					t.Errorf("result %s, want %s", got, tt.result)
				}
				if kept, err := b.j.get(rec.ID); err != nil || kept.Record.State != tt.state {
					t.Errorf("audit: %+v, %v", kept.Record, err)
				}
			})
		})
	}
	t.Run("already so, and nothing else to tell", func(t *testing.T) {
		onBench(t, func(b *bench) {
			work := prepare(Prepared{Already: "there"}, nil)
			rec, err := b.m.Start(context.Background(), Spec{Kind: "failover"}, work)
			if err != nil || fmt.Sprint(rec.Result) != "map[already:there]" {
				t.Errorf("%+v, %v", rec, err)
			}
			synctest.Wait()
		})
	})
}

// TestResumeOfAnotherVersion: the list of steps has changed since.
func TestResumeOfAnotherVersion(t *testing.T) {
	var same []StepRecord
	for _, name := range []string{"a", "b", "c", "leap", "d", "e"} {
		same = append(same, StepRecord{Name: name})
	}
	for _, tt := range []struct {
		name    string
		steps   []StepRecord
		reached int
		past    bool
		state   State
		trace   string
	}{
		{"other steps", []StepRecord{{Name: "old"}, {Name: "b"}}, 1, false, Undone, "undo e undo d undo leap " + undoOfC},
		{"other steps, past", []StepRecord{{Name: "old"}, {Name: "b"}}, 1, true, Succeeded, "leap d e"},
		{"the same, and one more", same, len(same), false, Undone, "undo e undo d undo leap " + undoOfC},
		{"none reached", same, -1, false, Undone, "undo e undo d undo leap " + undoOfC},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onBench(t, func(b *bench) {
				rec := Record{ID: "x", Kind: "failover", State: Running, Steps: tt.steps}
				if err := b.j.put(entry{Record: rec, Reached: tt.reached, State: json.RawMessage(`{}`)}); err != nil {
					t.Fatal(err)
				}
				b.crash(func() {})
				s := &script{past: func(context.Context) (bool, error) { return tt.past, nil }}
				if rec = b.resume(s); rec.State != tt.state || s.trace() != tt.trace {
					t.Errorf("%s after %q, want %s after %q", rec.State, s.trace(), tt.state, tt.trace)
				}
			})
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

// Cancelled while it is checked, it has touched nothing, and says so.
func TestCancelledBeforeItBegins(t *testing.T) {
	for _, kind := range []string{"failover", kindCopy} { // nobody cleans up after what did nothing
		onSorts(t, func(b *bench) {
			s := &script{policy: Work[scriptState]{Prepare: func(ctx context.Context, _ *scriptState) (Prepared, error) {
				<-ctx.Done()
				return Prepared{}, Refuse("no-primary", nil, "nobody answered")
			}}}
			time.AfterFunc(time.Second, func() {
				if _, err := b.m.Cancel(context.Background(), b.m.Open()[0].ID, Caller{Name: "t"}); err != nil {
					t.Error(err)
				}
			})
			rec, err := b.start(kind, s)
			if rec.State != Cancelled || err == nil || !strings.Contains(err.Error(), "nothing was touched") || s.trace() != "" {
				t.Errorf("%s %v after %q", rec.State, err, s.trace())
			}
			if recs, _, err := b.m.List(Filter{}); err != nil || len(recs) != 1 || recs[0].FollowedBy != "" {
				t.Errorf("the audit has %+v, %v", recs, err)
			}
		})
	}
}
