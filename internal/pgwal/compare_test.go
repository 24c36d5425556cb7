package pgwal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"controld/internal/wal"
)

const begins = wal.LSN(5*testSegment) + longHeaderBytes

// pair is two nodes with the same WAL, from redo on.
func pair(t *testing.T) (own, leader *logWriter, redo wal.LSN) {
	t.Helper()
	own = newLog(t, 5*testSegment)
	redo = own.record(80, 1)
	for i := range 3000 {
		own.record(300+i%400, byte(i))
	}
	return own, own.clone(), redo
}

func compared(t *testing.T, own, leader *logWriter, redo wal.LSN, limit int64) Comparison {
	t.Helper()
	own.save(redo)
	leader.save(redo)
	c, err := Compare(t.Context(), own.dir, leader.dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What two nodes can have written, and what the one is to the other for it.
func TestCompare(t *testing.T) {
	for _, tt := range []struct {
		name  string
		write func(own, leader *logWriter)
		want  Relation
		why   string
	}{
		{"the same", func(_, _ *logWriter) {}, Same, ""},
		{"the leader has gone on", func(_, leader *logWriter) { leader.record(500, 7) }, Same, ""},
		{"the leader has gone on for segments", func(_, leader *logWriter) {
			leader.fill(2000)
			leader.record(5000, 7)
			leader.fill(2000)
		}, Same, ""},
		{"the leader switched segments", func(_, leader *logWriter) { leader.switchSegment(); leader.record(9, 9) }, Same, ""},
		{"both switched segments", func(own, leader *logWriter) {
			for _, w := range []*logWriter{own, leader} {
				w.switchSegment()
				w.record(9, 9)
			}
		}, Same, ""},
		{"what lies behind a switch is nothing", func(own, leader *logWriter) {
			own.switchSegment()
			leader.switchSegment()
			n := (own.at - 1).Segment(testSegment)
			own.segment(n)[testSegment-1] = 1
		}, Same, ""},
		{"a record of its own", func(own, leader *logWriter) { own.record(90, 1); leader.record(500, 7) }, Diverged, "differs"},
		{"a record of the same length", func(own, leader *logWriter) { own.record(90, 1); leader.record(90, 2) }, Diverged, "differs"},
		{"ahead within the segment", func(own, _ *logWriter) { own.record(90, 1) }, Diverged, "differs"},
		{"ahead by segments", func(own, _ *logWriter) {
			own.fill(200)
			own.record(900, 1)
			own.fill(200)
			own.record(900, 1)
		}, Diverged, ""},
		{"a record over many pages", func(own, leader *logWriter) {
			own.record(300_000, 1)
			leader.record(300_000, 2)
		}, Diverged, "differs"},
		{"half of a record is none", func(own, leader *logWriter) {
			at := own.begin()
			own.record(20_000, 1)
			n := at.Segment(testSegment)
			clear(own.segment(n)[at-n.Start(testSegment)+9000:])
			leader.record(10, 2)
		}, Same, ""},
		{"the leader left its timeline", func(_, leader *logWriter) { leader.fork(2); leader.record(9, 9) }, Same, ""},
		{"both are on the new one", func(own, leader *logWriter) {
			for _, w := range []*logWriter{own, leader} {
				w.fork(2)
				w.record(9, 9)
			}
		}, Same, ""},
		{"it went on where the leader left", func(own, leader *logWriter) {
			leader.fork(2)
			leader.record(9, 9)
			own.record(50, 5)
		}, Past, "left at"},
		{"it went on where the leader left, two timelines ago", func(own, leader *logWriter) {
			leader.fork(2)
			leader.record(9, 9)
			leader.history(3, "1\t"+own.at.String()+"\tx\n2\t"+leader.at.String()+"\tx\n")
			leader.timeline = 3
			leader.record(9, 9)
			own.record(50, 5)
		}, Past, "left at"},
		{"it was promoted past the leader", func(own, leader *logWriter) {
			own.fork(2)
			own.record(9, 9)
			leader.record(9, 9)
		}, Past, "left at"},
		{"both were promoted, from one place", func(own, leader *logWriter) {
			own.fork(2)
			leader.fork(2)
			own.record(9, 1)
			leader.record(9, 2)
		}, Diverged, "differs"},
		{"both were promoted, from two places", func(own, leader *logWriter) {
			own.record(9, 1)
			own.fork(2)
			leader.fork(2)
			own.record(9, 1)
			leader.record(9, 2)
		}, Diverged, "each by itself"},
		{"it differs before the leader left the timeline", func(own, leader *logWriter) {
			own.record(50, 5)
			leader.record(60, 6)
			leader.fork(2)
			leader.record(9, 9)
		}, Diverged, "differs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, limit := range []int64{0, testSegment, 2 * testSegment} {
				own, leader, redo := pair(t)
				at := own.at
				tt.write(own, leader)
				c := compared(t, own, leader, redo, limit)
				if c.Relation != tt.want || !strings.Contains(c.Why, tt.why) {
					t.Errorf("limit %d: %+v, want %s", limit, c, tt.want)
				}
				if c.Relation == Diverged && (c.At < at || c.At > own.at) {
					t.Errorf("limit %d: differs at %s, not between %s and %s", limit, c.At, at, own.at)
				}
				if c.Relation == Same && limit == 0 && c.From != redo {
					t.Errorf("begins at %s, not at the redo point %s", c.From, redo)
				}
			}
		})
	}
}

