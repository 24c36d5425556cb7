package docker

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

const id = "16d25b10cc8b8379c7f49809cf4fab1c51305a7aa89a973dac8f329f7a090192"

// TestMember knows a container's processes under each kind of control group.
func TestMember(t *testing.T) {
	root := t.TempDir()
	for pid, groups := range map[int]string{
		10: "9:name=systemd:/docker/" + id + "\n6:freezer:/docker/" + id + "\n0::/docker/" + id + "\n", // v1
		11: "0::/system.slice/docker-" + id + ".scope\n",                                               // v2, systemd
		12: "0::/../docker-" + id + ".scope\n",                                                         // v2, seen from another container
		13: "0::/../" + id + "/sub\n",                                                                  // v2, a group below
		20: "0::/\n",
		21: "6:freezer:/docker/" + "f" + id[1:] + "\n",
		22: "",
	} {
		dir := filepath.Join(root, strconv.Itoa(pid))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup"), []byte(groups), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"30", "self", "sys"} { // a process that has just ended, and what is none
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got, err := processes{root}.of(id)
	slices.Sort(got)
	if want := []int{10, 11, 12, 13}; err != nil || !slices.Equal(got, want) {
		t.Errorf("processes %v, %v; want %v", got, err, want)
	}
}

// TestKillStranger: a process that is not the container's is never hit.
func TestKillStranger(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	p := processes{"/proc"}
	for _, pid := range []int{cmd.Process.Pid, 0, -1, 1 << 30} {
		if err := p.kill(pid, id); !errors.Is(err, errNotSeen) {
			t.Errorf("kill of process %d: %v, want %v", pid, err, errNotSeen)
		}
	}
	if err := p.kill(cmd.Process.Pid, ""); !errors.Is(err, errNotSeen) {
		t.Errorf("kill without a container: %v", err)
	}
	if err := p.killAll(id); !errors.Is(err, errNotSeen) {
		t.Errorf("kill of a container without processes: %v", err)
	}
	select {
	case err := <-ended:
		t.Errorf("the stranger has ended: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("the stranger ended by itself")
	}
}
