package volume

import (
	"crypto/sha1" //nolint:gosec // see Checksum
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/pgwal"
	"controld/internal/wal"
)

// Archived are the names of the WAL files in the archive of one cluster. Folders that hold
// only segments before since, which is the name of one, are left out.
func (r *Repository) Archived(systemID uint64, since string) ([]string, error) {
	root := filepath.Join(r.path(systemID), "archive", r.Settings.Stanza)
	databases, err := os.ReadDir(root) // such as 15-1: one for each version of PostgreSQL that there was
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	var names []string
	for _, db := range databases {
		if !db.IsDir() {
			continue
		}
		entries, err := os.ReadDir(filepath.Join(root, db.Name()))
		if err != nil {
			return nil, fmt.Errorf("archive: %w", err)
		}
		for _, e := range entries {
			if !e.IsDir() {
				names = append(names, e.Name())
				continue
			}
			// A folder is named after what the names in it begin with.
			if since != "" && e.Name() < since[:min(len(since), len(e.Name()))] {
				continue
			}
			segments, err := os.ReadDir(filepath.Join(root, db.Name(), e.Name()))
			if err != nil {
				return nil, fmt.Errorf("archive: %w", err)
			}
			for _, s := range segments {
				names = append(names, s.Name())
			}
		}
	}
	return names, nil
}

// Way is how timeline t came to be, as n has it.
func (r *Repository) Way(n cluster.Node, t wal.Timeline, segmentBytes int64) ([]pgwal.Branch, error) {
	way, err := pgwal.Of(n.DataDir(), segmentBytes).Lineage(t)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	return way, nil
}

// Whole says where a segment or history lies that is whole; empty: nowhere. waits: it is on
// the list of the leader's archiver. An error: a volume could not be looked at.
//
// What the leader has of a segment that is complete in its history is whole: it has
// replayed it. What another server has is so where that has noted that it is to be
// archived, or need not be: PostgreSQL does that when it begins the next one.
func (r *Repository) Whole(leader cluster.Node, file string, segmentBytes int64) (path string, waits bool, err error) {
	if waits, err = there(pgwal.ReadyFile(leader.DataDir(), file)); waits || err != nil {
		return "", waits, err
	}
	for _, n := range r.Nodes {
		for _, path := range []string{filepath.Join(n.DataDir(), pgwal.DirName, file), filepath.Join(n.Dir, node.AsideDir, file)} {
			is, err := isWAL(path, segmentBytes)
			if err != nil {
				return "", false, fmt.Errorf("node %s: %w", n.Name, err)
			}
			if is && n.Name != leader.Name && strings.HasPrefix(path, n.DataDir()) {
				is, err = pgwal.Ended(n.DataDir(), file)
			}
			if is || err != nil {
				return path, false, err
			}
		}
	}
	return "", false, nil
}

// Checksum is the SHA-1 of a file of n's log, in hexadecimal digits, as pgBackRest has it in
// the names of what it archives.
func (r *Repository) Checksum(n cluster.Node, file string) (string, error) {
	f, err := os.Open(filepath.Join(n.DataDir(), pgwal.DirName, file))
	if err != nil {
		return "", fmt.Errorf("node %s: %w", n.Name, err)
	}
	defer f.Close()
	sum := sha1.New() //nolint:gosec // pgBackRest's choice; it protects from nobody
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("node %s: %w", n.Name, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// isWAL reports whether the file is there and is what its name says.
func isWAL(path string, segmentBytes int64) (bool, error) {
	_, number, isSegment := wal.ParseSegmentName(filepath.Base(path), segmentBytes)
	if !isSegment {
		return there(path)
	}
	is, err := pgwal.IsSegment(path, number, segmentBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return is, err
}

// there reports whether path is there.
func there(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// ArchiveSize is how many bytes the archive of one cluster has, and how many of these have
// come since a moment.
func (r *Repository) ArchiveSize(systemID uint64, since time.Time) (all, recent int64, err error) {
	root := filepath.Join(r.path(systemID), "archive", r.Settings.Stanza)
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				all += info.Size()
				if info.ModTime().After(since) {
					recent += info.Size()
				}
			}
		}
		if errors.Is(err, fs.ErrNotExist) && path != root {
			return nil // removed meanwhile
		}
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("archive: %w", err)
	}
	return all, recent, nil
}
