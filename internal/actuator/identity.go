package actuator

import (
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/wal"
)

const identityFact = "identity"

// Identity is what the journal knows; the zero Identity before the first start.
func (a *Actuator) Identity() cluster.Identity {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.identity
}

// ChangeIdentity applies f and makes the result durable before it holds.
func (a *Actuator) ChangeIdentity(f func(*cluster.Identity)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := a.identity
	f(&next)
	if next == a.identity {
		return nil
	}
	if err := a.facts.PutFact(identityFact, next); err != nil {
		return err
	}
	a.identity = next
	return nil
}

// RecordPrimary makes n the recorded primary, durably, and gives it its order.
// Its server leads already, so its init starts nothing by it. unsynced: it
// leads without a synchronous standby that it should have.
func (a *Actuator) RecordPrimary(n cluster.Node, systemID uint64, timeline wal.Timeline, unsynced bool) error {
	o, err := a.Outside.Volumes.Order(n)
	if err != nil {
		return err
	}
	if o.Role != node.RolePrimary {
		if o, err = a.Order(n, node.Order{Role: node.RolePrimary}); err != nil {
			return err
		}
	}
	return a.ChangeIdentity(func(id *cluster.Identity) {
		if id.Primary != n.Name || id.Timeline != timeline {
			id.ChangedAt = time.Now().UTC()
		}
		id.SystemID, id.Primary, id.Timeline, id.Epoch = systemID, n.Name, timeline, o.Epoch
		id.Unsynced = id.Unsynced || unsynced
	})
}
