package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"controld/internal/api/gen"
	"controld/internal/client"
)

// A removal is what a command removes: what it would be, and its start. The start removes
// what the plan has shown, or nothing.
type removal struct {
	plan  func(ctx context.Context) (gen.RetentionPlan, error)
	start func(ctx context.Context, expect []string) (gen.Operation, error)
}

// removalFlags are those of every command that removes backups.
type removalFlags struct{ force, dryRun, yes bool }

func (c *cli) removalFlags(cmd *cobra.Command) *removalFlags {
	r := &removalFlags{}
	f := cmd.Flags()
	f.BoolVar(&r.force, "force", false, "also where fewer than two consistent full backups would be left")
	f.BoolVar(&r.dryRun, "dry-run", false, "show what would go, remove nothing")
	f.BoolVar(&r.yes, "yes", false, "do not ask")
	return r
}

// remove shows what would go, asks, and removes it.
func (c *cli) remove(ctx context.Context, api *client.Client, w work, f removalFlags, r removal) error {
	if c.output == "json" && !f.yes && !f.dryRun {
		return &usageError{errors.New("with --output json nobody is asked: give --yes or --dry-run")}
	}
	bounded, cancel := w.bound(ctx)
	defer cancel()
	p, err := r.plan(bounded)
	if err != nil {
		return err
	}
	if f.dryRun || c.output != "json" || !p.WouldRun {
		if err := c.print(p, func(out io.Writer) { writeRemoval(out, p) }); err != nil {
			return err
		}
	}
	switch {
	case !p.WouldRun:
		return &reported{exitRefused}
	case f.dryRun:
		return nil
	case len(p.Removes) > 0 && !f.yes && !c.confirmed(fmt.Sprintf("Remove %s?", count(len(p.Removes), "backup"))):
		return errKept
	}
	expect := []string{}
	for _, goes := range p.Removes {
		expect = append(expect, goes.Label)
	}
	return c.carryOut(ctx, api, w, func(ctx context.Context) (gen.Operation, error) { return r.start(ctx, expect) })
}

func count(n int, of string) string {
	if n == 1 {
		return "1 " + of
	}
	return fmt.Sprintf("%d %ss", n, of)
}

func writeRemoval(w io.Writer, p gen.RetentionPlan) {
	if len(p.Removes) == 0 && p.Refusal == nil {
		fmt.Fprintf(w, "No backup is to go: %s.\n", stay(len(p.Keeps)))
	}
	if len(p.Removes) > 0 {
		rows := [][]string{{"GOES", "TYPE", "STORED", "CONSISTENT", "WHY"}}
		for _, r := range p.Removes {
			why := map[gen.PlannedRemovalWhy]string{
				gen.Asked: "it was asked for", gen.Depends: "it needs " + text(r.DependsOn),
				gen.Older: "older than the oldest full that is kept",
			}[r.Why]
			rows = append(rows, []string{strings.TrimPrefix(r.Key, "backup:"), string(r.Type), size(r.OwnBytes), yesNo(r.Consistent), why})
		}
		table(w, rows)
		fmt.Fprintf(w, "\n%s, with %s; %s. %s\n", count(len(p.Removes), "backup"), size(p.FreedBytes), stay(len(p.Keeps)),
			reaches(p.RecoverableFrom, p.RecoverableFromAfter))
	}
	if p.Refusal != nil {
		fmt.Fprintln(w, "\nIt would be refused.")
		writeCause(w, *p.Refusal)
	}
}

func stay(n int) string {
	if n == 1 {
		return "1 stays"
	}
	return fmt.Sprintf("%d stay", n)
}

// reaches says how a removal changes how far back the database can be recovered.
func reaches(before, after *time.Time) string {
	switch {
	case before == nil:
		return "The database cannot be recovered now."
	case after == nil:
		return "The database can then not be recovered any more."
	case after.Equal(*before):
		return "Recoverable from " + before.UTC().Format(time.RFC3339) + ", as now."
	}
	return fmt.Sprintf("Recoverable from %s then, and not from %s.", after.UTC().Format(time.RFC3339), before.UTC().Format(time.RFC3339))
}