// What is missing or not readable is never taken for the same.
func TestCompareWithoutKnowing(t *testing.T) {
	for _, tt := range []struct {
		name string
		take func(t *testing.T, own, leader *logWriter)
		why  string
	}{
		{"no data directory of the leader", func(t *testing.T, _, leader *logWriter) {
			remove(t, leader.dir, "global")
		}, "no database cluster"},
		{"no WAL of the leader", func(t *testing.T, _, leader *logWriter) {
			remove(t, leader.dir, DirName)
		}, "no such file"},
		{"the leader has removed all that the node has", func(t *testing.T, own, leader *logWriter) {
			for n := range own.content {
				remove(t, leader.dir, DirName, wal.SegmentName(1, n, testSegment))
			}
			leader.at = 100 * testSegment
			leader.content = nil
			leader.write(wal.SegmentName(1, 100, testSegment), page(t, leader, 100))
		}, "removed"},
		{"the leader lacks one in the middle", func(t *testing.T, own, leader *logWriter) {
			remove(t, leader.dir, DirName, wal.SegmentName(1, own.at.Segment(testSegment)-1, testSegment))
			leader.write(wal.SegmentName(1, 4, testSegment), page(t, leader, 4))
		}, "lacks"},
		{"the node's own WAL is gone", func(t *testing.T, own, _ *logWriter) {
			remove(t, own.dir, DirName, wal.SegmentName(1, 5, testSegment))
		}, "no record"},
		{"another cluster", func(t *testing.T, _, leader *logWriter) {
			path := filepath.Join(leader.dir, "global", "pg_control")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "control file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			own, leader, redo := pair(t)
			own.save(redo)
			leader.save(redo)
			tt.take(t, own, leader)
			c, err := Compare(t.Context(), own.dir, leader.dir, 0)
			if err != nil || c.Relation != Unknown || !strings.Contains(c.Why, tt.why) {
				t.Errorf("%+v, %v; want unknown for %q", c, err, tt.why)
			}
		})
	}
	own, leader, redo := pair(t)
	own.save(redo)
	leader.save(redo)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Compare(ctx, own.dir, leader.dir, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func page(t *testing.T, w *logWriter, n wal.SegmentNumber) []byte {
	t.Helper()
	b := make([]byte, testSegment)
	at := w.at
	w.at = n.Start(testSegment)
	w.pageHeader(b, n, 0, 0)
	w.at = at
	return b
}

func remove(t *testing.T, path ...string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(path...)); err != nil {
		t.Fatal(err)
	}
}

// Older segments that the leader has removed do not keep the newest from being
// compared.
func TestCompareWhatIsLeft(t *testing.T) {
	own, leader, redo := pair(t)
	own.save(redo)
	leader.save(redo)
	remove(t, leader.dir, DirName, wal.SegmentName(1, 5, testSegment))
	c, err := Compare(t.Context(), own.dir, leader.dir, 0)
	if err != nil || c.Relation != Same || c.End != own.at || c.Bytes == 0 {
		t.Errorf("%+v, %v", c, err)
	}
}

// Where a crash has cut a record off, the next page says so. The chain goes on with what was
// written in the record's place.
func TestCompareAcrossARecordThatWasCutOff(t *testing.T) {
	own, leader, redo := pair(t)
	for _, w := range []*logWriter{own, leader} {
		prev := w.prev
		w.record(30_000, 3)
		w.at = w.at &^ (pageBytes - 1)
		n := w.at.Segment(testSegment)
		clear(w.segment(n)[w.at-n.Start(testSegment):])
		w.put(bytesOf(40, 1, prev, 0, 0xD0), flagOverwritten)
		w.at, w.prev = align(w.at), align(w.at)-64
		w.record(70, 4)
	}
	if c := compared(t, own, leader, redo, 0); c.Relation != Same || c.End != own.at {
		t.Errorf("%+v, want the same up to %s", c, own.at)
	}
	own.record(80, 1)
	if c := compared(t, own, leader, redo, 0); c.Relation != Diverged {
		t.Errorf("%+v, want diverged", c)
	}
}

// Recycled segments hold whole records of another place.
func TestRecycledSegmentsAreNone(t *testing.T) {
	own, leader, redo := pair(t)
	own.save(redo)
	leader.save(redo)
	n := own.at.Segment(testSegment)
	old := own.segment(5)
	own.write(wal.SegmentName(1, n+1, testSegment), old)
	leader.write(wal.SegmentName(1, n+1, testSegment), old)
	// One that is being written again: new pages, then old ones.
	mixed := append([]byte(nil), own.segment(n)...)
	at := int(own.at-n.Start(testSegment))/pageBytes*pageBytes + pageBytes
	copy(mixed[at:], old[at:])
	own.write(wal.SegmentName(1, n, testSegment), mixed)
	c, err := Compare(t.Context(), own.dir, leader.dir, 0)
	if err != nil || c.Relation != Same || c.End != own.at {
		t.Errorf("%+v, %v; want the same up to %s", c, err, own.at)
	}
	found, err := Of(own.dir, testSegment).Segments([]Branch{{1, endless}})
	if _, has := found[n+1]; err != nil || has || len(found) != int(n-5)+1 {
		t.Errorf("segments %v, %v", found, err)
	}
}

// What pg_rewind leaves of the timeline that it takes back is nobody's WAL, be it of a later
// timeline or from behind the point at which a timeline was left.
func TestWhatARewindLeavesIsNotCompared(t *testing.T) {
	own, leader, redo := pair(t)
	old := own.clone()
	for _, w := range []*logWriter{own, leader} {
		w.fork(2)
		w.record(9, 9)
	}
	own.save(redo)
	leader.save(redo)
	old.record(80, 1)
	for range 3 {
		old.switchSegment()
		old.record(80, 1)
	}
	n := old.at.Segment(testSegment)
	own.write(wal.SegmentName(1, n, testSegment), old.segment(n)) // timeline 1 was left before
	own.write(wal.SegmentName(3, n-1, testSegment), old.segment(n-1))
	own.write(wal.SegmentName(3, own.at.Segment(testSegment), testSegment), old.segment(own.at.Segment(testSegment)))
	for _, limit := range []int64{0, testSegment} {
		c, err := Compare(t.Context(), own.dir, leader.dir, limit)
		if err != nil || c.Relation != Same || c.End != own.at {
			t.Errorf("limit %d: %+v, %v; want the same up to %s", limit, c, err, own.at)
		}
	}
	dir := Of(own.dir, testSegment)
	own.write(wal.SegmentName(3, n, testSegment)+".partial", nil)
	names, err := dir.Orphans(2)
	if err != nil || len(names) != 3 {
		t.Errorf("orphans %v, %v; want those of timeline 3", names, err)
	}
	own.history(3, "2\t0/700000\tx\n")
	if names, err := dir.Orphans(2); err != nil || len(names) != 0 {
		t.Errorf("orphans %v, %v, with a history", names, err)
	}
}

func TestLineage(t *testing.T) {
	w := newLog(t, begins)
	w.history(4, "1\t0/5000000\tno recovery target specified\n\n# a comment\n3\t0/6000098\tbefore x\n")
	way, err := Of(w.dir, testSegment).Lineage(4)
	want := []Branch{{1, 0x5000000}, {3, 0x6000098}, {4, endless}}
	if err != nil || len(way) != 3 || way[0] != want[0] || way[1] != want[1] || way[2] != want[2] {
		t.Errorf("%v, %v; want %v", way, err, want)
	}
	for _, text := range []string{"x\t0/1\n", "1\n", "1\tzero\n", "2\t0/1\n1\t0/2\n"} {
		w.history(5, text)
		if _, err := Of(w.dir, testSegment).Lineage(5); err == nil {
			t.Errorf("history %q was taken", text)
		}
	}
	if _, err := Of(w.dir, testSegment).Lineage(6); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no history: %v", err)
	}
}

