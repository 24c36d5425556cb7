package operation

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Kinds of each sort, beside those of the cluster.
const (
	kindCopy  = "copy"  // long, shared; gives way to a failover and is let go
	kindLoad  = "load"  // long, shared, of a data set; a failover waits for it, for a while
	kindTidy  = "tidy"  // waits for a load as long as it takes, and is gone on with after a crash
	kindOnce  = "once"  // the same, but it is not gone on with
	kindAgain = "again" // restartable; gives way to a failover, and undoes what it did first
	kindHeavy = "heavy" // refuses a failover, unless it is to be cancelled for it
	kindProud = "proud" // refuses one in any case
)

const dataset, repository Resource = "dataset", "repository"

// sorts is a table with a kind of each sort.
var sorts = append(slices.Clone(Claims), Table{
	{
		Kind: kindCopy, Shared: []Resource{Primary}, Exclusive: []Resource{repository}, Loose: true,
		Yields: []Yield{{To: "failover", How: AnswerCancel}}, CancelCosts: "it is made anew",
	},
	{Kind: KindCleanup, Modes: []string{kindCopy}, Exclusive: []Resource{repository}, Yields: []Yield{{To: kindCopy, How: AnswerWait}}},
	{
		Kind: kindLoad, Shared: []Resource{Primary}, Exclusive: []Resource{dataset},
		Yields: []Yield{{To: "failover", How: AnswerWait, Within: 10 * time.Second}, {To: kindTidy, How: AnswerWait}, {To: kindOnce, How: AnswerWait}},
	},
	{Kind: kindTidy, Exclusive: []Resource{dataset}, Yields: []Yield{{To: kindLoad, How: AnswerWait}}},
	{Kind: kindOnce, Exclusive: []Resource{dataset}},
	{Kind: kindAgain, Shared: []Resource{Primary}, Restartable: true, Yields: []Yield{{To: "failover", How: AnswerCancel}}},
	{Kind: kindHeavy, Shared: []Resource{Primary}, CancelCosts: "an hour"},
	{Kind: kindProud, Shared: []Resource{Primary}},
}...)

func onSorts(t *testing.T, f func(b *bench)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, dir: dir, table: sorts}
		b.open()
		defer b.close()
		f(b)
	})
}

// begin starts an operation that must begin.
func (b *bench) begin(kind string, s *script) Record {
	b.t.Helper()
	rec, err := b.start(kind, s)
	if err != nil {
		b.t.Fatalf("start %s: %v", kind, err)
	}
	synctest.Wait()
	return rec
}

func (b *bench) state(id string) State {
	b.t.Helper()
	rec, err := b.m.Get(id)
	if err != nil {
		b.t.Fatal(err)
	}
	return rec.State
}

// holding is a script whose step b takes until its context ends.
func holding() *script {
	return &script{do: map[string]func(context.Context) error{"b": hold(nil)}}
}

// TestAFailoverIsAnsweredByTheRow: with each sort open, at once unless the row says wait.
func TestAFailoverIsAnsweredByTheRow(t *testing.T) {
	for _, tt := range []struct {
		running       string
		cancelRunning bool
		busy          bool
		after         time.Duration // until it has begun, or is refused
		left          State         // the one that ran
	}{
		{kindCopy, false, false, 0, Cancelled},
		{kindLoad, false, true, 10 * time.Second, Running},
		{kindAgain, false, false, 0, Cancelled},
		{kindHeavy, false, true, 0, Running},
		{kindHeavy, true, false, 0, Cancelled},
		{kindProud, false, true, 0, Running},
		{kindProud, true, true, 0, Running},
	} {
		t.Run(tt.running, func(t *testing.T) {
			onSorts(t, func(b *bench) {
				b.build = func(Record, json.RawMessage) (Runnable, error) { return (&script{}).work(), nil }
				running := b.begin(tt.running, holding())
				for _, x := range []Resource{Cluster, Commit} {
					if held := b.m.Holding(x); len(held) > 0 {
						t.Errorf("%s holds %s, and supervision would stop for it", tt.running, x)
					}
				}
				began := time.Now()
				s := &script{}
				spec := Spec{Kind: "failover", Caller: Caller{Name: "t"}, CancelRunning: tt.cancelRunning}
				rec, err := b.m.Start(context.Background(), spec, s.work())
				if took := time.Since(began); took != tt.after {
					t.Errorf("answered after %s, want %s", took, tt.after)
				}
				var busy *Busy
				if errors.As(err, &busy) != tt.busy {
					t.Fatalf("%v, want busy %v", err, tt.busy)
				}
				if tt.busy && (busy.Running.ID != running.ID || (tt.running == kindHeavy) != strings.Contains(busy.Error(), "cancel_running it is cancelled first: an hour")) {
					t.Errorf("refused by: %v", busy)
				}
				if !tt.busy {
					if rec, err = b.m.Wait(context.Background(), rec.ID); err != nil || rec.State != Succeeded {
						t.Errorf("%s, %v", rec.State, err)
					}
				}
				if got := b.state(running.ID); got != tt.left {
					t.Errorf("%s is %s, want %s", tt.running, got, tt.left)
				}
			})
		})
	}
}

