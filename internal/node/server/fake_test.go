package server

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"controld/internal/node"
	"controld/internal/node/child"
	"controld/internal/pgwal"
)

// The test binary is the fake PostgreSQL too. Started under the name of one of its programs
// it behaves like that one, as far as an init can see.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "postgres":
		os.Exit(fakePostgres(os.Args[2]))
	case "pg_basebackup", "pg_rewind", "initdb":
		os.Exit(fakeTool())
	case checkpointerTitle:
		os.Exit(fakeCheckpointer())
	}
	os.Exit(m.Run())
}

// Files in the node's folder that tell the fakes what to do.
const (
	startsFile   = "starts"    // postgres adds a line for each start
	hangFile     = "hang"      // postgres is shut down and does not end, not even by SIGQUIT
	quitFile     = "hang-quit" // the same, but SIGQUIT ends it
	sleepFile    = "sleep"     // postgres has a checkpointer, which sleeps until it gets SIGUSR1
	toolHangFile = "tool-hang" // a tool writes a file and does not end
	toolFailFile = "tool-fail" // a tool fails
)

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// fakePostgres treats the data directory as the real one does. It refuses a second
// postmaster, leaves a process id, leads without standby.signal, and says in pg_control
// how far its stop is.
func fakePostgres(dataDir string) int {
	nodeDir := filepath.Dir(dataDir)
	pidFile := filepath.Join(dataDir, "postmaster.pid")
	if exists(pidFile) {
		fmt.Fprintln(os.Stderr, "FATAL: lock file postmaster.pid already exists")
		return 1
	}
	// The inherited descriptor must hold the lock by itself.
	if free, err := freeLock(nodeDir); err != nil || free {
		fmt.Fprintln(os.Stderr, "the lock is not held:", free, err)
		return 9
	}
	stop := make(chan os.Signal, 4)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGQUIT)
	role := "primary"
	if exists(filepath.Join(dataDir, standbySignal)) {
		role = "standby"
	}
	if err := os.WriteFile(pidFile, []byte(fmt.Sprintln(os.Getpid())), 0o600); err != nil {
		return 1
	}
	setControl(dataDir, "production")
	f, err := os.OpenFile(filepath.Join(nodeDir, startsFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 1
	}
	checkpointed := func() {}
	if exists(filepath.Join(nodeDir, sleepFile)) {
		checkpointed = startCheckpointer()
	}
	fmt.Fprintln(f, role)
	f.Close()

	for s := range stop {
		checkpointed()
		setControl(dataDir, "shutdown")
		if exists(filepath.Join(nodeDir, hangFile)) || exists(filepath.Join(nodeDir, quitFile)) && s != syscall.SIGQUIT {
			continue
		}
		_ = os.Remove(pidFile)
		if s == syscall.SIGQUIT {
			return 3
		}
		return 0
	}
	return 0
}

const checkpointerTitle = "postgres: checkpointer"

