package clustertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
)

// A bouncer is the pooler, with its init's keeper of pauses.
type bouncer struct {
	w       *World
	up      bool
	boot    int
	entries map[string]*entry
	lease   *node.Lease
	keeping bool
	longest time.Duration // of a pause
}

// An entry is one line of [databases].
type entry struct {
	name, host  string
	paused      bool
	pausedAt    time.Time
	unleased    time.Time
	killed      int // counts KILLs
	resumed     int // counts RESUMEs
	active      int // transactions that are open
	transacted  bool
	answered    time.Duration
	connections int // server connections
	size        int
}

const poolSize = 20

func newBouncer(w *World) *bouncer {
	b := &bouncer{w: w, up: true, entries: map[string]*entry{}}
	for _, db := range w.databases {
		for _, name := range []string{db, db + cluster.ReadOnlySuffix} {
			b.entries[name] = &entry{name: name, size: poolSize}
		}
	}
	b.entries[cluster.ProbeEntry] = &entry{name: cluster.ProbeEntry, size: 1}
	return b
}

var errPoolerDown = errors.New("pooler: connection refused")

// wait is World.wait while the pooler is up.
func (b *bouncer) wait(ctx context.Context, ok func() bool) error {
	boot := b.boot
	if err := b.w.wait(ctx, func() bool { return !b.up || b.boot != boot || ok() }); err != nil {
		return err
	}
	if !b.up || b.boot != boot {
		b.w.mu.Unlock()
		return errPoolerDown
	}
	return nil
}

func now() bool { return true }

func (b *bouncer) with(ctx context.Context, f func() error) error {
	if err := b.w.wait(ctx, now); err != nil {
		return err
	}
	defer b.w.mu.Unlock()
	if !b.up {
		return errPoolerDown
	}
	err := f()
	b.w.bump()
	return err
}

func (b *bouncer) entry(name string) (*entry, error) {
	e := b.entries[name]
	if e == nil {
		return nil, fmt.Errorf("pooler: no such database: %s", name)
	}
	return e, nil
}

func (b *bouncer) observe(ctx context.Context) (p cluster.PoolerState, err error) {
	err = b.with(ctx, func() error {
		for _, e := range b.entries {
			p.Databases = append(p.Databases, cluster.PoolerDatabase{Name: e.name, Host: e.host, Paused: e.paused, Answered: e.answered})
			if e.name != cluster.ProbeEntry && e.size != poolSize {
				p.Resized = append(p.Resized, e.name)
			}
		}
		slices.SortFunc(p.Databases, func(x, y cluster.PoolerDatabase) int { return strings.Compare(x.Name, y.Name) })
		return nil
	})
	return p, err
}

func (b *bouncer) point(ctx context.Context, t cluster.Targets) error {
	return b.with(ctx, func() error {
		if t.Standby == "" {
			t.Standby = t.Primary
		}
		if t.Probe == "" {
			t.Probe = t.Primary
		}
		for name, e := range b.entries {
			to := t.Primary
			switch {
			case name == cluster.ProbeEntry:
				to = t.Probe
			case strings.HasSuffix(name, cluster.ReadOnlySuffix):
				to = t.Standby
			}
			client := name != cluster.ProbeEntry && !strings.HasSuffix(name, cluster.ReadOnlySuffix)
			if client && e.host != "" && e.host != to && !e.paused && e.transacted {
				b.w.fault("the host of %s changed from %s to %s while it was not paused: its clients are thrown out", name, e.host, to)
			}
			if e.host != to {
				e.connections = 0
			}
			e.host = to
			if name != cluster.ProbeEntry {
				e.size = poolSize
			}
		}
		return nil
	})
}

