package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/pgcontrol"
)

// self is who asks in the audit when nobody did.
var self = operation.Caller{Name: "controld", Kind: operation.Daemon}

// Begin sees to it that the cluster has a primary after controld's start, as
// DecideStart says. It returns false when nothing can be done without a person,
// or not yet; the health says why, and it is called again.
func (m *Manager) Begin(ctx context.Context) (bool, error) {
	d, err := m.decideStart(ctx)
	if err != nil {
		return false, err
	}
	m.log.Info("start decided", "start", d.Kind, "node", d.Lead, "reason", d.Reason)
	switch d.Kind {
	case StartNothing:
		m.noteStart(d.Reason)
		return false, nil
	case StartRunning:
		if m.Identity().Primary == d.Lead {
			m.noteStart("")
			return true, nil
		}
	}
	rec, err := m.bootstrap(ctx, nodeRequest{Node: d.Lead, InitDB: d.Kind == StartFirst}, d.Reason)
	if err != nil {
		m.noteStart(err.Error())
		return false, fmt.Errorf("start %s: %w", d.Lead, err)
	}
	if rec, err = m.operations.Wait(ctx, rec.ID); err != nil {
		return false, err
	}
	if rec.State != operation.Succeeded {
		if rec.Problem != nil { // none where controld stops meanwhile
			m.noteStart(rec.Problem.Detail)
		}
		return false, nil
	}
	m.noteStart("")
	return true, nil
}

func (m *Manager) bootstrap(ctx context.Context, r nodeRequest, reason string) (operation.Record, error) {
	params, err := json.Marshal(r)
	if err != nil {
		return operation.Record{}, fmt.Errorf("encode request: %w", err)
	}
	n, err := m.node(r.Node)
	if err != nil {
		return operation.Record{}, err
	}
	spec := operation.Spec{Kind: KindBootstrap, Reason: reason, Caller: self, Params: params}
	return m.operations.Start(ctx, spec, m.startWork(n, r.InitDB))
}

// decideStart gathers what the rule needs from the volumes. A volume that
// cannot be read at all is an error: an unreadable node is no empty node.
func (m *Manager) decideStart(ctx context.Context) (StartDecision, error) {
	v := m.lookAgain(ctx)
	facts := make([]StartFact, len(v.Nodes))
	for i, s := range v.Nodes {
		empty, err := m.out.Volumes.Empty(s.Node)
		if err != nil {
			return StartDecision{}, fmt.Errorf("look at the volume of %s: %w", s.Node.Name, err)
		}
		if _, err := m.out.Volumes.Control(s.Node); !empty && errors.Is(err, pgcontrol.ErrBroken) {
			return StartDecision{}, fmt.Errorf("look at the volume of %s: %w", s.Node.Name, err)
		}
		signal, err := m.out.Volumes.StandbySignal(s.Node)
		if err != nil {
			return StartDecision{}, fmt.Errorf("look at the volume of %s: %w", s.Node.Name, err)
		}
		facts[i] = StartFact{NodeState: s, Empty: empty || s.Init.Unfinished == node.ActionInitDB, StandbySignal: signal}
	}
	return DecideStart(m.Identity(), facts, m.set.Preferred), nil
}

// noteStart keeps why the cluster has no primary yet, for the health.
func (m *Manager) noteStart(why string) { m.stuck.Store(&why) }
