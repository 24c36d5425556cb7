package failover

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/node"
)

// resumeDeadline bounds a RESUME of all entries.
const resumeDeadline = 5 * time.Second

// A pause holds the clients of the old primary in the pooler, leads them to the new one
// meanwhile, and lets them go: forward, or back where the failover is undone. It is
// bounded by a lease that the pooler's own init ends, see package node.
type pause struct {
	act   *actuator.Actuator
	kind  string // of the operation, by which the pooler's init knows whose it is
	state *pauseState

	// What another process has to do anew.
	lease   *lease             // nil: this process holds nothing
	claimed bool               // it has held it once
	asked   chan error         // the answer to a PAUSE that was sent and not awaited
	giveUp  context.CancelFunc // ends that PAUSE; set with asked
	pointed chan error         // how leading the entries beside another step went

	heldAt, releasedAt time.Time // of this process: a pause is measured, not journalled
}

// A pauseState is what of a pause is journalled.
type pauseState struct {
	Entries []string `json:"entries"` // of the pooler, that are held
	// ClaimedAt is when it was first claimed: all attempts at what keeps failing in it
	// count together.
	ClaimedAt time.Time `json:"claimed_at"`
}

// heldEntries are what a pause holds: the clients' databases, and those of their
// read-only twins that lead where they do, as long as a standby that is back has not
// got its readers.
func heldEntries(databases []string, p cluster.PoolerState) []string {
	held := slices.Clone(databases)
	var primary string
	for d := range p.Clients() {
		if d.Name == databases[0] {
			primary = d.Host
		}
	}
	for d := range p.Clients() {
		if primary != "" && d.Host == primary && strings.HasSuffix(d.Name, cluster.ReadOnlySuffix) {
			held = append(held, d.Name)
		}
	}
	return held
}