// pause holds the entry from now on, and returns when nothing is open. A RESUME
// that comes while it waits leaves it waiting for ever.
func (b *bouncer) pause(ctx context.Context, name string) error {
	var e *entry
	resumed := 0
	err := b.with(ctx, func() (err error) {
		if e, err = b.entry(name); err != nil {
			return err
		}
		if !e.paused {
			e.paused, e.pausedAt, e.unleased = true, time.Now(), time.Time{}
		}
		resumed = e.resumed
		b.keep()
		return nil
	})
	if err != nil {
		return err
	}
	if err := b.wait(ctx, func() bool { return e.active == 0 && e.resumed == resumed }); err != nil {
		return fmt.Errorf("pooler: PAUSE %s: %w", name, err)
	}
	e.connections = 0
	b.w.mu.Unlock()
	return nil
}

func (b *bouncer) resume(ctx context.Context, name string) error {
	return b.with(ctx, func() error {
		e, err := b.entry(name)
		if err != nil {
			return err
		}
		b.release(e)
		return nil
	})
}

func (b *bouncer) release(e *entry) {
	if !e.paused {
		return
	}
	e.paused = false
	e.resumed++
	b.longest = max(b.longest, time.Since(e.pausedAt))
}

func (b *bouncer) kill(ctx context.Context, name string) error {
	return b.with(ctx, func() error {
		e, err := b.entry(name)
		if err != nil {
			return err
		}
		if !e.paused {
			e.paused, e.pausedAt, e.unleased = true, time.Now(), time.Time{}
		}
		e.killed++
		e.active, e.connections = 0, 0
		b.keep()
		return nil
	})
}

// keep is the init's keeper: it resumes a pause whose lease has run out.
func (b *bouncer) keep() {
	if b.keeping {
		return
	}
	b.keeping = true
	b.w.after(time.Second, func() {
		b.keeping = false
		for _, e := range b.entries {
			if e.paused && b.up {
				b.look(e)
				b.keep()
			}
		}
	})
}

func (b *bouncer) look(e *entry) {
	switch {
	case b.lease == nil && e.unleased.IsZero():
		e.unleased = time.Now()
	case b.lease == nil && time.Since(e.unleased) > node.LeaseDuration, b.lease != nil && b.lease.Expired(time.Now()):
		b.release(e)
	case b.lease != nil:
		e.unleased = time.Time{}
	}
}

// StopPooler ends the pooler; StartPooler starts it, with no pause left.
func (w *World) StopPooler() {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.pooler
	b.up = false
	for _, e := range b.entries {
		b.release(e)
		e.killed++
		e.active, e.connections = 0, 0
	}
	w.bump()
}

// StartPooler starts the pooler again.
func (w *World) StartPooler() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pooler.up = true
	w.pooler.boot++
	w.bump()
}

// LongestPause is how long clients were held at the most, one that lasts included.
func (w *World) LongestPause() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest := w.pooler.longest
	for _, e := range w.pooler.entries {
		if e.paused {
			longest = max(longest, time.Since(e.pausedAt))
		}
	}
	return longest
}

// Paused are the entries whose clients are held now.
func (w *World) Paused() (names []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, e := range w.pooler.entries {
		if e.paused {
			names = append(names, name)
		}
	}
	return names
}

// A transaction is open on a server, through the pooler.
type transaction struct {
	e      *entry
	killed int
	h      *host
	server *server
}

var errThrownOut = errors.New("server closed the connection unexpectedly")

// begin waits for a server as a client of the pooler does.
func (w *World) begin(ctx context.Context, db string) (transaction, error) {
	var tx transaction
	var refused error
	err := w.wait(ctx, func() bool {
		b := w.pooler
		e := b.entries[db]
		refused = nil
		if e == nil {
			refused = fmt.Errorf("no such database %s", db)
			return true
		}
		if w.closed || !b.up || e.paused || e.active >= e.size {
			return w.closed
		}
		for _, h := range w.hosts {
			if h.address == e.host && h.reachable() {
				e.active++
				e.transacted = e.transacted || db != cluster.ProbeEntry
				e.connections = max(e.connections, e.active)
				tx = transaction{e, e.killed, h, h.server}
				return true
			}
		}
		return false
	})
	if err != nil {
		return tx, err
	}
	w.mu.Unlock()
	if tx.e == nil && refused == nil {
		refused = errors.New("closed")
	}
	return tx, refused
}

