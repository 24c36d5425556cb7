// Package server is the init of a PostgreSQL container: it waits for orders on
// the node's order volume, carries them out, reports on the node's data volume,
// and outlives the server. Nothing starts without an order. What to order is
// decided by controld; the formats are package node's.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"controld/internal/node"
	"controld/internal/node/archive"
	"controld/internal/node/child"
	"controld/internal/node/rules"
	"controld/internal/pgcontrol"
	"controld/internal/pgwal"
)

// Config says where an init finds things and how patient it is.
type Config struct {
	NodeDir       string // the node's data volume
	OrderDir      string // the node's order volume, only read here
	SecretsDir    string // the cluster's secrets, one in a file
	OwnSecretsDir string // a tmpfs; what is in it belongs to the server's user
	BinDir        string // postgres, initdb, pg_basebackup, pg_rewind
	SocketDirs    []string
	Database      string // made by initdb for the application
	UID, GID      int    // of PostgreSQL's processes

	Poll      time.Duration // how often the order is read when no event tells of it
	LockWait  time.Duration // for a lock that somebody else holds
	StopGrace time.Duration // for a server that is shut down and does not end, once it is wanted again

	Stdout, Stderr *os.File // the server's

	// Reach tries whether the server that conninfo leads to lets us in.
	Reach func(ctx context.Context, conninfo string) error
	// Compare holds the WAL of one data directory against the leader's.
	Compare func(ctx context.Context, own, leader string) (pgwal.Comparison, error)
	// Archives reports whether WAL can be archived from here.
	Archives func() bool
	// Archived reports whether the archive of the cluster systemID is known to have a segment.
	Archived func(systemID uint64, segment string) bool
	// Space is what is left on a folder's file system, and its size.
	Space func(dir string) (freeBytes, totalBytes int64, err error)
}

// DefaultConfig is the configuration in the containers, for the node whose
// data volume is mounted at nodeDir.
func DefaultConfig(nodeDir string) Config {
	return Config{
		NodeDir:       nodeDir,
		OrderDir:      "/order",
		SecretsDir:    "/secrets",
		OwnSecretsDir: "/run/secrets-own",
		BinDir:        "/usr/lib/postgresql/15/bin",
		SocketDirs:    []string{filepath.Join(nodeDir, node.SocketDir), "/var/run/postgresql"},
		Database:      "imdb",
		UID:           node.UID,
		GID:           node.GID,
		Poll:          time.Second,
		LockWait:      10 * time.Second,
		StopGrace:     time.Second,
		Stdout:        os.Stdout,
		Stderr:        os.Stderr,
		Reach:         reach,
		Compare: func(ctx context.Context, own, leader string) (pgwal.Comparison, error) {
			return pgwal.Compare(ctx, own, leader, 0)
		},
		Archives: archive.There,
		Archived: archive.Has,
		Space:    node.Space,
	}
}

func (c Config) dataDir() string { return filepath.Join(c.NodeDir, node.DataDir) }

// An Init carries out the orders of one node. Its fields belong to the
// goroutine of Run; a job works on its own and hands over its result.
type Init struct {
	cfg    Config
	log    *slog.Logger
	reaper *child.Reaper
	status *report

	order   node.Order // the last one taken up
	settled uint64     // the epoch of an order after which there is nothing left to do
	refused uint64     // the epoch of an order too old to be taken up, reported once
	noOrder string     // why there is none, logged once

	server   *child.Process // nil: none runs
	stopping bool           // it was told to
	shutSeen time.Time      // since when it is wanted again and shut down in pg_control
	quit     bool           // SIGQUIT was sent
	recheck  <-chan time.Time

	asideBusy sync.Mutex // held while WAL is set aside or tidied

	job    *job // one at a time
	ending bool // a signal from outside: stop the server, then return
}

// A job is work that takes longer than the loop may.
type job struct {
	epoch  uint64
	cancel context.CancelFunc
	done   chan result // receives once
}

// A result is what a job leaves behind.
type result struct {
	server *child.Process // started, perhaps ended since
	err    error
}

// errSuperseded: while the order was carried out another one took its place.
var errSuperseded = errors.New("order was superseded")

