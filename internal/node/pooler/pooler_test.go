package pooler

import (
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"controld/internal/node/child"
)

// fakeBouncer logs each signal and ends as PgBouncer does.
const fakeBouncer = `#!/bin/sh
log=$1.log
trap 'echo HUP >> $log' HUP
trap 'echo INT >> $log; exit 7' INT
echo started >> $log
while :; do sleep 0.02; done
`

func newInit(t *testing.T) (*Init, Config) {
	t.Helper()
	dir := t.TempDir()
	cfg := DefaultConfig()
	cfg.Program = filepath.Join(dir, "pgbouncer")
	cfg.ConfigDir, cfg.SecretsDir, cfg.OwnSecretsDir = filepath.Join(dir, "etc"), filepath.Join(dir, "secrets"), filepath.Join(dir, "own")
	cfg.UID, cfg.GID, cfg.Poll = os.Geteuid(), os.Getegid(), 5*time.Millisecond
	for _, d := range []string{cfg.ConfigDir, cfg.SecretsDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		cfg.Program: fakeBouncer,
		filepath.Join(cfg.SecretsDir, "role_controld"): `say "hi"` + "\n",
		filepath.Join(cfg.SecretsDir, "role_pooler"):   "secret",
	} {
		if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// Under nohup the shell would inherit that SIGHUP is ignored, and could not trap it.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hangups) })
	reaper := child.NewReaper()
	t.Cleanup(reaper.Close)
	return New(cfg, reaper, slog.New(slog.DiscardHandler)), cfg
}

func awaitLog(t *testing.T, path, want string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		text, _ := os.ReadFile(path)
		if string(text) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the pooler's log is %q, want %q", text, want)
		}
	}
}

func TestThePoolerStartsOnceItIsConfigured(t *testing.T) {
	init, cfg := newInit(t)
	signals := make(chan os.Signal, 1)
	code := make(chan int, 1)
	go func() {
		c, err := init.Run(t.Context(), signals)
		if err != nil {
			t.Error(err)
		}
		code <- c
	}()
	ini := filepath.Join(cfg.ConfigDir, iniFile)
	time.Sleep(30 * time.Millisecond)
	if _, err := os.Stat(ini + ".log"); err == nil {
		t.Error("started without a configuration")
	}
	if err := os.WriteFile(ini, []byte("[pgbouncer]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	awaitLog(t, ini+".log", "started\n")
	signals <- syscall.SIGHUP
	awaitLog(t, ini+".log", "started\nHUP\n")
	signals <- syscall.SIGINT
	if c := <-code; c != 7 {
		t.Errorf("exit code %d, the pooler's is 7", c)
	}
	got, err := os.ReadFile(filepath.Join(cfg.OwnSecretsDir, userlistFile))
	want := `"controld" "say ""hi"""` + "\n" + `"pooler" "secret"` + "\n"
	if err != nil || string(got) != want {
		t.Errorf("auth_file %q, %v; want %q", got, err, want)
	}
}

func TestASignalBeforeTheStartEndsTheInit(t *testing.T) {
	init, _ := newInit(t)
	signals := make(chan os.Signal, 2)
	signals <- syscall.SIGHUP
	signals <- syscall.SIGTERM
	if code, err := init.Run(t.Context(), signals); code != 0 || err != nil {
		t.Errorf("Run = %d, %v", code, err)
	}
}

func TestMissingSecretsAreNamed(t *testing.T) {
	init, cfg := newInit(t)
	if err := os.Remove(filepath.Join(cfg.SecretsDir, "role_pooler")); err != nil {
		t.Fatal(err)
	}
	if _, err := init.Run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "role_pooler") {
		t.Errorf("Run = %v", err)
	}
}
