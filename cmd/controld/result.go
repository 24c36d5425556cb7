package main

import (
	"fmt"
	"io"

	"controld/internal/api/gen"
	"controld/internal/client"
)

// ended reports whether work on the operation has ended. Its state alone does not
// say so: incomplete is what is being retried, and what was given up.
func ended(op gen.Operation) bool { return op.EndedAt != nil }

// state is the operation's state in words.
func state(op gen.Operation) string {
	if op.State == gen.OperationStateIncomplete && ended(op) {
		return "incomplete (given up)"
	}
	return string(op.State)
}

// printResult writes how an operation stands; the exit code says it too.
func (c *cli) printResult(op gen.Operation) error {
	if err := c.print(op, func(w io.Writer) { writeResult(w, op) }); err != nil {
		return err
	}
	if code := operationCode(op.State); code != exitOK {
		return &reported{code}
	}
	return nil
}

func writeResult(w io.Writer, op gen.Operation) {
	fmt.Fprintf(w, "%s %s%s\n", title(op), state(op), took(op))
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

func title(op gen.Operation) string { return kindAndMode(op.Kind, gen.Value(op.Mode)) }

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
