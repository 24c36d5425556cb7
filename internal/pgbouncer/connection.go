package pgbouncer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
)

// A connection is one client connection to PgBouncer, by the simple protocol,
// which is all that the console speaks.
type connection struct{ pg *pgconn.PgConn }

// errNoCancel keeps pgconn from sending a cancel request over a second
// connection when a context ends: closing the first one is enough, and sooner.
var errNoCancel = errors.New("a connection to the pooler is not cancelled but closed")

// connect logs in, without TLS, which would dial twice.
func (p *Pooler) connect(ctx context.Context, database string) (*connection, error) {
	host, portText, err := net.SplitHostPort(p.cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("pooler: address %q: %w", p.cfg.Address, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("pooler: address %q: %w", p.cfg.Address, err)
	}
	cfg, err := pgconn.ParseConfig("sslmode=disable host=localhost user=none")
	if err != nil {
		return nil, fmt.Errorf("pooler: connection settings: %w", err)
	}
	cfg.Host, cfg.Port = host, uint16(port)
	cfg.User, cfg.Password, cfg.Database = p.cfg.User, p.cfg.Password, database
	cfg.Fallbacks, cfg.ValidateConnect = nil, nil
	cfg.RuntimeParams = map[string]string{"application_name": "controld"}
	cfg.BuildContextWatcherHandler = func(pg *pgconn.PgConn) ctxwatch.Handler { return hangUp{pg.Conn()} }
	var connected atomic.Bool
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if connected.Load() {
			return nil, errNoCancel
		}
		return (&net.Dialer{KeepAlive: 5 * time.Second}).DialContext(ctx, network, address)
	}
	pg, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("pooler: %w", err)
	}
	connected.Store(true)
	return &connection{pg}, nil
}

// hangUp closes a connection whose context ends.
type hangUp struct{ conn net.Conn }

func (h hangUp) HandleCancel(context.Context) { h.conn.Close() }
func (h hangUp) HandleUnwatchAfterCancel()    {}

// query returns the last result's rows, each by column name.
func (c *connection) query(ctx context.Context, sql string) ([]map[string]string, error) {
	results, err := c.pg.Exec(ctx, sql).ReadAll()
	if err != nil {
		if ctx.Err() != nil {
			return nil, errors.Join(ctx.Err(), err)
		}
		return nil, err
	}
	if len(results) == 0 {
		return nil, nil
	}
	last := results[len(results)-1]
	rows := make([]map[string]string, 0, len(last.Rows))
	for _, values := range last.Rows {
		row := make(map[string]string, len(values))
		for i, v := range values {
			row[last.FieldDescriptions[i].Name] = string(v)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// broken reports whether the connection is of no more use.
func (c *connection) broken() bool { return c.pg.IsClosed() }

func (c *connection) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	c.pg.Close(ctx) // nothing is left to do with a connection that ends
}
