package operation

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
)

type mark struct{ Rows int }

var here = Origin{SystemID: 7, Timeline: 3}

// TestCheckpoint: it outlives the process, is bound to the history it was made in, and
// ends with the operation.
func TestCheckpoint(t *testing.T) {
	for _, tt := range []struct {
		origin Origin
		found  bool
	}{{here, true}, {Origin{7, 4}, false}, {Origin{8, 3}, false}} {
		onSorts(t, func(b *bench) {
			gone := make(chan struct{})
			s := &script{policy: Work[scriptState]{Forward: true}, do: map[string]func(context.Context) error{"b": func(ctx context.Context) error {
				for i := range 3 {
					if err := SaveCheckpoint(ctx, "rows", here, mark{i}); err != nil {
						t.Error(err)
					}
				}
				<-gone
				return errBoom
			}}}
			rec := b.begin(kindAgain, s)
			b.crash(func() { close(gone) })
			if err := b.m.tidy(context.Background(), Retention{}); err != nil { // nothing of an open one is forgotten
				t.Error(err)
			}
			next := &script{policy: Work[scriptState]{Forward: true}, do: map[string]func(context.Context) error{"b": func(ctx context.Context) error {
				var m mark
				found, err := LoadCheckpoint(ctx, "rows", tt.origin, &m)
				if err != nil || found != tt.found || found && m.Rows != 2 {
					t.Errorf("under %+v: %+v %v, %v", tt.origin, m, found, err)
				}
				if found, err := LoadCheckpoint(ctx, "none", here, &m); found || err != nil {
					t.Errorf("none: %v, %v", found, err)
				}
				return nil
			}}}
			if rec := b.resume(next); rec.State != Succeeded {
				t.Errorf("resumed: %s", rec.State)
			}
			if left, err := b.j.withCheckpoints(); err != nil || len(left) > 0 {
				t.Errorf("checkpoints of %s are left: %v, %v", rec.ID, left, err)
			}
		})
	}
	if err := SaveCheckpoint(t.Context(), "rows", here, 1); !errors.Is(err, ErrNoRun) {
		t.Errorf("outside of an operation: %v", err)
	}
	if _, err := LoadCheckpoint(t.Context(), "rows", here, new(mark)); !errors.Is(err, ErrNoRun) {
		t.Errorf("outside of an operation: %v", err)
	}
}

