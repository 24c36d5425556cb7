package server

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"controld/internal/node"
	"controld/internal/node/child"
	"controld/internal/node/rules"
	"controld/internal/pgcontrol"
	"controld/internal/pgwal"
	"controld/internal/wal"
)

// carryOut does the order's action. It notes that the action is done before it
// removes the marker, so that a stop between the two repeats nothing.
func (n *Init) carryOut(ctx context.Context, o node.Order, lock *os.File) error {
	do, err := n.action(o.Action)
	if err != nil {
		return err
	}
	if err := n.upstreamAnswers(ctx, o); err != nil {
		return err
	}
	if err := n.status.update(func(s *node.Status) {
		s.Epoch, s.State, s.Role, s.PID, s.Error = o.Epoch, node.StateWorking, node.RoleNone, 0, ""
	}); err != nil {
		return err
	}
	n.log.Info("action begins", "epoch", o.Epoch, "action", o.Action)
	began := time.Now()
	if err := do(ctx, o, lock); err != nil {
		return fmt.Errorf("%s: %w", o.Action, err)
	}
	n.log.Info("action done", "epoch", o.Epoch, "action", o.Action, "duration_ms", time.Since(began).Milliseconds())
	if err := n.status.update(func(s *node.Status) { s.ActionEpoch = o.Epoch }); err != nil {
		return err
	}
	if o.Action == node.ActionDiscard { // it overwrites nothing
		return nil
	}
	if err := n.removeMarker(); err != nil {
		return err
	}
	if err := n.removeCopies(); err != nil {
		return err
	}
	return n.status.update(func(s *node.Status) { s.Unfinished, s.Compared = "", nil })
}

// beginOverwrite notes that the data is not whole until the action has ended. It is
// called before the action changes the first byte.
func (n *Init) beginOverwrite(a node.Action) error {
	if err := n.status.update(func(s *node.Status) { s.Unfinished = a }); err != nil {
		return err
	}
	return n.setMarker(a)
}

// upstreamAnswers makes sure that the upstream can be reached before anything is
// overwritten. The network may be what keeps the node from following, and then there
// would be nothing to overwrite its data with.
func (n *Init) upstreamAnswers(ctx context.Context, o node.Order) error {
	var conninfo string
	switch o.Action {
	case node.ActionBaseBackup:
		conninfo = n.conninfo(*o.Upstream, "replicator", "") + " replication=true"
	case node.ActionRewind:
		conninfo = n.conninfo(*o.Upstream, "rewind", "postgres")
	default:
		return nil
	}
	if err := n.cfg.Reach(ctx, conninfo); err != nil {
		return fmt.Errorf("%s: nothing was overwritten: %w", o.Action, err)
	}
	return nil
}

// reach logs in and out again.
func reach(ctx context.Context, conninfo string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, conninfo+" sslmode=disable")
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

func (n *Init) action(a node.Action) (func(context.Context, node.Order, *os.File) error, error) {
	switch a {
	case node.ActionInitDB:
		return n.initDB, nil
	case node.ActionBaseBackup:
		return n.baseBackup, nil
	case node.ActionRewind:
		return n.rewind, nil
	case node.ActionDiscard:
		return n.discard, nil
	}
	return nil, rules.Refuse("action %q is not known to this init", a)
}

// initDB makes a cluster with controld's roles in it.
func (n *Init) initDB(ctx context.Context, _ node.Order, lock *os.File) error {
	if err := n.beginOverwrite(node.ActionInitDB); err != nil {
		return err
	}
	if err := n.wipe(); err != nil {
		return err
	}
	if err := n.tool(ctx, lock, "initdb", "-D", n.cfg.dataDir(), "-U", "root",
		"-E", "UTF8", "--locale=C.UTF-8", "--data-checksums", "--wal-segsize=4",
		"--auth-local=peer", "--auth-host=scram-sha-256"); err != nil {
		return err
	}
	return n.bootstrap(ctx, lock)
}

// rewind makes the data directory follow the upstream's history. pg_rewind refuses a
// directory with standby.signal, so that file is removed first. While it is gone, the
// marker and the order keep the server from leading. The settings that come with the
// order hold a restore_command for pg_rewind.
func (n *Init) rewind(ctx context.Context, o node.Order, lock *os.File) error {
	if err := n.mayRewind(ctx, o); err != nil {
		return err
	}
	if err := n.beginOverwrite(o.Action); err != nil {
		return err
	}
	if err := n.removeStale(); err != nil {
		return err
	}
	if err := n.setRole(n.cfg.dataDir(), node.RolePrimary); err != nil {
		return err
	}
	if err := n.tool(ctx, lock, "pg_rewind", "--target-pgdata="+n.cfg.dataDir(), "--progress", "--restore-target-wal",
		"--source-server="+n.conninfo(*o.Upstream, "rewind", "postgres"),
		"--config-file="+filepath.Join(n.cfg.OrderDir, "postgresql.conf")); err != nil {
		return err
	}
	return n.setRole(n.cfg.dataDir(), node.RoleStandby)
}

