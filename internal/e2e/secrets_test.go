package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"controld/internal/testcluster"
)

// secretNames are the files of the secrets directory.
var secretNames = []string{
	"role_app", "role_controld", "role_replicator", "role_rewind", "role_pooler",
	"redis_password", "backup_passphrase", "token_viewer", "token_operator", "token_admin",
}

var services = []string{"postgres_master", "postgres_slave", "pgbouncer", "pgbackrest", "redis", "controld"}

// TestSecretsStaySecret looks for every secret wherever one could leak, after
// a life with everything in it that handles them: first start, base backup,
// rewind, failovers planned and not, refused logins and requests.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	c := upAlone(t, "CONTROLD_BACKUP_ENCRYPTION=aes-256-cbc")
	stop := c.watchProcesses()
	_, standby := c.roles()
	c.anew(standby, "basebackup")
	c.psql(standby, "select pg_promote()") // or there would be nothing to rewind
	c.psql(standby, "create table apart ()")
	c.signalPostgres(standby, "KILL") // and not its container, which is watched
	c.anew(standby, "rewind")
	c.run("/failover", nil)
	c.run("/backups", nil)
	c.waitOK(time.Minute)
	processes := stop()
	for _, program := range []string{"pg_basebackup", "pg_rewind", "walreceiver", "pgbouncer", "redis-server", "controld serve",
		"pgbackrest --stanza=main"} {
		if !strings.Contains(processes, program) {
			t.Errorf("%s was not seen to run: this test would prove nothing", program)
		}
	}
	primary, _ := c.roles()
	c.kill(primary)
	c.run("/failover", nil)
	c.waitOK(time.Minute)
	for _, dsn := range []string{
		as(c.DatabaseURL, "app", "wrong"),
		c.PoolerDSN("replicator", "imdb"),
		c.NodeDSN(standby, "rewind", "imdb"),
	} {
		if err := login(t, dsn); err == nil {
			t.Error("a login that must fail did not")
		}
	}
	answers := c.answers()

	c.holdsNoSecret("a process list", processes)
	c.holdsNoSecret("an answer of the API", answers)
	for _, service := range services {
		name := c.Container(service)
		image := c.docker("inspect", "-f", "{{.Image}}", name)
		c.holdsNoSecret("the log of "+service, c.docker("logs", name))
		c.holdsNoSecret("docker inspect of "+service, c.docker("inspect", name))
		c.holdsNoSecret("docker inspect of its image", c.docker("inspect", image))
		c.holdsNoSecret("docker history of its image", c.docker("history", "--no-trunc", image))
	}
	for service, dirs := range map[string][]string{
		// Orders, settings, the pooler's configuration, the journal, all of both data volumes.
		"controld": {"/orders", "/pgbouncer", "/var/lib/controld", "/pg/node1", "/pg/node2",
			"/control", "/var/lib/pgbackrest"},
		"redis": {"/data"},
	} {
		c.filesHoldNoSecret(service, dirs)
	}
	secretsBelongToTheirServices(c)
	onlyEnvPrints(c)
}

