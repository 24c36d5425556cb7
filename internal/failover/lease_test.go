package failover

import (
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/node"
)

// A process that was stopped for longer than its claim lasted finds it lost,
// and does not take it up again: the clients were released meanwhile.
func TestALostClaimStaysLost(t *testing.T) {
	for _, tt := range []struct {
		name    string
		stopped time.Duration // in the second renewal
		held    bool
	}{
		{"stopped for a moment", time.Second, true},
		{"stopped for longer", node.LeaseDuration, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				renewed := 0
				l, err := claim(func() error {
					if renewed == 1 {
						time.Sleep(tt.stopped)
					}
					renewed++
					return nil
				}, time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(leaseEvery + tt.stopped + leaseEvery/2)
				if err := l.valid(); (err == nil) != tt.held {
					t.Errorf("held: %v, want %t", err, tt.held)
				}
				time.Sleep(3 * leaseEvery)
				l.drop()
				if goesOn := renewed > 2; goesOn != tt.held {
					t.Errorf("renewed %d times", renewed)
				}
			})
		})
	}
}
