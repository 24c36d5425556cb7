package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"controld/internal/cluster"
	"controld/internal/operation"
	"controld/internal/pgwal"
	"controld/internal/wait"
	"controld/internal/wal"
)

// KindArchive pushes WAL that no archive_command will push any more: what was streamed to a
// standby, and not archived, before that led.
const KindArchive = "archive"

// HoldSlot is the replication slot by which every node keeps the WAL that the archive lacks.
// A standby counts as archived what it has received, and would remove it; after its
// promotion it may be the only one that has it.
const HoldSlot = "controld_archive"

// Logs are what lies on the volumes of the nodes and in the archive, without any server.
type Logs interface {
	// Archived are the names of the WAL files in the archive of the cluster systemID.
	// Segments before since, which is the name of one, may be left out; empty: all.
	Archived(systemID uint64, since string) ([]string, error)
	// ArchiveSize is how many bytes the archive of the cluster systemID has, and how many of
	// these have come since a moment.
	ArchiveSize(systemID uint64, since time.Time) (all, recent int64, err error)
	// Way is how timeline t came to be, as n has it.
	Way(n cluster.Node, t wal.Timeline, segmentBytes int64) ([]pgwal.Branch, error)
	// Whole says where a file of the log lies that is whole; empty: nowhere. waits: it is
	// on the list of the leader's archiver. An error: a volume could not be looked at.
	Whole(leader cluster.Node, file string, segmentBytes int64) (path string, waits bool, err error)
	// Checksum is the SHA-1 of a file of the log, in hexadecimal digits.
	Checksum(n cluster.Node, file string) (string, error)
}

// Continuity is how far the archive has all WAL that leads from the oldest backup to the
// server that leads.
type Continuity struct {
	At           time.Time // zero: nobody has looked yet
	Anew         time.Time // when all of it was looked at last, and not only what is new
	Way          []pgwal.Branch
	SegmentBytes int64
	// Next is the first segment that the archive may still get; those before it are there,
	// or lost.
	Next    Segment
	Waiting int    // segments on the list of the leader's archiver
	Left    []Left // what nobody would push, and lies somewhere
	Lost    []Segment
	// Conflict is a file that the leader cannot archive because the archive has another one
	// of that name; empty: none.
	Conflict string
	// Unread says why it is not known what else is lost; empty: it is known.
	Unread string
}

// Left is a file that the archive lacks, and where it lies.
type Left struct {
	File string `json:"file"`
	Path string `json:"path"`
}

// Holes are what is lost.
func (c Continuity) Holes() []Hole { return holes(c.Lost, c.SegmentBytes) }

// An ArchiveState says in a word how an archive is.
type ArchiveState string

// The states of an archive, the worst first.
const (
	ArchiveUnknown    ArchiveState = "unknown"    // nobody could look
	ArchiveHole       ArchiveState = "hole"       // WAL is lost for good
	ArchiveIncomplete ArchiveState = "incomplete" // controld has files to push
	ArchiveWaiting    ArchiveState = "waiting"    // the server has
	ArchiveContinuous ArchiveState = "continuous"
)

// State is how the archive is.
func (c Continuity) State() ArchiveState {
	switch {
	case c.At.IsZero() || c.Unread != "":
		return ArchiveUnknown
	case len(c.Lost) > 0:
		return ArchiveHole
	case len(c.Left) > 0:
		return ArchiveIncomplete
	case c.Waiting > 0:
		return ArchiveWaiting
	}
	return ArchiveContinuous
}

// Reaches reports whether WAL of the archive leads from the end of this backup to the
// server that leads. Where nobody has looked yet it is taken to do so.
func (c Continuity) Reaches(b Copy) bool {
	if c.At.IsZero() {
		return true
	}
	if h := c.Holes(); len(h) > 0 && b.LSNStart < h[len(h)-1].To {
		return false
	}
	return slices.ContainsFunc(c.Way, func(x pgwal.Branch) bool { return x.Timeline == b.Timeline && b.LSNStop <= x.End })
}

// Continuity is what was last seen of the archive. It never blocks.
func (b *Backups) Continuity() Continuity { return *b.continuity.Load() }

