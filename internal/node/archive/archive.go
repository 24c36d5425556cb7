// Package archive is what stands before pgBackRest in a container: it never lets it run as
// root, in local time or without an end, and turns its exit codes into those that
// PostgreSQL acts upon. What PostgreSQL makes of them, per command:
//
//	archive_command   1 to 125: it failed, and is tried again. Above: the archiver ends.
//	restore_command   1 to 125: there is no such file, which ends the WAL. Above: recovery
//	                  stops, and the server with it.
//
// (PostgreSQL 15, pgarch.c and xlogarchive.c.)
package archive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"controld/internal/node"

	"golang.org/x/sys/unix"
)

// Program is pgBackRest itself.
const Program = "/usr/bin/pgbackrest"

// Link is where this program stands before it on the path.
const Link = "/usr/local/bin/pgbackrest"

// RepositoryDir is where the repository's volume is mounted in every container.
const RepositoryDir = "/var/lib/pgbackrest"

// There reports whether this container has pgBackRest and the repository: one that an
// earlier version made has neither.
func There() bool {
	_, err := os.Stat(Program)
	return err == nil && node.Mounted(RepositoryDir)
}

// Has reports whether the archive of the cluster systemID is known to have a segment. The
// names there carry the checksum of what is in a file, and how it is compressed.
func Has(systemID uint64, segment string) bool {
	const folder = 16 // digits of the name: that of the folder it is in
	if len(segment) <= folder {
		return false
	}
	stanzas := filepath.Join(RepositoryDir, strconv.FormatUint(systemID, 10), "archive", "*", "*")
	found, err := filepath.Glob(filepath.Join(stanzas, segment[:folder], segment+"-*"))
	return err == nil && len(found) > 0
}

// Bounds of the commands that PostgreSQL calls. A repository that hangs delays no stop, no
// promotion and no recovery for longer.
const (
	PushLimit = time.Minute
	GetLimit  = 20 * time.Second
)

// forRestore is a first argument of our own: what archive-get does not get would be missing
// for ever.
const forRestore = "for-restore"

// PushCommand is the archive_command of a stanza. pgBackRest looks for its own name in it.
func PushCommand(stanza string) string {
	return Link + " --stanza=" + stanza + ` archive-push "%p"`
}

// Get fetches a file of the log from the archive to path, for a server that can go on
// without it, and returns the exit code of a restore_command.
func Get(ctx context.Context, stanza, file, path string) int {
	return got(run(ctx, Program, GetLimit, []string{"--stanza=" + stanza, "archive-get", file, path}), codeFailed)
}

// RestoreCommand is the restore_command of a restore.
func RestoreCommand(stanza string) string {
	return Link + " " + forRestore + " --stanza=" + stanza + ` archive-get %f "%p"`
}

// Exit codes.
const (
	codeMissing = 1   // archive-get's own for a file that the archive does not have
	codeFailed  = 125 // the highest by which neither archiver nor recovery stops
	codeStop    = 126
	codeCannot  = 127 // as a shell says of a program that cannot be run
)

// Main is the program called pgbackrest: args are its arguments. It returns the exit code.
func Main(ctx context.Context, args []string) int {
	switch {
	case slices.Contains(args, "archive-push"):
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		go untilUnwanted(ctx, cancel, os.Getenv("NODE_DIR"), orderDir)
		return pushed(run(ctx, Program, PushLimit, args))
	case len(args) > 0 && args[0] == forRestore:
		return got(run(ctx, Program, GetLimit, args[1:]), codeStop)
	}
	return become(args)
}

// pushed is the exit code of an archive_command.
func pushed(code int) int { return min(code, codeFailed) }

// got is the exit code of a restore_command: other where the file may well be there.
func got(code, other int) int {
	switch code {
	case 0, codeMissing:
		return code
	}
	return other
}

// become makes this process pgBackRest.
func become(args []string) int {
	if os.Geteuid() == 0 {
		// The group first: afterwards this is not allowed any more.
		if err := errors.Join(unix.Setgroups(nil), unix.Setresgid(node.GID, node.GID, node.GID), unix.Setresuid(node.UID, node.UID,
			node.UID)); err != nil {
			return complain(err)
		}
	}
	return complain(unix.Exec(Program, append([]string{Program}, args...), environ()))
}

// run runs pgBackRest, which is program, and returns its exit code. When limit is over, or ctx
// ends, it is killed, with its children, and has failed; one that cannot be killed, as it
// waits for a disk that does not answer, is not waited for.
func run(ctx context.Context, program string, limit time.Duration, args []string) int {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %s", limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = os.Stdout, os.Stderr, environ()
	// It dies with this program, which a stop of the server kills.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: node.UID, Gid: node.GID}
	}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the kernel takes the end of the thread that has begun it for that of the parent
		done <- cmd.Run()
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case err = <-done:
		case <-time.After(killTime):
		}
	}
	var ended *exec.ExitError
	switch {
	case ctx.Err() != nil:
		fmt.Fprintf(os.Stderr, "pgbackrest %s was ended: %v\n", strings.Join(args, " "), context.Cause(ctx))
		return codeStop
	case errors.As(err, &ended) && ended.ExitCode() >= 0:
		return ended.ExitCode()
	case err != nil:
		complain(err)
		return codeStop
	}
	return 0
}

// killTime is what a process that was killed gets to end.
const killTime = 500 * time.Millisecond

// environ is this process's, in UTC: labels of backups are in local time, and must never
// step back (exit code 106).
func environ() []string {
	return append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "TZ=") }), "TZ=UTC")
}

func complain(err error) int {
	fmt.Fprintf(os.Stderr, "run %s: %v\n", Program, err)
	return codeCannot
}
