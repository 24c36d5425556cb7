// Package pgbackrest has pgBackRest do what package backup wants: its commands, what they
// print, and what their exit codes mean. It runs in a container of its own, by that
// container's init.
package pgbackrest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"controld/internal/backup"
	"controld/internal/cluster"
	"controld/internal/job"
	"controld/internal/node"
	"controld/internal/node/archive"
	"controld/internal/wait"
)

// Config is what the commands need to know.
type Config struct {
	Socket string // of the init of the container
	Stanza string
	// Servers are all that are configured, in the order of pg1, pg2, ...
	Servers []cluster.Node
	Idle    bool // backups get processor and disk only where nobody else wants them
}

// A Tool is pgBackRest in its container.
type Tool struct {
	cfg  Config
	jobs *job.Client
}

var _ backup.Tool = (*Tool)(nil)

// New returns a tool; it connects when it is first used.
func New(cfg Config) *Tool { return &Tool{cfg: cfg, jobs: job.NewClient(cfg.Socket)} }

// Close closes the connections.
func (t *Tool) Close() { t.jobs.Close() }

// Bounds of the short commands. Check waits for WAL to arrive for a minute.
const (
	lookLimit   = 30 * time.Second
	createLimit = time.Minute
	checkLimit  = 3 * time.Minute
	expireLimit = 10 * time.Minute // it removes file by file
)

// Look implements backup.Tool.
func (t *Tool) Look(ctx context.Context) (backup.Repository, error) {
	s, err := t.run(ctx, "info", lookLimit, "--output=json", "info")
	if err != nil {
		return backup.Repository{}, err
	}
	if s.Cut {
		return backup.Repository{}, errors.New("output of pgbackrest info: it is too long")
	}
	return parseInfo([]byte(s.Stdout), t.cfg.Stanza)
}

// Create implements backup.Tool.
func (t *Tool) Create(ctx context.Context, servers []cluster.Node) error {
	_, err := t.run(ctx, "stanza-create", createLimit, append(t.servers(servers), "stanza-create")...)
	return err
}

// Check implements backup.Tool.
func (t *Tool) Check(ctx context.Context, servers []cluster.Node) error {
	_, err := t.run(ctx, "check", checkLimit, append(t.servers(servers), "check")...)
	return err
}

// Options of expire. There is always a retention, and never one that pgBackRest could act
// upon by itself: what goes is named.
const (
	keepAllFulls = "--repo1-retention-full=9999999"
	byAnyBackup  = "--repo1-retention-archive-type=incr" // full would count fulls that need no WAL, and others not
)

// Expire implements backup.Tool. For a label that it does not know pgBackRest warns, and
// exits with 0.
func (t *Tool) Expire(ctx context.Context, label string) error {
	s, err := t.run(ctx, "expire", expireLimit, "--set="+label, keepAllFulls, "expire")
	if err != nil {
		return err
	}
	return notThere(label, s)
}

// notThere is the failure that an expire has come to which knew no such backup; nil: it did.
func notThere(label string, s job.Status) error {
	warning := "backup " + label + " does not exist"
	if !strings.Contains(s.Stderr, "WARN: "+warning) {
		return nil
	}
	return &backup.Failure{Kind: backup.FailureMissing, Said: warning}
}

// ExpireWAL implements backup.Tool.
func (t *Tool) ExpireWAL(ctx context.Context, n int) error {
	_, err := t.run(ctx, "expire", expireLimit, keepAllFulls, fmt.Sprintf("--repo1-retention-archive=%d", n), byAnyBackup, "expire")
	return err
}

// Version implements backup.Tool.
func (t *Tool) Version(ctx context.Context) (string, error) {
	s, err := t.do(ctx, "version", lookLimit, []string{"pgbackrest", "version"})
	if err != nil {
		return "", err
	}
	return parseVersion(s.Stdout)
}

func parseVersion(text string) (string, error) {
	version, is := strings.CutPrefix(strings.TrimSpace(text), "pgBackRest ")
	if !is {
		return "", fmt.Errorf("pgbackrest version: output %q", text)
	}
	return version, nil
}

// Begin implements backup.Tool.
func (t *Tool) Begin(ctx context.Context, id string, o backup.Order) error {
	args := append(t.servers(o.Servers), "--type="+string(o.Type))
	if o.Mode == backup.Offline {
		args = append(args, "--no-online", "--force")
	}
	for _, name := range slices.Sorted(maps.Keys(o.Annotations)) {
		args = append(args, "--annotation="+name+"="+o.Annotations[name])
	}
	_, err := t.jobs.Start(ctx, id, job.Spec{Args: t.command(append(args, "backup")), Idle: t.cfg.Idle, Limit: o.Limit})
	return err
}

