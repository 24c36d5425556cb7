package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
)

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

// TestRetention: by count and by age, and nothing that is open.
func TestRetention(t *testing.T) {
	onBench(t, func(b *bench) {
		open := make(chan struct{})
		defer close(open)
		first, err := b.start("protect", &script{do: acts{"b": hold(open)}})
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
		}{
			{Retention{}, 10},
			{Retention{Count: 8}, 9},
			{Retention{Count: 100, For: 60*time.Hour + time.Minute}, 7},
			{Retention{Count: 3, For: time.Hour * 24 * 30}, 4},
		} {
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
		if bad.ID != ids[1] || bad.Kind != KindUnreadable || bad.Problem == nil || bad.Open() || bad.StartedAt.IsZero() {
			t.Errorf("%+v", bad)
		}
		if recs[2].ID != ids[0] {
			t.Errorf("after it: %+v", recs[2])
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

// idAt is the ID of an operation that was started at a time; see startOf.
func idAt(at time.Time, n int) string {
	ms := fmt.Sprintf("%012x", at.UnixMilli())
	return fmt.Sprintf("%s-%s-7000-8000-%012x", ms[:8], ms[8:], n)
}

// What the audit need not keep, by count and by age. What is open stays, and what is no
// older than an idempotency key binds.
func TestWhatIsDispensable(t *testing.T) {
	now := time.Date(2026, 5, 9, 12, 0, 0, 0, time.UTC)
	const hour = time.Hour
	for _, tt := range []struct {
		keep Retention
		want []time.Duration // the ages
	}{
		{Retention{}, nil},
		{Retention{Count: 1}, []time.Duration{25 * hour, 30 * hour, 40 * hour, 100 * hour}},
		{Retention{Count: 3}, []time.Duration{30 * hour, 40 * hour, 100 * hour}},
		{Retention{Count: 6}, nil},
		{Retention{For: hour}, []time.Duration{25 * hour, 30 * hour, 40 * hour, 100 * hour}},
		{Retention{For: 40 * hour}, []time.Duration{100 * hour}},
		{Retention{Count: 4, For: 200 * hour}, []time.Duration{40 * hour, 100 * hour}},
		{Retention{Count: 5, For: 29 * hour}, []time.Duration{30 * hour, 40 * hour, 100 * hour}},
	} {
		t.Run(fmt.Sprintf("%+v", tt.keep), func(t *testing.T) {
			j, err := OpenJournal(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			ages := map[string]time.Duration{}
			for i, age := range []time.Duration{hour, 24 * hour, 25 * hour, 30 * hour, 40 * hour, 50 * hour, 100 * hour} {
				rec := Record{ID: idAt(now.Add(-age), i), EndedAt: now}
				if age == 50*hour {
					rec.EndedAt = time.Time{}
				}
				if ages[rec.ID] = age; j.put(entry{Record: rec}) != nil {
					t.Fatal("not put")
				}
			}
			ids, err := j.dispensable(tt.keep, now)
			var got []time.Duration
			for _, id := range ids {
				got = append(got, ages[string(id)])
			}
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("%v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

// The upkeep goes on for as long as controld runs, and is told where it did something.
func TestMaintain(t *testing.T) {
	onBench(t, func(b *bench) {
		old := time.Now().Add(-100 * time.Hour)
		for i := range 3 {
			if err := b.j.put(entry{Record: Record{ID: idAt(old, i), Kind: "rejoin", State: Succeeded, EndedAt: old}}); err != nil {
				t.Fatal(err)
			}
		}
		cleanup := Record{ID: idAt(old, 9), Kind: KindCleanup, Follows: "cleaned up", State: Running}
		if err := b.j.put(entry{Record: cleanup, State: json.RawMessage(`{}`)}); err != nil {
			t.Fatal(err)
		}
		for _, operation := range []string{"gone", "cleaned up"} {
			if err := b.j.saveCheckpoint(operation, "rows", checkpoint{}); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Hour)
		defer cancel()
		time.AfterFunc(90*time.Minute, func() {
			if err := b.j.saveCheckpoint("gone later", "rows", checkpoint{}); err != nil {
				t.Error(err)
			}
		})
		b.m.Maintain(ctx, Retention{Count: 1})
		if recs, _, err := b.m.List(Filter{}); err != nil || len(recs) != 2 || recs[0].ID != cleanup.ID {
			t.Errorf("the audit has %+v, %v", recs, err)
		}
		if left, err := b.j.withCheckpoints(); err != nil || !slices.Equal(left, []string{"cleaned up"}) {
			t.Errorf("there are checkpoints of %v, %v", left, err)
		}
		if done, failed := b.told.count("audit pruned"), b.told.count("audit not pruned"); done != 1 || failed != 0 {
			t.Errorf("told that it was pruned %d times, and that it was not %d times", done, failed)
		}
		if err := b.j.db.Close(); err != nil {
			t.Fatal(err)
		}
		broken, stop := context.WithTimeout(context.Background(), 150*time.Minute)
		defer stop()
		b.m.Maintain(broken, Retention{})
		if failed := b.told.count("audit not pruned"); failed != 3 {
			t.Errorf("with a broken disk: told %d times in 150 minutes", failed)
		}
	})
}
