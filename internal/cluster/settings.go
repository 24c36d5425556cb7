package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"controld/internal/node"
	"controld/internal/wal"
)

// primarySettings are those of a node that leads. synced: commits wait for the
// other node; in mode strict they always do.
func (m *Manager) primarySettings(n Node, synced bool) RoleSettings {
	s := RoleSettings{ArchiveCommand: m.set.ArchiveCommand}
	if synced || m.set.Replication == Strict {
		s.SynchronousStandbys = nodeNames(m.others(n.Name))
	}
	return s
}

// standbySettings are those of a node that streams from upstream. Its
// restore_command stays empty: a promotion would call it five times. In mode
// strict it holds the names of its standbys before it leads, in mode sync none.
//
// It finds upstream by its address. A walreceiver that looks up the name of a
// container that has ended waits for the name servers of the machine, for 20 s
// where they do not answer, and a promotion waits for the walreceiver.
// Supervision notices when the address is another one.
func (m *Manager) standbySettings(ctx context.Context, n, upstream Node) RoleSettings {
	s := m.primarySettings(n, false)
	s.Upstream, s.Slot, s.UpstreamAddress = &upstream, n.Slot(), m.address(ctx, upstream)
	return s
}

// address is where n was last seen, or where the engine says it is to a controld
// that resumes an operation before it has looked. Empty: nobody knows.
func (m *Manager) address(ctx context.Context, n Node) string {
	if state, seen := m.View().Node(n.Name); seen && state.Container.Address != "" {
		return state.Container.Address
	}
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	c, err := m.out.Engine.Inspect(ctx, n.Container)
	if err != nil {
		m.log.Warn("address not known", "node", n.Name, "err", err)
	}
	return c.Address
}

// applySettings makes s durable and lets the running server take it up.
func (m *Manager) applySettings(ctx context.Context, sessions *sessionCache, n Node, s RoleSettings) error {
	if err := m.out.Volumes.WriteSettings(n, s); err != nil {
		return fmt.Errorf("settings of %s: %w", n.Name, err)
	}
	want := map[string]string{
		"archive_command":           s.ArchiveCommand,
		"restore_command":           s.RestoreCommand,
		"synchronous_standby_names": SynchronousNames(s.SynchronousStandbys),
	}
	return sessions.with(ctx, n, func(session Session) error { return session.Reload(ctx, want) })
}

// ReloadServers lets the servers of these nodes read the files that controld has
// written anew. One that does not run, as at the first start, reads them when it does.
func (m *Manager) ReloadServers(ctx context.Context, nodes []Node) {
	ctx, cancel := context.WithTimeout(ctx, settingDeadline)
	defer cancel()
	sessions := sessionCache{servers: m.out.Servers}
	defer sessions.closeAll()
	for _, n := range nodes {
		if m.unlocked(n) {
			continue
		}
		if err := sessions.with(ctx, n, func(session Session) error { return session.Reload(ctx, nil) }); err != nil {
			m.log.Warn("new settings are read at the server's next start", "node", n.Name, "err", err)
		}
	}
}

// orderToFollow gives n an order as a standby of leader, whose WAL its init holds
// its own against before it starts.
func (m *Manager) orderToFollow(n, leader Node, o node.Order) (node.Order, error) {
	o.Role, o.LeaderDir = node.RoleStandby, leader.DataDir()
	return m.order(n, o)
}

// ensureRunning starts the node's container where it does not run, thaws
// nothing, and connects it to the cluster's network where it was cut off.
func (m *Manager) ensureRunning(ctx context.Context, n Node) error {
	ctx, cancel := context.WithTimeout(ctx, engineDeadline)
	defer cancel()
	c, err := m.out.Engine.Inspect(ctx, n.Container)
	if err != nil {
		return err
	}
	if !c.Exists {
		return fmt.Errorf("container %s does not exist; make up creates it", n.Container)
	}
	if !c.Connected {
		if err := m.out.Engine.Connect(ctx, n.Container); err != nil {
			return err
		}
	}
	if c.Running {
		return nil
	}
	return m.out.Engine.Start(ctx, n.Container)
}

// serve makes a node that is known to be the one primary lead again: a new
// order as primary, its container running, and a write that succeeds.
func (m *Manager) serve(ctx context.Context, sessions *sessionCache, n Node) error {
	sessions.drop(n)
	if _, err := m.order(n, node.Order{Role: node.RolePrimary}); err != nil {
		return err
	}
	if err := m.ensureRunning(ctx, n); err != nil {
		return err
	}
	return m.waitServing(ctx, sessions, n)
}

