// Package probe is a client whose word can be checked. It writes small
// transactions through an endpoint at a steady pace, keeps when each was sent
// and acknowledged, and afterwards holds what a server returns against what it
// was told: nothing acknowledged may be missing, nothing may be there twice.
// It also measures U, the machine's own unit of time. It never retries a
// transaction. Starting clusters, failing them over and judging the figures
// belongs to the tests and benchmarks that use it.
//
// The history is kept in slices allocated beforehand and free of pointers, so
// that the garbage collector has little to do and a run disturbs what it
// measures as little as possible.
package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A Mode is how a worker talks to the server.
type Mode string

// The modes. Exec and Prepared send one INSERT that commits by itself: Exec
// unprepared, by the extended protocol; Prepared as a named statement. Tx
// opens a transaction, inserts, waits for Config.Think and commits.
const (
	Exec     Mode = "exec"
	Prepared Mode = "prepared"
	Tx       Mode = "tx"
)

// A Config says what to run. Zero values take the defaults.
type Config struct {
	DSN     string
	Table   string        // "probe"; made if it is missing, without any unique constraint
	Workers int           // 8
	Every   time.Duration // 20 ms: the pace of each worker; beats that are missed are left out
	Mode    Mode          // Exec
	Think   time.Duration // 50 ms: how long a transaction of Tx stays open

	// NewConnectionEvery is the pace at which a further client opens a fresh
	// connection and runs select 1 over it; 0: there is none.
	NewConnectionEvery time.Duration

	ConnectTimeout     time.Duration // 10 s, for each host of the DSN
	TransactionTimeout time.Duration // 30 s: a transaction without an answer fails after it
	ReconnectEvery     time.Duration // 10 ms: the wait after a failed connect

	// Cold leaves out what Start otherwise does first: making the table and
	// waiting for every worker's connection. The endpoint may be down.
	Cold bool
}

// capacity is for how long the history needs no further allocation.
const capacity = 2 * time.Minute

func (c Config) withDefaults() Config {
	setDefault(&c.Table, "probe")
	setDefault(&c.Workers, 8)
	setDefault(&c.Every, 20*time.Millisecond)
	setDefault(&c.Mode, Exec)
	setDefault(&c.Think, 50*time.Millisecond)
	setDefault(&c.ConnectTimeout, 10*time.Second)
	setDefault(&c.TransactionTimeout, 30*time.Second)
	setDefault(&c.ReconnectEvery, 10*time.Millisecond)
	return c
}

// cycle is the time from one transaction of a worker to its next.
func (c Config) cycle() time.Duration {
	if c.Mode == Tx {
		return max(c.Every, c.Think)
	}
	return c.Every
}

func setDefault[T comparable](value *T, preset T) {
	var zero T
	if *value == zero {
		*value = preset
	}
}

// A Prober is a running load.
type Prober struct {
	config Config
	conn   *pgx.ConnConfig
	run    int64 // tells this run's rows from those of others in the table
	base   time.Time
	length time.Duration // set when it is to stop

	stop    chan struct{}
	stopped sync.Once
	running sync.WaitGroup
	workers []*worker
	opener  *opener

	acked   atomic.Int64
	lastAck atomic.Int64 // after base, in ns
}

// Run writes until ctx ends, and returns what happened.
func Run(ctx context.Context, c Config) (*Report, error) {
	p, err := Start(ctx, c)
	if err != nil {
		return nil, err
	}
	<-ctx.Done()
	return p.Stop(), nil
}

// Start starts the load. Unless the configuration says Cold, the table is there and every
// worker is connected when it returns. The caller has to call Stop.
func Start(ctx context.Context, c Config) (*Prober, error) {
	c = c.withDefaults()
	conn, err := connConfig(c)
	if err != nil {
		return nil, err
	}
	p := &Prober{config: c, conn: conn, run: rand.Int64(), stop: make(chan struct{})}
	if !c.Cold {
		if err := p.makeTable(ctx); err != nil {
			return nil, err
		}
	}
	for i := range c.Workers {
		p.workers = append(p.workers, newWorker(p, i))
	}
	if !c.Cold {
		if err := p.connectAll(ctx); err != nil {
			return nil, err
		}
	}
	p.base = time.Now()
	p.lastAck.Store(-1)
	for _, w := range p.workers {
		p.running.Go(w.loop)
	}
	if c.NewConnectionEvery > 0 {
		p.opener = newOpener(p)
		p.running.Go(p.opener.loop)
	}
	return p, nil
}

