package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"controld/internal/app"
	"controld/internal/config"
)

func (c *cli) serveCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: `Run the daemon until SIGTERM or SIGINT. An operation that holds clients in its pause
is finished or undone before it ends.

Settings come from an optional YAML file and from CONTROLD_ variables, which win:
postgres.shared_buffers is CONTROLD_POSTGRES_SHARED_BUFFERS. docs/operating.md shows
a file with every key and its default.

A key of the file that is not known is an error. So is a variable that begins with
the name of a section (CONTROLD_API_, _POSTGRES_, _REPLICATION_, _FAILOVER_,
_OBSERVE_, _POOLER_, _REDIS_, _ENGINE_ or _LOG_) and names no setting of it. Other CONTROLD_
variables that are not known are left alone: the commands and the compose file have
some of their own. An empty variable sets nothing. The nodes and secrets_dir can only
be set in the file, the prefix only by CONTROLD_PREFIX.

controld check says what is wrong without starting anything.`,
		Example: `  controld serve
  controld serve --config controld.yaml
  CONTROLD_LOG_LEVEL=debug controld serve`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(file, c.environ)
			if err != nil {
				return &usageError{err}
			}
			var level slog.Level
			if err := level.UnmarshalText([]byte(cfg.Log.Level)); err != nil {
				return fmt.Errorf("log.level: %w", err)
			}
			log := slog.New(slog.NewJSONHandler(c.stderr, &slog.HandlerOptions{Level: level}))
			return app.Run(cmd.Context(), app.Options{Config: cfg, Version: programVersion(), Log: log})
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "a YAML file with settings (default: none)")
	return cmd
}