// New returns an init that starts its processes through reaper.
func New(cfg Config, reaper *child.Reaper, log *slog.Logger) *Init {
	return &Init{cfg: cfg, reaper: reaper, log: log}
}

// Run carries out orders until ctx ends; then it stops the server and returns.
func (n *Init) Run(ctx context.Context) error {
	if err := n.prepare(); err != nil {
		return err
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch orders: %w", err)
	}
	defer watcher.Close()
	if err := watcher.Add(n.cfg.OrderDir); err != nil {
		return fmt.Errorf("watch orders: %w", err)
	}
	tick := time.NewTicker(n.cfg.Poll)
	defer tick.Stop()
	tidying, tidied := time.NewTicker(tidyEvery), make(chan struct{}, 1)
	defer tidying.Stop()

	n.consider()
	for stop := ctx.Done(); ; {
		select {
		case <-stop:
			stop = nil
			n.end()
		case e := <-watcher.Events:
			if filepath.Base(e.Name) == node.OrderFile {
				n.consider()
			}
		case err := <-watcher.Errors:
			n.log.Warn("watching orders failed, polling goes on", "err", err)
		case <-tick.C:
			n.consider()
			n.act() // what could not be noted before is tried again
			n.refreshRole()
		case <-tidying.C:
			if n.settled == n.order.Epoch && n.server != nil { // nothing is being overwritten
				n.tidy(tidied)
			}
		case <-n.serverDone():
			n.serverEnded()
		case r := <-n.jobDone():
			n.jobEnded(r)
		case <-n.recheck:
			n.act()
		}
		if n.ending && n.server == nil && n.job == nil {
			n.logStatusError(n.status.update(func(s *node.Status) {
				s.State, s.Role, s.PID = node.StateWaiting, node.RoleNone, 0
			}))
			n.log.Info("init ends")
			return nil
		}
	}
}

// tidyEvery is how often is looked whether WAL that was set aside is still needed.
const tidyEvery = time.Minute

// tidy removes, beside the loop and one at a time, what was set aside and is not needed.
func (n *Init) tidy(busy chan struct{}) {
	select {
	case busy <- struct{}{}:
	default:
		return
	}
	go func() {
		defer func() { <-busy }()
		if err := n.tidyAside(); err != nil {
			n.log.Warn("saved WAL is not tidied", "err", err)
		}
	}()
}

// serverDone and jobDone are nil, and so never ready, when there is none.
func (n *Init) serverDone() <-chan struct{} {
	if n.server == nil {
		return nil
	}
	return n.server.Done()
}

func (n *Init) jobDone() <-chan result {
	if n.job == nil {
		return nil
	}
	return n.job.done
}

// consider takes up the order that stands on the volume, when it is a new one.
func (n *Init) consider() {
	if n.ending {
		return
	}
	o, err := node.ReadOrder(n.cfg.OrderDir)
	if err != nil {
		if n.noOrder != err.Error() {
			n.noOrder = err.Error()
			n.log.Info("no order to carry out", "err", err)
		}
		return
	}
	n.noOrder = ""
	switch take, err := rules.TakeUp(o, n.order.Epoch, n.status.get()); {
	case err != nil && n.refused != o.Epoch:
		n.refused = o.Epoch
		n.fail(err)
		return
	case err != nil || !take:
		return
	}
	n.log.Info("order", "epoch", o.Epoch, "role", o.Role, "action", o.Action)
	n.order = o
	n.act()
}

// act does the next thing that the last order asks for. It is called whenever
// something has changed and finds out by itself what is left to do.
func (n *Init) act() {
	if n.job != nil && (n.ending || n.job.epoch != n.order.Epoch) {
		n.job.cancel() // its end calls act again
	}
	switch {
	case n.server != nil && n.stopping:
		n.hurry()
	case n.ending:
	case n.settled == n.order.Epoch:
	case n.server != nil:
		n.actRunning()
	case n.job == nil:
		n.actStopped()
	}
}

