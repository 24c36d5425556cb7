package actuator

import (
	"context"
	"fmt"
	"time"

	"controld/internal/cluster"
	"controld/internal/wait"
)

// Protect makes commits wait for the standby again, and notes that it is in
// sync only when it is.
func (a *Actuator) Protect(ctx context.Context, sessions *Sessions, leader, standby cluster.Node) error {
	deadline := StreamDeadline
	if a.Settings.Replication == cluster.Sync {
		deadline = a.Settings.SyncTimeout // commits wait meanwhile, for no longer than for a dead standby
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	if err := a.ApplySettings(ctx, sessions, leader, a.PrimarySettings(leader, true)); err != nil {
		return err
	}
	err := wait.Poll(ctx, 10*time.Millisecond, func() (bool, error) {
		var senders []cluster.Sender
		err := sessions.With(ctx, leader, func(session cluster.Session) (err error) {
			senders, err = session.Senders(ctx)
			return err
		})
		for _, s := range senders {
			if s.Application == standby.Name && s.SyncState == "sync" {
				return true, nil
			}
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("wait until %s is in sync: %w", standby.Name, err)
	}
	// A write that waited for the standby proves that everything before it is there.
	err = sessions.With(ctx, leader, func(session cluster.Session) error { return session.SyncProbe(ctx) })
	if err != nil {
		return fmt.Errorf("a commit that waits for %s: %w", standby.Name, err)
	}
	return a.ChangeIdentity(func(id *cluster.Identity) { id.Unsynced = false })
}

// Unprotect lifts the wait for a dead standby: durably noted first, then done.
func (a *Actuator) Unprotect(ctx context.Context, sessions *Sessions, leader cluster.Node) error {
	if err := a.ChangeIdentity(func(id *cluster.Identity) { id.Unsynced = true }); err != nil {
		return err
	}
	return a.ApplySettings(ctx, sessions, leader, a.PrimarySettings(leader, false))
}
