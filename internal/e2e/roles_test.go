package e2e

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"controld/internal/probe"
	"controld/internal/testcluster"
)

// SQLSTATEs of what must not be.
const (
	notAllowed = "42501" // insufficient_privilege
	noLogin    = "28000" // invalid_authorization_specification: pg_hba.conf rejects
	noPassword = "28P01" // invalid_password
	noEntry    = "08P01" // protocol_violation: what PgBouncer says to everyone whom it does not let in
)

// fixedRoles are those that only the cluster's own parts use.
var fixedRoles = []string{"controld", "replicator", "rewind", "pooler"}

// TestRoles tries each database role at what it must not do, then what the
// owner of a cluster does with roles: a changed password, a further database
// and user. One cluster serves all.
func TestRoles(t *testing.T) {
	t.Parallel()
	c := upAlone(t)
	primary, _ := c.roles()
	c.psql(primary, "create table public.theirs (n int); alter table theirs owner to app; insert into theirs values (1)")
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"the superuser answers on the socket by the name that users know", rootOnTheSocket},
		{"no role does what it must not", rolesAreBound},
		{"no role logs in where it must not", loginsAreBound},
		{"nobody is trusted", nobodyIsTrusted},
		{"passwords are looked up for clients' roles alone", lookupIsBound},
		{"an application's functions never run as controld", shadowedFunctions},
		{"a changed password locks nobody out", changedPassword},
		{"a further database and user follow a failover under load", furtherDatabase},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, &cluster{c.Cluster, t}) })
	}
}

func rootOnTheSocket(t *testing.T, c *cluster) {
	got := c.docker("exec", c.Container("postgres_master"), "psql", "-U", "root", "-d", "imdb", "-Atc", "select current_user")
	if got != "root" {
		t.Errorf("psql -U root -d imdb says %q", got)
	}
}

func rolesAreBound(t *testing.T, c *cluster) {
	primary, standby := c.roles()
	for _, tt := range []struct {
		role, database string
		sql            []string
	}{
		{"app", "imdb", []string{
			"create role mine", "alter role app superuser", "alter role app replication", "create database mine",
			"grant pg_read_server_files to app", "select * from pg_authid",
			"select controld.pooler_lookup('app')", "create table controld.mine ()",
			"alter system set work_mem = '1MB'", "set role controld", "set session authorization root",
			"copy theirs to '/tmp/theirs'", "copy theirs from program 'id'", "select pg_read_file('PG_VERSION')", "select pg_ls_dir('.')",
			"select pg_promote()", "select pg_switch_wal()", "select pg_reload_conf()", "load '/tmp/mine.so'",
			"create function f() returns int language c as '/tmp/mine'",
		}},
		{"app", "postgres", []string{"create table mine ()", "create schema mine", "create table controld.mine ()"}},
		{"app", "template1", []string{"create table mine ()", "create schema mine"}},
		{"controld", "imdb", []string{
			"select * from theirs", "insert into theirs values (2)", "drop table theirs", "create table mine ()", "create schema mine",
			"select * from pg_authid", "select controld.pooler_lookup('app')",
			"alter role app password 'x'", "create role mine", "set role app",
			"select pg_read_file('PG_VERSION')", "select pg_read_binary_file('global/pg_control')", "select pg_ls_dir('.')",
			"copy (select 1) to '/tmp/mine'", "copy (select 1) to program 'id'", "alter system set work_mem = '1MB'",
		}},
		{"rewind", "postgres", []string{
			"create table mine ()", "create schema mine", "select * from pg_authid", "select controld.pooler_lookup('app')",
			"select pg_read_file('PG_VERSION')", "select pg_read_binary_file('/secrets/role_app')",
			"select pg_read_binary_file('/run/secrets-own/pgpass')", "select pg_ls_dir('/secrets')",
			"copy (select 1) to '/tmp/mine'", "select pg_promote()", "set role app", "alter role app password 'x'",
		}},
		{"pooler", "imdb", []string{
			"select * from theirs", "select * from pg_authid", "create table mine ()", "create schema mine",
			"select pg_read_file('PG_VERSION')", "select pg_promote()", "alter role app password 'x'", "set role app",
			"create or replace function controld.pooler_lookup(text) returns text language sql as 'select null'",
		}},
	} {
		ways := map[string]string{"directly": c.NodeDSN(primary, tt.role, tt.database)}
		if tt.role == "app" && tt.database == "imdb" {
			ways["through the pooler"] = c.DatabaseURL
		}
		for way, dsn := range ways {
			conn := c.connect(dsn)
			for _, sql := range tt.sql {
				if state := sqlState(execute(t, conn, sql)); state != notAllowed {
					t.Errorf("%s in %s %s: %s: SQLSTATE %q, want %s", tt.role, tt.database, way, sql, state, notAllowed)
				}
			}
		}
	}
	if state := sqlState(execute(t, c.connect(c.NodeDSN(standby, "app", "imdb")), "insert into theirs values (3)")); state != "25006" {
		t.Errorf("a write on the standby: SQLSTATE %q, want 25006", state)
	}
	if got := c.psql(primary, "select string_agg(n::text, ',') from theirs"); got != "1" {
		t.Errorf("after all that the table holds %s", got)
	}
}

