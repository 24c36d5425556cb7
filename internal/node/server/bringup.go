package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"controld/internal/node"
	"controld/internal/node/child"
	"controld/internal/node/rules"
	"controld/internal/pgcontrol"
)

// Signal files of PostgreSQL. A server with neither of them leads.
const (
	standbySignal  = "standby.signal"
	recoverySignal = "recovery.signal"
)

// bringUp carries out an order for a server while none runs. It takes the lock, reads
// the order again, does the action, and starts the server.
//
// It reads the order under the lock because a withdrawal must win that controld has
// made durable before it tested the lock.
func (n *Init) bringUp(ctx context.Context, o node.Order) (*child.Process, error) {
	if err := n.allowed(o); err != nil {
		return nil, err
	}
	lock, err := n.takeLock(ctx)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // if it was not handed over
	if err := n.stillOrdered(ctx, o); err != nil {
		return nil, err
	}
	if err := n.setAside(o); err != nil {
		return nil, err
	}
	if rules.ActionWanted(o, n.status.get()) {
		if err := n.carryOut(ctx, o, lock); err != nil {
			return nil, err
		}
	} else if rules.SalvageWanted(o, n.status.get()) {
		_, _ = n.salvage(ctx, o) // reported; the standby starts without it as well
	}
	if err := n.mayFollow(ctx, o); err != nil {
		return nil, err
	}
	return n.start(ctx, o, lock)
}

// allowed says why an order may not be carried out, before anything is touched.
func (n *Init) allowed(o node.Order) error {
	marker, err := n.marker()
	if err != nil {
		return err
	}
	rest := rules.AtRest{Done: n.status.get(), Marker: marker, Standby: n.inRecovery(), Empty: n.dataDirEmpty}
	rest.Control, rest.ControlErr = pgcontrol.Read(n.cfg.dataDir())
	return rest.Allowed(o)
}

func (n *Init) dataDirEmpty() error {
	entries, err := os.ReadDir(n.cfg.dataDir())
	if err != nil {
		return fmt.Errorf("look into the data directory: %w", err)
	}
	if len(entries) > 0 {
		return rules.Refuse("initdb needs an empty data directory: %s holds %s and %d more",
			n.cfg.dataDir(), entries[0].Name(), len(entries)-1)
	}
	return nil
}

// How often the lock is tried: a test by controld is over in microseconds.
const (
	lockRetryFast  = 2 * time.Millisecond
	lockRetrySlow  = 50 * time.Millisecond
	lockFastPeriod = 500 * time.Millisecond
)

// takeLock takes the volume's lock, on a descriptor of its own for each start.
func (n *Init) takeLock(ctx context.Context) (*os.File, error) {
	lock, err := node.OpenLock(n.cfg.NodeDir)
	if err != nil {
		return nil, err
	}
	for began, pause := time.Now(), lockRetryFast; ; {
		ok, err := node.TryLock(lock)
		if err != nil {
			lock.Close()
			return nil, err
		}
		if ok {
			return lock, nil
		}
		waited := time.Since(began)
		if waited > n.cfg.LockWait {
			lock.Close()
			return nil, rules.Refuse("the lock of the data volume is held: a process of a server is left on it, "+
				"perhaps in another container (waited %v)", n.cfg.LockWait)
		}
		if waited > lockFastPeriod {
			pause = lockRetrySlow
		}
		select {
		case <-ctx.Done():
			lock.Close()
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// stillOrdered reads the order again. An unreadable one starts nothing.
func (n *Init) stillOrdered(ctx context.Context, o node.Order) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now, err := node.ReadOrder(n.cfg.OrderDir)
	if err != nil {
		return err
	}
	switch {
	case now.Epoch > o.Epoch:
		return errSuperseded
	case now.Epoch < o.Epoch || now.Role != o.Role || now.Action != o.Action:
		return rules.Refuse("order %d was replaced by another one without a higher epoch", o.Epoch)
	}
	return nil
}

// start starts the server in the order's role, with the lock inherited.
func (n *Init) start(ctx context.Context, o node.Order, lock *os.File) (*child.Process, error) {
	if err := n.stillOrdered(ctx, o); err != nil {
		return nil, err
	}
	if err := n.removeStale(); err != nil {
		return nil, fmt.Errorf("remove stale files: %w", err)
	}
	if err := n.setRole(n.cfg.dataDir(), o.Role); err != nil {
		return nil, fmt.Errorf("set role: %w", err)
	}
	if o.Role == node.RolePrimary {
		// This comes before the start, because an order to lead must not be good for a
		// second one. What the status says of an earlier order, such as its refusal,
		// does not belong to this one.
		if err := n.status.update(func(s *node.Status) {
			s.Epoch, s.UsedEpoch, s.State, s.Error = o.Epoch, o.Epoch, node.StateWaiting, ""
		}); err != nil {
			return nil, err
		}
	}
	p, err := n.startPostgres(lock, n.cfg.Stdout, n.cfg.Stderr)
	if err != nil {
		return nil, err
	}
	lock.Close() // from here on the lock is the server's alone
	n.logStatusError(n.status.update(func(s *node.Status) {
		s.Epoch, s.State, s.Role, s.PID, s.Error = o.Epoch, node.StateRunning, o.Role, p.PID, ""
	}))
	return p, nil
}

func (n *Init) startPostgres(lock, stdout, stderr *os.File, more ...string) (*child.Process, error) {
	return n.reaper.Start(child.Spec{
		Path: filepath.Join(n.cfg.BinDir, "postgres"),
		Args: append([]string{"-D", n.cfg.dataDir(), "-c", "config_file=" + filepath.Join(n.cfg.OrderDir, "postgresql.conf")}, more...),
		Env:  os.Environ(), Dir: n.cfg.dataDir(),
		UID: n.cfg.UID, GID: n.cfg.GID, Session: true,
		Stdout: stdout, Stderr: stderr, Inherit: []*os.File{lock},
	})
}

// removeStale removes the files that a killed server leaves and that would keep the
// next one from starting: the process ids in them can be those of other processes by
// now. The lock is held, so no server is left to which the files belong.
func (n *Init) removeStale() error {
	stale := []string{filepath.Join(n.cfg.dataDir(), "postmaster.pid")}
	for _, dir := range n.cfg.SocketDirs {
		sockets, err := filepath.Glob(filepath.Join(dir, ".s.PGSQL.*")) // and .lock
		if err != nil {
			return err
		}
		stale = append(stale, sockets...)
	}
	for _, path := range stale {
		if err := remove(path); err != nil {
			return err
		}
	}
	return nil
}

// setRole makes the signal files in a data directory say what its server is to
// be, durably.
func (n *Init) setRole(dataDir string, r node.Role) error {
	standby := filepath.Join(dataDir, standbySignal)
	if r == node.RoleStandby {
		if _, err := os.Lstat(standby); err == nil {
			return nil
		}
		f, err := os.OpenFile(standby, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Chown(n.cfg.UID, n.cfg.GID), f.Sync(), f.Close()); err != nil {
			return err
		}
		return node.SyncDir(dataDir)
	}
	removed := false
	for _, name := range []string{standbySignal, recoverySignal} {
		err := os.Remove(filepath.Join(dataDir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		removed = removed || err == nil
	}
	if !removed {
		return nil
	}
	return node.SyncDir(dataDir)
}
