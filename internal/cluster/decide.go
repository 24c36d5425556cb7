package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"controld/internal/node"
	"controld/internal/operation"
)

// Leader returns the one node whose server leads. The problem says what is
// wrong when none does, or more than one.
func Leader(v View) (NodeState, *operation.Problem) {
	var leaders []NodeState
	for _, s := range v.Nodes {
		if s.Role() == RolePrimary {
			leaders = append(leaders, s)
		}
	}
	switch len(leaders) {
	case 1:
		return leaders[0], nil
	case 0:
		return NodeState{}, operation.Refuse("no-primary", nil, "no node leads; see GET /health for what each one says and what to do")
	}
	return NodeState{}, operation.Refuse("two-primaries", nil,
		"%s all lead; fence the one whose data does not count (docker kill -s KILL) and rejoin it", Names(leaders))
}

// BestStandby returns the standby to promote: one that answers, has whole data
// with no WAL of its own, and has received the most on the highest timeline. On a
// tie the first in the configuration wins, so that a repeated choice is the same.
func BestStandby(v View, except string) (NodeState, *operation.Problem) {
	able := slices.DeleteFunc(slices.Clone(v.Nodes), func(s NodeState) bool {
		return s.Node.Name == except || s.Role() != RoleStandby || !s.Usable() || s.Diverged() != ""
	})
	if len(able) == 0 {
		return NodeState{}, operation.Refuse("no-candidate", nil, "no standby answers that could lead: %s", describeOthers(v, except))
	}
	return slices.MaxFunc(able, func(a, b NodeState) int {
		return cmp.Or(cmp.Compare(a.Timeline(), b.Timeline()), cmp.Compare(a.Server.Received, b.Server.Received))
	}), nil
}

// describeOthers says of each node but one why it cannot lead.
func describeOthers(v View, except string) string {
	var out []string
	for _, s := range v.Nodes {
		if s.Node.Name == except {
			continue
		}
		state := string(s.Role())
		if s.Server == nil {
			state = s.ServerErr
		}
		if why := s.Diverged(); why != "" {
			state = "diverged: " + why
		}
		if !s.Usable() {
			state = s.Wholeness()
		}
		out = append(out, s.Node.Name+": "+state)
	}
	return strings.Join(out, "; ")
}

// A StartDecision says how the cluster comes to have a primary when controld starts.
type StartDecision struct {
	Kind   StartKind
	Lead   string // the node that is to lead or leads
	Reason string
}

// A StartKind is one way to begin.
type StartKind string

// The ways to begin.
const (
	StartRunning StartKind = "running" // a primary serves already
	StartFirst   StartKind = "first"   // nothing exists yet: initdb
	StartCold    StartKind = "cold"    // the recorded primary is started
	StartAdopt   StartKind = "adopt"   // the journal is lost, the nodes agree
	StartNothing StartKind = "nothing" // a person has to choose: Reason says why and how
)

// A StartFact is the state of a node at a start, with what its volume says.
type StartFact struct {
	NodeState
	Empty         bool // no data directory, or one that an unfinished initdb left
	StandbySignal bool
}

// DecideStart says what a start of everything does. It makes a new cluster only
// where nothing exists. It starts the recorded primary where no node contradicts
// the journal. Where the nodes and the journal disagree it does not guess.
func DecideStart(id Identity, nodes []StartFact, preferred string) StartDecision {
	var leaders []StartFact
	for _, n := range nodes {
		if n.Role() == RolePrimary {
			leaders = append(leaders, n)
		}
	}
	switch {
	case len(leaders) > 1:
		return nothing("more than one node leads; fence the one whose data does not count (docker kill -s KILL), then rejoin it")
	case len(leaders) == 1:
		return decideRunning(id, leaders[0], nodes)
	case id.Primary != "":
		return decideCold(id, nodes)
	case !slices.ContainsFunc(nodes, func(n StartFact) bool { return !n.Empty }):
		return StartDecision{StartFirst, preferred, "both data volumes are empty and the journal knows no cluster"}
	}
	return decideAdopt(nodes)
}

// nothing is the decision to start nothing: a person has to choose, and the reason
// says why and how.
func nothing(format string, args ...any) StartDecision {
	return StartDecision{Kind: StartNothing, Reason: fmt.Sprintf(format, args...)}
}