func connConfig(c Config) (*pgx.ConnConfig, error) {
	conn, err := parse(c.DSN)
	if err != nil {
		return nil, err
	}
	conn.ConnectTimeout = c.ConnectTimeout
	conn.DefaultQueryExecMode = pgx.QueryExecModeExec
	if c.Mode == Prepared {
		conn.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	}
	return conn, nil
}

// parse leaves TLS out where the DSN only prefers it, which is the default. The driver
// would dial twice then, and the server start a process for each. And a refused connection
// would be told as one that wants TLS.
func parse(dsn string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	var plain []*pgconn.FallbackConfig
	for _, f := range config.Fallbacks {
		if f.TLSConfig == nil {
			plain = append(plain, f)
		}
	}
	if config.TLSConfig != nil && len(plain) > 0 {
		config.Host, config.Port, config.TLSConfig, config.Fallbacks = plain[0].Host, plain[0].Port, nil, plain[1:]
	}
	return config, nil
}

// patient is the configuration for the connects before the load. They come all at once, and
// a short ConnectTimeout is not meant for them.
func (p *Prober) patient() *pgx.ConnConfig {
	conn := p.conn.Copy()
	conn.ConnectTimeout = max(conn.ConnectTimeout, 10*time.Second)
	return conn
}

func (p *Prober) makeTable(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, p.patient())
	if err != nil {
		return fmt.Errorf("probe: make table: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, "create table if not exists "+p.table()+
		" (run bigint not null, worker bigint not null, seq bigint not null)")
	if err != nil {
		return fmt.Errorf("probe: make table: %w", err)
	}
	return nil
}

func (p *Prober) table() string { return pgx.Identifier{p.config.Table}.Sanitize() }

// connectAll connects every worker, all at once, or leaves none connected.
func (p *Prober) connectAll(ctx context.Context) error {
	errs := make([]error, len(p.workers))
	var connecting sync.WaitGroup
	for i, w := range p.workers {
		connecting.Go(func() {
			var err error
			if w.conn, err = pgx.ConnectConfig(ctx, p.patient()); err != nil {
				errs[i] = fmt.Errorf("probe: worker %d: %w", i, err)
			}
		})
	}
	connecting.Wait()
	err := errors.Join(errs...)
	if err != nil {
		for _, w := range p.workers {
			w.disconnect()
		}
	}
	return err
}

// Stop ends the load and returns what happened. Transactions that are under
// way are waited for, so that their fate is known; each is bounded by
// Config.TransactionTimeout.
func (p *Prober) Stop() *Report {
	p.stopped.Do(func() {
		p.length = p.since()
		close(p.stop)
	})
	p.running.Wait()
	r := &Report{Config: p.config, Run: p.run, Base: p.base, Length: p.length, Ended: p.since()}
	for _, w := range p.workers {
		r.Transactions = append(r.Transactions, w.done)
		r.Failures = append(r.Failures, w.failures...)
		r.FailedConnects = append(r.FailedConnects, w.failedConnects...)
	}
	if p.opener != nil {
		r.Openings = p.opener.done
	}
	return r
}

// Acked is the number of commits acknowledged so far.
func (p *Prober) Acked() int64 { return p.acked.Load() }

// WaitCommit returns when a commit was acknowledged after since.
func (p *Prober) WaitCommit(ctx context.Context, since time.Time) error {
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for p.lastAck.Load() <= int64(since.Sub(p.base)) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("no commit acknowledged: %w", ctx.Err())
		case <-p.stop:
			return errors.New("no commit acknowledged before the load ended")
		case <-poll.C:
		}
	}
	return nil
}

func (p *Prober) acknowledged(at time.Duration) {
	p.acked.Add(1)
	for {
		last := p.lastAck.Load()
		if last >= int64(at) || p.lastAck.CompareAndSwap(last, int64(at)) {
			return
		}
	}
}

// since is the present time on the run's own clock.
func (p *Prober) since() time.Duration { return time.Since(p.base) }

func (p *Prober) ended() bool {
	select {
	case <-p.stop:
		return true
	default:
		return false
	}
}

// pause waits for d, or for the end of the load.
func (p *Prober) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.stop:
	case <-timer.C:
	}
}
