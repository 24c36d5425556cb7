package pgbouncer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// consoleDatabase is the name under which PgBouncer takes commands.
const consoleDatabase = "pgbouncer"

// codeNotInState is what the console answers to a PAUSE of a paused database
// and to a RESUME of one that is not, and to much else.
const codeNotInState = "08P01"

// Pause implements cluster.Pooler. It has a connection of its own, which waits with it.
// When ctx ends that connection is closed at once: a RESUME that comes while a PAUSE
// still waits would leave that PAUSE hanging for ever. Before PAUSE is sent, a second
// connection is made ready for the RESUME: a login inside the pause would lengthen it.
func (p *Pooler) Pause(ctx context.Context, database string) error {
	return p.pause(ctx, database, awaitLogins)
}

// PauseNow implements cluster.Pooler.
func (p *Pooler) PauseNow(ctx context.Context, database string) error {
	return p.pause(ctx, database, func(context.Context, *connection, string) error { return nil })
}

func (p *Pooler) pause(ctx context.Context, database string, before func(context.Context, *connection, string) error) error {
	c, err := p.idle.take(ctx, p)
	if err != nil {
		return err
	}
	defer p.idle.giveBack(c)
	spare, err := p.idle.take(ctx, p)
	if err != nil {
		return err
	}
	p.idle.giveBack(spare)
	if err := before(ctx, c, database); err != nil {
		return err
	}
	return command(ctx, c, "PAUSE", database, "already suspended/paused")
}

// loginPoll is between two looks at logins, which take some 10 ms, and seconds on
// a busy host.
const loginPoll = time.Millisecond

// awaitLogins waits, as long as ctx lasts, until PgBouncer opens no server connection of
// the database and is not about to. It is about to while clients wait for a connection
// and their pool has room to grow.
//
// A PAUSE breaks a login off, and PgBouncer takes that for a failed one. After the RESUME
// it throws out each client that asks before the next login has succeeded ("server login
// has been failing, cached error: pause mode"). A client that comes in the moment before
// the PAUSE can still begin a login. A Drain to 1 before the pause keeps pools that have
// a connection from opening more.
func awaitLogins(ctx context.Context, c *connection, database string) error {
	rows, err := c.query(ctx, "SHOW DATABASES")
	if err != nil {
		return fmt.Errorf("pooler: SHOW DATABASES: %w", err)
	}
	entries, err := entriesOf(rows)
	if err != nil {
		return err
	}
	size := 0
	if i := slices.IndexFunc(entries, func(e entry) bool { return e.name == database }); i >= 0 {
		size = entries[i].poolSize
	}
	for wait := loginPoll; ; wait = min(2*wait, 20*loginPoll) {
		rows, err := c.query(ctx, "SHOW POOLS")
		if err != nil {
			return fmt.Errorf("pooler: SHOW POOLS: %w", err)
		}
		pools, err := poolsOf(rows, database)
		if err != nil {
			return err
		}
		grows := func(p pool) bool { return p.logins > 0 || p.waiting > 0 && p.open() < size }
		if !slices.ContainsFunc(pools, grows) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pooler: a server connection of %s is still being opened: %w", database, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// Resume implements cluster.Pooler.
func (p *Pooler) Resume(ctx context.Context, database string) error {
	return p.command(ctx, "RESUME", database, "not paused")
}

// Kill implements cluster.Pooler.
func (p *Pooler) Kill(ctx context.Context, database string) error {
	return p.command(ctx, "KILL", database, "already suspended/paused")
}

func (p *Pooler) command(ctx context.Context, name, database, done string) error {
	c, err := p.idle.take(ctx, p)
	if err != nil {
		return err
	}
	defer p.idle.giveBack(c)
	return command(ctx, c, name, database, done)
}

// command runs a command on one database. done is what PgBouncer answers when
// there was nothing to do.
func command(ctx context.Context, c *connection, name, database, done string) error {
	_, err := c.query(ctx, name+" "+quoteIdent(database))
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == codeNotInState && strings.Contains(pg.Message, done) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pooler: %s %s: %w", name, database, err)
	}
	return nil
}

// consoles are console connections that wait for their next command.
type consoles struct {
	mu   sync.Mutex
	idle []*connection
}

// maxIdle is enough for a pause of two databases and their resumption at once.
const maxIdle = 4

// take returns a connection that is alive: one that has waited is asked first,
// because PgBouncer may have been restarted since. Asking takes 0.1 ms.
func (c *consoles) take(ctx context.Context, p *Pooler) (*connection, error) {
	for {
		next := c.pop()
		if next == nil {
			return p.connect(ctx, consoleDatabase)
		}
		if _, err := next.query(ctx, "SHOW VERSION"); err == nil {
			return next, nil
		}
		next.close()
	}
}

func (c *consoles) pop() *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.idle) == 0 {
		return nil
	}
	last := c.idle[len(c.idle)-1]
	c.idle = c.idle[:len(c.idle)-1]
	return last
}

func (c *consoles) giveBack(conn *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn.broken() || len(c.idle) >= maxIdle {
		conn.close()
		return
	}
	c.idle = append(c.idle, conn)
}

func (c *consoles) close() {
	for conn := c.pop(); conn != nil; conn = c.pop() {
		conn.close()
	}
}

// An entry is one row of SHOW DATABASES.
type entry struct {
	name     string
	address  string // host in the file
	host     string // the same, empty for one that leads nowhere
	poolSize int
	paused   bool
}

func (p *Pooler) showDatabases(ctx context.Context) ([]entry, error) {
	rows, err := p.ask(ctx, "SHOW DATABASES")
	if err != nil {
		return nil, err
	}
	return entriesOf(rows)
}

// entriesOf reads what SHOW DATABASES answers.
func entriesOf(rows []map[string]string) (entries []entry, err error) {
	for _, row := range rows {
		if row["name"] == consoleDatabase {
			continue
		}
		e := entry{name: row["name"], address: row["host"], host: row["host"], paused: row["paused"] == "1"}
		if e.host == nowhere {
			e.host = ""
		}
		if e.poolSize, err = strconv.Atoi(row["pool_size"]); err != nil {
			return nil, fmt.Errorf("pooler: SHOW DATABASES: pool size of %s: %w", e.name, err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// ask runs a command that does not wait, over the standing console connection. Where that
// has broken since its last use, because PgBouncer ended or closed it, ask opens another
// one, once: all these commands may run twice. p.mu is held.
func (p *Pooler) ask(ctx context.Context, command string) ([]map[string]string, error) {
	for {
		fresh := p.console == nil
		if fresh {
			c, err := p.connect(ctx, consoleDatabase)
			if err != nil {
				return nil, err
			}
			p.console = c
		}
		rows, err := p.console.query(ctx, command)
		if err == nil {
			return rows, nil
		}
		broken := p.console.broken()
		if broken {
			p.dropConsole()
		}
		if fresh || !broken || ctx.Err() != nil {
			return nil, fmt.Errorf("pooler: %s: %w", command, err)
		}
	}
}

// dropConsole also forgets what the PgBouncer behind it had loaded: the next
// one may be another process.
func (p *Pooler) dropConsole() {
	if p.console != nil {
		p.console.close()
	}
	p.console, p.proven = nil, nil
}

// quoteIdent writes a name for a console command.
func quoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
