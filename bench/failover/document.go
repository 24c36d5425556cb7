package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"controld/internal/probe"
)

// The section of the file that this program owns. What stands around it stays.
const (
	sectionStart = "<!-- bench-failover -->"
	sectionEnd   = "<!-- /bench-failover -->"
)

// skeleton is the file where there is none.
const skeleton = `# Benchmarks

Each section is written by the program that its last line names; text outside the marked sections is kept.

## Failover

` + sectionStart + "\n" + sectionEnd + "\n"

// A document is what one sitting found.
type document struct {
	machine  []string
	versions []string
	series   []*series
	idle     idle
}

// add takes a series that has runs.
func (d *document) add(s *series) {
	if len(s.results) > 0 {
		d.series = append(d.series, s)
	}
}

// verdict returns what did not hold. How good the figures are is for the reader to say.
func (d *document) verdict() error {
	var errs []error
	for _, s := range d.series {
		for i, r := range s.results {
			if len(r.problems) > 0 {
				errs = append(errs, fmt.Errorf("%s, run %d: %w", s.name, i+1, errors.Join(r.problems...)))
			}
		}
	}
	if cost := d.idle.cost(); cost > idleLimit {
		errs = append(errs, fmt.Errorf("idle, controld costs %.2f %% of a core, the limit is %.0f %%", 100*cost, 100*idleLimit))
	}
	return errors.Join(errs...)
}

func (d *document) render() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured %s on %s.\n", time.Now().UTC().Format("2006-01-02 15:04 UTC"), strings.Join(d.machine, ", "))
	for _, v := range d.versions {
		fmt.Fprintf(&b, "%s.\n", v)
	}
	fmt.Fprintf(&b, "\n%s\n", explanation)
	d.renderFigures(&b)
	d.renderRatio(&b)
	d.renderPause(&b)
	d.renderSteps(&b)
	d.idle.render(&b)
	fmt.Fprintf(&b, "\nReproduce: `make bench-failover`; this sitting: `%s`\n", commandLine())
	return b.String()
}

const explanation = `Eight clients write one small transaction every 20 ms each, without retries. Planned and peer: the outage, which is the
longest time between two successive acknowledged commits of all clients together. Emergency: the primary's container is
killed, then the time from the HTTP call to the first acknowledged commit. U is the median of 40 direct connects (SCRAM),
` + "`select 1`" + ` and close on the idle primary, just before the series. Failed: transactions that got an error and connects that
failed, in all runs together; behind it the most on one connection in one run, in an emergency counted from the call on.
Wrong: runs in which an acknowledged commit was lost, a row doubled, or anything else did not hold.
`

func (d *document) renderFigures(b *strings.Builder) {
	b.WriteString("| | runs | U ms | median ms | p95 ms | max ms | median U | p95 U | max U |" +
		" failed transactions | failed connects | wrong |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range d.series {
		values := s.values(s.figure)
		runs := fmt.Sprint(len(values))
		if s.refused > 0 {
			runs += fmt.Sprintf(", %d refused", s.refused)
		}
		fmt.Fprintf(b, "| %s | %s | %s |", s.name, runs, millis(s.unit))
		for _, q := range quantiles {
			fmt.Fprintf(b, " %s |", millis(probe.Quantile(values, q)))
		}
		for _, q := range quantiles {
			fmt.Fprintf(b, " %.1f |", units(probe.Quantile(values, q), s.unit))
		}
		fmt.Fprintf(b, " %d (%d) | %d | %d |\n", s.sum(failed), s.most(failedPerConnection), s.sum(failedConnects), s.sum(wrong))
	}
}

var quantiles = []float64{0.5, 0.95, 1}

func failed(r result) int              { return r.whole.Failed }
func failedPerConnection(r result) int { return r.since.FailedPerConnection }
func failedConnects(r result) int      { return r.whole.FailedConnects }
func wrong(r result) int               { return min(len(r.problems), 1) }

