// Package rejoin makes a node follow the primary again, by the first of three rungs that
// holds: on the data it has, by pg_rewind, by a base backup.
package rejoin

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/operation"
)

// Rejoins starts rejoins.
type Rejoins struct {
	act        *actuator.Actuator
	operations *operation.Manager
}

// New registers the kind of operation.
func New(act *actuator.Actuator, operations *operation.Manager) (*Rejoins, error) {
	rs := &Rejoins{act: act, operations: operations}
	return rs, operations.Register(cluster.KindRejoin, rs.build)
}

// params are the journalled parameters of a rejoin.
type params struct {
	Node   string `json:"node"`
	Method string `json:"method,omitempty"`
	// Asked: a person asked for it, and knows what is overwritten.
	Asked bool `json:"asked,omitempty"`
}

// Rejoin makes a node follow the primary by the first rung that holds. Where it
// follows already the record says so.
func (rs *Rejoins) Rejoin(ctx context.Context, r cluster.NodeRequest, by operation.Caller) (operation.Record, error) {
	if err := r.Validate(rs.act.Settings.Nodes); err != nil {
		return operation.Record{}, err
	}
	method := cmp.Or(r.Method, cluster.MethodAuto)
	return rs.start(ctx, params{Node: r.Node, Method: method, Asked: by.Kind != operation.Daemon}, r, by)
}

// BringBack is a rejoin that nobody asked for by name: a start of a node that is to
// follow. It overwrites nothing that forked off.
func (rs *Rejoins) BringBack(ctx context.Context, r cluster.NodeRequest, by operation.Caller) (operation.Record, error) {
	return rs.start(ctx, params{Node: r.Node}, r, by)
}

func (rs *Rejoins) start(ctx context.Context, p params, r cluster.NodeRequest, by operation.Caller) (operation.Record, error) {
	encoded, err := json.Marshal(p)
	if err != nil {
		return operation.Record{}, fmt.Errorf("encode request: %w", err)
	}
	work, err := rs.work(p)
	if err != nil {
		return operation.Record{}, err
	}
	spec := operation.Spec{
		Kind: cluster.KindRejoin, Mode: p.Method, Reason: r.Reason, Caller: by, Params: encoded, Follows: rs.followed(p.Node),
		Foreseen: map[string]any{"node": p.Node}, CancelRunning: r.CancelRunning,
	}
	return rs.operations.Start(ctx, spec, work)
}

// followed is the failover that left the node to be rejoined, if that was the
// last thing that happened.
func (rs *Rejoins) followed(name string) string {
	for _, k := range []string{cluster.KindFailover, cluster.KindFailback} {
		recs, _, err := rs.operations.List(operation.Filter{Kind: k, State: operation.Succeeded, Limit: 1})
		if err != nil || len(recs) != 1 || recs[0].FollowedBy != "" {
			continue
		}
		if recs[0].Result["from"] == name && recs[0].Result["rejoined"] == false {
			return recs[0].ID
		}
	}
	return ""
}

func (rs *Rejoins) build(_ operation.Record, encoded json.RawMessage) (operation.Runnable, error) {
	var p params
	if err := json.Unmarshal(encoded, &p); err != nil {
		return nil, fmt.Errorf("parameters: %w", err)
	}
	return rs.work(p)
}

func (rs *Rejoins) work(p params) (operation.Runnable, error) {
	n, err := rs.act.Node(p.Node)
	if err != nil {
		return nil, err
	}
	r := NewLadder(rs.act, n)
	r.method, r.asked = p.Method, p.Asked
	return operation.Work[State]{
		Prepare: r.Prepare,
		Steps:   func(*State) []operation.Step[State] { return r.Steps() },
		Forward: true,
		Result: func(s *State) map[string]any {
			return map[string]any{"node": s.Node, "primary": s.Leader, "method": s.Rung}
		},
		Close: func() { r.Close(); rs.act.Look.LookAgain(context.Background()) },
	}, nil
}
