package testcluster

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// SocketSQL runs SQL as the superuser over the socket in a node's directory dir, which
// only root may do, and returns the rows as psql -At prints them. A docker exec of psql
// says the same, and costs a quarter of a second of a processor.
func SocketSQL(ctx context.Context, dir, database, sql string) (string, error) {
	conn, err := pgconn.Connect(ctx, "host="+dir+" port=5432 user=root dbname="+database)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // what it said is known
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return "", fmt.Errorf("%s: %w", sql, err)
	}
	var lines []string
	for _, r := range results {
		for _, row := range r.Rows {
			columns := make([]string, len(row))
			for i, value := range row {
				columns[i] = string(value)
			}
			lines = append(lines, strings.Join(columns, "|"))
		}
	}
	return strings.Join(lines, "\n"), nil
}
