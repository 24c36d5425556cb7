package child

import (
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newReaper(t *testing.T) *Reaper {
	t.Helper()
	r := NewReaper()
	t.Cleanup(r.Close)
	return r
}

// shell starts a script and returns it with a reader for the first line it prints.
func shell(t *testing.T, r *Reaper, script string, inherit ...*os.File) (*Process, func() string) {
	t.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	p, err := r.Start(Spec{
		Path: "/bin/sh", Args: []string{"-c", script}, Env: os.Environ(),
		UID: os.Geteuid(), GID: os.Getegid(), Stdout: in, Inherit: inherit,
	})
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	return p, func() string {
		t.Helper()
		buf := make([]byte, 100)
		n, err := out.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(buf[:n]))
	}
}

func TestHowAProcessEnded(t *testing.T) {
	r := newReaper(t)
	for _, tt := range []struct {
		script, text string
		code         int
	}{
		{"exit 0", "", 0},
		{"exit 3", "exit code 3", 3},
		{"kill -KILL $$", "killed by signal 9 (killed)", 137},
	} {
		p, _ := shell(t, r, tt.script)
		err := p.Err()
		if (err == nil) != (tt.text == "") || err != nil && err.Error() != tt.text {
			t.Errorf("%q: %v, want %q", tt.script, err, tt.text)
		}
		if p.ExitCode() != tt.code {
			t.Errorf("%q: exit code %d, want %d", tt.script, p.ExitCode(), tt.code)
		}
		p.Signal(unix.SIGTERM) // reaped: must not reach whoever has the number now
	}
}

func TestAProgramThatIsMissing(t *testing.T) {
	if _, err := newReaper(t).Start(Spec{Path: "/nonexistent", UID: os.Geteuid(), GID: os.Getegid()}); err == nil {
		t.Error("started what is not there")
	}
}

func TestInheritedDescriptors(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, _ := shell(t, newReaper(t), "echo through >&3", f)
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(f.Name()); err != nil || string(got) != "through\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSignalsReachTheGroup(t *testing.T) {
	p, line := shell(t, newReaper(t), "sleep 1000 & echo $!; wait")
	pid, err := strconv.Atoi(line())
	if err != nil {
		t.Fatal(err)
	}
	p.SignalGroup(unix.SIGKILL)
	<-p.Done()
	awaitGone(t, pid)
}

// Children in sessions of their own, as PostgreSQL's are, are reached as well. So are
// those that are born while the tree is killed. What is left of the tree would keep the
// pipe open.
func TestKillTreeLeavesNothing(t *testing.T) {
	r := newReaper(t)
	for range 5 {
		out, in, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := r.Start(Spec{
			Path: "/bin/sh", Args: []string{"-c", "setsid sh -c 'while :; do sleep 1000 & echo born; sleep 0.001; done' & " +
				"while :; do sleep 1000 & sleep 0.001; done"},
			Env: os.Environ(), UID: os.Geteuid(), GID: os.Getegid(), Stdout: in,
		})
		in.Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		p.KillTree()
		<-p.Done()
		if err := out.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, out); err != nil {
			t.Errorf("a process of the tree is left: %v", err)
		}
		out.Close()
	}
}

// awaitGone waits until a process is dead: gone, or a zombie that whoever was
// given it has not reaped yet.
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if err := syscall.Kill(pid, 0); err != nil {
			return
		}
		if stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is left", pid)
		}
	}
}

func TestChildByItsTitle(t *testing.T) {
	r := newReaper(t)
	p, line := shell(t, r, "sleep 1001 & sleep 1002 & echo started; wait")
	defer p.SignalGroup(unix.SIGKILL)
	line()
	if c := p.Child(func(title string) bool { return title == "sleep 1003" }); c != nil {
		t.Errorf("found process %d, which nobody started", c.Pid)
	}
	c := p.Child(func(title string) bool { return title == "sleep 1002" })
	if c == nil {
		t.Fatal("the child is not found")
	}
	defer func() { _ = c.Release() }()
	if got := title(c.Pid); got != "sleep 1002" {
		t.Errorf("the handle is on %q", got)
	}
	if err := c.Signal(syscall.Signal(0)); err != nil {
		t.Error(err)
	}
}
