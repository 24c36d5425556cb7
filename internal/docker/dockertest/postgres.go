package dockertest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"controld/internal/render"
)

// Password is that of every role in the test servers.
const Password = "correct horse"

// Names of the pair's nodes.
const (
	Node1 = "postgres_master"
	Node2 = "postgres_slave"
)

// A Pair is a primary and its streaming standby, with the product's
// configuration files, roles and one database imdb.
type Pair struct {
	Network string
	Primary *Postgres
	Standby *Postgres
}

// A Postgres is one server.
type Postgres struct {
	*Container
	Node string
	Dir  string // its data volume
	Role render.Role
}

// settings are small: two servers start in a test.
func settings(dir string) render.Postgres {
	sizes := render.DefaultSizes()
	sizes.SharedBuffers = "32MB"
	sizes.MaxPreparedTransactions = 4
	return render.Postgres{DataDir: dir + "/data", SocketDir: dir + "/run", ConfigDir: "/order", Port: 5432, Sizes: sizes}
}

// prologue makes what the node's init makes otherwise.
const prologue = `
as() { setpriv --reuid 5432 --regid 5432 --clear-groups "$@"; }
mkdir -p $DIR/data $DIR/run /run/secrets-own
printf '*:*:*:replicator:%s\n' "$PASSWORD" >/run/secrets-own/pgpass
chmod 600 /run/secrets-own/pgpass
chmod 700 $DIR/data
chown 5432:5432 $DIR $DIR/data $DIR/run /run/secrets-own /run/secrets-own/pgpass
rm -f $DIR/data/postmaster.pid
`

const primaryScript = prologue + `
[ -s $DIR/data/PG_VERSION ] ||
	as initdb -D $DIR/data -E UTF8 --locale=C.UTF-8 --data-checksums --wal-segsize=4 \
		--auth-local=peer --auth-host=scram-sha-256 -U root
exec setpriv --reuid 5432 --regid 5432 --clear-groups postgres -D $DIR/data -c config_file=/order/postgresql.conf
`

const standbyScript = prologue + `
[ -s $DIR/data/PG_VERSION ] ||
	as pg_basebackup -D $DIR/data -X stream -c fast -d "host=$UPSTREAM user=replicator passfile=/run/secrets-own/pgpass"
as touch $DIR/data/standby.signal
exec setpriv --reuid 5432 --regid 5432 --clear-groups postgres -D $DIR/data -c config_file=/order/postgresql.conf
`

// rolesSQL is the pair's share of what the node's init does at the first start.
var rolesSQL = strings.ReplaceAll(`
CREATE ROLE app LOGIN PASSWORD 'PW';
CREATE ROLE controld LOGIN REPLICATION PASSWORD 'PW';
CREATE ROLE replicator LOGIN REPLICATION PASSWORD 'PW';
CREATE ROLE pooler LOGIN PASSWORD 'PW';
GRANT pg_monitor, pg_checkpoint, pg_signal_backend TO controld;
GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO controld;
GRANT EXECUTE ON FUNCTION pg_reload_conf() TO controld;
`, "PW", Password)

const lookupSQL = `
CREATE SCHEMA controld;
CREATE FUNCTION controld.pooler_lookup(name text) RETURNS TABLE (usename name, passwd text)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
	SELECT rolname, rolpassword FROM pg_authid WHERE rolname = name AND rolcanlogin AND NOT rolsuper AND NOT rolreplication $$;
REVOKE ALL ON FUNCTION controld.pooler_lookup(text) FROM PUBLIC;
GRANT USAGE ON SCHEMA controld TO pooler;
GRANT EXECUTE ON FUNCTION controld.pooler_lookup(text) TO pooler;
`

// StartPrimary starts a server that leads, on the network.
func StartPrimary(t testing.TB, network string) *Postgres {
	t.Helper()
	p := &Postgres{Node: Node1, Dir: "/pg/node1", Role: render.Role{ArchiveCommand: "/bin/true"}}
	p.start(t, network, primaryScript, nil)
	p.awaitReady(t)
	p.SQL(t, "postgres", rolesSQL)
	p.SQL(t, "postgres", "CREATE DATABASE imdb OWNER app")
	p.SQL(t, "imdb", lookupSQL)
	return p
}

// StartPair starts a primary and waits until its standby streams, by a slot.
func StartPair(t testing.TB) *Pair {
	t.Helper()
	pair := &Pair{Network: Network(t)}
	pair.Primary = StartPrimary(t, pair.Network)
	pair.Primary.SQL(t, "postgres", "SELECT pg_create_physical_replication_slot('"+Node2+"', true)")
	pair.Standby = &Postgres{Node: Node2, Dir: "/pg/node2", Role: render.Role{
		Upstream:        &render.Upstream{Host: pair.Primary.Name, Port: 5432, PassFile: "/run/secrets-own/pgpass", Application: Node2},
		PrimarySlotName: Node2, ArchiveCommand: "/bin/true",
	}}
	pair.Standby.start(t, pair.Network, standbyScript, []string{"UPSTREAM=" + pair.Primary.Name})
	pair.Standby.awaitReady(t)
	Eventually(t, 30*time.Second, func(context.Context) error {
		if out := pair.Primary.SQL(t, "postgres", "SELECT state FROM pg_stat_replication"); strings.TrimSpace(out) != "streaming" {
			return fmt.Errorf("the standby does not stream: %q", out)
		}
		return nil
	})
	return pair
}

func (p *Postgres) start(t testing.TB, network, script string, env []string) {
	t.Helper()
	p.Container = Run(t, Spec{
		Image: PostgresImage(), Script: script, Network: network,
		Env: append(env, "DIR="+p.Dir, "PASSWORD="+Password),
		Files: map[string]string{
			"/order/" + render.PostgresFile: string(render.PostgreSQL(settings(p.Dir))),
			"/order/" + render.HBAFile:      string(render.HBA()),
			"/order/" + render.IdentFile:    string(render.Ident()),
			"/order/" + render.RoleFile:     string(render.RoleConf(p.Role)),
		},
	})
}

// SetRole writes another role.conf; the server takes it at a reload.
func (p *Postgres) SetRole(t testing.TB, change func(*render.Role)) {
	t.Helper()
	change(&p.Role)
	p.WriteFile(t, "/order/"+render.RoleFile, string(render.RoleConf(p.Role)))
}

func (p *Postgres) awaitReady(t testing.TB) {
	t.Helper()
	Eventually(t, time.Minute, func(context.Context) error {
		if out, code := p.psql(t, "postgres", "SELECT 1"); code != 0 {
			return fmt.Errorf("psql: %s", out)
		}
		return nil
	})
}

// SQL runs statements as the superuser and returns the rows, bare.
func (p *Postgres) SQL(t testing.TB, database, sql string) string {
	t.Helper()
	out, code := p.psql(t, database, sql)
	if code != 0 {
		t.Fatalf("psql: exit code %d:\n%s", code, out)
	}
	return out
}

func (p *Postgres) psql(t testing.TB, database, sql string) (string, int) {
	t.Helper()
	return p.Exec(t, "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", p.Dir+"/run", "-U", "root", "-d", database, "-c", sql)
}
