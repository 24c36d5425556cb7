//go:build long

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"controld/internal/probe"
	"controld/internal/testcluster"
)

// TestLongEngineRestart restarts the container engine after an emergency failover,
// in order and as a crash: the old primary takes no write, and streams again by
// itself once controld runs. The engine is the test's own.
func TestLongEngineRestart(t *testing.T) {
	t.Parallel()
	e := ownEngine(t)
	if e == nil {
		return // the run beside its own engine has said how it went
	}
	c := upAlone(t)
	for _, tt := range []struct {
		name    string
		signal  syscall.Signal
		without bool // controld is stopped until long after the engine's return
	}{
		{"stopped in order", syscall.SIGTERM, false},
		{"killed", syscall.SIGKILL, false},
		{"killed, controld stopped", syscall.SIGKILL, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := c.in(t)
			primary, standby := c.roles()
			pooled := c.writers(probe.Config{})
			direct := c.hammer(primary, 1)
			if err := errors.Join(pooled.WaitCommit(t.Context(), time.Now()), direct.WaitCommit(t.Context(), time.Now())); err != nil {
				t.Fatal(err)
			}
			c.kill(primary)
			killed := time.Now()
			show, start := func() {}, func() {}
			if tt.without { // it would bring it back before it can be stopped
				show = c.hide(primary)
			}
			op := c.run("/failover", nil)
			if tt.without {
				start = c.staysDown("controld")
				c.docker("stop", c.Container("controld"))
				show()
				c.docker("start", c.Container(primary))
			}
			e.end(t, tt.signal)
			e.start(t)
			if tt.without {
				c.docker("start", c.Container(primary), c.Container(standby))
				time.Sleep(20 * time.Second)
				start()
			}
			c.waitOK(comesBack)
			written(t, pooled, time.Now(), 10*time.Second)
			pooledReport, directReport := pooled.Stop(), direct.Stop()
			c.sameData()
			if stats := directReport.Since(killed); stats.Acked > 0 {
				t.Errorf("%s acknowledged %d commits after it was killed", primary, stats.Acked)
			}
			c.check(pooledReport, op.Result.To)
			c.check(directReport, op.Result.To)
			if now, _ := c.roles(); now != op.Result.To || op.Result.To != standby {
				t.Errorf("%s leads, %s was promoted, want %s", now, op.Result.To, standby)
			}
		})
	}
}

// An engine is a Docker daemon of a test's own, in a network of its own.
type engine struct {
	dir    string
	driver string // of the storage
	daemon *exec.Cmd
}

// What a test that is run again beside its own engine is told.
const (
	engineDir    = "CONTROLD_TEST_ENGINE_DIR"
	engineDriver = "CONTROLD_TEST_ENGINE_DRIVER"
)

// ownEngine runs the calling test a second time, in namespaces of its own and with an engine of
// its own that has the images under test. In the second run it returns that engine; in the first
// it returns nil, once the second has passed. Two engines in one network would overwrite each
// other's firewall.
func ownEngine(t *testing.T) *engine {
	t.Helper()
	dir := os.Getenv(engineDir)
	if dir == "" {
		runInNamespaces(t)
		return nil
	}
	e := &engine{dir: dir, driver: os.Getenv(engineDriver)}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("ip link set lo up: %v: %s", err, out)
	}
	e.start(t)
	t.Cleanup(func() { e.end(t, syscall.SIGTERM) })
	if err := e.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	// This process runs no other test, and t.Setenv is not for parallel ones.
	if err := os.Setenv("DOCKER_HOST", "unix://"+e.socket()); err != nil { //nolint:usetesting // see above
		t.Fatal(err)
	}
	return e
}

// inNamespaces runs a command, and all that the command has started ends with it. The machine's
// own containerd is hidden from it, and the shell collects the orphans.
const inNamespaces = `if [ -d /run/containerd ]; then mount -t tmpfs tmpfs /run/containerd; fi; "$@"; exit $?`

// runInNamespaces is the first run of a test that calls ownEngine.
func runInNamespaces(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs containers, which -short leaves out")
	}
	for _, name := range []string{"dockerd", "unshare", "ip"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("an engine of its own needs %s: %v", name, err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("an engine of its own needs root")
	}
	driver, err := exec.Command("docker", "info", "--format", "{{.Driver}}").Output()
	if err != nil {
		t.Skipf("docker info: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child",
		"bash", "-c", inNamespaces, "bash", self, "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "10m")
	cmd.Env = append(os.Environ(), engineDir+"="+t.TempDir(), engineDriver+"="+strings.TrimSpace(string(driver)))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("beside an engine of its own: %v", err)
	}
	t.Logf("beside an engine of its own:\n%s", out)
}

func (e *engine) socket() string { return filepath.Join(e.dir, "docker.sock") }

// start starts the daemon and waits until it answers.
func (e *engine) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(e.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	configuration := filepath.Join(e.dir, "daemon.json")
	if err := os.WriteFile(configuration, []byte("{}"), 0o600); err != nil { // and not the machine's
		t.Fatal(err)
	}
	e.daemon = exec.Command("dockerd", "--config-file", configuration, "--data-root", filepath.Join(e.dir, "data"),
		"--exec-root", filepath.Join(e.dir, "exec"), "--pidfile", filepath.Join(e.dir, "pid"), "--host", "unix://"+e.socket(),
		"--storage-driver", e.driver, "--bridge", "none")
	e.daemon.Stdout, e.daemon.Stderr = log, log
	if err := e.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	err = testcluster.Poll(context.WithoutCancel(t.Context()), 30*time.Second, 100*time.Millisecond, func(ctx context.Context) error {
		return e.docker(ctx, nil, "info")
	})
	if err != nil {
		said, _ := os.ReadFile(log.Name())
		t.Fatalf("dockerd: %v\n%s", err, said)
	}
}

// end ends the daemon, and with it the containerd that it started. SIGTERM ends
// the containers first; SIGKILL leaves them running until the next daemon ends them.
func (e *engine) end(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := e.daemon.Process.Signal(s); err != nil {
		t.Error(err)
	}
	_ = e.daemon.Wait() // says how it ended, which is what was asked for
}

// load copies the images under test from the machine's engine.
func (e *engine) load(ctx context.Context) error {
	var images []string
	for _, name := range []string{"postgres", "pgbouncer", "pgbackrest", "redis", "controld"} {
		images = append(images, "controld/"+name+":"+tag())
	}
	save := exec.CommandContext(ctx, "docker", append([]string{"save"}, images...)...)
	archive, err := save.StdoutPipe()
	if err != nil {
		return fmt.Errorf("docker save: %w", err)
	}
	if err := save.Start(); err != nil {
		return fmt.Errorf("docker save: %w", err)
	}
	loaded := e.docker(ctx, archive, "load", "--quiet")
	if err := errors.Join(save.Wait(), loaded); err != nil {
		return fmt.Errorf("copy the images: %w", err)
	}
	return nil
}

// docker runs the client against this engine.
func (e *engine) docker(ctx context.Context, in io.Reader, args ...string) error {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"--host", "unix://" + e.socket()}, args...)...)
	cmd.Stdin = in
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("docker %s: %w: %s", args[0], err, out)
	}
	return nil
}
