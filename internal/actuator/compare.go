package actuator

import (
	"context"
	"time"

	"controld/internal/cluster"
	"controld/internal/pgwal"
)

// Bounds of the comparison before a failover. All of a node's WAL was compared
// before its server started, and what it has received since is a copy; this
// looks at the newest of it once more.
const (
	compareBytes    = 64 << 20
	compareDeadline = 10 * time.Second
)

// Compare holds the newest WAL of n against the leader's; what cannot be told is
// unknown.
func (a *Actuator) Compare(n, leader cluster.Node) pgwal.Comparison {
	ctx, cancel := context.WithTimeout(context.Background(), compareDeadline)
	defer cancel()
	c, err := a.Outside.Volumes.Compare(ctx, n, leader, compareBytes)
	if err != nil {
		return pgwal.Comparison{Relation: pgwal.Unknown, Why: err.Error()}
	}
	return c
}
