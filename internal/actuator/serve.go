package actuator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/wait"
)

// EnsureRunning starts the node's container where it does not run, thaws
// nothing, and connects it to the cluster's network where it was cut off.
func (a *Actuator) EnsureRunning(ctx context.Context, n cluster.Node) error {
	ctx, cancel := context.WithTimeout(ctx, EngineDeadline)
	defer cancel()
	c, err := a.Outside.Engine.Inspect(ctx, n.Container)
	if err != nil {
		return err
	}
	if !c.Exists {
		return fmt.Errorf("container %s does not exist; make up creates it", n.Container)
	}
	if !c.Connected {
		if err := a.Outside.Engine.Connect(ctx, n.Container); err != nil {
			return err
		}
	}
	if c.Running {
		return nil
	}
	return a.Outside.Engine.Start(ctx, n.Container)
}

// Serve makes a node that is known to be the one primary lead again: a new
// order as primary, its container running, and a write that succeeds.
func (a *Actuator) Serve(ctx context.Context, sessions *Sessions, n cluster.Node) error {
	sessions.Drop(n)
	if _, err := a.Order(n, node.Order{Role: node.RolePrimary}); err != nil {
		return err
	}
	if err := a.EnsureRunning(ctx, n); err != nil {
		return err
	}
	return a.WaitServing(ctx, sessions, n)
}

// WaitServing waits until the node accepts a write.
func (a *Actuator) WaitServing(ctx context.Context, sessions *Sessions, n cluster.Node) error {
	var last error
	err := wait.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		if err := a.OrderFailed(n); err != nil {
			return false, err
		}
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		last = sessions.With(attempt, n, func(session cluster.Session) error { return session.WriteProbe(attempt) })
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("wait until %s serves: %w", n.Name, errors.Join(err, last))
	}
	return nil
}

// WaitStreaming waits until n streams from leader on its timeline.
func (a *Actuator) WaitStreaming(ctx context.Context, sessions *Sessions, n, leader cluster.Node) error {
	var last error
	err := wait.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		if err := a.OrderFailed(n); err != nil {
			return false, err
		}
		var ok bool
		ok, last = a.streams(ctx, sessions, n, leader)
		return ok && a.OrderCarriedOut(n), nil
	})
	if err != nil {
		return fmt.Errorf("wait until %s streams from %s: %w", n.Name, leader.Name, errors.Join(err, last))
	}
	return nil
}

// streams asks the leader alone until it has a walsender for n: logins to a
// server that is starting would only slow its start.
func (a *Actuator) streams(ctx context.Context, sessions *Sessions, n, leader cluster.Node) (bool, error) {
	var senders []cluster.Sender
	err := sessions.With(ctx, leader, func(session cluster.Session) (err error) {
		senders, err = session.Senders(ctx)
		return err
	})
	for _, s := range senders {
		if s.Application == n.Name && s.State == "streaming" {
			return true, nil
		}
	}
	return false, err
}

// AwaitAnswer waits until a node that was ordered to start says where it stands.
func (a *Actuator) AwaitAnswer(ctx context.Context, sessions *Sessions, n cluster.Node) (pos cluster.Position, err error) {
	if err := a.EnsureRunning(ctx, n); err != nil {
		return pos, err
	}
	err = wait.Poll(ctx, 100*time.Millisecond, func() (bool, error) {
		if err := a.OrderFailed(n); err != nil {
			return false, err
		}
		var asked error
		pos, asked = sessions.Position(ctx, n)
		return asked == nil, nil // it is starting
	})
	return pos, err
}
