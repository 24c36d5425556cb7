package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"controld/internal/api/gen"
)

func (c *cli) backupCommand() *cobra.Command {
	list := c.backupList()
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Make, plan, list, show and remove backups",
		Long: `Backups are made of the server that leads, wherever it is, into the repository on
the volume pgbackrest-repo. Without a subcommand they are listed.

` + exitCodeHelp,
		Example: `  controld backup
  controld backup run
  controld backup run --type full --reason "before the upgrade"
  controld backup cycle
  controld backup show 2026-03-01_02-00-00`,
		Args: cobra.NoArgs,
		RunE: list.RunE,
	}
	cmd.Flags().AddFlagSet(list.Flags())
	cmd.AddCommand(c.backupRun(), c.backupDay(), c.backupCycle(), list, c.backupShow(), c.backupSize(), c.backupDelete(), c.backupPrune(),
		c.backupOrphans())
	return cmd
}

func (c *cli) backupRun() *cobra.Command {
	var kind, mode string
	var accept, anew bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Make a backup",
		Long: `Make a backup of the server that leads. Without --type what is due is made: a full
where there is none to build on, else an incremental.

An offline one copies the files of the running server behind its back. It does not
restore where the server writes meanwhile; it is made only with --accept-inconsistent.

` + exitCodeHelp,
		Example: `  controld backup run
  controld backup run --type full --reason "before the upgrade"`,
		Args: cobra.NoArgs,
	}
	w := c.workFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&kind, "type", "", "full, incr or diff (default: what is due)")
	f.StringVar(&mode, "mode", "", "online or offline (default: online)")
	f.BoolVar(&accept, "accept-inconsistent", false, "with --mode offline: the copy may not restore, and that is accepted")
	f.BoolVar(&anew, "new-repository", false, "with --type full: where the repository is lost for good, make a new one before")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, err := c.client()
		if err != nil {
			return err
		}
		r := gen.BackupRequest{
			Type: gen.Optional(gen.BackupType(kind)), Mode: gen.Optional(gen.BackupMode(mode)), Reason: gen.Optional(w.reason),
			AcceptInconsistent: gen.Optional(accept), CancelRunning: gen.Optional(w.cancelRunning),
			NewRepository: gen.Optional(anew),
		}
		return c.carryOut(cmd.Context(), api, *w, func(ctx context.Context) (gen.Operation, error) {
			return api.StartBackup(ctx, r, w.key)
		})
	}
	return cmd
}