// loginsAreBound: nothing but the right password from the network's own
// addresses lets anybody in, and only where the role has its work.
func loginsAreBound(t *testing.T, c *cluster) {
	primary, _ := c.roles()
	c.psql(primary, "create role nopassword login")
	refused := func(what, dsn string, want ...string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), dsn)
		if err == nil {
			_ = conn.Close(t.Context())
		}
		state := sqlState(err)
		for _, w := range want {
			if state == w {
				return
			}
		}
		t.Errorf("%s: %v, want one of %v", what, err, want)
	}
	for _, node := range testcluster.Nodes {
		refused("root by TCP", as(c.NodeDSN(node, "app", "imdb"), "root", c.Password("role_app")), noLogin)
		refused("root by TCP without password", as(c.NodeDSN(node, "app", "postgres"), "root", ""), noLogin)
		for _, role := range append(fixedRoles, "app", "nopassword") {
			refused(role+" without password", as(c.NodeDSN(node, role, "postgres"), role, ""), noPassword, noLogin)
			refused(role+" with a wrong password", as(c.NodeDSN(node, role, "postgres"), role, "wrong"), noPassword, noLogin)
		}
		refused("replicator in a database", c.NodeDSN(node, "replicator", "imdb"), noLogin)
		refused("replicator in postgres", c.NodeDSN(node, "replicator", "postgres"), noLogin)
		refused("replicator in a database's walsender", c.NodeDSN(node, "replicator", "imdb")+"&replication=database", noLogin)
		refused("rewind in the application's database", c.NodeDSN(node, "rewind", "imdb"), noLogin)
		for _, role := range []string{"app", "controld", "rewind", "pooler"} {
			refused(role+" as a standby", c.NodeDSN(node, role, "imdb")+"&replication=true", noLogin)
		}
	}
	for _, database := range []string{"imdb", "imdb_ro"} {
		refused("root through the pooler", as(c.PoolerDSN("app", database), "root", ""), noEntry)
		refused("nobody through the pooler", as(c.PoolerDSN("app", database), "nosuch", "x"), noEntry)
		refused("a role without password through the pooler", as(c.PoolerDSN("app", database), "nopassword", ""), noEntry)
		refused("app without password through the pooler", as(c.PoolerDSN("app", database), "app", ""), noEntry)
		for _, role := range []string{"replicator", "rewind"} {
			refused(role+" through the pooler", c.PoolerDSN(role, database), noEntry)
		}
	}
	refused("app on the pooler's console", c.PoolerDSN("app", "pgbouncer"), noEntry)
}

