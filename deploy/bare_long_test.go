//go:build long

package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"controld/internal/testcluster"
)

// debianAlone is what the machine of TestLongBareMachine has beside Debian's base.
const debianAlone = "docker.io docker-compose make"

// tools are those that make has to install on it.
var tools = []string{"curl", "git", "mmdebstrap", "ip", "shellcheck", "gcc"}

// TestLongBareMachine does what the README says on a Debian 12 that has an engine,
// docker-compose, Go and make, but no Go cache and no base of an image: make up, make up
// again, make lint and the beginning of make test. The machine is a container that uses
// this machine's engine. All that is made there has names of its own and is removed.
func TestLongBareMachine(t *testing.T) {
	b := newBare(t)
	b.lacks("at the beginning", tools...)

	said, took := b.make("INSTALL=no", "up")
	if b.failed == nil || !strings.Contains(said, "apt-get install -y --no-install-recommends mmdebstrap curl") || took > 20*time.Second {
		t.Errorf("make up INSTALL=no: %v after %v:\n%s", b.failed, took, said)
	}
	b.lacks("after INSTALL=no", tools...)

	said, took = b.must("up")
	report(t, "make up from nothing", took)
	if n := strings.Count(said, "installing Debian's packages:"); n != 1 {
		t.Errorf("it says %d times that it installs:\n%s", n, said)
	}
	if !strings.Contains(said, "The cluster is up.") {
		t.Errorf("make up does not end healthy:\n%s", said)
	}
	before := b.started()

	said, took = b.must("up")
	report(t, "make up that changes nothing", took)
	if strings.Contains(said, "install") || strings.Contains(said, "built ") {
		t.Errorf("a second make up installs or builds:\n%s", said)
	}
	if after := b.started(); after != before {
		t.Errorf("a second make up restarts something: before\n%s\nafter\n%s", before, after)
	}

	b.lacks("after make up", "git", "shellcheck", "gcc")
	_, took = b.must("lint")
	report(t, "make lint from nothing", took)

	// One package without and one with containers. testreport says whether they ran,
	// and that none was skipped.
	said, took = b.must("test", "PKG=./internal/wal ./internal/probe")
	report(t, "make test, of two packages", took)
	if !strings.Contains(said, "0 failed, 0 skipped, in 2 packages") {
		t.Errorf("make test:\n%s", said)
	}
}

// report puts a figure where make test-long shows it.
func report(t *testing.T, what string, took time.Duration) {
	load, _ := os.ReadFile("/proc/loadavg") // of whoever else uses this machine
	t.Logf("%s: %.0f s (load %s)", what, took.Seconds(), strings.Join(strings.Fields(string(load))[:1], ""))
}

// A bare is the container that plays the bare machine.
type bare struct {
	t       *testing.T
	cluster *testcluster.Cluster // its names and ports; the scripts run inside
	name    string               // of the container
	base    string               // name of the images' bases
	dir     string               // the checkout, there and here
	failed  error                // of the last make
}

