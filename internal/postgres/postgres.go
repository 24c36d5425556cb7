// Package postgres talks SQL to the servers of a cluster: it observes them and
// carries out what an operation asks of a running one. It knows PostgreSQL's
// views, functions and error codes, so that package cluster need not; starting
// and stopping servers belongs to the orders of package node.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"controld/internal/cluster"
)

// SQLSTATEs that this package tells apart.
const (
	codeCannotConnectNow = "57P03"
	codeDuplicateObject  = "42710"
	codeUndefinedObject  = "42704"
	codeObjectInUse      = "55006"
	codeNotInState       = "55000"
	codeReadOnly         = "25006"
	codeTooMany          = "53300"
)

// Servers opens sessions with one role's name and password.
type Servers struct {
	// User and Password are of a role with the rights that the sessions need:
	// REPLICATION, pg_monitor, pg_checkpoint, EXECUTE on pg_promote and pg_reload_conf.
	User     string
	Password string
	Database string // postgres when empty
	// Address returns where a node's server listens; the container's name on
	// the cluster's network, and the node's port, when nil.
	Address func(cluster.Node) (host string, port int)
}

var _ cluster.Servers = (*Servers)(nil)

// Connect logs in anew, within ctx. The error never holds the password.
func (s *Servers) Connect(ctx context.Context, n cluster.Node) (cluster.Session, error) {
	cfg, err := s.config(n)
	if err != nil {
		return nil, err
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		if isStarting(err) {
			return nil, fmt.Errorf("connect to %s: %w", n.Name, cluster.ErrStarting)
		}
		return nil, fmt.Errorf("connect to %s: %w", n.Name, refused(err))
	}
	return &session{conn: conn, node: n.Name}, nil
}

// refused marks an error that is an answer, to tell it from silence. An answer comes from
// the server, or from its host when nobody listens.
func refused(err error) error {
	switch {
	case hasCode(err, codeTooMany):
		return fmt.Errorf("%w: %w", cluster.ErrFull, err)
	case errors.As(err, new(*pgconn.PgError)), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: %w", cluster.ErrRefused, err)
	}
	return err
}

// sslRequest asks a server whether it speaks TLS. It answers with one byte,
// before anybody has said who they are:
// https://www.postgresql.org/docs/15/protocol-message-formats.html
var sslRequest = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}

// Knock asks for TLS and leaves. The postmaster has a new process answer that.
func (s *Servers) Knock(ctx context.Context, n cluster.Node) error {
	cfg, err := s.config(n)
	if err != nil {
		return err
	}
	conn, err := cfg.DialFunc(ctx, "tcp", net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port))))
	if err != nil {
		return fmt.Errorf("knock at %s: %w", n.Name, refused(err))
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = conn.Write(sslRequest)
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	if err != nil {
		return fmt.Errorf("knock at %s: %w", n.Name, errors.Join(ctx.Err(), err))
	}
	return nil
}

// config is made from nothing but our own values: PGHOST and its like in the
// environment have no say. TLS is not tried, which would dial twice.
func (s *Servers) config(n cluster.Node) (*pgconn.Config, error) {
	cfg, err := pgconn.ParseConfig("sslmode=disable host=localhost user=none")
	if err != nil {
		return nil, fmt.Errorf("connection settings: %w", err)
	}
	host, port := n.Container, n.Port
	if s.Address != nil {
		host, port = s.Address(n)
	}
	cfg.Host, cfg.Port = host, uint16(port)
	cfg.User, cfg.Password = s.User, s.Password
	cfg.Database = s.Database
	if cfg.Database == "" {
		cfg.Database = "postgres"
	}
	cfg.Fallbacks = nil
	cfg.ValidateConnect = nil
	cfg.RuntimeParams = map[string]string{"application_name": "controld", "client_encoding": "UTF8"}
	cfg.DialFunc = (&net.Dialer{KeepAlive: 5 * time.Second}).DialContext
	return cfg, nil
}

// isStarting tells a server that will accept connections from one that is
// shutting down: both answer with the same code.
func isStarting(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == codeCannotConnectNow && !strings.Contains(pg.Message, "shutting down")
}

func hasCode(err error, code string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == code
}
