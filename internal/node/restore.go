package node

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// RestoreCommand is the restore_command by which a node fetches WAL that its
// upstream cannot stream any more. It copies from the pg_wal of the other node's
// data directory, which every node mounts read-only, and then from the archive of
// stanza; empty: from none. It is set only while WAL is missing, because a promotion
// calls it several times.
func RestoreCommand(otherDataDir, stanza string) string {
	return strings.TrimSuffix("/usr/local/bin/controld-node restore-wal "+otherDataDir+` %f "%p" `+stanza, " ")
}

// ErrNoWAL means that the file asked for is not there, which PostgreSQL takes
// for the end of what can be restored.
var ErrNoWAL = errors.New("no such WAL file")

// RestoreWAL copies the WAL or history file name of the server with the data
// directory dataDir to path: whole or not at all. ErrNoWAL where there is none.
func RestoreWAL(dataDir, name, path string) error {
	if name == "" || strings.ContainsAny(name, `/\`) {
		return fmt.Errorf("restore WAL: %q is no name of a WAL file", name)
	}
	src, err := os.Open(filepath.Join(dataDir, "pg_wal", name))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("restore %s: %w", name, ErrNoWAL)
	}
	if err != nil {
		return fmt.Errorf("restore WAL: %w", err)
	}
	defer src.Close()
	temp := path + ".part"
	dst, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("restore WAL: %w", err)
	}
	_, err = io.Copy(dst, src)
	if err == nil {
		err = dst.Sync()
	}
	if err = errors.Join(err, dst.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return fmt.Errorf("restore %s: %w", name, errors.Join(err, os.Remove(temp)))
	}
	return nil
}
