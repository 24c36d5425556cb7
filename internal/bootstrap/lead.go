package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/wait"
)

// A starter is one attempt to make a node lead.
type starter struct {
	act      *actuator.Actuator
	node     cluster.Node
	initdb   bool
	sessions actuator.Sessions
}

// startWork makes a node lead, where none does: at the first start on an empty
// volume, otherwise on the data it has.
func (ss *Starts) startWork(n cluster.Node, initdb bool) operation.Runnable {
	st := &starter{act: ss.act, node: n, initdb: initdb, sessions: ss.act.Sessions()}
	return operation.Work[startState]{
		Prepare: st.prepare,
		Steps:   func(*startState) []operation.Step[startState] { return st.steps() },
		Forward: true,
		Left:    st.left,
		Result:  func(s *startState) map[string]any { return map[string]any{"node": s.Node, "timeline": s.Timeline} },
		Close:   func() { st.sessions.CloseAll(); st.act.Look.LookAgain(context.Background()) },
	}
}

// steps makes the node lead. A primary's order is good for one start, so a
// repeated step gives a new one.
func (st *starter) steps() []operation.Step[startState] {
	return []operation.Step[startState]{
		{Name: "write settings", Do: st.writeSettings, Entry: true},
		{Name: "start primary", Do: st.start, Entry: true},
		{Name: "record primary", Do: st.record},
		{Name: "point pooler", Do: st.point, HoldsClients: true},
	}
}

func (st *starter) writeSettings(context.Context, *startState) error {
	// In mode sync the node leads without a synchronous standby at first: one that is
	// not there yet would block the first commit. Supervision sets it when one streams.
	// That commits are unsynced until then is noted before there can be any.
	if st.act.Settings.Replication != cluster.Strict {
		if err := st.act.ChangeIdentity(func(id *cluster.Identity) { id.Unsynced = true }); err != nil {
			return err
		}
	}
	return st.act.Outside.Volumes.WriteSettings(st.node, st.act.PrimarySettings(st.node, false))
}

func (st *starter) start(ctx context.Context, s *startState) error {
	bounded, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	if err := st.order(bounded, s); err != nil {
		return err
	}
	if err := st.act.WaitServing(bounded, &st.sessions, st.node); err != nil {
		return err
	}
	return st.sessions.With(bounded, st.node, func(session cluster.Session) error {
		server, err := session.Observe(bounded)
		s.SystemID, s.Timeline = server.SystemID, server.Timeline
		return err
	})
}

// order gives the order to lead, unless the node leads by one already. A node whose data is
// a standby's is promoted.
func (st *starter) order(ctx context.Context, s *startState) error {
	err := st.sessions.With(ctx, st.node, func(session cluster.Session) error { return session.WriteProbe(ctx) })
	if err == nil {
		return nil
	}
	standby := errors.Is(err, cluster.ErrReadOnly)
	if !standby {
		if standby, err = st.startsInRecovery(); err != nil {
			return err
		}
	}
	if standby {
		return st.promote(ctx)
	}
	o := node.Order{Role: node.RolePrimary}
	if control, err := st.act.Outside.Volumes.Control(st.node); s.InitDB && (err != nil || control.SystemID == 0) {
		o.Action = node.ActionInitDB
	}
	if status, err := st.act.Outside.Volumes.Status(st.node); s.InitDB && err == nil && status.Unfinished == node.ActionInitDB {
		o.Action = node.ActionInitDB
	}
	if _, err := st.act.Order(st.node, o); err != nil {
		return err
	}
	return st.act.EnsureRunning(ctx, st.node)
}

// startsInRecovery reports whether the node's data is a standby's.
func (st *starter) startsInRecovery() (bool, error) {
	signal, err := st.act.Outside.Volumes.StandbySignal(st.node)
	if err != nil || !signal {
		return false, err
	}
	control, err := st.act.Outside.Volumes.Control(st.node)
	return err == nil && control.State.Recovering(), err
}

// promote makes a node lead whose data is a standby's: it begins a timeline of its own.
// Merely started without its signal file it would write on the timeline that it followed,
// on which another node may have gone on.
func (st *starter) promote(ctx context.Context) error {
	pos, err := st.sessions.Position(ctx, st.node)
	if err != nil {
		if _, err := st.act.Order(st.node, node.Order{Role: node.RoleStandby}); err != nil {
			return err
		}
		if pos, err = st.act.AwaitAnswer(ctx, &st.sessions, st.node); err != nil {
			return err
		}
	}
	if pos.InRecovery {
		if err := st.sessions.With(ctx, st.node, func(session cluster.Session) error { return session.Promote(ctx) }); err != nil {
			return err
		}
		err := wait.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
			pos, err := st.sessions.Position(ctx, st.node)
			return err == nil && !pos.InRecovery, nil
		})
		if err != nil {
			return fmt.Errorf("wait for the promotion of %s: %w", st.node.Name, err)
		}
	}
	_, err = st.act.Order(st.node, node.Order{Role: node.RolePrimary}) // its init only takes note
	return err
}

func (st *starter) record(_ context.Context, s *startState) error {
	return st.act.RecordPrimary(st.node, s.SystemID, s.Timeline, st.act.Settings.Replication != cluster.Strict)
}

// point leads the clients to the node, and releases them where something left
// them paused.
func (st *starter) point(ctx context.Context, _ *startState) error {
	c, err := st.act.Outside.Engine.Inspect(ctx, st.node.Container)
	if err != nil {
		return err
	}
	t := cluster.WantTargets(st.act.Look.Fresh(ctx))
	t.Primary = c.Address
	if t.Standby == "" {
		t.Standby = c.Address
	}
	return st.act.Align(ctx, t)
}

// left is an error where a start that failed has left nobody who leads: it says who could,
// and by which command.
func (st *starter) left(ctx context.Context, _ *startState) error {
	v, nobody := st.act.NobodyLeads(ctx, st.node.Name)
	if !nobody {
		return nil
	}
	way := fmt.Sprintf("the log of %s says why its server did not start (docker logs %s)", st.node.Name, st.node.Container)
	ways := append([]string{way}, st.act.OthersThatCouldLead(v, st.node.Name)...)
	return fmt.Errorf("nobody leads: %s", strings.Join(ways, "; or "))
}
