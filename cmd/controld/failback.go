package main

import (
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
		r := gen.FailbackRequest{Reason: optional(w.reason)}
		if dryRun {
			plan, err := api.PlanFailback(cmd.Context(), r)
			if err != nil {
				return err
			}
			return c.printPlan(plan)
		}
		op, err := api.Failback(cmd.Context(), r, w.key)
		if err != nil {
			return err
		}
		return c.finish(cmd.Context(), api, *w, op)
	}
	return cmd
}
