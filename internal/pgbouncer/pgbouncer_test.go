package pgbouncer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/docker/dockertest"
	"controld/internal/node"
	"controld/internal/pgbouncer"
)

// An env is a PgBouncer in front of a pair.
type env struct {
	pair   *dockertest.Pair
	dir    string // the configuration volume
	pooler *pgbouncer.Pooler
	box    *dockertest.Container
}

const script = `
mkdir -p /run/secrets-own
printf '"controld" "%s"\n"pooler" "%s"\n' "$PASSWORD" "$PASSWORD" >/run/secrets-own/userlist.txt
chmod 600 /run/secrets-own/userlist.txt
chown -R 5432:5432 /run/secrets-own
exec setpriv --reuid 5432 --regid 5432 --clear-groups pgbouncer /etc/pgbouncer/pgbouncer.ini
`

func start(t *testing.T) *env {
	t.Helper()
	e := &env{pair: dockertest.StartPair(t), dir: t.TempDir()}
	cfg := pgbouncer.Config{ConfigDir: e.dir, User: "controld", Password: dockertest.Password,
		Databases: []string{"imdb", "Shop-2.x"}, ServerPort: 5432, PoolSize: 20}
	first, err := pgbouncer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.EnsureConfig(); err != nil {
		t.Fatal(err)
	}
	e.box = dockertest.Run(t, dockertest.Spec{
		Image: dockertest.PgBouncerImage(), Script: script, Network: e.pair.Network,
		Binds: []string{e.dir + ":/etc/pgbouncer:ro"}, Tmpfs: []string{"/run/secrets-own"},
		Env: []string{"PASSWORD=" + dockertest.Password},
	})
	cfg.Address = e.box.IP + ":6432"
	if e.pooler, err = pgbouncer.New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.pooler.Close)
	dockertest.Eventually(t, 20*time.Second, func(ctx context.Context) error {
		_, err := e.pooler.Observe(ctx)
		return err
	})
	return e
}

func (e *env) usual() cluster.Targets {
	return cluster.Targets{Primary: e.pair.Primary.IP, Standby: e.pair.Standby.IP}
}

// client is an application's connection.
func (e *env) client(t *testing.T, database string) *pgconn.PgConn {
	t.Helper()
	c, err := e.dial(t.Context(), "app", dockertest.Password, database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func (e *env) dial(ctx context.Context, user, password, database string) (*pgconn.PgConn, error) {
	dsn := fmt.Sprintf("host=%s port=6432 user=%s password='%s' dbname=%s sslmode=disable", e.box.IP, user, password, database)
	return pgconn.Connect(ctx, dsn)
}

func (e *env) hold(t *testing.T, database string) (commit func() error) {
	t.Helper()
	c := e.client(t, database)
	if _, err := c.Exec(t.Context(), "BEGIN; SELECT 1").ReadAll(); err != nil {
		t.Fatal(err)
	}
	return func() error {
		_, err := c.Exec(context.Background(), "COMMIT").ReadAll()
		return err
	}
}

func TestPooler(t *testing.T) {
	e := start(t)
	t.Run("an entry without a target", func(t *testing.T) { nowhere(t, e) })
	t.Run("contract", func(t *testing.T) {
		clustertest.RunPoolerContract(t, clustertest.PoolerEnv{
			Pooler: e.pooler, Database: "imdb",
			Primary: e.pair.Primary.IP, Standby: e.pair.Standby.IP, Hold: e.hold,
		})
	})
	for _, tt := range []struct {
		name string
		try  func(*testing.T, *env)
	}{
		{"nothing is written or reloaded twice", idempotent},
		{"clients do not notice a drain", drainUnderLoad},
		{"clients do not notice a switch of the read-only entry", readOnlyUnderLoad},
		{"pauses that meet logins to the server", pauseMeetsLogin},
		{"roles", roles},
		{"a new connection waits for the end of a pause", connectPaused},
		{"lease", lease},
		{"point is fast", pointLatency},
		{"a frozen PgBouncer", frozen},
		{"a restarted PgBouncer", restarted},
		{"the log has no complaint", quietLog},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := e.pooler.Point(t.Context(), e.usual()); err != nil {
				t.Fatal(err)
			}
			tt.try(t, e)
		})
	}
}

