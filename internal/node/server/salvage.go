package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"controld/internal/node"
	"controld/internal/node/child"
	"controld/internal/pgcontrol"
	"controld/internal/pgwal"
	"controld/internal/wal"
)

// salvage fetches the dead node's WAL and reports it at once: clients wait.
func (n *Init) salvage(ctx context.Context, o node.Order) (*child.Process, error) {
	began := time.Now()
	s := salvager{from: o.Salvage, to: filepath.Join(n.cfg.dataDir(), pgwal.DirName), uid: n.cfg.UID, gid: n.cfg.GID}
	err := s.run(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	done := node.Salvaged{Epoch: o.Epoch, Files: int(s.files.Load()), Bytes: s.bytes.Load()}
	if err != nil {
		done.Error = err.Error()
	}
	statusErr := n.status.update(func(s *node.Status) { s.Epoch, s.Salvaged, s.Error = o.Epoch, &done, "" })
	n.log.Info("salvage done", "epoch", o.Epoch, "files", done.Files, "bytes", done.Bytes,
		"duration_ms", time.Since(began).Milliseconds(), "err", err)
	n.logStatusError(statusErr)
	return nil, nil
}

// A salvager copies into a standby's pg_wal the WAL of a dead node that the standby
// lacks.
//
// The standby's walreceiver may still have a segment open and write to it. That does
// no harm. It writes only what the dead node had flushed before it sent it, so the dead
// node's file holds every byte of it. And a promotion ends the walreceiver and opens
// the files of pg_wal afresh, by name. So the dead node's file may replace a partly
// filled one of the standby's.
type salvager struct {
	from     *node.Salvage
	to       string
	uid, gid int

	// newest is the dead node's timeline. Files of a later one are left from a
	// promotion of that node that was undone, and are nobody's history.
	newest wal.Timeline

	files, bytes atomic.Int64
}

// salvageTempPrefix makes PostgreSQL remove left-overs when it starts.
const salvageTempPrefix = "xlogtemp.salvage."

// salvageParallel is how many files are written at once: the wait for the disk
// is most of the time.
const salvageParallel = 4

func (s *salvager) run(ctx context.Context) error {
	if err := s.sourceIsDead(ctx); err != nil {
		return err
	}
	s.newest = math.MaxUint32
	if control, err := pgcontrol.Read(s.from.DataDir); err == nil {
		s.newest = control.Timeline()
	}
	source := filepath.Join(s.from.DataDir, pgwal.DirName)
	entries, err := os.ReadDir(source)
	if err != nil {
		return fmt.Errorf("salvage: %w", err)
	}
	// History first: a timeline's segments are of no use without it.
	if err := s.copyAll(ctx, source, entries, s.wantsHistory); err != nil {
		return err
	}
	series, err := s.series(source, entries)
	if err != nil {
		return err
	}
	return s.copyAll(ctx, source, series, s.differs)
}

// How often, and with what pause, the dead node's lock is tried before it counts as
// held. Whoever tests a lock holds it for a moment: that is no sign of life.
const (
	deadTries = 20
	deadPause = 5 * time.Millisecond
)

// sourceIsDead makes sure that the other node is dead. A server that still acknowledges
// commits would write more WAL than was copied.
func (s *salvager) sourceIsDead(ctx context.Context) error {
	for try := 1; ; try++ {
		locked, err := node.Locked(filepath.Dir(s.from.DataDir))
		if err != nil {
			return fmt.Errorf("salvage: %w", err)
		}
		if !locked {
			return nil
		}
		if try == deadTries {
			return fmt.Errorf("salvage: the server of %s still runs", s.from.DataDir)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(deadPause):
		}
	}
}

// copyAll copies the wanted entries and makes their names durable with one sync.
func (s *salvager) copyAll(ctx context.Context, source string, entries []fs.DirEntry, wants func(path string) (bool, error)) error {
	before := s.files.Load()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(salvageParallel)
	for _, e := range entries {
		path := filepath.Join(source, e.Name())
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			wanted, err := wants(path)
			if err == nil && wanted {
				err = s.copyFile(path)
			}
			if err != nil {
				return fmt.Errorf("salvage %s: %w", filepath.Base(path), err)
			}
			return nil
		})
	}
	err := group.Wait()
	if s.files.Load() > before {
		err = errors.Join(err, node.SyncDir(s.to))
	}
	return err
}

