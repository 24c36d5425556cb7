package actuator

import (
	"context"
	"errors"
	"fmt"

	"controld/internal/cluster"
	"controld/internal/operation"
)

// Sessions keeps one session open to each node for the time of an operation. It
// holds nothing that could not be opened again, and is used by one goroutine.
type Sessions struct {
	servers cluster.Servers
	open    map[string]cluster.Session
}

// Sessions is an empty set: each is opened when it is first needed.
func (a *Actuator) Sessions() Sessions { return Sessions{servers: a.Outside.Servers} }

// Get returns the open session, or logs in.
func (c *Sessions) Get(ctx context.Context, n cluster.Node) (cluster.Session, error) {
	if s, ok := c.open[n.Name]; ok {
		return s, nil
	}
	s, err := c.servers.Connect(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", n.Name, err)
	}
	if c.open == nil {
		c.open = map[string]cluster.Session{}
	}
	c.open[n.Name] = s
	return s, nil
}

// Drop closes the node's session; after an error it is worth nothing any more.
func (c *Sessions) Drop(n cluster.Node) {
	if s, ok := c.open[n.Name]; ok {
		s.Close()
		delete(c.open, n.Name)
	}
}

// CloseAll closes every session. What comes after logs in anew.
func (c *Sessions) CloseAll() {
	for _, s := range c.open {
		s.Close()
	}
	clear(c.open)
}

// Position asks n where it stands in the WAL.
func (c *Sessions) Position(ctx context.Context, n cluster.Node) (pos cluster.Position, err error) {
	err = c.With(ctx, n, func(session cluster.Session) (err error) {
		pos, err = session.Position(ctx)
		return err
	})
	return pos, err
}

// With runs f on a session of n, over a new one if the kept one is broken: a
// first error may only say that the server was restarted since.
func (c *Sessions) With(ctx context.Context, n cluster.Node, f func(cluster.Session) error) error {
	_, kept := c.open[n.Name]
	s, err := c.Get(ctx, n)
	if err != nil {
		return err
	}
	if err = f(s); err == nil {
		return nil
	}
	c.Drop(n)
	var refusal *operation.Problem
	if !kept || ctx.Err() != nil || errors.As(err, &refusal) {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	if s, err = c.Get(ctx, n); err != nil {
		return err
	}
	if err := f(s); err != nil {
		c.Drop(n)
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	return nil
}