func (c *cli) backupList() *cobra.Command {
	var kind, primary, chain, after string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the backups, newest first",
		Long: `List the backups in the repository, newest first, and say from when to when the
database can be recovered.

` + exitCodeHelp,
		Example: `  controld backup list
  controld backup list --type full
  controld backup list --chain 2026-03-03_02-00-00
  controld backup list -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.client()
			if err != nil {
				return err
			}
			page, err := api.Backups(cmd.Context(), gen.ListBackupsParams{
				Type: gen.Optional(gen.BackupType(kind)), Primary: gen.Optional(primary), Chain: gen.Optional(chain),
				Limit: &limit, After: gen.Optional(after),
			})
			if err != nil {
				return err
			}
			return c.print(page, func(w io.Writer) { writeBackups(w, page) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&kind, "type", "", "only this type: full, incr or diff")
	f.StringVar(&primary, "primary", "", "only those that were made of this container")
	f.StringVar(&chain, "chain", "", "only this backup and those that it needs")
	f.IntVar(&limit, "limit", 100, "how many at the most")
	f.StringVar(&after, "after", "", "go on after this key, which the page before ended with")
	return cmd
}

func writeBackups(w io.Writer, page gen.BackupList) {
	if state := page.Repository.State; state != gen.RepositoryStateOk {
		fmt.Fprintf(w, "the repository is %s: %s\n", state, text(page.Repository.Detail))
	}
	if line := catalogueLine(page.Catalogue); line != "" {
		fmt.Fprintln(w, line)
	}
	if len(page.Backups) == 0 {
		fmt.Fprintln(w, "no backups")
		return
	}
	rows := [][]string{{"KEY", "TYPE", "PRIMARY", "TIMELINE", "DATABASE", "COPIED", "STORED", "TOOK", "CONSISTENT", "REASON"}}
	for _, b := range page.Backups {
		rows = append(rows, []string{
			shortKey(b), string(b.Type), b.MaestroUsado, number(b.Timeline), size(b.DatabaseBytes), size(b.CopiedBytes), size(b.OwnBytes),
			span(b.EndedAt.Sub(b.StartedAt)), yesNo(b.Consistent), text(b.Reason),
		})
	}
	table(w, rows)
	fmt.Fprintf(w, "\n%s%s\n", recoverable(page.Recoverable), archiveGap(page.Archive))
	if page.Next != nil {
		fmt.Fprintf(w, "There are more: controld backup list --after %s\n", *page.Next)
	}
}

// catalogueLine says what is wrong with the records in Redis; empty: nothing.
func catalogueLine(x gen.Catalogue) string {
	switch x.State {
	case gen.CatalogueStateAway:
		return "Redis is away, and gets its records of the backups when it is back: " + text(x.Detail)
	case gen.CatalogueStateBehind:
		return "the records of the backups in Redis are behind: " + text(x.Detail)
	case gen.CatalogueStateOk:
	}
	return ""
}

func shortKey(b gen.Backup) string { return strings.TrimPrefix(b.Key, "backup:") }

func number(n *int) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

// recoverable says from when to when the database can be recovered.
func recoverable(r *gen.Recoverable) string {
	if r == nil {
		return "The database cannot be recovered: there is no consistent backup."
	}
	to := "what was archived last"
	if r.To != nil {
		to = r.To.UTC().Format(time.RFC3339)
	}
	said := fmt.Sprintf("Recoverable from %s to %s.", r.From.UTC().Format(time.RFC3339), to)
	if r.Note != nil {
		said += "\nNote: " + *r.Note + "."
	}
	return said
}

// archiveGap says what is between the backups and the present; empty: nothing.
func archiveGap(a gen.ArchivedWAL) string {
	switch a.State {
	case gen.ArchivedWALStateHole:
		last := a.Holes[len(a.Holes)-1]
		return fmt.Sprintf("\nThe archive lacks WAL from %s to %s for good: no backup from before it is recovered to a moment after it.",
			last.From, last.To)
	case gen.ArchivedWALStateIncomplete:
		return fmt.Sprintf("\nThe archive lacks %d files after %s, which controld is pushing.", a.LeftFiles, text(a.Reaches))
	case gen.ArchivedWALStateWaiting:
		return fmt.Sprintf("\n%d segments after %s wait to be archived.", a.WaitingSegments, text(a.Reaches))
	case gen.ArchivedWALStateUnknown, gen.ArchivedWALStateContinuous:
	}
	return ""
}

func (c *cli) backupShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show KEY",
		Short: "Show one backup",
		Long: `Show one backup, by its key, with or without "backup:", or its label.

` + exitCodeHelp,
		Example: `  controld backup show 2026-03-01_02-00-00`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.client()
			if err != nil {
				return err
			}
			b, err := api.Backup(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(b, func(w io.Writer) { writeBackup(w, b) })
		},
	}
}

func writeBackup(w io.Writer, b gen.Backup) {
	for _, line := range [][2]string{
		{"key", b.Key}, {"label", b.Label}, {"type", string(b.Type) + " (" + string(b.TipoBackup) + ")"}, {"mode", string(b.Mode)},
		{"consistent", yesNo(b.Consistent)}, {"primary", b.MaestroUsado},
		{"began", b.StartedAt.UTC().Format(time.RFC3339)}, {"took", span(b.EndedAt.Sub(b.StartedAt))},
		{"database", size(b.DatabaseBytes)}, {"copied", size(b.CopiedBytes)},
		{"stored", size(b.OwnBytes) + ", with all that it needs " + size(b.RepositoryBytes)},
		{"timeline", number(b.Timeline)}, {"WAL", text(b.WalStart) + " to " + text(b.WalStop)},
		{"needs", strings.Join(b.Needs, ", ")}, {"files", b.DireccionAlmacenamiento}, {"reason", text(b.Reason)},
		{"operation", text(b.Operation)},
	} {
		if line[1] != "" {
			fmt.Fprintf(w, "%-11s %s\n", line[0], line[1])
		}
	}
}