// wantsHistory: every history file that is missing here.
func (s *salvager) wantsHistory(path string) (bool, error) {
	timeline := timelineOf(filepath.Base(path))
	if !strings.HasSuffix(path, ".history") || timeline == 0 || timeline > s.newest {
		return false, nil
	}
	_, err := os.Lstat(filepath.Join(s.to, filepath.Base(path)))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// series returns the segments to copy: those from the wanted position and timeline on
// that are what their name says. (A recycled file still holds the pages of an older
// segment.) A gap among them is an error: a promotion would end before it, and all
// that is behind it would be lost without a word.
func (s *salvager) series(source string, entries []fs.DirEntry) ([]fs.DirEntry, error) {
	size := s.from.SegmentBytes
	first := s.from.FromLSN.Segment(size)
	last := first
	found := map[wal.SegmentNumber]bool{}
	var out []fs.DirEntry
	for _, e := range entries {
		timeline, number, ok := wal.ParseSegmentName(e.Name(), size)
		if !ok || timeline < s.from.FromTimeline || timeline > s.newest || number < first {
			continue
		}
		isIt, err := pgwal.IsSegment(filepath.Join(source, e.Name()), number, size)
		if err != nil {
			return nil, fmt.Errorf("salvage %s: %w", e.Name(), err)
		}
		if isIt {
			found[number], last = true, max(last, number)
			out = append(out, e)
		}
	}
	for number := first; number < last; number++ {
		if !found[number] {
			from := max(s.from.FromLSN, number.Start(size))
			return nil, fmt.Errorf("salvage: the WAL from %s on was removed from the dead node's volume", from)
		}
	}
	return out, nil
}

// differs: the segment is missing here, or another one than the dead node's.
func (s *salvager) differs(path string) (bool, error) {
	size := s.from.SegmentBytes
	_, number, _ := wal.ParseSegmentName(filepath.Base(path), size)
	theirs, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer theirs.Close()
	if info, err := theirs.Stat(); err != nil || info.Size() != size {
		return false, errors.Join(err, errors.New("not of a segment's size"))
	}
	ours, err := os.Open(filepath.Join(s.to, filepath.Base(path)))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer ours.Close()
	same, err := pgwal.CommonPrefix(theirs, ours, 0, size)
	if err != nil || same == size {
		return false, err
	}
	// What this standby has received and replayed must be in the dead node's file, byte
	// for byte. Otherwise that is not the WAL that the standby follows. A recycled file
	// of the standby's own holds nothing of that kind.
	known := int64(s.from.FromLSN) - int64(number.Start(size))
	if address, err := pgwal.PageAddress(ours); err == nil && address == number.Start(size) && same < known {
		return false, fmt.Errorf("differs from the own file at byte %d, before %s: not the same history", same, s.from.FromLSN)
	}
	return true, nil
}

func (s *salvager) copyFile(path string) error {
	copied, err := copyFile(path, s.to, salvageTempPrefix, s.uid, s.gid)
	if err != nil {
		return err
	}
	s.files.Add(1)
	s.bytes.Add(copied)
	return nil
}

// copyFile puts a copy of path into the folder dir, whole or not at all. Its name is durable
// when the folder is. The kernel copies (copy_file_range, which shares the blocks where the
// file system can).
func copyFile(path, dir, tempPrefix string, uid, gid int) (bytes int64, err error) {
	src, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	temp := filepath.Join(dir, tempPrefix+filepath.Base(path))
	dst, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	copied, err := io.Copy(dst, src)
	if err == nil {
		err = errors.Join(dst.Chown(uid, gid), dst.Sync())
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return 0, errors.Join(err, os.Remove(temp))
	}
	if err := os.Rename(temp, filepath.Join(dir, filepath.Base(path))); err != nil {
		return 0, errors.Join(err, os.Remove(temp))
	}
	return copied, nil
}
