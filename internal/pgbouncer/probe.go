package pgbouncer

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"controld/internal/cluster"
)

// probeSQL is one transaction, because it is one simple query: where it fails nothing is
// left open. It waits for no standby, and needs no table. On a server in recovery the call
// for a transaction id fails, with a code of its own. The names are qualified: it runs in
// the application's database, whose owner may have put other functions of these names on
// the search path.
const probeSQL = `SET LOCAL synchronous_commit = local;
	SELECT pg_catalog.pg_current_xact_id(), pg_catalog.pg_logical_emit_message(true, 'controld', 'probe')`

// codeReadOnly is what a server in recovery answers to a write.
const codeReadOnly = "25006"

// A probe is the standing client connection to the entry for probes. Behind it
// PgBouncer keeps a server connection, so that a probe inside a pause logs in
// nowhere.
type probe struct {
	mu   sync.Mutex
	conn *connection
}

func (b *probe) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		b.conn.close()
		b.conn = nil
	}
}

// Probe implements cluster.Pooler. A client's database is tried as a client
// does it: with a new connection.
func (p *Pooler) Probe(ctx context.Context, database string) error {
	if database == cluster.ProbeEntry {
		return p.probeEntry(ctx)
	}
	c, err := p.connect(ctx, database)
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.query(ctx, probeSQL)
	return probeFailed(database, err)
}

// probeEntry tries a connection anew once that has broken since its last use.
func (p *Pooler) probeEntry(ctx context.Context) error {
	b := &p.probe
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		fresh := b.conn == nil
		if fresh {
			c, err := p.connect(ctx, cluster.ProbeEntry)
			if err != nil {
				return err
			}
			b.conn = c
		}
		_, err := b.conn.query(ctx, probeSQL)
		if err == nil {
			return nil
		}
		broken := b.conn.broken()
		if broken {
			b.conn.close()
			b.conn = nil
		}
		if fresh || !broken || ctx.Err() != nil {
			return probeFailed(cluster.ProbeEntry, err)
		}
	}
}

func probeFailed(database string, err error) error {
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == codeReadOnly {
		return fmt.Errorf("pooler: probe through %s: %w: %w", database, cluster.ErrReadOnly, err)
	}
	return fmt.Errorf("pooler: probe through %s: %w", database, err)
}
