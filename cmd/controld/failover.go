package main

import (
	"context"

	"github.com/spf13/cobra"

	"controld/internal/api/gen"
)

func (c *cli) failoverCommand() *cobra.Command {
	var target, mode, expected string
	var maxLoss int64
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "failover",
		Short: "Move the primary to another node",
		Long: `Move the primary to another node, and make the old one its standby.

planned    No transaction fails: clients are held for a moment, which is measured.
           Refused when the primary is not healthy or the standby cannot take over.
emergency  For a primary that is dead, hung or unreachable. It is fenced first;
           nothing is promoted before its death is proved. WAL that the standby
           lacks is fetched from the dead node's volume where that can be read.
auto       Decided once, from a fresh look at the primary.

A failover that fails before the new primary leads is undone: the old primary
leads. Where a planned one cannot start it again, the standby is promoted after
all. Where an emergency one has killed it, nobody leads: the clients are released,
and what is printed says who could lead and by which command.

` + exitCodeHelp,
		Example: `  controld failover
  controld failover --dry-run
  controld failover --mode planned --target postgres_slave --reason "kernel update"
  controld failover --mode emergency --max-loss-bytes 0
  controld failover --expected-primary postgres_master --no-wait -o json`,
		Args: cobra.NoArgs,
	}
	w := c.workFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&target, "target", "", "the node that shall lead (default: the best standby)")
	f.StringVar(&mode, "mode", "auto", "auto, planned or emergency")
	f.StringVar(&expected, "expected-primary", "", "refuse when another node leads")
	f.Int64Var(&maxLoss, "max-loss-bytes", 0, "what may be lost instead of the configured bound; -1 accepts an unknown loss")
	f.BoolVar(&dryRun, "dry-run", false, "show the plan and every check, change nothing")
	completeWords(cmd, "mode", "auto", "planned", "emergency")
	_ = cmd.RegisterFlagCompletionFunc("target", c.completeNodes)
	_ = cmd.RegisterFlagCompletionFunc("expected-primary", c.completeNodes)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, err := c.client()
		if err != nil {
			return err
		}
		r := gen.FailoverRequest{
			Target: gen.Optional(target), Mode: gen.Optional(gen.FailoverRequestMode(mode)), Reason: gen.Optional(w.reason),
			ExpectedPrimary: gen.Optional(expected), CancelRunning: gen.Optional(w.cancelRunning),
		}
		if cmd.Flags().Changed("max-loss-bytes") {
			r.MaxLossBytes = &maxLoss // 0 is a bound too
		}
		if dryRun {
			return c.plan(cmd.Context(), *w, func(ctx context.Context) (gen.Plan, error) { return api.PlanFailover(ctx, r) })
		}
		return c.carryOut(cmd.Context(), api, *w, func(ctx context.Context) (gen.Operation, error) { return api.Failover(ctx, r, w.key) })
	}
	return cmd
}
