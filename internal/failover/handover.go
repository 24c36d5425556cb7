package failover

import (
	"context"
	"errors"
	"time"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/wait"
)

// The steps here are both failovers': the clients come to the new primary, which
// becomes the recorded one and gets its settings back; or they go back to the old one.

// repoint leads the entries to the new primary. This was begun beside an earlier step,
// and here its result is awaited; where it failed, or another process had begun it, it
// is done here.
func (f *failover) repoint(ctx context.Context, s *state) error {
	p := f.pauseOf(s)
	if p.besidePointed() {
		return nil
	}
	_, to := f.nodes(s)
	ctx, cancel := context.WithTimeout(ctx, actuator.PointDeadline+f.act.Settings.PauseDeadline)
	defer cancel()
	// Its container may have been started again since.
	if c, err := f.act.Outside.Engine.Inspect(ctx, to.Container); err == nil && c.Address != "" {
		s.Targets = s.Targets.Moved(s.Targets.Primary, c.Address)
	}
	return p.repoint(ctx, s.Targets)
}

// probe writes through the pooler's open connection to the new primary. Where that
// keeps failing, the clients are held for as long as a pause may last and no longer:
// then the new primary itself tells them what is wrong.
func (f *failover) probe(ctx context.Context, s *state) error {
	bounded, cancel := context.WithTimeout(ctx, promoteDeadline)
	defer cancel()
	err := f.act.Outside.Pooler.Probe(bounded, cluster.ProbeEntry)
	if err != nil && f.pauseOf(s).spent() {
		f.act.Log.Error("clients are released though the new primary takes no write", "err", err)
		return nil
	}
	return err
}

// resume releases the clients to the new primary.
func (f *failover) resume(ctx context.Context, s *state) error {
	p := f.pauseOf(s)
	err := p.release(ctx)
	s.PauseMS = p.lengthMS()
	return err
}

// record makes the new primary the recorded one, and gives it its order. Its server
// runs, so the order only says what may be started later. A server that has ended
// since is started here: nobody else does that while the failover runs.
func (f *failover) record(ctx context.Context, s *state) error {
	_, to := f.nodes(s)
	if f.act.Unlocked(to) {
		ctx, cancel := context.WithTimeout(ctx, actuator.ServeDeadline)
		defer cancel()
		err := f.serve(ctx, s, to) // its address may be another one from here on
		if err = errors.Join(err, f.act.Align(ctx, s.Targets)); err != nil {
			return err
		}
	}
	return f.act.RecordPrimary(to, s.SystemID, s.NewTimeline, f.act.Settings.Replication != cluster.Strict)
}

// probeAsClient writes through the clients' own databases, after the clients have had
// their turn: a login of controld's beside theirs would lengthen the outage.
func (f *failover) probeAsClient(ctx context.Context, _ *state) error {
	ctx, cancel := context.WithTimeout(ctx, promoteDeadline)
	defer cancel()
	f.awaitClients(ctx)
	for _, db := range f.act.Settings.Databases {
		if err := f.act.Outside.Pooler.Probe(ctx, db); err != nil {
			return err
		}
	}
	return nil
}

// awaitClients returns when the clients have a server connection, or after a moment.
func (f *failover) awaitClients(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_ = wait.Poll(ctx, 2*actuator.Tick, func() (bool, error) {
		load, err := f.act.Outside.Pooler.Load(ctx, f.act.Settings.Databases[0])
		return load.Largest > 0, err
	})
}

// restoreNew gives the new primary its archiving back and makes it write a
// checkpoint, which a later pg_rewind would need.
func (f *failover) restoreNew(ctx context.Context, s *state) error {
	_, to := f.nodes(s)
	if err := f.act.ApplySettings(ctx, &f.sessions, to, f.act.PrimarySettings(to, false)); err != nil {
		return err
	}
	return f.sessions.With(ctx, to, func(session cluster.Session) error {
		// A slot for the new primary itself would hold WAL for nobody.
		if err := session.DropSlot(ctx, to.Slot()); err != nil {
			return err
		}
		return session.Checkpoint(ctx)
	})
}

// resumeUndone releases the clients to the old primary.
func (f *failover) resumeUndone(ctx context.Context, s *state) error {
	p := f.pauseOf(s)
	err := p.undo(ctx, s.Back)
	s.PauseMS = p.lengthMS()
	return err
}

// serve makes n lead, and notes the address that it has then in the targets: the
// engine gives a container another one when it starts it.
func (f *failover) serve(ctx context.Context, s *state, n cluster.Node) error {
	if err := f.act.Serve(ctx, &f.sessions, n); err != nil {
		return err
	}
	c, err := f.act.Outside.Engine.Inspect(ctx, n.Container)
	if err != nil {
		return err
	}
	was := s.Targets.Primary
	if n.Name == s.From {
		was = s.Back.Primary
	}
	s.Targets, s.Back = s.Targets.Moved(was, c.Address), s.Back.Moved(was, c.Address)
	return nil
}
