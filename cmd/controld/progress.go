package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"

	"controld/internal/api/gen"
)

// progress shows the steps of an operation: on a terminal the one that runs
// stands on the last line, with a bar where it tells how far it has come, and is
// overwritten; elsewhere a line is written when one has ended, and now and then of a
// long one.
type progress struct {
	w        io.Writer
	terminal bool
	silent   bool
	written  map[string]string // step to the state in which it was written
	drawn    int               // length of the line that is overwritten
	bar      *progressbar.ProgressBar
	told     time.Time // when a line about a long step was written
}

// tellEvery is how often the progress of a long step is written where there is no
// terminal.
const tellEvery = 10 * time.Second

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
		fmt.Fprintf(p.w, "  %-8s %8s  %s%s\n", state, span(fromMS(gen.Value(st.DurationMs))), st.Name, because(st.Error))
	}
	switch {
	case op.WaitsFor != nil && !ended(op):
		p.line("  ...               waits for operation " + *op.WaitsFor)
	case runs == "":
	case op.Progress != nil:
		p.showProgress(runs, *op.Progress)
	default:
		p.line("  ...               " + runs)
	}
}

// line is the last one, on a terminal.
func (p *progress) line(text string) {
	if !p.terminal {
		return
	}
	p.clear()
	fmt.Fprint(p.w, text)
	p.drawn = len(text)
}

// showProgress draws the bar of a step, or writes a line about it.
func (p *progress) showProgress(step string, far gen.Progress) {
	text := fmt.Sprintf("%s: %s", step, howFar(far))
	if !p.terminal {
		if now := time.Now(); now.Sub(p.told) >= tellEvery {
			p.told = now
			fmt.Fprintln(p.w, "  ...      "+text)
		}
		return
	}
	if gen.Value(far.Total) == 0 { // a bar would be a guess
		p.line("  ...               " + text)
		return
	}
	if p.bar == nil {
		p.clear()
		p.bar = progressbar.NewOptions64(*far.Total, progressbar.OptionSetWriter(p.w), progressbar.OptionSetWidth(24),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false), progressbar.OptionThrottle(0))
	}
	p.bar.ChangeMax64(max(*far.Total, far.Done+1)) // at its maximum it would end the line
	p.bar.Describe("  " + text)
	_ = p.bar.Set64(far.Done) // what cannot be drawn is not needed
}

// howFar is progress in words: what is not known is left out.
func howFar(p gen.Progress) string {
	amount := func(n int64) string { return fmt.Sprintf("%d %s", n, p.Unit) }
	if p.Unit == "bytes" {
		amount = size
	}
	parts := []string{amount(p.Done)}
	if total := gen.Value(p.Total); total > 0 {
		parts[0] += " of " + amount(total)
	}
	if rate := gen.Value(p.Rate); rate > 0 {
		parts = append(parts, amount(int64(rate))+"/s")
	}
	if eta := gen.Value(p.EtaMs); eta > 0 {
		parts = append(parts, span(fromMS(eta))+" left")
	}
	return p.Phase + " " + strings.Join(parts, ", ")
}

func because(err *string) string {
	if err == nil {
		return ""
	}
	return ": " + *err
}

func (p *progress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
		p.bar = nil
	}
	if p.drawn > 0 {
		fmt.Fprint(p.w, "\r"+strings.Repeat(" ", p.drawn)+"\r")
		p.drawn = 0
	}
}

func (p *progress) end() { p.clear() }