// anew has a node rejoin by a method. On a busy machine the primary's answer may
// be late once, and the request refused for it.
func (c *cluster) anew(node, method string) {
	c.t.Helper()
	err := testcluster.Poll(c.t.Context(), time.Minute, time.Second, func(ctx context.Context) error {
		a, err := c.Call(ctx, "operator", "POST", "/nodes/"+node+"/rejoin", map[string]any{"method": method})
		if err == nil && a.Status != 200 {
			err = fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.waitOK(time.Minute)
}

// answers are those of every path, also to requests that carry a secret where
// it does not belong.
func (c *cluster) answers() string {
	c.t.Helper()
	var out strings.Builder
	for _, path := range []string{
		"/", "/health", "/cluster", "/backups", "/operations?limit=500", "/metrics",
		"/openapi.yaml", "/docs", "/nodes/postgres_master/primary",
	} {
		out.Write(c.call("viewer", "GET", path, nil).Body)
	}
	secret := c.Password("token_admin")
	out.Write(c.call("viewer", "POST", "/failover", nil).Body)
	out.Write(c.call("admin", "POST", "/failover", map[string]any{"mode": secret}).Body)
	out.Write(c.call("", "GET", "/cluster", nil, "Authorization", "Basic "+secret).Body)
	out.Write(c.call("", "GET", "/cluster", nil, "Authorization", "Bearer "+secret+"x").Body)
	return out.String()
}

// holdsNoSecret does not show the text when it fails: a secret is in it.
func (c *cluster) holdsNoSecret(where, text string) {
	c.t.Helper()
	if text == "" {
		c.t.Errorf("%s is empty", where)
	}
	for _, name := range secretNames {
		if strings.Contains(text, c.Password(name)) {
			c.t.Errorf("%s holds %s", where, name)
		}
	}
}

// filesHoldNoSecret searches whole directories, by a program in the container.
func (c *cluster) filesHoldNoSecret(service string, dirs []string) {
	c.t.Helper()
	search := func(pattern string) string {
		grep := append([]string{"exec", "-i", c.Container(service), "grep", "-rlaF", "-f", "-"}, dirs...)
		cmd := exec.CommandContext(c.t.Context(), "docker", grep...)
		cmd.Stdin = strings.NewReader(pattern + "\n")
		out, _ := cmd.Output() // grep fails where it finds nothing, and where a file vanishes meanwhile
		return string(out)
	}
	for _, name := range secretNames {
		if found := search(c.Password(name)); found != "" {
			c.t.Errorf("%s: %s stands in %s", service, name, found)
		}
	}
	if known := map[string]string{"controld": "SCRAM-SHA-256$", "redis": "REDIS"}[service]; search(known) == "" {
		c.t.Errorf("%s: the search does not even find %s", service, known)
	}
}

// watchProcesses keeps reading every container's process list until stop, which
// returns what was seen.
func (c *cluster) watchProcesses() (stop func() string) {
	c.t.Helper()
	type watched struct {
		cmd *exec.Cmd
		out bytes.Buffer
	}
	var all []*watched
	for _, service := range services {
		// Only these have processes that come and go. The arguments of a
		// process are parted by a zero byte.
		every := "1"
		if strings.HasPrefix(service, "postgres_") || service == "pgbackrest" {
			every = "0.05"
		}
		w := &watched{cmd: exec.Command("docker", "exec", c.Container(service), "sh", "-c",
			`until [ -e /tmp/seen ]; do
				cat /proc/[0-9]*/cmdline /proc/1/environ 2>/dev/null
				echo
				sleep `+every+`
			done | tr '\0' ' ' | sort -u`)}
		w.cmd.Stdout = &w.out
		if err := w.cmd.Start(); err != nil {
			c.t.Fatal(err)
		}
		all = append(all, w)
	}
	return func() string {
		var seen strings.Builder
		for i, w := range all {
			c.docker("exec", c.Container(services[i]), "touch", "/tmp/seen")
			if err := w.cmd.Wait(); err != nil {
				c.t.Errorf("watch %s: %v", services[i], err)
			}
			seen.Write(w.out.Bytes())
		}
		return seen.String()
	}
}

// secretsBelongToTheirServices: on the host nobody but the owner reads them, in
// a container only the service's user does.
func secretsBelongToTheirServices(c *cluster) {
	c.t.Helper()
	dir := filepath.Join(c.Root, ".controld", "secrets-"+c.Prefix)
	for path, want := range map[string]os.FileMode{
		dir:                               0o700,
		filepath.Join(dir, "role_app"):    0o600,
		filepath.Join(dir, "token_admin"): 0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			c.t.Errorf("%s: mode %v, want %v: %v", path, info.Mode().Perm(), want, err)
		}
	}
	for service, user := range map[string]string{
		"postgres_master": "postgres",
		"postgres_slave":  "postgres",
		"pgbouncer":       "postgres",
		"pgbackrest":      "postgres",
		"redis":           "redis",
	} {
		found := c.docker("exec", c.Container(service),
			"find", "/run/secrets-own", "(", "-type", "f", "-o", "-type", "d", ")", "-printf", `%u %m %p\n`)
		if !strings.Contains(found, "\n") {
			c.t.Errorf("%s has no secrets of its own: %s", service, found)
		}
		for line := range strings.Lines(found) {
			if !strings.HasPrefix(line, user+" 600 ") && !strings.HasPrefix(line, user+" 700 /run/secrets-own") {
				c.t.Errorf("%s: %q, want 600 and the owner %s", service, line, user)
			}
		}
	}
}

// onlyEnvPrints: no script but env.sh shows a secret.
func onlyEnvPrints(c *cluster) {
	c.t.Helper()
	for _, script := range []string{"check.sh", "secrets.sh", "up.sh", "env.sh"} {
		out, err := c.command(c.t.Context(), filepath.Join(c.Root, "deploy/compose", script)).CombinedOutput()
		if err != nil {
			c.t.Errorf("%s: %v\n%s", script, err, out)
		}
		if script == "env.sh" {
			for _, name := range []string{"token_admin", "role_app", "redis_password"} {
				if !strings.Contains(string(out), c.Password(name)) {
					c.t.Errorf("env.sh does not print %s", name)
				}
			}
			continue
		}
		c.holdsNoSecret("what "+script+" prints", string(out)+"\n")
	}
}

// TestClustersSideBySide: up.sh leaves alone what runs, a second cluster lives
// beside the first, names who holds a port that it wants, and is removed without
// a trace in the first.
func TestClustersSideBySide(t *testing.T) {
	t.Parallel()
	c := upAlone(t)
	before := c.containers(services...)
	if err := c.Script(t.Context(), "up.sh"); err != nil {
		t.Fatal(err)
	}
	if after := c.containers(services...); after != before {
		t.Errorf("a second up.sh changed what runs:\n%s\nwas\n%s", after, before)
	}
	wrongSetting := c.command(t.Context(), filepath.Join(c.Root, "deploy/compose/up.sh"))
	wrongSetting.Env = append(slices.Clone(c.Env), "CONTROLD_OBSERVE_INTERVAL=1h")
	out, err := wrongSetting.CombinedOutput()
	if said := string(out); err == nil || !strings.Contains(said, "observe.interval") ||
		!strings.Contains(said, "Nothing was started or stopped") {
		t.Errorf("up.sh with a wrong setting: %v\n%s", err, out)
	}
	if after := c.containers(services...); after != before {
		t.Errorf("up.sh with a wrong setting changed what runs:\n%s\nwas\n%s", after, before)
	}
	failingCompose := c.command(t.Context(), filepath.Join(c.Root, "deploy/compose/up.sh"))
	failingCompose.Env = append(slices.Clone(c.Env), "PATH="+composeThatFails(t)+":"+os.Getenv("PATH"))
	if out, err := failingCompose.CombinedOutput(); err == nil {
		t.Errorf("up.sh with a compose that fails ended well:\n%s", out)
	}
	if after := c.containers(services...); after != before {
		t.Errorf("up.sh with a compose that fails changed what runs:\n%s\nwas\n%s", after, before)
	}
	c.Env = append(c.Env, "CONTROLD_LOG_LEVEL=debug")
	if err := c.Script(t.Context(), "up.sh"); err != nil {
		t.Fatal(err)
	}
	c.waitOK(time.Minute)
	if kept := c.containers(services[:5]...); !strings.HasPrefix(before, kept) {
		t.Errorf("a changed setting of controld touched the others:\n%s\nwas\n%s", kept, before)
	}
	if all := c.containers(services...); all == before {
		t.Error("controld was not made anew for its changed setting")
	}

	takenPorts(t, c)
	if !t.Run("a second cluster", func(t *testing.T) { secondCluster(t, c.Prefix) }) {
		return
	}
	if kept := c.containers(services[:5]...); !strings.HasPrefix(before, kept) {
		t.Errorf("the second cluster touched the first:\n%s\nwas\n%s", kept, before)
	}
	c.waitOK(10 * time.Second)
	c.run("/failover", nil)
}

// composeThatFails makes a directory for PATH in which compose, also as docker's plugin,
// exits with 3.
func composeThatFails(t *testing.T) string {
	t.Helper()
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, script := range map[string]string{
		"docker-compose": "exit 3",
		"docker":         `[ "$1" != compose ] || exit 3; exec ` + docker + ` "$@"`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil { //nolint:gosec // it is run
			t.Fatal(err)
		}
	}
	return dir
}

// containers are the identities and starts of services' containers.
func (c *cluster) containers(names ...string) string {
	c.t.Helper()
	var out strings.Builder
	for _, name := range names {
		fmt.Fprintln(&out, name, c.docker("inspect", "-f", "{{.Id}} {{.State.StartedAt}} {{.RestartCount}}", c.Container(name)))
	}
	return out.String()
}

// takenPorts asks for ports that a container and a process hold.
func takenPorts(t *testing.T, c *cluster) {
	other, err := testcluster.New(t.Context(), tag())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, held, _ := net.SplitHostPort(listener.Addr().String())
	_, pooler, _ := net.SplitHostPort(c.docker("port", c.Container("pgbouncer"), "6432/tcp"))
	cmd := exec.CommandContext(t.Context(), filepath.Join(other.Root, "deploy/compose/check.sh"))
	cmd.Env = append(other.Env, "CONTROLD_PORT_POOLER="+pooler, "CONTROLD_PORT_REDIS="+held)
	out, err := cmd.CombinedOutput()
	text := string(out)
	for _, want := range []string{
		"port " + pooler, "the container " + c.Container("pgbouncer"), "CONTROLD_PORT_POOLER=",
		"port " + held, "CONTROLD_PORT_REDIS=",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("check.sh does not say %q:\n%s", want, text)
		}
	}
	if err == nil {
		t.Error("check.sh finds nothing wrong with taken ports")
	}
}

// secondCluster comes and goes beside the first.
func secondCluster(t *testing.T, first string) {
	c := upAlone(t)
	c.run("/failover", nil)
	if err := c.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, kind := range [][]string{{"ps", "-aq"}, {"volume", "ls", "-q"}, {"network", "ls", "-q"}} {
		if left := c.docker(append(kind, "--filter", "label=controld.cluster="+c.Prefix)...); left != "" {
			t.Errorf("docker %v shows what the removed cluster left: %s", kind, left)
		}
		if left := c.docker(append(kind, "--filter", "label=controld.cluster="+first)...); left == "" {
			t.Errorf("docker %v shows nothing of the first cluster any more", kind)
		}
	}
	if _, err := os.Stat(filepath.Join(c.Root, ".controld", "secrets-"+c.Prefix)); !os.IsNotExist(err) {
		t.Errorf("the secrets of the removed cluster: %v", err)
	}
}

// command is a command with this cluster's settings.
func (c *cluster) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = c.Env
	return cmd
}
