package bootstrap

import (
	"context"
	"errors"
	"fmt"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/pgcontrol"
)

// self is who asks in the audit when nobody did.
var self = operation.Caller{Name: "controld", Kind: operation.Daemon}

// Begin sees to it that the cluster has a primary after controld's start, as
// DecideStart says. It returns false when nothing can be done without a person,
// or not yet; the health says why, and it is called again.
func (ss *Starts) Begin(ctx context.Context) (bool, error) {
	d, err := ss.decideStart(ctx)
	if err != nil {
		return false, err
	}
	ss.act.Log.Info("start decided", "start", d.Kind, "node", d.Lead, "reason", d.Reason)
	switch d.Kind {
	case cluster.StartNothing:
		ss.noteStart(d.Reason)
		return false, nil
	case cluster.StartRunning:
		if ss.act.Identity().Primary == d.Lead {
			ss.noteStart("")
			return true, nil
		}
	}
	p := params{Node: d.Lead, InitDB: d.Kind == cluster.StartFirst}
	rec, err := ss.start(ctx, cluster.KindBootstrap, p, cluster.NodeRequest{Reason: d.Reason}, self)
	if err != nil {
		ss.noteStart(err.Error())
		return false, fmt.Errorf("start %s: %w", d.Lead, err)
	}
	if rec, err = ss.operations.Wait(ctx, rec.ID); err != nil {
		return false, err
	}
	if rec.State != operation.Succeeded {
		if rec.Problem != nil { // none where controld stops meanwhile
			ss.noteStart(rec.Problem.Detail)
		}
		return false, nil
	}
	ss.noteStart("")
	return true, nil
}

// decideStart gathers what the rule needs from the volumes. A volume that
// cannot be read at all is an error: an unreadable node is no empty node.
func (ss *Starts) decideStart(ctx context.Context) (cluster.StartDecision, error) {
	v := ss.act.Look.LookAgain(ctx)
	facts := make([]cluster.StartFact, len(v.Nodes))
	for i, s := range v.Nodes {
		fact, err := ss.startFact(s)
		if err != nil {
			return cluster.StartDecision{}, fmt.Errorf("look at the volume of %s: %w", s.Node.Name, err)
		}
		facts[i] = fact
	}
	return cluster.DecideStart(ss.act.Identity(), facts, ss.act.Settings.Preferred), nil
}

func (ss *Starts) startFact(s cluster.NodeState) (fact cluster.StartFact, err error) {
	volumes := ss.act.Outside.Volumes
	empty, err := volumes.Empty(s.Node)
	if err != nil {
		return fact, err
	}
	if _, err := volumes.Control(s.Node); !empty && errors.Is(err, pgcontrol.ErrBroken) {
		return fact, err
	}
	signal, err := volumes.StandbySignal(s.Node)
	if err != nil {
		return fact, err
	}
	unfinished := s.Init.Unfinished == node.ActionInitDB
	return cluster.StartFact{NodeState: s, Empty: empty || unfinished, StandbySignal: signal}, nil
}

// noteStart keeps why the cluster has no primary yet, for the health.
func (ss *Starts) noteStart(why string) { ss.stuck.Store(&why) }

// Stuck is why the start found no primary; empty: it did, or has not been tried.
func (ss *Starts) Stuck() string {
	if why := ss.stuck.Load(); why != nil {
		return *why
	}
	return ""
}
