//go:build failpoint

package app

import (
	"controld/internal/cluster"
	"controld/internal/failpoint"
)

// failpointFile arms a failpoint; see package failpoint.
const failpointFile = "/var/lib/controld/failpoint"

// outside puts the failpoints of a test build around what leaves the process.
func outside(o cluster.Outside) cluster.Outside {
	return failpoint.Wrap(o, failpoint.FromFile(failpointFile))
}
