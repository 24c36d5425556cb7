// Package pgwal reads a PostgreSQL 15 server's write-ahead log, the files in
// its pg_wal, without the server: what a segment is, where a timeline branched
// off, how far the chain of valid records goes, and whether two nodes have the
// same. What follows from that is decided elsewhere.
package pgwal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"controld/internal/wal"
)

// DirName is the folder of the log in a data directory.
const DirName = "pg_wal"

// StatusDir is the folder of the log in which PostgreSQL notes what is to be archived (.ready)
// and what is archived, or need not be (.done): a file of the log that is whole has one of them.
func StatusDir(dataDir string) string { return filepath.Join(dataDir, DirName, "archive_status") }

// ReadyFile is there while the file waits to be archived by the server of dataDir.
func ReadyFile(dataDir, file string) string {
	return filepath.Join(StatusDir(dataDir), file+".ready")
}

// DoneFile is there when the file is archived, or need not be.
func DoneFile(dataDir, file string) string {
	return filepath.Join(StatusDir(dataDir), file+".done")
}

// Ended reports whether the server of dataDir has noted that the file is whole.
func Ended(dataDir, file string) (bool, error) {
	for _, path := range []string{ReadyFile(dataDir, file), DoneFile(dataDir, file)} {
		_, err := os.Lstat(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err == nil, err
		}
	}
	return false, nil
}

// A Dir is a pg_wal with segments of one size.
type Dir struct {
	Path         string
	SegmentBytes int64 // wal_segment_size
}

// Of is the log of the data directory dataDir.
func Of(dataDir string, segmentBytes int64) Dir {
	return Dir{Path: filepath.Join(dataDir, DirName), SegmentBytes: segmentBytes}
}

// PageAddress reads the position that the first page of a segment says it is at
// (xlp_pageaddr in xlog_internal.h); 0 for a file without one.
func PageAddress(f io.ReaderAt) (wal.LSN, error) {
	var b [8]byte
	if _, err := f.ReadAt(b[:], 8); errors.Is(err, io.EOF) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	return wal.LSN(binary.LittleEndian.Uint64(b[:])), nil
}

// IsSegment reports whether the file at path is what the name of segment number
// says: a recycled one still holds the pages of an older segment.
func IsSegment(path string, number wal.SegmentNumber, segmentBytes int64) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	address, err := PageAddress(f)
	return err == nil && address == number.Start(segmentBytes), err
}

// Segments are the segments of a lineage that the directory holds, each with the newest
// timeline of which there is a file. Recycled files do not count. Neither do files of
// other timelines, nor what a timeline holds from the point on at which it was left.
func (d Dir) Segments(way []Branch) (map[wal.SegmentNumber]wal.Timeline, error) {
	entries, err := os.ReadDir(d.Path)
	if err != nil {
		return nil, err
	}
	ends := map[wal.Timeline]wal.LSN{}
	for _, b := range way {
		ends[b.Timeline] = b.End
	}
	found := map[wal.SegmentNumber]wal.Timeline{}
	for _, e := range entries {
		t, n, ok := wal.ParseSegmentName(e.Name(), d.SegmentBytes)
		if !ok || n.Start(d.SegmentBytes) >= ends[t] || t <= found[n] {
			continue
		}
		is, err := IsSegment(filepath.Join(d.Path, e.Name()), n, d.SegmentBytes)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed or recycled meanwhile
		}
		if err != nil {
			return nil, err
		}
		if is {
			found[n] = t
		}
	}
	return found, nil
}

// Orphans are the names of the segments of timelines after newest that have no
// history file: pg_rewind leaves those of a timeline that it takes back. Nobody
// reads them, until somebody begins a timeline of the same number.
func (d Dir) Orphans(newest wal.Timeline) (names []string, err error) {
	entries, err := os.ReadDir(d.Path)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name, _, _ := strings.Cut(e.Name(), ".") // also of a partial one
		t, _, ok := wal.ParseSegmentName(name, d.SegmentBytes)
		if !ok || t <= newest {
			continue
		}
		if _, err := os.Lstat(filepath.Join(d.Path, t.HistoryName())); errors.Is(err, fs.ErrNotExist) {
			names = append(names, e.Name())
		} else if err != nil {
			return nil, err
		}
	}
	return names, nil
}

