package main

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"controld/internal/probe"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const ms = time.Millisecond

// sample is a planned run whose clients stood still for outage.
func sample(pause, outage time.Duration) result {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	stats := probe.Stats{Acked: 100, Outage: probe.Stall{From: at, To: at.Add(outage)}, FirstCommit: outage,
		Max: outage + ms, Openings: 9, OpeningsHeld: 1, OpeningMax: outage - ms}
	return result{
		failover: failover{
			pause:     pause,
			resumed:   at.Add(outage - 8*ms),
			streaming: 500 * ms,
			steps:     []step{{"pause pooler", 5 * ms}, {"promote", pause / 2}},
		},
		since: stats,
		whole: stats,
	}
}

func TestRender(t *testing.T) {
	planned := &series{name: "planned", unit: 10 * ms, figure: outage, planned: true,
		results: []result{sample(80*ms, 95*ms), sample(100*ms, 120*ms), sample(90*ms, 111*ms)}}
	planned.results[1].problems = []error{errors.New("something did not hold")}
	emergency := &series{name: "emergency", unit: 10 * ms, figure: firstCommit, results: []result{sample(0, 200*ms)}}
	emergency.results[0].whole.Failed, emergency.results[0].since.FailedPerConnection = 8, 1
	peer := &series{name: "peer", unit: 8 * ms, figure: outage, planned: true, peer: true, results: []result{{}, {}}}
	peer.results[0].whole = probe.Stats{Failed: 8, FailedConnects: 70, Outage: sample(0, 1110*ms).whole.Outage}
	peer.results[1].whole = probe.Stats{Failed: 8, FailedConnects: 80, Outage: sample(0, 1500*ms).whole.Outage}
	doc := document{versions: []string{"PostgreSQL 15"}}
	for _, s := range []*series{planned, emergency, peer, {name: "without runs"}} {
		doc.add(s)
	}

	var got strings.Builder
	doc.renderFigures(&got)
	doc.renderRatio(&got)
	doc.renderPause(&got)
	doc.renderSteps(&got)
	golden(t, "testdata/figures.md", got.String())

	if err := doc.verdict(); err == nil || err.Error() != "planned, run 2: something did not hold" {
		t.Errorf("verdict: %v", err)
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-update rewrites it):\n%s", path, diff)
	}
}

func TestReplaceSection(t *testing.T) {
	const s, e = sectionStart, sectionEnd
	for _, c := range []struct{ name, text, want string }{
		{"between the markers", "# A\n" + s + "\nold\n" + e + "\nB\n", "# A\n" + s + "\nnew\n" + e + "\nB\n"},
		{"appended where there are none", "# A\n", "# A\n\n" + s + "\nnew\n" + e + "\n"},
	} {
		got, err := replaceSection(c.text, "new\n")
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
	if _, err := replaceSection("# A\n"+s+"\nold\n", "new\n"); err == nil {
		t.Error("a section without an end was replaced")
	}
}

func TestWriteSectionMakesTheFileAndKeepsTheRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docs", "benchmarks.md")
	for _, section := range []string{"first\n", "second\n"} {
		if err := writeSection(path, section); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(skeleton, sectionStart+"\n", sectionStart+"\nsecond\n", 1)
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}
