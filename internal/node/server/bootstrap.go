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
)

// bootstrapPort names the socket of the server that only initdb's SQL sees.
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
	statements, err := bootstrapSQL(n.cfg.SecretsDir, n.cfg.Database)
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

func (n *Init) bootstrapThrough(ctx context.Context, server *child.Process, socketDir string, statements []databaseSQL) error {
	ctx, cancel := context.WithTimeout(ctx, bootstrapStart)
	defer cancel()
	for _, s := range statements {
		conn, err := connect(ctx, server, socketDir, s.database)
		if err != nil {
			return fmt.Errorf("bootstrap %s: %w", s.database, err)
		}
		for _, sql := range s.sql {
			if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
				_ = conn.Close(ctx)
				return fmt.Errorf("bootstrap %s: %w", s.database, err)
			}
		}
		if err := conn.Close(ctx); err != nil {
			return fmt.Errorf("bootstrap %s: %w", s.database, err)
		}
	}
	return nil
}

// connect reaches a server that may still be starting, as the superuser: the
// init's own user, by peer authentication.
func connect(ctx context.Context, server *child.Process, socketDir, database string) (*pgconn.PgConn, error) {
	for {
		conn, err := pgconn.Connect(ctx, "host="+socketDir+" port="+bootstrapPort+" user=root sslmode=disable dbname="+database)
		if err == nil {
			return conn, nil
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

// databaseSQL is what is run in one database, in order.
type databaseSQL struct {
	database string
	sql      []string
}

// bootstrapSQL returns what makes the roles, their rights and the database.
// Passwords go in as SCRAM verifiers: no log and no statistics view sees one.
func bootstrapSQL(secretsDir, database string) ([]databaseSQL, error) {
	var roles []string
	for _, r := range []struct{ name, attributes string }{
		{"app", "LOGIN"},
		{"controld", "LOGIN REPLICATION"},
		{"replicator", "LOGIN REPLICATION"},
		{"rewind", "LOGIN"},
		{"pooler", "LOGIN"},
	} {
		password, err := secret(secretsDir, "role_"+r.name)
		if err != nil {
			return nil, err
		}
		verifier, err := scramVerifier(password)
		if err != nil {
			return nil, fmt.Errorf("role %s: %w", r.name, err)
		}
		roles = append(roles, fmt.Sprintf("CREATE ROLE %s %s PASSWORD '%s'", r.name, r.attributes, verifier))
	}
	roles = append(roles, "GRANT pg_monitor, pg_checkpoint, pg_signal_backend TO controld")
	quoted := `"` + strings.ReplaceAll(database, `"`, `""`) + `"`
	return []databaseSQL{
		{"postgres", append(roles, rightsSQL...)},
		// What template1 holds, every database made later has too.
		{"template1", rightsSQL},
		{"postgres", []string{"CREATE DATABASE " + quoted + " OWNER app"}},
	}, nil
}

// rightsSQL is what each database needs, since rights on functions are its own.
var rightsSQL = []string{
	`GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_reload_conf() TO controld`,
	`GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
		pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO rewind`,
	`CREATE SCHEMA controld`,
	`CREATE FUNCTION controld.pooler_lookup(INOUT usename text, OUT passwd text)
		RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
		AS $$
			SELECT a.rolname::text, a.rolpassword FROM pg_catalog.pg_authid a
			WHERE a.rolname = $1 AND a.rolcanlogin AND NOT a.rolsuper AND NOT a.rolreplication
			AND a.rolname NOT IN ('controld', 'pooler', 'replicator', 'rewind')
			AND (a.rolvaliduntil IS NULL OR a.rolvaliduntil > now())
		$$`,
	`REVOKE ALL ON FUNCTION controld.pooler_lookup(text) FROM PUBLIC`,
	`GRANT USAGE ON SCHEMA controld TO pooler`,
	`GRANT EXECUTE ON FUNCTION controld.pooler_lookup(text) TO pooler`,
}
