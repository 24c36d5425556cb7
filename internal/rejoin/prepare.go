package rejoin

import (
	"cmp"
	"context"
	"fmt"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/operation"
)

// Prepare finds the primary to follow, and what is left of the node's data.
func (r *Ladder) Prepare(ctx context.Context, s *State) (operation.Prepared, error) {
	v := r.act.Look.Fresh(ctx)
	leader, problem := cluster.Leader(v)
	if problem != nil {
		return operation.Prepared{}, problem
	}
	if leader.Node.Name == r.node.Name {
		return operation.Prepared{}, operation.Refuse("already-primary", map[string]any{"primary": leader.Node.Name},
			"%s leads; move the primary first: controld failover", r.node.Name)
	}
	state, _ := v.Node(r.node.Name)
	*s = State{Node: r.node.Name, Leader: leader.Node.Name, Method: cmp.Or(r.method, cluster.MethodAuto)}
	if state.Container.Paused {
		return operation.Prepared{}, operation.Refuse("container-paused", nil,
			"the container of %s is frozen; thaw it (docker unpause %s) and ask again", r.node.Name, r.node.Container)
	}
	if s.Forked = state.Forked(leader); s.Forked && !r.asked {
		return operation.Prepared{}, operation.Refuse("later-timeline",
			map[string]any{"timeline": state.Timeline(), "primary_timeline": leader.Timeline()},
			"%[1]s is on timeline %[2]d, later than %[3]d of the primary %[4]s: it was promoted past controld. "+
				"Its data is left as it is; controld rejoin %[1]s overwrites what it wrote since",
			s.Node, state.Timeline(), leader.Timeline(), s.Leader)
	}
	if problem := r.notOurs(state, leader); problem != nil && !r.asked {
		return operation.Prepared{}, problem
	}
	s.Empty = state.Control == nil || state.Control.SystemID != leader.Server.SystemID
	s.Marked = !state.Usable()
	p := operation.Prepared{Mode: s.Method}
	ordered := state.Init.State == node.StateRunning && state.Order.Role == node.RoleStandby
	if s.Method == cluster.MethodAuto && state.Follows(leader) && state.LeftOver(leader) == "" && ordered {
		p.Already = r.node.Name + " streams from " + leader.Node.Name + " already"
	}
	return p, nil
}

// notOurs refuses to overwrite what lies on the node's volume where that is no copy of
// this cluster, as after a container was made with another's volume, or where nobody can
// tell. Only a person may have it overwritten.
func (r *Ladder) notOurs(state, leader cluster.NodeState) error {
	name := r.node.Name
	overwrite := fmt.Sprintf("Its data is left as it is; controld rejoin %s overwrites it", name)
	switch empty, err := r.act.Outside.Volumes.Empty(r.node); {
	case !state.Usable(): // half of a copy that was being made
	case state.Control != nil && state.Control.SystemID != leader.Server.SystemID:
		own, wanted := state.Control.SystemID, leader.Server.SystemID
		return operation.Refuse("system-identifier", map[string]any{"system_id": own, "primary_system_id": wanted},
			"the volume of %s holds another cluster (system identifier %d, the primary's is %d). %s", name, own, wanted, overwrite)
	case err != nil:
		return fmt.Errorf("look at the volume of %s: %w", name, err)
	case state.Control == nil && !empty:
		return operation.Refuse("precheck-failed", nil,
			"the volume of %s holds data whose control file cannot be read. %s", name, overwrite)
	}
	return nil
}
