package cluster

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// NextProtection says what supervision has to do about synchronous replication.
// In mode sync it is lifted when nobody has been in sync for the time of limit, and
// set when the standby follows. The other modes never change while controld runs;
// what an earlier mode left is brought into line. What a person set by ALTER SYSTEM
// stays as it is. blockedFor is how long commits have had nobody to wait for.
func NextProtection(v View, id Identity, mode ReplicationMode, blockedFor, limit time.Duration) Action {
	leader, problem := Leader(v)
	if problem != nil || leader.Node.Name != id.Primary {
		return Action{}
	}
	protect := func(how, why string) Action { return Action{Kind: KindProtect, How: how, Reason: why} }
	waits := leader.CommitsWait()
	switch {
	case leader.Overrides(SynchronousSetting):
		if mode != Async && !waits && !id.Unsynced { // a later failover must not take the standby for in sync
			return protect(ProtectLift, "ALTER SYSTEM lets commits wait for nobody, which is noted")
		}
		return Action{}
	case mode == Async && waits:
		return protect(ProtectLift, "the replication mode is async now")
	case mode == Async:
		return Action{}
	case mode == Sync && waits && !leader.Server.InSync() && blockedFor >= limit:
		return protect(ProtectLift, fmt.Sprintf("no standby has been in sync for %s", blockedFor.Round(time.Millisecond)))
	case (!waits || id.Unsynced) && len(Followers(v)) > 0:
		return protect(ProtectSet, "a standby streams")
	}
	return Action{}
}

// ArchiveSetting is PostgreSQL's setting of how WAL is archived.
const ArchiveSetting = "archive_command"

// SynchronousSetting is PostgreSQL's setting of what commits wait for.
const SynchronousSetting = "synchronous_standby_names"

// CommitsWait reports whether commits on the node wait for a synchronous standby.
func (s NodeState) CommitsWait() bool {
	return s.Server != nil && s.Server.Settings[SynchronousSetting] != ""
}

// syncSilence is how long a standby in sync may say nothing. It reports once a
// second (wal_receiver_status_interval). The walsender of a frozen one stays,
// and counts as in sync, until wal_sender_timeout, while every commit waits.
const syncSilence = 3 * time.Second

// CommitsBlocked reports whether commits wait for a standby that is not there,
// and for how long nothing has been heard of the one that they wait for, where
// there is one. The wall clocks of the nodes say that: it is wrong when they step.
func CommitsBlocked(v View) (silent time.Duration, blocked bool) {
	leader, problem := Leader(v)
	if problem != nil || !leader.CommitsWait() {
		return 0, false
	}
	for _, x := range leader.Server.Senders {
		if synchronous(x) {
			silent = max(silent, x.Silent)
		}
	}
	return silent, !leader.Server.InSync()
}

// InSync reports whether a standby that commits wait for is there.
func (s Server) InSync() bool {
	return slices.ContainsFunc(s.Senders, func(x Sender) bool { return synchronous(x) && x.Silent < syncSilence })
}

func synchronous(x Sender) bool { return x.SyncState == "sync" || x.SyncState == "quorum" }

// SynchronousNames is the value of synchronous_standby_names for these nodes:
// the first of them that streams; empty for none.
func SynchronousNames(names []string) string {
	if len(names) == 0 {
		return ""
	}
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = `"` + n + `"`
	}
	return "FIRST 1 (" + strings.Join(quoted, ", ") + ")"
}
