package operation

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of claims into docs/operations.md")

const (
	page       = "../../docs/operations.md"
	tableBegin = "<!-- the table of claims: go test ./internal/operation -run TestThePageHasTheTable -update -->\n"
	tableEnd   = "<!-- its end -->\n"
)

// TestThePageHasTheTable: what people read about who excludes whom is what the
// daemon does.
func TestThePageHasTheTable(t *testing.T) {
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(data), tableBegin)
	old, after, ended := strings.Cut(rest, tableEnd)
	if !found || !ended {
		t.Fatalf("%s has no place for the table of claims", page)
	}
	table := "\n" + rendered(Claims) + "\n"
	if old == table {
		return
	}
	if !*update {
		t.Fatalf("%s has another table of claims than the program; run go test ./internal/operation -run %s -update", page, t.Name())
	}
	if err := os.WriteFile(page, []byte(before+tableBegin+table+tableEnd+after), 0o644); err != nil { //nolint:gosec // a page of the docs
		t.Fatal(err)
	}
}

// rendered is the table in Markdown.
func rendered(t Table) string {
	var b strings.Builder
	b.WriteString("| kind | claims for itself | shared | gives way | cancelled for another | at a stop of controld |\n")
	b.WriteString("|---|---|---|---|---|---|\n")
	for _, r := range t {
		var ways []string
		for _, y := range r.Yields {
			ways = append(ways, way(y))
		}
		stop := "finishes, or is undone"
		if r.Restartable {
			stop = "left at once, and gone on with"
		}
		kind := "`" + r.Kind + "`"
		if len(r.Modes) > 0 {
			kind += " (" + strings.Join(r.Modes, ", ") + ")"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", kind, names(r.Exclusive), names(r.Shared),
			cmp.Or(strings.Join(ways, "; "), "-"), cmp.Or(r.CancelCosts, "no"), stop)
	}
	return b.String()
}

func names(rs []Resource) string {
	var out []string
	for _, r := range rs {
		out = append(out, string(r))
	}
	return cmp.Or(strings.Join(out, ", "), "-")
}

// way is a rule in words.
func way(y Yield) string {
	what := cmp.Or(y.To, "anything")
	if y.Mode != "" {
		what = y.Mode + " " + what
	}
	if y.From != "" {
		what += " that " + who(y.From) + " asks for"
	}
	text := "to " + what + ": "
	switch y.How {
	case AnswerCancel:
		text += "it is cancelled"
	case AnswerWait:
		text += "that waits for its end"
		if y.Within > 0 {
			text += fmt.Sprintf(", %s at the most", y.Within)
		}
	case AnswerRefuse:
		text += "that is refused"
	}
	if y.Of != "" {
		text += ", where " + who(y.Of) + " has begun it"
	}
	if y.When != "" {
		text += ", where " + string(y.When)
	}
	return text
}

func who(k CallerKind) string {
	return map[CallerKind]string{Person: "a person", Daemon: "controld itself", Scheduler: "the scheduler"}[k]
}