// startCheckpointer returns when the fake checkpointer sleeps. The function that it returns
// waits until somebody has woken the checkpointer.
func startCheckpointer() (wait func()) {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	c := &exec.Cmd{Path: self, Args: []string{checkpointerTitle}, Stderr: os.Stderr}
	out, err := c.StdoutPipe()
	if err != nil {
		panic(err)
	}
	if err := c.Start(); err != nil {
		panic(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		panic(err)
	}
	return func() {
		if err := c.Wait(); err != nil {
			panic(err)
		}
	}
}

func fakeCheckpointer() int {
	nudged := make(chan os.Signal, 1)
	signal.Notify(nudged, syscall.SIGUSR1)
	fmt.Println("asleep")
	select {
	case <-nudged:
		return 0
	case <-time.After(time.Minute):
		return 1
	}
}

func freeLock(nodeDir string) (bool, error) {
	f, err := node.OpenLock(nodeDir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return node.TryLock(f)
}

// setControl gives the data directory a real control file in that state.
func setControl(dataDir, state string) {
	b, err := os.ReadFile(filepath.Join(goldenDir(), state+".pg_control"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dataDir, "global", "pg_control"), b, 0o600)
	}
	if err != nil {
		panic(err)
	}
}

// goldenDir is found from the environment, since the fakes run elsewhere.
func goldenDir() string { return os.Getenv("FAKE_GOLDEN_DIR") }

// fakeTool makes a cluster, or fails, or hangs after having begun.
func fakeTool() int {
	var dataDir string
	for i, a := range os.Args {
		if a == "-D" {
			dataDir = os.Args[i+1]
		}
		if after, ok := strings.CutPrefix(a, "--target-pgdata="); ok {
			dataDir = after
		}
	}
	nodeDir := filepath.Dir(dataDir)
	_ = os.WriteFile(filepath.Join(nodeDir, "args"), []byte(strings.Join(os.Args, "\n")), 0o644)
	_ = os.WriteFile(filepath.Join(dataDir, "begun"), nil, 0o600)
	switch {
	case exists(filepath.Join(nodeDir, toolFailFile)):
		fmt.Fprintln(os.Stderr, "line one\rline two\nthe reason")
		return 1
	case exists(filepath.Join(nodeDir, toolHangFile)):
		// With a child of its own that must not survive.
		_ = exec.Command("sleep", "1000").Start()
		time.Sleep(time.Hour)
	}
	for _, name := range []string{"global", "pg_wal"} {
		if err := os.MkdirAll(filepath.Join(dataDir, name), 0o700); err != nil {
			return 1
		}
	}
	setControl(dataDir, "shutdown")
	return 0
}

// A bench is an init with fakes around it.
type bench struct {
	t     *testing.T
	cfg   Config
	stop  context.CancelFunc
	ended chan error
	epoch uint64
}

func newBench(t *testing.T) *bench {
	t.Helper()
	golden, err := filepath.Abs("../../pgcontrol/testdata")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("FAKE_GOLDEN_DIR", golden)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector's second at each fake's end
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, name := range []string{"postgres", "pg_basebackup", "pg_rewind", "initdb"} {
		if err := os.Symlink(self, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	secrets := t.TempDir()
	for _, role := range []string{"app", "controld", "replicator", "rewind", "pooler"} {
		if err := os.WriteFile(filepath.Join(secrets, "role_"+role), []byte("secret-of-"+role), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	cfg := DefaultConfig(filepath.Join(dir, "node1"))
	cfg.Reach = func(context.Context, string) error { return nil }
	cfg.Compare = func(context.Context, string, string) (pgwal.Comparison, error) {
		return pgwal.Comparison{Relation: pgwal.Past, Why: "it went on"}, nil
	}
	cfg.Space = func(string) (int64, int64, error) { return 1 << 40, 1 << 41, nil }
	cfg.OrderDir, cfg.SecretsDir, cfg.OwnSecretsDir, cfg.BinDir = t.TempDir(), secrets, filepath.Join(dir, "own"), bin
	cfg.SocketDirs = []string{filepath.Join(cfg.NodeDir, node.SocketDir)}
	cfg.UID, cfg.GID = os.Geteuid(), os.Getegid()
	cfg.LockWait, cfg.StopGrace = 2*time.Second, 100*time.Millisecond
	return &bench{t: t, cfg: cfg}
}

// withCluster gives the node a data directory with a cluster at rest.
func (b *bench) withCluster() *bench {
	b.t.Helper()
	if err := os.MkdirAll(filepath.Join(b.cfg.dataDir(), "global"), 0o700); err != nil {
		b.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(b.cfg.dataDir(), "pg_wal", "archive_status"), 0o700); err != nil {
		b.t.Fatal(err)
	}
	setControl(b.cfg.dataDir(), "shutdown")
	return b
}

// run starts the init, as a container's start does.
func (b *bench) run() {
	b.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	reaper := child.NewReaper()
	ended := make(chan error, 1)
	b.stop, b.ended = stop, ended
	init := New(b.cfg, reaper, slog.New(slog.NewTextHandler(b.t.Output(), nil)))
	go func() {
		err := init.Run(ctx)
		reaper.Close()
		ended <- err
	}()
	b.t.Cleanup(func() {
		b.remove(hangFile)
		b.end()
	})
}

// end ends the init as a signal from outside does.
func (b *bench) end() {
	b.t.Helper()
	if b.stop == nil {
		return
	}
	b.stop()
	select {
	case err := <-b.ended:
		if err != nil {
			b.t.Errorf("the init ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		b.t.Error("the init does not end")
	}
	b.stop = nil
}

func (b *bench) give(o node.Order) {
	b.t.Helper()
	b.epoch++
	o.Epoch = b.epoch
	if o.Action == "" {
		o.Action = node.ActionNone
	}
	if err := node.WriteOrder(b.cfg.OrderDir, o); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) status() node.Status {
	b.t.Helper()
	s, err := node.ReadStatus(b.cfg.NodeDir)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) await(want node.State) node.Status {
	b.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if s := b.status(); s.Epoch == b.epoch && s.State == want {
			return s
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("no %s for epoch %d: %+v", want, b.epoch, b.status())
		}
	}
}

// awaitStarts waits until a server has started that often, and returns its roles.
func (b *bench) awaitStarts(count int) []string {
	b.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if s := b.starts(); len(s) >= count {
			return s
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("starts: %v, want %d; status %+v", b.starts(), count, b.status())
		}
	}
}

func (b *bench) starts() []string {
	text, _ := os.ReadFile(filepath.Join(b.cfg.NodeDir, startsFile))
	return strings.Fields(string(text))
}

func (b *bench) put(name string) {
	b.t.Helper()
	if err := os.MkdirAll(b.cfg.NodeDir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.cfg.NodeDir, name), nil, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) remove(name string) { _ = os.Remove(filepath.Join(b.cfg.NodeDir, name)) }

// hold takes the node's lock, as a server of another container would.
func (b *bench) hold() *os.File {
	b.t.Helper()
	if err := os.MkdirAll(b.cfg.NodeDir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	f, err := node.OpenLock(b.cfg.NodeDir)
	if err != nil {
		b.t.Fatal(err)
	}
	if ok, err := node.TryLock(f); !ok || err != nil {
		b.t.Fatal(ok, err)
	}
	return f
}
