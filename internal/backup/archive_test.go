package backup

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/operation"
	"controld/internal/wal"
)

// watched runs a controld on w until the test ends, or stop is called, and lets it come to rest.
func watched(t *testing.T, w *world, dir string) (b *Backups, operations *operation.Manager, stop func()) {
	t.Helper()
	b, operations, end := w.controld(dir)
	if err := operations.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.Watch(ctx) }()
	time.Sleep(2 * time.Minute)
	return b, operations, func() { cancel(); <-done; end() }
}

func archiveOperations(t *testing.T, operations *operation.Manager) (states []operation.State) {
	t.Helper()
	recs, _, err := operations.List(operation.Filter{Kind: KindArchive, Limit: 50})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range recs {
		states = append(states, r.State)
	}
	return states
}

// What a failover has left unarchived is pushed, from whichever volume has it.
func TestWhatAFailoverLeftIsPushed(t *testing.T) {
	for _, volumes := range [][]string{{"one"}, {"two"}, {"one", "two"}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			b, operations, stop := watched(t, w, t.TempDir())
			defer stop()
			files := w.failover(3, volumes...)
			time.Sleep(time.Minute)
			if lacks := w.lacks(files); len(lacks) > 0 {
				t.Errorf("%v: the archive lacks %v", volumes, lacks)
			}
			if states := archiveOperations(t, operations); !slices.Equal(states, []operation.State{operation.Succeeded}) {
				t.Errorf("%v: operations %v", volumes, states)
			}
			if c := b.Continuity(); len(c.Left)+len(c.Lost)+c.Waiting > 0 || c.Next.Timeline != 2 {
				t.Errorf("%v: %+v", volumes, c)
			}
			if h := w.history(); len(h.copies) != 1 {
				t.Errorf("%v: %d backups, want the first alone", volumes, len(h.copies))
			}
		})
	}
}

// Segments of a timeline reach nobody who lacks its history.
func TestAHistoryIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b, _, stop := watched(t, w, t.TempDir())
		defer stop()
		w.failover(0, "one")
		w.mu.Lock()
		fork, history := w.wal.way[0].End, w.wal.timeline.HistoryName()
		w.wal.archived[history] = false
		w.wal.volumes["two"][history] = true
		w.wal.refused = &Failure{Kind: FailureNotReady, Code: 103, Said: "the repository hangs"}
		for range 3 { // the archive gets all that the new timeline has
			segment := Segment{w.wal.timeline, w.wal.flushed.Segment(testSegment)}
			w.wal.archived[segment.Name(testSegment)] = true
			w.wal.flushed += testSegment
		}
		w.mu.Unlock()
		time.Sleep(time.Minute)
		c := b.Continuity()
		if at := (Segment{1, fork.Segment(testSegment)}); c.State() != ArchiveIncomplete || c.Next != at {
			t.Errorf("%s, the archive reaches %+v, want %+v", c.State(), c.Next, at)
		}
		w.mu.Lock()
		w.wal.refused = nil
		w.mu.Unlock()
		time.Sleep(10 * time.Minute)
		if c := b.Continuity(); c.State() != ArchiveContinuous || c.Next.Timeline != 2 {
			t.Errorf("%s, %+v", c.State(), c.Next)
		}
	})
}

// What the archiver has on its list is left to it, however long it takes.
func TestWhatIsOnTheListIsLeftToTheArchiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b, operations, stop := watched(t, w, t.TempDir())
		defer stop()
		files := w.failover(2, "one", "two")
		w.mu.Lock()
		for _, f := range files {
			w.wal.waiting[f] = true
		}
		w.mu.Unlock()
		time.Sleep(time.Hour)
		if states := archiveOperations(t, operations); len(states) > 0 {
			t.Errorf("operations %v", states)
		}
		if c := b.Continuity(); c.Waiting != 2 || c.Next.Name(testSegment) != files[0] {
			t.Errorf("%+v", c)
		}
	})
}

