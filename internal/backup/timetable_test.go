package backup

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/operation"
)

// nightlyWorld is a world that makes the six days at two o'clock (UTC) each night. Its clock
// begins at midnight, and with it the cycle.
func nightlyWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.lookEvery = time.Hour // what is due is done when it comes, not when somebody looks
	w.plan = Timetable{Cycle: cycle(t, sixDays), Next: nightly(t), Expression: "0 3 * * *", Zone: "Europe/Madrid"}
	return w
}

// watched starts a controld that does by itself what is due. stop ends it.
func (w *world) watched(dir string) (b *Backups, operations *operation.Manager, stop func()) {
	w.t.Helper()
	b, operations, end := w.controld(dir)
	if err := operations.Resume(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.Watch(ctx) }()
	return b, operations, func() { cancel(); <-done; end() }
}

// made is what the backups from the n-th on were, such as "1 full c-one".
func (w *world) made(n int) (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.ever[n:] {
		out = append(out, strings.TrimSpace(c.Annotations[NoteCycleDay]+" "+string(c.Type)+" "+c.Annotations[NotePrimary]))
	}
	return out
}

func expectMade(t *testing.T, got []string, want string) {
	t.Helper()
	if strings.Join(got, ", ") != want {
		t.Errorf("made %s\nwant %s", strings.Join(got, ", "), want)
	}
}

// The six days, twice, with a failover and another controld at every boundary: each day
// makes what it is to make, once, of who leads.
func TestTwoCycles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, dir := nightlyWorld(t), t.TempDir()
		_, _, stop := w.watched(dir)
		for range 12 {
			time.Sleep(24 * time.Hour)
			stop()
			w.failover(0)
			_, _, stop = w.watched(dir)
		}
		stop()
		expectMade(t, w.made(0), "1 full c-one, "+
			"2 incr c-one, 3 incr c-two, 3 diff c-two, 4 incr c-one, 5 incr c-two, 5 diff c-two, 6 diff c-one, 6 full c-one, "+
			"1 full c-two, "+
			"2 incr c-one, 3 incr c-two, 3 diff c-two, 4 incr c-one, 5 incr c-two, 5 diff c-two, 6 diff c-one, 6 full c-one, "+
			"1 full c-two")
		var left []string
		for _, c := range w.history().copies {
			left = append(left, c.Annotations[NoteCycleDay]+" "+string(c.Type))
		}
		expectMade(t, left, "6 full, 1 full")
	})
}

// A controld that was down over several nights makes one backup, of the strongest type that
// was missed, and goes on with the day after them.
func TestDownForDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, dir := nightlyWorld(t), t.TempDir()
		_, _, stop := w.watched(dir)
		time.Sleep(12 * time.Hour) // days 1 and 2
		stop()
		time.Sleep(5 * 24 * time.Hour) // days 3 to 6, and 1
		b, operations, stop := w.watched(dir)
		time.Sleep(time.Hour)
		if served, _ := b.progress.get(); served.Day != 1 || served.Operation == "" {
			t.Errorf("%+v", served)
		}
		recs, _, err := operations.List(operation.Filter{Kind: KindBackup, Limit: 1})
		if err != nil || !strings.Contains(recs[0].Reason, "4 before it were missed: the strongest of them all is made, full") {
			t.Errorf("%+v, %v", recs[0], err)
		}
		time.Sleep(24 * time.Hour)
		stop()
		expectMade(t, w.made(1), "2 incr c-one, 1 full c-one, 2 incr c-one")
	})
}

// A day that fails is told, tried again, and made once.
func TestDayFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nightlyWorld(t)
		b, _, stop := w.watched(t.TempDir())
		defer stop()
		time.Sleep(time.Hour)
		w.mu.Lock()
		w.fail = &Failure{Kind: FailureFull, Code: 64, Said: "No space left"}
		w.mu.Unlock()
		time.Sleep(3 * time.Hour)
		served, failing := b.progress.get()
		if served.Day != 1 || failing == nil || failing.Day != 2 || failing.Attempts < 4 ||
			!strings.Contains(failing.Detail, "No space left") {
			t.Fatalf("%+v, failing %+v", served, failing)
		}
		if c := b.Components(time.Now())[0]; c.Reason != "backup-failed" || !strings.Contains(c.Detail, "No space left") {
			t.Errorf("%+v", c)
		}
		w.mu.Lock()
		w.fail = nil
		w.mu.Unlock()
		time.Sleep(20 * time.Minute)
		if served, failing := b.progress.get(); served.Day != 2 || failing != nil {
			t.Errorf("%+v, failing %+v", served, failing)
		}
		if c := b.Components(time.Now())[0]; c.Status != "ok" {
			t.Errorf("%+v", c)
		}
		expectMade(t, w.made(1), "2 incr c-one")
	})
}

// A controld that ends between the backups of a day, or after the last of them, makes none
// of them twice.
func TestDayIsGoneOnWith(t *testing.T) {
	for _, at := range []time.Duration{5, 15, 20, 21} { // after the first began, which takes 10 s
		synctest.Test(t, func(t *testing.T) {
			w, dir := nightlyWorld(t), t.TempDir()
			_, _, stop := w.watched(dir)
			time.Sleep(26*time.Hour + at*time.Second)
			stop()
			time.Sleep(time.Minute)
			b, _, stop := w.watched(dir)
			time.Sleep(time.Hour)
			stop()
			expectMade(t, w.made(2), "3 incr c-one, 3 diff c-one")
			if served, _ := b.progress.get(); served.Day != 3 {
				t.Errorf("%s: %+v", at*time.Second, served)
			}
		})
	}
}

