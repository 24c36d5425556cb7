package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"controld/internal/node"
	"controld/internal/node/rules"
	"controld/internal/pgwal"
)

// Room that a copy leaves on the disk. The primary may be on the same disk, and a base
// backup must not be what fills it.
const (
	roomBytes    = 1 << 30
	roomFraction = 10 // or this part of the volume, where that is less
)

func (n *Init) newDataDir() string { return filepath.Join(n.cfg.NodeDir, node.NewDataDir) }
func (n *Init) oldDataDir() string { return filepath.Join(n.cfg.NodeDir, node.OldDataDir) }

// baseBackup copies the upstream. Where there is room, the copy is made beside the data
// and takes its place when it is whole: a copy that fails loses nothing. Without room
// the data goes first.
func (n *Init) baseBackup(ctx context.Context, o node.Order, lock *os.File) error {
	beside, err := n.planCopy(o)
	if err != nil {
		return err
	}
	if !beside {
		n.log.Warn("no room for a copy beside the data, which is removed first", "epoch", o.Epoch)
		if err := n.removeCopies(); err != nil { // a half copy beside the marker would be taken for a whole one
			return err
		}
		if err := n.beginOverwrite(o.Action); err != nil {
			return err
		}
		if err := n.wipe(); err != nil {
			return err
		}
		if err := n.copyUpstream(ctx, o, lock, n.cfg.dataDir()); err != nil {
			return err
		}
		return n.setRole(n.cfg.dataDir(), node.RoleStandby)
	}
	if err := n.makeNewDataDir(); err != nil {
		return err
	}
	if err := n.copyUpstream(ctx, o, lock, n.newDataDir()); err != nil {
		return errors.Join(err, os.RemoveAll(n.newDataDir()))
	}
	if err := n.setRole(n.newDataDir(), node.RoleStandby); err != nil {
		return err
	}
	if err := n.beginOverwrite(o.Action); err != nil {
		return err
	}
	return n.swapDataDir()
}

func (n *Init) copyUpstream(ctx context.Context, o node.Order, lock *os.File, to string) error {
	args := []string{"-D", to, "-X", "stream", "-c", "fast", "--no-password", "--progress", "--verbose",
		"-d", n.conninfo(*o.Upstream, "replicator", "")}
	if o.Slot != "" {
		args = append(args, "-S", o.Slot)
	}
	return n.tool(ctx, lock, "pg_basebackup", args...)
}

// makeNewDataDir makes the folder that pg_basebackup, which is not root, fills.
func (n *Init) makeNewDataDir() error {
	if err := os.RemoveAll(n.newDataDir()); err != nil {
		return err
	}
	if err := os.Mkdir(n.newDataDir(), 0o700); err != nil {
		return err
	}
	return os.Chown(n.newDataDir(), n.cfg.UID, n.cfg.GID)
}

// swapDataDir puts the copy in the data's place. The marker stands meanwhile.
func (n *Init) swapDataDir() error {
	if err := os.RemoveAll(n.oldDataDir()); err != nil {
		return err
	}
	if err := os.Rename(n.cfg.dataDir(), n.oldDataDir()); err != nil {
		return err
	}
	if err := os.Rename(n.newDataDir(), n.cfg.dataDir()); err != nil {
		return errors.Join(err, os.Rename(n.oldDataDir(), n.cfg.dataDir()))
	}
	return node.SyncDir(n.cfg.NodeDir)
}

// settleSwap ends a swap that was cut off. A copy that stands beside the marker of a
// base backup is whole, because the marker is set only once it is.
func (n *Init) settleSwap() error {
	marker, err := n.marker()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(n.newDataDir()); err != nil || marker != node.ActionBaseBackup {
		return n.removeCopies()
	}
	switch _, err := os.Lstat(n.cfg.dataDir()); {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.Rename(n.newDataDir(), n.cfg.dataDir()); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := n.swapDataDir(); err != nil {
			return err
		}
	}
	if err := errors.Join(node.SyncDir(n.cfg.NodeDir), n.removeMarker()); err != nil {
		return err
	}
	n.log.Info("copy put in its place, which was cut off before")
	return n.removeCopies()
}

// removeCopies removes what a base backup has left: half of a copy, or the data
// that it has replaced.
func (n *Init) removeCopies() error {
	return errors.Join(os.RemoveAll(n.newDataDir()), os.RemoveAll(n.oldDataDir()))
}

// planCopy says whether a base backup has room beside the data, and refuses one
// that cannot succeed, before anything is removed.
func (n *Init) planCopy(o node.Order) (beside bool, err error) {
	if found, err := tablespaces(o.LeaderDir); err != nil {
		return false, err
	} else if len(found) > 0 {
		return false, rules.Refuse("the leader has tablespaces outside its data directory (%s), "+
			"which no other node has a place for: nothing was overwritten. "+
			"Move what is in them (ALTER DATABASE or ALTER TABLE ... SET TABLESPACE pg_default) and drop them", strings.Join(found, ", "))
	}
	free, total, err := n.cfg.Space(n.cfg.NodeDir)
	if err != nil {
		return false, err
	}
	own, err := sizeOf(n.cfg.dataDir())
	if err != nil {
		return false, err
	}
	wanted := own // where nobody can look at the leader's
	if size, err := sizeOf(o.LeaderDir); err == nil && o.LeaderDir != "" {
		wanted = size
	}
	if free-wanted >= min(roomBytes, total/roomFraction) {
		return true, nil
	}
	if free+own < wanted {
		return false, rules.Refuse("no room: the leader has %d bytes, %d are free on this node's volume "+
			"and its own data, which is left as it is, has %d", wanted, free, own)
	}
	return false, nil
}

// tablespaces names those that lie outside of the data directory.
func tablespaces(dataDir string) (found []string, err error) {
	if dataDir == "" {
		return nil, nil
	}
	dir := filepath.Join(dataDir, "pg_tblspc")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for tablespaces of the leader: %w", err)
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		if at, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			found = append(found, at)
		}
	}
	return found, nil
}

// sizeOf adds up a data directory without its WAL, most of which is not copied.
// What is removed meanwhile does not count.
func sizeOf(dataDir string) (bytes int64, err error) {
	err = filepath.WalkDir(dataDir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != dataDir:
			return nil
		case err != nil:
			return err
		case e.IsDir() && path == filepath.Join(dataDir, pgwal.DirName):
			return fs.SkipDir
		case !e.Type().IsRegular():
			return nil
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		bytes += info.Size()
		return nil
	})
	return bytes, err
}
