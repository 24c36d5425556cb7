package pgwal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"controld/internal/pgcontrol"
	"controld/internal/wal"
)

// A Relation is what a node's log is to that of the node that leads.
type Relation string

// The relations. Only Same says that the node can follow as it is. Only Past can be
// rewound, because what the node has too much is on a timeline that the leader left.
const (
	Same     Relation = "same"     // all that the node has the leader has, too
	Past     Relation = "past"     // it went on where the leader's timeline branched off
	Diverged Relation = "diverged" // it holds other WAL than the leader at the same position, or more
	Unknown  Relation = "unknown"  // nothing to compare, or not readable
)

// A Comparison is what Compare found. Positions that mean nothing are 0.
type Comparison struct {
	Relation Relation `json:"relation"`
	From     wal.LSN  `json:"from"`         // the node's own WAL from here
	End      wal.LSN  `json:"end"`          // to here was looked at: the end of its last whole record
	At       wal.LSN  `json:"at,omitempty"` // Past: the fork; Diverged: the first byte that differs
	Bytes    int64    `json:"bytes"`        // that were compared with the leader's
	Why      string   `json:"why,omitempty"`
}

// Compare compares the WAL of the node with the data directory own, byte by byte, with
// that of the node with the data directory leader. It begins where the own recovery
// would begin, at the redo point, and ends with the own last whole record. limit, if
// not 0, bounds how many bytes before that end are looked at.
//
// The redo point is early enough. The node needs no WAL from before it. And a node that
// wrote WAL of its own before it has written its checkpoint, too, into such WAL.
//
// Both servers may run, the own one as a standby: what a standby has received was
// flushed on the leader before it was sent.
//
// What cannot be read makes the relation Unknown, with the reason. The only error is
// that of ctx.
func Compare(ctx context.Context, own, leader string, limit int64) (Comparison, error) {
	for try := 1; ; try++ {
		c, err := compare(ctx, own, leader, limit)
		if ctx.Err() != nil {
			return Comparison{}, ctx.Err()
		}
		if err == nil {
			return c, nil
		}
		// The leader recycles its segments under the names of later ones.
		if !errors.Is(err, errReplaced) || try == 3 {
			return Comparison{Relation: Unknown, Why: err.Error()}, nil
		}
	}
}

// errReplaced: a file of the leader's was given another name while it was read.
var errReplaced = errors.New("a segment was recycled while it was read")

// A side is one of the two nodes.
type side struct {
	dir      Dir
	control  pgcontrol.Data
	timeline wal.Timeline // that it is on
	way      []Branch     // that led there; nil: its history file is missing
	segments map[wal.SegmentNumber]wal.Timeline
}

// look reads a node's log. follows: it may be on a later timeline than its
// control file says.
func look(dataDir string, follows bool) (side, error) {
	control, err := pgcontrol.Read(dataDir)
	if err != nil {
		return side{}, err
	}
	s := side{dir: Of(dataDir, control.SegmentBytes), control: control, timeline: control.Timeline()}
	if follows {
		if s.timeline, err = s.dir.Newest(s.timeline); err != nil {
			return side{}, err
		}
	}
	s.way, err = s.dir.Lineage(s.timeline)
	return s, err
}

// bounds are the lowest and the highest segment.
func (s side) bounds() (oldest, newest wal.SegmentNumber) {
	oldest = ^wal.SegmentNumber(0)
	for n := range s.segments {
		oldest, newest = min(oldest, n), max(newest, n)
	}
	return oldest, newest
}

