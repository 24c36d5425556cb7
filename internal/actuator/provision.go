package actuator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/rights"
	"controld/internal/wait"
)

// Provision brings what this version needs in PostgreSQL to the node that leads, and
// looks whether it is there. Nothing is restarted.
func (a *Actuator) Provision(ctx context.Context, sessions *Sessions, leader cluster.Node) error {
	if err := a.provision(ctx, sessions, leader); err != nil {
		return err
	}
	var server cluster.Server
	err := sessions.With(ctx, leader, func(session cluster.Session) (err error) {
		server, err = session.Observe(ctx)
		return err
	})
	if err == nil && server.Rights < rights.Version {
		err = fmt.Errorf("%s has run what was to be run, and database postgres does not show version %d of it",
			leader.Name, rights.Version)
	}
	return err
}

// provision goes by an order where the node's init knows that, else as the superuser over
// the node's own socket.
func (a *Actuator) provision(ctx context.Context, sessions *Sessions, leader cluster.Node) error {
	var databases []string
	err := sessions.With(ctx, leader, func(session cluster.Session) (err error) {
		databases, err = session.Databases(ctx)
		return err
	})
	if err != nil {
		return err
	}
	batches, err := rights.Batches(a.Settings.Secret, databases...)
	if err != nil {
		return err
	}
	status, err := a.Outside.Volumes.Status(leader)
	if err != nil {
		return err
	}
	if status.Knows(node.ActionProvision) {
		return a.orderProvision(ctx, leader, batches)
	}
	for _, b := range batches {
		if err := a.superuser(ctx, leader, b); err != nil {
			return err
		}
	}
	return nil
}

// orderProvision leaves the node with an order to lead, as it had before.
func (a *Actuator) orderProvision(ctx context.Context, leader cluster.Node, batches []node.Batch) error {
	o, err := a.Order(leader, node.Order{Role: node.RolePrimary, Action: node.ActionProvision, Provision: batches})
	if err != nil {
		return err
	}
	if err := a.ChangeIdentity(func(id *cluster.Identity) { id.Epoch = o.Epoch }); err != nil {
		return err
	}
	err = wait.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		s, err := a.Outside.Volumes.Status(leader)
		if err != nil || s.Provisioned == nil || s.Provisioned.Epoch < o.Epoch {
			return false, err
		}
		if s.Provisioned.Error != "" {
			return false, errors.New(s.Provisioned.Error)
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("provision of %s by its init: %w", leader.Name, err)
	}
	return nil
}

// superuser runs SQL in the node's container. psql reads it, so that no list of processes
// shows what it says.
func (a *Actuator) superuser(ctx context.Context, n cluster.Node, b node.Batch) error {
	psql := []string{"psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "root", "-d", b.Database}
	sql := strings.Join(append(node.SuperuserSettings(), b.SQL...), ";\n") + ";\n"
	if _, err := a.Outside.Engine.Exec(ctx, n.Container, psql, sql); err != nil {
		return fmt.Errorf("provision of %s in database %s: %w", n.Name, b.Database, err)
	}
	return nil
}
