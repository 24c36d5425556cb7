package actuator

import (
	"context"
	"time"

	"controld/internal/cluster"
)

// Node is the node called name.
func (a *Actuator) Node(name string) (cluster.Node, error) {
	for _, n := range a.Settings.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return cluster.Node{}, &cluster.UnknownNode{Field: "name", Name: name, Known: cluster.NodeNames(a.Settings.Nodes)}
}

// Others are the nodes that are not called name.
func (a *Actuator) Others(name string) []cluster.Node {
	var out []cluster.Node
	for _, n := range a.Settings.Nodes {
		if n.Name != name {
			out = append(out, n)
		}
	}
	return out
}

// addressTimeout bounds the one question about where a node is.
const addressTimeout = 900 * time.Millisecond

// Address is where n was last seen, or where the engine says it is to a controld
// that resumes an operation before it has looked. Empty: nobody knows.
func (a *Actuator) Address(ctx context.Context, n cluster.Node) string {
	if state, seen := a.Look.View().Node(n.Name); seen && state.Container.Address != "" {
		return state.Container.Address
	}
	ctx, cancel := context.WithTimeout(ctx, addressTimeout)
	defer cancel()
	c, err := a.Outside.Engine.Inspect(ctx, n.Container)
	if err != nil {
		a.Log.Warn("address not known", "node", n.Name, "err", err)
	}
	return c.Address
}