// renderRatio sets the planned series beside the peer's median.
func (d *document) renderRatio(b *strings.Builder) {
	var peer *series
	for _, s := range d.series {
		if s.peer {
			peer = s
		}
	}
	if peer == nil {
		return
	}
	theirs := probe.Quantile(peer.values(peer.figure), 0.5)
	for _, s := range d.series {
		if s.peer || !s.planned {
			continue
		}
		ours := probe.Quantile(s.values(s.figure), 0.5)
		fmt.Fprintf(b, "\n%s: the peer's median outage is %.1f times as long.\n", s.name, float64(theirs)/float64(ours))
	}
}

// renderPause sets what the clients saw of planned failovers beside what the API
// reports of them.
func (d *document) renderPause(b *strings.Builder) {
	title := false
	for _, s := range d.series {
		if s.peer || !s.planned {
			continue
		}
		if !title {
			b.WriteString("\n| medians, ms | `pause_ms` | outage beyond it | RESUME → first commit | RESUME → old primary streams |" +
				" the same in U | longest transaction | longest new connection (max) |\n")
			b.WriteString("|---|---|---|---|---|---|---|---|\n")
			title = true
		}
		streams := probe.Quantile(s.values(streaming), 0.5)
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %.1f | %s | %s |\n", s.name,
			millis(probe.Quantile(s.values(pause), 0.5)), millis(probe.Quantile(s.values(overhang), 0.5)),
			millis(probe.Quantile(s.values(letGo), 0.5)),
			millis(streams), units(streams, s.unit),
			millis(probe.Quantile(s.values(longest), 0.5)), millis(probe.Quantile(s.values(opening), 1)))
	}
}

// letGo is the time from RESUME to the first commit.
func letGo(r result) time.Duration {
	if r.resumed.IsZero() {
		return 0
	}
	return r.whole.Outage.To.Sub(r.resumed)
}

func pause(r result) time.Duration     { return r.pause }
func streaming(r result) time.Duration { return r.streaming }
func overhang(r result) time.Duration  { return outage(r) - r.pause }
func longest(r result) time.Duration   { return r.whole.Max }
func opening(r result) time.Duration   { return r.whole.OpeningMax }

func (d *document) renderSteps(b *strings.Builder) {
	for _, s := range d.series {
		steps := s.stepMedians()
		if len(steps) == 0 {
			continue
		}
		fmt.Fprintf(b, "\nSteps of \"%s\" as the operation records them, medians in ms: ", s.name)
		for i, st := range steps {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(b, "%s %.1f", st.name, float64(st.took)/float64(time.Millisecond))
		}
		b.WriteString(".\n")
	}
}

// millis prints a duration as ms, with a decimal only where it tells something.
func millis(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms < 100 {
		return fmt.Sprintf("%.1f", ms)
	}
	return fmt.Sprintf("%.0f", ms)
}

func units(d, unit time.Duration) float64 {
	if unit == 0 {
		return 0
	}
	return float64(d) / float64(unit)
}

func commandLine() string {
	return strings.TrimSpace("go run ./bench/failover " + strings.Join(os.Args[1:], " "))
}

// writeSection replaces the program's own section of the file.
func writeSection(path, section string) error {
	old, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		old, err = []byte(skeleton), os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err != nil {
		return fmt.Errorf("write benchmarks: %w", err)
	}
	text, err := replaceSection(string(old), section)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// replaceSection appends the section where the text has none yet.
func replaceSection(text, section string) (string, error) {
	before, rest, found := strings.Cut(text, sectionStart)
	if !found {
		return strings.TrimRight(text, "\n") + "\n\n" + sectionStart + "\n" + section + sectionEnd + "\n", nil
	}
	_, after, found := strings.Cut(rest, sectionEnd)
	if !found {
		return "", fmt.Errorf("%s is not followed by %s", sectionStart, sectionEnd)
	}
	return before + sectionStart + "\n" + section + sectionEnd + after, nil
}
