// Package child starts the processes of a container and reaps them as its
// first process must: its own children, and as pid 1 the orphans that it was
// given. What to start and when is decided by the packages that use it.
package child

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Spec says what to start.
type Spec struct {
	Path string // of the program
	Args []string
	Env  []string
	Dir  string

	// UID and GID are those of the process. Those of this program need no privilege.
	UID, GID int
	// Session puts the process into a session of its own, otherwise only into
	// a process group of its own.
	Session bool

	Stdout, Stderr *os.File
	Inherit        []*os.File // descriptors from 3 on
}

// A Process is a child that was started and perhaps has ended since.
type Process struct {
	PID    int
	reaper *Reaper
	done   chan struct{}
	status unix.WaitStatus // valid once done is closed
}

// Done is closed when the process has ended and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended, nil for exit code 0. It waits for the end.
func (p *Process) Err() error {
	<-p.done
	switch {
	case p.status.Signaled():
		return fmt.Errorf("killed by signal %d (%s)", p.status.Signal(), p.status.Signal())
	case p.status.ExitStatus() != 0:
		return fmt.Errorf("exit code %d", p.status.ExitStatus())
	}
	return nil
}

// ExitCode is what a shell would report: 128 + n for a process killed by signal n.
func (p *Process) ExitCode() int {
	<-p.done
	if p.status.Signaled() {
		return 128 + int(p.status.Signal())
	}
	return p.status.ExitStatus()
}

// Signal sends sig to the process; nothing happens when it has been reaped.
func (p *Process) Signal(sig syscall.Signal) { p.signal(p.PID, sig) }

// SignalGroup sends sig to the process and to all that is left in its group.
func (p *Process) SignalGroup(sig syscall.Signal) { p.signal(-p.PID, sig) }

func (p *Process) signal(target int, sig syscall.Signal) {
	p.reaper.mu.Lock()
	defer p.reaper.mu.Unlock()
	if p.reaper.own[p.PID] == p { // not reaped: the number cannot be another's
		_ = unix.Kill(target, sig) // a process that has just ended needs none
	}
}

// Child returns a handle on the child of the process whose title satisfies is; nil
// where there is none. The title is what ps(1) shows. A handle, unlike a process
// id, never means another process later. The caller releases it.
func (p *Process) Child(is func(title string) bool) *os.Process {
	for _, c := range treeOf(p.PID) {
		if c.ppid != p.PID || !is(title(c.pid)) {
			continue
		}
		handle, err := os.FindProcess(c.pid)
		if err != nil {
			continue // it has ended
		}
		if is(title(c.pid)) { // still, now that the handle is there
			return handle
		}
		_ = handle.Release()
	}
	return nil
}

// title is empty for a process that has ended.
func title(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // none: it has ended
	return strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
}

// KillTree sends SIGKILL to the process and all of its descendants, whatever
// their sessions: PostgreSQL's backends each have one of their own. It stops them
// first. Otherwise one could be born after KillTree has looked and before its
// parent dies, and would be nobody's descendant any more.
func (p *Process) KillTree() {
	p.reaper.mu.Lock()
	defer p.reaper.mu.Unlock()
	if p.reaper.own[p.PID] != p {
		return
	}
	tree := freeze(p.PID)
	for pid := range tree {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// KillSession sends SIGKILL to all that is left in the session of a process that has
// ended and was started with Session, and returns how many there were. It returns when
// they have ended, or after longestFreeze: one that hangs in the kernel ends later.
func (p *Process) KillSession() (found int) {
	<-p.done
	seen := map[int]bool{}
	for began := time.Now(); time.Since(began) < longestFreeze; time.Sleep(freezePause) {
		left := p.killSession()
		for _, pid := range left {
			seen[pid] = true
		}
		if len(left) == 0 {
			break
		}
	}
	return len(seen)
}

// killSession kills what it finds. The lock keeps a new process of ours from getting the
// number of the session, which is free once nobody is left in it.
func (p *Process) killSession() (found []int) {
	p.reaper.mu.Lock()
	defer p.reaper.mu.Unlock()
	for _, s := range allProcesses() {
		if s.session == p.PID && p.reaper.own[s.pid] == nil && s.state != "Z" && s.state != "X" {
			_ = unix.Kill(s.pid, unix.SIGKILL) // one that has just ended needs none
			found = append(found, s.pid)
		}
	}
	return found
}

// How long a tree may take to stop: a process that waits for a disk stops late. On a busy
// machine each look takes its time, so what counts is for how long nothing has moved.
const (
	freezeTime      = 500 * time.Millisecond // in which no further process has stopped
	longestFreeze   = 10 * time.Second
	freezePause     = time.Millisecond
	stoppedOrEnding = "TtZX" // letters of proc(5)
)

// freeze stops root and its descendants and returns them. A stop takes effect only
// when a process comes back from the kernel, and there it may just be making a
// child. So freeze looks once more after all are seen to stand still.
func freeze(root int) map[int]bool {
	tree, still := map[int]bool{}, map[int]bool{}
	moved := time.Now()
	for began := moved; ; time.Sleep(freezePause) {
		all := true
		for _, p := range treeOf(root) {
			stands := strings.Contains(stoppedOrEnding, p.state)
			if !tree[p.pid] {
				_ = unix.Kill(p.pid, unix.SIGSTOP)
				tree[p.pid], stands = true, false
				moved = time.Now()
			}
			if stands && !still[p.pid] {
				still[p.pid] = true
				moved = time.Now()
			}
			all = all && stands
		}
		if all || time.Since(moved) > freezeTime || time.Since(began) > longestFreeze {
			return tree
		}
	}
}

type procState struct {
	pid, ppid, session int
	state              string // a letter, as in proc(5)
}

// allProcesses are those that /proc shows.
func allProcesses() (all []procState) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is right
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state ppid pgrp session ...; the name may hold anything, even ')'.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if len(fields) < 4 {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path))) // digits, by the pattern
		ppid, _ := strconv.Atoi(fields[1])
		session, _ := strconv.Atoi(fields[3])
		all = append(all, procState{pid: pid, ppid: ppid, session: session, state: fields[0]})
	}
	return all
}

