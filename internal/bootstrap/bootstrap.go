// Package bootstrap makes a cluster have a primary: at controld's own start, and when a
// node is to be started.
package bootstrap

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/operation"
	"controld/internal/rejoin"
	"controld/internal/wal"
)

// bootDeadline bounds a start that may have to create the cluster or to redo
// much WAL.
const bootDeadline = 10 * time.Minute

// startState is what the steps of a start learn from each other.
type startState struct {
	Node     string       `json:"node"`
	InitDB   bool         `json:"initdb"`
	SystemID uint64       `json:"system_id"`
	Timeline wal.Timeline `json:"timeline"`
}

// Starts starts nodes.
type Starts struct {
	act        *actuator.Actuator
	operations *operation.Manager
	rejoins    *rejoin.Rejoins        // of nodes that are to follow
	stuck      atomic.Pointer[string] // why the start found no primary
}

// New registers the kinds of operation.
func New(act *actuator.Actuator, operations *operation.Manager, rejoins *rejoin.Rejoins) (*Starts, error) {
	ss := &Starts{act: act, operations: operations, rejoins: rejoins}
	for _, kind := range []string{cluster.KindStart, cluster.KindBootstrap} {
		if err := operations.Register(kind, ss.build); err != nil {
			return nil, err
		}
	}
	return ss, nil
}

// params are the journalled parameters of a start.
type params struct {
	Node   string `json:"node"`
	Method string `json:"method,omitempty"` // startAsStandby; empty: to lead
	InitDB bool   `json:"initdb,omitempty"`
}

func (ss *Starts) start(ctx context.Context, kind string, p params, r cluster.NodeRequest, by operation.Caller) (operation.Record, error) {
	encoded, err := json.Marshal(p)
	if err != nil {
		return operation.Record{}, fmt.Errorf("encode request: %w", err)
	}
	work, err := ss.work(p)
	if err != nil {
		return operation.Record{}, err
	}
	spec := operation.Spec{
		Kind: kind, Mode: p.Method, Reason: r.Reason, Caller: by, Params: encoded,
		Foreseen: map[string]any{"node": p.Node}, CancelRunning: r.CancelRunning,
	}
	return ss.operations.Start(ctx, spec, work)
}

func (ss *Starts) build(_ operation.Record, encoded json.RawMessage) (operation.Runnable, error) {
	var p params
	if err := json.Unmarshal(encoded, &p); err != nil {
		return nil, fmt.Errorf("parameters: %w", err)
	}
	return ss.work(p)
}

func (ss *Starts) work(p params) (operation.Runnable, error) {
	n, err := ss.act.Node(p.Node)
	if err != nil {
		return nil, err
	}
	if p.Method == startAsStandby {
		return ss.startStandbyWork(n), nil
	}
	return ss.startWork(n, p.InitDB), nil
}
