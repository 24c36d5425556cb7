package probe

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
)

// busySQL keeps a processor at work for some 100 ms, and reads and writes no
// table.
const busySQL = "select count(*) from generate_series(1, 150000) g where md5(g::text) < '1'"

// Busy is a load of clients that calculate: what a report or an analyst's query
// does to a database host. They never write.
type Busy struct {
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex
	queries  int
	failures []error
}

// StartBusy connects the clients to dsn, one after the other, and has each of them ask
// again and again. The caller has to call Stop.
func StartBusy(ctx context.Context, dsn string, clients int) (*Busy, error) {
	config, err := parse(dsn)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &Busy{cancel: cancel}
	for range clients {
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("probe: busy client: %w", err), b.Stop())
		}
		b.running.Go(func() {
			defer closeSoon(conn)
			b.loop(ctx, conn)
		})
	}
	return b, nil
}

func (b *Busy) loop(ctx context.Context, conn *pgx.Conn) {
	for ctx.Err() == nil {
		_, err := conn.Exec(ctx, busySQL)
		if ctx.Err() != nil {
			return // cut off by Stop
		}
		b.mu.Lock()
		b.queries++
		if err != nil {
			b.failures = append(b.failures, err)
		}
		b.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Queries is how many have been answered so far.
func (b *Busy) Queries() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queries - len(b.failures)
}

// Stop ends the load, and returns the errors that its clients were told. A client that is
// told one asks no more.
func (b *Busy) Stop() error {
	b.cancel()
	b.running.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Join(b.failures...)
}
