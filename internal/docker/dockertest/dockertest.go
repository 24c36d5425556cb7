// Package dockertest starts throw-away containers for tests that need the real
// PostgreSQL, PgBouncer or engine. Everything it makes has the label
// controld.test=1 and a random name, and is removed when the test ends. A test
// whose engine or image is missing is skipped with the command that helps.
package dockertest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
)

// Label marks what tests make.
const Label = "controld.test"

// PostgresImage is the image of the nodes under test.
func PostgresImage() string {
	return fromEnv("CONTROLD_TEST_POSTGRES_IMAGE", "controld/postgres:dev")
}

// PgBouncerImage is the image of the pooler under test.
func PgBouncerImage() string {
	return fromEnv("CONTROLD_TEST_PGBOUNCER_IMAGE", "controld/pgbouncer:dev")
}

// RedisImage is the image of the Redis under test.
func RedisImage() string {
	return fromEnv("CONTROLD_TEST_REDIS_IMAGE", "controld/redis:dev")
}

func fromEnv(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// Client returns a client of the engine, or skips the test.
func Client(t testing.TB) *client.Client {
	t.Helper()
	if testing.Short() {
		t.Skip("needs containers, which -short leaves out")
	}
	api, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { api.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := api.Ping(ctx); err != nil {
		t.Skipf("no Docker engine answers (%v); start it: systemctl start docker", err)
	}
	return api
}

// needImage skips the test when the engine has no such image.
func needImage(t testing.TB, api *client.Client, image string) {
	t.Helper()
	if _, err := api.ImageInspect(t.Context(), image); err != nil {
		t.Skipf("image %s: %v; build it: make images", image, err)
	}
}

// A Spec is a container to start. Script is run by /bin/sh as root, as the
// container's first process.
type Spec struct {
	Image   string
	Script  string
	Network string            // the engine's default when empty
	Files   map[string]string // put into the container before it starts, readable by all
	Binds   []string          // host path:container path
	Tmpfs   []string
	Env     []string
}

// A Container runs until its test ends.
type Container struct {
	ID   string
	Name string
	IP   string
	api  *client.Client
}

// Run starts a container.
func Run(t testing.TB, s Spec) *Container {
	t.Helper()
	api := Client(t)
	needImage(t, api, s.Image)
	c := &Container{Name: RandomName(), api: api}
	tmpfs := map[string]string{}
	for _, dir := range s.Tmpfs {
		tmpfs[dir] = ""
	}
	created, err := api.ContainerCreate(t.Context(),
		&container.Config{
			Image: s.Image, Entrypoint: []string{"/bin/sh", "-ec"}, Cmd: []string{s.Script}, Env: s.Env,
			Labels: map[string]string{Label: "1"}, StopSignal: "SIGINT",
		},
		&container.HostConfig{Binds: s.Binds, Tmpfs: tmpfs, NetworkMode: container.NetworkMode(s.Network), ShmSize: 256 << 20},
		nil, nil, c.Name)
	if err != nil {
		t.Fatalf("create container: %v", err)
	}
	c.ID = created.ID
	t.Cleanup(func() { c.remove(t) })
	for name, content := range s.Files {
		c.WriteFile(t, name, content)
	}
	c.Start(t)
	return c
}

// Start starts the container again after its end.
func (c *Container) Start(t testing.TB) {
	t.Helper()
	if err := c.api.ContainerStart(t.Context(), c.ID, container.StartOptions{}); err != nil {
		t.Fatalf("start container: %v", err)
	}
	found, err := c.api.ContainerInspect(t.Context(), c.ID)
	if err != nil {
		t.Fatalf("inspect container: %v", err)
	}
	for _, n := range found.NetworkSettings.Networks {
		c.IP = n.IPAddress
	}
}

// Stop ends the container by its stop signal, and waits for it.
func (c *Container) Stop(t testing.TB) {
	t.Helper()
	if err := c.api.ContainerStop(t.Context(), c.ID, container.StopOptions{}); err != nil {
		t.Fatalf("stop container: %v", err)
	}
}

// Kill ends the container by SIGKILL, and waits for it.
func (c *Container) Kill(t testing.TB) {
	t.Helper()
	ended, errs := c.api.ContainerWait(t.Context(), c.ID, container.WaitConditionNotRunning)
	if err := c.api.ContainerKill(t.Context(), c.ID, "SIGKILL"); err != nil {
		t.Fatalf("kill container: %v", err)
	}
	select {
	case <-ended:
	case err := <-errs:
		t.Fatalf("wait for container: %v", err)
	}
}

// Pause freezes the container.
func (c *Container) Pause(t testing.TB) {
	t.Helper()
	if err := c.api.ContainerPause(t.Context(), c.ID); err != nil {
		t.Fatalf("pause container: %v", err)
	}
}

// Unpause thaws the container.
func (c *Container) Unpause(t testing.TB) {
	t.Helper()
	if err := c.api.ContainerUnpause(t.Context(), c.ID); err != nil {
		t.Fatalf("unpause container: %v", err)
	}
}

// remove shows the log of a failed test's container before it goes.
func (c *Container) remove(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if t.Failed() {
		t.Logf("log of %s:\n%s", c.Name, c.Logs(t))
	}
	if err := c.api.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
		t.Errorf("remove container %s: %v", c.Name, err)
	}
}

// Logs returns what the container has written so far.
func (c *Container) Logs(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stream, err := c.api.ContainerLogs(ctx, c.ID, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		return err.Error()
	}
	defer stream.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, stream); err != nil {
		return out.String() + err.Error()
	}
	return out.String()
}

