package docker

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// Kill implements cluster.Engine.
//
// Where the host's processes can be seen (pid: host), Kill kills the container's init
// directly. Its kernel then ends every process of the container, four times sooner than
// by way of the engine.
//
// In a paused container every process gets its SIGKILL while it is still frozen. So none
// acknowledges anything between the thaw and its end, as the engine's own kill allows.
//
// Where the processes cannot be seen, the engine kills.
func (e *Engine) Kill(ctx context.Context, name string) error {
	c, id, err := e.inspect(ctx, name)
	if err != nil {
		return err
	}
	if !c.Running {
		return nil
	}
	if c.Paused {
		return e.killFrozen(ctx, name, id)
	}
	err = e.procs.kill(c.PID, id)
	if err == nil {
		return nil
	}
	e.log.Warn("container is killed through the engine", "container", name, "err", err)
	return e.engineKill(ctx, name)
}

// killFrozen signals while frozen, then thaws.
func (e *Engine) killFrozen(ctx context.Context, name, id string) error {
	if err := e.procs.killAll(id); err != nil {
		e.log.Warn("paused container is killed through the engine: it may acknowledge commits until it is dead",
			"container", name, "err", err)
		return e.engineKill(ctx, name)
	}
	if err := e.unpause(ctx, name); err != nil {
		// The engine's kill thaws too. Nothing in the container can still answer: every
		// process of it has its SIGKILL.
		return errors.Join(err, e.engineKill(ctx, name))
	}
	return nil
}

// unpause thaws the container. With cgroup v2 it may have died frozen.
func (e *Engine) unpause(ctx context.Context, name string) error {
	err := e.api.ContainerUnpause(ctx, name)
	if err == nil {
		return nil
	}
	if c, inspectErr := e.Inspect(ctx, name); inspectErr == nil && !c.Paused {
		return nil
	}
	return fmt.Errorf("unpause container %s: %w", name, err)
}

// engineKill accepts a container that has ended meanwhile.
func (e *Engine) engineKill(ctx context.Context, name string) error {
	err := e.api.ContainerKill(ctx, name, "SIGKILL")
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	if c, inspectErr := e.Inspect(ctx, name); inspectErr == nil && !c.Running {
		return nil
	}
	return fmt.Errorf("kill container %s: %w", name, err)
}
