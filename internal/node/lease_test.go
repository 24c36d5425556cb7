package node_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"controld/internal/node"
)

func TestLease(t *testing.T) {
	dir := t.TempDir()
	if _, err := node.ReadLease(dir); !errors.Is(err, node.ErrNoLease) {
		t.Errorf("no file: %v, want ErrNoLease", err)
	}
	if err := node.RemoveLease(dir); err != nil {
		t.Errorf("nothing to remove: %v", err)
	}
	now := time.Now()
	for range 2 { // written, then renewed
		if err := node.WriteLease(dir, node.Lease{Databases: []string{"imdb"}, RenewedAt: now, Holder: "op"}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := node.ReadLease(dir)
	if err != nil || l.Holder != "op" || !l.RenewedAt.Equal(now) || len(l.Databases) != 1 {
		t.Errorf("ReadLease = %+v, %v", l, err)
	}
	if err := os.WriteFile(filepath.Join(dir, node.LeaseFile), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := node.ReadLease(dir); err == nil || errors.Is(err, node.ErrNoLease) {
		t.Errorf("an empty file: %v", err)
	}
	if err := node.RemoveLease(dir); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left in the folder: %v, %v", entries, err)
	}
}

func TestLeaseExpires(t *testing.T) {
	now := time.Now()
	for age, want := range map[time.Duration]bool{
		0: false, node.LeaseDuration: false, node.LeaseDuration + 1: true,
		-100 * time.Millisecond: false, // a clock that was set back a little
		-time.Minute:            true,
	} {
		if got := (node.Lease{RenewedAt: now.Add(-age)}).Expired(now); got != want {
			t.Errorf("renewed %v ago: expired %v", age, got)
		}
	}
	if !(node.Lease{}).Expired(now) {
		t.Error("a lease without a time holds")
	}
}
