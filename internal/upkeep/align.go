package upkeep

import (
	"context"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/operation"
)

// Align starts pointing the pooler where the nodes are.
func (u *Upkeep) Align(ctx context.Context, reason string, by operation.Caller) (operation.Record, error) {
	return u.start(ctx, operation.Spec{Kind: cluster.KindAlign, Reason: reason, Caller: by}, params{}, u.alignWork())
}

// alignState is what the steps of an align learn from each other.
type alignState struct {
	Targets cluster.Targets `json:"targets"`
	Primary string          `json:"primary,omitempty"` // whose settings are others than are set; empty: they are in order
	Synced  bool            `json:"synced,omitempty"`  // it waits for a synchronous standby
}

// alignWork points the pooler where the nodes are, from a fresh observation, and
// gives the primary the settings that it should have: the undoing of a move may not have
// reached it, or how WAL is archived was decided anew.
func (u *Upkeep) alignWork() operation.Runnable {
	return operation.Work[alignState]{
		Prepare: u.prepareAlign,
		Steps: func(*alignState) []operation.Step[alignState] {
			return []operation.Step[alignState]{
				{Name: "point pooler", Do: u.pointPooler, Entry: true, HoldsClients: true},
				{Name: "restore settings", Do: operation.Within(actuator.SettingDeadline, u.restorePrimary)},
			}
		},
		Forward: true,
		Result: func(s *alignState) map[string]any {
			return map[string]any{"primary": s.Targets.Primary, "standby": s.Targets.Standby}
		},
	}
}

func (u *Upkeep) prepareAlign(ctx context.Context, s *alignState) (operation.Prepared, error) {
	v := u.act.Look.Fresh(ctx)
	leader, problem := cluster.Leader(v)
	if problem != nil {
		return operation.Prepared{}, problem
	}
	s.Targets = cluster.WantTargets(v)
	if leader.Moving() || leader.ArchivesOtherwise(u.act.Settings.ArchiveCommand(leader.Node)) {
		s.Primary, s.Synced = leader.Node.Name, leader.CommitsWait()
	}
	if v.Pooler.Aligned(s.Targets) && v.Pooler.Err == "" && s.Primary == "" {
		return operation.Prepared{Already: "the pooler's entries lead where the nodes are"}, nil
	}
	return operation.Prepared{}, nil
}

func (u *Upkeep) pointPooler(ctx context.Context, s *alignState) error {
	return u.act.Align(ctx, s.Targets)
}

func (u *Upkeep) restorePrimary(ctx context.Context, s *alignState) error {
	if s.Primary == "" {
		return nil
	}
	n, err := u.act.Node(s.Primary)
	if err != nil {
		return err
	}
	sessions := u.act.Sessions()
	defer sessions.CloseAll()
	return u.act.ApplySettings(ctx, &sessions, n, u.act.PrimarySettings(n, s.Synced))
}
