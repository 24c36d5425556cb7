package bootstrap

import (
	"context"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/operation"
)

// startStandbyWork brings a standby up where no node leads: then it can be asked
// where it is, and a failover can make it lead.
func (ss *Starts) startStandbyWork(n cluster.Node) operation.Runnable {
	sessions := ss.act.Sessions()
	prepare := func(ctx context.Context, s *startState) (operation.Prepared, error) {
		v := ss.act.Look.Fresh(ctx)
		*s = startState{Node: n.Name}
		state, _ := v.Node(n.Name)
		if state.Role() == cluster.RoleStandby {
			already := n.Name + " runs as a standby; to make it lead: controld failover --mode emergency --target " + n.Name
			return operation.Prepared{Already: already}, nil
		}
		checks := []operation.Check{
			containerCheck(state),
			operation.NewCheck("data-is-whole", state.Usable(), "unfinished", nil, "%s: %s", n.Name, state.Wholeness()),
		}
		return operation.Prepared{Checks: checks}, operation.Refusal(checks)
	}
	start := func(ctx context.Context, s *startState) error {
		ctx, cancel := context.WithTimeout(ctx, bootDeadline)
		defer cancel()
		upstream, err := ss.act.Node(ss.act.Identity().Primary)
		if err != nil {
			return err
		}
		if err := ss.act.Outside.Volumes.WriteSettings(n, ss.act.StandbySettings(ctx, n, upstream)); err != nil {
			return err
		}
		if _, err := ss.act.OrderToFollow(n, upstream, node.Order{}); err != nil {
			return err
		}
		pos, err := ss.act.AwaitAnswer(ctx, &sessions, n)
		s.Timeline = pos.Timeline
		return err
	}
	return operation.Work[startState]{
		Prepare: prepare,
		Steps: func(*startState) []operation.Step[startState] {
			return []operation.Step[startState]{{Name: "start standby", Do: start, Entry: true}}
		},
		Forward: true,
		Result:  func(s *startState) map[string]any { return map[string]any{"node": s.Node, "timeline": s.Timeline} },
		Close:   func() { sessions.CloseAll(); ss.act.Look.LookAgain(context.Background()) },
	}
}
