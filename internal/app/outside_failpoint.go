//go:build failpoint

package app

import (
	"time"

	"controld/internal/cluster"
	"controld/internal/failpoint"
)

// failpointFile arms a failpoint, clockFile says how far the clock is ahead by which backups
// are planned; see package failpoint.
const (
	failpointFile = "/var/lib/controld/failpoint"
	clockFile     = "/var/lib/controld/clock"
)

// clock is one that a test sets.
func clock() func() time.Time { return failpoint.Clock(clockFile) }

// outside puts the failpoints of a test build around what leaves the process.
func outside(o cluster.Outside) cluster.Outside {
	return failpoint.Wrap(o, failpoint.FromFile(failpointFile))
}
