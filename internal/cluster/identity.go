package cluster

import (
	"time"

	"controld/internal/wal"
)

// Identity is what the journal knows of the cluster.
type Identity struct {
	SystemID  uint64       `json:"system_id"`
	Primary   string       `json:"primary"`
	Timeline  wal.Timeline `json:"timeline"`
	Epoch     uint64       `json:"epoch"` // of the order by which Primary leads
	ChangedAt time.Time    `json:"changed_at"`
	// Unsynced is set, durably and before it happens, when commits stop
	// waiting for the standby (replication mode sync): from then on it may
	// lack acknowledged commits, until it was in sync again.
	Unsynced bool `json:"unsynced"`
}

// Facts keeps the few things that a restart must know, durably.
type Facts interface {
	PutFact(name string, value any) error
	Fact(name string, value any) (bool, error)
}