// A clean-up has the checkpoints of what it cleans up after.
func TestCheckpointOfACleanup(t *testing.T) {
	onSorts(t, func(b *bench) {
		s := &script{}
		var found bool
		s.do = map[string]func(context.Context) error{
			"b": func(ctx context.Context) error {
				if err := SaveCheckpoint(ctx, "run", here, mark{9}); err != nil {
					t.Error(err)
				}
				return hold(nil)(ctx)
			},
			"undo b": func(ctx context.Context) (err error) {
				var m mark
				found, err = LoadCheckpoint(ctx, "run", here, &m)
				return err
			},
		}
		b.build = func(Record, json.RawMessage) (Runnable, error) { return s.work(), nil }
		rec := b.begin(kindCopy, s)
		if _, err := b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !found {
			t.Error("the clean-up does not find what was written down before")
		}
		if left, err := b.j.withCheckpoints(); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

// TestCheckpointsRestWhileClientsAreHeld, also those of the entries of others.
func TestCheckpointsRestWhileClientsAreHeld(t *testing.T) {
	onSorts(t, func(b *bench) {
		resume := make(chan struct{})
		waits := make(chan time.Duration, 1)
		s := &script{do: map[string]func(context.Context) error{"b": func(ctx context.Context) error {
			time.Sleep(time.Second)
			began := time.Now()
			err := SaveCheckpoint(ctx, "rows", here, mark{1})
			waits <- time.Since(began)
			return err
		}}}
		b.begin("protect", s)
		holds := Work[scriptState]{
			Prepare: func(context.Context, *scriptState) (Prepared, error) { return Prepared{}, nil },
			Steps: func(*scriptState) []Step[scriptState] {
				return []Step[scriptState]{
					{Name: "pause", HoldsClients: true, Entry: true, Do: func(ctx context.Context, _ *scriptState) error { return hold(resume)(ctx) }},
					{Name: "after", Entry: true, Do: func(ctx context.Context, _ *scriptState) error { return hold(nil)(ctx) }},
				}
			},
		}
		if _, err := b.m.Start(context.Background(), Spec{Kind: "align"}, holds); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(5*time.Second, func() { close(resume) })
		time.Sleep(time.Minute)
		if waited := <-waits; waited < 3900*time.Millisecond || waited > 5*time.Second {
			t.Errorf("kept after %s", waited)
		}
	})
}

// TestRetention: by count and by age, and nothing that is open.
func TestRetention(t *testing.T) {
	onBench(t, func(b *bench) {
		open := make(chan struct{})
		defer close(open)
		first, err := b.start("protect", &script{do: map[string]func(context.Context) error{"b": hold(open)}})
		if err != nil {
			t.Fatal(err)
		}
		ids := []string{first.ID}
		for range 9 {
			rec, err := b.start("rejoin", &script{})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, rec.ID)
			time.Sleep(10 * time.Hour)
		}
		audit := func(keep Retention) int {
			if err := b.m.tidy(context.Background(), keep); err != nil {
				t.Error(err)
			}
			recs, _, err := b.m.List(Filter{Limit: 100})
			if err != nil || recs[len(recs)-1].ID != first.ID {
				t.Errorf("the open one is not there: %v", err)
			}
			return len(recs)
		}
		for _, tt := range []struct {
			keep Retention
			left int
		}{{Retention{}, 10}, {Retention{Count: 8}, 9}, {Retention{Count: 100, For: 60*time.Hour + time.Minute}, 7}, {Retention{Count: 3, For: time.Hour * 24 * 30}, 4}} {
			if left := audit(tt.keep); left != tt.left {
				t.Errorf("%+v leaves %d, want %d", tt.keep, left, tt.left)
			}
		}
		if _, err := b.m.Get(ids[9]); err != nil {
			t.Errorf("the newest: %v", err)
		}
		if _, err := b.m.Get(ids[1]); !errors.Is(err, ErrNotFound) {
			t.Errorf("the oldest: %v", err)
		}
	})
}

// One record that cannot be read is told as one, and the others are listed.
func TestAnUnreadableRecord(t *testing.T) {
	onBench(t, func(b *bench) {
		var ids []string
		for range 3 {
			ids = append(ids, b.run(&script{}).ID)
			synctest.Wait()
		}
		err := b.j.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketOperations).Put([]byte(ids[1]), []byte("{\x00")) })
		if err != nil {
			t.Fatal(err)
		}
		recs, _, err := b.m.List(Filter{})
		if err != nil || len(recs) != 3 {
			t.Fatalf("%d, %v", len(recs), err)
		}
		bad := recs[1]
		if bad.ID != ids[1] || bad.Kind != KindUnreadable || bad.Problem == nil || bad.Open() || bad.StartedAt.IsZero() || recs[2].ID != ids[0] {
			t.Errorf("%+v", bad)
		}
	})
}

// What an idempotency key is bound to is not forgotten while it binds.
func TestRetentionKeepsWhatKeysAreBoundTo(t *testing.T) {
	onBench(t, func(b *bench) {
		spec := Spec{Kind: "rejoin", Caller: Caller{Name: "t", Idempotency: &Idempotency{Key: "k"}}}
		first, err := b.m.Start(context.Background(), spec, (&script{}).work())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for range 5 {
			b.run(&script{})
			synctest.Wait()
		}
		time.Sleep(23 * time.Hour)
		if err := b.m.tidy(context.Background(), Retention{Count: 1, For: time.Hour}); err != nil {
			t.Error(err)
		}
		if rec, err := b.m.Start(context.Background(), spec, (&script{}).work()); err != nil || rec.ID != first.ID {
			t.Errorf("asked again: %s, %v, want %s", rec.ID, err, first.ID)
		}
	})
}

// A broken file of checkpoints is set aside: they are hints.
func TestABrokenCheckpointFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, CheckpointFile)
	if err := os.WriteFile(path, []byte("no database at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := OpenJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := j.saveCheckpoint("x", "y", checkpoint{}); err != nil || j.setAside == nil {
		t.Errorf("%v, set aside for %v", err, j.setAside)
	}
	if _, err := os.Stat(path + ".broken"); err != nil {
		t.Error(err)
	}
}
