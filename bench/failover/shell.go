package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"controld/internal/testcluster"
)

// cleanupTimeout bounds the removal of a cluster.
const cleanupTimeout = 3 * time.Minute

// A shell runs commands in the repository.
type shell struct {
	dir     string
	env     []string // beside the process's own
	verbose bool
}

// run returns what the command prints; in an error, also what it complained of.
// When ctx ends, the command and its children get SIGINT and some time.
func (s shell) run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), s.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 20 * time.Second
	var stdout, all bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&stdout, &all), &all
	if s.verbose {
		cmd.Stdout, cmd.Stderr = io.MultiWriter(&stdout, &all, os.Stderr), io.MultiWriter(&all, os.Stderr)
	}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(all.String(), 30))
	}
	return strings.TrimSpace(stdout.String()), nil
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// randomPrefix names a cluster that nobody else has.
func randomPrefix() string {
	b := make([]byte, 3)
	_, _ = rand.Read(b) // never fails
	return "bench" + hex.EncodeToString(b) + "-"
}

// pollLimit bounds every wait for a cluster: whatever it does takes less.
const pollLimit = 2 * time.Minute

// poll calls ready until it answers nil; its last error tells what was missing.
func poll(ctx context.Context, every time.Duration, ready func(context.Context) error) error {
	return testcluster.Poll(ctx, pollLimit, every, ready)
}

// wait sleeps unless ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
