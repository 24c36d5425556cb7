package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"controld/internal/operation"
	"controld/internal/pgwal"
)

// maxPendingArchive segments are too many: PostgreSQL tries to archive them
// before it ends.
const maxPendingArchive = 128

func check(name string, ok bool, problem string, numbers map[string]any, format string, args ...any) operation.Check {
	return operation.Check{Name: name, OK: ok, Problem: "/problems/" + problem, Numbers: numbers, Detail: fmt.Sprintf(format, args...)}
}

// plannedChecks are the prechecks of a planned failover, from one fresh
// observation. All are made, so that a dry run shows every one.
func (m *Manager) plannedChecks(v View, from, to NodeState) []operation.Check {
	checks := []operation.Check{
		servesCheck(from),
		check("candidate-answers", to.Role() == RoleStandby, "no-candidate", nil, "%s: %s", to.Node.Name, roleOrWhy(to)),
	}
	if from.Role() != RolePrimary || to.Role() != RoleStandby {
		return checks
	}
	checks = append(checks, m.replicationChecks(from, to)...)
	checks = append(checks, m.sameWALCheck(to, from))
	checks = append(checks, m.roomCheck("candidate-has-disk-space", to.Node, m.set.MinFreeBytes, ""))
	return append(checks, m.primaryChecks(v, from)...)
}

// rejoinFirstChecks are what can be checked of a failback before its target is
// brought back: what would refuse it only after a copy of hours is said at once.
func (m *Manager) rejoinFirstChecks(v View, from NodeState) []operation.Check {
	serves := servesCheck(from)
	if !serves.OK {
		return []operation.Check{serves}
	}
	return append([]operation.Check{serves}, m.primaryChecks(v, from)...)
}

// servesCheck: one that answers nothing, while no fact says that it does not
// serve, may only be slow.
func servesCheck(from NodeState) operation.Check {
	problem := "no-primary"
	if from.Silent {
		problem = "primary-slow"
	}
	return check("primary-serves", from.Role() == RolePrimary, problem, nil, "%s: %s", from.Node.Name, roleOrWhy(from))
}

// primaryChecks are about the node that leads, and the pooler.
func (m *Manager) primaryChecks(v View, from NodeState) []operation.Check {
	return []operation.Check{
		// Two segments, and what its checkpoints write: PostgreSQL panics where one finds no room.
		m.roomCheck("primary-has-disk-space", from.Node, m.set.MinFreeBytes/8,
			", for without room its checkpoint would end it like a crash. Free some, or move away from it with mode emergency"),
		check("archive-is-not-behind", from.Server.ArchiveReady <= maxPendingArchive, "archive-behind",
			map[string]any{"pending_segments": from.Server.ArchiveReady, "limit_segments": maxPendingArchive}, "%d segments wait to be archived on %s; up to %d do not matter", from.Server.ArchiveReady, from.Node.Name, maxPendingArchive),
		check("no-prepared-transaction", from.Server.PreparedCount == 0, "prepared-transactions",
			map[string]any{"prepared_transactions": from.Server.PreparedCount}, "%d prepared transactions hold locks on %s and would hold them on the new primary; see pg_prepared_xacts, commit or roll them back", from.Server.PreparedCount, from.Node.Name),
		m.transactionCheck(from),
		check("no-base-backup", !from.Server.BackupRunning, "backup-running", nil, "%s", yesNo(from.Server.BackupRunning, "a base backup is being taken from "+from.Node.Name+" and would be lost; wait for it", "no base backup is being taken")),
		check("pooler-answers", v.Pooler.Err == "", "pooler-down", nil, "the pooler's console: %s", yesNo(v.Pooler.Err == "", "answers", v.Pooler.Err)),
	}
}

