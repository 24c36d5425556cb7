package docker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"controld/internal/cluster"
	"controld/internal/docker"
	"controld/internal/docker/dockertest"
)

// counting is a container's script: its process adds a byte to the file count every few
// milliseconds for as long as it can run.
const counting = `mkdir -p /data; while :; do printf x >>/data/count; sleep 0.005; done`

// An env is an engine, and a container on its network.
type env struct {
	engine *docker.Engine
	box    *dockertest.Container
	count  string // the container's file
	log    *lockedBuffer
}

func start(t *testing.T) *env {
	t.Helper()
	network := dockertest.Network(t)
	dir := t.TempDir()
	e := &env{count: filepath.Join(dir, "count"), log: &lockedBuffer{}}
	e.box = dockertest.Run(t, dockertest.Spec{
		Image: dockertest.PostgresImage(), Script: counting, Network: network, Binds: []string{dir + ":/data"},
	})
	var err error
	e.engine, err = docker.New(docker.Config{Network: network, Log: slog.New(slog.NewTextHandler(e.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.engine.Close() })
	dockertest.Eventually(t, 10*time.Second, func(context.Context) error {
		_, err := os.Stat(e.count)
		return err
	})
	return e
}

func (e *env) inspect(t *testing.T) cluster.Container {
	t.Helper()
	c, err := e.engine.Inspect(t.Context(), e.box.Name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (e *env) counted(t *testing.T) int64 {
	t.Helper()
	info, err := os.Stat(e.count)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func (e *env) awaitEnd(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	dockertest.Eventually(t, 10*time.Second, func(context.Context) error {
		if e.inspect(t).Running {
			return errors.New("the container still runs")
		}
		return nil
	})
	return time.Since(began)
}

func (e *env) kill(t *testing.T) {
	t.Helper()
	if err := e.engine.Kill(t.Context(), e.box.Name); err != nil {
		t.Fatalf("kill: %v", err)
	}
}

func TestInspect(t *testing.T) {
	e := start(t)
	c := e.inspect(t)
	if !c.Exists || !c.Running || c.Paused || !c.Connected ||
		c.Address != e.box.IP || c.PID == 0 || c.StartedAt.IsZero() || c.Health != "running" {
		t.Errorf("a running container: %+v", c)
	}
	e.box.Pause(t)
	if c := e.inspect(t); !c.Running || !c.Paused || c.Health != "paused" {
		t.Errorf("a paused container: %+v", c)
	}
	e.box.Unpause(t)
	e.box.Kill(t)
	if c := e.inspect(t); !c.Exists || c.Running || c.PID != 0 || c.ExitCode != 137 || c.Address != "" {
		t.Errorf("an ended container: %+v", c)
	}
	for range 2 {
		if err := e.engine.Start(t.Context(), e.box.Name); err != nil {
			t.Errorf("start: %v", err)
		}
	}
	if c := e.inspect(t); !c.Running || c.Address == "" {
		t.Errorf("started again: %+v", c)
	}
	missing, err := e.engine.Inspect(t.Context(), dockertest.RandomName())
	if err != nil || missing.Exists {
		t.Errorf("a missing container: %+v, %v", missing, err)
	}
	if err := e.engine.Start(t.Context(), dockertest.RandomName()); err == nil {
		t.Error("a missing container was started")
	}
	if version, err := e.engine.Ping(t.Context()); err != nil || version == "" {
		t.Errorf("ping: %q, %v", version, err)
	}
}

// What the kernel counts as throttled is a container's own limit, and nothing else.
func TestThrottled(t *testing.T) {
	e := start(t)
	throttled := func() time.Duration {
		d, err := e.engine.Throttled(t.Context(), e.box.Name)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	e.box.MustExec(t, "sh", "-c", "(while :; do :; done) >/dev/null 2>&1 & (while :; do :; done) >/dev/null 2>&1 &")
	time.Sleep(500 * time.Millisecond)
	if d := throttled(); d != 0 {
		t.Errorf("%s without a limit", d)
	}
	api := dockertest.Client(t)
	limit := container.UpdateConfig{Resources: container.Resources{NanoCPUs: 100_000_000}}
	if _, err := api.ContainerUpdate(t.Context(), e.box.Name, limit); err != nil {
		t.Fatal(err)
	}
	dockertest.Eventually(t, time.Minute, func(context.Context) error {
		if d := throttled(); d < time.Second {
			return fmt.Errorf("throttled for %s", d)
		}
		return nil
	})
	if _, err := e.engine.Throttled(t.Context(), dockertest.RandomName()); err == nil {
		t.Error("a missing container has a count")
	}
}

func TestKill(t *testing.T) {
	hidden := func(e *env, t *testing.T) { e.engine.HideProcesses(t.TempDir()) }
	seen := func(*env, *testing.T) {}
	for _, tt := range []struct {
		name  string
		sight func(*env, *testing.T)
		state func(*env, *testing.T)
		warns bool // the engine's kill had to do
	}{
		{"running", seen, func(*env, *testing.T) {}, false},
		{"paused", seen, func(e *env, t *testing.T) { e.box.Pause(t) }, false},
		{"stopped by a signal", seen, stopProcesses, false},
		{"running, processes not visible", hidden, func(*env, *testing.T) {}, true},
		{"paused, processes not visible", hidden, func(e *env, t *testing.T) { e.box.Pause(t) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := start(t)
			tt.sight(e, t)
			tt.state(e, t)
			frozenAt := e.counted(t)
			began := time.Now()
			e.kill(t)
			t.Logf("kill took %v, the engine knew after %v more", time.Since(began), e.awaitEnd(t))
			if c := e.inspect(t); c.ExitCode != 137 || c.Paused {
				t.Errorf("after the kill: %+v", c)
			}
			if warned := strings.Contains(e.log.String(), "through the engine"); warned != tt.warns {
				t.Errorf("warned %v, want %v:\n%s", warned, tt.warns, e.log)
			}
			if tt.name == "paused" && e.counted(t) != frozenAt {
				t.Errorf("%d writes between the thaw and the end", e.counted(t)-frozenAt)
			}
			e.kill(t) // what does not run
		})
	}
	t.Run("missing", func(t *testing.T) {
		e := start(t)
		if err := e.engine.Kill(t.Context(), dockertest.RandomName()); err != nil {
			t.Errorf("kill of a missing container: %v", err)
		}
	})
}

// stopProcesses stops the container's first process, as a frozen server is
// imitated.
func stopProcesses(e *env, t *testing.T) {
	t.Helper()
	if err := syscall.Kill(e.inspect(t).PID, syscall.SIGSTOP); err != nil {
		t.Skipf("the container's processes cannot be signalled from here (%v); run the test as root on the engine's host", err)
	}
}

func TestNetwork(t *testing.T) {
	e := start(t)
	for range 2 {
		if err := e.engine.Disconnect(t.Context(), e.box.Name); err != nil {
			t.Errorf("disconnect: %v", err)
		}
	}
	if c := e.inspect(t); c.Connected || c.Address != "" || !c.Running {
		t.Errorf("cut off: %+v", c)
	}
	for range 2 {
		if err := e.engine.Connect(t.Context(), e.box.Name); err != nil {
			t.Errorf("connect: %v", err)
		}
	}
	if c := e.inspect(t); !c.Connected || c.Address == "" {
		t.Errorf("connected again: %+v", c)
	}
	if err := e.engine.Connect(t.Context(), dockertest.RandomName()); err == nil {
		t.Error("a missing container was connected")
	}
}

func TestEvents(t *testing.T) {
	e := start(t)
	other := dockertest.Run(t, dockertest.Spec{Image: dockertest.PostgresImage(), Script: "sleep 60"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream := e.engine.Events(ctx, e.box.Name)
	time.Sleep(200 * time.Millisecond)
	other.Kill(t)
	e.box.Pause(t)
	e.box.Unpause(t)
	e.box.Kill(t)
	e.box.Start(t)
	seen := map[string]bool{}
	for _, want := range []string{"pause", "unpause", "die", "start"} {
		got := next(t, stream)
		for seen[got.Action] { // repeated by the engine
			got = next(t, stream)
		}
		seen[got.Action] = true
		if got.Action != want || got.Container != e.box.Name {
			t.Errorf("event %+v, want %s of %s", got, want, e.box.Name)
		}
	}
	cancel()
	dockertest.Eventually(t, 5*time.Second, func(context.Context) error {
		if _, open := <-stream; open {
			return errors.New("the stream is open")
		}
		return nil
	})
}

func next(t *testing.T, stream <-chan docker.Event) docker.Event {
	t.Helper()
	select {
	case got := <-stream:
		return got
	case <-time.After(10 * time.Second):
		t.Fatal("no event for ten seconds")
		return docker.Event{}
	}
}

// lockedBuffer is written by the code under test and read by the test.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