// A repository that takes nothing is tried more and more rarely, and nothing is let go of
// meanwhile.
func TestPushesThatFailAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, operations, stop := watched(t, w, t.TempDir())
		defer stop()
		w.mu.Lock()
		w.wal.refused = &Failure{Kind: FailureFull, Code: 64, Said: "no space left on device"}
		w.mu.Unlock()
		files := w.failover(3, "two")
		first, _ := wal.ParseLSN("0/0")
		if _, n, ok := wal.ParseSegmentName(files[0], testSegment); ok {
			first = n.Start(testSegment)
		}
		time.Sleep(3 * time.Hour)
		w.mu.Lock()
		if w.wal.pushes < 30 || w.wal.pushes > 180 { // three files at a time
			t.Errorf("%d attempts in three hours", w.wal.pushes)
		}
		for node, keep := range w.wal.slots {
			if keep > first {
				t.Errorf("%s keeps WAL from %s on, the archive lacks it from %s on", node, keep, first)
			}
		}
		w.wal.refused = nil
		w.mu.Unlock()
		time.Sleep(10 * time.Minute)
		if lacks := w.lacks(files); len(lacks) > 0 {
			t.Errorf("the archive lacks %v", lacks)
		}
		if states := archiveOperations(t, operations); states[0] != operation.Succeeded {
			t.Errorf("operations %v", states)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for node, keep := range w.wal.slots {
			if want := w.wal.flushed.Segment(testSegment).Start(testSegment); keep != want {
				t.Errorf("%s keeps WAL from %s on, want from %s", node, keep, want)
			}
		}
	})
}

// A controld that ends before or while what is left is pushed leaves that to the next one.
func TestTheNextControldPushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, dir := newWorld(t), t.TempDir()
		_, _, stop := watched(t, w, dir)
		w.mu.Lock()
		w.wal.refused = &Failure{Kind: FailureNotReady, Code: 82, Said: "killed in the middle"}
		w.mu.Unlock()
		files := w.failover(3, "one")
		time.Sleep(20 * time.Second)
		stop()
		w.mu.Lock()
		w.wal.refused = nil
		w.mu.Unlock()
		_, _, stop = watched(t, w, dir)
		defer stop()
		if lacks := w.lacks(files); len(lacks) > 0 {
			t.Errorf("the archive lacks %v", lacks)
		}
	})
}

// What is nowhere any more is a hole: it is told, and a full is taken, after which all is
// well again.
func TestAHoleIsToldAndAFullTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b, _, stop := watched(t, w, t.TempDir())
		defer stop()
		w.mu.Lock()
		w.copyTime = 10 * time.Minute
		w.mu.Unlock()
		files := w.failover(2)
		time.Sleep(3 * time.Minute)
		h := b.Continuity().Holes()
		if len(h) != 1 || h[0].Timeline != 1 || h[0].To-h[0].From != 2*testSegment {
			t.Fatalf("holes %v, want one of %v", h, files)
		}
		if c := b.Components(time.Now())[0]; c.Reason != "archive-hole" {
			t.Errorf("health %+v", c)
		}
		if from, ok := b.recoverableFrom(); ok {
			t.Errorf("recoverable from %s, and there is a hole after the only backup", from)
		}
		time.Sleep(20 * time.Minute)
		copies := w.history().copies
		if len(copies) != 2 || copies[1].Type != Full {
			t.Fatalf("%+v", copies)
		}
		if c := b.Components(time.Now())[0]; c.Reason != "" {
			t.Errorf("health %+v", c)
		}
		if from, ok := b.recoverableFrom(); !ok || !from.Equal(copies[1].EndedAt) {
			t.Errorf("recoverable from %s, %v; want from the second backup on", from, ok)
		}
		time.Sleep(24 * time.Hour)
		if n := len(w.history().copies); n != 2 {
			t.Errorf("%d backups", n)
		}
	})
}

// While a volume cannot be looked at nothing counts as lost.
func TestAVolumeThatCannotBeReadLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b, _, stop := watched(t, w, t.TempDir())
		defer stop()
		w.mu.Lock()
		w.wal.unread = true
		w.mu.Unlock()
		files := w.failover(2)
		time.Sleep(time.Hour)
		if c := b.Continuity(); len(c.Lost) > 0 || c.Unread == "" || c.Next.Name(testSegment) != files[0] {
			t.Errorf("%+v", c)
		}
		if n := len(w.history().copies); n != 1 {
			t.Errorf("%d backups", n)
		}
		w.mu.Lock()
		for _, f := range files {
			w.wal.volumes["one"][f] = true
		}
		w.wal.unread = false
		w.mu.Unlock()
		time.Sleep(time.Minute)
		if lacks := w.lacks(files); len(lacks) > 0 {
			t.Errorf("the archive lacks %v", lacks)
		}
	})
}