// A day by hand moves the cycle; asked for while it runs, it is that one; and one that is to
// keep the cycle does.
func TestDayByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nightlyWorld(t)
		b, operations, stop := w.watched(t.TempDir())
		defer stop()
		time.Sleep(time.Hour)
		rec, err := b.Day(t.Context(), DayRequest{Day: 4, Reason: "by hand"}, person)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		joined, err := b.Day(t.Context(), DayRequest{Day: 4}, person)
		if err != nil || joined.ID != rec.ID {
			t.Errorf("not joined: %+v, %v", joined, err)
		}
		if _, err := b.Day(t.Context(), DayRequest{Day: 5}, person); err == nil || !strings.Contains(err.Error(), "is running") {
			t.Errorf("two days at once: %v", err)
		}
		rec = ended(t, operations, rec, nil)
		if rec.State != operation.Succeeded || rec.Result["moves_cycle"] != true {
			t.Errorf("%+v", rec)
		}
		rec, err = b.Day(t.Context(), DayRequest{Day: 2, Keep: true}, person)
		if rec = ended(t, operations, rec, err); rec.Result["moves_cycle"] != false {
			t.Errorf("%+v", rec)
		}
		if served, _ := b.progress.get(); served.Day != 4 {
			t.Errorf("%+v", served)
		}
		time.Sleep(24 * time.Hour)
		expectMade(t, w.made(1), "4 incr c-one, 2 incr c-one, 5 incr c-one, 5 diff c-one")
	})
}

// A failover while a day is made: what is left of it is made of who leads then, and counts.
func TestDayGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nightlyWorld(t)
		w.copyTime, w.lookEvery = time.Minute, time.Minute
		b, operations, stop := w.watched(t.TempDir())
		defer stop()
		time.Sleep(time.Hour)
		rec, err := b.Day(t.Context(), DayRequest{Day: 3}, person)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(90 * time.Second) // into its second backup
		failover, err := operations.Start(t.Context(), operation.Spec{Kind: "failover", Caller: person}, nothing())
		ended(t, operations, failover, err)
		w.failover(0)
		if rec = ended(t, operations, rec, nil); rec.GaveWayTo == "" {
			t.Fatalf("%+v", rec)
		}
		time.Sleep(10 * time.Minute)
		expectMade(t, w.made(1), "3 incr c-one, 3 diff c-two")
		if served, failing := b.progress.get(); served.Day != 3 || failing != nil {
			t.Errorf("%+v, failing %+v", served, failing)
		}
	})
}

// A chain that pgbackrest cannot build on makes a full, which says so.
func TestChainIsBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := ready(t)
		w.brokenChain = true
		b, operations, stop := w.controld(t.TempDir())
		defer stop()
		rec, err := b.Backup(t.Context(), Request{Type: Incremental}, person)
		rec = ended(t, operations, rec, err)
		promoted, _ := rec.Result["promoted"].(string)
		if rec.State != operation.Succeeded || !strings.Contains(promoted, "is made a full") {
			t.Errorf("%+v", rec)
		}
		if c := b.Seen().Copies[1]; c.Type != Full || c.Annotations[NoteRequested] != "incr" {
			t.Errorf("%+v", c)
		}
	})
}

// Without a schedule nothing is made by itself but the first full.
func TestNothingPlanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.plan.Cycle = cycle(t, sixDays)
		b, operations, stop := w.watched(t.TempDir())
		defer stop()
		time.Sleep(3 * 24 * time.Hour)
		rec, err := b.Day(t.Context(), DayRequest{Day: 2}, person)
		ended(t, operations, rec, err)
		expectMade(t, w.made(0), "full c-one, 2 incr c-one")
	})
}

// A schedule that was off for days, or another one, has missed nothing.
func TestAnotherSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, dir := nightlyWorld(t), t.TempDir()
		next := w.plan.Next
		w.plan.Next, w.plan.Expression = nil, "off"
		_, _, stop := w.watched(dir)
		time.Sleep(5*24*time.Hour + time.Hour)
		stop()
		w.plan.Next, w.plan.Expression = next, "0 3 * * *"
		b, _, stop := w.watched(dir)
		defer stop()
		time.Sleep(30 * time.Minute)
		if run, due := b.due(); due {
			t.Errorf("due at once: %+v", run)
		}
		time.Sleep(time.Hour)
		expectMade(t, w.made(1), "1 full c-one") // two o'clock has come
	})
}

// What a person cancels is not begun anew at once.
func TestDayIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nightlyWorld(t)
		w.copyTime = time.Minute
		_, operations, stop := w.watched(t.TempDir())
		defer stop()
		time.Sleep(2*time.Hour + 30*time.Second)
		open := operations.Open()
		if len(open) != 1 {
			t.Fatalf("%+v", open)
		}
		if _, err := operations.Cancel(t.Context(), open[0].ID, person); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		expectMade(t, w.made(1), "")
		time.Sleep(10 * time.Minute)
		expectMade(t, w.made(1), "2 incr c-one")
	})
}
