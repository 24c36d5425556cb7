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
	"controld/internal/client"
)

// status is everything that controld status shows.
type status struct {
	Health  gen.Health     `json:"health"`
	Cluster gen.Cluster    `json:"cluster"`
	Last    *gen.Operation `json:"last_operation,omitempty"`
}

func (c *cli) statusCommand() *cobra.Command {
	var watch bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster, and what needs a person",
		Long: `Show the nodes, the pooler, everything that needs a person with what to do about
it, and the last operation.

` + exitCodeHelp,
		Example: `  controld status
  controld status --watch
  controld status -o json | jq -r .cluster.primary`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.client()
			if err != nil {
				return err
			}
			if watch {
				return c.watch(cmd.Context(), api, interval)
			}
			s, err := readStatus(cmd.Context(), api)
			if err != nil {
				return err
			}
			if err := c.printStatus(s); err != nil {
				return err
			}
			if s.Health.Status == "down" {
				return &reported{exitError}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again, until interrupted")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "how often, with --watch")
	return cmd
}

func readStatus(ctx context.Context, api *client.Client) (status, error) {
	var s status
	var err error
	if s.Cluster, err = api.Cluster(ctx); err != nil {
		return s, err
	}
	if s.Health, err = api.Health(ctx); err != nil {
		return s, err
	}
	one := 1
	last, err := api.Operations(ctx, gen.ListOperationsParams{Limit: &one})
	if err != nil {
		return s, err
	}
	if len(last.Operations) > 0 {
		s.Last = &last.Operations[0]
	}
	return s, nil
}

func (c *cli) printStatus(s status) error {
	return c.print(s, func(w io.Writer) { c.writeStatus(w, s) })
}

// watch goes on when the daemon does not answer for a while: that is what one
// watches for.
func (c *cli) watch(ctx context.Context, api *client.Client, interval time.Duration) error {
	tick := time.NewTicker(max(interval, 100*time.Millisecond))
	defer tick.Stop()
	for {
		s, err := readStatus(ctx, api)
		if ctx.Err() != nil {
			return nil
		}
		if code := exitCode(err); err != nil && code != exitUnreachable {
			return err
		}
		if c.terminal && c.output == "table" {
			fmt.Fprint(c.stdout, "\x1b[H\x1b[2J")
		}
		if err != nil {
			fmt.Fprintf(c.stdout, "%s\n", err)
		} else if err := c.printStatus(s); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (c *cli) writeStatus(w io.Writer, s status) {
	seen := "nothing was observed yet"
	if s.Health.ObservedAt != nil {
		seen = "observed " + c.ago(*s.Health.ObservedAt)
	}
	fmt.Fprintf(w, "health   %s (%s)\n", s.Health.Status, seen)
	fmt.Fprintf(w, "primary  %s%s\n\n", noneIf(s.Cluster.Primary), preferred(s.Cluster))
	rows := [][]string{{"NODE", "ROLE", "TIMELINE", "LAG", "STATE", "ORDER", "SYNC"}}
	for _, n := range s.Cluster.Nodes {
		rows = append(rows, []string{n.Name, string(n.Role), timeline(n), lag(n), nodeState(n), order(n), text(n.SyncState)})
	}
	table(w, rows)
	fmt.Fprintf(w, "\npooler   %s\n", poolerLine(s.Cluster.Pooler))
	c.writeProblems(w, s.Health)
	if s.Last != nil {
		fmt.Fprintf(w, "\nlast     %s %s%s, %s (%s)\n", title(*s.Last), state(*s.Last), held(*s.Last), c.ago(s.Last.StartedAt), s.Last.ID)
	}
}

func (c *cli) writeProblems(w io.Writer, h gen.Health) {
	if h.Status == "ok" {
		return
	}
	fmt.Fprintln(w, "\nneeds attention")
	for _, component := range h.Components {
		if component.Status == "ok" {
			continue
		}
		fmt.Fprintf(w, "  %s is %s: %s (%s)\n", component.Name, component.Status, text(component.Detail), text(component.Reason))
		if component.Do != nil {
			fmt.Fprintf(w, "      %s\n", *component.Do)
		}
	}
	if h.Operation != nil {
		fmt.Fprintf(w, "  operation %s is under way: controld operations follow %s\n", *h.Operation, *h.Operation)
	}
}

func noneIf(s *string) string {
	if s == nil {
		return "none"
	}
	return *s
}

func preferred(c gen.Cluster) string {
	switch {
	case c.Primary == nil:
		return ""
	case *c.Primary == c.PreferredPrimary:
		return " (the preferred one)"
	}
	return fmt.Sprintf(" (preferred: %s; controld failback returns there)", c.PreferredPrimary)
}

func timeline(n gen.Node) string {
	if n.Timeline == nil {
		return "-"
	}
	return strconv.FormatInt(*n.Timeline, 10)
}

func lag(n gen.Node) string {
	if n.Role != "standby" {
		return "-"
	}
	bytes := "unknown"
	if n.LagBytes != nil {
		bytes = size(*n.LagBytes)
	}
	return bytes + ", " + span(time.Duration(gen.Value(n.LagMs))*time.Millisecond)
}

// nodeState is the one word that matters most.
func nodeState(n gen.Node) string {
	switch {
	case !n.Container.Running:
		return "container " + n.Container.State
	case n.Container.Paused:
		return "container frozen"
	case n.Init.State == "working":
		return "working: " + n.Order.Action
	case n.Receiver != nil:
		return n.Receiver.Status
	case n.Role == "standby":
		return "not streaming"
	case n.Role == "primary":
		return "running"
	case n.Fenced:
		return "fenced"
	case n.Init.State != "":
		return n.Init.State
	}
	return "unknown"
}

func order(n gen.Node) string {
	if n.Order.Epoch == 0 {
		return "-"
	}
	role := n.Order.Role
	if n.Fenced {
		role = "withdrawn"
	}
	return fmt.Sprintf("%s #%d", role, n.Order.Epoch)
}

func poolerLine(p gen.Pooler) string {
	if p.ObservedAt == nil {
		return "was not observed yet"
	}
	if !p.Answers {
		return "does not answer: " + text(p.Error)
	}
	var entries []string
	for _, d := range p.Databases {
		to := d.Host
		if d.Node != nil {
			to = *d.Node
		}
		if to == "" {
			to = "nowhere"
		}
		entry := d.Name + " -> " + to
		if d.Paused {
			entry += " (paused)"
		}
		entries = append(entries, entry)
	}
	return strings.Join(entries, ", ")
}

func held(op gen.Operation) string {
	if p := pause(gen.Value(op.Result)); p != "-" {
		return ", clients held for " + p
	}
	return ""
}
