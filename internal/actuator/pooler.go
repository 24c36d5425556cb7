package actuator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"controld/internal/cluster"
	"controld/internal/wait"
)

// alignPause bounds how long the pause for a changed host may wait for open
// transactions.
const alignPause = 2 * time.Second

// Align points every entry of the pooler where t says. Entries whose host
// changes are paused for the moment, so that no login is in progress while it does.
func (a *Actuator) Align(ctx context.Context, t cluster.Targets) error {
	looking, done := context.WithTimeout(ctx, PointDeadline)
	defer done()
	p, err := a.Outside.Pooler.Observe(looking)
	if err != nil {
		return err
	}
	changing := p.Changing(t)
	defer func() {
		owed := slices.Concat(changing, p.Paused()) // a controld before may have died in its pause
		if err := a.letGo(ctx, owed); err != nil {
			a.Log.Error("entries not resumed", "databases", changing, "err", err)
		}
	}()
	if err := a.holdForHost(ctx, changing); err != nil {
		return err
	}
	pointing, stop := context.WithTimeout(ctx, PointDeadline)
	defer stop()
	return a.Outside.Pooler.Point(pointing, t)
}

// holdForHost pauses the entries of which the host is to change, under a lease. After
// an error, too, letGo is owed.
func (a *Actuator) holdForHost(ctx context.Context, entries []string) error {
	if len(entries) == 0 {
		return nil
	}
	if err := a.Outside.Pooler.RenewLease(cluster.KindAlign, entries); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, alignPause)
	defer cancel()
	for _, db := range entries {
		a.AwaitLogins(ctx, db)
		if err := a.Outside.Pooler.PauseNow(ctx, db); err != nil {
			return fmt.Errorf("pause %s to change its host: %w", db, err)
		}
	}
	return nil
}

// letGo resumes the entries, also where ctx has ended.
func (a *Actuator) letGo(ctx context.Context, entries []string) error {
	if len(entries) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ServeDeadline)
	defer cancel()
	var errs []error
	for _, db := range entries {
		errs = append(errs, a.Outside.Pooler.Resume(ctx, db))
	}
	return errors.Join(append(errs, a.Outside.Pooler.RemoveLease())...)
}

// AwaitLogins gives the logins that are under way a moment, because PAUSE breaks them
// off. Those at an address where nobody is any more do not end.
func (a *Actuator) AwaitLogins(ctx context.Context, db string) {
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_ = wait.Poll(ctx, 5*Tick, func() (bool, error) {
		load, err := a.Outside.Pooler.Load(ctx, db)
		return load.Logins == 0, err
	})
}

// PointReaders leads the read-only entries to the standby and the rest to the
// leader. An entry whose host changes is paused for the moment; where a reader's
// transaction outlasts that, the entries stay as they are and a later align
// tries again.
func (a *Actuator) PointReaders(ctx context.Context, standby, leader cluster.Node) error {
	s, err := a.Outside.Engine.Inspect(ctx, standby.Container)
	if err != nil {
		return err
	}
	l, err := a.Outside.Engine.Inspect(ctx, leader.Container)
	if err != nil {
		return err
	}
	if s.Address == "" || l.Address == "" {
		return nil // a container is restarting: align follows
	}
	if err := a.Align(ctx, cluster.Targets{Primary: l.Address, Standby: s.Address}); err != nil {
		a.Log.Warn("read-only entries not repointed yet", "err", err)
	}
	return nil
}
