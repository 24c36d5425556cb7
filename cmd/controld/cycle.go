package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"controld/internal/api/gen"
)

func (c *cli) backupDay() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "day N",
		Short: "Make the backups of a day of the cycle",
		Long: `Make the backups of a day of the cycle by hand: what it makes, controld backup
cycle lists. The cycle moves with it, and its next planned run makes the day after
this one; with --keep-cycle it stays where it is. Asked for while the same day is
being made, it follows that one.

` + exitCodeHelp,
		Example: `  controld backup day 1
  controld backup day 3 --keep-cycle`,
		Args: cobra.ExactArgs(1),
	}
	w := c.workFlags(cmd)
	cmd.Flags().BoolVar(&keep, "keep-cycle", false, "the cycle stays where it is")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		day, err := strconv.Atoi(args[0])
		if err != nil || day < 1 {
			return &usageError{fmt.Errorf("%q is no day of the cycle: write its number, such as 1", args[0])}
		}
		api, err := c.client()
		if err != nil {
			return err
		}
		r := gen.DayRequest{Reason: gen.Optional(w.reason), KeepCycle: gen.Optional(keep), CancelRunning: gen.Optional(w.cancelRunning)}
		return c.carryOut(cmd.Context(), api, *w, func(ctx context.Context) (gen.Operation, error) {
			return api.StartDay(ctx, day, r, w.key)
		})
	}
	return cmd
}

func (c *cli) backupCycle() *cobra.Command {
	return &cobra.Command{
		Use:   "cycle",
		Short: "Show the cycle of backups, and what comes next",
		Long: `Show what each day of the cycle makes, which was made last, and when the next one
is planned.

` + exitCodeHelp,
		Example: `  controld backup cycle
  controld backup cycle -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.client()
			if err != nil {
				return err
			}
			cycle, err := api.Cycle(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(cycle, func(w io.Writer) { writeCycle(w, cycle) })
		},
	}
}

func writeCycle(w io.Writer, g gen.Cycle) {
	rows := [][]string{{"DAY", "MAKES", ""}}
	for _, d := range g.Days {
		var marks []string
		if g.Last != nil && g.Last.Day == d.Day {
			marks = append(marks, "made last"+when(", ended ", g.Last.EndedAt))
		}
		if g.Due != nil && g.Due.Day == d.Day {
			marks = append(marks, "due since "+g.Due.At.UTC().Format(time.RFC3339))
		}
		if g.Next != nil && g.Next.Day == d.Day {
			marks = append(marks, "next, at "+g.Next.At.UTC().Format(time.RFC3339))
		}
		rows = append(rows, []string{strconv.Itoa(d.Day), typeNames(d.Types), strings.Join(marks, "; ")})
	}
	table(w, rows)
	fmt.Fprintln(w)
	if g.Running != nil {
		fmt.Fprintf(w, "A day is being made: controld operations follow %s\n", *g.Running)
	}
	if g.Due != nil && g.Due.Missed != nil {
		fmt.Fprintf(w, "%d planned before the one that is due were missed: it makes %s, the strongest of them.\n",
			*g.Due.Missed, typeNames(g.Due.Types))
	}
	if f := g.Failing; f != nil {
		fmt.Fprintf(w, "Day %d fails, and is tried again (%d times since %s): %s\n",
			f.Day, f.Attempts, f.Since.UTC().Format(time.RFC3339), f.Detail)
	}
	if g.Next == nil {
		fmt.Fprintln(w, "Nothing is made by itself: the schedule is off. By hand: controld backup day 1")
		return
	}
	fmt.Fprintf(w, "Schedule %q in zone %s.\n", g.Schedule, g.Zone)
}

func when(before string, at *time.Time) string {
	if at == nil {
		return ""
	}
	return before + at.UTC().Format(time.RFC3339)
}

func typeNames(types []gen.BackupType) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = string(t)
	}
	return strings.Join(names, ", then ")
}
