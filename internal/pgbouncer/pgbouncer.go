// Package pgbouncer drives the PgBouncer of a cluster: over its console, with
// its configuration file, and as a client that tries whether a write gets
// through. Where the entries should lead, and when to pause them, is decided
// in package cluster.
package pgbouncer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/render"
)

// Paths and ports as PgBouncer's container has them.
const (
	listenPort = 6432
	socketDir  = "/run/secrets-own"
	authFile   = "/run/secrets-own/userlist.txt"
	lookupUser = "pooler"
)

// configFile is the name of the configuration in its volume.
const configFile = "pgbouncer.ini"

// nowhere is the address of an entry without a target: nothing listens there
// in the pooler's container. Its clients wait for a target, as in a pause.
const nowhere = "127.0.0.1"

// Config says which PgBouncer this is and what it serves.
type Config struct {
	Address    string // of the console and the clients: host:port
	ConfigDir  string // the configuration volume, as controld sees it
	User       string // console administrator, and the role that probes
	Password   string
	Databases  []string // each is an entry, with a read-only twin
	ServerPort int      // of the nodes
	PoolSize   int      // server connections of one database and user
}

// entryName is what PgBouncer's file can hold as a name.
var entryName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// validate refuses what would make two entries of one name, or a file that
// PgBouncer does not load.
func (c Config) validate() error {
	if len(c.Databases) == 0 {
		return errors.New("pooler: no database is listed")
	}
	seen := map[string]bool{"pgbouncer": true, cluster.ProbeEntry: true}
	for _, db := range c.Databases {
		if !entryName.MatchString(db) {
			return fmt.Errorf("pooler: database %q cannot be listed: PgBouncer takes names of letters, digits and _ . - alone", db)
		}
		for _, name := range []string{db, readOnly(db)} {
			if seen[name] {
				return fmt.Errorf("pooler: database %q cannot be listed: the entry %q is there already or is reserved", db, name)
			}
			seen[name] = true
		}
	}
	if c.PoolSize <= 0 {
		return fmt.Errorf("pooler: pool size is %d, must be at least 1", c.PoolSize)
	}
	return nil
}

// A Pooler is one PgBouncer. It is safe for concurrent use: Pause, Resume and
// Probe of an entry do not wait for each other.
type Pooler struct {
	cfg Config

	// mu guards the standing console connection and what is known of the file.
	mu      sync.Mutex
	console *connection
	proven  []byte // the file that the PgBouncer behind console has loaded

	idle  consoles // for the commands that wait
	probe probe
}

var _ cluster.Pooler = (*Pooler)(nil)

// New makes a Pooler. It connects at the first call.
func New(cfg Config) (*Pooler, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Pooler{cfg: cfg}, nil
}

// Close ends the standing connections.
func (p *Pooler) Close() {
	p.mu.Lock()
	p.dropConsole()
	p.mu.Unlock()
	p.idle.close()
	p.probe.close()
}

// Observe implements cluster.Pooler. Container is left to the engine.
func (p *Pooler) Observe(ctx context.Context) (cluster.PoolerState, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	entries, err := p.showDatabases(ctx)
	if err != nil {
		return cluster.PoolerState{}, err
	}
	answered, err := p.answered(ctx)
	if err != nil {
		return cluster.PoolerState{}, err
	}
	state := cluster.PoolerState{SeenAt: time.Now()}
	for _, e := range entries {
		state.Databases = append(state.Databases, cluster.PoolerDatabase{
			Name: e.name, Host: e.host, Paused: e.paused, Answered: answered[e.name],
		})
	}
	for _, want := range p.entries(cluster.Targets{}, p.cfg.PoolSize) {
		i := slices.IndexFunc(entries, func(e entry) bool { return e.name == want.Name })
		switch {
		case i < 0:
			state.Missing = append(state.Missing, want.Name)
		case entries[i].poolSize != want.PoolSize:
			state.Resized = append(state.Resized, want.Name)
		}
	}
	return state, nil
}

// Point implements cluster.Pooler. It writes and reloads nothing when the
// PgBouncer that runs now is known to have loaded the same file.
func (p *Pooler) Point(ctx context.Context, t cluster.Targets) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.apply(ctx, p.entries(t, p.cfg.PoolSize))
}

// Drain implements cluster.Pooler. PgBouncer closes idle server connections
// over the new size about three times a second; no client notices. The entries
// keep leading where they lead now.
func (p *Pooler) Drain(ctx context.Context, size int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, err := p.showDatabases(ctx)
	if err != nil {
		return err
	}
	if size <= 0 {
		size = p.cfg.PoolSize
	}
	return p.apply(ctx, p.entries(p.targets(now), size))
}