// Push implements backup.Tool.
func (t *Tool) Push(ctx context.Context, n cluster.Node, path string) error {
	args := []string{archive.PushProgram, path, "--stanza=" + t.cfg.Stanza, "--pg1-path=" + n.DataDir()}
	_, err := t.do(ctx, "archive-push", archive.PushLimit+endTime, args)
	return err
}

// Await implements backup.Tool.
func (t *Tool) Await(ctx context.Context, id string) error {
	var s job.Status
	away := time.Time{} // since when the init does not answer
	err := wait.Poll(ctx, time.Second, func() (bool, error) {
		var err error
		s, err = t.jobs.Wait(ctx, id)
		switch {
		case !errors.Is(err, job.ErrAway):
			return err == nil, err
		case away.IsZero():
			away = time.Now()
		}
		if time.Since(away) > awayLimit {
			return false, err
		}
		return false, nil // its container is being started again
	})
	if errors.Is(err, job.ErrUnknown) {
		return backup.ErrNotRunning
	}
	if err != nil {
		return err
	}
	return errors.Join(failure(s), t.jobs.End(ctx, id))
}

// awayLimit is how long a container may take to be started again.
const awayLimit = 2 * time.Minute

// End implements backup.Tool.
func (t *Tool) End(ctx context.Context, id string) error { return t.jobs.End(ctx, id) }

// run has a short command of pgBackRest run to its end.
func (t *Tool) run(ctx context.Context, name string, limit time.Duration, args ...string) (job.Status, error) {
	return t.do(ctx, name, limit, t.command(args))
}

// do has a short program run to its end.
func (t *Tool) do(ctx context.Context, name string, limit time.Duration, args []string) (job.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, limit+endTime)
	defer cancel()
	s, err := t.jobs.Run(ctx, name+"-"+uuid.NewString(), job.Spec{Args: args, Limit: limit})
	if err == nil {
		err = failure(s)
	}
	if err != nil {
		return s, fmt.Errorf("pgbackrest %s: %w", name, err)
	}
	return s, nil
}

// endTime is what an init gets to end a command whose limit is over.
const endTime = 10 * time.Second

func (t *Tool) command(args []string) []string {
	return append([]string{"pgbackrest", "--stanza=" + t.cfg.Stanza}, args...)
}

// servers names those that are to be asked. The configuration has all: one that is dead
// costs a warning, one that is frozen makes every command hang.
func (t *Tool) servers(live []cluster.Node) []string {
	if len(live) == len(t.cfg.Servers) {
		return nil
	}
	var args []string
	for i := range t.cfg.Servers {
		pg := "pg" + strconv.Itoa(i+1)
		if i >= len(live) {
			args = append(args, "--reset-"+pg+"-path", "--reset-"+pg+"-socket-path", "--reset-"+pg+"-port", "--reset-"+pg+"-user")
			continue
		}
		n := live[i]
		args = append(args, "--"+pg+"-path="+n.DataDir(), "--"+pg+"-socket-path="+filepath.Join(n.Dir, node.SocketDir),
			fmt.Sprintf("--%s-port=%d", pg, n.Port))
	}
	return args
}

// failure is the error that an ended command comes to; nil for none.
func failure(s job.Status) error {
	if s.Ended != "" {
		return &backup.Failure{Kind: backup.FailureEnded, Code: s.ExitCode, Said: s.Ended}
	}
	if s.ExitCode == 0 {
		return nil
	}
	said := errorText(s.Stderr)
	return &backup.Failure{Kind: kind(s.ExitCode, said), Code: s.ExitCode, Said: said}
}

// errorText is the error among what a command said, with its hints, on one line.
func errorText(stderr string) string {
	var out []string
	inError := false
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "ERROR:"):
			inError = true
			out = append(out, strings.TrimSpace(strings.TrimPrefix(line, "ERROR:")))
		case strings.HasPrefix(line, "WARN:"):
			inError = false
		case inError && strings.HasPrefix(line, "HINT:"):
			out = append(out, line)
		case inError && line != "" && len(out) < maxErrorLines:
			out = append(out, line)
		}
	}
	if len(out) == 0 {
		return strings.TrimSpace(stderr)
	}
	return strings.Join(out, "; ")
}

// maxErrorLines bounds the lines of an error, without its hints.
const maxErrorLines = 20
