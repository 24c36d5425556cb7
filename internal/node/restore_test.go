package node

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestRestoreWAL(t *testing.T) {
	other, own := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(other, "pg_wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	const name = "000000020000000000000007"
	if err := os.WriteFile(filepath.Join(other, "pg_wal", name), []byte("pages"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(own, "RECOVERYXLOG")
	if err := RestoreWAL(other, name, path); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "pages" {
		t.Errorf("restored %q, %v", got, err)
	}
	if err := RestoreWAL(other, "00000003.history", path); !errors.Is(err, ErrNoWAL) {
		t.Errorf("a missing file: %v, want ErrNoWAL", err)
	}
	for _, bad := range []string{"", "../global/pg_control", `..\x`, "archive_status/x"} {
		if err := RestoreWAL(other, bad, path); err == nil || errors.Is(err, ErrNoWAL) {
			t.Errorf("name %q: %v, want it refused", bad, err)
		}
	}
	if err := RestoreWAL(other, name, filepath.Join(own, "missing", "x")); err == nil {
		t.Error("restored into a folder that is not there")
	}
	left, err := os.ReadDir(own)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
