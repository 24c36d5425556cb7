//go:build !failpoint

package app

import (
	"time"

	"controld/internal/cluster"
)

// outside is where a test build puts its failpoints; this is none.
func outside(o cluster.Outside) cluster.Outside { return o }

// clock is where a test build puts one that is ahead; this is the machine's.
func clock() func() time.Time { return time.Now }
