package bootstrap

import (
	"context"
	"fmt"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/pgwal"
)

// prepare refuses to make a second primary, and to start what another node has
// gone past.
func (st *starter) prepare(ctx context.Context, s *startState) (operation.Prepared, error) {
	v := st.act.Look.Fresh(ctx)
	*s = startState{Node: st.node.Name, InitDB: st.initdb}
	state, _ := v.Node(st.node.Name)
	leader, problem := cluster.Leader(v)
	leads := problem == nil && leader.Node.Name == st.node.Name
	if leads && state.Order.Role == node.RolePrimary {
		s.SystemID, s.Timeline = state.Server.SystemID, state.Server.Timeline
		if st.act.Identity().Primary == st.node.Name {
			return operation.Prepared{Already: st.node.Name + " leads already"}, nil
		}
		return operation.Prepared{}, nil
	}
	checks := st.checks(v, state)
	if recovering, err := st.startsInRecovery(); err == nil && recovering && !st.initdb {
		checks = append(checks, st.aheadChecks(v)...)
	}
	return operation.Prepared{Checks: checks}, operation.Refusal(checks)
}

// checks are about a second primary, data that another node has gone past, and data
// that is not whole.
func (st *starter) checks(v cluster.View, state cluster.NodeState) []operation.Check {
	var rivals []cluster.NodeState
	ahead := ""
	for _, s := range v.Nodes {
		if s.Node.Name == st.node.Name {
			continue
		}
		if s.Role() == cluster.RolePrimary {
			rivals = append(rivals, s)
		}
		if s.Usable() && state.Control != nil && s.Timeline() > state.Timeline() {
			ahead = fmt.Sprintf("%[1]s is on the later timeline %[2]d; this node's data is older. "+
				"To lead with the newer: controld failover --mode emergency --target %[1]s; "+
				"to keep this node's instead, empty the data volume of %[1]s", s.Node.Name, s.Timeline())
		}
	}
	checks := []operation.Check{
		containerCheck(state),
		operation.EitherCheck("no-other-primary", len(rivals) == 0, "other-primary", "no other node leads",
			cluster.Names(rivals)+" leads; rejoin this node instead: controld rejoin "+st.node.Name),
		operation.EitherCheck("not-behind", ahead == "", "later-timeline", "no other node is on a later timeline", ahead),
	}
	if !st.initdb {
		checks = append(checks, operation.EitherCheck("data-is-whole", state.Usable(), "unfinished", "its data is whole",
			"its volume holds no whole data directory; bring the other node back, then controld rejoin "+st.node.Name))
	}
	return checks
}

// aheadChecks are about the other nodes' WAL: a standby that is made to lead gives up
// what another node has more.
func (st *starter) aheadChecks(v cluster.View) (checks []operation.Check) {
	for _, s := range v.Nodes {
		if s.Node.Name == st.node.Name || !s.Usable() {
			continue
		}
		c := st.act.Compare(s.Node, st.node)
		more := c.Relation == pgwal.Diverged || c.Relation == pgwal.Past
		checks = append(checks, operation.EitherCheck("has-all-wal", !more, "diverged", "nothing is known of more WAL on "+s.Node.Name,
			fmt.Sprintf("%[1]s has WAL that %[2]s lacks, and that would be given up (%[3]s). To lead with it: controld start %[1]s. "+
				"To keep what %[2]s has instead, empty the data volume of %[1]s", s.Node.Name, st.node.Name, c.Why)))
	}
	return checks
}

func containerCheck(s cluster.NodeState) operation.Check {
	found := operation.Either(s.Container.Exists, "exists", "does not exist; make up creates it")
	return operation.NewCheck("container-exists", s.Container.Exists, "container-missing", nil,
		"container %s: %s", s.Node.Container, found)
}