// taken is what the node's init says of its present order; false: nothing yet.
// What it says of an older order counts for nothing.
func (m *Manager) taken(n Node) (node.Status, bool) {
	o, err := m.out.Volumes.Order(n)
	if err != nil {
		return node.Status{}, false
	}
	s, err := m.out.Volumes.Status(n)
	return s, err == nil && s.Epoch >= o.Epoch
}

// orderFailed is the reason why the node's init could not carry out its present
// order, or why the server that it started has ended; nil while there is hope.
func (m *Manager) orderFailed(n Node) error {
	s, said := m.taken(n)
	if !said {
		return nil
	}
	switch s.State {
	case node.StateRefused, node.StateFailed, node.StateEnded:
		return fmt.Errorf("its init says %s: %s", s.State, s.Error)
	}
	return nil
}

// orderCarriedOut reports whether the node's server runs by its present order.
// Until then its walsender may be that of the server which the order ends.
func (m *Manager) orderCarriedOut(n Node) bool {
	s, said := m.taken(n)
	return said && s.State == node.StateRunning
}

// waitServing waits until the node accepts a write.
func (m *Manager) waitServing(ctx context.Context, sessions *sessionCache, n Node) error {
	var last error
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
		if err := m.orderFailed(n); err != nil {
			return false, err
		}
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		last = sessions.with(attempt, n, func(session Session) error { return session.WriteProbe(attempt) })
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("wait until %s serves: %w", n.Name, errors.Join(err, last))
	}
	return nil
}

// recordPrimary makes n the recorded primary, durably, and gives it its order.
// Its server leads already, so its init starts nothing by it. unsynced: it
// leads without a synchronous standby that it should have.
func (m *Manager) recordPrimary(n Node, systemID uint64, timeline wal.Timeline, unsynced bool) error {
	o, err := m.out.Volumes.Order(n)
	if err != nil {
		return err
	}
	if o.Role != node.RolePrimary {
		if o, err = m.order(n, node.Order{Role: node.RolePrimary}); err != nil {
			return err
		}
	}
	return m.changeIdentity(func(id *Identity) {
		if id.Primary != n.Name || id.Timeline != timeline {
			id.ChangedAt = time.Now().UTC()
		}
		id.SystemID, id.Primary, id.Timeline, id.Epoch = systemID, n.Name, timeline, o.Epoch
		id.Unsynced = id.Unsynced || unsynced
	})
}

// waitStreaming waits until n streams from leader on its timeline.
func (m *Manager) waitStreaming(ctx context.Context, sessions *sessionCache, n, leader Node) error {
	var last error
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
		if err := m.orderFailed(n); err != nil {
			return false, err
		}
		var ok bool
		ok, last = m.streams(ctx, sessions, n, leader)
		return ok && m.orderCarriedOut(n), nil
	})
	if err != nil {
		return fmt.Errorf("wait until %s streams from %s: %w", n.Name, leader.Name, errors.Join(err, last))
	}
	return nil
}

// streams asks the leader alone until it has a walsender for n: logins to a
// server that is starting would only slow its start.
func (m *Manager) streams(ctx context.Context, sessions *sessionCache, n, leader Node) (bool, error) {
	var senders []Sender
	err := sessions.with(ctx, leader, func(session Session) (err error) {
		senders, err = session.Senders(ctx)
		return err
	})
	for _, s := range senders {
		if s.Application == n.Name && s.State == "streaming" {
			return true, nil
		}
	}
	return false, err
}

// pointReaders leads the read-only entries to the standby and the rest to the
// leader. An entry whose host changes is paused for the moment; where a reader's
// transaction outlasts that, the entries stay as they are and a later align
// tries again.
func (m *Manager) pointReaders(ctx context.Context, standby, leader Node) error {
	s, err := m.out.Engine.Inspect(ctx, standby.Container)
	if err != nil {
		return err
	}
	l, err := m.out.Engine.Inspect(ctx, leader.Container)
	if err != nil {
		return err
	}
	if s.Address == "" || l.Address == "" {
		return nil // a container is restarting: align follows
	}
	if err := m.align(ctx, Targets{Primary: l.Address, Standby: s.Address}); err != nil {
		m.log.Warn("read-only entries not repointed yet", "err", err)
	}
	return nil
}
