package archive

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"controld/internal/node"
)

// Names of the passphrase: the secret's, and in the folder that pgBackRest reads beside its
// configuration (config-include-path).
const (
	passphraseSecret = "backup_passphrase"
	includeDir       = "pgbackrest"
	passphraseFile   = "passphrase.conf"
)

// WritePassphrase makes the secret what pgBackRest reads, in a folder of ownDir that the
// user uid owns. A cluster of an earlier version has no such secret: nothing is written.
func WritePassphrase(secretsDir, ownDir string, uid, gid int) error {
	dir := filepath.Join(ownDir, includeDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// The folder above is PostgreSQL's own in a node, and root's elsewhere.
	err := errors.Join(os.Chown(ownDir, uid, gid), os.Chown(dir, uid, gid))
	if err != nil {
		return err
	}
	secret, err := os.ReadFile(filepath.Join(secretsDir, passphraseSecret))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	path := filepath.Join(dir, passphraseFile)
	text := "[global]\nrepo1-cipher-pass=" + strings.TrimSpace(string(secret)) + "\n"
	return errors.Join(node.WriteFile(path, []byte(text), 0o600), os.Chown(path, uid, gid))
}