// conninfo says how to reach the other node; the password is in a file.
func (n *Init) conninfo(u node.Upstream, user, database string) string {
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	parts := []string{
		"host='" + quote.Replace(u.Host) + "'", "port=" + strconv.Itoa(u.Port), "user=" + user,
		"passfile='" + quote.Replace(n.pgpass()) + "'", "connect_timeout=5",
	}
	if database != "" {
		parts = append(parts, "dbname="+database)
	}
	return strings.Join(parts, " ")
}

// discard removes what a promotion that was undone has left: history files and
// segments of the order's timeline and of later ones.
func (n *Init) discard(ctx context.Context, o node.Order, _ *os.File) error {
	control, err := pgcontrol.Read(n.cfg.dataDir())
	if err != nil {
		return err
	}
	if err := rules.MayDiscard(o, control); err != nil {
		return err
	}
	walDir := filepath.Join(n.cfg.dataDir(), pgwal.DirName)
	removed := 0
	for _, dir := range []string{walDir, pgwal.StatusDir(n.cfg.dataDir())} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if timelineOf(e.Name()) < o.DiscardTimeline {
				continue
			}
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
			removed++
		}
		if err := node.SyncDir(dir); err != nil {
			return err
		}
	}
	n.log.Info("timeline discarded", "timeline", o.DiscardTimeline, "files", removed)
	return ctx.Err()
}

// timelineOf reads the timeline from the name of a segment, a history file, or
// one derived from them (.partial, .ready); 0 for all other names.
func timelineOf(name string) wal.Timeline {
	digits := name
	if i := strings.IndexByte(name, '.'); i >= 0 {
		digits = name[:i]
	}
	if len(digits) != 24 && (len(digits) != 8 || !strings.Contains(name, ".history")) {
		return 0
	}
	for _, c := range digits {
		if !strings.ContainsRune("0123456789ABCDEF", c) {
			return 0
		}
	}
	t, err := strconv.ParseUint(digits[:8], 16, 32)
	if err != nil {
		return 0
	}
	return wal.Timeline(t)
}

// wipe empties the data directory; the directory itself stays.
func (n *Init) wipe() error {
	entries, err := os.ReadDir(n.cfg.dataDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(n.cfg.dataDir(), e.Name())); err != nil {
			return err
		}
	}
	return node.SyncDir(n.cfg.dataDir())
}

// tool runs one of PostgreSQL's programs on the data directory. The program inherits
// the lock: one that survives its init still keeps every server away. Its output goes
// to the log, and the last lines of it into the error.
func (n *Init) tool(ctx context.Context, lock *os.File, name string, args ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	p, err := n.reaper.Start(child.Spec{
		Path: filepath.Join(n.cfg.BinDir, name), Args: args, Env: os.Environ(), Dir: n.cfg.dataDir(),
		UID: n.cfg.UID, GID: n.cfg.GID, Stdout: w, Stderr: w, Inherit: []*os.File{lock},
	})
	w.Close()
	if err != nil {
		return err
	}
	last := make(chan []string, 1)
	go func() { last <- n.logLines(name, r) }()
	select {
	case <-p.Done():
	case <-ctx.Done():
		p.SignalGroup(unix.SIGKILL)
		<-p.Done()
	}
	// The tool's own children may keep the pipe open for a moment longer.
	_ = r.SetReadDeadline(time.Now().Add(time.Second))
	lines := <-last
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := p.Err(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.Join(lines, "; "))
	}
	return nil
}

// lastLines is how much of a tool's output goes into its error.
const lastLines = 6

func (n *Init) logLines(name string, r io.Reader) (last []string) {
	lines := bufio.NewScanner(r)
	lines.Split(scanLinesAndReturns)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		n.log.Info("tool says", "tool", name, "line", line)
		if last = append(last, line); len(last) > lastLines {
			last = last[1:]
		}
	}
	return last
}

// scanLinesAndReturns splits at carriage returns too: progress is written with them.
func scanLinesAndReturns(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexAny(data, "\r\n"); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}
