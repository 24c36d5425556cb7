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
		"%s all lead; fence the one whose data does not count (docker kill -s KILL) and rejoin it", names(leaders))
}

// BestStandby returns the standby to promote: one that answers, has whole data
// with no WAL of its own, and has received the most on the highest timeline. On a
// tie the first in the configuration wins, so that a repeated choice is the same.
func BestStandby(v View, except string) (NodeState, *operation.Problem) {
	able := slices.DeleteFunc(slices.Clone(v.Nodes), func(s NodeState) bool {
		return s.Node.Name == except || s.Role() != RoleStandby || !usable(s) || s.Diverged() != ""
	})
	if len(able) == 0 {
		return NodeState{}, operation.Refuse("no-candidate", nil, "no standby answers that could lead: %s", describeOthers(v, except))
	}
	return slices.MaxFunc(able, func(a, b NodeState) int {
		return cmp.Or(cmp.Compare(a.Timeline(), b.Timeline()), cmp.Compare(a.Server.Received, b.Server.Received))
	}), nil
}

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
		if !usable(s) {
			state = wholeness(s)
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

// A StartFact is what a node's volume says at a start, beside its state.
type StartFact struct {
	NodeState
	Empty         bool // no data directory, or one that an unfinished initdb left
	StandbySignal bool
}

// DecideStart says what a start of everything does: initdb only where nothing
// exists, the recorded primary where the nodes agree with the journal, and no
// guess where they do not.
func DecideStart(id Identity, nodes []StartFact, preferred string) StartDecision {
	var leaders []StartFact
	for _, n := range nodes {
		if n.Role() == RolePrimary {
			leaders = append(leaders, n)
		}
	}
	switch {
	case len(leaders) > 1:
		return StartDecision{StartNothing, "", "more than one node leads; fence the one whose data does not count (docker kill -s KILL), then rejoin it"}
	case len(leaders) == 1:
		return decideRunning(id, leaders[0], nodes)
	case id.Primary != "":
		return decideCold(id, nodes)
	case !slices.ContainsFunc(nodes, func(n StartFact) bool { return !n.Empty }):
		return StartDecision{StartFirst, preferred, "both data volumes are empty and the journal knows no cluster"}
	}
	return decideAdopt(nodes)
}

// decideRunning: a serving primary is kept, unless another node has gone on to
// a higher timeline: then its writes are the losing branch. One whose order was
// withdrawn is about to end.
func decideRunning(id Identity, leader StartFact, nodes []StartFact) StartDecision {
	if leader.Order.Role == node.RoleNone {
		return StartDecision{StartNothing, "", fmt.Sprintf("the order of %s is withdrawn, and its server has not ended yet; if it does not: docker kill -s KILL %s", leader.Node.Name, leader.Node.Container)}
	}
	if leader.Timeline() < id.Timeline {
		return StartDecision{StartNothing, "", fmt.Sprintf("%s leads on timeline %d, the journal knows %s on the later timeline %d; choose: controld failover --mode emergency --target NAME",
			leader.Node.Name, leader.Timeline(), id.Primary, id.Timeline)}
	}
	if id.SystemID != 0 && leader.Server.SystemID != id.SystemID {
		return StartDecision{StartNothing, "", fmt.Sprintf("%s leads a cluster with system identifier %d, the journal knows %d; point controld at its own volumes", leader.Node.Name, leader.Server.SystemID, id.SystemID)}
	}
	for _, n := range nodes {
		if n.Node.Name != leader.Node.Name && n.Timeline() > leader.Timeline() {
			return StartDecision{StartNothing, "", fmt.Sprintf("%s leads on timeline %d but %s is on the later timeline %d; choose: controld failover --mode emergency --target NAME",
				leader.Node.Name, leader.Timeline(), n.Node.Name, n.Timeline())}
		}
	}
	return StartDecision{StartRunning, leader.Node.Name, leader.Node.Name + " leads"}
}

func decideCold(id Identity, nodes []StartFact) StartDecision {
	at := slices.IndexFunc(nodes, func(n StartFact) bool { return n.Node.Name == id.Primary })
	if at < 0 {
		return StartDecision{StartNothing, "", fmt.Sprintf("the journal says that %s leads, which is not in the configuration", id.Primary)}
	}
	p := nodes[at]
	choose := "choose who leads: controld start NAME, or controld failover --mode emergency --target NAME"
	switch {
	case p.Control == nil:
		return StartDecision{StartNothing, "", fmt.Sprintf("the data of %s, which led, cannot be read; %s", id.Primary, choose)}
	case p.Control.SystemID != id.SystemID:
		return StartDecision{StartNothing, "", fmt.Sprintf("the data of %s has system identifier %d, the journal knows %d; %s", id.Primary, p.Control.SystemID, id.SystemID, choose)}
	case !usable(p.NodeState):
		return StartDecision{StartNothing, "", fmt.Sprintf("an unfinished %s overwrote the data of %s; %s", p.Init.Unfinished, id.Primary, choose)}
	case p.Control.Timeline() < id.Timeline:
		return StartDecision{StartNothing, "", fmt.Sprintf("the journal knows timeline %d, the data of %s, which led, is on the older timeline %d; %s", id.Timeline, id.Primary, p.Control.Timeline(), choose)}
	case p.Locked == Yes && p.Server == nil:
		return StartDecision{StartNothing, "", fmt.Sprintf("the server of %s, which led, runs and does not answer (%s): wait if it is starting; if it is frozen: controld failover --mode emergency", id.Primary, p.ServerErr)}
	}
	for _, n := range nodes {
		if n.Node.Name == id.Primary || n.Control == nil || !usable(n.NodeState) {
			continue // an empty or half-made node is copied anew
		}
		if n.Control.SystemID != id.SystemID {
			return StartDecision{StartNothing, "", fmt.Sprintf("the data of %s has system identifier %d, the journal knows %d; empty its volume or %s", n.Node.Name, n.Control.SystemID, id.SystemID, choose)}
		}
		if n.Control.Timeline() > p.Control.Timeline() {
			return StartDecision{StartNothing, "", fmt.Sprintf("the journal says that %[1]s leads (timeline %[2]d), but %[3]s is on the later timeline %[4]d, which controld did not make; to lead with that: controld failover --mode emergency --target %[3]s --max-loss-bytes -1 (what %[1]s wrote since they parted is given up); to keep the data of %[1]s instead, empty the data volume of %[3]s",
				id.Primary, p.Control.Timeline(), n.Node.Name, n.Control.Timeline())}
		}
	}
	return StartDecision{StartCold, id.Primary, "the journal says that it led, and no node contradicts"}
}

// decideAdopt: the journal is lost. Exactly one node must look like a primary,
// and none may be ahead of it.
func decideAdopt(nodes []StartFact) StartDecision {
	var leads []StartFact
	for _, n := range nodes {
		if n.Control != nil && usable(n.NodeState) && !n.StandbySignal {
			leads = append(leads, n)
		}
	}
	choose := "choose who leads: controld start NAME"
	if len(leads) != 1 {
		return StartDecision{StartNothing, "", fmt.Sprintf("the journal knows no cluster and %d nodes have data without standby.signal; %s", len(leads), choose)}
	}
	p := leads[0]
	for _, n := range nodes {
		if n.Node.Name == p.Node.Name || n.Control == nil {
			continue
		}
		ahead := cmp.Or(cmp.Compare(n.Control.Timeline(), p.Control.Timeline()), cmp.Compare(n.Control.Checkpoint, p.Control.Checkpoint)) > 0
		if n.Control.SystemID != p.Control.SystemID || ahead {
			return StartDecision{StartNothing, "", fmt.Sprintf("the journal knows no cluster, and %s is not behind %s; %s", n.Node.Name, p.Node.Name, choose)}
		}
	}
	return StartDecision{StartAdopt, p.Node.Name, "the journal knows no cluster, and it is the one node without standby.signal and not behind any other"}
}

// An Action is what the supervision does by itself: one operation to start.
type Action struct {
	Kind   string // KindRejoin, KindAlign, KindProtect; empty: nothing
	Node   string // of a rejoin
	How    string // of a protect: protectSet, protectLift
	Reason string
}

// NextActions says what to mend in a cluster that has a primary and no open
// operation, the weightiest first: the pooler is pointed where the nodes are, and
// a node that is down or does not follow is brought back. All of it is told,
// because what cannot be done now must not keep the rest from being done. It
// never moves the primary.
func NextActions(v View, id Identity, want func(View) Targets) []Action {
	leader, problem := Leader(v)
	if problem != nil || id.Primary != leader.Node.Name {
		return nil
	}
	var wanted []Action
	switch p := v.Pooler; {
	case p.Err == "" && p.Container.Running && !aligned(p, want(v)):
		wanted = append(wanted, Action{Kind: KindAlign, Reason: "the pooler's entries do not lead where the nodes are, or with other pools than configured"})
	case moving(leader):
		wanted = append(wanted, Action{Kind: KindAlign, Reason: leader.Node.Name + " runs with the settings of a move that was undone"})
	}
	for _, s := range v.Nodes {
		if why := rejoinReason(s, leader); why != "" {
			wanted = append(wanted, Action{Kind: KindRejoin, Node: s.Node.Name, Reason: why})
		}
	}
	return wanted
}

// rejoinReason says why a node is to be brought back; empty: it is in order, or
// its return is not for controld to begin.
func rejoinReason(s, leader NodeState) string {
	switch {
	case s.Node.Name == leader.Node.Name || !s.Container.Exists || s.Container.Paused || busy(s):
		return ""
	case forked(s, leader):
		return "" // a person decides what becomes of its data
	case s.Diverged() != "":
		return "its WAL is not that of " + leader.Node.Name + ": " + s.Diverged()
	case !follows(s, leader):
		return "it does not stream from " + leader.Node.Name
	}
	return leftOver(s, leader)
}

// forked: the node has whole data of a timeline that the leader never had. It
// was promoted past controld.
func forked(s, leader NodeState) bool { return usable(s) && s.Timeline() > leader.Timeline() }

// leftOver says what an operation has left on a standby that follows, because
// it was cut off or could not reach it while it was undone: a slot for the node
// that it follows, or settings that are not those of today. Empty: nothing.
func leftOver(s, leader NodeState) string {
	switch {
	case s.Server == nil:
		return ""
	case slices.ContainsFunc(s.Server.Slots, func(x Slot) bool { return x.Name == leader.Node.Slot() && !x.Active && !x.Logical }):
		return "its slot for " + leader.Node.Name + " keeps WAL for nobody"
	case moving(s):
		return "it runs with the settings of a move that was undone"
	case leader.Container.Address != "" && leader.Container.Address != s.Server.UpstreamAddress && !overridden(s, "primary_conninfo"):
		return "it does not know the present address of " + leader.Node.Name
	}
	return ""
}

// moving reports whether a server runs with the settings around a planned
// switch: nothing is archived, and autovacuum is off.
func moving(s NodeState) bool {
	return s.Server != nil && s.Server.Settings["autovacuum"] == "off" && !overridden(s, "autovacuum")
}

// overridden reports whether a person took the setting out of controld's hands,
// by ALTER SYSTEM.
func overridden(s NodeState, setting string) bool {
	return s.Server != nil && slices.Contains(s.Server.Overridden, setting)
}

// Followers are the nodes that stream from the leader.
func Followers(v View) (names []string) {
	leader, problem := Leader(v)
	if problem != nil {
		return nil
	}
	for _, s := range v.Nodes {
		if s.Node.Name != leader.Node.Name && follows(s, leader) {
			names = append(names, s.Node.Name)
		}
	}
	return names
}

// busy: its init is at work on an order, which an operation wrote. What one that
// was killed at work has reported last stands on the volume for ever.
func busy(s NodeState) bool { return s.Container.Running && s.Init.State == node.StateWorking }

// follows reports whether a node is a standby that streams from the leader what
// fits to what it has.
func follows(s, leader NodeState) bool {
	if s.Role() != RoleStandby || s.Server.Timeline != leader.Server.Timeline || s.Diverged() != "" {
		return false
	}
	return slices.ContainsFunc(leader.Server.Senders, func(x Sender) bool {
		return x.Application == s.Node.Name && x.State == "streaming"
	})
}

// aligned reports whether the pooler's entries lead where t says, with the pools
// that are configured.
func aligned(p PoolerState, t Targets) bool {
	for d := range p.Clients() {
		if d.Host != t.of(d.Name) {
			return false
		}
	}
	return len(p.Missing) == 0 && len(p.Resized) == 0
}

// Names of the pooler's entries beside the client databases.
const (
	ReadOnlySuffix = "_ro"
	ProbeEntry     = "controld_probe"
	consoleEntry   = "pgbouncer" // PgBouncer's own
)

// WantTargets says where the pooler's entries should lead: clients to the
// leader, their read-only twins to a standby that follows, or to the leader
// where there is none.
func WantTargets(v View) Targets {
	leader, problem := Leader(v)
	if problem != nil {
		return Targets{}
	}
	t := Targets{Primary: leader.Container.Address, Standby: leader.Container.Address}
	for _, s := range v.Nodes {
		if s.Node.Name != leader.Node.Name && follows(s, leader) && s.Container.Address != "" {
			t.Standby = s.Container.Address
			break
		}
	}
	return t
}
