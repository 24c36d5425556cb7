package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"controld/internal/cluster"
	"controld/internal/wal"
)

// pollInterval is between two looks at something that takes milliseconds.
const pollInterval = 3 * time.Millisecond

// A session is one connection to one server.
type session struct {
	conn     *pgconn.PgConn
	node     string
	prepared map[string]bool // statements
}

var _ cluster.Session = (*session)(nil)

// The probes need no table. Each is one transaction, because it is one simple query: where
// it fails nothing is left open. On a server in recovery the call for a transaction id
// fails, with a code of its own.
const (
	syncProbeSQL  = `SELECT pg_current_xact_id(), pg_logical_emit_message(true, 'controld', 'probe')`
	writeProbeSQL = `SET LOCAL synchronous_commit = local; ` + syncProbeSQL
)

func (s *session) WriteProbe(ctx context.Context) error {
	return s.probe(ctx, "write probe", writeProbeSQL)
}

func (s *session) SyncProbe(ctx context.Context) error {
	return s.probe(ctx, "synchronous write probe", syncProbeSQL)
}

func (s *session) probe(ctx context.Context, doing, sql string) error {
	err := s.exec(ctx, doing, sql)
	if hasCode(err, codeReadOnly) {
		return fmt.Errorf("%w: %w", cluster.ErrReadOnly, err)
	}
	return err
}

// controld may not end superusers' sessions. To try one would fail for all.
const endQueriesSQL = `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND usename <> current_user
    AND NOT (SELECT rolsuper FROM pg_roles WHERE oid = usesysid)`

func (s *session) EndQueries(ctx context.Context) error {
	return s.exec(ctx, "end queries", endQueriesSQL)
}

func (s *session) Databases(ctx context.Context) (names []string, err error) {
	row, err := s.row(ctx, "SELECT json_agg(datname ORDER BY datname) FROM pg_database WHERE datallowconn")
	if err != nil {
		return nil, s.failed("list databases", err)
	}
	if err := json.Unmarshal(row[0], &names); err != nil {
		return nil, s.failed("list databases", err)
	}
	return names, nil
}

// fillSQL is a format for how many bytes of the segment to leave.
const fillSQL = `SET LOCAL synchronous_commit = local;
SELECT pg_logical_emit_message(true, 'controld', repeat(' ', missing::int))
FROM (
    SELECT pg_size_bytes(current_setting('wal_segment_size'))
        - (pg_walfile_name_offset(pg_current_wal_insert_lsn())).file_offset - %d AS missing
) AS segment
WHERE missing > 0`

func (s *session) FillSegment(ctx context.Context, leave int64) error {
	return s.exec(ctx, "fill segment", fmt.Sprintf(fillSQL, leave))
}

func (s *session) Checkpoint(ctx context.Context) error {
	return s.exec(ctx, "checkpoint", "CHECKPOINT")
}

// Promote accepts a server that is promoted already: a caller whose answer was
// lost asks again.
func (s *session) Promote(ctx context.Context) error {
	sent, err := s.value(ctx, "SELECT pg_promote(false)")
	if hasCode(err, codeNotInState) { // recovery is not in progress
		return nil
	}
	if err != nil {
		return s.failed("promote", err)
	}
	if sent != "t" {
		return s.failed("promote", errors.New("the server could not send itself the signal"))
	}
	return nil
}

// What a slot is good for.
const (
	slotMissing = ""        // there is none
	slotGood    = "good"    // it keeps WAL
	slotEmpty   = "empty"   // it keeps none: made without a reservation, or lost
	slotLogical = "logical" // it is somebody else's
)

// slot returns what the slot is good for, and whether somebody uses it.
func (s *session) slot(ctx context.Context, name string) (state string, active bool, err error) {
	row, err := s.row(ctx, `SELECT CASE WHEN slot_type <> 'physical' THEN 'logical'
			WHEN restart_lsn IS NULL OR wal_status = 'lost' THEN 'empty' ELSE 'good' END, active
		FROM pg_replication_slots WHERE slot_name = $1`, name)
	if err != nil || len(row) == 0 {
		return slotMissing, false, err
	}
	return string(row[0]), string(row[1]) == "t", nil
}

// CreateSlot makes the slot anew when it is there but keeps no WAL.
func (s *session) CreateSlot(ctx context.Context, name string) error {
	doing := "create slot " + name
	state, _, err := s.slot(ctx, name)
	if err != nil {
		return s.failed(doing, err)
	}
	switch state {
	case slotGood:
		return nil
	case slotLogical:
		return s.failed(doing, errors.New("a logical slot has this name; drop it or give it another"))
	case slotEmpty:
		if err := s.DropSlot(ctx, name); err != nil {
			return err
		}
	}
	_, err = s.value(ctx, "SELECT pg_create_physical_replication_slot($1, true)", name)
	if hasCode(err, codeDuplicateObject) { // made by another session just now
		return nil
	}
	return s.failed(doing, err)
}

