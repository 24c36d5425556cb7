package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"controld/internal/pgwal"
	"controld/internal/wal"
)

// PushProgram is the name by which the init of pgBackRest's container knows Push.
const PushProgram = "push-wal"

// Push puts the file of a log at path into the archive, with args for pgBackRest beside,
// and returns the exit code. A server that runs may give the file another name and fill it
// with other WAL. So what is pushed is a copy, of which it is known that the file was still
// the same when it had been made.
func Push(ctx context.Context, path string, args []string) int {
	dir, err := os.MkdirTemp("", PushProgram+".")
	if err != nil {
		return complain(err)
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, filepath.Base(path))
	if err := copyWhole(path, copied); err != nil {
		fmt.Fprintf(os.Stderr, "ERROR: copy %s: %v\n", path, err)
		return codeFailed
	}
	return pushed(run(ctx, Program, PushLimit, append(args, "archive-push", copied)))
}

// errReplaced: another file has the name by now.
var errReplaced = errors.New("the server has begun to use it for other WAL")

// copyWhole copies the file of a log to a new one.
func copyWhole(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	size, err := io.Copy(dst, src)
	if err := errors.Join(err, dst.Close()); err != nil {
		return err
	}
	opened, err := src.Stat()
	if err != nil {
		return err
	}
	named, err := os.Stat(from)
	if err != nil || !os.SameFile(opened, named) {
		return errReplaced
	}
	if _, number, isSegment := wal.ParseSegmentName(filepath.Base(from), max(size, 1)); isSegment {
		if is, err := pgwal.IsSegment(to, number, size); err != nil || !is {
			return errors.Join(err, errReplaced)
		}
	}
	return nil
}