// TestALoad: a failover begins when what it waits for ends within the row's time.
func TestAFailoverWaits(t *testing.T) {
	onSorts(t, func(b *bench) {
		b.begin(kindLoad, &script{do: map[string]func(context.Context) error{"b": func(context.Context) error { time.Sleep(4 * time.Second); return nil }}})
		began := time.Now()
		rec, err := b.start("failover", &script{})
		if took := time.Since(began); err != nil || took != 4*time.Second {
			t.Errorf("began after %s: %v", took, err)
		}
		if rec.WaitsFor != "" {
			t.Errorf("it has begun, and still waits for %s", rec.WaitsFor)
		}
	})
}

// TestLetGo: what gives way is let go at once, however long its step takes to return;
// what it leaves is cleaned up by an operation of its own, also by the next process.
func TestLetGo(t *testing.T) {
	for _, crash := range []bool{false, true} {
		onSorts(t, func(b *bench) {
			back := make(chan struct{})
			deaf := &script{do: map[string]func(context.Context) error{"b": func(context.Context) error { <-back; return errBoom }}}
			next := &script{}
			b.build = func(Record, json.RawMessage) (Runnable, error) {
				if crash {
					return next.work(), nil
				}
				return deaf.work(), nil
			}
			copied := b.begin(kindCopy, deaf)
			began := time.Now()
			if rec := b.run(&script{}); rec.State != Succeeded || time.Since(began) != 0 {
				t.Fatalf("failover %s after %s", rec.State, time.Since(began))
			}
			rec, err := b.m.Get(copied.ID)
			if err != nil || rec.State != Cancelled || rec.Open() || rec.FollowedBy == "" || !strings.Contains(rec.Problem.Detail, "gave way to failover") {
				t.Fatalf("%+v, %v", rec, err)
			}
			waits, err := b.start(kindCopy, &script{}) // never beside what the other one has left
			if err != nil || waits.WaitsFor != rec.FollowedBy {
				t.Errorf("another copy waits for %q: %v", waits.WaitsFor, err)
			}
			synctest.Wait()
			if strings.Contains(deaf.trace(), "undo") {
				t.Errorf("cleaned up beside the step: %s", deaf.trace())
			}
			cleaned := deaf
			if crash {
				b.crash(func() { close(back) })
				if err := b.m.Resume(context.Background()); err != nil {
					t.Fatal(err)
				}
				cleaned = next
			} else {
				close(back)
			}
			time.Sleep(time.Minute)
			rec, err = b.m.Get(rec.FollowedBy)
			if err != nil || rec.State != Succeeded || rec.Kind != KindCleanup || rec.Follows != copied.ID {
				t.Errorf("clean-up: %+v, %v", rec, err)
			}
			if !strings.HasSuffix(cleaned.trace(), undoOfC) {
				t.Errorf("cleaned up: %s", cleaned.trace())
			}
		})
	}
}

// A clean-up is tried until it has succeeded, while failovers come and go.
func TestACleanupTakesAsLongAsItNeeds(t *testing.T) {
	onSorts(t, func(b *bench) {
		s := holding()
		s.do["undo b"] = times(8, errBoom)
		b.build = func(Record, json.RawMessage) (Runnable, error) { return s.work(), nil }
		rec := b.begin(kindCopy, s)
		rec, err := b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"})
		if err != nil || rec.State != Cancelled {
			t.Fatalf("%+v, %v", rec, err)
		}
		time.Sleep(time.Second)
		if got := b.state(rec.FollowedBy); got != Incomplete {
			t.Errorf("clean-up %s", got)
		}
		if failover := b.run(&script{}); failover.State != Succeeded {
			t.Errorf("failover beside it: %s", failover.State)
		}
		if copied, err := b.start(kindCopy, &script{}); err != nil || copied.WaitsFor != rec.FollowedBy {
			t.Errorf("a copy beside the clean-up: waits for %q, %v", copied.WaitsFor, err)
		}
		time.Sleep(time.Minute)
		if got := b.state(rec.FollowedBy); got != Succeeded {
			t.Errorf("in the end: %s", got)
		}
	})
}

