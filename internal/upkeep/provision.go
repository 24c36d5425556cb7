package upkeep

import (
	"context"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/operation"
)

type provisionState struct {
	Leader string `json:"leader"`
}

// Provision starts bringing what this version needs in PostgreSQL.
func (u *Upkeep) Provision(ctx context.Context, reason string, by operation.Caller) (operation.Record, error) {
	return u.start(ctx, operation.Spec{Kind: cluster.KindProvision, Reason: reason, Caller: by}, params{}, u.provisionWork())
}

func (u *Upkeep) provisionWork() operation.Runnable {
	sessions := u.act.Sessions()
	return operation.Work[provisionState]{
		Prepare: func(_ context.Context, s *provisionState) (operation.Prepared, error) {
			leader, problem := cluster.Leader(u.act.Look.View()) // from which that was decided
			if problem != nil {
				return operation.Prepared{}, problem
			}
			s.Leader = leader.Node.Name
			return operation.Prepared{}, nil
		},
		Steps: func(*provisionState) []operation.Step[provisionState] {
			provision := func(ctx context.Context, s *provisionState) error {
				leader, err := u.act.Node(s.Leader)
				if err != nil {
					return err
				}
				return u.act.Provision(ctx, &sessions, leader)
			}
			// There is nothing to undo: what was made does no harm.
			return []operation.Step[provisionState]{
				{Name: "provision", Do: operation.Within(actuator.EngineDeadline, provision), Entry: true},
			}
		},
		Result: func(s *provisionState) map[string]any { return map[string]any{"primary": s.Leader} },
		Close:  func() { sessions.CloseAll(); u.act.Look.LookAgain(context.Background()) },
	}
}
