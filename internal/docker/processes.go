package docker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// processes are those of the host, where controld can see them. A process
// belongs to a container when its control group carries the container's id:
// so with cgroup v1 (/docker/ID) and v2 (docker-ID.scope, also relative to our
// own group), and without access to the cgroup file system itself.
type processes struct{ root string } // root is /proc

// errNotSeen means that the process is not visible as one of the container.
var errNotSeen = errors.New("its processes are not visible here (does controld run with pid: host?)")

// kill sends SIGKILL to the process pid if it belongs to the container. A pidfd holds
// the process before it is looked at, so that no other one with its number is hit.
func (p processes) kill(pid int, containerID string) error {
	if pid <= 0 || containerID == "" {
		return errNotSeen
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w: %w", pid, errNotSeen, err)
	}
	defer unix.Close(fd)
	member, err := p.member(pid, containerID)
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	if !member {
		return fmt.Errorf("process %d: %w", pid, errNotSeen)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}

// killAll sends SIGKILL to every process of the container. It must be frozen:
// one that runs could start others meanwhile. An error says that none was
// found or that one could not be killed.
func (p processes) killAll(containerID string) error {
	pids, err := p.of(containerID)
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return errNotSeen
	}
	for _, pid := range pids {
		if err := p.kill(pid, containerID); err != nil && !errors.Is(err, errNotSeen) { // not seen any more: it has died
			return err
		}
	}
	return nil
}

// of lists the processes of the container.
func (p processes) of(containerID string) ([]int, error) {
	entries, err := os.ReadDir(p.root)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue // not a process
		}
		member, err := p.member(pid, containerID)
		if err != nil {
			return nil, err
		}
		if member {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// member reports whether the process belongs to the container. One that does
// not exist belongs to none.
func (p processes) member(pid int, containerID string) (bool, error) {
	groups, err := os.ReadFile(filepath.Join(p.root, strconv.Itoa(pid), "cgroup"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("control group of process %d: %w", pid, err)
	}
	return strings.Contains(string(groups), containerID), nil
}
