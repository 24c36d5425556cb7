package actuator

import (
	"fmt"

	"controld/internal/cluster"
	"controld/internal/node"
)

// Order gives a node an order with an epoch above every one that any node was
// given or reports. It is durable when Order returns.
func (a *Actuator) Order(n cluster.Node, o node.Order) (node.Order, error) {
	epoch, err := a.nextEpoch()
	if err != nil {
		return node.Order{}, fmt.Errorf("order %s: %w", n.Name, err)
	}
	o.Epoch = epoch
	if o.Action == "" {
		o.Action = node.ActionNone
	}
	if err := a.knows(n, o.Action); err != nil {
		return node.Order{}, fmt.Errorf("order %s: %w", n.Name, err)
	}
	if err := a.Look.Ordered(n, o, func() error { return a.Outside.Volumes.WriteOrder(n, o) }); err != nil {
		return node.Order{}, fmt.Errorf("order %s: %w", n.Name, err)
	}
	a.Log.Info("order written", "node", n.Name, "role", o.Role, "action", o.Action, "epoch", o.Epoch)
	return o, nil
}

// knows is an error where n's init is of a version that does not know the action. What
// every init knows is not asked: an order to stop is written while clients are held. An
// init whose status cannot be read has none yet, or its volume is gone.
func (a *Actuator) knows(n cluster.Node, action node.Action) error {
	if action == node.ActionNone {
		return nil
	}
	s, err := a.Outside.Volumes.Status(n)
	if err != nil || s.Knows(action) {
		return nil //nolint:nilerr // there is nothing to hold against it
	}
	return fmt.Errorf("its init is of another version and does not know the action %s; "+
		"make down && make up renews it, which is an outage", action)
}

// nextEpoch is above all that the nodes' volumes and the journal know: epochs
// rise over the whole cluster, so that two orders can be told by age. Only one
// controld runs, so reading and adding one is enough.
func (a *Actuator) nextEpoch() (uint64, error) {
	highest := a.Identity().Epoch
	for _, n := range a.Settings.Nodes {
		o, err := a.Outside.Volumes.Order(n)
		if err != nil {
			return 0, err
		}
		highest = max(highest, o.Epoch)
		// A status that cannot be read belongs to a node whose volume is gone:
		// its init could carry nothing out either.
		if s, err := a.Outside.Volumes.Status(n); err == nil {
			highest = max(highest, s.Epoch, s.UsedEpoch)
		}
	}
	return highest + 1, nil
}

// OrderToFollow gives n an order as a standby of leader, whose WAL its init holds
// its own against before it starts.
func (a *Actuator) OrderToFollow(n, leader cluster.Node, o node.Order) (node.Order, error) {
	o.Role, o.LeaderDir = node.RoleStandby, leader.DataDir()
	return a.Order(n, o)
}

// Taken is what the node's init says of its present order; false: nothing yet.
// What it says of an older order counts for nothing.
func (a *Actuator) Taken(n cluster.Node) (node.Status, bool) {
	o, err := a.Outside.Volumes.Order(n)
	if err != nil {
		return node.Status{}, false
	}
	s, err := a.Outside.Volumes.Status(n)
	return s, err == nil && s.Epoch >= o.Epoch
}

// OrderFailed is the reason why the node's init could not carry out its present
// order, or why the server that it started has ended; nil while there is hope.
func (a *Actuator) OrderFailed(n cluster.Node) error {
	s, said := a.Taken(n)
	if !said {
		return nil
	}
	switch s.State {
	case node.StateRefused, node.StateFailed, node.StateEnded:
		return fmt.Errorf("its init says %s: %s", s.State, s.Error)
	}
	return nil
}

// OrderCarriedOut reports whether the node's server runs by its present order.
// Until then its walsender may be that of the server which the order ends.
func (a *Actuator) OrderCarriedOut(n cluster.Node) bool {
	s, said := a.Taken(n)
	return said && s.State == node.StateRunning
}