// treeOf lists root and the processes below it, as far as /proc tells.
func treeOf(root int) []procState {
	var tree []procState
	children := map[int][]procState{}
	for _, p := range allProcesses() {
		if p.pid == root {
			tree = append(tree, p)
		}
		children[p.ppid] = append(children[p.ppid], p)
	}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, children[tree[i].pid]...)
	}
	return tree
}

// A Reaper starts processes and collects how they ended. There is one in a program.
type Reaper struct {
	mu      sync.Mutex
	own     map[int]*Process
	orphans bool // pid 1: collect all children, also those never started here
	stop    chan struct{}
	stopped chan struct{}
}

// reapPeriod is how often the reaper looks when no SIGCHLD has come.
const reapPeriod = time.Second

// NewReaper begins to reap; Close ends it.
func NewReaper() *Reaper {
	r := &Reaper{
		own:     map[int]*Process{},
		orphans: os.Getpid() == 1,
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
	}
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, unix.SIGCHLD)
	go func() {
		defer close(r.stopped)
		defer signal.Stop(sigchld)
		tick := time.NewTicker(reapPeriod)
		defer tick.Stop()
		for {
			select {
			case <-r.stop:
				return
			case <-sigchld:
			case <-tick.C:
			}
			r.reap()
		}
	}()
	return r
}

// Close ends the reaping. Processes that have not ended stay unreaped.
func (r *Reaper) Close() {
	close(r.stop)
	<-r.stopped
}

// Start starts a process. It holds the lock from the fork until the process is in
// the table. Otherwise reap could collect an end before anybody knows whose it is.
func (r *Reaper) Start(s Spec) (*Process, error) {
	cmd := &exec.Cmd{
		Path: s.Path, Args: append([]string{filepath.Base(s.Path)}, s.Args...), Env: s.Env, Dir: s.Dir,
		Stdout: s.Stdout, Stderr: s.Stderr, ExtraFiles: s.Inherit,
		SysProcAttr: &syscall.SysProcAttr{Setsid: s.Session, Setpgid: !s.Session},
	}
	// exec treats a typed nil as a writer.
	if s.Stdout == nil {
		cmd.Stdout = nil
	}
	if s.Stderr == nil {
		cmd.Stderr = nil
	}
	if s.UID != os.Geteuid() || s.GID != os.Getegid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.UID), Gid: uint32(s.GID)}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(s.Path), err)
	}
	p := &Process{PID: cmd.Process.Pid, reaper: r, done: make(chan struct{})}
	_ = cmd.Process.Release() // reaped here, not by os/exec
	r.own[p.PID] = p
	return p, nil
}

// reap collects every child that has ended.
func (r *Reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.orphans {
		for r.collect(-1) {
		}
		return
	}
	for pid := range r.own {
		r.collect(pid)
	}
}

func (r *Reaper) collect(target int) bool {
	var status unix.WaitStatus
	pid, err := unix.Wait4(target, &status, unix.WNOHANG, nil)
	for errors.Is(err, unix.EINTR) {
		pid, err = unix.Wait4(target, &status, unix.WNOHANG, nil)
	}
	if err != nil || pid <= 0 {
		return false
	}
	if p := r.own[pid]; p != nil {
		p.status = status
		delete(r.own, pid)
		close(p.done)
	}
	return true
}