// TestWaiting: it says what it waits for, holds nothing, can be cancelled, and is
// gone on with by the next process if it can be.
func TestWaiting(t *testing.T) {
	for _, tt := range []struct {
		kind  string
		what  string
		state State
		trace string
	}{
		{kindTidy, "the other ends", Succeeded, "a b c leap d e"},
		{kindTidy, "cancelled", Cancelled, ""},
		{kindTidy, "crash", Succeeded, "a b c leap d e"},
		{kindOnce, "crash", Undone, ""},
		{kindTidy, "stop", Succeeded, "a b c leap d e"},
	} {
		t.Run(tt.kind+" "+tt.what, func(t *testing.T) {
			onSorts(t, func(b *bench) {
				open := make(chan struct{})
				loading := &script{do: map[string]func(context.Context) error{"b": hold(open)}, policy: Work[scriptState]{Forward: true}}
				load := b.begin(kindLoad, loading)
				s := &script{policy: Work[scriptState]{Forward: tt.kind == kindTidy}}
				rec := b.begin(tt.kind, s)
				time.Sleep(time.Hour)
				if rec, _ = b.m.Get(rec.ID); rec.WaitsFor != load.ID || rec.State != Running || s.trace() != "" {
					t.Fatalf("%s waits for %q after %q", rec.State, rec.WaitsFor, s.trace())
				}
				if held := b.m.Holding(dataset); len(held) != 1 || held[0].ID != load.ID {
					t.Errorf("the data set is held by %+v", held)
				}
				b.build = func(r Record, _ json.RawMessage) (Runnable, error) {
					if r.Kind == kindLoad {
						return loading.work(), nil
					}
					return s.work(), nil
				}
				switch tt.what {
				case "cancelled":
					if _, err := b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"}); err != nil {
						t.Error(err)
					}
				case "crash":
					b.crash(func() {})
					go func() { _ = b.m.Resume(context.Background()) }()
				case "stop":
					began := time.Now()
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					defer cancel()
					if err := b.m.Stop(ctx); err != nil {
						t.Error(err)
					}
					if took := time.Since(began); took > time.Second {
						t.Errorf("stopped after %s", took)
					}
					b.crash(func() {})
					go func() { _ = b.m.Resume(context.Background()) }()
				}
				synctest.Wait()
				close(open)
				time.Sleep(time.Minute)
				if rec, _ = b.m.Get(rec.ID); rec.State != tt.state || s.trace() != tt.trace || rec.WaitsFor != "" {
					t.Errorf("%s after %q, waits for %q, want %s after %q", rec.State, s.trace(), rec.WaitsFor, tt.state, tt.trace)
				}
			})
		})
	}
}

// TestDecidedBeforeAnythingIsClaimed: the mode is one before the rules are asked, and
// is decided anew when what excluded the operation has ended.
func TestDecidedBeforeAnythingIsClaimed(t *testing.T) {
	onSorts(t, func(b *bench) {
		decided := 0
		w := func(mode string) *script {
			return &script{policy: Work[scriptState]{Decide: func(context.Context, *scriptState) (Decision, error) {
				decided++
				return Decision{Mode: mode}, nil
			}, Prepare: func(context.Context, *scriptState) (Prepared, error) { return Prepared{}, nil }}}
		}
		rejoin := func() Record {
			rec, err := b.m.Start(context.Background(), Spec{Kind: "rejoin", Caller: Caller{Name: "controld", Kind: Daemon}}, holding().work())
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return rec
		}
		running := rejoin()
		rec, err := b.start("failover", w("emergency"))
		if err != nil || rec.Mode != "emergency" || b.state(running.ID) != Cancelled || decided != 2 {
			t.Errorf("%+v, %v, decided %d times", rec, err, decided)
		}
		synctest.Wait()
		decided = 0
		running = rejoin()
		time.AfterFunc(3*time.Second, func() { _, _ = b.m.Cancel(context.Background(), running.ID, Caller{Name: "t"}) })
		rec, err = b.start("failover", w("planned"))
		if err != nil || rec.Mode != "planned" || decided != 2 {
			t.Errorf("%+v, %v, decided %d times", rec, err, decided)
		}
		synctest.Wait()
		decided = 0
		b.begin(kindProud, holding())
		if _, err := b.start("failover", w("planned")); !errors.As(err, new(*Busy)) || decided != 0 {
			t.Errorf("refused in any mode: %v, decided %d times", err, decided)
		}
	})
}

