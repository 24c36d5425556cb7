package node_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"controld/internal/node"
)

func poolerImage() string {
	if s := os.Getenv("CONTROLD_TEST_PGBOUNCER_IMAGE"); s != "" {
		return s
	}
	return "controld/pgbouncer:dev"
}

const poolerConfig = `
[databases]
imdb = host=%[1]s port=5432 dbname=imdb
other = host=%[1]s port=5432 dbname=postgres
[pgbouncer]
listen_addr = 0.0.0.0
listen_port = 6432
unix_socket_dir = /run/secrets-own
auth_type = scram-sha-256
auth_file = /run/secrets-own/userlist.txt
auth_user = pooler
auth_query = SELECT usename, passwd FROM controld.pooler_lookup($1)
admin_users = controld
pool_mode = transaction
server_tls_sslmode = disable
`

// The real PgBouncer: logins by the lookup, and pauses that nobody keeps up.
func TestPoolerInit(t *testing.T) {
	p := newPair(t)
	if out, err := tryDocker("image", "inspect", poolerImage()); err != nil {
		t.Skipf("needs image %s (make images): %s", poolerImage(), out)
	}
	one := p.lead()
	config := t.TempDir()
	if err := os.Chmod(config, 0o755); err != nil {
		t.Fatal(err)
	}
	pooler := p.prefix + "pgbouncer"
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := tryDocker("logs", "--tail", "40", pooler)
			t.Logf("log of the pooler:\n%s", out)
		}
		_, _ = tryDocker("rm", "-f", "-v", pooler)
	})
	docker(t, "run", "-d", "--name", pooler, "--label", "controld.test=1", "--network", p.prefix+"net", "--stop-signal", "SIGINT",
		"-v", config+":/etc/pgbouncer:ro", "-v", p.secrets+":/secrets:ro", "--tmpfs", "/run/secrets-own",
		"-v", p.binary+":/usr/local/bin/controld-node:ro", "--entrypoint", "/usr/local/bin/controld-node", poolerImage(), "pgbouncer")
	// Written late, as controld does.
	time.Sleep(300 * time.Millisecond)
	if err := node.WriteFile(filepath.Join(config, "pgbouncer.ini"), fmt.Appendf(nil, poolerConfig, one.container), 0o644); err != nil {
		t.Fatal(err)
	}
	as := func(user, database, statement string) (string, error) {
		return tryDocker("exec", "-e", "PGPASSWORD=secret-of-"+user, "-e", "PGCONNECT_TIMEOUT=3", one.container, "timeout", "3",
			"psql", "-h", pooler, "-p", "6432", "-U", user, "-d", database, "-XqAt", "-c", statement)
	}
	console := func(command string) {
		t.Helper()
		if out, err := as("controld", "pgbouncer", command); err != nil {
			t.Fatalf("%s: %s %v", command, out, err)
		}
	}
	paused := func() bool {
		t.Helper()
		out, err := as("controld", "pgbouncer", "SHOW DATABASES")
		if err != nil {
			t.Fatal(out, err)
		}
		for line := range strings.Lines(out) {
			fields := strings.Split(strings.TrimSpace(line), "|")
			if fields[0] == "imdb" && fields[len(fields)-2] == "1" {
				return true
			}
		}
		return false
	}
	lease := func() {
		t.Helper()
		if err := node.WriteLease(config, node.Lease{Databases: []string{"imdb"}, RenewedAt: time.Now(), Holder: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "a login by the lookup", func() bool {
		out, err := as("app", "imdb", "select current_user")
		return err == nil && out == "app"
	}, func() string { out, err := as("app", "imdb", "select current_user"); return fmt.Sprint(out, err) })
	if out, err := as("rewind", "imdb", "select 1"); err == nil {
		t.Errorf("a fixed role came through the pooler: %s", out)
	}

	lease()
	console("PAUSE imdb")
	if !paused() {
		t.Fatal("PAUSE does not show in SHOW DATABASES where the init looks for it")
	}
	time.Sleep(4 * time.Second)
	lease()
	renewed := time.Now()
	waitFor(t, "the pause to be resumed", func() bool { return !paused() }, nil)
	if took := time.Since(renewed); took < node.LeaseDuration-time.Second || took > node.LeaseDuration+3*time.Second {
		t.Errorf("resumed %v after the lease's last renewal", took)
	} else {
		t.Logf("resumed %v after the lease's last renewal", took)
	}
	if out, err := as("app", "imdb", "select 1"); err != nil {
		t.Errorf("after the resume: %s %v", out, err)
	}

	if err := node.RemoveLease(config); err != nil {
		t.Fatal(err)
	}
	console("PAUSE imdb")
	began := time.Now()
	waitFor(t, "the pause without a lease to be resumed", func() bool { return !paused() }, nil)
	if took := time.Since(began); took < node.LeaseDuration-time.Second || took > node.LeaseDuration+3*time.Second {
		t.Errorf("resumed %v after the pause", took)
	}

	began = time.Now()
	docker(t, "stop", pooler)
	if code := docker(t, "inspect", "-f", "{{.State.ExitCode}}", pooler); code != "0" {
		t.Errorf("exit code %s", code)
	}
	t.Logf("docker stop of the pooler: %v", time.Since(began))
}