func newBare(t *testing.T) *bare {
	t.Helper()
	cluster, err := testcluster.New(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	tag := strings.TrimSuffix(cluster.Prefix, "-")
	b := &bare{t: t, cluster: cluster, name: "bare-" + tag, base: "controld/base-" + tag, dir: t.TempDir()}
	copyTree(t, cluster.Root, b.dir)

	image := "controld/base:bookworm" // make test-long has made it
	args := []string{
		"run", "-d", "--name", b.name, "--network", "host", "--init",
		"-v", "/var/run/docker.sock:/var/run/docker.sock", "-v", b.dir + ":" + b.dir, "-w", b.dir,
		// mmdebstrap mounts. (--privileged would do, but not every machine's engine may give that much.)
		"--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
		// What is built lies on a disk, as it would on a machine, and not in layers.
		"-v", "/root", "-v", "/tmp", "-v", "/var/tmp",
		"-e", "HOME=/root", "-e", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin",
		"-e", "CONTROLD_BASE=" + b.base, "-e", "TEST_TAG=" + tag + "-test",
	}
	for _, setting := range append(cluster.Env, "CONTROLD_TAG="+tag) { // the last wins
		if strings.HasPrefix(setting, "CONTROLD_") {
			args = append(args, "-e", setting)
		}
	}
	args = append(args, b.golang()...)
	t.Cleanup(func() { b.remove(tag) })
	b.docker(append(args, image, "sleep", "infinity")...)
	b.run("bash", "-c", "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "+debianAlone)
	return b
}

// golang hands on this machine's Go, and where modules come from and whose certificates
// are believed for that.
func (b *bare) golang() []string {
	out, err := exec.CommandContext(b.t.Context(), "go", "env", "-json",
		"GOROOT", "GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOPROXY", "GOPRIVATE", "GOINSECURE").Output()
	if err != nil {
		b.t.Fatal(err)
	}
	var settings map[string]string
	if err := json.Unmarshal(out, &settings); err != nil {
		b.t.Fatal(err)
	}
	args := []string{"-v", settings["GOROOT"] + ":/usr/local/go:ro"}
	delete(settings, "GOROOT")
	for name, value := range settings {
		args = append(args, "-e", name+"="+value)
	}
	if file := os.Getenv("SSL_CERT_FILE"); file != "" {
		args = append(args, "-v", file+":/certificates.crt:ro", "-e", "SSL_CERT_FILE=/certificates.crt")
	}
	return args
}

// remove takes away all that was made, also after a failure in the middle.
func (b *bare) remove(tag string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.t.Context()), 5*time.Minute)
	defer cancel()
	do := func(args ...string) {
		if out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput(); err != nil {
			b.t.Errorf("clean up: docker %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	// Destroy removes by label, from here too. The checkout is root's by now.
	if err := b.cluster.Destroy(ctx); err != nil {
		b.t.Error(err)
	}
	// Where the container does not run there is nothing to remove.
	_ = exec.CommandContext(ctx, "docker", "exec", b.name, "bash", "-c", "shopt -s dotglob; rm -rf "+b.dir+"/*").Run()
	do("rm", "-f", "-v", b.name)
	out, err := exec.CommandContext(ctx, "docker", "images", "--format", "{{.Repository}}:{{.Tag}}").Output()
	if err != nil {
		b.t.Error(err)
	}
	for image := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(image, b.base+":") || strings.HasSuffix(image, ":"+tag) || strings.Contains(image, ":"+tag+"-test") {
			do("rmi", image)
		}
	}
}

// copyTree copies the checkout without what building has left in it, and
// without git's part: the machine has no git.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if slices.Contains([]string{".git", "build", ".controld"}, name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		target := filepath.Join(to, name)
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, info.Mode().Perm())
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bare) docker(args ...string) string {
	b.t.Helper()
	out, err := b.cluster.Docker(b.t.Context(), args...)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// run runs a command on the bare machine.
func (b *bare) run(args ...string) string {
	b.t.Helper()
	return b.docker(append([]string{"exec", b.name}, args...)...)
}

// make runs make there; how it ended is in failed.
func (b *bare) make(args ...string) (said string, took time.Duration) {
	b.t.Helper()
	began := time.Now()
	said, b.failed = b.cluster.Docker(b.t.Context(), append([]string{"exec", b.name, "make"}, args...)...)
	if b.failed != nil {
		said = b.failed.Error()
	}
	return said, time.Since(began)
}

// must runs make and expects it to succeed.
func (b *bare) must(args ...string) (said string, took time.Duration) {
	b.t.Helper()
	said, took = b.make(args...)
	if b.failed != nil {
		b.t.Fatalf("make %s: %s", strings.Join(args, " "), said)
	}
	return said, took
}

// lacks checks that commands are not there, so that the test tries something.
func (b *bare) lacks(when string, commands ...string) {
	b.t.Helper()
	for _, name := range commands {
		if out, err := b.cluster.Docker(b.t.Context(), "exec", b.name, "bash", "-c", "command -v "+name); err == nil {
			b.t.Errorf("%s, %s is there: %s", when, name, out)
		}
	}
}

// started tells of each container of the cluster which it is and since when it runs.
func (b *bare) started() string {
	var out strings.Builder
	for _, service := range append(slices.Clone(testcluster.Nodes), "pgbouncer", "redis", "controld") {
		fmt.Fprintln(&out, service, b.docker("inspect", "-f", "{{.Id}} {{.State.StartedAt}}", b.cluster.Container(service)))
	}
	return out.String()
}
