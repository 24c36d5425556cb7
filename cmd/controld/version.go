package main

import (
	"fmt"
	"io"
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
			return c.print(map[string]string{"version": programVersion(), "go": runtime.Version()}, func(w io.Writer) {
				fmt.Fprintf(w, "controld %s (%s)\n", programVersion(), runtime.Version())
			})
		},
	}
}
