package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// A server is a node as it is reached directly.
type server struct{ name, dsn string }

// An identity is what a failover keeps (the system) and advances (the timeline).
type identity struct {
	system   string
	timeline int64
}

// identify asks a primary itself, so that nothing depends on what the system
// under test says of it. The checkpoint's timeline lags behind a promotion; that
// of the WAL being written does not.
func identify(ctx context.Context, s server) (identity, error) {
	var id identity
	var segment string
	err := query(ctx, s.dsn, `select system_identifier::text, pg_walfile_name(pg_current_wal_lsn()) from pg_control_system()`,
		&id.system, &segment)
	if err != nil {
		return id, fmt.Errorf("identify %s: %w", s.name, err)
	}
	if id.timeline, err = strconv.ParseInt(segment[:8], 16, 64); err != nil {
		return id, fmt.Errorf("identify %s: %w", s.name, err)
	}
	return id, nil
}

// leaderNow is the node that is not in recovery, if exactly one is. The nodes
// themselves are asked, not the system under test.
func leaderNow(ctx context.Context, nodes []server) (server, error) {
	var leaders []server
	var errs []error
	for _, n := range nodes {
		var inRecovery bool
		if err := query(ctx, n.dsn, "select pg_is_in_recovery()", &inRecovery); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", n.name, err))
		} else if !inRecovery {
			leaders = append(leaders, n)
		}
	}
	if len(leaders) != 1 {
		return server{}, errors.Join(append(errs, fmt.Errorf("%d nodes lead", len(leaders)))...)
	}
	return leaders[0], nil
}

// findLeader waits until one node leads.
func findLeader(ctx context.Context, nodes []server) (leader server, err error) {
	err = poll(ctx, 200*time.Millisecond, func(ctx context.Context) (err error) {
		leader, err = leaderNow(ctx, nodes)
		return err
	})
	return leader, err
}

// query reads one row over a connection of its own.
func query(ctx context.Context, dsn, sql string, into ...any) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return conn.QueryRow(ctx, sql).Scan(into...)
}

// successorErr says what is wrong with the new primary, if anything is.
func successorErr(before, after server, was, is identity) error {
	switch {
	case before.name == after.name:
		return fmt.Errorf("%s still leads", after.name)
	case was.system != is.system:
		return fmt.Errorf("the system identifier changed from %s to %s", was.system, is.system)
	case is.timeline != was.timeline+1:
		return fmt.Errorf("the timeline went from %d to %d", was.timeline, is.timeline)
	}
	return nil
}
