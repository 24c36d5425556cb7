package pooler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// A console is one connection to PgBouncer's, opened when it is needed and kept.
type console struct {
	hosts    []string // tried in order: socket folder, address
	port     string
	password string

	conn *pgconn.PgConn
}

// Paused lists the entries of SHOW DATABASES that are paused.
func (c *console) Paused(ctx context.Context) ([]string, error) {
	results, err := c.exec(ctx, "SHOW DATABASES")
	if err != nil {
		return nil, err
	}
	var paused []string
	for _, r := range results {
		name, state := -1, -1
		for i, f := range r.FieldDescriptions {
			switch f.Name {
			case "name":
				name = i
			case "paused":
				state = i
			}
		}
		if name < 0 || state < 0 {
			return nil, errors.New("SHOW DATABASES names no column name or paused")
		}
		for _, row := range r.Rows {
			if s := string(row[state]); s != "0" {
				paused = append(paused, string(row[name]))
			}
		}
	}
	return paused, nil
}

// Resume ends the pause of one entry.
func (c *console) Resume(ctx context.Context, database string) error {
	return c.command(ctx, "RESUME", database)
}

// Kill drops the clients of one entry.
func (c *console) Kill(ctx context.Context, database string) error {
	return c.command(ctx, "KILL", database)
}

func (c *console) command(ctx context.Context, name, database string) error {
	_, err := c.exec(ctx, name+` "`+strings.ReplaceAll(database, `"`, `""`)+`"`)
	return err
}

// Stuck reads SHOW POOLS, which has a row for each user of an entry.
func (c *console) Stuck(ctx context.Context, patience time.Duration) ([]string, error) {
	results, err := c.exec(ctx, "SHOW POOLS")
	if err != nil {
		return nil, err
	}
	waiting, served := map[string]bool{}, map[string]bool{}
	for _, r := range results {
		for _, row := range r.Rows {
			value := map[string]string{}
			for i, f := range r.FieldDescriptions {
				value[f.Name] = string(row[i])
			}
			seconds, err := strconv.Atoi(value["maxwait"])
			if err != nil {
				return nil, fmt.Errorf("SHOW POOLS: maxwait: %w", err)
			}
			name := value["database"]
			if value["cl_waiting"] != "0" && time.Duration(seconds)*time.Second >= patience {
				waiting[name] = true
			}
			for _, column := range []string{"sv_active", "sv_idle", "sv_used", "sv_tested"} {
				served[name] = served[name] || value[column] != "0"
			}
		}
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(waiting)), func(name string) bool { return served[name] }), nil
}

func (c *console) exec(ctx context.Context, command string) ([]*pgconn.Result, error) {
	conn, err := c.connection(ctx)
	if err != nil {
		return nil, err
	}
	results, err := conn.Exec(ctx, command).ReadAll()
	if err != nil && !errors.As(err, new(*pgconn.PgError)) {
		_ = conn.Close(ctx) // broken: the next command opens another one
		c.conn = nil
	}
	return results, err
}

func (c *console) connection(ctx context.Context) (*pgconn.PgConn, error) {
	if c.conn != nil && !c.conn.IsClosed() {
		return c.conn, nil
	}
	var all error
	for _, host := range c.hosts {
		cfg, err := pgconn.ParseConfig("sslmode=disable user=controld dbname=pgbouncer application_name=controld-node port=" + c.port)
		if err != nil {
			return nil, err
		}
		cfg.Host, cfg.Password = host, c.password
		conn, err := pgconn.ConnectConfig(ctx, cfg)
		if err == nil {
			c.conn = conn
			return conn, nil
		}
		all = errors.Join(all, err)
	}
	return nil, fmt.Errorf("pooler's console: %w", all)
}
