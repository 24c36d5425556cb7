// Package volume reads and writes the nodes' volumes as controld sees them. To the order
// volumes it writes the nodes' orders and configuration; the data volumes it only reads.
// The formats belong to packages node, pgcontrol and render; what to write is decided in
// package cluster.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/pgcontrol"
	"controld/internal/pgwal"
	"controld/internal/render"
	"controld/internal/wal"
)

// Paths as a node's container has them.
const (
	configDir = "/order"
	passFile  = "/run/secrets-own/pgpass"
)

// Volumes are those of all nodes.
type Volumes struct {
	Sizes render.Sizes // for every node's postgresql.conf
}

var _ cluster.Volumes = (*Volumes)(nil)

// Order implements cluster.Volumes. An order that is cut off or senseless starts nothing,
// and counts as none. A volume that cannot be read is an error.
func (v *Volumes) Order(n cluster.Node) (node.Order, error) {
	o, err := node.ReadOrder(n.OrderDir) // the zero Order with each error
	var unreadable *fs.PathError
	if errors.As(err, &unreadable) && !errors.Is(err, fs.ErrNotExist) {
		return node.Order{}, fmt.Errorf("order of %s: %w", n.Name, err)
	}
	return o, nil
}

// WriteOrder implements cluster.Volumes.
func (v *Volumes) WriteOrder(n cluster.Node, o node.Order) error {
	if err := node.WriteOrder(n.OrderDir, o); err != nil {
		return fmt.Errorf("order of %s: %w", n.Name, err)
	}
	return nil
}

// EnsureConfig writes the files that do not change with the node's role, and
// a role.conf that follows nobody where there is none yet, because the server
// does not start without. It reports whether anything was written; a running
// server takes most of it at a reload, the sizes at its next start.
func (v *Volumes) EnsureConfig(n cluster.Node) (changed bool, err error) {
	files := []struct {
		name    string
		content []byte
	}{
		{render.PostgresFile, render.PostgreSQL(v.postgres(n))},
		{render.HBAFile, render.HBA()},
		{render.IdentFile, render.Ident()},
	}
	for _, f := range files {
		written, err := writeChanged(n, f.name, f.content)
		if err != nil {
			return changed, err
		}
		changed = changed || written
	}
	if _, err := os.Stat(filepath.Join(n.OrderDir, render.RoleFile)); errors.Is(err, fs.ErrNotExist) {
		changed = true
		if err := v.WriteSettings(n, cluster.RoleSettings{ArchiveCommand: "/bin/true"}); err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// postgres are the paths as the node's own container has them.
func (v *Volumes) postgres(n cluster.Node) render.Postgres {
	return render.Postgres{
		DataDir: n.DataDir(), SocketDir: filepath.Join(n.Dir, node.SocketDir),
		ConfigDir: configDir, Port: n.Port, Sizes: v.Sizes,
	}
}

// WriteSettings implements cluster.Volumes.
func (v *Volumes) WriteSettings(n cluster.Node, s cluster.RoleSettings) error {
	_, err := writeChanged(n, render.RoleFile, render.RoleConf(role(n, s)))
	return err
}

func role(n cluster.Node, s cluster.RoleSettings) render.Role {
	r := render.Role{
		PrimarySlotName: s.Slot, RestoreCommand: s.RestoreCommand, ArchiveCommand: s.ArchiveCommand,
		SynchronousStandbyNames: cluster.SynchronousNames(s.SynchronousStandbys), Switching: s.Switching,
	}
	if up := s.Upstream; up != nil {
		r.Upstream = &render.Upstream{
			Host:        up.Container,
			Address:     s.UpstreamAddress,
			Port:        up.Port,
			PassFile:    passFile,
			Application: n.Name,
		}
	}
	return r
}

// writeChanged writes a file of the order volume unless it stands there already.
func writeChanged(n cluster.Node, name string, content []byte) (written bool, err error) {
	written, err = node.WriteChanged(filepath.Join(n.OrderDir, name), content, 0o644)
	if err != nil {
		return false, fmt.Errorf("settings of %s: %w", n.Name, err)
	}
	return written, nil
}

// Status implements cluster.Volumes.
func (v *Volumes) Status(n cluster.Node) (node.Status, error) {
	s, err := node.ReadStatus(n.Dir)
	if err != nil {
		return node.Status{}, fmt.Errorf("node %s: %w", n.Name, err)
	}
	return s, nil
}

// Control implements cluster.Volumes.
func (v *Volumes) Control(n cluster.Node) (pgcontrol.Data, error) {
	d, err := pgcontrol.Read(n.DataDir())
	if err != nil {
		return pgcontrol.Data{}, fmt.Errorf("node %s: %w", n.Name, err)
	}
	return d, nil
}

// Locked implements cluster.Volumes.
func (v *Volumes) Locked(n cluster.Node) (bool, error) {
	locked, err := node.Locked(n.Dir)
	if err != nil {
		return false, fmt.Errorf("node %s: %w", n.Name, err)
	}
	return locked, nil
}

// Empty implements cluster.Volumes. A data directory with nothing in it counts as none:
// the init makes it before there is anything to put into it.
func (v *Volumes) Empty(n cluster.Node) (bool, error) {
	dir, err := os.Open(n.DataDir())
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("node %s: %w", n.Name, err)
	}
	defer dir.Close()
	_, err = dir.ReadDir(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("node %s: %w", n.Name, err)
	}
	return false, nil
}

// Space implements cluster.Volumes.
func (v *Volumes) Space(n cluster.Node) (freeBytes, totalBytes int64, err error) {
	freeBytes, totalBytes, err = node.Space(n.Dir)
	if err != nil {
		return 0, 0, fmt.Errorf("node %s: %w", n.Name, err)
	}
	return freeBytes, totalBytes, nil
}

// StandbySignal implements cluster.Volumes. A recovery.signal does not count:
// such a server leads once it has recovered.
func (v *Volumes) StandbySignal(n cluster.Node) (bool, error) {
	return exists(n, "standby.signal")
}

// HasWAL implements cluster.Volumes.
func (v *Volumes) HasWAL(n cluster.Node, lsn wal.LSN, segmentBytes int64) (bool, error) {
	entries, err := os.ReadDir(filepath.Join(n.DataDir(), pgwal.DirName))
	if err != nil {
		return false, fmt.Errorf("node %s: %w", n.Name, err)
	}
	// At the very end of a segment the next one may not be there yet.
	last, next := (lsn - 1).Segment(segmentBytes), lsn.Segment(segmentBytes)
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		_, number, ok := wal.ParseSegmentName(e.Name(), segmentBytes)
		return ok && (number == last || number == next)
	}), nil
}

// HasHistory implements cluster.Volumes.
func (v *Volumes) HasHistory(n cluster.Node, t wal.Timeline) (bool, error) {
	return exists(n, filepath.Join(pgwal.DirName, t.HistoryName()))
}

// Compare implements cluster.Volumes.
func (v *Volumes) Compare(ctx context.Context, n, leader cluster.Node, limit int64) (pgwal.Comparison, error) {
	c, err := pgwal.Compare(ctx, n.DataDir(), leader.DataDir(), limit)
	if err != nil {
		return pgwal.Comparison{}, fmt.Errorf("compare the WAL of %s and %s: %w", n.Name, leader.Name, err)
	}
	return c, nil
}

// exists reports whether the node's data directory holds the file.
func exists(n cluster.Node, name string) (bool, error) {
	is, err := there(filepath.Join(n.DataDir(), name))
	if err != nil {
		return false, fmt.Errorf("node %s: %w", n.Name, err)
	}
	return is, nil
}
