package upkeep

import (
	"context"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/operation"
)

// Protect sets or lifts what commits wait for; how is cluster.ProtectSet or
// cluster.ProtectLift.
func (u *Upkeep) Protect(ctx context.Context, how, reason string, by operation.Caller) (operation.Record, error) {
	spec := operation.Spec{Kind: cluster.KindProtect, Mode: how, Reason: reason, Caller: by}
	return u.start(ctx, spec, params{Method: how}, u.protectWork(how))
}

// A protection is one attempt to change what commits wait for.
type protection struct {
	act      *actuator.Actuator
	how      string
	sessions actuator.Sessions
}

// protectState is what the steps of a protect learn from each other.
type protectState struct {
	Leader  string `json:"leader"`
	Standby string `json:"standby"`
}

func (u *Upkeep) protectWork(how string) operation.Runnable {
	p := &protection{act: u.act, how: how, sessions: u.act.Sessions()}
	return operation.Work[protectState]{
		Prepare: p.prepare,
		Steps:   func(*protectState) []operation.Step[protectState] { return p.steps() },
		Result: func(s *protectState) map[string]any {
			return map[string]any{"primary": s.Leader, "standby": s.Standby}
		},
		Close: p.sessions.CloseAll,
	}
}

func (p *protection) steps() []operation.Step[protectState] {
	if p.how == cluster.ProtectLift {
		lift := operation.Within(actuator.SettingDeadline, p.lift)
		return []operation.Step[protectState]{{Name: "lift synchronous replication", Do: lift, Entry: true}}
	}
	// An emergency failover waits for the undoing, but not for long. Cut short, it has
	// left its note and the right file; supervision does the rest.
	undo := operation.Within(actuator.FrozenTimeout, p.lift)
	return []operation.Step[protectState]{{Name: "set synchronous replication", Do: p.set, Undo: undo, Entry: true}}
}

// prepare takes the observation from which it was decided that there is something to do.
func (p *protection) prepare(_ context.Context, s *protectState) (operation.Prepared, error) {
	v := p.act.Look.View()
	leader, problem := cluster.Leader(v)
	if problem != nil {
		return operation.Prepared{}, problem
	}
	s.Leader = leader.Node.Name
	if followers := cluster.Followers(v); len(followers) > 0 {
		s.Standby = followers[0]
	}
	if p.how == cluster.ProtectSet && s.Standby == "" {
		return operation.Prepared{}, operation.Refuse("not-streaming", nil, "no standby streams from %s", s.Leader)
	}
	return operation.Prepared{}, nil
}

func (p *protection) lift(ctx context.Context, s *protectState) error {
	leader, err := p.act.Node(s.Leader)
	if err != nil {
		return err
	}
	return p.act.Unprotect(ctx, &p.sessions, leader)
}

func (p *protection) set(ctx context.Context, s *protectState) error {
	leader, err := p.act.Node(s.Leader)
	if err != nil {
		return err
	}
	standby, err := p.act.Node(s.Standby)
	if err != nil {
		return err
	}
	return p.act.Protect(ctx, &p.sessions, leader, standby)
}
