package server

import (
	"context"
	"fmt"
	"path/filepath"

	"controld/internal/node"
	"controld/internal/node/rules"
	"controld/internal/pgcontrol"
	"controld/internal/pgwal"
)

// mayFollow compares the node's WAL with the leader's before a standby starts, and lets
// no server start that has diverged. Streaming begins at the first byte of a segment,
// and would write over what tells the two apart. The lock is held, so the node's own
// WAL does not change meanwhile.
func (n *Init) mayFollow(ctx context.Context, o node.Order) error {
	if o.Role != node.RoleStandby {
		return nil
	}
	if err := n.removeOrphans(); err != nil {
		return fmt.Errorf("remove WAL of timelines that were taken back: %w", err)
	}
	if o.LeaderDir == "" {
		return n.notDiverged()
	}
	c, err := n.cfg.Compare(ctx, n.cfg.dataDir(), o.LeaderDir)
	if err != nil {
		return err
	}
	n.log.Info("compared with the leader", "epoch", o.Epoch, "relation", c.Relation, "end", c.End, "bytes", c.Bytes, "why", c.Why)
	if c.Relation == pgwal.Unknown {
		if err := n.notDiverged(); err != nil {
			return err
		}
	}
	if err := n.status.update(func(s *node.Status) { s.Compared = &c }); err != nil {
		return fmt.Errorf("note what the WAL was compared with: %w", err)
	}
	return n.notDiverged()
}

// removeOrphans removes the segments of timelines that have no history file any more.
// pg_rewind keeps some segments of the timeline that it takes back. The next promotion
// begins a timeline of the same number, and recovery would read the old segments.
func (n *Init) removeOrphans() error {
	control, err := pgcontrol.Read(n.cfg.dataDir())
	if err != nil {
		return err
	}
	dir := pgwal.Of(n.cfg.dataDir(), control.SegmentBytes)
	names, err := dir.Orphans(control.Timeline())
	if err != nil || len(names) == 0 {
		return err
	}
	for _, name := range names {
		n.log.Info("WAL of a timeline that was taken back removed", "file", name)
		data := n.cfg.dataDir()
		for _, path := range []string{filepath.Join(dir.Path, name), pgwal.ReadyFile(data, name), pgwal.DoneFile(data, name)} {
			if err := remove(path); err != nil {
				return err
			}
		}
	}
	return node.SyncDir(dir.Path)
}

// notDiverged refuses to start a standby that was found to have diverged.
func (n *Init) notDiverged() error {
	if why := n.status.get().Diverged(); why != "" {
		return rules.Refuse("diverged from the leader: %s. It does not start until it is copied anew: order a basebackup", why)
	}
	return nil
}

// mayRewind refuses pg_rewind to a node that did not go on where the leader's timeline
// branched off.
//
// pg_rewind lets a server that was not shut down end its recovery, which writes WAL on
// the timeline that the server is on. Where that is the leader's timeline, the two then
// have other WAL at one position. pg_rewind does not notice, and the next failover
// would lose commits by it.
func (n *Init) mayRewind(ctx context.Context, o node.Order) error {
	if o.LeaderDir == "" {
		return rules.Refuse("the order does not say where the leader's WAL is, " +
			"so that nobody can tell whether there is anything to take back: nothing was changed")
	}
	c, err := n.cfg.Compare(ctx, n.cfg.dataDir(), o.LeaderDir)
	if err != nil {
		return err
	}
	switch c.Relation {
	case pgwal.Past:
		return nil
	case pgwal.Same:
		return rules.Refuse("there is nothing to take back: the leader has all WAL of this node, up to %s. "+
			"Nothing was changed: order it to follow, or a basebackup", c.End)
	}
	return rules.Refuse("%s. Nothing was changed: order a basebackup", c.Why)
}
