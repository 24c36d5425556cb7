package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the program's version",
		Example: `  controld version
  controld version -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if c.output == "json" {
				return c.printJSON(map[string]string{"version": programVersion(), "go": runtime.Version()})
			}
			fmt.Fprintf(c.stdout, "controld %s (%s)\n", programVersion(), runtime.Version())
			return nil
		},
	}
}
