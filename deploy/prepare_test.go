// Package deploy has no code of its own, only the tests of the scripts beside it.
package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A machine is what prepare.sh sees of one: a PATH of a single folder. What is installed
// there are stand-ins that write down how they were called.
type machine struct {
	t    *testing.T
	root string // of the checkout
	bin  string // its PATH
	env  []string
}

// ordinary are the commands of every Debian machine that the scripts use.
var ordinary = []string{
	"awk", "bash", "cat", "chmod", "date", "dirname", "env", "flock", "grep", "head", "kill", "mktemp", "rm", "sed", "setpriv", "setsid",
	"sleep", "tac", "tail", "timeout", "tr", "umount", "xargs",
}

// installs is a stand-in for apt-get. What it was asked to install is then there.
const installs = `
for word in "$@"; do
	case $word in
	curl | shellcheck | mmdebstrap | git) printf '#!/bin/sh\n' >"$BIN/$word"; chmod +x "$BIN/$word" ;;
	esac
done`

// newMachine is a Debian machine of a user, with an engine whose bases are made.
func newMachine(t *testing.T, uid string) *machine {
	t.Helper()
	m := &machine{t: t, root: t.TempDir(), bin: t.TempDir()}
	m.env = []string{"PATH=" + m.bin, "BIN=" + m.bin, "HOME=" + m.root, "APT_LOCK_SECONDS=2"}
	for _, name := range ordinary {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(m.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	// A copy, so that the test reads these files: go test caches a result by the files
	// that a test reads, not by those that it executes.
	for _, name := range []string{"deploy/lib.sh", "deploy/prepare.sh", "deploy/images/base.sh", "go.mod"} {
		text, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		m.write(filepath.Join(m.root, name), string(text))
	}
	m.has("id", "echo "+uid)
	m.has("go", "exit 0")
	m.has("docker", "exit 0")
	m.has("docker-compose", "exit 0")
	m.has("apt-get", installs)
	return m
}

func (m *machine) write(path, text string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		m.t.Fatal(err)
	}
}

// has puts a stand-in on the machine, which does what body says.
func (m *machine) has(name, body string) {
	m.t.Helper()
	m.write(filepath.Join(m.bin, name), "#!/bin/bash\necho \"${0##*/} $*\" >>\"$BIN/calls\"\n"+body+"\n")
}

// lacks is a machine without a stand-in that it had.
func (m *machine) lacks(name string) {
	m.t.Helper()
	if err := os.Remove(filepath.Join(m.bin, name)); err != nil {
		m.t.Fatal(err)
	}
}

// make does what the Makefile does for a target. built tells whether it got as
// far as the building.
func (m *machine) make(target string, env ...string) (said string, built bool) {
	m.t.Helper()
	cmd := exec.CommandContext(m.t.Context(), "/bin/bash", "-euo", "pipefail", "-c",
		`missing=$(deploy/prepare.sh check "$1") && deploy/prepare.sh install "$1" $missing && echo built`, "make", target)
	cmd.Dir = m.root
	cmd.Env = append(m.env, env...)
	out, err := cmd.CombinedOutput()
	built = strings.HasSuffix(string(out), "built\n")
	if built != (err == nil) {
		m.t.Errorf("%v:\n%s", err, out)
	}
	return string(out), built
}

// calls are the lines that the stand-ins of a name have written.
func (m *machine) calls(name string) []string {
	text, _ := os.ReadFile(filepath.Join(m.bin, "calls")) // missing: nothing was called
	var found []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, name+" ") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

const (
	announces = "installing Debian's packages: "
	byHand    = "apt-get update && apt-get install -y --no-install-recommends "
	bySudo    = "sudo apt-get update && sudo apt-get install -y --no-install-recommends "
)

func TestPrepare(t *testing.T) {
	const root, user = "0", "1000"
	with := func(name, body string) func(*machine) {
		return func(m *machine) { m.has(name, body) }
	}
	without := func(name string) func(*machine) {
		return func(m *machine) { m.lacks(name) }
	}
	const (
		passesOn = `shift; "$@"` // sudo, for a user who may
		refuses  = noBases + "pull) exit 1 ;; esac"
		silent   = noBases + "pull) exec sleep 60 ;; esac"
	)
	for _, tt := range []struct {
		name   string
		uid    string
		target string
		env    string
		change func(*machine)
		built  bool
		says   []string
		never  string // said
		apt    int    // calls of apt-get
		sudo   int
	}{
		{"root installs", root, "lint", "", nil, true, []string{announces + "shellcheck", "installed in"}, "sudo", 1, 0},
		{"a user installs with sudo", user, "lint", "", with("sudo", passesOn), true, []string{announces + "shellcheck"}, "", 1, 3},
		{"a user whose sudo asks", user, "lint", "", with("sudo", "exit 1"), false, []string{bySudo + "shellcheck"}, announces, 0, 1},
		{"a user without sudo", user, "lint", "", nil, false, []string{bySudo + "shellcheck", "make lint cannot start"}, announces, 0, 0},
		{"INSTALL=no as root", root, "lint", "INSTALL=no", nil, false, []string{byHand + "shellcheck", "INSTALL=no"}, announces, 0, 0},
		{"INSTALL=no with sudo", user, "lint", "INSTALL=no", with("sudo", passesOn), false,
			[]string{bySudo + "shellcheck"}, announces, 0, 0},
		{"no Debian", root, "lint", "", without("apt-get"), false, []string{"no apt-get", "shellcheck"}, announces, 0, 0},
		{"apt-get fails", root, "lint", "", with("apt-get", "echo 'E: no space left'; exit 100"), false,
			[]string{announces, "E: no space left", "could not install shellcheck"}, "", 3, 0},
		{"lists that are too old", root, "lint", "", func(m *machine) {
			m.has("apt-get", `case " $* " in *" update "*) echo >"$BIN/updated" ;; *) [ -e "$BIN/updated" ] || exit 100 ;; esac`+installs)
		}, true, []string{announces, "installed in"}, "", 3, 0},
		{"another apt-get runs for long", root, "lint", "", func(m *machine) {
			m.has("apt-get", "echo 'E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)'; exit 100")
		}, false, []string{"waiting up to 2 s", "held by process 7", "has held apt's lock for 2 s"}, "could not install", -1, 0},
		{"another apt-get ends", root, "lint", "", func(m *machine) {
			m.has("apt-get", `[ -e "$BIN/once" ] || { echo >"$BIN/once"; echo 'E: Could not get lock x'; exit 100; }`+installs)
		}, true, []string{"waiting up to 2 s", "installed in"}, "", 2, 0},
		{"installed, but not on the path", root, "lint", "", with("apt-get", ""), false,
			[]string{"shellcheck", "is its folder in PATH?"}, "", 1, 0},
		{"nothing is missing", root, "lint", "", with("shellcheck", ""), true, nil, announces, 0, 0},

		{"images need nothing when their bases are made", root, "images", "", nil, true, nil, announces, 0, 0},
		{"a registry that refuses", root, "images", "", with("docker", refuses), true, []string{announces + "mmdebstrap"}, "", 1, 0},
		{"a registry that is silent", root, "images", "", with("docker", silent), true, []string{announces + "mmdebstrap"}, "", 1, 0},
		{"a registry that answers", root, "images", "", func(m *machine) {
			m.has("docker", noBases+"pull) echo 'bookworm-slim: Pulling from library/debian'; exec sleep 60 ;; esac")
		}, true, nil, announces, 0, 0},
		{"bases that only root could make", user, "images", "", with("docker", refuses), false,
			[]string{"sudo deploy/images/base.sh bookworm"}, announces, 0, 0},
		{"no engine", root, "images", "", with("docker", "echo no route to it; exit 1"), false,
			[]string{"does not answer (no route to it)"}, announces, 0, 0},
		{"no Go", root, "lint", "", without("go"), false, []string{"go is not installed"}, announces, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, tt.uid)
			if tt.change != nil {
				tt.change(m)
			}
			began := time.Now()
			said, built := m.make(tt.target, strings.Fields(tt.env)...)
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
			if built != tt.built {
				t.Errorf("built: %t", built)
			}
			for _, want := range tt.says {
				if !strings.Contains(said, want) {
					t.Errorf("does not say %q", want)
				}
			}
			if tt.never != "" && strings.Contains(said, tt.never) {
				t.Errorf("says %q", tt.never)
			}
			if n := len(m.calls("apt-get")); tt.apt >= 0 && n != tt.apt {
				t.Errorf("apt-get was called %d times", n)
			}
			if n := len(m.calls("sudo")); n != tt.sudo {
				t.Errorf("sudo was called %d times", n)
			}
			if t.Failed() {
				t.Logf("it said:\n%s\ncalls of apt-get and sudo: %q %q", said, m.calls("apt-get"), m.calls("sudo"))
			}
		})
	}
}

// noBases begins a stand-in of an engine that has no image.
const noBases = `case $1 in image) exit 1 ;; `
