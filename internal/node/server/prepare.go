package server

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"controld/internal/node"
	"controld/internal/node/archive"
)

// prepare makes the volume ready for orders: folders, lock file, secrets, and what is
// still true of the status that the init before has left.
func (n *Init) prepare() error {
	if err := n.settleSwap(); err != nil {
		return fmt.Errorf("prepare node: end a base backup: %w", err)
	}
	if err := n.makeFolders(); err != nil {
		return fmt.Errorf("prepare node: %w", err)
	}
	err := errors.Join(n.writePgpass(), archive.WritePassphrase(n.cfg.SecretsDir, n.cfg.OwnSecretsDir, n.cfg.UID, n.cfg.GID))
	if err != nil {
		return fmt.Errorf("prepare secrets: %w", err)
	}
	return n.restoreStatus()
}

// makeFolders makes what is missing. The volume's root stays the init's own: the
// server's user must not be able to replace the lock or the status.
func (n *Init) makeFolders() error {
	if err := os.MkdirAll(n.cfg.NodeDir, 0o755); err != nil {
		return err
	}
	if err := errors.Join(os.Chown(n.cfg.NodeDir, os.Geteuid(), os.Getegid()), os.Chmod(n.cfg.NodeDir, 0o755)); err != nil {
		return err
	}
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{n.cfg.dataDir(), 0o700},
		{filepath.Join(n.cfg.NodeDir, node.SocketDir), 0o755},
		{n.cfg.OwnSecretsDir, 0o700},
	} {
		if err := os.Mkdir(d.path, d.mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := errors.Join(os.Chown(d.path, n.cfg.UID, n.cfg.GID), os.Chmod(d.path, d.mode)); err != nil {
			return err
		}
	}
	lock, err := node.OpenLock(n.cfg.NodeDir)
	if err != nil {
		return err
	}
	return errors.Join(lock.Close(), node.SyncDir(n.cfg.NodeDir))
}

// pgpassFile holds the passwords with which this node reaches the other one.
const pgpassFile = "pgpass"

func (n *Init) pgpass() string { return filepath.Join(n.cfg.OwnSecretsDir, pgpassFile) }

func (n *Init) writePgpass() error {
	var lines strings.Builder
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`)
	for _, role := range []string{"replicator", "rewind"} {
		password, err := secret(n.cfg.SecretsDir, "role_"+role)
		if err != nil {
			return err
		}
		fmt.Fprintf(&lines, "*:*:*:%s:%s\n", role, escape.Replace(password))
	}
	if err := node.WriteFile(n.pgpass(), []byte(lines.String()), 0o600); err != nil {
		return err
	}
	return os.Chown(n.pgpass(), n.cfg.UID, n.cfg.GID)
}

// secret reads one secret. An empty one would let anybody in.
func secret(dir, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) == 0 {
		return "", fmt.Errorf("secret %s is empty", name)
	}
	return string(b), nil
}

// restoreStatus reads the status that the init before has left.
func (n *Init) restoreStatus() error {
	s, err := node.ReadStatus(n.cfg.NodeDir)
	if err != nil {
		// Nobody knows any more which orders were used: the present one counts as used.
		n.log.Error("status unreadable, a primary needs a new order", "err", err)
		s = node.Status{}
		if o, err := node.ReadOrder(n.cfg.OrderDir); err == nil {
			s.Epoch, s.UsedEpoch = o.Epoch, o.Epoch
		}
	}
	marker, err := n.marker()
	if err != nil {
		return err
	}
	if marker != "" && s.ActionEpoch != 0 && s.ActionEpoch == s.Epoch {
		// The action had ended, and the init was stopped before it removed the marker.
		// The marker cannot be that of a later action: the init would have reported that
		// one's higher epoch before it set the marker.
		if err := n.removeMarker(); err != nil {
			return err
		}
		marker = ""
	}
	n.status = &report{dir: n.cfg.NodeDir, archives: n.cfg.Archives(), status: s}
	return n.status.update(func(s *node.Status) {
		s.State, s.Role, s.PID, s.Error, s.Unfinished = node.StateWaiting, node.RoleNone, 0, "", marker
	})
}

// marker reads which action had begun to overwrite the data directory, "" for none.
func (n *Init) marker() (node.Action, error) {
	b, err := os.ReadFile(filepath.Join(n.cfg.NodeDir, node.UnfinishedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read marker: %w", err)
	}
	if text := strings.TrimSpace(string(b)); text != "" {
		return node.Action(text), nil
	}
	return "unknown", nil
}

func (n *Init) setMarker(a node.Action) error {
	if err := node.WriteFile(filepath.Join(n.cfg.NodeDir, node.UnfinishedFile), []byte(a+"\n"), 0o644); err != nil {
		return fmt.Errorf("set marker: %w", err)
	}
	return nil
}

func (n *Init) removeMarker() error {
	if err := remove(filepath.Join(n.cfg.NodeDir, node.UnfinishedFile)); err != nil {
		return fmt.Errorf("remove marker: %w", err)
	}
	return node.SyncDir(n.cfg.NodeDir)
}

// remove removes a file that may be missing.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
