package operation

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestLetGo: what gives way is let go at once, however long its step takes to return;
// what it leaves is cleaned up by an operation of its own, also by the next process.
func TestLetGo(t *testing.T) {
	for _, crash := range []bool{false, true} {
		onSorts(t, func(b *bench) {
			back := make(chan struct{})
			deaf := &script{do: acts{"b": func(context.Context) error { <-back; return errBoom }}}
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
			if err != nil || rec.State != Cancelled || rec.Open() || rec.FollowedBy == "" {
				t.Fatalf("%+v, %v", rec, err)
			}
			if !strings.Contains(rec.Problem.Detail, "gave way to failover") {
				t.Errorf("problem %+v", rec.Problem)
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
		b.loud = true
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
		s.do = acts{"e": func(context.Context) error {
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
		s := &script{do: acts{"b": taking(20 * time.Second)}}
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

// A clean-up that cannot be done keeps what it claims, and is told, until somebody
// cancels it.
func TestACleanupThatCannotBeDone(t *testing.T) {
	onSorts(t, func(b *bench) {
		b.loud = true
		b.build = func(Record, json.RawMessage) (Runnable, error) { return nil, errBoom }
		rec := b.begin(kindCopy, holding())
		rec, err := b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"})
		if err != nil || rec.State != Cancelled {
			t.Fatalf("%+v, %v", rec, err)
		}
		time.Sleep(time.Minute)
		if held := b.m.Holding(repository); len(held) != 1 || held[0].ID != rec.FollowedBy || b.told.count("clean-up cannot be done") != 1 {
			t.Errorf("held by %+v, told:\n%s", held, b.told.text.String())
		}
		cleanup, err := b.m.Cancel(context.Background(), rec.FollowedBy, Caller{Name: "t"})
		if err != nil || cleanup.State != Incomplete || cleanup.Open() || len(b.m.Holding(repository)) != 0 {
			t.Errorf("%+v, %v, held by %+v", cleanup, err, b.m.Holding(repository))
		}
	})
}
