package main

import (
	"github.com/spf13/cobra"

	"controld/internal/api/gen"
)

func (c *cli) startCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "start NODE",
		Short: "Start a node that is down, in its recorded role",
		Long: `Start a node that is down in the role that the journal has for it. A crashed
primary starts in place; that is the way out when no standby can take over.

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
		op, err := api.StartNode(cmd.Context(), args[0], gen.StartRequest{Reason: optional(w.reason)}, w.key)
		if err != nil {
			return err
		}
		return c.finish(cmd.Context(), api, *w, op)
	}
	return cmd
}

// completeNodes offers the nodes' names, if the daemon answers.
func (c *cli) completeNodes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	api, err := c.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	cluster, err := api.Cluster(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, n := range cluster.Nodes {
		names = append(names, n.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
