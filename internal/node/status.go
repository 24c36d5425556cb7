package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"controld/internal/pgwal"
)

// A State is what the init of a node is doing.
type State string

// The states of an init.
const (
	StateWaiting  State = "waiting"  // no server, no order that asks for one
	StateWorking  State = "working"  // an action (initdb, basebackup, rewind) runs
	StateRunning  State = "running"  // the postmaster was started and has not ended
	StateStopping State = "stopping" // a fast stop was sent
	StateEnded    State = "ended"    // the server ended without an order; controld decides
	StateFailed   State = "failed"   // the order could not be carried out: Error says why
	StateRefused  State = "refused"  // the order may not be carried out: Error says why; a PID means that the server goes on
)

// A Status is what a node's init reports on the node's own data volume.
type Status struct {
	// Epoch is that of the last order that the init took up.
	Epoch uint64 `json:"epoch"`
	// UsedEpoch is that of the last order with role primary that was used for
	// a start (or found the server leading already). It is never used again.
	UsedEpoch uint64 `json:"used_epoch"`
	// ActionEpoch is that of the last order whose initdb, basebackup, rewind or
	// discard was carried out. It is not done again when the container starts
	// under the same order.
	ActionEpoch uint64 `json:"action_epoch,omitempty"`
	State       State  `json:"state"`
	Role        Role   `json:"role"`            // what the running server was started as, or is since
	PID         int    `json:"pid,omitempty"`   // the postmaster's, in the node's own pid namespace
	Error       string `json:"error,omitempty"` // of a failed or refused order, or how the server ended
	// Unfinished names the action that had begun to overwrite the data
	// directory and has not ended. Such a node never leads.
	Unfinished Action `json:"unfinished,omitempty"`
	// Compared says how the node's WAL stood to the leader's before its last start
	// as a standby. A node that had diverged does not start until it is copied anew:
	// what it streamed would hide what it has.
	Compared *pgwal.Comparison `json:"compared,omitempty"`
	// Salvaged is the result of the last salvage.
	Salvaged *Salvaged `json:"salvaged,omitempty"`
	// Provisioned tells of the last provision.
	Provisioned *Provisioned `json:"provisioned,omitempty"`
	// Archives: the init's container has pgBackRest and the repository.
	Archives bool `json:"archives,omitempty"`
	// Actions are those that the init knows. None: its version does not tell.
	Actions []Action  `json:"actions,omitempty"`
	At      time.Time `json:"at"`
}

// Knows reports whether the init can carry out the action a.
func (s Status) Knows(a Action) bool {
	if len(s.Actions) == 0 {
		return slices.Contains(actionsUntold, a)
	}
	return slices.Contains(s.Actions, a)
}

// Diverged says how the node's WAL differs from the leader's. Empty: as far as the
// node knows, it does not.
func (s Status) Diverged() string {
	if s.Compared == nil || s.Compared.Relation != pgwal.Diverged {
		return ""
	}
	return s.Compared.Why
}

// Salvaged is the result of the salvage that the order Epoch asked for.
type Salvaged struct {
	Epoch uint64 `json:"epoch"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"`
	Error string `json:"error,omitempty"`
}

// Provisioned is the result of the provision that the order Epoch asked for.
type Provisioned struct {
	Epoch uint64 `json:"epoch"`
	Error string `json:"error,omitempty"`
}

// Names in a node's data volume, beside its PGDATA.
const (
	DataDir        = "data"        // PGDATA
	NewDataDir     = "data.new"    // a base backup that is being made
	OldDataDir     = "data.old"    // what one has replaced, until it is removed
	AsideDir       = "aside"       // WAL that the archive lacks, saved from a PGDATA that was overwritten
	SocketDir      = "run"         // unix sockets
	LockFile       = "lock"        // flock; never replaced
	StatusFile     = "status.json" // Status
	UnfinishedFile = "unfinished"  // the Action that is overwriting PGDATA
)

// ReadStatus reads what the init of the node with the data volume dir last
// reported; the zero Status when it never did.
func ReadStatus(dir string) (Status, error) {
	data, err := os.ReadFile(filepath.Join(dir, StatusFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Status{}, nil
	}
	if err != nil {
		return Status{}, fmt.Errorf("read status: %w", err)
	}
	var s Status
	if err := json.Unmarshal(data, &s); err != nil {
		return Status{}, fmt.Errorf("read status: %w", err)
	}
	return s, nil
}

// WriteStatus makes s durable in the data volume dir.
func WriteStatus(dir string, s Status) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	return WriteFile(filepath.Join(dir, StatusFile), data, 0o644)
}
