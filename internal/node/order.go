// Package node is what the init of a database container and controld agree
// on: the order that a node waits for, the status it reports, the lock that
// proves that no server process of it is left, and the rules by which an init
// carries an order out. What to order is decided in package cluster.
package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"controld/internal/wal"
)

// A Role is what a node is ordered to be.
type Role string

// The roles of an order. None: no server runs, a running one is stopped fast.
const (
	RolePrimary Role = "primary"
	RoleStandby Role = "standby"
	RoleNone    Role = "none"
)

// An Action is what the init does before (salvage: while) the server runs.
type Action string

// The actions of an order. InitDB, BaseBackup and Rewind overwrite the data
// directory and leave a marker until they have ended; Salvage copies WAL of a
// dead node into the WAL directory of the running standby; Discard removes what
// a promotion that was undone left of its timeline, while no server runs. Each
// is carried out once for an epoch. A base backup that has room beside the data
// overwrites it only when the copy is whole.
const (
	ActionNone       Action = "none"
	ActionInitDB     Action = "initdb"
	ActionBaseBackup Action = "basebackup"
	ActionRewind     Action = "rewind"
	ActionSalvage    Action = "salvage"
	ActionDiscard    Action = "discard"
)

// Actions are those that an init of this version knows. It tells them in its status,
// for controld may be newer than it, and the other way round.
var Actions = []Action{ActionNone, ActionInitDB, ActionBaseBackup, ActionRewind, ActionSalvage, ActionDiscard}

// actionsUntold are those of the inits that did not tell which they know.
var actionsUntold = []Action{ActionNone, ActionInitDB, ActionBaseBackup, ActionRewind, ActionSalvage, ActionDiscard}

// An Order is what one node is to do. controld writes it on the node's order
// volume, which the node can only read; the order with the highest epoch wins
// and an older one is ignored. An order with role primary is good for one
// start of the server, one with role standby for any number.
type Order struct {
	Epoch    uint64    `json:"epoch"`
	Role     Role      `json:"role"`
	Action   Action    `json:"action"`
	Upstream *Upstream `json:"upstream,omitempty"` // basebackup, rewind: the server to copy from
	Slot     string    `json:"slot,omitempty"`     // basebackup: the slot on the upstream that keeps the WAL
	// LeaderDir (standby) is the PGDATA of the node that leads, as this node has
	// it mounted, only to be read: the own WAL is held against that before each
	// start, and a base backup is planned by it. Empty: nothing is compared, and
	// nothing rewound.
	LeaderDir string   `json:"leader_dir,omitempty"`
	Salvage   *Salvage `json:"salvage,omitempty"`
	// DiscardTimeline (discard): its history file and segments are removed, and
	// those of all later timelines. Refused when the control file is on it already.
	DiscardTimeline wal.Timeline `json:"discard_timeline,omitempty"`
}

// An Upstream is the server that a base backup or a rewind reads from.
type Upstream struct {
	Host string `json:"host"`
	Port int    `json:"port"`
}

// A Salvage says which WAL to fetch from a dead node's data directory.
type Salvage struct {
	DataDir      string       `json:"data_dir"`      // the dead node's PGDATA, mounted read-only
	FromLSN      wal.LSN      `json:"from_lsn"`      // the smaller of received and replayed on the candidate
	FromTimeline wal.Timeline `json:"from_timeline"` // the dead node's checkpoint timeline
	SegmentBytes int64        `json:"segment_bytes"` // wal_segment_size of the cluster
}

// Validate says what is wrong with an order, nil when nothing is.
func (o Order) Validate() error {
	if o.Epoch == 0 {
		return errors.New("order without an epoch")
	}
	switch o.Role {
	case RolePrimary, RoleStandby, RoleNone:
	default:
		return fmt.Errorf("order %d: unknown role %q", o.Epoch, o.Role)
	}
	switch o.Action {
	case ActionNone:
	case ActionInitDB:
		if o.Role != RolePrimary {
			return fmt.Errorf("order %d: initdb goes with role primary, not %s", o.Epoch, o.Role)
		}
	case ActionBaseBackup, ActionRewind:
		if o.Role != RoleStandby || o.Upstream == nil || o.Upstream.Host == "" {
			return fmt.Errorf("order %d: %s needs role standby and an upstream", o.Epoch, o.Action)
		}
	case ActionSalvage:
		if o.Role != RoleStandby || o.Salvage == nil || o.Salvage.DataDir == "" || o.Salvage.SegmentBytes <= 0 {
			return fmt.Errorf("order %d: salvage needs role standby and the dead node's data directory", o.Epoch)
		}
	case ActionDiscard:
		if o.Role != RoleStandby || o.DiscardTimeline < 2 {
			return fmt.Errorf("order %d: discard needs role standby and a timeline above 1", o.Epoch)
		}
	default:
		return fmt.Errorf("order %d: unknown action %q", o.Epoch, o.Action)
	}
	return nil
}

// OrderFile is the name of the order in a node's order volume.
const OrderFile = "order.json"

// WriteOrder puts o into the order volume dir so that it survives a power cut
// and is seen whole or not at all.
func WriteOrder(dir string, o Order) error {
	if err := o.Validate(); err != nil {
		return err
	}
	data, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return fmt.Errorf("encode order: %w", err)
	}
	return WriteFile(filepath.Join(dir, OrderFile), append(data, '\n'), 0o644)
}

// ErrNoOrder means that nothing was ever ordered, or that what stands there is
// no whole order. Nothing starts then.
var ErrNoOrder = errors.New("no order")

// ReadOrder reads the order in the order volume dir. A missing, empty, cut-off
// or senseless one is ErrNoOrder.
func ReadOrder(dir string) (Order, error) {
	data, err := os.ReadFile(filepath.Join(dir, OrderFile))
	if err != nil {
		return Order{}, fmt.Errorf("%w: %w", ErrNoOrder, err)
	}
	var o Order
	if err := json.Unmarshal(data, &o); err != nil {
		return Order{}, fmt.Errorf("%w: %w", ErrNoOrder, err)
	}
	if err := o.Validate(); err != nil {
		return Order{}, fmt.Errorf("%w: %w", ErrNoOrder, err)
	}
	return o, nil
}

// WriteFile writes data to path durably: a temporary name in the same folder,
// fsync, rename, fsync of the folder.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // a no-op after the rename
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode))
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncDir(dir)
}

// Space is what is left on the file system of a folder, and its size. What it
// keeps for root is not counted as left: PostgreSQL cannot use it.
func Space(dir string) (freeBytes, totalBytes int64, err error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return 0, 0, fmt.Errorf("space left at %s: %w", dir, err)
	}
	return int64(stat.Bavail) * stat.Bsize, int64(stat.Blocks) * stat.Bsize, nil
}

// SyncDir makes the names in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	return nil
}
