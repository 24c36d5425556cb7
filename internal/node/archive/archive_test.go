package archive

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"controld/internal/node"

	"golang.org/x/sys/unix"
)

func TestExitCodes(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Log("as root the program is run as user", node.UID)
	}
	for _, tt := range []struct {
		name               string
		code               int
		push, follow, back int
	}{
		{"done", 0, 0, 0, 0},
		{"there is no such file", 1, 1, 1, 1},
		{"the repository is broken", 103, 103, 125, 126},
		{"anything", 125, 125, 125, 126},
		{"the shell's", 127, 125, 125, 126},
		{"killed", 137, 125, 125, 126},
	} {
		code := run(t.Context(), "/bin/sh", time.Minute, []string{"-c", "exit " + strconv.Itoa(tt.code)})
		if code != tt.code {
			t.Errorf("%s: %d, want %d", tt.name, code, tt.code)
		}
		if push, follow, back := pushed(code), got(code, codeFailed), got(code,
			codeStop); push != tt.push || follow != tt.follow || back != tt.back {
			t.Errorf("%s: push %d, get for a standby %d, for a restore %d; want %+v", tt.name, push, follow, back, tt)
		}
	}
	if code := run(t.Context(), "/nowhere", time.Minute, nil); pushed(code) != codeFailed || got(code, codeStop) != codeStop {
		t.Errorf("no program: %d", code)
	}
}

// A command that hangs is ended with its children, and has failed.
func TestLimit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "child")
	if err := os.WriteFile(file, nil, 0o666); err != nil { //nolint:gosec // another user writes it
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o666); err != nil { //nolint:gosec // another user writes it
		t.Fatal(err)
	}
	for dir := filepath.Dir(file); strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // another user reads it
			t.Fatal(err)
		}
	}
	code := run(t.Context(), "/bin/sh", 300*time.Millisecond, []string{"-c", "sleep 1000 & echo $! > " + file + "; wait"})
	if code != codeStop || pushed(code) != codeFailed || got(code, codeFailed) != codeFailed {
		t.Errorf("exit code %d", code)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatalf("it had begun nothing within the limit: %q", text)
	}
	for deadline := time.Now().Add(time.Minute); unix.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("child %d lives on", pid)
		}
	}
}

// Labels of backups are in local time, and must not step back.
func TestUTC(t *testing.T) {
	t.Setenv("TZ", "America/Bogota")
	for _, v := range environ() {
		if strings.HasPrefix(v, "TZ=") && v != "TZ=UTC" {
			t.Errorf("%s is handed on", v)
		}
	}
}

func TestPassphrase(t *testing.T) {
	secrets, own := t.TempDir(), t.TempDir()
	if err := WritePassphrase(secrets, own, os.Geteuid(), os.Getegid()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(own, includeDir))
	if err != nil || len(entries) != 0 { // pgBackRest wants the folder in any case
		t.Errorf("without a secret: %v, %v", entries, err)
	}
	if err := os.WriteFile(filepath.Join(secrets, passphraseSecret), []byte("open\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WritePassphrase(secrets, own, os.Geteuid(), os.Getegid()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(own, includeDir, passphraseFile)
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "[global]\nrepo1-cipher-pass=open\n" {
		t.Errorf("%q, %v", text, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}