// commit writes and waits as synchronous replication asks.
func (tx transaction) commit(ctx context.Context, local bool) (id int, err error) {
	w := tx.h.w
	defer func() {
		w.mu.Lock()
		if tx.e.killed == tx.killed {
			tx.e.active--
		}
		if err == nil {
			tx.e.answered += time.Millisecond
		}
		w.bump()
		w.mu.Unlock()
	}()
	lost := func() bool {
		return tx.h.server != tx.server || tx.server.stopping || tx.e.killed != tx.killed
	}
	if err := w.wait(ctx, func() bool { return lost() || tx.h.reachable() || w.closed }); err != nil {
		return 0, err
	}
	if lost() || w.closed {
		w.mu.Unlock()
		return 0, errThrownOut
	}
	id, err = tx.h.write(tx.server)
	w.mu.Unlock()
	if err != nil || local {
		return id, err
	}
	// The commit is on disk here; the answer waits for the synchronous standby.
	if err := w.wait(ctx, func() bool { return lost() || w.closed || tx.h.synced(id) && !tx.h.frozen() }); err != nil {
		return id, err
	}
	defer w.mu.Unlock()
	if lost() || w.closed {
		return id, errThrownOut
	}
	return id, nil
}

func (h *host) write(s *server) (int, error) {
	if s.recovery {
		return 0, cluster.ErrReadOnly
	}
	r := h.append(h.data.control.Timeline())
	h.w.pump()
	h.w.bump()
	return r.id, nil
}

// synced reports whether a commit may be acknowledged.
func (h *host) synced(id int) bool {
	if h.server == nil || len(h.server.applied.SynchronousStandbys) == 0 {
		return true
	}
	for _, o := range h.w.hosts {
		if o.server != nil && o.server.upstream == h && o.has(id) {
			return true
		}
	}
	return false
}

// has relies on ids that grow along every branch.
func (h *host) has(id int) bool {
	_, found := slices.BinarySearchFunc(h.data.wal, id, func(r record, id int) int { return r.id - id })
	return found
}

// Write lets a client commit through db, one transaction every period, until
// Close. It remembers what was acknowledged.
func (w *World) Write(db string, period time.Duration) {
	w.writing.Go(func() {
		for {
			select {
			case <-w.gone:
				return
			case <-time.After(period):
			}
			w.transact(db)
		}
	})
}

func (w *World) transact(db string) {
	ctx, cancel := context.WithTimeout(context.Background(), queryWait)
	defer cancel()
	tx, err := w.begin(ctx, db)
	id := 0
	if err == nil {
		time.Sleep(time.Millisecond)
		id, err = tx.commit(ctx, false)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closed:
	case err == nil:
		w.acked = append(w.acked, ack{id, tx.h.node.Name})
	case errors.Is(err, cluster.ErrReadOnly):
		w.rejected++
	default:
		w.failed = append(w.failed, err.Error())
	}
}

// Hold opens a transaction through db and returns what commits it.
func (w *World) Hold(ctx context.Context, db string) (func() error, error) {
	tx, err := w.begin(ctx, db)
	if err != nil {
		return nil, err
	}
	return func() error {
		_, err := tx.commit(ctx, false)
		return err
	}, nil
}

// probe is a write through an entry that waits for no standby.
func (b *bouncer) probe(ctx context.Context, db string) error {
	b.w.mu.Lock()
	up := b.up
	b.w.mu.Unlock()
	if !up {
		return errPoolerDown
	}
	tx, err := b.w.begin(ctx, db)
	if err != nil {
		return fmt.Errorf("pooler: probe through %s: %w", db, err)
	}
	if _, err := tx.commit(ctx, true); err != nil {
		return fmt.Errorf("pooler: probe through %s: %w", db, err)
	}
	return nil
}
