package failover

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"controld/internal/cluster"
	"controld/internal/operation"
	"controld/internal/pgwal"
)

// maxPendingArchive segments are too many: PostgreSQL tries to archive them
// before it ends.
const maxPendingArchive = 128

// checks are the prechecks of the failover that was chosen. All are made, so that a dry
// run shows every one.
func (f *failover) checks(ctx context.Context, v cluster.View, s *state) []operation.Check {
	from, _ := v.Node(s.From)
	to, _ := v.Node(s.To)
	if s.RejoinFirst {
		return f.rejoinFirstChecks(v, from)
	}
	if s.Mode == cluster.ModeEmergency {
		return f.emergencyChecks(v, from, to, s)
	}
	checks := f.plannedChecks(v, from, to)
	if from.Role() == cluster.RolePrimary && to.Role() == cluster.RoleStandby {
		checks = append(checks, f.paceCheck(ctx, from, to))
	}
	return checks
}

// plannedChecks are the prechecks of a planned failover that can be made from one fresh
// observation and the volumes.
func (f *failover) plannedChecks(v cluster.View, from, to cluster.NodeState) []operation.Check {
	checks := []operation.Check{servesCheck(from), answersCheck(to)}
	if from.Role() != cluster.RolePrimary || to.Role() != cluster.RoleStandby {
		return checks
	}
	checks = append(checks, f.replicationChecks(from, to)...)
	checks = append(checks, f.sameWALCheck(to, from))
	checks = append(checks, f.roomCheck("candidate-has-disk-space", to.Node, f.act.Settings.MinFreeBytes, ""))
	return append(checks, f.primaryChecks(v, from)...)
}

// rejoinFirstChecks are what can be checked of a failback before its target is
// brought back: what would refuse it only after a copy of hours is said at once.
func (f *failover) rejoinFirstChecks(v cluster.View, from cluster.NodeState) []operation.Check {
	serves := servesCheck(from)
	if !serves.OK {
		return []operation.Check{serves}
	}
	return append([]operation.Check{serves}, f.primaryChecks(v, from)...)
}

// servesCheck is about the old primary. One that answers nothing, while no fact says
// that it does not serve, may only be slow.
func servesCheck(from cluster.NodeState) operation.Check {
	problem := "no-primary"
	if from.Silent {
		problem = "primary-slow"
	}
	serves := from.Role() == cluster.RolePrimary
	return operation.NewCheck("primary-serves", serves, problem, nil, "%s: %s", from.Node.Name, roleOrWhy(from))
}

func answersCheck(to cluster.NodeState) operation.Check {
	able := to.Role() == cluster.RoleStandby
	return operation.NewCheck("candidate-answers", able, "no-candidate", nil, "%s: %s", to.Node.Name, roleOrWhy(to))
}

// primaryChecks are about the node that leads, and the pooler.
func (f *failover) primaryChecks(v cluster.View, from cluster.NodeState) []operation.Check {
	name, p := from.Node.Name, from.Server
	archive := map[string]any{"pending_segments": p.ArchiveReady, "limit_segments": maxPendingArchive}
	prepared := map[string]any{"prepared_transactions": p.PreparedCount}
	pooler := operation.Either(v.Pooler.Err == "", "answers", v.Pooler.Err)
	return []operation.Check{
		// Two segments, and what its checkpoints write: PostgreSQL panics where one finds no room.
		f.roomCheck("primary-has-disk-space", from.Node, f.act.Settings.MinFreeBytes/8,
			", for without room its checkpoint would end it like a crash. Free some, or move away from it with mode emergency"),
		operation.NewCheck("archive-is-not-behind", p.ArchiveReady <= maxPendingArchive, "archive-behind", archive,
			"%d segments wait to be archived on %s; up to %d do not matter", p.ArchiveReady, name, maxPendingArchive),
		operation.NewCheck("no-prepared-transaction", p.PreparedCount == 0, "prepared-transactions", prepared,
			"%d prepared transactions hold locks on %s and would hold them on the new primary; "+
				"see pg_prepared_xacts, commit or roll them back", p.PreparedCount, name),
		f.transactionCheck(from),
		operation.EitherCheck("no-base-backup", !p.BackupRunning, "backup-running", "no base backup is being taken",
			"a base backup is being taken from "+name+" and would be lost; wait for it"),
		operation.NewCheck("pooler-answers", v.Pooler.Err == "", "pooler-down", nil, "the pooler's console: %s", pooler),
	}
}

// roomCheck is about what is left on a node's volume. why is added to its words.
func (f *failover) roomCheck(name string, n cluster.Node, needed int64, why string) operation.Check {
	free, _, err := f.act.Outside.Volumes.Space(n)
	numbers := map[string]any{"free_bytes": free, "needed_bytes": needed}
	return operation.NewCheck(name, err == nil && free >= needed, "disk-space", numbers,
		"%d bytes are free on the volume of %s; %d are needed%s%s", free, n.Name, needed, why, suffix(err))
}

