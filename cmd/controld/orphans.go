package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"controld/internal/api/gen"
	"controld/internal/client"
)

func (c *cli) backupOrphans() *cobra.Command {
	var dryRun, yes bool
	cmd := &cobra.Command{
		Use:   "orphans",
		Short: "Remove records in Redis that tell of no backup here",
		Long: `List the records in Redis that tell of no backup in the repository and that controld
leaves alone: written by other programs, of another cluster, or copied. Then ask, and
remove them. No backup and no file is touched. It takes the admin's token.

` + exitCodeHelp,
		Example: `  controld backup orphans --dry-run
  controld backup orphans
  controld backup orphans --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.output == "json" && !yes && !dryRun {
				return &usageError{errors.New("with --output json nobody is asked: give --yes or --dry-run")}
			}
			api, err := c.client()
			if err != nil {
				return err
			}
			return c.removeOrphans(cmd.Context(), api, dryRun, yes)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "list them, remove nothing")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// removeOrphans removes what it has shown, and nothing that came meanwhile.
func (c *cli) removeOrphans(ctx context.Context, api *client.Client, dryRun, yes bool) error {
	list := true
	found, err := api.Orphans(ctx, gen.OrphansRequest{DryRun: &list})
	if err != nil {
		return err
	}
	if dryRun || c.output != "json" || len(found.Records) == 0 {
		if err := c.print(found, func(w io.Writer) { writeOrphans(w, found) }); err != nil {
			return err
		}
	}
	switch {
	case dryRun || len(found.Records) == 0:
		return nil
	case !yes && !c.confirmed(fmt.Sprintf("Remove %s?", count(len(found.Records), "record"))):
		return errKept
	}
	list = false
	var keys []string
	for _, o := range found.Records {
		keys = append(keys, o.Key)
	}
	removed, err := api.Orphans(ctx, gen.OrphansRequest{DryRun: &list, Keys: &keys})
	if err != nil {
		return err
	}
	return c.print(removed, func(w io.Writer) { fmt.Fprintf(w, "%d removed\n", len(removed.Records)) })
}

func writeOrphans(w io.Writer, found gen.Orphans) {
	if len(found.Records) == 0 {
		fmt.Fprintln(w, "Every record in Redis tells of a backup that is here.")
		return
	}
	rows := [][]string{{"KEY", "FECHA", "MAESTRO", "WHY"}}
	for _, o := range found.Records {
		rows = append(rows, []string{strings.TrimPrefix(o.Key, "backup:"), text(o.Fecha), text(o.MaestroUsado), o.Why})
	}
	table(w, rows)
}