// decideRunning is for a primary that serves already. It is kept, unless the
// journal or another node has gone on to a higher timeline: then what it writes is
// the losing branch. One whose order was withdrawn is not kept: it is about to end.
func decideRunning(id Identity, leader StartFact, nodes []StartFact) StartDecision {
	name := leader.Node.Name
	const choose = "choose: controld failover --mode emergency --target NAME"
	switch {
	case leader.Order.Role == node.RoleNone:
		return nothing("the order of %s is withdrawn, and its server has not ended yet; if it does not: docker kill -s KILL %s",
			name, leader.Node.Container)
	case leader.Timeline() < id.Timeline:
		return nothing("%s leads on timeline %d, the journal knows %s on the later timeline %d; %s",
			name, leader.Timeline(), id.Primary, id.Timeline, choose)
	case id.SystemID != 0 && leader.Server.SystemID != id.SystemID:
		return nothing("%s leads a cluster with system identifier %d, the journal knows %d; point controld at its own volumes",
			name, leader.Server.SystemID, id.SystemID)
	}
	for _, n := range nodes {
		if n.Node.Name != name && n.Timeline() > leader.Timeline() {
			return nothing("%s leads on timeline %d but %s is on the later timeline %d; %s",
				name, leader.Timeline(), n.Node.Name, n.Timeline(), choose)
		}
	}
	return StartDecision{StartRunning, name, name + " leads"}
}

// decideCold is for a cluster of which no node leads and the journal knows who led.
// That one is started, unless its data, or another node's, contradicts the journal.
func decideCold(id Identity, nodes []StartFact) StartDecision {
	const choose = "choose who leads: controld start NAME, or controld failover --mode emergency --target NAME"
	at := slices.IndexFunc(nodes, func(n StartFact) bool { return n.Node.Name == id.Primary })
	if at < 0 {
		return nothing("the journal says that %s leads, which is not in the configuration", id.Primary)
	}
	p := nodes[at]
	switch {
	case p.Control == nil:
		return nothing("the data of %s, which led, cannot be read; %s", id.Primary, choose)
	case p.Control.SystemID != id.SystemID:
		return nothing("the data of %s has system identifier %d, the journal knows %d; %s",
			id.Primary, p.Control.SystemID, id.SystemID, choose)
	case !p.NodeState.Usable():
		return nothing("an unfinished %s overwrote the data of %s; %s", p.Init.Unfinished, id.Primary, choose)
	case p.Control.Timeline() < id.Timeline:
		return nothing("the journal knows timeline %d, the data of %s, which led, is on the older timeline %d; %s",
			id.Timeline, id.Primary, p.Control.Timeline(), choose)
	case p.Locked == Yes && p.Server == nil:
		return nothing("the server of %s, which led, runs and does not answer (%s): wait if it is starting; "+
			"if it is frozen: controld failover --mode emergency", id.Primary, p.ServerErr)
	}
	for _, n := range nodes {
		if n.Node.Name == id.Primary || n.Control == nil || !n.NodeState.Usable() {
			continue // an empty or half-made node is copied anew
		}
		if n.Control.SystemID != id.SystemID {
			return nothing("the data of %s has system identifier %d, the journal knows %d; empty its volume or %s",
				n.Node.Name, n.Control.SystemID, id.SystemID, choose)
		}
		if n.Control.Timeline() > p.Control.Timeline() {
			return nothing("the journal says that %[1]s leads (timeline %[2]d), but %[3]s is on the later timeline %[4]d, "+
				"which controld did not make; to lead with that: controld failover --mode emergency --target %[3]s --max-loss-bytes -1 "+
				"(what %[1]s wrote since they parted is given up); "+
				"to keep the data of %[1]s instead, empty the data volume of %[3]s",
				id.Primary, p.Control.Timeline(), n.Node.Name, n.Control.Timeline())
		}
	}
	return StartDecision{StartCold, id.Primary, "the journal says that it led, and no node contradicts"}
}

// decideAdopt is for nodes with data of which no one leads, where the journal is
// lost. One node leads if it alone has data that would start as a primary, and no
// other node is ahead of it.
func decideAdopt(nodes []StartFact) StartDecision {
	const choose = "choose who leads: controld start NAME"
	var leads []StartFact
	for _, n := range nodes {
		if n.Control != nil && n.NodeState.Usable() && !n.StandbySignal {
			leads = append(leads, n)
		}
	}
	if len(leads) != 1 {
		return nothing("the journal knows no cluster and %d nodes have data without standby.signal; %s", len(leads), choose)
	}
	p := leads[0]
	for _, n := range nodes {
		if n.Node.Name == p.Node.Name || n.Control == nil {
			continue
		}
		ahead := cmp.Or(
			cmp.Compare(n.Control.Timeline(), p.Control.Timeline()),
			cmp.Compare(n.Control.Checkpoint, p.Control.Checkpoint),
		) > 0
		if n.Control.SystemID != p.Control.SystemID || ahead {
			return nothing("the journal knows no cluster, and %s is not behind %s; %s", n.Node.Name, p.Node.Name, choose)
		}
	}
	return StartDecision{StartAdopt, p.Node.Name,
		"the journal knows no cluster, and it is the one node without standby.signal and not behind any other"}
}