// AdvanceSlot moves a slot that stands before to. PostgreSQL goes no further than what a
// standby has replayed, and refuses to go back.
func (s *session) AdvanceSlot(ctx context.Context, name string, to wal.LSN) error {
	_, err := s.value(ctx, "SELECT pg_replication_slot_advance(slot_name, $2::pg_lsn) FROM pg_replication_slots "+
		"WHERE slot_name = $1 AND restart_lsn < $2::pg_lsn", name, to.String())
	return s.failed("advance slot "+name, err)
}

// DropSlot waits, within ctx, for a walsender that still holds the slot of a
// standby that is gone.
func (s *session) DropSlot(ctx context.Context, name string) error {
	doing := "drop slot " + name
	for {
		state, active, err := s.slot(ctx, name)
		if err != nil {
			return s.failed(doing, err)
		}
		if state == slotMissing {
			return nil
		}
		if !active {
			_, err = s.value(ctx, "SELECT pg_drop_replication_slot($1)", name)
			if !hasCode(err, codeObjectInUse) && !hasCode(err, codeUndefinedObject) {
				return s.failed(doing, err)
			}
		}
		if err := sleep(ctx, 10*pollInterval); err != nil {
			return s.failed(doing, fmt.Errorf("it is in use: %w", err))
		}
	}
}

// Reload returns once this session, which got the signal together with all
// other processes of the server, has the wanted settings.
func (s *session) Reload(ctx context.Context, want map[string]string) error {
	names := slices.Sorted(maps.Keys(want))
	before, err := s.value(ctx, "SELECT pg_conf_load_time() FROM pg_reload_conf()")
	if err != nil {
		return s.failed("reload", err)
	}
	if len(names) == 0 {
		return nil
	}
	for {
		loaded, have, err := s.loaded(ctx, names)
		if err != nil && ctx.Err() != nil {
			return s.failed("reload", notTaken(names[0], ctx.Err()))
		}
		if err != nil {
			return s.failed("reload", err)
		}
		wrong := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return have[n] == want[n] })
		if len(wrong) == 0 {
			return nil
		}
		if loaded != before {
			return s.failed("reload", s.overridden(ctx, wrong[0], have[wrong[0]], want[wrong[0]]))
		}
		if err := sleep(ctx, pollInterval); err != nil {
			return s.failed("reload", notTaken(wrong[0], err))
		}
	}
}

func notTaken(setting string, err error) error {
	return fmt.Errorf("the server has not taken the new %s (its log says why, if a file is wrong): %w", setting, err)
}

// loaded returns when the session last read the configuration files, and what
// the named settings are now.
func (s *session) loaded(ctx context.Context, names []string) (at string, have map[string]string, err error) {
	row, err := s.row(ctx, `SELECT pg_conf_load_time(),
		array_to_string(ARRAY(SELECT current_setting(n) FROM unnest($1::text[]) AS n), E'\x01')`, array(names))
	if err != nil {
		return "", nil, err
	}
	have = make(map[string]string, len(names))
	for i, v := range strings.SplitN(string(row[1]), "\x01", len(names)) {
		if i < len(names) {
			have[names[i]] = v
		}
	}
	return string(row[0]), have, nil
}

// overridden explains why a setting still is another, although the server has read the
// files: something that it reads later sets it too.
func (s *session) overridden(ctx context.Context, name, have, want string) error {
	source, err := s.value(ctx, "SELECT COALESCE(sourcefile || ' line ' || sourceline, source) FROM pg_settings WHERE name = $1", name)
	if err != nil {
		return fmt.Errorf("%s is %q, not %q: %w", name, have, want, err)
	}
	return fmt.Errorf("%s is %q, not %q: it is set by %s; remove it there (ALTER SYSTEM RESET %s)", name, have, want, source, name)
}

// Close says goodbye if the server still listens.
func (s *session) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.conn.Close(ctx) // nothing is left to do with a session that ends
}

// exec runs SQL by the simple protocol and drops its rows.
func (s *session) exec(ctx context.Context, doing, sql string) error {
	_, err := s.conn.Exec(ctx, sql).ReadAll()
	return s.failed(doing, err)
}

// value returns the only column of the only row; "" for NULL and for no row.
func (s *session) value(ctx context.Context, sql string, args ...string) (string, error) {
	row, err := s.row(ctx, sql, args...)
	if err != nil || len(row) == 0 {
		return "", err
	}
	return string(row[0]), nil
}

// row runs one statement in one round trip and returns its first row in text;
// none when there is none.
func (s *session) row(ctx context.Context, sql string, args ...string) ([][]byte, error) {
	values := make([][]byte, len(args))
	for i, a := range args {
		values[i] = []byte(a)
	}
	return firstRow(s.conn.ExecParams(ctx, sql, values, nil, nil, nil))
}

func firstRow(r *pgconn.ResultReader) ([][]byte, error) {
	result := r.Read()
	if result.Err != nil || len(result.Rows) == 0 {
		return nil, result.Err
	}
	return result.Rows[0], nil
}

// failed says what was done to which node; nil for nil.
func (s *session) failed(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s on %s: %w", doing, s.node, err)
}

// array writes names as PostgreSQL's text form of an array. They are names of
// settings: nothing in them needs quoting.
func array(names []string) string { return "{" + strings.Join(names, ",") + "}" }

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
