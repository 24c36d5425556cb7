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

// Fence makes sure that a node does not serve. It withdraws the node's order, so
// that nothing starts the server again, kills what runs, and returns when the death
// is proved. cut, if any, is called once when the proof is late.
func (a *Actuator) Fence(ctx context.Context, n cluster.Node, cut func(context.Context)) error {
	if err := a.Withdraw(n); err != nil {
		return err
	}
	if a.LockFree(n) {
		return nil
	}
	if _, err := a.KillAndProve(ctx, n, cut); err != nil {
		return err
	}
	a.AwaitEnded(ctx, n)
	return nil
}

// Withdraw makes the node's order none, durably. An order that is none already is
// left as it is: its init may be about to take up that very epoch.
func (a *Actuator) Withdraw(n cluster.Node) error {
	if o, err := a.Outside.Volumes.Order(n); err == nil && o.Role == node.RoleNone {
		return nil
	}
	_, err := a.Order(n, node.Order{Role: node.RoleNone})
	return err
}

// Unlocked reports whether controld sees nobody hold the lock on n's volume. Alone
// it proves no death: the lock file is missing, too, where controld does not see the
// volume as the node does. See LockFree; the engine's word would do as well.
func (a *Actuator) Unlocked(n cluster.Node) bool {
	locked, err := a.Outside.Volumes.Locked(n)
	return err == nil && !locked
}

// LockFree reports whether it is proved by the lock that no process of n's server is
// left: nobody holds it, and the volume's control file can be read, so it is the
// node's own volume that was looked at.
func (a *Actuator) LockFree(n cluster.Node) bool {
	if !a.Unlocked(n) {
		return false
	}
	_, err := a.Outside.Volumes.Control(n)
	return err == nil
}

const (
	// cutAfter is how long a proof of death may be missing before the dying node is
	// cut from its clients.
	cutAfter = 300 * time.Millisecond
	// proveEvery is how often the lock is looked at, and askEngine how many of these
	// looks come before the engine is asked too, which takes longer.
	proveEvery = 2 * Tick
	askEngine  = 25
)

// KillAndProve kills the node's container, and returns when one of two things proves
// its death: the lock on its volume is free, or the engine says that the container
// has ended. proof names it: lock or engine. A kill that was sent proves nothing.
func (a *Actuator) KillAndProve(ctx context.Context, n cluster.Node, cut func(context.Context)) (proof string, err error) {
	ctx, cancel := context.WithTimeout(ctx, DeathDeadline)
	defer cancel()
	killed := make(chan error, 1)
	go func() { killed <- a.Outside.Engine.Kill(ctx, n.Container) }()
	defer func() {
		if killErr := <-killed; killErr != nil && err != nil {
			err = errors.Join(err, killErr)
		}
	}()
	began := time.Now()
	for look := 1; ; look++ {
		if a.LockFree(n) {
			return "lock", nil
		}
		if look%askEngine == 0 && a.engineSaysEnded(ctx, n) {
			return "engine", nil
		}
		if cut != nil && time.Since(began) > cutAfter {
			cut(ctx)
			cut = nil
		}
		if wait.Sleep(ctx, proveEvery) != nil {
			return "", notProved(n)
		}
	}
}

// engineSaysEnded reports whether the engine says that n's container has ended. One
// that it does not find may run under another name: then the lock has to be free too.
func (a *Actuator) engineSaysEnded(ctx context.Context, n cluster.Node) bool {
	c, err := a.Outside.Engine.Inspect(ctx, n.Container)
	return err == nil && !c.Running && (c.Exists || a.Unlocked(n))
}

// notProved is no refusal, which would say that nothing was touched: the order is
// withdrawn.
func notProved(n cluster.Node) error {
	return fmt.Errorf("the death of %s is not proved: the lock on its volume is held or cannot be seen, "+
		"and the engine does not say that its container ended. "+
		"Its order stays withdrawn; end the container (docker kill -s KILL %s) and ask again", n.Name, n.Container)
}

// AwaitEnded waits, after a death that the lock proved, until the engine knows it
// too, which is some 200 ms later. Before that the engine would not start the
// container again.
func (a *Actuator) AwaitEnded(ctx context.Context, n cluster.Node) {
	ctx, cancel := context.WithTimeout(ctx, endedDeadline)
	defer cancel()
	_ = wait.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		c, err := a.Outside.Engine.Inspect(ctx, n.Container)
		return err == nil && !c.Running, nil
	})
}