// targets are where the entries lead now. A first entry that is not there
// leads nowhere.
func (p *Pooler) targets(now []entry) cluster.Targets {
	host := func(name string) string {
		for _, e := range now {
			if e.name == name {
				return e.host
			}
		}
		return ""
	}
	first := p.cfg.Databases[0]
	return cluster.Targets{Primary: host(first), Standby: host(readOnly(first)), Probe: host(cluster.ProbeEntry)}
}

// entries are all entries of the file, always in the same order.
func (p *Pooler) entries(t cluster.Targets, primaryPoolSize int) []render.Entry {
	if t.Standby == "" {
		t.Standby = t.Primary
	}
	if t.Probe == "" {
		t.Probe = t.Primary
	}
	entry := func(name, host, database string, size int) render.Entry {
		if host == "" {
			host = nowhere
		}
		return render.Entry{Name: name, Host: host, Port: p.cfg.ServerPort, Database: database, PoolSize: size}
	}
	var all []render.Entry
	for _, db := range p.cfg.Databases {
		all = append(all,
			entry(db, t.Primary, db, primaryPoolSize),
			entry(readOnly(db), t.Standby, db, p.cfg.PoolSize))
	}
	return append(all, entry(cluster.ProbeEntry, t.Probe, p.cfg.Databases[0], 1))
}

// apply makes PgBouncer have these entries and proves it.
func (p *Pooler) apply(ctx context.Context, want []render.Entry) error {
	file := render.PgBouncerINI(render.PgBouncer{
		Entries: want, ListenPort: listenPort, SocketDir: socketDir, AuthFile: authFile,
		AuthUser: lookupUser, AdminUser: p.cfg.User, PoolSize: p.cfg.PoolSize,
	})
	if p.proven != nil && bytes.Equal(p.proven, file) && p.prove(ctx, want) == nil {
		return nil
	}
	if err := p.write(file); err != nil {
		return err
	}
	if _, err := p.ask(ctx, "RELOAD"); err != nil {
		return err
	}
	if err := p.prove(ctx, want); err != nil {
		return err
	}
	p.proven = file
	return nil
}

// write puts the file into the configuration volume unless it stands there
// already, as after a restart of controld.
func (p *Pooler) write(file []byte) error {
	if _, err := node.WriteChanged(filepath.Join(p.cfg.ConfigDir, configFile), file, 0o644); err != nil {
		return fmt.Errorf("pooler: %w", err)
	}
	return nil
}

// EnsureConfig writes a configuration that leads nowhere when there is none:
// PgBouncer's init waits for the file, and Point for PgBouncer.
func (p *Pooler) EnsureConfig() error {
	_, err := os.Stat(filepath.Join(p.cfg.ConfigDir, configFile))
	if err == nil {
		return nil
	}
	return p.write(render.PgBouncerINI(render.PgBouncer{
		Entries: p.entries(cluster.Targets{}, p.cfg.PoolSize), ListenPort: listenPort, SocketDir: socketDir,
		AuthFile: authFile, AuthUser: lookupUser, AdminUser: p.cfg.User, PoolSize: p.cfg.PoolSize,
	}))
}

// prove asks PgBouncer itself: RELOAD does not say whether it took the file.
func (p *Pooler) prove(ctx context.Context, want []render.Entry) error {
	have, err := p.showDatabases(ctx)
	if err != nil {
		return err
	}
	for _, w := range want {
		i := slices.IndexFunc(have, func(h entry) bool { return h.name == w.Name })
		if i < 0 {
			return fmt.Errorf("pooler: PgBouncer has no entry %s after RELOAD; its log says why", w.Name)
		}
		if h := have[i]; h.address != w.Host || h.poolSize != w.PoolSize {
			return fmt.Errorf("pooler: entry %s leads to %s with %d connections after RELOAD, not to %s with %d; PgBouncer's log says why",
				w.Name, h.address, h.poolSize, w.Host, w.PoolSize)
		}
	}
	return nil
}

// RenewLease implements cluster.Pooler.
func (p *Pooler) RenewLease(operation string, databases []string) error {
	l := node.Lease{Databases: databases, RenewedAt: time.Now(), Holder: operation}
	if err := node.WriteLease(p.cfg.ConfigDir, l); err != nil {
		return fmt.Errorf("pooler: %w", err)
	}
	return nil
}

// RemoveLease implements cluster.Pooler.
func (p *Pooler) RemoveLease() error {
	if err := node.RemoveLease(p.cfg.ConfigDir); err != nil {
		return fmt.Errorf("pooler: %w", err)
	}
	return nil
}

func readOnly(database string) string { return database + cluster.ReadOnlySuffix }