func (c *cli) backupDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "delete KEY",
		Short: "Remove a backup",
		Long: `Remove a backup, by its key, with or without "backup:", or its label. It goes with
every backup that cannot be restored without it. What would go is shown first, and
asked about.

` + exitCodeHelp,
		Example: `  controld backup delete 2026-03-01_02-00-00
  controld backup delete 2026-03-01_02-00-00 --dry-run
  controld backup delete 2026-03-01_02-00-00 --yes --reason "disk is full"`,
		Args: cobra.ExactArgs(1),
	}
	w, f := c.workFlags(cmd), c.removalFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := c.client()
		if err != nil {
			return err
		}
		return c.remove(cmd.Context(), api, *w, *f, deletion(api, args[0], *w, *f))
	}
	return cmd
}

func deletion(api *client.Client, name string, w work, f removalFlags) removal {
	p := gen.DeleteBackupParams{
		Force: gen.Optional(f.force), Reason: gen.Optional(w.reason), CancelRunning: gen.Optional(w.cancelRunning),
	}
	return removal{
		plan: func(ctx context.Context) (gen.RetentionPlan, error) { return api.PlanDeleteBackup(ctx, name, p) },
		start: func(ctx context.Context, expect []string) (gen.Operation, error) {
			p.Expect = &expect
			return api.DeleteBackup(ctx, name, p, w.key)
		},
	}
}

func retention(api *client.Client, keepFulls int, w work, f removalFlags) removal {
	r := gen.RetentionRequest{
		KeepFulls: gen.Optional(keepFulls), Force: gen.Optional(f.force), Reason: gen.Optional(w.reason),
		CancelRunning: gen.Optional(w.cancelRunning),
	}
	return removal{
		plan: func(ctx context.Context) (gen.RetentionPlan, error) { return api.PlanRetention(ctx, r) },
		start: func(ctx context.Context, expect []string) (gen.Operation, error) {
			r.Expect = &expect
			return api.ApplyRetention(ctx, r, w.key)
		},
	}
}

func (c *cli) backupPrune() *cobra.Command {
	var keepFulls int
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove backups that are not kept",
		Long: `Remove backups. Without flags it asks: a backup of your choice, or all that are
older than the oldest full that is kept. With --keep-fulls, --yes or --dry-run it
does the second without a menu. What would go is shown first.

controld removes by itself what is not kept, after each backup: see the setting
CONTROLD_BACKUP_RETAIN_FULLS.

` + exitCodeHelp,
		Example: `  controld backup prune
  controld backup prune --dry-run
  controld backup prune --keep-fulls 3 --yes`,
		Args: cobra.NoArgs,
	}
	w, f := c.workFlags(cmd), c.removalFlags(cmd)
	cmd.Flags().IntVar(&keepFulls, "keep-fulls", 0, "how many full backups are kept (default: as many as are set)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("keep-fulls") && keepFulls < 1 {
			return &usageError{fmt.Errorf("--keep-fulls %d is not allowed; allowed: 1 and more", keepFulls)}
		}
		api, err := c.client()
		if err != nil {
			return err
		}
		if keepFulls == 0 && !f.yes && !f.dryRun && c.output != "json" {
			return c.pruneMenu(cmd.Context(), api, *w, *f)
		}
		return c.remove(cmd.Context(), api, *w, *f, retention(api, keepFulls, *w, *f))
	}
	return cmd
}

// A choice is one line of the menu of prune.
type choice struct {
	text string
	do   func(ctx context.Context, api *client.Client, w work, f removalFlags) error
}

