package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"controld/internal/api/gen"
	"controld/internal/app"
	"controld/internal/client"
	"controld/internal/config"
)

// finding is the outcome of one check.
type finding struct {
	Check  string `json:"check"`
	State  string `json:"state"` // ok, failed, skipped
	Detail string `json:"detail"`
}

func ok(check, format string, args ...any) finding {
	return finding{check, "ok", fmt.Sprintf(format, args...)}
}

func failed(check string, err error) finding { return finding{check, "failed", err.Error()} }

func skipped(check, why string) finding { return finding{check, "skipped", why} }

func (c *cli) checkCommand() *cobra.Command {
	var file string
	var daemon bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check settings, secrets, the engine and the API",
		Long: `Check what the daemon needs (settings, secrets, the container engine, its state
directory) and what the commands need (the API, the token). Nothing is changed.
What belongs to the daemon's container is skipped outside of it. With --daemon the
API is not asked: "make up" judges new settings by it before it replaces the daemon.

` + exitCodeHelp,
		Example: `  controld check
  controld check --daemon
  controld check --config controld.yaml
  docker exec controld controld check --token-file /secrets/token_viewer`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := c.checkDaemon(cmd.Context(), file)
			if !daemon {
				findings = append(findings, c.checkAPI(cmd.Context())...)
			}
			return c.report(findings)
		},
	}
	cmd.AddCommand(c.checkRedis(), c.checkPgbackrest())
	cmd.Flags().StringVar(&file, "config", "", "a YAML file with settings (default: none)")
	cmd.Flags().BoolVar(&daemon, "daemon", false, "check only what the daemon needs")
	return cmd
}

// report prints findings; the exit code says whether one has failed.
func (c *cli) report(findings []finding) error {
	if err := c.printFindings(findings); err != nil {
		return err
	}
	for _, f := range findings {
		if f.State == "failed" {
			return &reported{exitError}
		}
	}
	return nil
}

func (c *cli) printFindings(findings []finding) error {
	rows := [][]string{{"CHECK", "STATE", "FOUND"}}
	for _, f := range findings {
		lines := strings.Split(f.Detail, "\n")
		rows = append(rows, []string{f.Check, f.State, lines[0]})
		for _, line := range lines[1:] {
			rows = append(rows, []string{"", "", strings.TrimSpace(line)})
		}
	}
	return c.print(findings, func(w io.Writer) { table(w, rows) })
}

func (c *cli) checkDaemon(ctx context.Context, file string) []finding {
	cfg, err := config.Load(file, c.environ)
	if err == nil {
		err = app.Validate(cfg)
	}
	if err != nil {
		return []finding{failed("settings", err)}
	}
	return []finding{
		ok("settings", "%d nodes, preferred primary %s", len(cfg.Nodes), cfg.PreferredPrimary),
		checkSecrets(cfg), checkStateDir(cfg), c.checkEngine(ctx, cfg),
	}
}

func checkSecrets(cfg config.Config) finding {
	const name = "secrets"
	if _, err := os.Stat(cfg.SecretsDir); errors.Is(err, fs.ErrNotExist) {
		return skipped(name, cfg.SecretsDir+" is not here: this is not controld's container")
	}
	secrets, err := config.ReadSecrets(cfg.SecretsDir)
	if err != nil {
		return failed(name, err)
	}
	return ok(name, "%d in %s", len(secrets), cfg.SecretsDir)
}

func checkStateDir(cfg config.Config) finding {
	const name = "state directory"
	info, err := os.Stat(cfg.StateDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return skipped(name, cfg.StateDir+" is not here: this is not controld's container")
	case err != nil:
		return failed(name, err)
	case !info.IsDir():
		return failed(name, fmt.Errorf("%s is no directory", cfg.StateDir))
	}
	return ok(name, "%s", cfg.StateDir)
}

// checkEngine only connects: that the socket is there and may be used is what
// goes wrong.
func (c *cli) checkEngine(ctx context.Context, cfg config.Config) finding {
	const name = "container engine"
	host := cfg.Engine.Host
	if host == "" {
		host = c.getenv("DOCKER_HOST")
	}
	if host == "" {
		host = "unix:///var/run/docker.sock"
	}
	network, address, found := strings.Cut(host, "://")
	if !found || network != "unix" && network != "tcp" {
		return skipped(name, host+" is no unix or tcp address")
	}
	dialCtx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(dialCtx, network, address)
	if err != nil {
		return failed(name, fmt.Errorf("%w\nstart Docker, or name its address in engine.host or DOCKER_HOST", err))
	}
	_ = conn.Close() // nothing was sent
	return ok(name, "%s", host)
}

// checkToken only reads: any role suffices.
func (c *cli) checkToken(ctx context.Context, api *client.Client) finding {
	const name = "token"
	if _, err := api.Cluster(ctx); err != nil {
		return failed(name, err)
	}
	if token, err := c.token(); err == nil && token == "" {
		return ok(name, "none is set, and none is needed from here (CONTROLD_API_ANONYMOUS)")
	}
	return ok(name, "it is accepted")
}

func (c *cli) checkAPI(ctx context.Context) []finding {
	api, err := c.client()
	if err != nil {
		return []finding{failed("API", err)}
	}
	ready, err := api.Ready(ctx)
	if err != nil {
		return []finding{failed("API", err)}
	}
	findings := []finding{ok("API", "%s", c.address())}
	if ready.Status != "ok" {
		findings[0] = failed("API", fmt.Errorf("%s is not ready: %s", c.address(), text(ready.Reason)))
	}
	findings = append(findings, c.checkToken(ctx, api))
	health, err := api.Health(ctx)
	switch {
	case err != nil:
		return append(findings, failed("health", err))
	case health.Status == "down":
		return append(findings, failed("health", fmt.Errorf("%s: %s\n%s", health.Status, text(health.Detail), gen.Value(health.Do))))
	case health.Status == "degraded":
		return append(findings, ok("health", "%s: %s\n%s", health.Status, text(health.Detail), gen.Value(health.Do)))
	}
	return append(findings, ok("health", "%s", health.Status))
}
