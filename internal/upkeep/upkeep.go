// Package upkeep holds the short operations by which controld keeps in order what it
// finds not to be: where the pooler leads, what commits wait for, and what this version
// needs in PostgreSQL.
package upkeep

import (
	"context"
	"encoding/json"
	"fmt"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/operation"
)

// Upkeep starts these operations.
type Upkeep struct {
	act        *actuator.Actuator
	operations *operation.Manager
}

// New registers the kinds of operation.
func New(act *actuator.Actuator, operations *operation.Manager) (*Upkeep, error) {
	u := &Upkeep{act: act, operations: operations}
	for _, kind := range []string{cluster.KindAlign, cluster.KindProvision, cluster.KindProtect} {
		if err := operations.Register(kind, u.build); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// params are the journalled parameters.
type params struct {
	Method string `json:"method,omitempty"` // of a protect: set or lift
}

func (u *Upkeep) start(ctx context.Context, spec operation.Spec, p params, work operation.Runnable) (operation.Record, error) {
	encoded, err := json.Marshal(p)
	if err != nil {
		return operation.Record{}, fmt.Errorf("encode request: %w", err)
	}
	spec.Params = encoded
	return u.operations.Start(ctx, spec, work)
}

func (u *Upkeep) build(rec operation.Record, encoded json.RawMessage) (operation.Runnable, error) {
	var p params
	if err := json.Unmarshal(encoded, &p); err != nil {
		return nil, fmt.Errorf("parameters: %w", err)
	}
	switch rec.Kind {
	case cluster.KindAlign:
		return u.alignWork(), nil
	case cluster.KindProvision:
		return u.provisionWork(), nil
	}
	return u.protectWork(p.Method), nil
}
