package pooler

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"controld/internal/node"
)

// A Console is what a Keeper needs of PgBouncer's.
type Console interface {
	// Paused lists the entries that are paused.
	Paused(ctx context.Context) ([]string, error)
	Resume(ctx context.Context, database string) error
	// Stuck lists the entries whose clients have waited for longer than
	// patience while no server connection is open.
	Stuck(ctx context.Context, patience time.Duration) ([]string, error)
	// Kill drops the entry's clients and leaves it paused.
	Kill(ctx context.Context, database string) error
}

// A Keeper ends pauses that nobody keeps up: one whose lease was not renewed for
// node.LeaseDuration, and one that has lasted for that long without a lease.
//
// If the server behind such a pause is gone, its clients get an error. Whoever held
// the pause is gone as well, so there is nobody to wait for.
type Keeper struct {
	Dir     string // where the lease is
	Console Console
	Log     *slog.Logger
}

// How often a Keeper looks, and how long one command of the console may take.
const (
	keeperPeriod   = time.Second
	consoleTimeout = 2 * time.Second
)

// clientPatience is how long a client may wait for a server whose pause has run
// out. Together with node.LeaseDuration it stays below 15 s.
const clientPatience = 2 * time.Second

// Run looks until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	tick := time.NewTicker(keeperPeriod)
	defer tick.Stop()
	var unleasedSince time.Time // since when something is paused without a lease
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			unleasedSince = k.look(ctx, unleasedSince)
		}
	}
}

// look ends what has to end now. It takes, and returns, since when something is
// paused without a lease. It asks the console only while there is no valid lease: in
// a pause that is kept up the keeper takes no time of PgBouncer's.
func (k *Keeper) look(ctx context.Context, unleasedSince time.Time) time.Time {
	lease, err := node.ReadLease(k.Dir)
	if err == nil && !lease.Expired(time.Now()) {
		return time.Time{}
	}
	without := errors.Is(err, node.ErrNoLease)
	bounded, cancel := context.WithTimeout(ctx, consoleTimeout)
	defer cancel()
	paused, pausedErr := k.Console.Paused(bounded)
	if pausedErr != nil {
		if ctx.Err() == nil { // else it is the end of the init
			k.Log.Warn("pooler's console does not answer", "err", pausedErr)
		}
		return unleasedSince
	}
	if len(paused) == 0 {
		if !without {
			k.answer(bounded, lease)
		}
		return time.Time{}
	}
	if without {
		if unleasedSince.IsZero() {
			return time.Now()
		}
		if time.Since(unleasedSince) <= node.LeaseDuration {
			return unleasedSince
		}
	}
	for _, database := range paused {
		log := k.Log.With("database", database, "holder", lease.Holder, "renewed_at", lease.RenewedAt, "lease_err", err)
		if err := k.Console.Resume(bounded, database); err != nil {
			log.Warn("pause not resumed", "err", err)
			continue
		}
		log.Warn("pause resumed: nobody keeps it up")
	}
	return unleasedSince // again at the next look, until none is left
}

// answer drops the clients that still wait after the end of the pause of l.
func (k *Keeper) answer(ctx context.Context, l node.Lease) {
	stuck, err := k.Console.Stuck(ctx, clientPatience)
	if err != nil {
		k.Log.Warn("pooler's console does not answer", "err", err)
		return
	}
	for _, database := range stuck {
		if !slices.Contains(l.Databases, database) {
			continue
		}
		err := k.Console.Kill(ctx, database)
		err = errors.Join(err, k.Console.Resume(ctx, database))
		k.Log.Warn("clients dropped: the pause has run out and no server answers", "database", database, "holder", l.Holder, "err", err)
	}
}
