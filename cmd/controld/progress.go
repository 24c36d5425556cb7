package main

import (
	"fmt"
	"io"
	"strings"

	"controld/internal/api/gen"
)

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
