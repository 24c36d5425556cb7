package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"controld/internal/api/gen"
	"controld/internal/client"
)

// await follows an operation that was started until it runs no longer, shows
// its steps, and prints how it ended.
func (c *cli) await(ctx context.Context, api *client.Client, op gen.Operation) error {
	if op.State == "running" {
		p := newProgress(c)
		ended, err := api.Follow(ctx, op.ID, func(o gen.Operation) bool { return o.State != "running" }, p.show)
		p.end()
		if err != nil {
			if ctx.Err() != nil {
				fmt.Fprintf(c.stderr, "The operation goes on without you. See it: controld operations follow %s\n", op.ID)
			}
			return err
		}
		op = ended
	}
	return c.printResult(op)
}

// printResult writes how an operation stands; the exit code says it too.
func (c *cli) printResult(op gen.Operation) error {
	if c.output == "json" {
		if err := c.printJSON(op); err != nil {
			return err
		}
	} else {
		writeResult(c.stdout, op)
	}
	if code := operationCode(op.State); code != exitOK {
		return &reported{code}
	}
	return nil
}

func writeResult(w io.Writer, op gen.Operation) {
	fmt.Fprintf(w, "%s %s%s\n", title(op), op.State, took(op))
	result := map[string]any{}
	if op.Result != nil {
		result = *op.Result
	}
	if already, ok := result["already"].(string); ok {
		fmt.Fprintf(w, "  nothing to do: %s\n", already)
	}
	if result["from"] != nil && result["to"] != nil {
		fmt.Fprintf(w, "  primary: %v -> %v\n", result["from"], result["to"])
	}
	if p := pause(result); p != "-" {
		fmt.Fprintf(w, "  clients were held for %s\n", p)
	}
	if lost, ok := result["lost_bytes"].(float64); ok {
		fmt.Fprintf(w, "  lost: %s%s\n", size(int64(lost)), estimated(result["estimate"] == true))
	}
	rest := map[string]any{}
	for name, v := range result {
		switch name {
		case "from", "to", "pause_ms", "lost_bytes", "estimate", "already":
		default:
			rest[name] = v
		}
	}
	if len(rest) > 0 {
		fmt.Fprintf(w, "  %s\n", client.Numbers(rest))
	}
	if op.Problem != nil {
		writeCause(w, *op.Problem)
	}
	if op.FollowedBy != nil {
		fmt.Fprintf(w, "  goes on as: %s\n", *op.FollowedBy)
	}
	fmt.Fprintf(w, "  id: %s\n", op.ID)
}

func writeCause(w io.Writer, cause gen.Cause) {
	fmt.Fprintf(w, "  why: %s\n  type: %s\n", cause.Detail, cause.Type)
	if cause.Numbers != nil {
		fmt.Fprintf(w, "  numbers: %s\n", client.Numbers(*cause.Numbers))
	}
}

func estimated(yes bool) string {
	if yes {
		return " at the most (an estimate: it could not be measured)"
	}
	return ""
}

func title(op gen.Operation) string { return kindAndMode(op.Kind, deref(op.Mode)) }

// kindAndMode is the kind alone where no mode was chosen.
func kindAndMode(kind, mode string) string {
	if mode == "" {
		return kind
	}
	return kind + " (" + mode + ")"
}

func took(op gen.Operation) string {
	if op.EndedAt == nil {
		return ""
	}
	return " in " + span(op.EndedAt.Sub(op.StartedAt))
}

// progress shows the steps of an operation: on a terminal the one that runs
// stands on the last line and is overwritten, elsewhere a line is written when
// one has ended.
type progress struct {
	w        io.Writer
	terminal bool
	silent   bool
	written  map[string]string // step to the state in which it was written
	drawn    int               // length of the line that is overwritten
}

func newProgress(c *cli) *progress {
	return &progress{w: c.stderr, terminal: c.terminal, silent: c.output == "json" && !c.terminal, written: map[string]string{}}
}

func (p *progress) show(op gen.Operation) {
	if p.silent {
		return
	}
	runs := ""
	for i, st := range op.Steps {
		name := fmt.Sprintf("%d %s", i, st.Name)
		state := string(st.State)
		switch state {
		case "pending":
			continue
		case "running":
			runs = st.Name
			continue
		}
		if p.written[name] == state {
			continue
		}
		p.written[name] = state
		p.clear()
		fmt.Fprintf(p.w, "  %-8s %8s  %s%s\n", state, span(fromMS(deref(st.DurationMs))), st.Name, because(st.Error))
	}
	if p.terminal && runs != "" {
		p.clear()
		line := "  ...               " + runs
		fmt.Fprint(p.w, line)
		p.drawn = len(line)
	}
}

func because(err *string) string {
	if err == nil {
		return ""
	}
	return ": " + *err
}

func (p *progress) clear() {
	if p.drawn > 0 {
		fmt.Fprint(p.w, "\r"+strings.Repeat(" ", p.drawn)+"\r")
		p.drawn = 0
	}
}

func (p *progress) end() { p.clear() }

// writePlan prints a dry run.
func (c *cli) printPlan(p gen.Plan) error {
	if c.output == "json" {
		if err := c.printJSON(p); err != nil {
			return err
		}
	} else {
		writePlan(c.stdout, p)
	}
	if !p.WouldRun {
		return &reported{exitRefused}
	}
	return nil
}

func writePlan(w io.Writer, p gen.Plan) {
	fmt.Fprintf(w, "dry run: %s %s -> %s; nothing was changed\n\n", kindAndMode(p.Kind, p.Mode), text(p.From), text(p.To))
	rows := [][]string{{"CHECK", "", "FOUND"}}
	for _, check := range p.Checks {
		verdict := "ok"
		if !check.Ok {
			verdict = "REFUSES"
		}
		found := check.Detail
		if check.Numbers != nil {
			found += " (" + client.Numbers(*check.Numbers) + ")"
		}
		rows = append(rows, []string{check.Name, verdict, found})
	}
	table(w, rows)
	fmt.Fprintln(w)
	for i, step := range p.Steps {
		fmt.Fprintf(w, "%3d. %s\n", i+1, step)
	}
	switch {
	case p.WouldRun && len(p.Steps) == 0:
		fmt.Fprintln(w, "There is nothing to do.")
		return
	case p.WouldRun:
		fmt.Fprintln(w, "\nIt would run.")
		return
	}
	fmt.Fprintln(w, "\nIt would be refused.")
	if p.Refusal != nil {
		writeCause(w, *p.Refusal)
	}
}

// started prints an operation that nobody waits for.
func (c *cli) started(op gen.Operation) error {
	if c.output == "json" {
		return c.printJSON(op)
	}
	fmt.Fprintf(c.stdout, "%s %s\n  follow it: controld operations follow %s\n", title(op), op.State, op.ID)
	return nil
}

// work is what the commands that start an operation share: the reason, the
// key, and whether to wait.
type work struct {
	reason  string
	key     string
	noWait  bool
	timeout time.Duration
}

func (c *cli) finish(ctx context.Context, api *client.Client, w work, op gen.Operation) error {
	if w.noWait {
		return c.started(op)
	}
	if w.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, w.timeout, errors.New("--timeout"))
		defer cancel()
	}
	return c.await(ctx, api, op)
}