// Each server keeps what the archive lacks, and lets go of the rest.
func TestWALIsHeldForTheArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, _, stop := watched(t, w, t.TempDir())
		defer stop()
		check := func(when string, want wal.LSN) {
			t.Helper()
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, n := range w.Nodes() {
				if keep, has := w.wal.slots[n.Name]; !has || keep != want {
					t.Errorf("%s: %s keeps WAL from %s on (%v), want from %s", when, n.Name, keep, has, want)
				}
			}
		}
		w.mu.Lock()
		begin := w.wal.flushed.Segment(testSegment)
		w.mu.Unlock()
		check("after the first backup", begin.Start(testSegment))
		w.mu.Lock()
		for n := range wal.SegmentNumber(5) { // three are archived, two wait
			file := Segment{1, begin + n}.Name(testSegment)
			w.wal.archived[file], w.wal.waiting[file] = n < 3, n >= 3
		}
		w.wal.flushed = (begin + 5).Start(testSegment) + 10
		w.mu.Unlock()
		time.Sleep(time.Minute)
		check("with two segments waiting", (begin + 3).Start(testSegment))
		w.mu.Lock()
		w.dead["two"] = true
		for n := range wal.SegmentNumber(5) {
			w.wal.archived[Segment{1, begin + n}.Name(testSegment)] = true
		}
		clear(w.wal.waiting)
		w.mu.Unlock()
		time.Sleep(time.Minute)
		w.mu.Lock()
		w.dead["two"] = false
		w.mu.Unlock()
		time.Sleep(time.Hour)
		check("a server that was away", (begin + 5).Start(testSegment))
	})
}

// A segment of another server in the archive is told, and counts as lost when another node
// leads: what is before it does not reach what comes after.
func TestAForeignSegmentInTheArchive(t *testing.T) {
	foreignSegment(t, false)
	foreignSegment(t, true)
}

func foreignSegment(t *testing.T, restarted bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w, dir := newWorld(t), t.TempDir()
		b, _, stop := watched(t, w, dir)
		w.mu.Lock()
		first := w.wal.flushed.Segment(testSegment)
		for n := range wal.SegmentNumber(3) {
			file := Segment{1, first + n}.Name(testSegment)
			w.wal.waiting[file] = true
			w.wal.archived[file] = n == 0
			if n == 0 {
				w.wal.conflict = file
			}
		}
		w.wal.flushed = (first + 3).Start(testSegment) + 10
		w.mu.Unlock()
		time.Sleep(30 * time.Minute)
		if c := b.Components(time.Now())[0]; c.Reason != "archive-conflict" {
			t.Errorf("%+v", c)
		}
		if n := len(w.history().copies); n != 1 {
			t.Errorf("%d backups were tried of a server that cannot archive", n)
		}
		if restarted {
			stop()
		}
		w.mu.Lock()
		w.wal.conflict = ""
		clear(w.wal.waiting)
		for n := range wal.SegmentNumber(3) {
			w.wal.volumes["one"][Segment{1, first + n}.Name(testSegment)] = true
		}
		w.mu.Unlock()
		w.failover(0)
		if restarted {
			b, _, stop = watched(t, w, dir)
		}
		defer stop()
		time.Sleep(10 * time.Minute)
		if h := b.Continuity().Holes(); len(h) != 1 || h[0].From != first.Start(testSegment) || h[0].To != (first+1).Start(testSegment) {
			t.Errorf("holes %v", h)
		}
		if copies := w.history().copies; len(copies) != 2 || copies[1].Type != Full {
			t.Errorf("%+v", copies)
		}
		if c := b.Components(time.Now())[0]; c.Reason != "" {
			t.Errorf("%+v", c)
		}
	})
}

// A push that was ended when the file was there already is no conflict: the next one finds it.
func TestAPushThatWasEndedIsNoConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b, _, stop := watched(t, w, t.TempDir())
		defer stop()
		w.mu.Lock()
		s := Segment{1, w.wal.flushed.Segment(testSegment)}
		w.wal.conflict, w.wal.same = s.Name(testSegment), true
		w.wal.archived[w.wal.conflict], w.wal.waiting[w.wal.conflict] = true, true
		w.wal.flushed = (s.Number + 1).Start(testSegment) + 10
		w.mu.Unlock()
		time.Sleep(time.Hour)
		if c := b.Continuity(); c.Conflict != "" || len(c.Lost) > 0 || len(w.history().copies) != 1 {
			t.Errorf("%+v", c)
		}
	})
}