// Times of the looks at the archive.
const (
	archiveEvery = 5 * time.Second
	// archiveAnew: everything is looked at again, also where nothing seems to have changed.
	archiveAnew = 10 * time.Minute
	// archiveRetry is the longest pause after attempts that failed.
	archiveRetry = 5 * time.Minute
)

// keepArchive looks at the archive until ctx ends, keeps on every node what the archive
// lacks, and has pushed what nobody else would push.
func (b *Backups) keepArchive(ctx context.Context) {
	var before Continuity
	var asOf lookedAt
	for failures := 0; ctx.Err() == nil; {
		pause := archiveEvery
		leader, able := b.ready()
		now := b.lookedAt(leader)
		if able && b.archives() && b.Seen().State == RepositoryOK && !b.moving() &&
			(now != asOf || time.Since(before.Anew) > archiveAnew || !before.settled()) {
			c, err := b.survey(leader, before)
			switch {
			case err != nil:
				b.unseen(err)
				before = Continuity{}
			case !slices.Equal(c.Left, before.Left) || !slices.Equal(c.Lost, before.Lost) || c.Conflict != before.Conflict:
				// The archiver may have pushed a file between our look at the archive and
				// that at its list. So what is to be acted upon is seen twice.
				before, asOf, pause = c, lookedAt{}, time.Second
			default:
				if err := b.noteConflict(c); err != nil {
					b.Log.Error("the conflict in the archive is not noted", "err", err)
				}
				b.publish(c)
				before, asOf = c, now
				if !b.hold(ctx, c) {
					asOf = lookedAt{}
				}
				if len(c.Left) == 0 {
					failures = 0
				} else if b.pushLeft(ctx, c) {
					failures, pause = 0, 0
				} else {
					failures++
					pause = min(archiveEvery<<min(failures, 10), archiveRetry)
				}
			}
		}
		_ = wait.Sleep(ctx, pause) // the loop ends with ctx
	}
}

// unseen shows that nobody could look now, and what was seen before.
func (b *Backups) unseen(err error) {
	c := b.Continuity()
	if c.Unread != err.Error() {
		b.Log.Warn("the archive was not looked at", "err", err)
	}
	c.Unread = err.Error()
	b.continuity.Store(&c)
}

