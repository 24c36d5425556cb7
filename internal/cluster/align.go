package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"controld/internal/operation"
)

// alignPause bounds how long the pause for a changed host may wait for open
// transactions.
const alignPause = 2 * time.Second

// align points every entry of the pooler where t says. Entries whose host
// changes are paused for the moment, so that no login is in progress while it does.
func (m *Manager) align(ctx context.Context, t Targets) error {
	looking, done := context.WithTimeout(ctx, pointDeadline)
	defer done()
	p, err := m.out.Pooler.Observe(looking)
	if err != nil {
		return err
	}
	changing := changingEntries(p, t)
	owed := slices.Concat(changing, pausedEntries(p)) // a controld before may have died in its pause
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), serveDeadline)
		defer cancel()
		var errs []error
		for _, db := range owed {
			errs = append(errs, m.out.Pooler.Resume(undo, db))
		}
		if len(owed) > 0 {
			errs = append(errs, m.out.Pooler.RemoveLease())
		}
		if err := errors.Join(errs...); err != nil {
			m.log.Error("entries not resumed", "databases", changing, "err", err)
		}
	}()
	if len(changing) > 0 {
		if err := m.out.Pooler.RenewLease(KindAlign, changing); err != nil {
			return err
		}
	}
	bounded, cancel := context.WithTimeout(ctx, alignPause)
	defer cancel()
	for _, db := range changing {
		m.awaitLogins(bounded, db)
		if err := m.out.Pooler.PauseNow(bounded, db); err != nil {
			return fmt.Errorf("pause %s to change its host: %w", db, err)
		}
	}
	pointing, stop := context.WithTimeout(ctx, pointDeadline)
	defer stop()
	return m.out.Pooler.Point(pointing, t)
}

// awaitLogins gives the logins that are under way a moment, because PAUSE breaks them
// off. Those at an address where nobody is any more do not end.
func (m *Manager) awaitLogins(ctx context.Context, db string) {
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_ = poll(ctx, 5*tick, func() (bool, error) {
		load, err := m.out.Pooler.Load(ctx, db)
		return load.Logins == 0, err
	})
}

// changingEntries are the existing entries of clients that t leads elsewhere. An
// entry without a host holds no connection.
func changingEntries(p PoolerState, t Targets) []string {
	var out []string
	for d := range p.Clients() {
		if d.Host != "" && d.Host != t.of(d.Name) {
			out = append(out, d.Name)
		}
	}
	slices.Sort(out)
	return out
}

// pausedEntries are those entries of clients that are paused now.
func pausedEntries(p PoolerState) []string {
	var out []string
	for d := range p.Clients() {
		if d.Paused {
			out = append(out, d.Name)
		}
	}
	return out
}

type alignState struct {
	Targets Targets `json:"targets"`
	Primary string  `json:"primary,omitempty"` // whose settings are those of a move; empty: they are in order
	Synced  bool    `json:"synced,omitempty"`  // it waits for a synchronous standby
}

// alignWork points the pooler where the nodes are, from a fresh observation, and
// gives the primary back the settings that the undoing of a move could not,
// because it did not answer then.
func (m *Manager) alignWork() operation.Runnable {
	return operation.Work[alignState]{
		Prepare: func(ctx context.Context, s *alignState) (operation.Prepared, error) {
			v := m.fresh(ctx)
			leader, problem := Leader(v)
			if problem != nil {
				return operation.Prepared{}, problem
			}
			s.Targets = WantTargets(v)
			if moving(leader) {
				s.Primary, s.Synced = leader.Node.Name, commitsWait(leader)
			}
			if aligned(v.Pooler, s.Targets) && v.Pooler.Err == "" && s.Primary == "" {
				return operation.Prepared{Already: "the pooler's entries lead where the nodes are"}, nil
			}
			return operation.Prepared{}, nil
		},
		Steps: func(*alignState) []operation.Step[alignState] {
			return []operation.Step[alignState]{
				{Name: "point pooler", Entry: true, HoldsClients: true, Do: func(ctx context.Context, s *alignState) error { return m.align(ctx, s.Targets) }},
				{Name: "restore settings", Do: within(settingDeadline, m.restorePrimary)},
			}
		},
		Forward: true,
		Result: func(s *alignState) map[string]any {
			return map[string]any{"primary": s.Targets.Primary, "standby": s.Targets.Standby}
		},
	}
}

func (m *Manager) restorePrimary(ctx context.Context, s *alignState) error {
	if s.Primary == "" {
		return nil
	}
	n, err := m.node(s.Primary)
	if err != nil {
		return err
	}
	sessions := sessionCache{servers: m.out.Servers}
	defer sessions.closeAll()
	return m.applySettings(ctx, &sessions, n, m.primarySettings(n, s.Synced))
}

// Align starts pointing the pooler where the nodes are.
func (m *Manager) Align(ctx context.Context, reason string, by operation.Caller) (operation.Record, error) {
	params, err := json.Marshal(nodeRequest{})
	if err != nil {
		return operation.Record{}, fmt.Errorf("encode request: %w", err)
	}
	return m.operations.Start(ctx, operation.Spec{Kind: KindAlign, Reason: reason, Caller: by, Params: params}, m.alignWork())
}
