package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// LeaseFile is the name of the lease in PgBouncer's configuration volume.
const LeaseFile = "lease"

// LeaseDuration is how old a lease may be. Where the lease is older, or there is
// none, the init of PgBouncer's container ends the pause.
const LeaseDuration = 10 * time.Second

// leaseSkew is how far in the future a renewal may seem to be. Writer and reader
// share the host's clock, which may have been set back a little in between.
const leaseSkew = time.Second

// A Lease says that somebody is alive who will end a pause of the pooler.
// controld writes it before it pauses and removes it after it has resumed.
type Lease struct {
	Databases []string  `json:"databases"` // entries that are or will be paused
	RenewedAt time.Time `json:"renewed_at"`
	Holder    string    `json:"holder"` // the operation
}

// Expired reports whether the lease was last renewed more than LeaseDuration
// before now, or in a future that cannot be.
func (l Lease) Expired(now time.Time) bool {
	age := now.Sub(l.RenewedAt)
	return age > LeaseDuration || age < -leaseSkew
}

// ErrNoLease means that there is no lease file.
var ErrNoLease = errors.New("no lease")

// WriteLease puts l into dir, whole or not at all. It does not wait for the disk: a
// host that stops takes the pause with it, and a broken lease counts as expired.
func WriteLease(dir string, l Lease) error {
	data, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode lease: %w", err)
	}
	f, err := os.CreateTemp(dir, "."+LeaseFile+".*")
	if err != nil {
		return fmt.Errorf("write lease: %w", err)
	}
	defer os.Remove(f.Name()) // a no-op after the rename
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("write lease: %w", err)
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, LeaseFile)); err != nil {
		return fmt.Errorf("write lease: %w", err)
	}
	return nil
}

// ReadLease reads the lease in dir: ErrNoLease when there is none, another error
// when it is unreadable, which counts as expired.
func ReadLease(dir string) (Lease, error) {
	data, err := os.ReadFile(filepath.Join(dir, LeaseFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Lease{}, ErrNoLease
	}
	if err != nil {
		return Lease{}, fmt.Errorf("read lease: %w", err)
	}
	var l Lease
	if err := json.Unmarshal(data, &l); err != nil {
		return Lease{}, fmt.Errorf("read lease: %w", err)
	}
	return l, nil
}

// RemoveLease gives the lease in dir up; nothing happens when there is none.
func RemoveLease(dir string) error {
	if err := os.Remove(filepath.Join(dir, LeaseFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove lease: %w", err)
	}
	return nil
}
