package pgbouncer

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"controld/internal/cluster"
)

// A pool is one row of SHOW POOLS: there is one for each user of a database.
type pool struct{ waiting, busy, idle, logins int }

func (p pool) open() int { return p.busy + p.idle }

// poolsOf reads what SHOW POOLS answers about one database.
func poolsOf(rows []map[string]string, database string) ([]pool, error) {
	var pools []pool
	for _, row := range rows {
		if row["database"] != database {
			continue
		}
		var p pool
		for _, column := range []struct {
			name string
			into *int
		}{
			{"cl_waiting", &p.waiting}, {"sv_active", &p.busy}, {"sv_tested", &p.busy},
			{"sv_idle", &p.idle}, {"sv_used", &p.idle}, {"sv_login", &p.logins},
		} {
			n, err := strconv.Atoi(row[column.name])
			if err != nil {
				return nil, fmt.Errorf("pooler: SHOW POOLS: %s of %s: %w", column.name, database, err)
			}
			*column.into += n
		}
		pools = append(pools, p)
	}
	return pools, nil
}

// answered is, by entry, how long all queries took that were answered. It grows with
// answers alone; PgBouncer's counts of queries are of those that were asked. p.mu is held.
func (p *Pooler) answered(ctx context.Context) (map[string]time.Duration, error) {
	rows, err := p.ask(ctx, "SHOW STATS")
	if err != nil {
		return nil, err
	}
	times := map[string]time.Duration{}
	for _, row := range rows {
		n, err := strconv.ParseInt(row["total_query_time"], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("pooler: SHOW STATS: total_query_time of %s: %w", row["database"], err)
		}
		times[row["database"]] = time.Duration(n) * time.Microsecond
	}
	return times, nil
}

// Load implements cluster.Pooler.
func (p *Pooler) Load(ctx context.Context, database string) (cluster.PoolLoad, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rows, err := p.ask(ctx, "SHOW POOLS")
	if err != nil {
		return cluster.PoolLoad{}, err
	}
	pools, err := poolsOf(rows, database)
	if err != nil {
		return cluster.PoolLoad{}, err
	}
	var load cluster.PoolLoad
	for _, pool := range pools {
		load.Busy = max(load.Busy, pool.busy)
		load.Largest = max(load.Largest, pool.open())
		load.Logins += pool.logins
	}
	return load, nil
}