func nowhere(t *testing.T, e *env) {
	state, err := e.pooler.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range state.Databases {
		if d.Host != "" || d.Paused {
			t.Errorf("entry %+v of the first configuration leads somewhere", d)
		}
	}
	waiting := make(chan error, 1)
	go func() { waiting <- e.pooler.Probe(context.Background(), "imdb") }()
	time.Sleep(time.Second)
	if err := e.pooler.Point(t.Context(), e.usual()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-waiting:
		if err != nil {
			t.Errorf("a client that waited for a target: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("a client that waited for a target hangs")
	}
}

func idempotent(t *testing.T, e *env) {
	before, err := os.Stat(filepath.Join(e.dir, "pgbouncer.ini"))
	if err != nil {
		t.Fatal(err)
	}
	reloads := strings.Count(e.box.Logs(t), "RELOAD")
	for range 3 {
		if err := e.pooler.Point(t.Context(), e.usual()); err != nil {
			t.Fatal(err)
		}
	}
	after, err := os.Stat(filepath.Join(e.dir, "pgbouncer.ini"))
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) || strings.Count(e.box.Logs(t), "RELOAD") != reloads {
		t.Errorf("the same targets were written or reloaded again")
	}
}

// load commits small transactions until stop is called, and counts them.
type load struct {
	stop   context.CancelFunc
	ended  chan error
	commit atomic.Int64
}

func (e *env) load(t *testing.T, clients int, database, sql string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{stop: cancel, ended: make(chan error, clients)}
	for range clients {
		c := e.client(t, database)
		go func() {
			for ctx.Err() == nil {
				if _, err := c.Exec(context.Background(), sql).ReadAll(); err != nil {
					l.ended <- err
					return
				}
				l.commit.Add(1)
				time.Sleep(5 * time.Millisecond)
			}
			l.ended <- nil
		}()
	}
	return l
}

func (l *load) check(t *testing.T) {
	t.Helper()
	l.stop()
	for range cap(l.ended) {
		if err := <-l.ended; err != nil {
			t.Errorf("a client failed: %v", err)
		}
	}
	t.Logf("%d transactions", l.commit.Load())
}

// drainUnderLoad: changing pool_size by RELOAD on an entry in use drops no
// client, and no server connection that is in use.
func drainUnderLoad(t *testing.T, e *env) {
	l := e.load(t, 8, "imdb", "SELECT pg_sleep(0.01)")
	time.Sleep(200 * time.Millisecond)
	for _, size := range []int{2, 0, 2, 1, 0} {
		if err := e.pooler.Drain(t.Context(), size); err != nil {
			t.Error(err)
		}
		time.Sleep(400 * time.Millisecond)
		load, err := e.pooler.Load(t.Context(), "imdb")
		if err != nil {
			t.Error(err)
		}
		t.Logf("pool size %d: %+v", size, load)
	}
	l.check(t)
}

func readOnlyUnderLoad(t *testing.T, e *env) {
	const entry = "imdb" + cluster.ReadOnlySuffix
	l := e.load(t, 4, entry, "SELECT 1")
	for i := range 4 {
		targets := e.usual()
		if i%2 == 0 {
			targets.Standby = ""
		}
		if err := e.pooler.Pause(t.Context(), entry); err != nil {
			t.Fatal(err)
		}
		if err := e.pooler.Point(t.Context(), targets); err != nil {
			t.Fatal(err)
		}
		if err := e.pooler.Resume(t.Context(), entry); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	l.check(t)
}

// pauseMeetsLogin: after each resume the pool is empty, and all clients need connections
// that are opened now. The next pause comes a few milliseconds later, and the host changes
// under it. No client is lost, for three reasons: there is a connection, the drain lets no
// further login begin, and no login is on its way.
func pauseMeetsLogin(t *testing.T, e *env) {
	l := e.load(t, 8, "imdb", "SELECT 1")
	dockertest.Eventually(t, 5*time.Second, func(context.Context) error {
		if l.commit.Load() == 0 {
			return errors.New("no transaction yet")
		}
		return nil
	})
	for i := range 60 {
		if err := e.pooler.Drain(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		dockertest.Eventually(t, 5*time.Second, func(ctx context.Context) error {
			load, err := e.pooler.Load(ctx, "imdb")
			if err == nil && (load.Logins > 0 || load.Largest == 0) {
				err = fmt.Errorf("the pool is not settled: %+v", load)
			}
			return err
		})
		if err := e.pooler.Pause(t.Context(), "imdb"); err != nil {
			t.Fatal(err)
		}
		targets := e.usual()
		if i%2 == 0 {
			targets.Primary, targets.Standby = targets.Standby, targets.Primary
		}
		if err := e.pooler.Point(t.Context(), targets); err != nil {
			t.Fatal(err)
		}
		if err := e.pooler.Resume(t.Context(), "imdb"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * time.Millisecond)
	}
	l.check(t)
}

// roles: the application's role is looked up, with its newest password; the
// superuser and the cluster's own roles do not get in this way.
func roles(t *testing.T, e *env) {
	e.client(t, "imdb")
	e.pair.Primary.SQL(t, "postgres", "CREATE ROLE later LOGIN PASSWORD 'one'")
	for _, tt := range []struct {
		user, password string
		ok             bool
	}{
		{"later", "one", true},
		{"later", "wrong", false},
		{"root", "", false},
		{"replicator", dockertest.Password, false},
		{"nobody", "one", false},
	} {
		c, err := e.dial(t.Context(), tt.user, tt.password, "imdb")
		if (err == nil) != tt.ok {
			t.Errorf("%s with password %q: %v, want ok %v", tt.user, tt.password, err, tt.ok)
		}
		if err == nil {
			if _, err := c.Exec(t.Context(), "SELECT 1").ReadAll(); err != nil {
				t.Errorf("%s: %v", tt.user, err)
			}
			c.Close(t.Context())
		}
	}
	e.pair.Primary.SQL(t, "postgres", "ALTER ROLE later PASSWORD 'two'")
	c, err := e.dial(t.Context(), "later", "two", "imdb")
	if err != nil {
		t.Fatalf("with the new password: %v", err)
	}
	defer c.Close(t.Context())
	if _, err := c.Exec(t.Context(), "SELECT 1").ReadAll(); err != nil {
		t.Errorf("with the new password: %v", err)
	}
	if c, err := e.dial(t.Context(), "later", "one", "imdb"); err == nil {
		c.Close(t.Context())
		t.Errorf("the old password still works")
	}
	for _, database := range []string{"imdb", "pgbouncer"} {
		if _, err := e.dial(t.Context(), "pooler", "wrong", database); err == nil {
			t.Errorf("pooler logs in to %s with a wrong password", database)
		}
	}
	if c, err := e.dial(t.Context(), "app", dockertest.Password, "pgbouncer"); err == nil {
		_, err = c.Exec(t.Context(), "SHOW DATABASES").ReadAll()
		c.Close(t.Context())
		if err == nil {
			t.Errorf("the application's role uses the console")
		}
	}
}

func connectPaused(t *testing.T, e *env) {
	if err := e.pooler.Pause(t.Context(), "imdb"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		c, err := e.dial(context.Background(), "app", dockertest.Password, "imdb")
		if err == nil {
			_, err = c.Exec(context.Background(), "SELECT 1").ReadAll()
			c.Close(context.Background())
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("the connection did not wait: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := e.pooler.Resume(t.Context(), "imdb"); err != nil {
		t.Fatal(err)
	}
	resumed := time.Now()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("opened during the pause: %v", err)
		}
		t.Logf("connected %v after the resume", time.Since(resumed))
	case <-time.After(10 * time.Second):
		t.Fatal("a connection opened during the pause hangs")
	}
}

func lease(t *testing.T, e *env) {
	if err := e.pooler.RenewLease("operation", []string{"imdb"}); err != nil {
		t.Fatal(err)
	}
	l, err := node.ReadLease(e.dir)
	if err != nil || l.Holder != "operation" || len(l.Databases) != 1 || l.Expired(time.Now()) {
		t.Errorf("lease %+v, %v", l, err)
	}
	for range 2 {
		if err := e.pooler.RemoveLease(); err != nil {
			t.Error(err)
		}
	}
}

func pointLatency(t *testing.T, e *env) {
	measure := func(what string, do func() error) {
		var times []time.Duration
		for range 10 {
			began := time.Now()
			if err := do(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			times = append(times, time.Since(began).Round(10*time.Microsecond))
		}
		t.Logf("%s: %v", what, times)
	}
	flip := e.usual()
	measure("Point, another host for the probes", func() error {
		if flip.Probe == "" {
			flip.Probe = e.pair.Standby.IP
		} else {
			flip.Probe = ""
		}
		return e.pooler.Point(t.Context(), flip)
	})
	measure("Point, nothing to do", func() error { return e.pooler.Point(t.Context(), flip) })
	measure("Observe", func() error { _, err := e.pooler.Observe(t.Context()); return err })
	measure("Pause, Resume", func() error {
		if err := e.pooler.Pause(t.Context(), "imdb"); err != nil {
			return err
		}
		return e.pooler.Resume(t.Context(), "imdb")
	})
	if err := e.pooler.Point(t.Context(), e.usual()); err != nil {
		t.Fatal(err)
	}
	dockertest.Eventually(t, 5*time.Second, func(ctx context.Context) error { return e.pooler.Probe(ctx, cluster.ProbeEntry) })
	measure("Probe, warm", func() error { return e.pooler.Probe(t.Context(), cluster.ProbeEntry) })
	measure("Probe of a client's database", func() error { return e.pooler.Probe(t.Context(), "imdb") })
}

// frozen: every call ends with its context, and the next one after the thaw is
// answered again.
func frozen(t *testing.T, e *env) {
	if err := e.pooler.Probe(t.Context(), cluster.ProbeEntry); err != nil {
		t.Fatal(err)
	}
	e.box.Pause(t)
	targets := e.usual()
	targets.Standby = ""
	for name, call := range map[string]func(context.Context) error{
		"observe": func(ctx context.Context) error { _, err := e.pooler.Observe(ctx); return err },
		"point":   func(ctx context.Context) error { return e.pooler.Point(ctx, targets) },
		"pause":   func(ctx context.Context) error { return e.pooler.Pause(ctx, "imdb") },
		"resume":  func(ctx context.Context) error { return e.pooler.Resume(ctx, "imdb") },
		"probe":   func(ctx context.Context) error { return e.pooler.Probe(ctx, cluster.ProbeEntry) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		began := time.Now()
		if err := call(ctx); err == nil {
			t.Errorf("%s: a frozen PgBouncer answered", name)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s: gave up only after %v", name, took)
		}
		cancel()
	}
	e.box.Unpause(t)
	if err := e.pooler.Resume(t.Context(), "imdb"); err != nil { // a pause may have got through
		t.Error(err)
	}
	if err := e.pooler.Point(t.Context(), e.usual()); err != nil {
		t.Error(err)
	}
	if err := e.pooler.Probe(t.Context(), "imdb"); err != nil {
		t.Error(err)
	}
}

// restarted: after a restart of PgBouncer the standing connections are replaced. Nothing
// that was known of the PgBouncer before is believed of this one.
func restarted(t *testing.T, e *env) {
	if err := e.pooler.Probe(t.Context(), cluster.ProbeEntry); err != nil {
		t.Fatal(err)
	}
	if err := e.pooler.Pause(t.Context(), "imdb"); err != nil {
		t.Fatal(err)
	}
	e.box.Kill(t)
	e.box.Start(t)
	dockertest.Eventually(t, 10*time.Second, func(ctx context.Context) error {
		state, err := e.pooler.Observe(ctx)
		for _, d := range state.Databases {
			if d.Paused {
				t.Errorf("%s is paused in a new PgBouncer", d.Name)
			}
		}
		return err
	})
	if err := e.pooler.Point(t.Context(), e.usual()); err != nil {
		t.Error(err)
	}
	if err := e.pooler.Probe(t.Context(), cluster.ProbeEntry); err != nil {
		t.Error(err)
	}
	if err := e.pooler.Resume(t.Context(), "imdb"); err != nil {
		t.Error(err)
	}
}

// quietLog: the real PgBouncer took every file without a warning.
func quietLog(t *testing.T, e *env) {
	for line := range strings.Lines(e.box.Logs(t)) {
		for _, bad := range []string{"unrecognized", "invalid", "syntax", "broken", "skipping", "cannot load", "FATAL"} {
			if strings.Contains(line, bad) && !strings.Contains(line, "closing because") && !strings.Contains(line, "pooler error") {
				t.Errorf("PgBouncer complains: %s", line)
			}
		}
	}
}

func TestConfig(t *testing.T) {
	good := pgbouncer.Config{Address: "pgbouncer:6432", Databases: []string{"imdb"}, PoolSize: 1}
	if _, err := pgbouncer.New(good); err != nil {
		t.Error(err)
	}
	for _, databases := range [][]string{
		nil, {""}, {"imdb", "imdb"}, {"a", "a_ro"},
		{"pgbouncer"}, {"a b"}, {"*"}, {`"x"`}, {cluster.ProbeEntry},
	} {
		bad := good
		bad.Databases = databases
		if _, err := pgbouncer.New(bad); err == nil {
			t.Errorf("databases %q are accepted", databases)
		}
	}
	bad := good
	bad.PoolSize = 0
	if _, err := pgbouncer.New(bad); err == nil {
		t.Error("a pool of no connections is accepted")
	}
}
