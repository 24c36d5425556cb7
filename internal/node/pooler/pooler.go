// Package pooler is the init of PgBouncer's container: it prepares PgBouncer's
// secrets, runs it, and ends a pause whose lease is not renewed any more. What
// PgBouncer is configured to do is controld's.
package pooler

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"controld/internal/node"
	"controld/internal/node/child"
)

// Config says where the init finds things.
type Config struct {
	Program       string // pgbouncer
	ConfigDir     string // the volume that controld writes: pgbouncer.ini and the lease
	SecretsDir    string
	OwnSecretsDir string // a tmpfs: userlist.txt, and PgBouncer's unix socket
	Port          string
	UID, GID      int
	Poll          time.Duration // how often pgbouncer.ini is looked for

	Stdout, Stderr *os.File
}

// DefaultConfig is the configuration in the container.
func DefaultConfig() Config {
	return Config{
		Program:       "/usr/sbin/pgbouncer",
		ConfigDir:     "/etc/pgbouncer",
		SecretsDir:    "/secrets",
		OwnSecretsDir: "/run/secrets-own",
		Port:          "6432",
		UID:           node.UID,
		GID:           node.GID,
		Poll:          100 * time.Millisecond,
		Stdout:        os.Stdout,
		Stderr:        os.Stderr,
	}
}

// Names of files.
const (
	iniFile      = "pgbouncer.ini"
	userlistFile = "userlist.txt"
)

// fixedRoles are the ones whose passwords PgBouncer has itself: controld's, for
// the console and its probes, and the one with which it looks up all others.
var fixedRoles = []string{"controld", "pooler"}

// An Init runs one PgBouncer.
type Init struct {
	cfg    Config
	reaper *child.Reaper
	log    *slog.Logger
}

// New returns an init that starts PgBouncer through reaper.
func New(cfg Config, reaper *child.Reaper, log *slog.Logger) *Init {
	return &Init{cfg: cfg, reaper: reaper, log: log}
}

// Run runs PgBouncer and returns its exit code. Signals are passed on to it;
// before its start one ends the init.
func (p *Init) Run(ctx context.Context, signals <-chan os.Signal) (int, error) {
	password, err := p.writeSecrets()
	if err != nil {
		return 1, fmt.Errorf("prepare secrets: %w", err)
	}
	if ok, err := p.waitForIni(ctx, signals); !ok || err != nil {
		return 0, err
	}
	ini := filepath.Join(p.cfg.ConfigDir, iniFile)
	bouncer, err := p.reaper.Start(child.Spec{
		Path: p.cfg.Program, Args: []string{ini}, Env: os.Environ(), Dir: "/",
		UID: p.cfg.UID, GID: p.cfg.GID, Session: true,
		Stdout: p.cfg.Stdout, Stderr: p.cfg.Stderr,
	})
	if err != nil {
		return 1, err
	}
	p.log.Info("pooler started", "pid", bouncer.PID)

	ctx, cancel := context.WithCancel(ctx)
	keeper := Keeper{Dir: p.cfg.ConfigDir, Log: p.log, Console: &console{
		hosts: []string{p.cfg.OwnSecretsDir, "127.0.0.1"}, port: p.cfg.Port, password: password,
	}}
	var wait sync.WaitGroup
	wait.Go(func() { keeper.Run(ctx) })
	defer wait.Wait()
	defer cancel()

	for {
		select {
		case s := <-signals:
			p.log.Info("signal passed on", "signal", s.String())
			bouncer.Signal(s.(syscall.Signal))
		case <-ctx.Done():
			bouncer.Signal(syscall.SIGQUIT)
			<-bouncer.Done()
			return bouncer.ExitCode(), nil
		case <-bouncer.Done():
			p.log.Info("pooler ended", "err", bouncer.Err())
			return bouncer.ExitCode(), nil
		}
	}
}

// waitForIni waits until controld has written the configuration; false when a
// signal came first.
func (p *Init) waitForIni(ctx context.Context, signals <-chan os.Signal) (bool, error) {
	path := filepath.Join(p.cfg.ConfigDir, iniFile)
	for logged := false; ; logged = true {
		info, err := os.Stat(path)
		if err == nil && info.Size() > 0 {
			return true, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("look for configuration: %w", err)
		}
		if !logged {
			p.log.Info("waiting for configuration", "path", path)
		}
		select {
		case <-ctx.Done():
			return false, nil
		case s := <-signals:
			if s != syscall.SIGHUP {
				return false, nil
			}
		case <-time.After(p.cfg.Poll):
		}
	}
}

// writeSecrets writes the auth_file and returns controld's password. PgBouncer
// needs plain passwords there: with verifiers alone it could not log in to the
// servers for itself.
func (p *Init) writeSecrets() (string, error) {
	own := p.cfg.OwnSecretsDir
	if err := os.Mkdir(own, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if err := errors.Join(os.Chown(own, p.cfg.UID, p.cfg.GID), os.Chmod(own, 0o700)); err != nil {
		return "", err
	}
	passwords := map[string]string{}
	var lines strings.Builder
	for _, role := range fixedRoles {
		b, err := os.ReadFile(filepath.Join(p.cfg.SecretsDir, "role_"+role))
		if err != nil {
			return "", err
		}
		password := strings.TrimRight(string(b), "\r\n")
		if password == "" || strings.ContainsAny(password, "\r\n\x00") {
			return "", fmt.Errorf("secret role_%s is empty or has more than one line", role)
		}
		passwords[role] = password
		fmt.Fprintf(&lines, "%s %s\n", quote(role), quote(password))
	}
	path := filepath.Join(own, userlistFile)
	if err := node.WriteFile(path, []byte(lines.String()), 0o600); err != nil {
		return "", err
	}
	return passwords["controld"], os.Chown(path, p.cfg.UID, p.cfg.GID)
}

// quote writes a field of the auth_file, or the name of an entry in a command.
func quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
