package server

import (
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"controld/internal/node"
	"controld/internal/pgwal"
	"controld/internal/wal"
)

// goldenSegment is the size of the segments in the golden control files.
const goldenSegment = 4 << 20

// segmentAt is the name of a segment, and a file of which the first page is at another.
func segmentAt(t wal.Timeline, name, pages wal.SegmentNumber) (string, []byte) {
	b := make([]byte, 8192)
	binary.LittleEndian.PutUint64(b[8:], uint64(pages.Start(goldenSegment)))
	return wal.SegmentName(t, name, goldenSegment), b
}

// withLog gives the node WAL of which the archive has only segment 2.
func (b *bench) withLog() *bench {
	b.t.Helper()
	b.cfg.Archives = func() bool { return true }
	b.cfg.Archived = func(_ uint64, segment string) bool { return strings.HasSuffix(segment, "2") }
	dir := filepath.Join(b.cfg.dataDir(), pgwal.DirName)
	for _, f := range []struct {
		number, pages wal.SegmentNumber
		status        string
	}{
		{1, 1, ".ready"}, {2, 2, ".ready"}, {3, 3, ".done"}, {4, 4, ".ready"}, {5, 5, ""}, {6, 1, ".ready"},
	} {
		name, content := segmentAt(1, f.number, f.pages)
		write(b.t, dir, name, content)
		if f.status != "" {
			write(b.t, filepath.Join(dir, "archive_status"), name+f.status, nil)
		}
	}
	gone, _ := segmentAt(1, 7, 7)
	write(b.t, filepath.Join(dir, "archive_status"), gone+".ready", nil)
	write(b.t, filepath.Join(dir, "archive_status"), "00000002.history.ready", nil)
	return b
}

// saved are the numbers of the segments that are set aside.
func (b *bench) saved() (numbers []wal.SegmentNumber) {
	b.t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.cfg.NodeDir, node.AsideDir))
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	for _, e := range entries {
		_, n, ok := wal.ParseSegmentName(e.Name(), goldenSegment)
		is, err := pgwal.IsSegment(filepath.Join(b.cfg.NodeDir, node.AsideDir, e.Name()), n, goldenSegment)
		if !ok || !is || err != nil {
			b.t.Errorf("%s is no segment: %v", e.Name(), err)
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// What the archive lacks is saved before the data is overwritten, or the server a standby.
func TestWhatTheArchiveLacksIsSetAside(t *testing.T) {
	for _, tt := range []struct {
		name  string
		order node.Order
		able  bool
		want  []wal.SegmentNumber
	}{
		{"rewound", rewound, true, []wal.SegmentNumber{1, 3, 4}},
		{"a standby", standby, true, []wal.SegmentNumber{1, 4}},
		{"it leads", primary, true, nil},
		{"nothing is archived here", rewound, false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t).withCluster().withLog()
			b.cfg.Archives = func() bool { return tt.able }
			b.run()
			b.give(tt.order)
			b.await(node.StateRunning)
			if got := b.saved(); !slices.Equal(got, tt.want) {
				t.Errorf("saved %v, want %v", got, tt.want)
			}
		})
	}
}

// Where it cannot be saved the data stays as it is.
func TestNothingIsOverwrittenThatCannotBeSaved(t *testing.T) {
	b := newBench(t).withCluster().withLog()
	write(t, b.cfg.NodeDir, node.AsideDir, []byte("in the way"))
	kept := b.keep()
	b.run()
	b.give(rewound)
	if s := b.await(node.StateFailed); !strings.Contains(s.Error, "which the archive lacks") || s.Unfinished != "" || !kept() {
		t.Errorf("%+v, kept %v", s, kept())
	}
}

// What was set aside goes when the archive has it, or when nobody needs it.
func TestWhatWasSetAsideIsTidied(t *testing.T) {
	b := newBench(t).withCluster().withLog()
	b.run()
	b.give(rewound)
	b.await(node.StateRunning)
	b.end()
	archived := "1"
	b.cfg.Archived = func(_ uint64, segment string) bool { return strings.HasSuffix(segment, archived) }
	name, content := segmentAt(9, 8, 8)
	write(t, filepath.Join(b.cfg.NodeDir, node.AsideDir), name, content)
	write(t, filepath.Join(b.cfg.NodeDir, node.AsideDir), asideTempPrefix+name, content)
	n := New(b.cfg, nil, slog.New(slog.DiscardHandler))
	if err := n.tidyAside(); err != nil {
		t.Fatal(err)
	}
	if got, want := b.saved(), []wal.SegmentNumber{3, 4}; !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
	// A timeline that was left in the middle of segment 4: the next one has it.
	way := []pgwal.Branch{{Timeline: 1, End: 4*goldenSegment + 100}, {Timeline: 2, End: ^wal.LSN(0)}}
	for number, want := range map[wal.SegmentNumber]bool{3: true, 4: false, 5: false} {
		if name, _ := segmentAt(1, number, number); onWay(name, way, goldenSegment) != want {
			t.Errorf("segment %d is needed: %v, want %v", number, !want, want)
		}
	}
}
