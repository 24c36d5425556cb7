package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"controld/internal/operation"
)

// KindProtect is the operation that sets or lifts what commits wait for, in
// replication mode sync.
const KindProtect = "protect"

// The modes of KindProtect.
const (
	protectSet  = "set"
	protectLift = "lift"
)

// NextProtection says what supervision has to do about synchronous replication.
// In mode sync: lift it when nobody has been in sync for the time of limit, set
// it when the standby follows. The other modes never change while controld
// runs; what an earlier mode left is brought into line. What a person set by
// ALTER SYSTEM stays as it is. blockedFor is how long commits have had nobody to
// wait for.
func NextProtection(v View, id Identity, mode ReplicationMode, blockedFor, limit time.Duration) Action {
	leader, problem := Leader(v)
	if problem != nil || leader.Node.Name != id.Primary {
		return Action{}
	}
	waits := commitsWait(leader)
	switch {
	case overridden(leader, synchronousNames):
		if mode != Async && !waits && !id.Unsynced { // a later failover must not take the standby for in sync
			return Action{Kind: KindProtect, How: protectLift, Reason: "ALTER SYSTEM lets commits wait for nobody, which is noted"}
		}
		return Action{}
	case mode == Async && waits:
		return Action{Kind: KindProtect, How: protectLift, Reason: "the replication mode is async now"}
	case mode == Async:
		return Action{}
	case mode == Sync && waits && !inSync(*leader.Server) && blockedFor >= limit:
		return Action{Kind: KindProtect, How: protectLift, Reason: fmt.Sprintf("no standby has been in sync for %s", blockedFor.Round(time.Millisecond))}
	case (!waits || id.Unsynced) && len(Followers(v)) > 0:
		return Action{Kind: KindProtect, How: protectSet, Reason: "a standby streams"}
	}
	return Action{}
}

// synchronousNames is PostgreSQL's setting of what commits wait for.
const synchronousNames = "synchronous_standby_names"

// commitsWait reports whether commits on the node wait for a synchronous standby.
func commitsWait(s NodeState) bool {
	return s.Server != nil && s.Server.Settings[synchronousNames] != ""
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
	if problem != nil || !commitsWait(leader) {
		return 0, false
	}
	for _, x := range leader.Server.Senders {
		if synchronous(x) {
			silent = max(silent, x.Silent)
		}
	}
	return silent, !inSync(*leader.Server)
}

func inSync(s Server) bool {
	return slices.ContainsFunc(s.Senders, func(x Sender) bool { return synchronous(x) && x.Silent < syncSilence })
}

func synchronous(x Sender) bool { return x.SyncState == "sync" || x.SyncState == "quorum" }

type protectState struct {
	Leader  string `json:"leader"`
	Standby string `json:"standby"`
}

// Protect sets or lifts what commits wait for; how is protectSet or protectLift.
func (m *Manager) Protect(ctx context.Context, how, reason string, by operation.Caller) (operation.Record, error) {
	params, err := json.Marshal(nodeRequest{Method: how})
	if err != nil {
		return operation.Record{}, fmt.Errorf("encode request: %w", err)
	}
	return m.operations.Start(ctx, operation.Spec{Kind: KindProtect, Mode: how, Reason: reason, Caller: by, Params: params}, m.protectWork(how))
}

func (m *Manager) protectWork(how string) operation.Runnable {
	sessions := sessionCache{servers: m.out.Servers}
	prepare := func(_ context.Context, s *protectState) (operation.Prepared, error) {
		v := m.View() // the observation that the decision was made from
		leader, problem := Leader(v)
		if problem != nil {
			return operation.Prepared{}, problem
		}
		s.Leader = leader.Node.Name
		if followers := Followers(v); len(followers) > 0 {
			s.Standby = followers[0]
		}
		if how == protectSet && s.Standby == "" {
			return operation.Prepared{}, operation.Refuse("not-streaming", nil, "no standby streams from %s", s.Leader)
		}
		return operation.Prepared{}, nil
	}
	lift := func(ctx context.Context, s *protectState) error {
		leader, err := m.node(s.Leader)
		if err != nil {
			return err
		}
		return m.unprotect(ctx, &sessions, leader)
	}
	set := func(ctx context.Context, s *protectState) error {
		leader, err := m.node(s.Leader)
		if err != nil {
			return err
		}
		standby, err := m.node(s.Standby)
		if err != nil {
			return err
		}
		return m.protect(ctx, &sessions, leader, standby)
	}
	return operation.Work[protectState]{
		Prepare: prepare,
		Steps: func(*protectState) []operation.Step[protectState] {
			if how == protectLift {
				return []operation.Step[protectState]{{Name: "lift synchronous replication", Do: within(settingDeadline, lift), Entry: true}}
			}
			// An emergency failover waits for the undoing, for giveWayDeadline. Cut
			// short, it has left its note and the right file; supervision does the rest.
			return []operation.Step[protectState]{{Name: "set synchronous replication", Do: set, Undo: within(frozenTimeout, lift), Entry: true}}
		},
		Result: func(s *protectState) map[string]any {
			return map[string]any{"primary": s.Leader, "standby": s.Standby}
		},
		Close: sessions.closeAll,
	}
}
