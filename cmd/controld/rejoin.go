package main

import (
	"context"

	"github.com/spf13/cobra"

	"controld/internal/api/gen"
)

func (c *cli) rejoinCommand() *cobra.Command {
	var method string
	cmd := &cobra.Command{
		Use:   "rejoin NODE",
		Short: "Make a node a standby of the present primary again",
		Long: `Make a node a standby of the present primary again.

auto        the first way that holds: follow, then rewind, then basebackup
rewind      pg_rewind: undo what the node has and the primary lacks
basebackup  copy the primary anew; the node's data directory is removed first

` + exitCodeHelp,
		Example: `  controld rejoin postgres_master
  controld rejoin postgres_slave --method basebackup --reason "disk was replaced"`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeNodes,
	}
	w := c.workFlags(cmd)
	cmd.Flags().StringVar(&method, "method", "auto", "auto, rewind or basebackup")
	completeWords(cmd, "method", "auto", "rewind", "basebackup")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := c.client()
		if err != nil {
			return err
		}
		r := gen.RejoinRequest{
			Method: gen.Optional(gen.RejoinRequestMethod(method)), Reason: gen.Optional(w.reason),
			CancelRunning: gen.Optional(w.cancelRunning),
		}
		return c.carryOut(cmd.Context(), api, *w, func(ctx context.Context) (gen.Operation, error) {
			return api.Rejoin(ctx, args[0], r, w.key)
		})
	}
	return cmd
}
