package postgres

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"controld/internal/cluster"
	"controld/internal/rights"
	"controld/internal/wal"
)

//go:embed observe.sql
var observeSQL string

//go:embed position.sql
var positionSQL string

// observation is the JSON of observe.sql. NULL leaves a zero value.
type observation struct {
	Recovering bool         `json:"recovering"`
	SystemID   uint64       `json:"system_id,string"`
	Timeline   wal.Timeline `json:"timeline"`
	StartedAt  time.Time    `json:"started_at"`
	Flushed    wal.LSN      `json:"flushed"`
	Received   wal.LSN      `json:"received"`
	Replayed   wal.LSN      `json:"replayed"`
	Lag        microseconds `json:"lag_us"`
	Receiver   *struct {
		Status        string    `json:"status"`
		Host          string    `json:"host"`
		Slot          string    `json:"slot"`
		LastMessageAt time.Time `json:"last_message_at"`
	} `json:"receiver"`
	Senders []sender `json:"senders"`
	Slots   []struct {
		Name      string  `json:"name"`
		Active    bool    `json:"active"`
		Restart   wal.LSN `json:"restart"`
		WALStatus string  `json:"wal_status"`
		LagBytes  int64   `json:"lag_bytes"`
		Logical   bool    `json:"logical"`
		Database  string  `json:"database"`
	} `json:"slots"`
	Settings     map[string]string `json:"settings"`
	Overridden   []string          `json:"overridden"`
	Pending      []string          `json:"pending_restart"`
	Rights       string            `json:"rights"`
	ArchiveReady int               `json:"archive_ready"`
	Archiver     struct {
		FailedCount  int64     `json:"failed_count"`
		LastFailed   string    `json:"last_failed"`
		LastFailedAt time.Time `json:"last_failed_at"`
		LastAt       time.Time `json:"last_at"`
	} `json:"archiver"`
	PreparedCount int `json:"prepared_count"`
	Transactions  []struct {
		PID         int          `json:"pid"`
		User        string       `json:"user"`
		Application string       `json:"application"`
		Database    string       `json:"database"`
		Address     string       `json:"address"`
		State       string       `json:"state"`
		Age         microseconds `json:"age_us"`
	} `json:"transactions"`
	ReplayPaused  bool  `json:"replay_paused"`
	BackupRunning bool  `json:"backup_running"`
	MaxSenders    int   `json:"max_senders"`
	MaxSlots      int   `json:"max_slots"`
	SegmentBytes  int64 `json:"segment_bytes"`
}

// A sender is one element of senders.
type sender struct {
	Application string       `json:"application"`
	State       string       `json:"state"`
	Sent        wal.LSN      `json:"sent"`
	Flushed     wal.LSN      `json:"flushed"`
	Replayed    wal.LSN      `json:"replayed"`
	SyncState   string       `json:"sync_state"`
	Silent      microseconds `json:"silent_us"`
}

func senders(from []sender) []cluster.Sender {
	var to []cluster.Sender
	for _, s := range from {
		to = append(to, cluster.Sender{
			Application: s.Application, State: s.State, Sent: s.Sent, Flushed: s.Flushed, Replayed: s.Replayed,
			SyncState: s.SyncState, Silent: s.Silent.duration(),
		})
	}
	return to
}

type microseconds int64

func (m microseconds) duration() time.Duration { return max(0, time.Duration(m)*time.Microsecond) }

// Observe asks one question. It prepares it at the first call, which over a
// session that stays open saves nine tenths of what the server has to do.
func (s *session) Observe(ctx context.Context) (cluster.Server, error) {
	row, err := s.ask(ctx, "observe", observeSQL, []byte(array(cluster.SettingNames)))
	if err != nil {
		return cluster.Server{}, s.failed("observe", err)
	}
	var o observation
	if err := json.Unmarshal(row[0], &o); err != nil {
		return cluster.Server{}, s.failed("observe", err)
	}
	return o.server(), nil
}

var hostaddr = regexp.MustCompile(`(?:^|\s)hostaddr\s*=\s*'?([^\s']+)`)

// upstreamAddress is the address in a connection string; empty: it names none.
func upstreamAddress(conninfo string) string {
	if found := hostaddr.FindStringSubmatch(conninfo); found != nil {
		return found[1]
	}
	return ""
}