// replicationChecks are about the way from the primary to the candidate, and back.
func (f *failover) replicationChecks(from, to cluster.NodeState) []operation.Check {
	old, next := from.Node.Name, to.Node.Name
	p, c := from.Server, to.Server
	timelines := map[string]any{"primary_timeline": p.Timeline, "candidate_timeline": c.Timeline}
	lag, maxLag := c.Replayed.Behind(p.Flushed), f.act.Settings.MaxLagBytes
	lags := map[string]any{"lag_bytes": lag, "limit_bytes": maxLag}
	overridden := overriddenSettings(from, to)
	return []operation.Check{
		operation.EitherCheck("candidate-is-whole", to.Usable(), "unfinished", "its data is whole",
			fmt.Sprintf("an unfinished %s overwrote its data; rejoin it with method basebackup", to.Init.Unfinished)),
		operation.EitherCheck("candidate-streams", to.Follows(from), "not-streaming", next+" streams from "+old,
			next+" does not stream from "+old+"; see GET /health, then controld rejoin "+next),
		operation.NewCheck("same-timeline", c.Timeline == p.Timeline, "timeline", timelines,
			"%s is on timeline %d, %s on %d", old, p.Timeline, next, c.Timeline),
		operation.NewCheck("same-cluster", c.SystemID == p.SystemID, "system-identifier", nil,
			"system identifiers %d and %d", p.SystemID, c.SystemID),
		operation.EitherCheck("replay-runs", !c.ReplayPaused, "replay-paused", "replay runs",
			"replay on "+next+" is paused; pg_wal_replay_resume() there ends it"),
		operation.NewCheck("candidate-lag", lag <= maxLag, "lag", lags,
			"%s lags %d bytes; up to %d do not matter", next, lag, maxLag),
		reverseCheck(from, to),
		operation.EitherCheck("settings-are-controlds", overridden == "", "settings-overridden",
			"no setting is overridden by ALTER SYSTEM", overridden),
	}
}

// reverseCheck is about the way back: the old primary needs a walsender and a slot of
// the candidate's to follow it. It may have the slot already.
func reverseCheck(from, to cluster.NodeState) operation.Check {
	c := to.Server
	hasSlot := slices.ContainsFunc(c.Slots, func(s cluster.Slot) bool { return s.Name == from.Node.Slot() })
	room := c.SenderCount < c.MaxSenders && (hasSlot || len(c.Slots) < c.MaxSlots)
	numbers := map[string]any{
		"senders": c.SenderCount, "max_senders": c.MaxSenders, "slots": len(c.Slots), "max_slots": c.MaxSlots,
	}
	return operation.NewCheck("reverse-replication", room, "no-reverse-replication", numbers,
		"%s has %d of %d walsenders and %d of %d slots in use; %s needs one of each to follow it",
		to.Node.Name, c.SenderCount, c.MaxSenders, len(c.Slots), c.MaxSlots, from.Node.Name)
}

// sameWALCheck refuses a candidate that has other WAL than the primary: what the
// primary wrote instead would be lost. Where that cannot be told it is refused too.
func (f *failover) sameWALCheck(to, from cluster.NodeState) operation.Check {
	if why := to.Diverged(); why != "" {
		return divergedCheck(to, why)
	}
	old, next := from.Node.Name, to.Node.Name
	c := f.act.Compare(to.Node, from.Node)
	f.act.Look.NoteWAL(to.Node, c)
	switch c.Relation {
	case pgwal.Same:
		return operation.NewCheck("same-wal", true, "diverged", map[string]any{"compared_bytes": c.Bytes},
			"the WAL of %s is that of %s: the last %d bytes, up to %s, were compared", next, old, c.Bytes, c.End)
	case pgwal.Unknown:
		return operation.NewCheck("same-wal", false, "wal-not-compared", nil,
			"whether the WAL of %[1]s is that of %[2]s cannot be told: %[3]s. "+
				"See that controld can read both data volumes; or copy it anew: controld rejoin %[1]s --method basebackup",
			next, old, c.Why)
	}
	return divergedCheck(to, c.Why)
}

func divergedCheck(to cluster.NodeState, why string) operation.Check {
	return operation.NewCheck("same-wal", false, "diverged", nil,
		"%[1]s has other WAL than the primary: %[2]s. Copy it anew: controld rejoin %[1]s --method basebackup", to.Node.Name, why)
}

// overriddenSettings names settings that ALTER SYSTEM took out of controld's hands.
func overriddenSettings(states ...cluster.NodeState) string {
	var out []string
	for _, s := range states {
		for _, name := range s.Server.Overridden {
			out = append(out, fmt.Sprintf("ALTER SYSTEM sets %s on %s; ALTER SYSTEM RESET %s gives it back", name, s.Node.Name, name))
		}
	}
	return strings.Join(out, "; ")
}

// transactionCheck is about the oldest open transaction of a client: one that is older
// than PAUSE may wait will most likely outlast it.
func (f *failover) transactionCheck(from cluster.NodeState) operation.Check {
	const name, problem = "no-long-transaction", "long-transaction"
	old, limit := from.Server.OldestTransaction(), f.act.Settings.PauseDeadline
	if old == nil {
		return operation.NewCheck(name, true, problem, nil, "no client holds a transaction open")
	}
	return operation.NewCheck(name, old.Age <= limit, problem, transactionNumbers(*old, limit),
		"%s; up to %s do not matter", describeTransaction(*old), limit)
}

func describeTransaction(t cluster.Transaction) string {
	return fmt.Sprintf("process %d of user %s (application %q, database %s, %s) holds a transaction open for %s",
		t.PID, t.User, t.Application, t.Database, t.State, t.Age.Round(time.Millisecond))
}

func transactionNumbers(t cluster.Transaction, limit time.Duration) map[string]any {
	return map[string]any{
		"pid": t.PID, "user": t.User, "application": t.Application, "age_ms": t.Age.Milliseconds(), "limit_ms": limit.Milliseconds(),
	}
}

// roleOrWhy is the node's role, or why its server does not answer.
func roleOrWhy(s cluster.NodeState) string {
	if s.Server == nil {
		return s.ServerErr
	}
	return string(s.Role())
}

func suffix(err error) string {
	if err == nil {
		return ""
	}
	return " (" + err.Error() + ")"
}
