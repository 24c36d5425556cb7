package pooler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
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
	rows, err := c.query(ctx, "SHOW DATABASES")
	if err != nil {
		return nil, err
	}
	return pausedOf(rows)
}

// Stuck asks SHOW POOLS, which has a row for each user of an entry.
func (c *console) Stuck(ctx context.Context, patience time.Duration) ([]string, error) {
	rows, err := c.query(ctx, "SHOW POOLS")
	if err != nil {
		return nil, err
	}
	return stuckOf(rows, patience)
}

// Resume ends the pause of one entry.
func (c *console) Resume(ctx context.Context, database string) error {
	_, err := c.query(ctx, "RESUME "+quote(database))
	return err
}

// Kill drops the clients of one entry.
func (c *console) Kill(ctx context.Context, database string) error {
	_, err := c.query(ctx, "KILL "+quote(database))
	return err
}

// pausedOf reads what SHOW DATABASES answers.
func pausedOf(rows []map[string]string) ([]string, error) {
	var paused []string
	for _, row := range rows {
		name, state := row["name"], row["paused"]
		if name == "" || state == "" {
			return nil, errors.New("SHOW DATABASES names no column name or paused")
		}
		if state != "0" {
			paused = append(paused, name)
		}
	}
	return paused, nil
}

// stuckOf reads what SHOW POOLS answers.
func stuckOf(rows []map[string]string, patience time.Duration) ([]string, error) {
	waiting, served := map[string]bool{}, map[string]bool{}
	for _, row := range rows {
		seconds, err := strconv.Atoi(row["maxwait"])
		if err != nil {
			return nil, fmt.Errorf("SHOW POOLS: maxwait: %w", err)
		}
		name := row["database"]
		if row["cl_waiting"] != "0" && time.Duration(seconds)*time.Second >= patience {
			waiting[name] = true
		}
		for _, column := range []string{"sv_active", "sv_idle", "sv_used", "sv_tested"} {
			served[name] = served[name] || row[column] != "0"
		}
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(waiting)), func(name string) bool { return served[name] }), nil
}

// query runs a command and returns the rows of its answer, each by column name.
func (c *console) query(ctx context.Context, command string) ([]map[string]string, error) {
	conn, err := c.connection(ctx)
	if err != nil {
		return nil, err
	}
	results, err := conn.Exec(ctx, command).ReadAll()
	if err != nil {
		return nil, err // pgconn has closed a connection that broke, and the next command opens another one
	}
	var rows []map[string]string
	for _, r := range results {
		for _, values := range r.Rows {
			row := map[string]string{}
			for i, f := range r.FieldDescriptions {
				row[f.Name] = string(values[i])
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
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
