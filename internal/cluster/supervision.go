package cluster

import (
	"slices"

	"controld/internal/node"
	"controld/internal/rights"
)

// An Action is what the supervision does by itself: one operation to start.
type Action struct {
	Kind   string // KindRejoin, KindAlign, KindProvision, KindProtect; empty: nothing
	Node   string // of a rejoin
	How    string // of a protect: ProtectSet, ProtectLift
	Reason string
}

// Wanted is how a cluster shall be.
type Wanted struct {
	Targets        func(View) Targets
	ArchiveCommand func(Node) string // of the node that leads
}

// NextActions says what to mend in a cluster that has a primary and no open
// operation, the weightiest first: the pooler is pointed where the nodes are, and
// a node that is down or does not follow is brought back. All of it is told,
// because what cannot be done now must not keep the rest from being done. It
// never moves the primary.
func NextActions(v View, id Identity, want Wanted) []Action {
	leader, problem := Leader(v)
	if problem != nil || id.Primary != leader.Node.Name {
		return nil
	}
	var wanted []Action
	align := func(why string) { wanted = append(wanted, Action{Kind: KindAlign, Reason: why}) }
	switch p := v.Pooler; {
	case p.Err == "" && p.Container.Running && !p.Aligned(want.Targets(v)):
		align("the pooler's entries do not lead where the nodes are, or with other pools than configured")
	case leader.Moving():
		align(leader.Node.Name + " runs with the settings of a move that was undone")
	case leader.ArchivesOtherwise(want.ArchiveCommand(leader.Node)):
		align(leader.Node.Name + " archives its WAL by another command than is set")
	}
	if !leader.Late && leader.Server.Rights < rights.Version {
		wanted = append(wanted, Action{Kind: KindProvision, Reason: "this version needs roles or rights that an earlier one did not make"})
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
	case s.Forked(leader):
		return "" // a person decides what becomes of its data
	case s.Diverged() != "":
		return "its WAL is not that of " + leader.Node.Name + ": " + s.Diverged()
	case !s.Follows(leader):
		return "it does not stream from " + leader.Node.Name
	}
	return s.LeftOver(leader)
}

// Forked reports whether the node has whole data of a timeline that the leader never
// had: it was promoted past controld.
func (s NodeState) Forked(leader NodeState) bool {
	return s.Usable() && s.Timeline() > leader.Timeline()
}

// LeftOver says what an operation has left on a standby that follows, because
// it was cut off or could not reach it while it was undone: a slot for the node
// that it follows, or settings that are not those of today. Empty: nothing.
func (s NodeState) LeftOver(leader NodeState) string {
	if s.Server == nil {
		return ""
	}
	unused := func(x Slot) bool { return x.Name == leader.Node.Slot() && !x.Active && !x.Logical }
	at := leader.Container.Address
	switch {
	case slices.ContainsFunc(s.Server.Slots, unused):
		return "its slot for " + leader.Node.Name + " keeps WAL for nobody"
	case s.ArchivesOtherwise(""):
		return "it would archive its WAL as soon as it is promoted"
	case s.Moving():
		return "it runs with the settings of a move that was undone"
	case at != "" && at != s.Server.UpstreamAddress && !s.Overrides("primary_conninfo"):
		return "it does not know the present address of " + leader.Node.Name
	}
	return ""
}

// Moving reports whether a server runs with the settings around a planned
// switch: nothing is archived, and autovacuum is off.
func (s NodeState) Moving() bool {
	return s.Server != nil && s.Server.Settings["autovacuum"] == "off" && !s.Overrides("autovacuum")
}

// ArchivesOtherwise reports whether a server that leads archives by another command than
// this one, which nobody but controld has set.
func (s NodeState) ArchivesOtherwise(command string) bool {
	return !s.Late && s.Server != nil && s.Server.Settings[ArchiveSetting] != command && !s.Overrides(ArchiveSetting)
}

// Overrides reports whether a person took the setting out of controld's hands,
// by ALTER SYSTEM.
func (s NodeState) Overrides(setting string) bool {
	return s.Server != nil && slices.Contains(s.Server.Overridden, setting)
}

// Followers are the nodes that stream from the leader.
func Followers(v View) (names []string) {
	leader, problem := Leader(v)
	if problem != nil {
		return nil
	}
	for _, s := range v.Nodes {
		if s.Node.Name != leader.Node.Name && s.Follows(leader) {
			names = append(names, s.Node.Name)
		}
	}
	return names
}

// busy: its init is at work on an order, which an operation wrote. The container
// has to run too: an init that was killed at work has left "working" on its volume.
func busy(s NodeState) bool { return s.Container.Running && s.Init.State == node.StateWorking }

// Follows reports whether the node is a standby that streams from the leader, on its
// timeline and with no WAL of its own.
func (s NodeState) Follows(leader NodeState) bool {
	if s.Role() != RoleStandby || s.Server.Timeline != leader.Server.Timeline || s.Diverged() != "" {
		return false
	}
	return slices.ContainsFunc(leader.Server.Senders, func(x Sender) bool {
		return x.Application == s.Node.Name && x.State == "streaming"
	})
}
