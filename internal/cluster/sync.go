package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// SynchronousNames is the value of synchronous_standby_names for these nodes:
// the first of them that streams; empty for none.
func SynchronousNames(names []string) string {
	if len(names) == 0 {
		return ""
	}
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = `"` + n + `"`
	}
	return "FIRST 1 (" + strings.Join(quoted, ", ") + ")"
}

// protect makes commits wait for the standby again, and notes that it is in
// sync only when it is.
func (m *Manager) protect(ctx context.Context, sessions *sessionCache, leader, standby Node) error {
	deadline := streamDeadline
	if m.set.Replication == Sync {
		deadline = m.set.SyncTimeout // commits wait meanwhile, for no longer than for a dead standby
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	if err := m.applySettings(ctx, sessions, leader, m.primarySettings(leader, true)); err != nil {
		return err
	}
	err := poll(ctx, 10*time.Millisecond, func() (bool, error) {
		var senders []Sender
		err := sessions.with(ctx, leader, func(session Session) (err error) {
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
	err = sessions.with(ctx, leader, func(session Session) error { return session.SyncProbe(ctx) })
	if err != nil {
		return fmt.Errorf("a commit that waits for %s: %w", standby.Name, err)
	}
	return m.changeIdentity(func(id *Identity) { id.Unsynced = false })
}

// unprotect lifts the wait for a dead standby: durably noted first, then done.
func (m *Manager) unprotect(ctx context.Context, sessions *sessionCache, leader Node) error {
	if err := m.changeIdentity(func(id *Identity) { id.Unsynced = true }); err != nil {
		return err
	}
	return m.applySettings(ctx, sessions, leader, m.primarySettings(leader, false))
}
