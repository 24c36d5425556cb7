package failover

import (
	"context"
	"time"

	"controld/internal/actuator"
	"controld/internal/wait"
)

// Bounds of the drain: PgBouncer closes surplus connections three times a
// second, and a login takes a few tens of milliseconds.
const (
	drainDeadline = 400 * time.Millisecond
	loginDeadline = 2 * time.Second
)

// drainPools lets the pools shrink to what is in use and no new login begin.
// Each connection less is one process less to end in the pause; and a login
// that PAUSE cuts off would count as a failed one, for which PgBouncer throws
// out the clients that come first after RESUME.
func (f *failover) drainPools(ctx context.Context, _ *state) error {
	size := 1
	for _, db := range f.act.Settings.Databases {
		load, err := f.act.Outside.Pooler.Load(ctx, db)
		if err != nil {
			return err
		}
		// Never more than is open: the difference would be logged in.
		size = max(size, min(load.Busy+1, load.Largest))
	}
	if err := f.act.Outside.Pooler.Drain(ctx, size); err != nil {
		return err
	}
	began := time.Now()
	return wait.Poll(ctx, 5*actuator.Tick, func() (bool, error) {
		settled, drained := true, true
		for _, db := range f.act.Settings.Databases {
			load, err := f.act.Outside.Pooler.Load(ctx, db)
			if err != nil {
				return false, err
			}
			settled = settled && load.Logins == 0
			drained = drained && load.Largest <= size
		}
		waited := time.Since(began)
		return settled && (drained || waited > drainDeadline) || waited > loginDeadline, nil
	})
}

func (f *failover) refillPools(ctx context.Context, _ *state) error {
	return f.act.Outside.Pooler.Drain(ctx, 0)
}