// TestResumeSideBySide: what ran side by side does so again, that first which may
// have clients waiting.
func TestResumeSideBySide(t *testing.T) {
	onSorts(t, func(b *bench) {
		gone := make(chan struct{})
		dead := func() *script {
			return &script{do: map[string]func(context.Context) error{"b": func(context.Context) error { <-gone; return errBoom }}, policy: Work[scriptState]{Forward: true}}
		}
		b.begin(kindLoad, dead())
		b.begin("align", dead())
		b.begin("protect", dead())
		b.crash(func() { close(gone) })
		var built []string
		open := make(chan struct{})
		b.build = func(r Record, _ json.RawMessage) (Runnable, error) {
			built = append(built, r.Kind)
			return (&script{do: map[string]func(context.Context) error{"b": hold(open)}, policy: Work[scriptState]{Forward: true}}).work(), nil
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

// TestStopLeavesRestartableWorkAtOnce, and gives the rest its time.
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

func TestKindsWithoutARow(t *testing.T) {
	onSorts(t, func(b *bench) {
		if err := b.m.Register("unheard of", nil); err == nil || !strings.Contains(err.Error(), "no row") {
			t.Errorf("registered: %v", err)
		}
		if err := b.m.Register("failover", b.build); err == nil {
			t.Error("registered twice")
		}
		if _, err := b.start("unheard of", &script{}); err == nil {
			t.Error("started")
		}
		// Of another version, in the journal: it holds everything until it is cancelled.
		if err := b.j.put(entry{Record: Record{ID: "x", Kind: "unheard of", State: Running}, State: json.RawMessage(`{}`)}); err != nil {
			t.Fatal(err)
		}
		b.crash(func() {})
		if err := b.m.Resume(context.Background()); err == nil || !strings.Contains(err.Error(), "not known to this version") {
			t.Errorf("resumed: %v", err)
		}
		for _, kind := range []string{"protect", kindTidy, kindHeavy, "failover"} {
			if _, err := b.start(kind, &script{}); !errors.As(err, new(*Busy)) {
				t.Errorf("%s beside it: %v", kind, err)
			}
		}
		rec, err := b.m.Cancel(context.Background(), "x", Caller{Name: "t"})
		if err != nil || rec.State != Incomplete || rec.Open() {
			t.Errorf("%+v, %v", rec, err)
		}
		if rec := b.run(&script{}); rec.State != Succeeded {
			t.Errorf("after it: %s", rec.State)
		}
	})
	for _, tt := range []struct {
		table Table
		says  string
	}{
		{Table{{Kind: "a"}, {Kind: "a"}}, "two rows"},
		{Table{{Kind: "a", Loose: true}, {Kind: KindCleanup, Modes: []string{"a"}, Shared: []Resource{Commit}}}, "claims commit, which"},
		{Table{{Kind: "a", Loose: true}}, "no row says what its cleanup claims"},
		{Table{{Kind: "a", Yields: []Yield{{To: "b"}}}}, "which is no kind"},
	} {
		if _, err := NewManager(nil, tt.table, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%+v: %v", tt.table, err)
		}
	}
}

// An entry that an earlier version wrote does not say what kind of caller asked.
func TestCallersOfAnEarlierVersion(t *testing.T) {
	onSorts(t, func(b *bench) {
		for by, want := range map[string]CallerKind{"controld": Daemon, "operator": Person} {
			if err := b.j.put(entry{Record: Record{ID: by, Kind: "rejoin", RequestedBy: by, EndedAt: time.Now()}}); err != nil {
				t.Fatal(err)
			}
			if e, err := b.j.get(by); err != nil || e.Record.CallerKind != want {
				t.Errorf("%s: %q, %v", by, e.Record.CallerKind, err)
			}
		}
	})
}

// Cancelled while it ends by itself, it has ended once: it has succeeded and nothing
// is cleaned up, or it was let go and its clean-up does that.
func TestLetGoBesideItsEnd(t *testing.T) {
	b := &bench{t: t, dir: t.TempDir(), table: sorts}
	b.open()
	defer b.close()
	ends := map[State]int{}
	for i := range 60 {
		s := &script{}
		b.build = func(Record, json.RawMessage) (Runnable, error) { return s.work(), nil }
		at, done := make(chan string, 1), make(chan struct{})
		s.do = map[string]func(context.Context) error{"e": func(context.Context) error {
			id := <-at
			go func() {
				_, _ = b.m.Cancel(context.Background(), id, Caller{Name: "t"})
				close(done)
			}()
			time.Sleep(time.Duration(i%20) * 20 * time.Microsecond)
			return nil
		}}
		s.past = yes
		rec, err := b.start(kindCopy, s)
		if err != nil {
			t.Fatal(err)
		}
		at <- rec.ID
		if rec, err = b.m.Wait(context.Background(), rec.ID); err != nil {
			t.Fatal(err)
		}
		<-done
		if rec, err = b.m.Get(rec.ID); err != nil || rec.Open() {
			t.Fatalf("%+v, %v", rec, err)
		}
		ends[rec.State]++
		if kept, err := b.j.get(rec.ID); err != nil || kept.Record.State != rec.State {
			t.Fatalf("the journal says %s, %v", kept.Record.State, err)
		}
		if (rec.FollowedBy != "") != (rec.State == Cancelled) {
			t.Fatalf("%s, and cleaned up by %q", rec.State, rec.FollowedBy)
		}
		if rec.FollowedBy != "" {
			if _, err := b.m.Wait(context.Background(), rec.FollowedBy); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("ended as %v", ends)
}

// A clean-up never acts beside the step that has not returned: a stop leaves it to the
// next process.
func TestACleanupNeverRunsBesideTheStep(t *testing.T) {
	onSorts(t, func(b *bench) {
		s := &script{do: map[string]func(context.Context) error{"b": func(context.Context) error { time.Sleep(20 * time.Second); return nil }}}
		b.build = func(Record, json.RawMessage) (Runnable, error) { return s.work(), nil }
		rec := b.begin(kindCopy, s)
		rec, err := b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := b.m.Stop(ctx); err != nil {
			t.Error(err)
		}
		if strings.Contains(s.trace(), "undo") {
			t.Errorf("cleaned up beside the step: %s", s.trace())
		}
		if e, err := b.j.get(rec.FollowedBy); err != nil || !e.Record.Open() {
			t.Errorf("the clean-up: %+v, %v", e.Record, err)
		}
		b.crash(func() {})
		next := &script{}
		if rec := b.resume(next); rec.State != Succeeded || !strings.HasSuffix(next.trace(), undoOfC) {
			t.Errorf("%s after %q", rec.State, next.trace())
		}
	})
}

// A clean-up that another version has left has other steps.
func TestACleanupOfAnotherVersion(t *testing.T) {
	onSorts(t, func(b *bench) {
		rec := Record{ID: "x", Kind: KindCleanup, Mode: kindCopy, State: Running, Follows: "y", Steps: []StepRecord{{Name: "old"}}}
		if err := b.j.put(entry{Record: rec, State: json.RawMessage(`{}`)}); err != nil {
			t.Fatal(err)
		}
		b.crash(func() {})
		s := &script{}
		b.build = func(Record, json.RawMessage) (Runnable, error) { return s.work(), nil }
		if err := b.m.Resume(context.Background()); err != nil {
			t.Error(err)
		}
		if b.state("x") != Succeeded || !strings.HasSuffix(s.trace(), undoOfC) {
			t.Errorf("%s after %q", b.state("x"), s.trace())
		}
	})
}

// All that gives way is cancelled at once, however long the decision takes.
func TestSeveralGiveWay(t *testing.T) {
	onSorts(t, func(b *bench) {
		var running []Record
		for _, kind := range []string{"rejoin", "protect"} {
			rec, err := b.m.Start(context.Background(), Spec{Kind: kind, Caller: Caller{Name: "controld", Kind: Daemon}}, holding().work())
			if err != nil {
				t.Fatal(err)
			}
			running = append(running, rec)
		}
		s := &script{policy: Work[scriptState]{Decide: func(context.Context, *scriptState) (Decision, error) {
			time.Sleep(6 * time.Second)
			return Decision{Mode: "emergency"}, nil
		}}}
		if rec := b.run(s); rec.State != Succeeded {
			t.Errorf("%s %+v", rec.State, rec.Problem)
		}
		for _, rec := range running {
			if got := b.state(rec.ID); got != Cancelled {
				t.Errorf("%s is %s", rec.Kind, got)
			}
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

// Cancelled while it is checked, it has touched nothing, and says so.
func TestCancelledBeforeItBegins(t *testing.T) {
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
		rec, err := b.start("failover", s)
		if rec.State != Cancelled || err == nil || !strings.Contains(err.Error(), "nothing was touched") || s.trace() != "" {
			t.Errorf("%s %v after %q", rec.State, err, s.trace())
		}
	})
}