// actRunning carries out an order that found a server running. The server may
// have been promoted since it was started as a standby: standby.signal tells.
func (n *Init) actRunning() {
	o, facts := n.order, rules.Running{Done: n.status.get(), Leads: !n.inRecovery()}
	if control, err := pgcontrol.Read(n.cfg.dataDir()); err == nil {
		facts.Control = &control
	}
	step, err := facts.Next(o)
	if err != nil {
		n.refuseRunning(err)
		return
	}
	switch step {
	case rules.Stop:
		n.stop()
	case rules.Adopt:
		n.adopt()
	case rules.Salvage:
		if n.job == nil {
			n.startJob(n.salvage)
		}
	case rules.Provision:
		n.actProvision()
	}
}

// actProvision begins a provision; its end adopts the order.
func (n *Init) actProvision() {
	if n.job != nil {
		return
	}
	server := n.server
	n.startJob(func(ctx context.Context, o node.Order) (*child.Process, error) {
		n.provision(ctx, server, o)
		return nil, nil
	})
}

// refuseRunning reports an order that is not carried out and leaves the server be.
func (n *Init) refuseRunning(err error) {
	o, role := n.order, n.presentRole()
	n.settled = o.Epoch
	n.log.Error("order refused, the server goes on", "epoch", o.Epoch, "err", err)
	n.logStatusError(n.status.update(func(s *node.Status) {
		s.Epoch, s.State, s.Role, s.PID, s.Error = o.Epoch, node.StateRefused, role, n.server.PID, err.Error()
		if o.Role == node.RolePrimary {
			s.UsedEpoch = max(s.UsedEpoch, o.Epoch)
		}
		if o.Action == node.ActionSalvage {
			s.Salvaged = &node.Salvaged{Epoch: o.Epoch, Error: err.Error()}
		}
	}))
}

// adopt takes up an order that asks for nothing to be done. An order to lead is used up
// by that, which must be on the disk: adopt is called again until it is.
func (n *Init) adopt() {
	o, role := n.order, n.presentRole()
	err := n.status.update(func(s *node.Status) {
		s.Epoch, s.State, s.Role, s.PID, s.Error = o.Epoch, node.StateRunning, role, n.server.PID, ""
		if o.Role == node.RolePrimary {
			s.UsedEpoch = max(s.UsedEpoch, o.Epoch)
		}
	})
	if err == nil || o.Role != node.RolePrimary {
		n.settled = o.Epoch
	}
	n.logStatusError(err)
}

func (n *Init) actStopped() {
	if n.order.Role == node.RoleNone {
		n.settled = n.order.Epoch
		n.logStatusError(n.status.update(func(s *node.Status) {
			s.Epoch, s.State, s.Role, s.PID, s.Error = n.order.Epoch, node.StateWaiting, node.RoleNone, 0, ""
		}))
		return
	}
	n.startJob(n.bringUp)
}

// startJob runs work for the present order beside the loop.
func (n *Init) startJob(work func(context.Context, node.Order) (*child.Process, error)) {
	ctx, cancel := context.WithCancel(context.Background())
	j := &job{epoch: n.order.Epoch, cancel: cancel, done: make(chan result, 1)}
	n.job = j
	o := n.order
	go func() {
		server, err := work(ctx, o)
		j.done <- result{server, err}
	}()
}

func (n *Init) jobEnded(r result) {
	epoch := n.job.epoch
	n.job.cancel()
	n.job = nil
	switch {
	case r.server != nil:
		n.server, n.stopping = r.server, false
		n.settled = epoch
		n.log.Info("server started", "epoch", epoch, "pid", r.server.PID)
		if n.ending {
			n.stop()
		}
	case errors.Is(r.err, errSuperseded) || errors.Is(r.err, context.Canceled):
		n.log.Info("order given up for another one", "epoch", epoch)
	case r.err != nil && epoch != n.order.Epoch:
		n.log.Warn("order failed after another one had come", "epoch", epoch, "err", r.err)
	case r.err != nil:
		n.settled = epoch
		n.fail(r.err)
	case n.server != nil && epoch == n.order.Epoch && n.order.Action == node.ActionProvision:
		n.adopt()
	default:
		n.settled = epoch
	}
	n.consider()
	n.act()
}

