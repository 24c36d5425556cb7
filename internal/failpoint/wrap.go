// Package failpoint puts a hook around every call that leaves the process, so
// that tests can end it, or lose an answer, at each of them. It is part of test
// builds alone (tag failpoint).
package failpoint

import (
	"context"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/pgcontrol"
	"controld/internal/wal"
)

// A Hook stands around one call: it may do it, not do it, do it and say that it
// failed, or never return.
type Hook func(call string, do func() error) error

// Wrap returns o with every call that changes something, or that a step waits
// for, going through hook. The calls are named Engine.Kill, Pooler.Pause and so on.
func Wrap(o cluster.Outside, hook Hook) cluster.Outside {
	o.Engine = engine{o.Engine, hook}
	o.Volumes = volumes{o.Volumes, hook}
	o.Servers = servers{o.Servers, hook}
	o.Pooler = pooler{o.Pooler, hook}
	return o
}

type engine struct {
	cluster.Engine
	hook Hook
}

func (e engine) Start(ctx context.Context, c string) error {
	return e.hook("Engine.Start", func() error { return e.Engine.Start(ctx, c) })
}

func (e engine) Kill(ctx context.Context, c string) error {
	return e.hook("Engine.Kill", func() error { return e.Engine.Kill(ctx, c) })
}

func (e engine) Exec(ctx context.Context, c string, command []string, stdin string) (out string, err error) {
	err = e.hook("Engine.Exec", func() error {
		out, err = e.Engine.Exec(ctx, c, command, stdin)
		return err
	})
	return out, err
}

func (e engine) Disconnect(ctx context.Context, c string) error {
	return e.hook("Engine.Disconnect", func() error { return e.Engine.Disconnect(ctx, c) })
}

func (e engine) Connect(ctx context.Context, c string) error {
	return e.hook("Engine.Connect", func() error { return e.Engine.Connect(ctx, c) })
}

type volumes struct {
	cluster.Volumes
	hook Hook
}

// WriteOrder is named after what is ordered: Volumes.WriteOrder.none.
func (v volumes) WriteOrder(n cluster.Node, o node.Order) error {
	return v.hook("Volumes.WriteOrder."+string(o.Role), func() error { return v.Volumes.WriteOrder(n, o) })
}

func (v volumes) WriteSettings(n cluster.Node, s cluster.RoleSettings) error {
	return v.hook("Volumes.WriteSettings", func() error { return v.Volumes.WriteSettings(n, s) })
}

// Control is a call once it shows that the server has stopped, and is named
// Volumes.Control.stopped: what it says is the effect of something else.
func (v volumes) Control(n cluster.Node) (pgcontrol.Data, error) {
	d, err := v.Volumes.Control(n)
	if err != nil || !d.State.Stopped() {
		return d, err
	}
	return d, v.hook("Volumes.Control.stopped", func() error { return nil })
}

type servers struct {
	cluster.Servers
	hook Hook
}

func (s servers) Connect(ctx context.Context, n cluster.Node) (cluster.Session, error) {
	inner, err := s.Servers.Connect(ctx, n)
	if err != nil {
		return nil, err
	}
	return session{inner, s.hook}, nil
}

type session struct {
	cluster.Session
	hook Hook
}

func (s session) Position(ctx context.Context) (p cluster.Position, err error) {
	err = s.hook("Session.Position", func() (err error) { p, err = s.Session.Position(ctx); return err })
	return p, err
}

func (s session) EndQueries(ctx context.Context) error {
	return s.hook("Session.EndQueries", func() error { return s.Session.EndQueries(ctx) })
}

func (s session) WriteProbe(ctx context.Context) error {
	return s.hook("Session.WriteProbe", func() error { return s.Session.WriteProbe(ctx) })
}

func (s session) SyncProbe(ctx context.Context) error {
	return s.hook("Session.SyncProbe", func() error { return s.Session.SyncProbe(ctx) })
}

func (s session) Checkpoint(ctx context.Context) error {
	return s.hook("Session.Checkpoint", func() error { return s.Session.Checkpoint(ctx) })
}

func (s session) FillSegment(ctx context.Context, leave int64) error {
	return s.hook("Session.FillSegment", func() error { return s.Session.FillSegment(ctx, leave) })
}

func (s session) Reload(ctx context.Context, want map[string]string) error {
	return s.hook("Session.Reload", func() error { return s.Session.Reload(ctx, want) })
}

func (s session) CreateSlot(ctx context.Context, name string) error {
	return s.hook("Session.CreateSlot", func() error { return s.Session.CreateSlot(ctx, name) })
}

func (s session) AdvanceSlot(ctx context.Context, name string, to wal.LSN) error {
	return s.hook("Session.AdvanceSlot", func() error { return s.Session.AdvanceSlot(ctx, name, to) })
}

func (s session) DropSlot(ctx context.Context, name string) error {
	return s.hook("Session.DropSlot", func() error { return s.Session.DropSlot(ctx, name) })
}

func (s session) Promote(ctx context.Context) error {
	return s.hook("Session.Promote", func() error { return s.Session.Promote(ctx) })
}

func (s session) Senders(ctx context.Context) (list []cluster.Sender, err error) {
	err = s.hook("Session.Senders", func() (err error) { list, err = s.Session.Senders(ctx); return err })
	return list, err
}

func (s session) Copies(ctx context.Context) (list []cluster.Copy, err error) {
	err = s.hook("Session.Copies", func() (err error) { list, err = s.Session.Copies(ctx); return err })
	return list, err
}

type pooler struct {
	cluster.Pooler
	hook Hook
}

func (p pooler) Point(ctx context.Context, t cluster.Targets) error {
	return p.hook("Pooler.Point", func() error { return p.Pooler.Point(ctx, t) })
}

func (p pooler) Pause(ctx context.Context, db string) error {
	return p.hook("Pooler.Pause", func() error { return p.Pooler.Pause(ctx, db) })
}

func (p pooler) PauseNow(ctx context.Context, db string) error {
	return p.hook("Pooler.PauseNow", func() error { return p.Pooler.PauseNow(ctx, db) })
}

func (p pooler) Resume(ctx context.Context, db string) error {
	return p.hook("Pooler.Resume", func() error { return p.Pooler.Resume(ctx, db) })
}

func (p pooler) Kill(ctx context.Context, db string) error {
	return p.hook("Pooler.Kill", func() error { return p.Pooler.Kill(ctx, db) })
}

func (p pooler) Drain(ctx context.Context, size int) error {
	return p.hook("Pooler.Drain", func() error { return p.Pooler.Drain(ctx, size) })
}

func (p pooler) RenewLease(operation string, dbs []string) error {
	return p.hook("Pooler.RenewLease", func() error { return p.Pooler.RenewLease(operation, dbs) })
}

func (p pooler) RemoveLease() error {
	return p.hook("Pooler.RemoveLease", func() error { return p.Pooler.RemoveLease() })
}

func (p pooler) Probe(ctx context.Context, db string) error {
	return p.hook("Pooler.Probe", func() error { return p.Pooler.Probe(ctx, db) })
}
