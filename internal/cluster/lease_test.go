package cluster

import (
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/node"
)

// leaseKeeper is a pooler that notes when its lease was renewed. The second
// renewal takes as long as the process is stopped.
type leaseKeeper struct {
	Pooler
	stopped time.Duration
	renewed []time.Time
}

func (p *leaseKeeper) RenewLease(string, []string) error {
	if len(p.renewed) == 1 {
		time.Sleep(p.stopped)
	}
	p.renewed = append(p.renewed, time.Now())
	return nil
}

// A process that was stopped for longer than its claim lasted finds it lost,
// and does not take it up again: the clients were released meanwhile.
func TestALostClaimStaysLost(t *testing.T) {
	for _, tt := range []struct {
		name    string
		stopped time.Duration
		held    bool
	}{
		{"stopped for a moment", time.Second, true},
		{"stopped for longer", node.LeaseDuration, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pooler := &leaseKeeper{stopped: tt.stopped}
				m := &Manager{out: Outside{Pooler: pooler}, set: Settings{PauseLimit: time.Minute, Databases: []string{"imdb"}}}
				m.view.Store(&View{})
				f := &failover{m: m}
				if err := f.holdLease(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(leaseEvery + tt.stopped + leaseEvery/2)
				if err := f.held(); (err == nil) != tt.held {
					t.Errorf("held: %v, want %t", err, tt.held)
				}
				time.Sleep(3 * leaseEvery)
				f.stopLease()
				if goesOn := len(pooler.renewed) > 2; goesOn != tt.held {
					t.Errorf("renewed %d times", len(pooler.renewed))
				}
			})
		})
	}
}
