package observer

import (
	"slices"

	"controld/internal/cluster"
	"controld/internal/node"
)

// Ordered has write make o the order of n durable, and the view say so at once: a load
// balancer is told that a node does not lead from the moment in which its order is
// withdrawn.
func (o *Observer) Ordered(n cluster.Node, order node.Order, write func() error) error {
	o.viewMu.Lock()
	defer o.viewMu.Unlock()
	if err := write(); err != nil {
		return err
	}
	v := *o.view.Load()
	v.Nodes = slices.Clone(v.Nodes)
	for i := range v.Nodes {
		if v.Nodes[i].Node.Name == n.Name {
			v.Nodes[i].Order = order
		}
	}
	o.view.Store(&v)
	return nil
}

// keep makes v the view, with the orders as they stand now: one may have been
// written while the rest was observed.
func (o *Observer) keep(v *cluster.View) {
	o.viewMu.Lock()
	defer o.viewMu.Unlock()
	for i := range v.Nodes {
		if order, err := o.out.Volumes.Order(v.Nodes[i].Node); err == nil {
			v.Nodes[i].Order = order
		}
	}
	o.view.Store(v)
}