// WriteFile puts a file into the container, whether it runs or not.
func (c *Container) WriteFile(t testing.TB, name, content string) {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	dir := strings.TrimPrefix(path.Dir(name), "/")
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: 0o644, Size: int64(len(content))},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.api.CopyToContainer(t.Context(), c.ID, "/", &archive, container.CopyToContainerOptions{}); err != nil {
		t.Fatalf("write %s: %v", name, err)
	}
}

// Exec runs a command in the container, as root, and returns its output and exit code.
func (c *Container) Exec(t testing.TB, command ...string) (output string, code int) {
	t.Helper()
	created, err := c.api.ContainerExecCreate(t.Context(), c.ID, container.ExecOptions{
		Cmd:          command,
		AttachStdout: true,
		AttachStderr: true,
	})
	if err != nil {
		t.Fatalf("exec %s: %v", command, err)
	}
	attached, err := c.api.ContainerExecAttach(t.Context(), created.ID, container.ExecAttachOptions{})
	if err != nil {
		t.Fatalf("exec %s: %v", command, err)
	}
	defer attached.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, attached.Reader); err != nil {
		t.Fatalf("exec %s: %v", command, err)
	}
	done, err := c.api.ContainerExecInspect(t.Context(), created.ID)
	if err != nil {
		t.Fatalf("exec %s: %v", command, err)
	}
	return out.String(), done.ExitCode
}

// MustExec is Exec for a command that has to succeed.
func (c *Container) MustExec(t testing.TB, command ...string) string {
	t.Helper()
	out, code := c.Exec(t, command...)
	if code != 0 {
		t.Fatalf("%s: exit code %d:\n%s", command, code, out)
	}
	return out
}

// Network makes a network for the test's containers.
func Network(t testing.TB) string {
	t.Helper()
	api := Client(t)
	name := RandomName()
	made, err := api.NetworkCreate(t.Context(), name, network.CreateOptions{Labels: map[string]string{Label: "1"}})
	if err != nil {
		t.Fatalf("create network: %v", err)
	}
	t.Cleanup(func() {
		if err := api.NetworkRemove(context.Background(), made.ID); err != nil {
			t.Errorf("remove network: %v", err)
		}
	})
	return name
}

// RandomName is a name that nothing else on the engine has.
func RandomName() string { return "controld-test-" + strings.ToLower(rand.Text()[:10]) }

// Eventually tries check until it succeeds or the time is over.
func Eventually(t testing.TB, within time.Duration, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not within %v: %v", within, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
