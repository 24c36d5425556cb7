package runner_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"controld/internal/job"
	"controld/internal/node/child"
	"controld/internal/node/runner"
)

const keptBytes = 1000

// start runs an init whose jobs are shells, and returns a client of it and how to stop it.
func start(t *testing.T) (*job.Client, func()) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), job.SocketFile)
	return startAt(t, socket)
}

func startAt(t *testing.T, socket string) (*job.Client, func()) {
	t.Helper()
	reaper := child.NewReaper()
	init := runner.New(runner.Config{
		Socket: socket, Programs: map[string][]string{"sh": {"/bin/sh"}}, UID: os.Geteuid(), GID: os.Getegid(), KeptBytes: keptBytes,
		Owned: []string{filepath.Join(filepath.Dir(socket), "made", "by", "the", "init")},
	}, reaper, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- init.Run(ctx) }()
	client := job.NewClient(socket)
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("init: %v", err)
		}
		client.Close()
		reaper.Close()
	}
	t.Cleanup(stop)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := client.List(t.Context()); err == nil {
			return client, stop
		} else if time.Now().After(deadline) || !errors.Is(err, job.ErrAway) {
			t.Fatalf("init does not answer: %v", err)
		}
	}
}

func shell(script string) job.Spec {
	return job.Spec{Args: []string{"sh", "-c", script}, Limit: time.Hour}
}

func TestRun(t *testing.T) {
	client, _ := start(t)
	for _, tt := range []struct {
		name           string
		spec           job.Spec
		code           int
		stdout, stderr string
	}{
		{"says something", shell("echo out; echo err >&2"), 0, "out\n", "err\n"},
		{"fails", shell("exit 55"), 55, "", ""},
		{"is killed", shell("kill -9 $$"), 128 + 9, "", ""},
		{"idle", job.Spec{Args: []string{"sh", "-c", "ionice; chrt -p $$ | head -n 1"}, Idle: true, Limit: time.Hour}, 0, "idle\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := client.Run(t.Context(), "one", tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			if s.Running() || s.ExitCode != tt.code || !strings.HasPrefix(s.Stdout, tt.stdout) || s.Stderr != tt.stderr || s.Ended != "" {
				t.Errorf("%+v", s)
			}
			if tt.spec.Idle && !strings.Contains(s.Stdout, "SCHED_IDLE") {
				t.Errorf("it is not idle: %q", s.Stdout)
			}
			if _, err := client.Status(t.Context(), "one"); !errors.Is(err, job.ErrUnknown) {
				t.Errorf("it is not forgotten: %v", err)
			}
		})
	}
}

// Who asks twice, or anew after having died, gets the one that runs.
func TestOneOfAnIdentity(t *testing.T) {
	client, _ := start(t)
	dir := t.TempDir()
	spec := shell("echo $$ >> " + dir + "/begun; while [ ! -e " + dir + "/go ]; do sleep 0.01; done; echo done")
	for range 3 {
		if _, err := client.Start(t.Context(), "backup", spec); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Start(t.Context(), "backup", shell("echo another")); !errors.Is(err, job.ErrOther) {
		t.Errorf("another job of the same identity: %v", err)
	}
	left, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Wait(left, "backup"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who waits no longer got: %v", err)
	}
	all, err := client.List(t.Context())
	if err != nil || len(all) != 1 || !all[0].Running() {
		t.Errorf("jobs: %+v, %v", all, err)
	}
	touch(t, dir+"/go")
	s, err := client.Wait(t.Context(), "backup")
	if err != nil || s.Stdout != "done\n" {
		t.Errorf("%+v, %v", s, err)
	}
	begun, err := os.ReadFile(dir + "/begun")
	if err != nil || strings.Count(string(begun), "\n") != 1 {
		t.Errorf("begun: %q, %v", begun, err)
	}
}

// Nothing of a job outlives its end: not when it is ended, and not when somebody kills its
// first process and leaves the workers.
func TestNothingIsLeft(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script string
		end    func(t *testing.T, client *job.Client)
		says   string
	}{
		{"ended on request", "%s; wait", func(t *testing.T, client *job.Client) {
			t.Helper()
			if err := client.End(t.Context(), "job"); err != nil {
				t.Error(err)
			}
		}, ""},
		{"its first process is killed", "%s; kill -9 $$", func(*testing.T, *job.Client) {}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, _ := start(t)
			file := filepath.Join(t.TempDir(), "worker")
			worker := fmt.Sprintf("(trap '' TERM; while :; do sleep 0.01; done) & echo $! > %[1]s.new; mv %[1]s.new %[1]s", file)
			if _, err := client.Start(t.Context(), "job", shell(fmt.Sprintf(tt.script, worker))); err != nil {
				t.Fatal(err)
			}
			pid := await(t, file)
			tt.end(t, client)
			if _, err := client.Wait(t.Context(), "job"); err != nil && !errors.Is(err, job.ErrUnknown) {
				t.Error(err)
			}
			if alive(pid) {
				t.Errorf("worker %d lives on", pid)
			}
		})
	}
}

