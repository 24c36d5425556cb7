package main

import (
	"fmt"
	"io"

	"controld/internal/api/gen"
	"controld/internal/client"
)

// printPlan prints a dry run; the exit code says too whether it would run.
func (c *cli) printPlan(p gen.Plan) error {
	if err := c.print(p, func(w io.Writer) { writePlan(w, p) }); err != nil {
		return err
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
