package api

import (
	"context"

	"controld/internal/cluster"
	"controld/internal/health"
	"controld/internal/operation"
)

// A Cluster is what the API needs of the cluster. Calls that start work return
// at once with the operation's record; Operations tells how it goes on. What a
// request must not say is an *cluster.InvalidField or *cluster.UnknownNode.
type Cluster interface {
	// View is the last observation. It never blocks.
	View() cluster.View
	// Health judges the last observation. It never blocks.
	Health() health.Report
	// Redis is what was last seen of it. It never blocks.
	Redis() health.Part
	// Describe is what the journal holds.
	Describe() cluster.Expectation
	// Failover starts one. A refused precheck returns the record, in state
	// refused, and a *operation.Problem.
	Failover(ctx context.Context, r cluster.FailoverRequest, by operation.Caller) (operation.Record, error)
	// Failback starts one. Where the preferred primary leads already it returns
	// a record that succeeded.
	Failback(ctx context.Context, r cluster.FailbackRequest, by operation.Caller) (operation.Record, error)
	StartNode(ctx context.Context, r cluster.NodeRequest, by operation.Caller) (operation.Record, error)
	Rejoin(ctx context.Context, r cluster.NodeRequest, by operation.Caller) (operation.Record, error)
	// Plan and PlanFailback are the dry runs: they change nothing.
	Plan(ctx context.Context, r cluster.FailoverRequest) (cluster.Plan, error)
	PlanFailback(ctx context.Context, r cluster.FailbackRequest) (cluster.Plan, error)
}

// Operations is what the API needs of the runner and its journal.
type Operations interface {
	// Get returns operation.ErrNotFound for an unknown id.
	Get(id string) (operation.Record, error)
	// List returns the newest first; next is the After of the following page,
	// empty on the last.
	List(filter operation.Filter) (recs []operation.Record, next string, err error)
	// Wait returns when the operation is no longer running, or with the
	// context's error.
	Wait(ctx context.Context, id string) (operation.Record, error)
	// Cancel returns operation.ErrEnded for one that has ended.
	Cancel(ctx context.Context, id string, by operation.Caller) (operation.Record, error)
	// Subscribe sends what changes from now on. The channel is closed by cancel
	// or when the runner stops.
	Subscribe(id string) (events <-chan operation.Event, cancel func())
}

// Tokens tells whose token it is. It compares in constant time.
type Tokens interface {
	Role(token string) (Role, bool)
}