// roomCheck is about what is left on a node's volume. why is added to its words.
func (m *Manager) roomCheck(name string, n Node, needed int64, why string) operation.Check {
	free, _, err := m.out.Volumes.Space(n)
	return check(name, err == nil && free >= needed, "disk-space", map[string]any{"free_bytes": free, "needed_bytes": needed},
		"%d bytes are free on the volume of %s; %d are needed%s%s", free, n.Name, needed, why, suffix(err))
}

// replicationChecks are about the way from the primary to the candidate, and back.
func (m *Manager) replicationChecks(from, to NodeState) []operation.Check {
	lag := to.Server.Replayed.Behind(from.Server.Flushed)
	way := follows(to, from)
	overridden := overriddenSettings(from, to)
	return []operation.Check{
		check("candidate-is-whole", usable(to), "unfinished", nil, "%s", yesNo(usable(to), "its data is whole", fmt.Sprintf("an unfinished %s overwrote its data; rejoin it with method basebackup", to.Init.Unfinished))),
		check("candidate-streams", way, "not-streaming", nil, "%s", yesNo(way, to.Node.Name+" streams from "+from.Node.Name, to.Node.Name+" does not stream from "+from.Node.Name+"; see GET /health, then controld rejoin "+to.Node.Name)),
		check("same-timeline", to.Server.Timeline == from.Server.Timeline, "timeline",
			map[string]any{"primary_timeline": from.Server.Timeline, "candidate_timeline": to.Server.Timeline}, "%s is on timeline %d, %s on %d", from.Node.Name, from.Server.Timeline, to.Node.Name, to.Server.Timeline),
		check("same-cluster", to.Server.SystemID == from.Server.SystemID, "system-identifier", nil, "system identifiers %d and %d", from.Server.SystemID, to.Server.SystemID),
		check("replay-runs", !to.Server.ReplayPaused, "replay-paused", nil, "%s", yesNo(to.Server.ReplayPaused, "replay on "+to.Node.Name+" is paused; pg_wal_replay_resume() there ends it", "replay runs")),
		check("candidate-lag", lag <= m.set.MaxLagBytes, "lag", map[string]any{"lag_bytes": lag, "limit_bytes": m.set.MaxLagBytes}, "%s lags %d bytes; up to %d do not matter", to.Node.Name, lag, m.set.MaxLagBytes),
		check("reverse-replication", reverseRoom(from, to), "no-reverse-replication",
			map[string]any{"senders": to.Server.SenderCount, "max_senders": to.Server.MaxSenders, "slots": len(to.Server.Slots), "max_slots": to.Server.MaxSlots},
			"%s has %d of %d walsenders and %d of %d slots in use; %s needs one of each to follow it", to.Node.Name, to.Server.SenderCount, to.Server.MaxSenders, len(to.Server.Slots), to.Server.MaxSlots, from.Node.Name),
		check("settings-are-controlds", overridden == "", "settings-overridden", nil, "%s", yesNo(overridden == "", "no setting is overridden by ALTER SYSTEM", overridden)),
	}
}

// Bounds of the comparison before a failover. All of a node's WAL was compared
// before its server started, and what it has received since is a copy; this
// looks at the newest of it once more.
const (
	compareBytes    = 64 << 20
	compareDeadline = 10 * time.Second
)

// sameWALCheck: a candidate whose WAL is not the primary's would lose what that
// hides. Where nobody can tell, it is no candidate of a planned failover.
func (m *Manager) sameWALCheck(to, from NodeState) operation.Check {
	if why := to.Diverged(); why != "" {
		return divergedCheck(to, why)
	}
	c := m.compare(to.Node, from.Node)
	m.otherWAL.note(to.Node, c)
	switch c.Relation {
	case pgwal.Same:
		return check("same-wal", true, "diverged", map[string]any{"compared_bytes": c.Bytes}, "the WAL of %s is that of %s: the last %d bytes, up to %s, were compared", to.Node.Name, from.Node.Name, c.Bytes, c.End)
	case pgwal.Unknown:
		return check("same-wal", false, "wal-not-compared", nil, "whether the WAL of %s is that of %s cannot be told: %s. See that controld can read both data volumes; or copy it anew: controld rejoin %s --method basebackup", to.Node.Name, from.Node.Name, c.Why, to.Node.Name)
	}
	return divergedCheck(to, c.Why)
}

