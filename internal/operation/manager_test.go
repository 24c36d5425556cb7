package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

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
				s := &script{do: acts{tt.at: hold(nil)}, past: yes, policy: Work[scriptState]{Forward: tt.forward}}
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
		s := &script{do: acts{"a": hold(gone)}}
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

func TestBusy(t *testing.T) {
	onBench(t, func(b *bench) {
		open := make(chan struct{})
		s := &script{do: acts{"b": hold(open)}}
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
		if err != nil || len(recs) != 1 {
			t.Fatalf("audit of the refused one: %+v, %v", recs, err)
		}
		if rec := recs[0]; rec.State != Refused || rec.Problem.Numbers["operation"] != running.ID || rec.Result["node"] != "a" {
			t.Errorf("audit of the refused one: %+v", rec)
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
		s := &script{do: acts{"b": hold(open)}}
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
		for _, other := range []Idempotency{{Method: "PUT", Path: "/failover"}, {Method: "POST", Path: "/failback"}} {
			by := key("x")
			by.Idempotency.Method, by.Idempotency.Path = other.Method, other.Path
			if _, err := b.m.Start(context.Background(), Spec{Kind: "failover", Caller: by}, again.work()); !errors.Is(err, ErrKeyReused) {
				t.Errorf("another request, %s %s: %v", other.Method, other.Path, err)
			}
		}
		time.Sleep(24 * time.Hour)
		if rec, err := ask("x", again); err != nil || rec.ID != one.ID {
			t.Errorf("after a day: %+v, %v", rec, err)
		}
		time.Sleep(time.Minute)
		if rec, err := ask("y", again); err != nil || rec.ID == one.ID {
			t.Errorf("after more than a day: %+v, %v", rec, err)
		}
	})
}

// TestAKeyWhoseOperationWasLost: controld ended between the key and the first
// entry. The client asks again, and gets the work done.
func TestAKeyWhoseOperationWasLost(t *testing.T) {
	onBench(t, func(b *bench) {
		key := &Idempotency{Key: "k", Caller: "t", Method: "POST", Path: "/failover"}
		gone := make(chan struct{})
		s := &script{policy: Work[scriptState]{Prepare: func(context.Context, *scriptState) (Prepared, error) {
			<-gone
			return Prepared{}, errBoom
		}}}
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
		running, err := b.start("failover", &script{do: acts{"b": hold(open)}})
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
				s.do = acts{"a": failing}
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
		recs, next, err := b.m.List(Filter{State: Undone, Limit: 1})
		if err != nil || len(recs) != 1 || recs[0].ID != ids[3] || next != "" {
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
		ends := 0
		for ev := range all {
			if ev.Seq <= seq || ev.Record.ID != rec.ID {
				t.Errorf("event %d after %d, of %s", ev.Seq, seq, ev.Record.ID)
			}
			if seq, last = ev.Seq, ev; ev.Ended() {
				ends++
			}
		}
		if last.Record.State != Succeeded || last.Record.Open() || !last.Ended() || ends != 1 {
			t.Errorf("the last event tells %s, and the end is told %d times", last.Record.State, ends)
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

// TestResumeSideBySide: what ran side by side does so again, that first which may
// have clients waiting.
func TestResumeSideBySide(t *testing.T) {
	onSorts(t, func(b *bench) {
		gone := make(chan struct{})
		forward := func(b func(context.Context) error) *script {
			return &script{do: acts{"b": b}, policy: Work[scriptState]{Forward: true}}
		}
		dies := func(context.Context) error { <-gone; return errBoom }
		for _, kind := range []string{kindLoad, "align", "protect"} {
			b.begin(kind, forward(dies))
		}
		b.crash(func() { close(gone) })
		var built []string
		open := make(chan struct{})
		b.build = func(r Record, _ json.RawMessage) (Runnable, error) {
			built = append(built, r.Kind)
			return forward(hold(open)).work(), nil
		}
		go func() { _ = b.m.Resume(context.Background()) }()
		synctest.Wait()
		if len(built) != 3 || built[0] != "align" {
			t.Errorf("resumed %v side by side", built)
		}
		close(open)
		synctest.Wait()
		if left := b.m.Open(); len(left) > 0 {
			t.Errorf("still open: %+v", left)
		}
	})
}

// TestStopLeavesRestartableWorkAtOnce, and what waits, and gives the rest its time.
func TestStopLeavesRestartableWorkAtOnce(t *testing.T) {
	onSorts(t, func(b *bench) {
		s := holding()
		s.policy.Forward = true
		rec := b.begin(kindAgain, s)
		began := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := b.m.Stop(ctx); err != nil || time.Since(began) != 0 {
			t.Errorf("stopped after %s: %v", time.Since(began), err)
		}
		if e, err := b.j.get(rec.ID); err != nil || !e.Record.Open() {
			t.Errorf("%+v, %v", e.Record, err)
		}
		b.crash(func() {})
		next := &script{policy: Work[scriptState]{Forward: true}}
		if rec := b.resume(next); rec.State != Succeeded || next.trace() != "b c leap d e" {
			t.Errorf("%s after %q", rec.State, next.trace())
		}
	})
}

// What had not begun when controld stopped leaves no trace, and its key is free.
func TestStopBeforeItBegins(t *testing.T) {
	onSorts(t, func(b *bench) {
		s := &script{policy: Work[scriptState]{Decide: func(ctx context.Context, _ *scriptState) (Decision, error) {
			<-ctx.Done()
			return Decision{}, ctx.Err()
		}}}
		spec := Spec{Kind: "failover", Caller: Caller{Name: "t", Idempotency: &Idempotency{Key: "k", Caller: "t"}}}
		time.AfterFunc(time.Second, func() {
			if err := b.m.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
		if _, err := b.m.Start(context.Background(), spec, s.work()); !errors.Is(err, ErrStopping) {
			t.Errorf("%v", err)
		}
		synctest.Wait()
		b.crash(func() {})
		if recs, _, err := b.m.List(Filter{}); err != nil || len(recs) > 0 {
			t.Errorf("%+v, %v", recs, err)
		}
		if rec, err := b.m.Start(context.Background(), spec, (&script{}).work()); err != nil || rec.State == Refused {
			t.Errorf("asked again: %s, %v", rec.State, err)
		}
	})
}

func TestStopGivesTheRestItsTime(t *testing.T) {
	onSorts(t, func(b *bench) {
		b.begin(kindLoad, &script{do: acts{"b": taking(5 * time.Second)}})
		waits := b.begin(kindTidy, &script{policy: Work[scriptState]{Forward: true}})
		began := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := b.m.Stop(ctx); err != nil || time.Since(began) != 5*time.Second {
			t.Errorf("stopped after %s: %v", time.Since(began), err)
		}
		if left, err := b.j.open(); err != nil || len(left) != 1 || left[0].Record.ID != waits.ID {
			t.Errorf("left open: %+v, %v", left, err)
		}
	})
}

// An operation is listed as it stands, which the journal learns later.
func TestAnOpenOneIsListedAsItStands(t *testing.T) {
	onBench(t, func(b *bench) {
		rec := b.run(&script{do: acts{"d": failing}})
		if kept, err := b.j.get(rec.ID); err != nil || kept.Record.State != Running {
			t.Fatalf("the journal has it as %s, %v", kept.Record.State, err)
		}
		if recs, _, err := b.m.List(Filter{}); err != nil || len(recs) != 1 || recs[0].State != Incomplete {
			t.Errorf("listed as %+v, %v", recs, err)
		}
		if recs, _, err := b.m.List(Filter{State: Running}); err != nil || len(recs) != 0 {
			t.Errorf("of those that run: %+v, %v", recs, err)
		}
		if _, err := b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"}); err != nil {
			t.Error(err)
		}
	})
}

// What the disk refuses to note of an end is told, is known nevertheless, and is noted
// when the disk takes it, at the latest when controld stops.
func TestAnEndThatTheDiskRefuses(t *testing.T) {
	onBench(t, func(b *bench) {
		b.loud = true
		open := make(chan struct{})
		running := b.begin("failover", &script{do: acts{"e": func(ctx context.Context) error {
			return errors.Join(b.j.db.Close(), hold(open)(ctx))
		}}})
		events, stop := b.m.Subscribe("")
		defer stop()
		if _, err := b.start("rejoin", &script{}); !errors.As(err, new(*Busy)) {
			t.Fatalf("beside it: %v", err)
		}
		refused := (<-events).ID
		close(open)
		synctest.Wait()
		for id, want := range map[string]State{running.ID: Succeeded, refused: Refused} {
			if rec, err := b.m.Get(id); err != nil || rec.State != want || rec.Open() {
				t.Errorf("while the disk is full: %+v, %v, want %s", rec, err, want)
			}
		}
		if ends, refusals := b.told.count("refused the end"), b.told.count("refused the refusal"); ends != 1 || refusals != 1 {
			t.Errorf("told of %d ends and %d refusals", ends, refusals)
		}
		var err error
		if b.j.db, err = openFile(filepath.Join(b.dir, JournalFile)); err != nil {
			t.Fatal(err)
		}
		if err := b.m.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		for id, want := range map[string]State{running.ID: Succeeded, refused: Refused} {
			if kept, err := b.j.get(id); err != nil || kept.Record.State != want || kept.Record.Open() {
				t.Errorf("when it takes it: %+v, %v, want %s", kept.Record, err, want)
			}
		}
		if n := b.told.count("after all"); n != 2 {
			t.Errorf("told of %d that were noted after all", n)
		}
	})
}