// Newest is the newest timeline of which the directory has both WAL and a history; known,
// where that is later. The control file would not do: a standby's names a timeline only
// from the first restartpoint on.
func (d Dir) Newest(known wal.Timeline) (wal.Timeline, error) {
	entries, err := os.ReadDir(d.Path)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		t, _, ok := wal.ParseSegmentName(e.Name(), d.SegmentBytes)
		if !ok || t <= known {
			continue
		}
		if _, err := os.Lstat(filepath.Join(d.Path, t.HistoryName())); err == nil {
			known = t
		}
	}
	return known, nil
}

// Path of segment n of timeline t.
func (d Dir) path(t wal.Timeline, n wal.SegmentNumber) string {
	return filepath.Join(d.Path, wal.SegmentName(t, n, d.SegmentBytes))
}

// A Branch is a timeline up to the position at which the next one left it.
type Branch struct {
	Timeline wal.Timeline
	End      wal.LSN
}

// endless is the end of the timeline that nobody has left.
const endless = ^wal.LSN(0)

// Lineage is the way that leads to timeline t, as the history file in the directory tells
// it: the oldest timeline first, and last t itself, without an end. The first timeline
// has no such file.
func (d Dir) Lineage(t wal.Timeline) ([]Branch, error) {
	var way []Branch
	if t > 1 {
		text, err := os.ReadFile(filepath.Join(d.Path, t.HistoryName()))
		if err != nil {
			return nil, err
		}
		if way, err = parseHistory(text); err != nil {
			return nil, fmt.Errorf("%s: %w", t.HistoryName(), err)
		}
	}
	return append(way, Branch{t, endless}), nil
}

// parseHistory reads a history file: lines of timeline, position and reason,
// and comments (timeline.c, readTimeLineHistory).
func parseHistory(text []byte) (way []Branch, err error) {
	for line := range strings.Lines(string(bytes.TrimSpace(text))) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) < 2 {
			return nil, fmt.Errorf("no timeline and position in %q", strings.TrimSpace(line))
		}
		t, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("timeline: %w", err)
		}
		end, err := wal.ParseLSN(fields[1])
		if err != nil {
			return nil, err
		}
		if len(way) > 0 && wal.Timeline(t) <= way[len(way)-1].Timeline {
			return nil, fmt.Errorf("timeline %d does not come after %d", t, way[len(way)-1].Timeline)
		}
		way = append(way, Branch{wal.Timeline(t), end})
	}
	return way, nil
}

// fork is the position up to which two ways are one; endless where they are the same.
func fork(a, b []Branch) wal.LSN {
	at := wal.LSN(0)
	for i := range min(len(a), len(b)) {
		if a[i].Timeline != b[i].Timeline {
			return at
		}
		if at = min(a[i].End, b[i].End); a[i].End != b[i].End {
			return at
		}
	}
	return at
}

// CommonPrefix counts the bytes in which two files begin alike, from the byte at
// from up to the one before to.
func CommonPrefix(a, b io.ReaderAt, from, to int64) (int64, error) {
	const chunk = 256 << 10
	bufA, bufB := make([]byte, chunk), make([]byte, chunk)
	for at := from; at < to; at += chunk {
		want := min(chunk, to-at)
		n, errA := a.ReadAt(bufA[:want], at)
		m, errB := b.ReadAt(bufB[:want], at)
		for _, err := range []error{errA, errB} {
			if err != nil && !errors.Is(err, io.EOF) {
				return 0, err
			}
		}
		short := min(n, m)
		if !bytes.Equal(bufA[:short], bufB[:short]) {
			for i := range short {
				if bufA[i] != bufB[i] {
					return at + int64(i), nil
				}
			}
		}
		if int64(short) < want {
			return at + int64(short), nil
		}
	}
	return to, nil
}
