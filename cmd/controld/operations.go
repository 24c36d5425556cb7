package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"controld/internal/api/gen"
)

func (c *cli) operationsCommand() *cobra.Command {
	list := c.operationsList()
	cmd := &cobra.Command{
		Use:     "operations",
		Aliases: []string{"ops"},
		Short:   "See every operation, follow or cancel one",
		Long: `Every operation that was ever asked for is kept, refused ones too: who, when, why,
from where to where, the pause and what was lost. Without a subcommand they are listed.

` + readExitHelp + exitCodeHelp,
		Example: `  controld operations
  controld operations list --kind failover --limit 5
  controld operations show 01954d0e-7b1a-7c3e-9f00-0a1b2c3d4e5f
  controld operations follow 01954d0e-7b1a-7c3e-9f00-0a1b2c3d4e5f
  controld operations cancel 01954d0e-7b1a-7c3e-9f00-0a1b2c3d4e5f`,
		Args: cobra.NoArgs,
		RunE: list.RunE,
	}
	cmd.Flags().AddFlagSet(list.Flags())
	cmd.AddCommand(list, c.operationsShow(), c.operationsFollow(), c.operationsCancel())
	return cmd
}

// readExitHelp stands before the exit codes of commands that only read.
const readExitHelp = `It ends with 0 when the operations could be read, however they ended.

`

func (c *cli) operationsList() *cobra.Command {
	var kind, state, after string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List operations, newest first",
		Long: `List operations, newest first.

` + readExitHelp + exitCodeHelp,
		Example: `  controld operations list
  controld operations list --state refused --limit 5
  controld operations list --kind failover -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.client()
			if err != nil {
				return err
			}
			page, err := api.Operations(cmd.Context(), gen.ListOperationsParams{
				Kind: gen.Optional(kind), State: gen.Optional(gen.OperationState(state)), Limit: &limit, After: gen.Optional(after),
			})
			if err != nil {
				return err
			}
			return c.print(page, func(w io.Writer) { writeOperations(w, page) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&kind, "kind", "", "only this kind: failover, failback, start, rejoin, ...")
	f.StringVar(&state, "state", "", "only this state: running, succeeded, refused, undone, incomplete or cancelled")
	f.IntVar(&limit, "limit", 20, "how many at the most")
	f.StringVar(&after, "after", "", "go on after this id, which the page before ended with")
	return cmd
}

func writeOperations(w io.Writer, page gen.OperationList) {
	if len(page.Operations) == 0 {
		fmt.Fprintln(w, "no operations")
		return
	}
	rows := [][]string{{"ID", "STARTED", "KIND", "MODE", "STATE", "FROM", "TO", "PAUSE", "LOST", "BY", "REASON"}}
	for _, op := range page.Operations {
		result := gen.Value(op.Result)
		rows = append(rows, []string{
			op.ID, op.StartedAt.UTC().Format(time.RFC3339), op.Kind, text(op.Mode), state(op),
			word(result["from"]), word(result["to"]), pause(result), lost(result), op.RequestedBy, text(op.Reason),
		})
	}
	table(w, rows)
	if page.Next != nil {
		fmt.Fprintf(w, "\nThere are more: controld operations list --after %s\n", *page.Next)
	}
}

func word(v any) string {
	if s, ok := v.(string); ok && s != "" {
		return s
	}
	return "-"
}

func pause(result map[string]any) string {
	if ms, ok := result["pause_ms"].(float64); ok {
		return span(fromMS(ms).Round(time.Millisecond))
	}
	return "-"
}

func lost(result map[string]any) string {
	bytes, ok := result["lost_bytes"].(float64)
	if !ok {
		return "-"
	}
	if result["estimate"] == true {
		return "<= " + size(int64(bytes))
	}
	return size(int64(bytes))
}

func (c *cli) operationsShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show one operation with its checks and steps",
		Long: `Show one operation with its checks and steps.

` + readExitHelp + exitCodeHelp,
		Example: `  controld operations show 01954d0e-7b1a-7c3e-9f00-0a1b2c3d4e5f`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.client()
			if err != nil {
				return err
			}
			op, err := api.Operation(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(op, func(w io.Writer) { writeOperation(w, op) })
		},
	}
}

func writeOperation(w io.Writer, op gen.Operation) {
	writeResult(w, op)
	fmt.Fprintf(w, "  asked for by %s at %s", op.RequestedBy, op.StartedAt.UTC().Format(time.RFC3339))
	if op.Reason != nil {
		fmt.Fprintf(w, ": %s", *op.Reason)
	}
	fmt.Fprintln(w)
	if op.Follows != nil {
		fmt.Fprintf(w, "  follows: %s\n", *op.Follows)
	}
	if op.Checks != nil {
		fmt.Fprintln(w)
		rows := [][]string{{"CHECK", "", "FOUND"}}
		for _, check := range *op.Checks {
			verdict := "ok"
			if !check.Ok {
				verdict = "REFUSED"
			}
			rows = append(rows, []string{check.Name, verdict, check.Detail})
		}
		table(w, rows)
	}
	if len(op.Steps) > 0 {
		fmt.Fprintln(w)
		rows := [][]string{{"STEP", "STATE", "TOOK", ""}}
		for _, st := range op.Steps {
			duration := "-"
			if st.DurationMs != nil {
				duration = span(fromMS(*st.DurationMs))
			}
			rows = append(rows, []string{st.Name, string(st.State), duration, gen.Value(st.Error)})
		}
		table(w, rows)
	}
}

func (c *cli) operationsFollow() *cobra.Command {
	return &cobra.Command{
		Use:   "follow ID",
		Short: "Show one operation's steps live until it has ended",
		Long: `Show one operation's steps live until it has ended. One that is incomplete is
followed while the daemon retries it, until it has succeeded or is given up.

` + exitCodeHelp,
		Example: `  controld operations follow 01954d0e-7b1a-7c3e-9f00-0a1b2c3d4e5f`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.client()
			if err != nil {
				return err
			}
			p := newProgress(c)
			op, err := api.Follow(cmd.Context(), args[0], ended, p.show)
			p.end()
			switch {
			case err == nil:
				return c.printResult(op)
			case cmd.Context().Err() != nil:
				return &unfinished{cause: cmd.Context().Err(), operation: args[0]}
			}
			return err
		},
	}
}

func (c *cli) operationsCancel() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel ID",
		Short: "Ask a running operation to stop and undo",
		Long: `Ask a running operation to stop. What was done is undone; past the point of no
return it is given up as it stands. A cancelled emergency failover leaves the old
primary's order withdrawn; where it was killed already nobody leads, and the
operation is incomplete.

It ends with 0 when the daemon has taken the request, and what is printed says what
became of the operation; with 3 when the operation had ended before.

` + exitCodeHelp,
		Example: `  controld operations cancel 01954d0e-7b1a-7c3e-9f00-0a1b2c3d4e5f`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.client()
			if err != nil {
				return err
			}
			op, err := api.Cancel(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(op, func(w io.Writer) { writeResult(w, op) })
		},
	}
}