// publish shows c, and has a new loss acted upon at once.
func (b *Backups) publish(c Continuity) {
	old := b.continuity.Swap(&c)
	if !slices.Equal(c.Lost, old.Lost) {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
}

// noteConflict makes durable that a segment of the archive is not ours: also when another node
// leads, and has no use for that name any more, what comes after it is not reached.
func (b *Backups) noteConflict(c Continuity) error {
	t, n, isSegment := wal.ParseSegmentName(c.Conflict, max(c.SegmentBytes, 1))
	if s := (Segment{t, n}); isSegment && !slices.Contains(b.Archiving.conflicts(), s) {
		b.Log.Error("the archive has another segment of this name", "file", c.Conflict)
		return b.Archiving.noteConflict(s)
	}
	return nil
}

// moving reports whether another node may lead in a moment: then no session of ours is to
// be in the way.
func (b *Backups) moving() bool { return len(b.Operations.Holding(operation.Primary)) > 0 }

// settled: nothing is left to be done, nor on its way.
func (c Continuity) settled() bool { return c.Waiting == 0 && len(c.Left) == 0 && c.Unread == "" }

// lookedAt is what a look at the archive depends on.
type lookedAt struct {
	node     string
	timeline wal.Timeline
	segment  wal.SegmentNumber
	archived time.Time
	failed   time.Time
	oldest   string
}

func (b *Backups) lookedAt(leader cluster.NodeState) lookedAt {
	if leader.Server == nil || leader.Server.SegmentBytes == 0 {
		return lookedAt{}
	}
	s := leader.Server
	from, _ := b.oldest(s.SegmentBytes, nil)
	return lookedAt{leader.Node.Name, s.Timeline, s.Flushed.Segment(s.SegmentBytes), s.ArchiveLastAt, s.ArchiveLastFailedAt,
		from.Name(s.SegmentBytes)}
}

// oldest is the segment from which on the oldest backup needs WAL that is on way; nil: any.
func (b *Backups) oldest(segmentBytes int64, way []pgwal.Branch) (Segment, bool) {
	for _, c := range b.Seen().Copies {
		t, n, ok := wal.ParseSegmentName(c.WALStart, segmentBytes)
		if s := (Segment{t, n}); ok && (way == nil || s.onWay(way, segmentBytes)) {
			return s, true
		}
	}
	return Segment{}, false
}

// survey looks at the archive: what it lacks of the way to the leader, and where that is.
// It goes on where before has come to.
func (b *Backups) survey(leader cluster.NodeState, before Continuity) (Continuity, error) {
	server := leader.Server
	size := server.SegmentBytes
	way, err := b.Logs.Way(leader.Node, server.Timeline, size)
	if err != nil {
		return Continuity{}, err
	}
	now := time.Now()
	c := Continuity{
		At: now, Anew: now, Way: way, SegmentBytes: size, Next: Segment{server.Timeline, server.Flushed.Segment(size)},
	}
	from, needed := b.oldest(size, way)
	if !needed { // no backup needs any WAL
		return c, nil
	}
	foreign := slices.DeleteFunc(b.Archiving.conflicts(), func(s Segment) bool { return s.Number < from.Number })
	if len(before.Lost)+len(foreign) == 0 && before.SegmentBytes == size && before.Next.onWay(way, size) &&
		before.Next.Number >= from.Number && now.Sub(before.Anew) < archiveAnew {
		from, c.Anew = before.Next, before.Anew
	}
	since := from.Name(size)
	failing := ""
	if server.ArchiveLastFailedAt.After(server.ArchiveLastAt) {
		failing = server.ArchiveLastFailed
		since = min(since, failing)
	}
	names, err := b.Logs.Archived(b.Cluster.Identity().SystemID, since)
	if err != nil {
		return Continuity{}, err
	}
	archive := NewArchive(names, size)
	if b.isForeign(archive, leader.Node, failing) {
		c.Conflict = failing
	}
	for _, s := range foreign {
		delete(archive.Segments, s)
	}
	segments, histories := archive.Missing(way, from, server.Flushed)
	for _, t := range histories {
		if !c.place(b.Logs, leader.Node, t.HistoryName()) && c.Unread == "" {
			b.Log.Error("the history of a timeline is in no volume", "timeline", t)
		}
	}
	for i, s := range segments {
		if slices.Contains(foreign, s) || !c.place(b.Logs, leader.Node, s.Name(size)) && c.Unread == "" {
			c.Lost = append(c.Lost, s)
		} else if len(c.Lost) == i { // the first that is not lost
			c.Next = s
		}
	}
	// Without its history nobody goes over to a timeline, whatever there is of it.
	if len(histories) > 0 {
		if left := leftBefore(way, histories[0], size); left.Number < c.Next.Number {
			c.Next = left
		}
	}
	return c, nil
}

// leftBefore is the segment in which way leaves the timeline before t.
func leftBefore(way []pgwal.Branch, t wal.Timeline, segmentBytes int64) Segment {
	at := max(slices.IndexFunc(way, func(b pgwal.Branch) bool { return b.Timeline == t }), 1) - 1
	return Segment{way[at].Timeline, way[at].End.Segment(segmentBytes)}
}

// isForeign reports whether the archive has another segment under the name of one that the
// leader cannot archive. What a server says of its last failure may be from when it led
// before; and a push that was ended may have put the right one there.
func (b *Backups) isForeign(a Archive, leader cluster.Node, file string) bool {
	t, n, isSegment := wal.ParseSegmentName(file, a.SegmentBytes)
	there, has := a.Segments[Segment{t, n}]
	if !isSegment || !has {
		return false
	}
	if _, waits, err := b.Logs.Whole(leader, file, a.SegmentBytes); err != nil || !waits {
		return false
	}
	own, err := b.Logs.Checksum(leader, file)
	return err == nil && own != there
}

// place notes where a file is that the archive lacks, and reports whether it is anywhere.
func (c *Continuity) place(logs Logs, leader cluster.Node, file string) bool {
	path, waits, err := logs.Whole(leader, file, c.SegmentBytes)
	switch {
	case err != nil:
		c.Unread = err.Error()
	case waits:
		c.Waiting++
	case path != "":
		c.Left = append(c.Left, Left{file, path})
	}
	return waits || path != ""
}

// hold has every server keep what the archive lacks, and no more. false: one that answers was
// not told.
func (b *Backups) hold(ctx context.Context, c Continuity) (told bool) {
	told = true
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	keep := c.Next.Number.Start(c.SegmentBytes)
	for _, s := range b.Cluster.View().Nodes {
		if s.Server == nil {
			continue
		}
		at := slices.IndexFunc(s.Server.Slots, func(x cluster.Slot) bool { return x.Name == HoldSlot })
		there := at >= 0 && s.Server.Slots[at].WALStatus != "lost"
		if there && s.Server.Slots[at].Restart >= keep {
			continue
		}
		if err := b.holdOn(ctx, s.Node, there, min(keep, max(s.Server.Flushed, s.Server.Replayed))); err != nil {
			b.Log.Warn("which WAL it is to keep was not told", "node", s.Node.Name, "err", err)
			told = false
		}
	}
	return told
}

func (b *Backups) holdOn(ctx context.Context, n cluster.Node, there bool, keep wal.LSN) error {
	session, err := b.Servers.Connect(ctx, n)
	if err != nil {
		return err
	}
	defer session.Close()
	if !there {
		return session.CreateSlot(ctx, HoldSlot)
	}
	return session.AdvanceSlot(ctx, HoldSlot, keep)
}

// pushLeft has pushed what is left, by an operation, and waits for its end.
func (b *Backups) pushLeft(ctx context.Context, c Continuity) bool {
	why := fmt.Sprintf("the archive lacks %d files of the log that no server will archive, such as %s", len(c.Left), c.Left[0].File)
	rec, err := b.start(ctx, operation.Spec{Kind: KindArchive, Reason: why, Caller: daemon}, params{})
	if err == nil {
		rec, err = b.Operations.Wait(ctx, rec.ID)
	}
	if err != nil && ctx.Err() == nil {
		b.Log.Warn("WAL that was left is not pushed", "err", err)
	}
	return err == nil && rec.State == operation.Succeeded
}

// archiveState is what the operation has learned.
type archiveState struct {
	Primary string `json:"primary"`
	Pushed  int    `json:"pushed,omitempty"` // files
	First   string `json:"first,omitempty"`  // of them
	Last    string `json:"last,omitempty"`
}

// mostRefused files may fail: what is wrong then are not the files.
const mostRefused = 3

// archiveWork pushes what is left as of now. What an earlier controld has pushed is not
// left any more.
func (b *Backups) archiveWork() operation.Runnable {
	return operation.Work[archiveState]{
		Prepare: func(_ context.Context, s *archiveState) (operation.Prepared, error) {
			leader, able := b.ready()
			if !able {
				return operation.Prepared{}, operation.Refuse("no-primary", nil, "no node leads that can archive; see GET /health")
			}
			s.Primary = leader.Node.Name
			return operation.Prepared{}, nil
		},
		Steps: func(*archiveState) []operation.Step[archiveState] {
			return []operation.Step[archiveState]{{Name: "push WAL", Do: b.push, Entry: true}}
		},
		Forward: true,
		Result: func(s *archiveState) map[string]any {
			r := map[string]any{"primary": s.Primary, "pushed": s.Pushed}
			if s.Pushed > 0 {
				r["first"], r["last"] = s.First, s.Last
			}
			return r
		},
	}
}

func (b *Backups) push(ctx context.Context, s *archiveState) error {
	leader, able := b.ready()
	if !able {
		return errors.New("no node leads that can archive")
	}
	c, err := b.survey(leader, Continuity{})
	if err != nil {
		return err
	}
	var failed []error
	for i, left := range c.Left {
		operation.Report(ctx, operation.Progress{Phase: "push", Done: int64(i), Total: int64(len(c.Left)), Unit: "files"})
		if err := b.Tool.Push(ctx, leader.Node, left.Path); err != nil {
			failed = append(failed, fmt.Errorf("push %s: %w", left.File, err))
			if len(failed) == mostRefused || ctx.Err() != nil {
				break
			}
			continue
		}
		s.Pushed++
		s.First, s.Last = cmp.Or(s.First, left.File), left.File
	}
	return errors.Join(failed...)
}
