// Package runner is the init of a container in which controld has commands run: it makes
// the container ready, and starts, tells of and ends jobs as it is asked to over a unix
// socket. What to run is controld's; the words between them are those of package job.
package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"controld/internal/node/child"
)

// Config says what the init prepares and where it listens.
type Config struct {
	Socket   string              // the unix socket; its folder is a volume that controld mounts
	Programs map[string][]string // the programs that may be run, and their first arguments, by the name that is asked for
	// Owned are folders that shall belong to the jobs' user.
	Owned    []string
	UID, GID int
	// KeptBytes is what is kept of each stream of a job: its beginning, since what is read
	// by a program is useless without.
	KeptBytes int64
	// Prepare, if set, is called before anything is run.
	Prepare func() error
}

// An Init runs jobs.
type Init struct {
	cfg    Config
	reaper *child.Reaper
	log    *slog.Logger
}

// New returns an init that starts jobs through reaper.
func New(cfg Config, reaper *child.Reaper, log *slog.Logger) *Init {
	return &Init{cfg: cfg, reaper: reaper, log: log}
}

// stopGrace is how long requests may take to end when the container stops.
const stopGrace = 2 * time.Second

// Run serves until ctx ends. Then it kills every job: what is to go on after that is begun
// anew by controld.
func (n *Init) Run(ctx context.Context) error {
	if err := n.prepare(); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	listener, err := listen(ctx, n.cfg.Socket)
	if err != nil {
		return err
	}
	jobs := newJobs(n.cfg, n.reaper, n.log)
	server := &http.Server{Handler: jobs.handler(), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	n.log.Info("init takes jobs", "socket", n.cfg.Socket)
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	jobs.stop()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	if stopped := server.Shutdown(last); stopped != nil {
		n.log.Warn("requests were cut off", "err", stopped)
	}
	return err
}

func (n *Init) prepare() error {
	for _, dir := range n.cfg.Owned {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
		if err := os.Chown(dir, n.cfg.UID, n.cfg.GID); err != nil {
			return err
		}
	}
	if n.cfg.Prepare == nil {
		return nil
	}
	return n.cfg.Prepare()
}

// listen takes the place of the socket that the init before has left. Only root may
// connect: controld is root, and a job is not.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket: %w", err)
	}
	// Made under another name: nobody finds it before its mode is right.
	made := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", made)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("socket: %w", err), listener.Close())
	}
	return listener, nil
}
