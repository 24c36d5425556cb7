package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/render"
)

// A Repository is the volume of the backups, and what pgBackRest reads of how to use it, in
// its own container and in those of the nodes.
type Repository struct {
	ControlDir string            // pgBackRest's container has it as /control
	Root       string            // the volume, at the same path in every container; here only read
	Settings   render.Repository // but for what depends on the cluster
	Nodes      []cluster.Node
}

// roleBackup is the role by which pgBackRest logs in, see package rights.
const roleBackup = "backup"

// There says why there is no place for a repository; empty: there is one.
func (r *Repository) There() string {
	for _, dir := range []string{r.ControlDir, r.Root} {
		if !node.Mounted(dir) {
			return fmt.Sprintf("no volume is mounted at %s: an earlier version made this container; make up renews it", dir)
		}
	}
	return ""
}

// path is that of the repository of one cluster: one that came before it keeps its own.
func (r *Repository) path(systemID uint64) string {
	return filepath.Join(r.Root, strconv.FormatUint(systemID, 10))
}

// Dir is where the files of a backup lie.
func (r *Repository) Dir(systemID uint64, label string) string {
	return filepath.Join(r.path(systemID), "backup", r.Settings.Stanza, label)
}

// Others are further clusters that have a repository here.
func (r *Repository) Others(systemID uint64) ([]uint64, error) {
	entries, err := os.ReadDir(r.Root)
	if err != nil {
		return nil, fmt.Errorf("repository: %w", err)
	}
	var others []uint64
	for _, e := range entries {
		if id, err := strconv.ParseUint(e.Name(), 10, 64); err == nil && e.IsDir() && id != systemID {
			others = append(others, id)
		}
	}
	return others, nil
}

// Space is what is left on the repository's disk, and its size.
func (r *Repository) Space() (freeBytes, totalBytes int64, err error) { return node.Space(r.Root) }

// Configure writes what pgBackRest needs to know, where another thing stands.
func (r *Repository) Configure(systemID uint64) error {
	cipher, err := r.cipher(systemID)
	if err != nil {
		return err
	}
	common := r.Settings
	common.Path, common.LockDir, common.Cipher = r.path(systemID), filepath.Join(r.Root, "lock"), cipher
	host := common
	host.Host, host.User = true, roleBackup
	for _, n := range r.Nodes {
		own := common
		own.Servers = []render.Server{server(n)}
		if _, err := writeChanged(n, render.BackRestFile, render.BackRest(own)); err != nil {
			return err
		}
		host.Servers = append(host.Servers, server(n))
	}
	_, err = node.WriteChanged(filepath.Join(r.ControlDir, render.BackRestFile), render.BackRest(host), 0o644)
	return err
}

func server(n cluster.Node) render.Server {
	return render.Server{DataDir: n.DataDir(), SocketDir: filepath.Join(n.Dir, node.SocketDir), Port: n.Port}
}

// encryptedHead is what every encrypted file of a repository begins with.
const encryptedHead = "Salted__"

// cipher is that of the repository, fixed when it was made; before that, the one that is set.
func (r *Repository) cipher(systemID uint64) (string, error) {
	f, err := os.Open(filepath.Join(r.path(systemID), "archive", r.Settings.Stanza, "archive.info"))
	if errors.Is(err, fs.ErrNotExist) {
		return r.Settings.Cipher, nil
	}
	if err != nil {
		return "", fmt.Errorf("repository: %w", err)
	}
	defer f.Close()
	head := make([]byte, len(encryptedHead))
	if _, err := io.ReadFull(f, head); err != nil {
		return "", fmt.Errorf("repository: %s: %w", f.Name(), err)
	}
	if string(head) == encryptedHead {
		return cipherAES, nil
	}
	return "", nil
}

const cipherAES = "aes-256-cbc"