// each does the same with every entry at once, each over its own connection, and goes
// on after an error: what can be paused or released is.
func each(ctx context.Context, entries []string, do func(context.Context, string) error) error {
	errs := make([]error, len(entries))
	var wg sync.WaitGroup
	for i, db := range entries {
		wg.Go(func() { errs[i] = do(ctx, db) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// claim has to come before PAUSE is asked for.
func (p *pause) claim() error {
	if p.lease != nil {
		return nil
	}
	entries, now := slices.Clone(p.state.Entries), time.Now()
	l, err := claim(func() error { return p.act.Outside.Pooler.RenewLease(p.kind, entries) }, p.act.Settings.PauseLimit)
	if err != nil {
		return err
	}
	// What an earlier process held so long ago its pooler's init has released for certain.
	over := !p.claimed && now.Sub(p.state.ClaimedAt) > p.act.Settings.PauseLimit+node.LeaseDuration
	if p.state.ClaimedAt.IsZero() || over {
		p.state.ClaimedAt = now
	}
	p.lease, p.claimed = l, true
	return nil
}

// held is an error when the pause may not be ours any more: the pooler's init may have
// resumed the clients.
func (p *pause) held() error {
	if p.lease == nil {
		return errors.New("the pause is not claimed any more")
	}
	return p.lease.valid()
}

// spent reports that the clients were held for as long as one pause may last.
func (p *pause) spent() bool {
	return !p.state.ClaimedAt.IsZero() && time.Since(p.state.ClaimedAt) > p.act.Settings.PauseLimit
}

// drop gives up the claim. What is paused stays so, until it is resumed.
func (p *pause) drop() {
	if p.lease != nil {
		p.lease.drop()
		p.lease = nil
	}
}

// hold pauses the clients. outlasted: a transaction did not end in time, and some are
// held all the same: release is owed.
func (p *pause) hold(ctx context.Context) (outlasted bool, err error) {
	if err := p.claim(); err != nil {
		return false, err
	}
	sent := time.Now()
	bounded, cancel := context.WithTimeout(ctx, p.act.Settings.PauseDeadline)
	defer cancel()
	if err = each(bounded, p.state.Entries, p.act.Outside.Pooler.Pause); err != nil {
		p.heldAt = sent // whoever was between two transactions has been held since
		return bounded.Err() != nil && ctx.Err() == nil, err
	}
	p.heldAt = time.Now()
	return false, nil
}

// send asks for the pause and does not wait: on a frozen primary only its kill ends what
// PAUSE waits for. After limit it is given up.
func (p *pause) send(ctx context.Context, limit time.Duration) error {
	if err := p.claim(); err != nil {
		return err
	}
	p.heldAt = time.Now()
	answer, entries := make(chan error, 1), slices.Clone(p.state.Entries)
	bounded, cancel := context.WithTimeout(ctx, limit)
	p.asked, p.giveUp = answer, cancel
	go func() {
		defer cancel()
		answer <- each(bounded, entries, p.act.Outside.Pooler.PauseNow)
	}()
	return nil
}

// collect waits for the answer to what was sent. Where there is none the pause is not
// held, which is no error; that another process has sent it is.
func (p *pause) collect(ctx context.Context) error {
	if p.asked == nil {
		return errors.New("the pause was asked for by another process")
	}
	select {
	case err := <-p.asked:
		p.asked = nil
		if err != nil {
			p.act.Log.Warn("pause not answered", "err", err)
			p.drop()
		}
	case <-time.After(actuator.ProveDeadline):
		p.forget()
		p.drop()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// forget ends a PAUSE that still waits. A RESUME before its end would leave it waiting,
// and one before its beginning would be lost on it.
func (p *pause) forget() {
	if p.asked == nil {
		return
	}
	p.giveUp()
	if err := <-p.asked; err != nil {
		p.act.Log.Info("pause given up", "err", err)
	}
	p.asked = nil
}

// again claims the pause where this process did not ask for it, or has lost it: it may
// have run out since, and a host may change only under one.
func (p *pause) again(ctx context.Context) error {
	if p.held() == nil {
		return nil
	}
	p.drop()
	if err := p.claim(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.act.Settings.PauseDeadline)
	defer cancel()
	err := each(ctx, p.state.Entries, p.act.Outside.Pooler.PauseNow)
	if err != nil {
		p.drop() // nothing is claimed that is not held
	}
	return err
}

// pointBeside leads the entries where t says while another step goes on; then, if any,
// is called after that.
func (p *pause) pointBeside(ctx context.Context, t cluster.Targets, then func(context.Context)) {
	pointed := make(chan error, 1)
	p.pointed = pointed
	go func() {
		ctx, cancel := context.WithTimeout(ctx, actuator.PointDeadline)
		defer cancel()
		err := p.act.Outside.Pooler.Point(ctx, t)
		if err == nil && then != nil {
			then(ctx)
		}
		pointed <- err
	}()
}

// besidePointed waits for what pointBeside began, which could overwrite what follows,
// and reports whether it is done.
func (p *pause) besidePointed() bool {
	if p.pointed == nil {
		return false
	}
	err := <-p.pointed
	p.pointed = nil
	if err != nil {
		p.act.Log.Warn("pooler not repointed beside another step", "err", err)
	}
	return err == nil
}

// repoint leads the entries where t says. Clients that lead there already need no
// further pause, which with strict would wait for commits that wait for the old
// primary's return.
func (p *pause) repoint(ctx context.Context, t cluster.Targets) error {
	if p.held() != nil || p.spent() {
		now, err := p.act.Outside.Pooler.Observe(ctx)
		if err == nil && (now.Aligned(t) || p.spent() && len(now.Changing(t)) == 0) {
			return nil
		}
	}
	if err := p.again(ctx); err != nil {
		return err
	}
	return p.act.Outside.Pooler.Point(ctx, t)
}

// pointBack leads the entries to where they led. A process that did not ask for the
// pause, or has lost it, asks for its own.
func (p *pause) pointBack(ctx context.Context, back cluster.Targets) error {
	p.besidePointed()
	ctx, cancel := context.WithTimeout(ctx, actuator.PointDeadline)
	defer cancel()
	if p.held() != nil {
		return p.act.Align(ctx, back)
	}
	return p.act.Outside.Pooler.Point(ctx, back)
}

// release lets the clients go to where the entries lead.
func (p *pause) release(ctx context.Context) error {
	p.releasedAt = time.Now()
	err := p.resume(ctx)
	p.act.Look.Quiet(100 * time.Millisecond) // the clients log in first
	p.drop()
	if err != nil {
		return err
	}
	return p.act.Outside.Pooler.RemoveLease()
}

// undo lets them go to the old primary. Where the entries were led elsewhere beside a
// step that is undone, they are led back first.
func (p *pause) undo(ctx context.Context, back cluster.Targets) error {
	pointed := p.pointed != nil
	p.forget()
	var err error
	if pointed {
		err = p.pointBack(ctx, back)
	}
	err = errors.Join(err, p.resume(ctx))
	p.drop()
	if p.releasedAt.IsZero() {
		p.releasedAt = time.Now()
	}
	return errors.Join(err, p.act.Outside.Pooler.RemoveLease())
}

func (p *pause) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resumeDeadline)
	defer cancel()
	return each(ctx, p.state.Entries, p.act.Outside.Pooler.Resume)
}

// lengthMS is how long the clients were held, in milliseconds; 0: this process has not
// seen it begin and end.
func (p *pause) lengthMS() float64 {
	if p.heldAt.IsZero() || p.releasedAt.IsZero() {
		return 0
	}
	return float64(p.releasedAt.Sub(p.heldAt).Microseconds()) / 1000
}
