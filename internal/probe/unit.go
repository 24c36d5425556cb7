package probe

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// unitSamples is how many connects the unit is the median of.
const unitSamples = 40

// U returns the unit in which outages are judged, because machines differ
// widely in what starting and ending a process costs: the median time of a
// connect with its login, a select 1 and the close, directly on a server that
// should be idle. Under the race detector the client's part of the login alone
// takes longer than all of it otherwise, so a U taken there judges mildly.
func U(ctx context.Context, dsn string) (time.Duration, error) {
	config, err := parse(dsn)
	if err != nil {
		return 0, err
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	took := make([]time.Duration, 0, unitSamples)
	for range unitSamples {
		start := time.Now()
		if err := comeAndGo(ctx, config); err != nil {
			return 0, fmt.Errorf("measure U: %w", err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return Quantile(took, 0.5), nil
}

func comeAndGo(ctx context.Context, config *pgx.ConnConfig) error {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "select 1"); err != nil {
		closeSoon(conn)
		return err
	}
	return conn.Close(ctx)
}
