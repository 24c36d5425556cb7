package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"controld/internal/cluster"
	"controld/internal/node"
)

// claimFile is the name of the lock, on an order volume, of the one controld.
const claimFile = "controld.lock"

// ErrClaimed means that another controld looks after the cluster.
var ErrClaimed = errors.New("another controld looks after this cluster; stop it first")

// Claim takes the cluster for this process: two daemons would give
// contradicting orders. It belongs on the order volume of the first node,
// whichever leads. The claim ends with the process or with release.
func Claim(n cluster.Node) (release func() error, err error) {
	f, err := os.OpenFile(filepath.Join(n.OrderDir, claimFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("claim cluster: %w", err)
	}
	got, err := node.TryLock(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("claim cluster: %w", err), f.Close())
	}
	if !got {
		return nil, errors.Join(fmt.Errorf("claim cluster: %s is locked: %w", f.Name(), ErrClaimed), f.Close())
	}
	return f.Close, nil
}
