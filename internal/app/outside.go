//go:build !failpoint

package app

import "controld/internal/cluster"

// outside is where a test build puts its failpoints; this is none.
func outside(o cluster.Outside) cluster.Outside { return o }