func divergedCheck(to NodeState, why string) operation.Check {
	return check("same-wal", false, "diverged", nil, "%s has other WAL than the primary: %s. Copy it anew: controld rejoin %s --method basebackup", to.Node.Name, why, to.Node.Name)
}

// compare holds the newest WAL of n against the leader's; what cannot be told is
// unknown.
func (m *Manager) compare(n, leader Node) pgwal.Comparison {
	ctx, cancel := context.WithTimeout(context.Background(), compareDeadline)
	defer cancel()
	c, err := m.out.Volumes.Compare(ctx, n, leader, compareBytes)
	if err != nil {
		return pgwal.Comparison{Relation: pgwal.Unknown, Why: err.Error()}
	}
	return c
}

// findings are the nodes whose WAL was found not to be the primary's, with how.
// They hold until the node is in order again; after a restart the next rejoin
// finds out anew.
type findings struct {
	mu  sync.Mutex
	why map[string]string
}

// note keeps what was found of n. What cannot be told changes nothing.
func (f *findings) note(n Node, c pgwal.Comparison) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch c.Relation {
	case pgwal.Diverged:
		if f.why == nil {
			f.why = map[string]string{}
		}
		f.why[n.Name] = c.Why
	case pgwal.Same:
		delete(f.why, n.Name)
	}
}

func (f *findings) of(n Node) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.why[n.Name]
}

func reverseRoom(from, to NodeState) bool {
	slot := slices.ContainsFunc(to.Server.Slots, func(s Slot) bool { return s.Name == from.Node.Slot() })
	return to.Server.SenderCount < to.Server.MaxSenders && (slot || len(to.Server.Slots) < to.Server.MaxSlots)
}

// overriddenSettings names settings that ALTER SYSTEM took out of controld's hands.
func overriddenSettings(states ...NodeState) string {
	var out []string
	for _, s := range states {
		for _, name := range s.Server.Overridden {
			out = append(out, fmt.Sprintf("ALTER SYSTEM sets %s on %s; ALTER SYSTEM RESET %s gives it back", name, s.Node.Name, name))
		}
	}
	return strings.Join(out, "; ")
}

// transactionCheck: a transaction that is older than PAUSE may wait will most
// likely outlast it.
func (m *Manager) transactionCheck(from NodeState) operation.Check {
	old := from.Server.OldestTransaction()
	if old == nil {
		return check("no-long-transaction", true, "long-transaction", nil, "no client holds a transaction open")
	}
	return check("no-long-transaction", old.Age <= m.set.PauseDeadline, "long-transaction", transactionNumbers(*old, m.set.PauseDeadline),
		"%s; up to %s do not matter", describeTransaction(*old), m.set.PauseDeadline)
}

func describeTransaction(t Transaction) string {
	return fmt.Sprintf("process %d of user %s (application %q, database %s, %s) holds a transaction open for %s",
		t.PID, t.User, t.Application, t.Database, t.State, t.Age.Round(time.Millisecond))
}

func transactionNumbers(t Transaction, limit time.Duration) map[string]any {
	return map[string]any{
		"pid": t.PID, "user": t.User, "application": t.Application, "age_ms": t.Age.Milliseconds(), "limit_ms": limit.Milliseconds(),
	}
}

func roleOrWhy(s NodeState) string {
	if s.Server == nil {
		return s.ServerErr
	}
	return string(s.Role())
}

func yesNo(ok bool, yes, no string) string {
	if ok {
		return yes
	}
	return no
}

func suffix(err error) string {
	if err == nil {
		return ""
	}
	return " (" + err.Error() + ")"
}
