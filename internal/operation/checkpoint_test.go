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
			s := &script{policy: Work[scriptState]{Forward: true}, do: acts{"b": func(ctx context.Context) error {
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
			next := &script{policy: Work[scriptState]{Forward: true}, do: acts{"b": func(ctx context.Context) error {
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
		s.do = acts{
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
	for _, tt := range []struct{ held, least, most time.Duration }{
		{5 * time.Second, 4 * time.Second, 4020 * time.Millisecond},
		{time.Hour, 29 * time.Second, 29 * time.Second}, // no pause is that long; nothing rests for more than 30 s
	} {
		onSorts(t, func(b *bench) {
			waited, resume := b.write(), make(chan struct{})
			b.holdClients(resume)
			time.AfterFunc(tt.held, func() { close(resume) })
			time.Sleep(2 * time.Hour)
			if got := <-waited; got < tt.least || got > tt.most {
				t.Errorf("clients held for %s: kept after %s, want %s to %s", tt.held, got, tt.least, tt.most)
			}
		})
	}
}

// A broken file of checkpoints is set aside, and that is told: they are hints.
func TestABrokenCheckpointFile(t *testing.T) {
	onBench(t, func(b *bench) {
		if err := b.j.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(b.dir, CheckpointFile)
		if err := os.WriteFile(path, []byte("no database at all"), 0o600); err != nil {
			t.Fatal(err)
		}
		b.open()
		b.loud = true
		if err := b.j.saveCheckpoint("x", "y", checkpoint{}); err != nil || b.told.count("checkpoints begin anew") != 1 {
			t.Errorf("%v, told:\n%s", err, b.told.text.String())
		}
		if _, err := os.Stat(path + ".broken"); err != nil {
			t.Error(err)
		}
	})
}

// What cannot be kept, or not be read back, is an error of the step.
func TestACheckpointThatIsNone(t *testing.T) {
	onBench(t, func(b *bench) {
		rec := b.run(&script{do: acts{"b": func(ctx context.Context) error {
			if err := SaveCheckpoint(ctx, "rows", here, make(chan int)); err == nil {
				t.Error("a channel was kept")
			}
			if err := SaveCheckpoint(ctx, "rows", here, "text"); err != nil {
				t.Error(err)
			}
			if found, err := LoadCheckpoint(ctx, "rows", here, new(mark)); err == nil || found {
				t.Errorf("a text is read as a mark: %v, %v", found, err)
			}
			return nil
		}}})
		if rec.State != Succeeded || b.told.count("not dropped") != 0 {
			t.Errorf("%s, told:\n%s", rec.State, b.told.text.String())
		}
	})
}