func compare(ctx context.Context, own, leader string, limit int64) (Comparison, error) {
	theirs, err := look(leader, false)
	if err != nil {
		return Comparison{}, fmt.Errorf("the leader's WAL: %w", err)
	}
	mine, err := look(own, true)
	if errors.Is(err, os.ErrNotExist) && mine.timeline > 1 { // it was copied on that timeline
		mine.way, err = theirs.dir.Lineage(mine.timeline)
	}
	if err != nil {
		return Comparison{}, fmt.Errorf("its own WAL: %w", err)
	}
	if mine.control.SystemID != theirs.control.SystemID || mine.dir.SegmentBytes != theirs.dir.SegmentBytes {
		return Comparison{}, fmt.Errorf("they are no nodes of one cluster (system identifiers %d and %d)",
			mine.control.SystemID, theirs.control.SystemID)
	}
	for _, s := range []*side{&mine, &theirs} {
		if s.segments, err = s.dir.Segments(s.way); err != nil {
			return Comparison{}, err
		}
	}
	c := Comparison{From: mine.start(limit)}
	records := chain{dir: mine.dir, segments: mine.segments}
	spans, end, err := records.follow(ctx, c.From)
	if redo := mine.control.Redo; err == nil && len(spans) == 0 && c.From != redo { // one record fills it
		c.From = redo
		spans, end, err = records.follow(ctx, c.From)
	}
	if err != nil {
		return Comparison{}, err
	}
	if c.End = end; len(spans) == 0 {
		return Comparison{}, fmt.Errorf("its pg_wal holds no record at %s, where its recovery begins", c.From)
	}
	forkAt := fork(mine.way, theirs.way)
	if forkAt != endless && mine.timeline == theirs.timeline {
		// Promoted each for itself: pg_rewind would take them for one.
		return c.diverged(forkAt, "it and the leader went on from %s each by itself, on timelines of the same number"), nil
	}
	return c.judge(mine, theirs, spans, forkAt)
}

// start is where the comparison begins: at the redo point, or at the first byte
// of the newest segments that limit allows, where that is later.
func (s side) start(limit int64) wal.LSN {
	redo := s.control.Redo
	_, newest := s.bounds()
	back := wal.SegmentNumber(max(1, limit/s.dir.SegmentBytes)) - 1
	if limit == 0 || newest < back || newest-back <= redo.Segment(s.dir.SegmentBytes) {
		return redo
	}
	for n := newest - back; n < newest; n++ {
		if _, has := s.segments[n]; !has {
			return redo
		}
	}
	return (newest - back).Start(s.dir.SegmentBytes)
}

// judge compares the spans up to the fork and says what follows.
func (c Comparison) judge(mine, theirs side, spans []span, forkAt wal.LSN) (Comparison, error) {
	oldest, newest := theirs.bounds()
	last := wal.LSN(0) // up to where it was compared
	for _, s := range spans {
		if s.to = min(s.to, forkAt); s.from >= s.to {
			break
		}
		n := s.from.Segment(mine.dir.SegmentBytes)
		t, has := theirs.segments[n]
		switch {
		case !has && n > newest:
			return c.diverged(s.from, "it has WAL from %s on, which the leader has not written"), nil
		case !has && n < oldest:
			continue // removed
		case !has:
			return Comparison{}, fmt.Errorf("the leader's pg_wal lacks the segment at %s", n.Start(mine.dir.SegmentBytes))
		}
		at, err := differs(mine.dir.path(mine.segments[n], n), theirs.dir.path(t, n), s, n.Start(mine.dir.SegmentBytes))
		if err != nil {
			return Comparison{}, err
		}
		c.Bytes += int64(at - s.from)
		if at < s.to {
			return c.diverged(at, "its WAL differs from the leader's from %s on"), nil
		}
		last = s.to
	}
	switch {
	case forkAt < c.End:
		c.Relation, c.At = Past, forkAt
		c.Why = fmt.Sprintf("it has WAL up to %s on timeline %d, which the leader left at %s", c.End, mine.timeline, forkAt)
	case last == spans[len(spans)-1].to:
		c.Relation = Same
	default:
		return Comparison{}, fmt.Errorf("the leader has removed the segment with the node's last record, which ends at %s", c.End)
	}
	return c, nil
}

func (c Comparison) diverged(at wal.LSN, format string) Comparison {
	c.Relation, c.At, c.Why = Diverged, at, fmt.Sprintf(format, at)
	return c
}

// differs is the first position of the span at which the two files differ; the
// span's end where they do not.
func differs(mine, theirs string, s span, start wal.LSN) (wal.LSN, error) {
	a, err := os.Open(mine)
	if err != nil {
		return 0, err
	}
	defer a.Close()
	b, err := os.Open(theirs)
	if errors.Is(err, os.ErrNotExist) {
		return 0, errReplaced
	}
	if err != nil {
		return 0, err
	}
	defer b.Close()
	at, err := CommonPrefix(a, b, int64(s.from-start), int64(s.to-start))
	if err != nil {
		return 0, fmt.Errorf("compare %s: %w", filepath.Base(theirs), err)
	}
	opened, err := b.Stat()
	if err != nil {
		return 0, err
	}
	if now, err := os.Stat(theirs); err != nil || !os.SameFile(opened, now) {
		return 0, errReplaced
	}
	return start + wal.LSN(at), nil
}