func nobodyIsTrusted(t *testing.T, c *cluster) {
	for _, node := range testcluster.Nodes {
		got := c.psql(node, `select string_agg(line_number || ' ' || coalesce(auth_method, error), '; ') from pg_hba_file_rules
			where error is not null or not (auth_method in ('reject', 'scram-sha-256') or auth_method = 'peer' and type = 'local')`)
		if got != "" {
			t.Errorf("%s: pg_hba.conf has %s", node, got)
		}
		got = c.psql(node, `select string_agg(rolname, ',') from pg_authid
			where rolcanlogin and rolpassword is not null and rolpassword not like 'SCRAM-SHA-256$%'`)
		if got != "" {
			t.Errorf("%s: these have no SCRAM verifier: %s", node, got)
		}
		if got := c.psql(node, "select string_agg(rolname, ',') from pg_authid where rolsuper"); got != "root" {
			t.Errorf("%s: superusers are %s", node, got)
		}
	}
}

func lookupIsBound(t *testing.T, c *cluster) {
	primary, _ := c.roles()
	c.psql(primary, `create role boss login superuser password 'x'; create role copier login replication password 'x';
		create role late login password 'x' valid until '2001-01-01'; create role crowd password 'x'`)
	conn := c.connect(c.NodeDSN(primary, "pooler", "imdb"))
	others := []string{"root", "postgres", "boss", "copier", "late", "crowd", "nosuch", "pg_monitor", "' or true --"}
	for _, role := range append(others, fixedRoles...) {
		var n int
		if err := conn.QueryRow(t.Context(), "select count(*) from controld.pooler_lookup($1)", role).Scan(&n); err != nil || n != 0 {
			t.Errorf("lookup of %s: %d rows, %v", role, n, err)
		}
	}
	var name, verifier string
	err := conn.QueryRow(t.Context(), "select usename, passwd from controld.pooler_lookup('app')").Scan(&name, &verifier)
	if err != nil || name != "app" || !strings.HasPrefix(verifier, "SCRAM-SHA-256$") {
		t.Errorf("lookup of app: %s, %v", name, err)
	}
	c.psql(primary, "drop role boss; drop role copier; drop role late; drop role crowd")
}

