package probe

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script runs in the container instead of the init: only a server is wanted.
const script = `
set -e
echo probe >/run/postgresql/password
initdb -D /tmp/data -U probe --pwfile=/run/postgresql/password --auth=scram-sha-256 -E UTF8 --locale=C.UTF-8 --no-sync >/dev/null
echo "host all all all scram-sha-256" >>/tmp/data/pg_hba.conf
printf "listen_addresses = '*'\nfsync = off\nautovacuum = off\n" >>/tmp/data/postgresql.conf
pg_ctl -D /tmp/data -l /tmp/log start
exec sleep infinity`

// image is the project's own, of the tag that is being tested.
func image() string { return "controld/postgres:" + cmp.Or(os.Getenv("CONTROLD_TAG"), "dev") }

// A server is a PostgreSQL server in a container of its own. Its test ends it.
type server struct{ container, dsn string }

func startServer(t *testing.T) server {
	t.Helper()
	if testing.Short() {
		t.Skip("needs containers, which -short leaves out")
	}
	if _, err := docker(t, "image", "inspect", image()); err != nil {
		t.Skipf("no image %s: run \"make images\" (%v)", image(), err)
	}
	s := server{container: "probe-test-" + uuid.NewString()[:8]}
	_, err := docker(t, "run", "-d", "--name", s.container, "--label", "controld.test=1", "-p", "127.0.0.1::5432",
		"--user", "postgres", "--stop-signal", "SIGKILL", "--entrypoint", "bash", image(), "-c", script)
	t.Cleanup(func() {
		// Not t.Context(), which has ended by now.
		if out, err := exec.Command("docker", "rm", "-fv", s.container).CombinedOutput(); err != nil {
			t.Errorf("remove %s: %v: %s", s.container, err, out)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	address, err := docker(t, "port", s.container, "5432/tcp")
	if err != nil {
		t.Fatal(err)
	}
	address, _, _ = strings.Cut(address, "\n")
	s.dsn = fmt.Sprintf("postgres://probe:probe@%s/postgres", address)
	s.await(t)
	return s
}

func docker(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "docker", args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("docker %s: %w: %s", args[0], err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func (s server) await(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		conn, err := pgx.Connect(t.Context(), s.dsn)
		if err == nil {
			closeSoon(conn)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server does not start: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// restart makes the server end every session and start again.
func (s server) restart(t *testing.T) {
	t.Helper()
	if _, err := docker(t, "exec", s.container, "pg_ctl", "-D", "/tmp/data", "-l", "/tmp/log", "-m", "fast", "restart"); err != nil {
		t.Fatal(err)
	}
}

func (s server) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer closeSoon(conn)
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func TestAgainstAServer(t *testing.T) {
	s := startServer(t)
	for _, mode := range []Mode{Exec, Prepared, Tx} {
		t.Run("quiet/"+string(mode), func(t *testing.T) { quiet(t, s, mode) })
	}
	for _, mode := range []Mode{Exec, Prepared, Tx} {
		t.Run("restart/"+string(mode), func(t *testing.T) { restarted(t, s, mode) })
	}
	t.Run("wrong rows are found", func(t *testing.T) { wrongRows(t, s) })
	t.Run("nobody there", nobodyThere)
	t.Run("U", func(t *testing.T) { unit(t, s) })
}

func quiet(t *testing.T, s server, mode Mode) {
	r := run(t, Config{DSN: s.dsn, Mode: mode, Every: 10 * ms, Think: 20 * ms, NewConnectionEvery: 10 * ms}, 100)
	all := r.All()
	if all.Acked < 100 || all.Failed+all.FailedConnects != 0 || all.Openings < 1 || all.Outage.Length() <= 0 {
		t.Errorf("%+v", all)
	}
	if mode == Tx && all.P50 < 20*ms {
		t.Errorf("transactions were open for less than they should: %v", all.P50)
	}
	checkRows(t, s, r)
}

// run writes until so many commits are acknowledged, however slow the machine.
func run(t *testing.T, c Config, commits int64) *Report {
	t.Helper()
	p, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); p.Acked() < commits && time.Now().Before(deadline); {
		time.Sleep(10 * ms)
	}
	return p.Stop()
}

func checkRows(t *testing.T, s server, r *Report) Verdict {
	t.Helper()
	v, err := r.Check(t.Context(), s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Err(); err != nil {
		t.Error(err)
	}
	return v
}

func restarted(t *testing.T, s server, mode Mode) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p, err := Start(ctx, Config{DSN: s.dsn, Mode: mode, Think: 20 * ms, NewConnectionEvery: 50 * ms})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitCommit(ctx, time.Now()); err != nil {
		t.Error(err)
	}
	mark := time.Now()
	s.restart(t)
	if err := p.WaitCommit(ctx, time.Now()); err != nil {
		t.Error(err)
	}
	r := p.Stop()
	after := r.Since(mark)
	if after.Failed < 1 || after.FailedPerConnection < 1 || after.FailedConnects == 0 {
		t.Errorf("every session ended, but: %+v", after)
	}
	if after.Outage.Open || after.Outage.Length() < 20*ms || after.FirstCommit < 0 {
		t.Errorf("outage %v of %+v", after.Outage.Length(), after)
	}
	if len(r.Failures) != after.Failed || r.Failures[0].Err == "" || r.Failures[0].Phase == None {
		t.Errorf("failures are not told: %+v", r.Failures)
	}
	if v := checkRows(t, s, r); v.Acked != r.All().Acked {
		t.Errorf("%+v", v)
	}
}

func wrongRows(t *testing.T, s server) {
	r := run(t, Config{DSN: s.dsn, Table: "wrong rows", Workers: 2}, 50)
	s.exec(t, `delete from "wrong rows" where run = $1 and worker = 0 and seq = 0`, r.Run)
	s.exec(t, `insert into "wrong rows" select * from "wrong rows" where run = $1 and worker = 1 and seq = 1`, r.Run)
	s.exec(t, `insert into "wrong rows" values ($1, 2, 1000000), ($2, 2, 2000000)`, r.Run, r.Run+1)
	v, err := r.Check(t.Context(), s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	want := "1 (0:0) lost, 1 (1:1) there twice, 1 (2:1000000) never committed but there"
	if v.Err() == nil || !strings.HasSuffix(v.Err().Error(), want) {
		t.Errorf("got %v, want %s", v.Err(), want)
	}
}

// nobodyThere starts cold against a port that nobody listens on.
func nobodyThere(t *testing.T) {
	c := Config{DSN: "postgres://x@127.0.0.1:1/x?sslmode=disable", Workers: 2, NewConnectionEvery: 20 * ms}
	if _, err := Start(t.Context(), c); err == nil {
		t.Fatal("started warm without a server")
	}
	c.Cold = true
	ctx, cancel := context.WithTimeout(t.Context(), 500*ms)
	defer cancel()
	r, err := Run(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if all := r.All(); all.Acked != 0 || all.Failed != 0 || all.FailedConnects < 4 || !all.Outage.Open {
		t.Errorf("%+v", all)
	}
}

func TestParseDialsOnce(t *testing.T) {
	for _, c := range []struct {
		sslmode   string
		tls       bool
		fallbacks int // to further hosts, or without TLS
	}{
		{"", false, 1}, {"&sslmode=prefer", false, 1}, {"&sslmode=disable", false, 1}, {"&sslmode=require", true, 1},
	} {
		config, err := parse("postgres://u:p@a:1,b:2/d?target_session_attrs=read-write" + c.sslmode)
		if err != nil {
			t.Fatal(err)
		}
		tls := config.TLSConfig != nil
		if config.Host != "a" || tls != c.tls || len(config.Fallbacks) != c.fallbacks || config.Fallbacks[0].Host != "b" {
			t.Errorf("%q: %s, TLS %v, %d fallbacks", c.sslmode, config.Host, tls, len(config.Fallbacks))
		}
	}
}

func unit(t *testing.T, s server) {
	u, err := U(t.Context(), s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	if u <= 0 || u > time.Second {
		t.Errorf("U = %v", u)
	}
	t.Logf("U = %v", u)
}
