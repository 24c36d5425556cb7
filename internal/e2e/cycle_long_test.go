//go:build long

package e2e

import "testing"

// TestLongCycles has the six days pass twice, with a failover at every boundary.
func TestLongCycles(t *testing.T) { cycles(t, 2) }