// shadowedFunctions: the owner of a database may set its search path, so that
// the probes that run in it would call functions of the owner's.
func shadowedFunctions(t *testing.T, c *cluster) {
	app := c.connect(c.DatabaseURL)
	for _, sql := range []string{
		"create schema trap",
		`create function trap.pg_current_xact_id() returns xid8 language plpgsql as $$ begin raise 'run by %', current_user; end $$`,
		`create function trap.pg_logical_emit_message(boolean, text, text) returns pg_lsn language plpgsql
			as $$ begin raise 'run by %', current_user; end $$`,
		"grant usage on schema trap to public",
		"alter database imdb set search_path = trap, public, pg_catalog",
	} {
		if err := execute(t, app, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	op := c.run("/failover", nil)
	if got := c.psql(op.Result.To, "show search_path"); !strings.HasPrefix(got, "trap") {
		t.Errorf("the search path is %s: this test proves nothing", got)
	}
	c.psql(op.Result.To, "alter database imdb reset search_path; drop schema trap cascade")
	c.waitOK(30 * time.Second)
}

// changedPassword: PgBouncer looks a password up at each login. Sessions that are open go on, also
// when a failover makes PgBouncer log in anew for them. For that it needs that somebody has come
// with the new password by then.
func changedPassword(t *testing.T, c *cluster) {
	primary, _ := c.roles()
	w := c.writers(probe.Config{Workers: 4})
	time.Sleep(200 * time.Millisecond)
	c.psql(primary, "alter role app password 'new-password'")
	fresh := as(c.DatabaseURL, "app", "new-password")
	logins := func(when string) {
		t.Helper()
		if err := login(t, fresh); err != nil {
			t.Errorf("%s: the new password does not let in: %v", when, err)
		}
		if state := sqlState(login(t, c.DatabaseURL)); state != noEntry {
			t.Errorf("%s: the old password: SQLSTATE %q, want %s", when, state, noEntry)
		}
	}
	logins("at once")
	time.Sleep(200 * time.Millisecond)
	op := c.run("/failover", nil)
	logins("after a failover")
	time.Sleep(200 * time.Millisecond)
	r := w.Stop()
	if s := r.All(); s.Failed > 0 || s.FailedConnects > 0 {
		t.Errorf("%d failed transactions, %d failed connects of the open sessions: %v %v",
			s.Failed, s.FailedConnects, r.Failures, r.FailedConnects)
	}
	c.psql(op.Result.To, "alter role app password '"+c.Password("role_app")+"'")
	c.check(r, op.Result.To)
}

// furtherDatabase follows docs/operating.md word by word, as far as a test with
// a prefix can.
func furtherDatabase(t *testing.T, c *cluster) {
	primary, _ := c.roles()
	c.docker("exec", c.Container(primary), "psql", "-U", "root", "-d", "imdb",
		"-c", "create role reader login password $$reader-password$$", "-c", "create database more owner reader")
	c.Env = append(c.Env, "CONTROLD_POOLER_DATABASES=imdb,more")
	if err := c.Script(t.Context(), "up.sh"); err != nil {
		t.Fatal(err)
	}
	c.waitOK(time.Minute)
	more := as(c.PoolerDSN("app", "more"), "reader", "reader-password")
	if state := sqlState(login(t, as(c.PoolerDSN("app", "more_ro"), "reader", "wrong"))); state != noEntry {
		t.Errorf("a wrong password in more_ro: SQLSTATE %q", state)
	}
	for _, path := range []string{"/failover", "/failover"} {
		writers := []*probe.Prober{c.writers(probe.Config{Workers: 4}), c.writers(probe.Config{Workers: 4, DSN: more})}
		time.Sleep(300 * time.Millisecond)
		op := c.run(path, nil)
		time.Sleep(300 * time.Millisecond)
		for i, w := range writers {
			r := w.Stop()
			if s := r.All(); s.Failed > 0 || s.FailedConnects > 0 {
				t.Errorf("database %d: %d failed transactions, %d failed connects: %v %v",
					i, s.Failed, s.FailedConnects, r.Failures, r.FailedConnects)
			}
			if i == 0 {
				c.check(r, op.Result.To)
				continue
			}
			v, err := r.Check(t.Context(), as(c.NodeDSN(op.Result.To, "app", "more"), "reader", "reader-password"))
			if err != nil || !v.OK() {
				t.Errorf("database more on %s: %v %v", op.Result.To, v.Err(), err)
			}
		}
		c.waitOK(30 * time.Second)
	}
	reader := c.connect(more)
	if state := sqlState(execute(t, reader, "select controld.pooler_lookup('app')")); state != notAllowed {
		t.Errorf("reader looks passwords up: SQLSTATE %q", state)
	}
	// Each database is its own: the owner of one is a stranger in the other.
	stranger := c.connect(as(c.DatabaseURL, "reader", "reader-password"))
	if state := sqlState(execute(t, stranger, "create table mine ()")); state != notAllowed {
		t.Errorf("reader creates tables in imdb: SQLSTATE %q", state)
	}
}

// as is dsn with another user and password; none for an empty one.
func as(dsn, user, password string) string {
	u, err := url.Parse(dsn)
	if err != nil {
		panic(err) // the harness made it
	}
	u.User = url.UserPassword(user, password)
	if password == "" {
		u.User = url.User(user)
	}
	return u.String()
}

func login(t *testing.T, dsn string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return conn.QueryRow(ctx, "select 1").Scan(new(int))
}

// execute runs SQL as one simple query. Some of it would wait for the client
// to send data if it were allowed, hence the deadline.
func execute(t *testing.T, conn *pgx.Conn, sql string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// sqlState is the SQLSTATE of an error, "" for none, or what else it is.
func sqlState(err error) string {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &pg):
		return pg.Code
	}
	return err.Error()
}
