package backup

import (
	"fmt"
	"reflect"
	"testing"

	"controld/internal/pgwal"
	"controld/internal/wal"
)

const testSegment = 4 << 20

// at is a position in a segment.
func at(segment, offset uint64) wal.LSN { return wal.LSN(segment*testSegment + offset) }

// archiveOf has whole segments of a timeline from the first to the last.
func archiveOf(runs ...[3]uint64) Archive {
	names := []string{"archive.info", "00000002.history", "00000003.history"}
	for _, r := range runs {
		for n := r[1]; n <= r[2]; n++ {
			name := Segment{wal.Timeline(r[0]), wal.SegmentNumber(n)}.Name(testSegment)
			names = append(names, name+"-0123456789abcdef0123456789abcdef01234567.zst")
		}
	}
	return NewArchive(names, testSegment)
}

func TestNewArchive(t *testing.T) {
	a := NewArchive([]string{
		"00000001000000000000000A-0123456789abcdef0123456789abcdef01234567.zst",
		"000000020000000100000003-0123456789abcdef0123456789abcdef01234567",
		"000000010000000000000007.partial-0123456789abcdef0123456789abcdef01234567.zst",
		"000000010000000000000008.00000028.backup",
		"00000002.history", "archive.info", "pgbackrest.tmp", "",
	}, testSegment)
	const sum = "0123456789abcdef0123456789abcdef01234567"
	want := map[Segment]string{{1, 10}: sum, {2, 1024 + 3}: sum}
	if !reflect.DeepEqual(a.Segments, want) || !reflect.DeepEqual(a.Histories, map[wal.Timeline]bool{2: true}) {
		t.Errorf("%v, %v", a.Segments, a.Histories)
	}
}

func TestMissing(t *testing.T) {
	endless := ^wal.LSN(0)
	one := []pgwal.Branch{{Timeline: 1, End: endless}}
	two := []pgwal.Branch{{Timeline: 1, End: at(5, 100)}, {Timeline: 2, End: endless}}
	edge := []pgwal.Branch{{Timeline: 1, End: at(5, 0)}, {Timeline: 2, End: endless}}
	within := []pgwal.Branch{{Timeline: 1, End: at(5, 100)}, {Timeline: 2, End: at(5, 900)}, {Timeline: 3, End: endless}}
	for _, tt := range []struct {
		name    string
		archive Archive
		way     []pgwal.Branch
		from    Segment
		to      wal.LSN
		want    []Segment
	}{
		{"all is there", archiveOf([3]uint64{1, 2, 6}), one, Segment{1, 2}, at(7, 100), nil},
		{"the segment that is being written is not missing", archiveOf(), one, Segment{1, 7}, at(7, 100), nil},
		{"one that has just been filled", archiveOf(), one, Segment{1, 7}, at(8, 0), []Segment{{1, 7}}},
		{"one in the middle", archiveOf([3]uint64{1, 2, 3}, [3]uint64{1, 5, 6}), one, Segment{1, 2}, at(7, 0), []Segment{{1, 4}}},
		{"what is before the first does not count", archiveOf([3]uint64{1, 4, 6}), one, Segment{1, 4}, at(7, 0), nil},
		{"left in the middle of a segment: the next timeline has it", archiveOf([3]uint64{1, 2, 4}, [3]uint64{2, 5, 6}),
			two, Segment{1, 2}, at(7, 0), nil},
		{"and it does not do on the timeline that was left", archiveOf([3]uint64{1, 2, 5}, [3]uint64{2, 6, 6}),
			two, Segment{1, 2}, at(7, 0), []Segment{{2, 5}}},
		{"left at the end of a segment", archiveOf([3]uint64{1, 2, 4}, [3]uint64{2, 5, 6}), edge, Segment{1, 2}, at(7, 0), nil},
		{"the last of the timeline that was left", archiveOf([3]uint64{1, 2, 3}, [3]uint64{2, 5, 6}),
			edge, Segment{1, 2}, at(7, 0), []Segment{{1, 4}}},
		{"both sides of a failover", archiveOf([3]uint64{1, 2, 2}, [3]uint64{2, 6, 6}),
			two, Segment{1, 2}, at(7, 0), []Segment{{1, 3}, {1, 4}, {2, 5}}},
		{"a timeline that ended in the segment in which it began", archiveOf([3]uint64{1, 2, 4}, [3]uint64{3, 5, 6}),
			within, Segment{1, 2}, at(7, 0), nil},
		{"from a later timeline on", archiveOf([3]uint64{2, 5, 6}), two, Segment{2, 5}, at(7, 0), nil},
		{"from a timeline that is not on the way", archiveOf(), two, Segment{4, 2}, at(7, 0), nil},
		{"nothing is complete yet", archiveOf(), one, Segment{1, 2}, at(2, 10), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, _ := tt.archive.Missing(tt.way, tt.from, tt.to); fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
	lacks := archiveOf()
	delete(lacks.Histories, 3)
	if _, got := lacks.Missing(within, Segment{1, 2}, 0); fmt.Sprint(got) != "[3]" {
		t.Errorf("histories %v, want that of timeline 3", got)
	}
	if _, got := lacks.Missing(within, Segment{3, 5}, 0); len(got) != 0 {
		t.Errorf("from timeline 3 on no history is needed: %v", got)
	}
}

func TestHoles(t *testing.T) {
	got := holes([]Segment{{1, 3}, {1, 4}, {2, 5}, {2, 7}}, testSegment)
	want := []Hole{{1, at(3, 0), at(5, 0)}, {2, at(5, 0), at(6, 0)}, {2, at(7, 0), at(8, 0)}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