// pruneMenu asks what is to be removed until somebody has enough.
func (c *cli) pruneMenu(ctx context.Context, api *client.Client, w work, f removalFlags) error {
	choices := []choice{
		{"remove one backup", c.pruneOne},
		{"remove what is not kept", c.pruneOld},
		{"remove records in Redis that tell of no backup", func(ctx context.Context, api *client.Client, _ work, f removalFlags) error {
			return c.removeOrphans(ctx, api, f.dryRun, f.yes)
		}},
	}
	for {
		for i, x := range choices {
			fmt.Fprintf(c.stderr, "%d) %s\n", i+1, x.text)
		}
		answer, err := c.ask("q) quit\n> ")
		if err != nil {
			return err
		}
		n, isNumber := choiceOf(answer, len(choices))
		switch {
		case answer == "q" || answer == "":
			return nil
		case !isNumber:
			fmt.Fprintf(c.stderr, "%q is none of these.\n", answer)
			continue
		}
		err = choices[n].do(ctx, api, w, f)
		var silent *reported
		switch {
		case errors.Is(err, errKept):
			fmt.Fprintln(c.stderr, "Nothing was removed.")
		case errors.As(err, &silent): // it was printed why
		case err != nil:
			return err
		}
		fmt.Fprintln(c.stderr)
	}
}

// choiceOf reads the number of one of n things.
func choiceOf(answer string, n int) (int, bool) {
	i, err := strconv.Atoi(answer)
	return i - 1, err == nil && i >= 1 && i <= n
}

func (c *cli) pruneOne(ctx context.Context, api *client.Client, w work, f removalFlags) error {
	limit := 10000
	page, err := api.Backups(ctx, gen.ListBackupsParams{Limit: &limit})
	if err != nil {
		return err
	}
	rows := [][]string{{"", "KEY", "TYPE", "STORED", "CONSISTENT"}}
	for i, b := range page.Backups {
		rows = append(rows, []string{fmt.Sprintf("%d)", i+1), shortKey(b), string(b.Type), size(b.OwnBytes), yesNo(b.Consistent)})
	}
	table(c.stdout, rows)
	answer, err := c.ask("Which one? (number or key; nothing: none) ")
	if err != nil || answer == "" {
		return err
	}
	if n, isNumber := choiceOf(answer, len(page.Backups)); isNumber {
		answer = page.Backups[n].Key
	}
	return c.remove(ctx, api, w, f, deletion(api, answer, w, f))
}

func (c *cli) pruneOld(ctx context.Context, api *client.Client, w work, f removalFlags) error {
	answer, err := c.ask("How many full backups are to be kept? (nothing: as many as are set) ")
	if err != nil {
		return err
	}
	keep, _ := strconv.Atoi(answer) // 0 where it is none
	if answer != "" && keep < 1 {
		fmt.Fprintf(c.stderr, "%q is no number of backups.\n", answer)
		return nil
	}
	return c.remove(ctx, api, w, f, retention(api, keep, w, f))
}

func (c *cli) backupSize() *cobra.Command {
	return &cobra.Command{
		Use:   "size",
		Short: "Show what the backups take",
		Long: `Show what each backup takes, what the archived WAL takes, what is added a day, and
how long the disk lasts at that rate where nothing is removed.

` + exitCodeHelp,
		Example: `  controld backup size
  controld backup size -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.client()
			if err != nil {
				return err
			}
			u, err := api.BackupUsage(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(u, func(w io.Writer) { writeUsage(w, u) })
		},
	}
}

func writeUsage(w io.Writer, u gen.BackupUsage) {
	rows := [][]string{{"KEY", "TYPE", "STORED", "WITH ALL IT NEEDS", "DATABASE"}}
	for _, b := range u.Backups {
		rows = append(rows, []string{
			strings.TrimPrefix(b.Key, "backup:"), string(b.Type), size(b.OwnBytes), size(b.RepositoryBytes), size(b.DatabaseBytes),
		})
	}
	table(w, rows)
	fmt.Fprintf(w, "\nbackups  %s\nWAL      %s\ntogether %s\n", size(u.BackupsBytes), size(u.ArchiveBytes), size(u.TotalBytes))
	fmt.Fprintf(w, "added    %s a day\n", size(u.GrowthBytesPerDay))
	if u.FreeBytes != nil && u.DiskBytes != nil {
		fmt.Fprintf(w, "free     %s of %s\n", size(*u.FreeBytes), size(*u.DiskBytes))
	}
	if u.DaysLeft != nil {
		fmt.Fprintf(w, "lasts    %.0f days at that rate, where nothing is removed\n", *u.DaysLeft)
	}
}
