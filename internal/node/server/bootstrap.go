package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"controld/internal/node"
	"controld/internal/node/child"
	"controld/internal/rights"
)

// bootstrapPort names the socket of the server that runs for initdb's SQL alone.
const bootstrapPort = "5432"

// How long initdb's server may take to start and to stop, and how often it is tried.
const (
	bootstrapStart = 60 * time.Second
	bootstrapStop  = 60 * time.Second
	bootstrapRetry = 20 * time.Millisecond
)

// bootstrap makes roles and the application's database through a server that
// listens on its socket alone.
func (n *Init) bootstrap(ctx context.Context, lock *os.File) error {
	statements, err := n.bootstrapSQL()
	if err != nil {
		return err
	}
	if err := n.removeStale(); err != nil {
		return err
	}
	socketDir := filepath.Join(n.cfg.NodeDir, node.SocketDir)
	server, err := n.startPostgres(lock, n.cfg.Stdout, n.cfg.Stderr,
		"-c", "listen_addresses=", "-c", "port="+bootstrapPort, "-c", "unix_socket_directories="+socketDir,
		// No standby is there to wait for.
		"-c", "synchronous_standby_names=")
	if err != nil {
		return err
	}
	err = n.bootstrapThrough(ctx, server, socketDir, statements)
	return errors.Join(err, endBootstrap(server, err != nil))
}

// endBootstrap stops the server: fast, or at once when the directory is lost anyway.
func endBootstrap(server *child.Process, lost bool) error {
	if lost {
		server.Signal(unix.SIGQUIT)
	} else {
		server.Signal(unix.SIGINT)
	}
	select {
	case <-server.Done():
	case <-time.After(bootstrapStop):
		server.KillTree()
		<-server.Done()
	}
	if lost {
		return nil
	}
	if err := server.Err(); err != nil {
		return fmt.Errorf("stop after bootstrap: %w", err)
	}
	return nil
}

func (n *Init) bootstrapThrough(ctx context.Context, server *child.Process, socketDir string, batches []node.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, bootstrapStart)
	defer cancel()
	for _, b := range batches {
		if err := runBatch(ctx, server, socketDir, b); err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
	}
	return nil
}

// runBatch runs SQL as the superuser.
func runBatch(ctx context.Context, server *child.Process, socketDir string, b node.Batch) (err error) {
	conn, err := connect(ctx, server, socketDir, b.Database)
	if err != nil {
		return fmt.Errorf("%s: %w", b.Database, err)
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	for _, sql := range append(node.SuperuserSettings(), b.SQL...) {
		if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
			return fmt.Errorf("%s: %w", b.Database, err)
		}
	}
	return nil
}

// cannotConnectNow is the SQLSTATE of a server that is starting.
const cannotConnectNow = "57P03"

// connect reaches a server that may still be starting, as the superuser: the
// init's own user, by peer authentication.
func connect(ctx context.Context, server *child.Process, socketDir, database string) (*pgconn.PgConn, error) {
	for {
		conn, err := pgconn.Connect(ctx, "host="+socketDir+" port="+bootstrapPort+" user=root sslmode=disable dbname="+database)
		if err == nil {
			return conn, nil
		}
		if refused := new(pgconn.PgError); errors.As(err, &refused) && refused.Code != cannotConnectNow {
			return nil, err
		}
		select {
		case <-server.Done():
			return nil, fmt.Errorf("the server ended: %w", errors.Join(server.Err(), err))
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(bootstrapRetry):
		}
	}
}

// bootstrapSQL makes the roles, their rights and the application's database, which has
// what template1 holds.
func (n *Init) bootstrapSQL() ([]node.Batch, error) {
	secrets := map[string]string{}
	for _, name := range rights.Secrets() {
		value, err := secret(n.cfg.SecretsDir, name)
		if err != nil {
			return nil, err
		}
		secrets[name] = value
	}
	batches, err := rights.Batches(func(name string) string { return secrets[name] }, "template1")
	if err != nil {
		return nil, err
	}
	quoted := `"` + strings.ReplaceAll(n.cfg.Database, `"`, `""`) + `"`
	return append(batches, node.Batch{Database: "postgres", SQL: []string{"CREATE DATABASE " + quoted + " OWNER app"}}), nil
}
