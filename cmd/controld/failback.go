package main

import (
	"context"

	"github.com/spf13/cobra"

	"controld/internal/api/gen"
)

func (c *cli) failbackCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "failback",
		Short: "Move the primary back to the preferred node",
		Long: `Move the primary back to the preferred node, which rejoins and catches up first
where it must. Where it leads already there is nothing to do, and that is a success.
It is a planned failover: where nobody leads there is nothing to move back, and
controld failover is the way.

` + exitCodeHelp,
		Example: `  controld failback
  controld failback --dry-run
  controld failback --reason "kernel update is done"`,
		Args: cobra.NoArgs,
	}
	w := c.workFlags(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show the plan and every check, change nothing")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, err := c.client()
		if err != nil {
			return err
		}
		r := gen.FailbackRequest{Reason: gen.Optional(w.reason), CancelRunning: gen.Optional(w.cancelRunning)}
		if dryRun {
			return c.plan(cmd.Context(), *w, func(ctx context.Context) (gen.Plan, error) { return api.PlanFailback(ctx, r) })
		}
		return c.carryOut(cmd.Context(), api, *w, func(ctx context.Context) (gen.Operation, error) { return api.Failback(ctx, r, w.key) })
	}
	return cmd
}
