package operation

import "time"

// Claims is the table of what operations hold while they run, and of who gives
// way to whom. It is the one place where that is written down; docs/operations.md
// has it as a page.
//
// What only reads the primary's data, or writes to it as a client does, claims
// Primary, shared: it ends when another node leads. A rejoin does not touch what
// commits wait for: a dead synchronous standby is lifted while it is brought back.
var Claims = Table{
	{Kind: "bootstrap", Exclusive: []Resource{Cluster, Primary, Commit}, HoldsClients: true, Yields: upkeep},
	{Kind: "failover", Exclusive: []Resource{Cluster, Primary, Commit}, HoldsClients: true},
	{Kind: "failback", Exclusive: []Resource{Cluster, Primary, Commit}, HoldsClients: true},
	{Kind: "start", Exclusive: []Resource{Cluster, Primary, Commit}, HoldsClients: true, Yields: upkeep},
	{
		Kind: "rejoin", Exclusive: []Resource{Cluster}, Restartable: true, Yields: append(lost, upkeep...),
		CancelCosts: "the node stays as it is: one that was being copied is unusable until it is copied anew",
	},
	{
		Kind: "align", Exclusive: []Resource{Cluster}, HoldsClients: true, Yields: append(lost, upkeep...),
		CancelCosts: "the pooler's entries stay as they are until controld looks again",
	},
	{
		Kind: "provision", Exclusive: []Resource{Cluster}, Yields: append(lost, upkeep...),
		CancelCosts: "what this version needs in PostgreSQL is brought when controld looks again",
	},
	{
		Kind: "protect", Exclusive: []Resource{Commit}, Yields: append(lost, upkeep...),
		CancelCosts: "what commits wait for stays as it is until controld looks again",
	},
	{
		Kind: "repository", Exclusive: []Resource{Repository}, Shared: []Resource{Primary}, Restartable: true, Yields: moves,
		CancelCosts: "the repository is made when controld looks again",
	},
	{
		Kind: "backup", Exclusive: []Resource{Repository}, Shared: []Resource{Primary}, Restartable: true, Loose: true, Yields: moves,
		CancelCosts: "the backup is made again after it; of what it has copied only a full keeps anything",
	},
	{
		Kind: "archive", Exclusive: []Resource{Archive}, Restartable: true,
		CancelCosts: "what the archive lacks is pushed when controld looks again",
	},
	{ // A failover needs nothing of what it touches, and runs beside it.
		Kind: "expire", Exclusive: []Resource{Repository}, Restartable: true, Yields: removal,
		CancelCosts: "what has been removed stays removed; the rest goes when controld looks again, where it is not kept",
	},
	{Kind: KindCleanup, Modes: []string{"backup"}, Exclusive: []Resource{Repository}},
}

// moves: nobody waits for a backup who wants the primary elsewhere, or back.
var moves = []Yield{
	{To: "failover", How: AnswerCancel},
	{To: "failback", How: AnswerCancel},
	{To: "start", How: AnswerCancel},
	{To: "bootstrap", How: AnswerCancel},
}

// removal: it takes moments, so who wants to make a backup is not sent away for it.
var removal = []Yield{{To: "backup", How: AnswerWait, Within: time.Minute}}

// upkeep: nobody who asks for something can know that controld mends something
// just now, mostly within a second. What takes longer refuses the caller, as one
// of theirs would.
var upkeep = []Yield{{From: Person, Of: Daemon, How: AnswerWait, Within: 5 * time.Second}}

// lost: where the primary is gone this waits for what will not come, and clients
// wait for the failover. What a person asked for gives way only then, and not to
// a primary that is only to be killed. An init goes on with what it was ordered.
var lost = []Yield{
	{To: "failover", Mode: "emergency", Of: Daemon, How: AnswerCancel},
	{To: "failover", Mode: "emergency", When: PrimaryGone, How: AnswerCancel},
}
