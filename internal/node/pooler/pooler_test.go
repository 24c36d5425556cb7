package pooler

import (
	"context"
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
trap 'exit 8' QUIT
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

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
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
	for _, put := range []func(){func() {}, func() { write(t, ini, "") }} { // nothing is there, then a file without a word
		put()
		time.Sleep(30 * time.Millisecond)
		if _, err := os.Stat(ini + ".log"); err == nil {
			t.Error("started without a configuration")
		}
	}
	write(t, ini, "[pgbouncer]\n")
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

// A SIGHUP does not: it tells of a configuration that may be there only now.
func TestASignalBeforeTheStartEndsTheInit(t *testing.T) {
	init, _ := newInit(t)
	signals := make(chan os.Signal, 2)
	signals <- syscall.SIGHUP
	signals <- syscall.SIGTERM
	if code, err := init.Run(t.Context(), signals); code != 0 || err != nil {
		t.Errorf("Run = %d, %v", code, err)
	}
	if len(signals) > 0 {
		t.Error("the first one, a SIGHUP, has ended it")
	}
}

// The end of the init's context ends PgBouncer, which is waited for.
func TestTheEndOfTheInitEndsThePooler(t *testing.T) {
	init, cfg := newInit(t)
	ini := filepath.Join(cfg.ConfigDir, iniFile)
	write(t, ini, "[pgbouncer]\n")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		awaitLog(t, ini+".log", "started\n")
		cancel()
	}()
	if code, err := init.Run(ctx, nil); code != 8 || err != nil {
		t.Errorf("Run = %d, %v, want the pooler's code after a SIGQUIT", code, err)
	}
}

// What keeps the init from its work is told, with what it was about.
func TestWhatKeepsThePoolerFromStarting(t *testing.T) {
	for _, tt := range []struct {
		name string
		hurt func(t *testing.T, cfg *Config)
		says string
	}{
		{"a secret is missing", func(t *testing.T, cfg *Config) {
			remove(t, filepath.Join(cfg.SecretsDir, "role_pooler"))
		}, "role_pooler"},
		{"a secret is empty", func(t *testing.T, cfg *Config) {
			write(t, filepath.Join(cfg.SecretsDir, "role_pooler"), "\n")
		}, "role_pooler is empty"},
		{"a secret has two lines", func(t *testing.T, cfg *Config) {
			write(t, filepath.Join(cfg.SecretsDir, "role_pooler"), "a\nb\n")
		}, "more than one line"},
		{"no room for its own secrets", func(_ *testing.T, cfg *Config) {
			cfg.OwnSecretsDir = filepath.Join(cfg.OwnSecretsDir, "below")
		}, "prepare secrets"},
		{"they cannot be written", func(t *testing.T, cfg *Config) {
			if err := os.MkdirAll(filepath.Join(cfg.OwnSecretsDir, userlistFile, "in the way"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, userlistFile},
		{"the configuration is no folder", func(_ *testing.T, cfg *Config) {
			cfg.ConfigDir = filepath.Join(cfg.SecretsDir, "role_pooler")
		}, "look for configuration"},
		{"there is no PgBouncer", func(t *testing.T, cfg *Config) { remove(t, cfg.Program) }, "pgbouncer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			init, cfg := newInit(t)
			write(t, filepath.Join(cfg.ConfigDir, iniFile), "[pgbouncer]\n")
			tt.hurt(t, &cfg)
			init.cfg = cfg
			signals := make(chan os.Signal, 1)
			time.AfterFunc(5*time.Second, func() { signals <- syscall.SIGTERM }) // should it wait after all
			code, err := init.Run(t.Context(), signals)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Run = %d, %v, want %q", code, err, tt.says)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// Nobody waits long for a pooler that is configured, and one that is not costs nothing.
func TestThePoolerLooksForItsConfigurationNowAndThen(t *testing.T) {
	if poll := DefaultConfig().Poll; poll < 10*time.Millisecond || poll > time.Second {
		t.Errorf("every %s", poll)
	}
}