func TestLimit(t *testing.T) {
	client, _ := start(t)
	spec := shell("sleep 1000")
	spec.Limit = 20 * time.Millisecond
	s, err := client.Run(t.Context(), "long", spec)
	if err != nil || s.ExitCode != 128+9 || !strings.Contains(s.Ended, "20ms") {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestRefusals(t *testing.T) {
	client, _ := start(t)
	for _, tt := range []struct {
		name string
		id   string
		spec job.Spec
		says string
	}{
		{"another program", "a", job.Spec{Args: []string{"/bin/sh"}, Limit: time.Second}, "no program"},
		{"none", "a", job.Spec{Limit: time.Second}, "no program"},
		{"no limit", "a", job.Spec{Args: []string{"sh"}}, "limit"},
		{"no identity", "", shell("true"), "no identity"},
		{"a path for an identity", "../a", shell("true"), "no identity"},
	} {
		if _, err := client.Start(t.Context(), tt.id, tt.spec); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if err := client.End(t.Context(), "nobody"); err != nil {
		t.Errorf("the end of what does not run: %v", err)
	}
	if _, err := client.Wait(t.Context(), "nobody"); !errors.Is(err, job.ErrUnknown) {
		t.Errorf("unknown: %v", err)
	}
}

// What is read by a program is cut at its end, and says so.
func TestLongOutput(t *testing.T) {
	client, _ := start(t)
	s, err := client.Run(t.Context(), "long", shell(fmt.Sprintf("echo begin; head -c %d /dev/zero | tr '\\0' x", keptBytes)))
	if err != nil || !s.Cut || len(s.Stdout) != keptBytes || !strings.HasPrefix(s.Stdout, "begin\n") {
		t.Errorf("cut %v, %d bytes, %v", s.Cut, len(s.Stdout), err)
	}
}

// A stop of the container kills what runs, and the next init knows nothing of it.
func TestStop(t *testing.T) {
	socket := filepath.Join(t.TempDir(), job.SocketFile)
	client, stop := startAt(t, socket)
	file := filepath.Join(t.TempDir(), "pid")
	if _, err := client.Start(t.Context(), "job", shell("echo $$ > "+file+".new; mv "+file+".new "+file+"; sleep 1000")); err != nil {
		t.Fatal(err)
	}
	pid := await(t, file)
	stop()
	if alive(pid) {
		t.Errorf("job %d lives on", pid)
	}
	if _, err := client.Status(t.Context(), "job"); !errors.Is(err, job.ErrAway) {
		t.Errorf("nobody is there, and: %v", err)
	}
	next, _ := startAt(t, socket)
	if _, err := next.Status(t.Context(), "job"); !errors.Is(err, job.ErrUnknown) {
		t.Errorf("the next init: %v", err)
	}
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// await is the number in the file, once it is there.
func await(t *testing.T, path string) int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if err == nil {
			pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// alive: the process is there, and is no zombie, which its parent here does not reap.
func alive(pid int) bool {
	if unix.Kill(pid, 0) != nil {
		return false
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(text), ") Z ")
}
