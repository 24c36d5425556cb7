package backup

import (
	"strings"

	"controld/internal/pgwal"
	"controld/internal/wal"
)

// A Segment is a file of the log on one timeline.
type Segment struct {
	Timeline wal.Timeline      `json:"timeline"`
	Number   wal.SegmentNumber `json:"number"`
}

// Name is its file's.
func (s Segment) Name(segmentBytes int64) string {
	return wal.SegmentName(s.Timeline, s.Number, segmentBytes)
}

// An Archive is the WAL that lies in a repository.
type Archive struct {
	SegmentBytes int64
	Segments     map[Segment]string // the SHA-1 of what is in each
	Histories    map[wal.Timeline]bool
}

// NewArchive reads the names of the files in an archive: those of segments carry the
// checksum of what is in them, and how it is compressed. What is neither a whole segment
// nor a history counts for nothing.
func NewArchive(names []string, segmentBytes int64) Archive {
	a := Archive{SegmentBytes: segmentBytes, Segments: map[Segment]string{}, Histories: map[wal.Timeline]bool{}}
	for _, name := range names {
		if t, ok := wal.ParseHistoryName(name); ok {
			a.Histories[t] = true
			continue
		}
		segment, rest, _ := strings.Cut(name, "-")
		if t, n, ok := wal.ParseSegmentName(segment, segmentBytes); ok {
			a.Segments[Segment{t, n}], _, _ = strings.Cut(rest, ".")
		}
	}
	return a
}

// Missing are the segments that a recovery along way needs from the segment from on, that
// are complete at the position to, and that the archive lacks; and the histories of the
// timelines that it comes through.
//
// Where a timeline is left in the middle of a segment, the next one has that segment, too,
// with all that was written of it before. So the one that was left is not needed.
func (a Archive) Missing(way []pgwal.Branch, from Segment, to wal.LSN) (segments []Segment, histories []wal.Timeline) {
	next, begun := from.Number, false
	for _, b := range way {
		if b.Timeline == from.Timeline {
			begun = true
		} else if begun && !a.Histories[b.Timeline] {
			histories = append(histories, b.Timeline)
		}
		if !begun {
			continue
		}
		for end := min(b.End, to).Segment(a.SegmentBytes); next < end; next++ {
			s := Segment{b.Timeline, next}
			if _, there := a.Segments[s]; !there {
				segments = append(segments, s)
			}
		}
	}
	return segments, histories
}

// onWay reports whether WAL from the segment on leads to where way does.
func (s Segment) onWay(way []pgwal.Branch, segmentBytes int64) bool {
	for _, b := range way {
		if b.Timeline == s.Timeline {
			return s.Number.Start(segmentBytes) < b.End
		}
	}
	return false
}

// A Hole is WAL that the archive lacks and that nobody has any more: no backup from before
// it is recovered to a moment after it.
type Hole struct {
	Timeline wal.Timeline `json:"timeline"`
	From     wal.LSN      `json:"from"`
	To       wal.LSN      `json:"to"` // the first position that the archive has again
}

// holes joins segments that follow one another.
func holes(lost []Segment, segmentBytes int64) (out []Hole) {
	for _, s := range lost {
		from, to := s.Number.Start(segmentBytes), (s.Number + 1).Start(segmentBytes)
		if last := len(out) - 1; last >= 0 && out[last].Timeline == s.Timeline && out[last].To == from {
			out[last].To = to
			continue
		}
		out = append(out, Hole{s.Timeline, from, to})
	}
	return out
}
