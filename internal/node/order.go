// Package node is what the init of a database container and controld agree
// on: the order that a node waits for, the status it reports, the lock that
// proves that no server process of it is left, and the rules by which an init
// carries an order out. What to order is decided in package cluster.
package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"controld/internal/wal"
)

// UID and GID are those of the user postgres in every image: it owns the data.
const (
	UID = 5432
	GID = 5432
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

// The actions of an order. Each is carried out once for an epoch.
//
// InitDB, BaseBackup and Rewind overwrite the data directory, and leave a marker
// until they have ended. A base backup that has room beside the data overwrites it
// only when the copy is whole. Salvage copies WAL of a dead node into the WAL
// directory of the running standby. Discard removes, while no server runs, what a
// promotion that was undone has left of its timeline.
const (
	ActionNone       Action = "none"
	ActionInitDB     Action = "initdb"
	ActionBaseBackup Action = "basebackup"
	ActionRewind     Action = "rewind"
	ActionSalvage    Action = "salvage"
	ActionDiscard    Action = "discard"
	ActionProvision  Action = "provision"
)

// Actions are those that an init of this version knows. It tells them in its
// status, because controld may be newer than the init, or older.
var Actions = []Action{
	ActionNone, ActionInitDB, ActionBaseBackup, ActionRewind, ActionSalvage, ActionDiscard, ActionProvision,
}

// actionsUntold are those that the inits of earlier versions know, which tell none.
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
	// LeaderDir (standby) is the leader's PGDATA, where this node has it mounted
	// read-only. Before each start the init compares the node's own WAL with the
	// WAL there. It also plans a base backup by it. Empty: nothing is compared,
	// and nothing rewound.
	LeaderDir string   `json:"leader_dir,omitempty"`
	Salvage   *Salvage `json:"salvage,omitempty"`
	// DiscardTimeline (discard): its history file and segments are removed, and
	// those of all later timelines. Refused when the control file is on it already.
	DiscardTimeline wal.Timeline `json:"discard_timeline,omitempty"`
	// Provision (provision) is what is run, in this order.
	Provision []Batch `json:"provision,omitempty"`
}

// A Batch is SQL that the superuser runs in one database, in this order.
type Batch struct {
	Database string   `json:"database"`
	SQL      []string `json:"sql"`
}

// SuperuserSettings are what a superuser's session begins with: what the owner of a
// database has set for it must not change what SQL of ours means.
func SuperuserSettings() []string {
	return []string{
		"SET search_path = pg_catalog, pg_temp", "SET default_transaction_read_only = off", "SET client_min_messages = warning",
	}
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
	case ActionProvision:
		if o.Role != RolePrimary || len(o.Provision) == 0 {
			return fmt.Errorf("order %d: provision needs role primary and what is to be run", o.Epoch)
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

// WriteChanged is WriteFile where something else stands at path: inside a failover's pause
// each fsync counts.
func WriteChanged(path string, data []byte, mode os.FileMode) (written bool, err error) {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return false, nil
	}
	if err := WriteFile(path, data, mode); err != nil {
		return false, err
	}
	return true, nil
}

// Mounted reports whether a file system of its own is mounted at dir, as a container's
// volumes are.
func Mounted(dir string) bool {
	var here, parent unix.Stat_t
	err := errors.Join(unix.Stat(dir, &here), unix.Stat(filepath.Dir(dir), &parent))
	return err == nil && here.Dev != parent.Dev
}

// Space is what is left on the file system of a folder, and its size. What is
// reserved for root does not count as left: PostgreSQL cannot use it.
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