// fail reports an error of the present order.
func (n *Init) fail(err error) {
	state := node.StateFailed
	if errors.As(err, new(rules.Refusal)) {
		state = node.StateRefused
	}
	n.log.Error("order not carried out", "epoch", n.order.Epoch, "state", state, "err", err)
	n.logStatusError(n.status.update(func(s *node.Status) {
		s.Epoch = max(s.Epoch, n.order.Epoch)
		s.State, s.Role, s.PID, s.Error = state, node.RoleNone, 0, err.Error()
	}))
}

// stop sends a fast shutdown, and only then takes time for the report.
func (n *Init) stop() {
	n.server.Signal(unix.SIGINT)
	go n.nudge(n.server)
	n.stopping, n.quit, n.shutSeen = true, false, time.Time{}
	n.log.Info("server stops", "epoch", n.order.Epoch)
	n.logStatusError(n.status.update(func(s *node.Status) {
		s.State, s.Error = node.StateStopping, ""
		if !n.ending {
			s.Epoch = n.order.Epoch
		}
	}))
}

// hurryPeriod is how often the init looks at a server that stops and is wanted again.
const hurryPeriod = 20 * time.Millisecond

// hurry ends a server that is stopping although the last order asks for one. With "shut
// down" in pg_control already, a postmaster can wait for ever for a standby that takes
// no WAL any more, and it keeps the lock. Before pg_control says so hurry leaves it
// alone, because its checkpoint is not written yet.
func (n *Init) hurry() {
	if n.ending || n.order.Role == node.RoleNone {
		n.recheck, n.shutSeen = nil, time.Time{}
		return
	}
	n.recheck = time.After(hurryPeriod)
	control, err := pgcontrol.Read(n.cfg.dataDir())
	if err != nil || !control.State.Stopped() {
		n.shutSeen = time.Time{}
		return
	}
	if n.shutSeen.IsZero() {
		n.shutSeen = time.Now()
	}
	switch waited := time.Since(n.shutSeen); {
	case waited > 2*n.cfg.StopGrace:
		n.log.Warn("server killed: shut down, wanted again, and still there", "pid", n.server.PID)
		n.server.KillTree()
		n.shutSeen = time.Now()
	case waited > n.cfg.StopGrace && !n.quit:
		n.log.Warn("server quits: shut down, wanted again, and still there", "pid", n.server.PID)
		n.server.Signal(unix.SIGQUIT)
		n.quit = true
	}
}

// serverEnded reports the end of the server. Without an order for it controld
// decides what comes next.
func (n *Init) serverEnded() {
	how := n.server.Err()
	asked := n.stopping
	n.server, n.stopping, n.recheck = nil, false, nil
	n.log.Info("server ended", "asked", asked, "err", how)
	if !asked {
		n.settled = n.order.Epoch
		text := "the server ended by itself: exit code 0"
		if how != nil {
			text = "the server ended by itself: " + how.Error()
		}
		n.logStatusError(n.status.update(func(s *node.Status) {
			s.State, s.Role, s.PID, s.Error = node.StateEnded, node.RoleNone, 0, text
		}))
	}
	n.consider()
	n.act()
}

// end begins the end of the init: a signal came from outside.
func (n *Init) end() {
	n.log.Info("init is told to end")
	n.ending = true
	if n.server != nil && !n.stopping {
		n.stop()
	}
	n.act()
}

// refreshRole notes a promotion, which comes by SQL and without an order's help.
func (n *Init) refreshRole() {
	if n.server == nil || n.stopping {
		return
	}
	role := n.presentRole()
	if s := n.status.get(); s.State != node.StateRunning || s.Role == role {
		return
	}
	n.logStatusError(n.status.update(func(s *node.Status) { s.Role = role }))
}

func (n *Init) presentRole() node.Role {
	if n.inRecovery() {
		return node.RoleStandby
	}
	return node.RolePrimary
}

// inRecovery looks at standby.signal, which a promotion removes. In doubt it takes the
// server for a leader, because a leader is stopped before it becomes a standby.
func (n *Init) inRecovery() bool {
	_, err := os.Lstat(filepath.Join(n.cfg.dataDir(), standbySignal))
	return err == nil
}

func (n *Init) logStatusError(err error) {
	if err != nil {
		n.log.Error("status not written", "err", err)
	}
}
