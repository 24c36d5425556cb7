package main

import (
	"context"

	"github.com/spf13/cobra"

	"controld/internal/api/gen"
)

func (c *cli) startCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "start NODE",
		Short: "Start a node that is down, in its recorded role",
		Long: `Start a node that is down in the role that the journal has for it. A crashed
primary starts in place; that is the way out when no standby can take over. Where
another node leads, the node is rejoined as its standby: the operation is a rejoin.

` + exitCodeHelp,
		Example: `  controld start postgres_master
  controld start postgres_slave --reason "power was lost"`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeNodes,
	}
	w := c.workFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := c.client()
		if err != nil {
			return err
		}
		r := gen.StartRequest{Reason: gen.Optional(w.reason), CancelRunning: gen.Optional(w.cancelRunning)}
		return c.carryOut(cmd.Context(), api, *w, func(ctx context.Context) (gen.Operation, error) {
			return api.StartNode(ctx, args[0], r, w.key)
		})
	}
	return cmd
}
