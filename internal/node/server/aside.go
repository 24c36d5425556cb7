package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"controld/internal/node"
	"controld/internal/pgcontrol"
	"controld/internal/pgwal"
	"controld/internal/wal"
)

// asideTempPrefix is what a file begins with that is not whole yet.
const asideTempPrefix = ".new."

// setAside copies the segments that the archive lacks from pg_wal into a folder beside the
// data, before the data is overwritten or the server becomes a standby, which archives
// nothing and removes them. controld has them pushed from there.
//
// Only whole segments are taken. PostgreSQL notes which those are: .ready are those that
// its archiver had still to push. Where the data is overwritten, .done counts, too: a
// server that was a standby has noted that of all that it has received.
func (n *Init) setAside(o node.Order) error {
	if o.Role != node.RoleStandby || !n.cfg.Archives() {
		return nil
	}
	control, err := pgcontrol.Read(n.cfg.dataDir())
	if errors.Is(err, pgcontrol.ErrNoCluster) {
		return nil
	}
	if err != nil {
		n.log.Warn("WAL that the archive lacks is not looked for", "err", err)
		return nil // what cannot be read has nothing that could be saved
	}
	n.asideBusy.Lock()
	defer n.asideBusy.Unlock()
	overwritten := o.Action == node.ActionBaseBackup || o.Action == node.ActionRewind
	entries, err := os.ReadDir(pgwal.StatusDir(n.cfg.dataDir()))
	if err != nil {
		return fmt.Errorf("save WAL that the archive lacks: %w", err)
	}
	began, saved := time.Now(), 0
	for _, e := range entries {
		file, whole := strings.CutSuffix(e.Name(), ".ready")
		if !whole && overwritten {
			file, whole = strings.CutSuffix(e.Name(), ".done")
		}
		if !whole {
			continue
		}
		new, err := n.saveAside(control, file)
		if err != nil {
			return fmt.Errorf("save %s, which the archive lacks, before it is overwritten: %w", file, err)
		}
		if new {
			saved++
		}
	}
	if saved == 0 {
		return nil
	}
	n.log.Info("WAL that the archive lacks is saved", "files", saved, "dir", n.aside(),
		"duration_ms", time.Since(began).Milliseconds())
	return node.SyncDir(n.aside())
}

func (n *Init) aside() string { return filepath.Join(n.cfg.NodeDir, node.AsideDir) }

// saveAside copies a segment, unless the archive has it or it was saved before, and reports
// whether it did. What is no segment is none to be saved.
func (n *Init) saveAside(control pgcontrol.Data, file string) (bool, error) {
	_, number, isSegment := wal.ParseSegmentName(file, control.SegmentBytes)
	if !isSegment || n.cfg.Archived(control.SystemID, file) {
		return false, nil
	}
	if _, err := os.Lstat(filepath.Join(n.aside(), file)); err == nil {
		return false, nil
	}
	path := filepath.Join(n.cfg.dataDir(), pgwal.DirName, file)
	is, err := pgwal.IsSegment(path, number, control.SegmentBytes)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !is { // removed, or recycled
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := os.Mkdir(n.aside(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	if err := os.Chown(n.aside(), n.cfg.UID, n.cfg.GID); err != nil {
		return false, err
	}
	_, err = copyFile(path, n.aside(), asideTempPrefix, n.cfg.UID, n.cfg.GID)
	return err == nil, err
}

// tidyAside removes what was saved and is not needed any more: the archive has it, or it is
// not on the way that has led to where the server is.
func (n *Init) tidyAside() error {
	n.asideBusy.Lock()
	defer n.asideBusy.Unlock()
	entries, err := os.ReadDir(n.aside())
	if errors.Is(err, fs.ErrNotExist) || len(entries) == 0 {
		return nil
	}
	control, controlErr := pgcontrol.Read(n.cfg.dataDir())
	if err := errors.Join(err, controlErr); err != nil {
		return err
	}
	dir := pgwal.Of(n.cfg.dataDir(), control.SegmentBytes)
	newest, err := dir.Newest(control.Timeline())
	if err != nil {
		return err
	}
	way, err := dir.Lineage(newest)
	if err != nil {
		return err
	}
	for _, e := range entries {
		needed := !strings.HasPrefix(e.Name(), asideTempPrefix) && !n.cfg.Archived(control.SystemID, e.Name()) &&
			onWay(e.Name(), way, control.SegmentBytes)
		if needed {
			continue
		}
		n.log.Info("saved WAL is not needed any more", "file", e.Name())
		if err := os.Remove(filepath.Join(n.aside(), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// onWay reports whether a recovery along way reads the segment: the next timeline has the
// one in which a timeline was left.
func onWay(file string, way []pgwal.Branch, segmentBytes int64) bool {
	t, number, ok := wal.ParseSegmentName(file, segmentBytes)
	if !ok {
		return false
	}
	for _, b := range way {
		if b.Timeline == t {
			return number < b.End.Segment(segmentBytes)
		}
	}
	return false
}