func (o observation) server() cluster.Server {
	v := cluster.Server{
		InRecovery: o.Recovering, SystemID: o.SystemID, Timeline: o.Timeline, StartedAt: o.StartedAt,
		Flushed: o.Flushed, Received: o.Received, Replayed: o.Replayed, Lag: o.Lag.duration(),
		Senders: senders(o.Senders), Settings: o.Settings, Overridden: o.Overridden, PendingRestart: o.Pending, Rights: rights.Of(o.Rights),
		ArchiveReady: o.ArchiveReady, ArchiveFailedCount: o.Archiver.FailedCount,
		ArchiveLastFailed: o.Archiver.LastFailed, ArchiveLastFailedAt: o.Archiver.LastFailedAt, ArchiveLastAt: o.Archiver.LastAt,
		PreparedCount: o.PreparedCount, ReplayPaused: o.ReplayPaused, BackupRunning: o.BackupRunning,
		SenderCount: len(o.Senders), MaxSenders: o.MaxSenders, MaxSlots: o.MaxSlots, SegmentBytes: o.SegmentBytes,
		UpstreamAddress: upstreamAddress(o.Settings["primary_conninfo"]),
	}
	if r := o.Receiver; r != nil {
		v.Receiver = &cluster.Receiver{Status: r.Status, Host: r.Host, Slot: r.Slot, LastMessageAt: r.LastMessageAt}
	}
	for _, e := range o.Slots {
		v.Slots = append(v.Slots, cluster.Slot(e))
	}
	for _, t := range o.Transactions {
		v.Transactions = append(v.Transactions, cluster.Transaction{PID: t.PID, User: t.User, Application: t.Application,
			Database: t.Database, Address: t.Address, State: t.State, Age: t.Age.duration()})
	}
	return v
}

// sendersSQL is the part of observe.sql that Senders asks for.
const sendersSQL = `SELECT COALESCE(jsonb_agg(jsonb_build_object('application', application_name, 'state', state,
	'sent', sent_lsn, 'flushed', flush_lsn, 'replayed', replay_lsn, 'sync_state', sync_state,
	'silent_us', (extract(epoch FROM clock_timestamp() - reply_time) * 1000000)::bigint) ORDER BY application_name, pid), '[]')
	FROM pg_stat_replication`

func (s *session) Senders(ctx context.Context) ([]cluster.Sender, error) {
	text, err := s.value(ctx, sendersSQL)
	if err != nil {
		return nil, s.failed("ask for walsenders", err)
	}
	var found []sender
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		return nil, s.failed("ask for walsenders", err)
	}
	return senders(found), nil
}

// copiesSQL has a total only for copies that were asked for with their progress.
const copiesSQL = `SELECT COALESCE(jsonb_agg(jsonb_build_object('address', host(client_addr), 'phase', phase, 'sent', backup_streamed,
	'total', backup_total) ORDER BY pid), '[]') FROM pg_stat_progress_basebackup JOIN pg_stat_activity USING (pid)`

func (s *session) Copies(ctx context.Context) ([]cluster.Copy, error) {
	text, err := s.value(ctx, copiesSQL)
	if err != nil {
		return nil, s.failed("ask for base backups", err)
	}
	var found []cluster.Copy
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		return nil, s.failed("ask for base backups", err)
	}
	return found, nil
}

// Position prepares its statement at the first call, so that the calls inside
// a pause cost neither parsing nor planning.
func (s *session) Position(ctx context.Context) (cluster.Position, error) {
	row, err := s.ask(ctx, "position", positionSQL)
	if err != nil {
		return cluster.Position{}, s.failed("position", err)
	}
	p, err := parsePosition(row)
	return p, s.failed("position", err)
}

func parsePosition(row [][]byte) (cluster.Position, error) {
	if len(row) != 5 {
		return cluster.Position{}, fmt.Errorf("the server answered %d columns", len(row))
	}
	p := cluster.Position{InRecovery: string(row[0]) == "t"}
	timeline, err := strconv.ParseUint(string(row[1]), 10, 32)
	if err != nil {
		return p, fmt.Errorf("timeline %q: %w", row[1], err)
	}
	p.Timeline = wal.Timeline(timeline)
	for i, to := range []*wal.LSN{&p.Received, &p.Replayed, &p.Flushed} {
		text := row[i+2]
		if text == nil {
			continue
		}
		if *to, err = wal.ParseLSN(string(text)); err != nil {
			return p, err
		}
	}
	return p, nil
}

// ask runs a statement that it prepares under a name at the first call.
func (s *session) ask(ctx context.Context, name, sql string, arguments ...[]byte) ([][]byte, error) {
	if !s.prepared[name] {
		if _, err := s.conn.Prepare(ctx, name, sql, nil); err != nil {
			return nil, err
		}
		if s.prepared == nil {
			s.prepared = map[string]bool{}
		}
		s.prepared[name] = true
	}
	return retryTornRead(func() ([][]byte, error) {
		return firstRow(s.conn.ExecPrepared(ctx, name, arguments, nil, nil))
	})
}

// retryTornRead asks again when the server read its own control file while it
// was being written: PostgreSQL 15 takes no lock for it.
func retryTornRead(ask func() ([][]byte, error)) ([][]byte, error) {
	const attempts = 5
	for i := 1; ; i++ {
		row, err := ask()
		var pg *pgconn.PgError
		if i == attempts || !errors.As(err, &pg) || !strings.Contains(pg.Message, "CRC checksum does not match") {
			if err == nil && len(row) == 0 {
				err = errors.New("the server answered no row")
			}
			return row, err
		}
	}
}
