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
postgres.shared_buffers is CONTROLD_POSTGRES_SHARED_BUFFERS. An unknown setting is
an error. controld check says what is wrong without starting anything.`,
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
