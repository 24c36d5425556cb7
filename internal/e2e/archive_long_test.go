//go:build long

package e2e

import "testing"

// TestLongRestoreAfterEmergencies is TestRestoreAfterEmergencies with ten of them.
func TestLongRestoreAfterEmergencies(t *testing.T) { restoreAfterEmergencies(t, 10) }
