package actuator

import (
	"context"
	"errors"
	"time"

	"controld/internal/cluster"
	"controld/internal/wait"
)

// DropUnused drops the slot that the standby n kept for the node that leads now:
// it would keep WAL for nobody. A standby that is starting is waited for.
func (a *Actuator) DropUnused(ctx context.Context, sessions *Sessions, n, leader cluster.Node) {
	ctx, cancel := context.WithTimeout(ctx, dropDeadline)
	defer cancel()
	var last error
	err := wait.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
		last = sessions.With(ctx, n, func(session cluster.Session) error { return session.DropSlot(ctx, leader.Slot()) })
		return last == nil, nil
	})
	if err != nil {
		a.Log.Warn("unused slot not dropped", "node", n.Name, "slot", leader.Slot(), "err", errors.Join(err, last))
	}
}