// FuzzChain: whatever lies in a segment, reading it comes to an end, and what is called whole
// lies within the segment.
func FuzzChain(f *testing.F) {
	f.Add([]byte{}, uint32(40))
	f.Add(bytesOf(100, 1, 0, 10, 0), uint32(40))
	f.Add(bytesOf(9000, 1, 0, 10, 0), uint32(8192))
	f.Fuzz(func(t *testing.T, content []byte, from uint32) {
		w := newLog(t, 5*testSegment)
		seg := w.segment(5)
		w.pageHeader(seg, 5, 0, 0)
		copy(seg[min(longHeaderBytes, len(seg)):], content)
		w.save(begins)
		dir := Of(w.dir, testSegment)
		segments, err := dir.Segments([]Branch{{1, endless}})
		if err != nil {
			t.Fatal(err)
		}
		at := wal.LSN(5*testSegment) + align(wal.LSN(from%testSegment))
		c := chain{dir: dir, segments: segments}
		spans, end, err := c.follow(t.Context(), at)
		if err != nil || end < at || end > 6*testSegment {
			t.Fatalf("from %s to %s: %v", at, end, err)
		}
		for _, s := range spans {
			if s.from < at || s.to > 6*testSegment || s.from >= s.to {
				t.Fatalf("span %v from %s", s, at)
			}
		}
	})
}
