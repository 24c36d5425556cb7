package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"controld/internal/operation"
)

// Running is where the open operations come from. It does not block.
type Running interface {
	Open() []operation.Record
}

// progressCollector shows how far the open operations have come at the moment of the
// scrape. Two of one kind in one phase are added up.
type progressCollector struct{ running Running }

var (
	openOperations = describe("controld_operations_open", "Operations that run, wait for another one, or are retried.", "kind", "state")
	progressDone   = describe("controld_operation_progress_done", "How much of the running step is done, in unit.", "kind", "phase", "unit")
	progressRate   = describe("controld_operation_progress_rate", "How much is done in a second, in unit.", "kind", "phase", "unit")
	progressOf     = describe("controld_operation_progress_expected",
		"How much there is to do in all, in unit; absent where it is not known.", "kind", "phase", "unit")
)

var progressAll = []*prometheus.Desc{openOperations, progressDone, progressOf, progressRate}

// Describe lists everything that Collect may send.
func (c progressCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range progressAll {
		ch <- d
	}
}

// Collect sends what the open operations have last reported.
func (c progressCollector) Collect(ch chan<- prometheus.Metric) {
	type key struct{ kind, phase, unit string }
	type state struct{ kind, state string }
	far, open := map[key]operation.Progress{}, map[state]int{}
	for _, r := range c.running.Open() {
		now := string(r.State)
		if r.WaitsFor != "" {
			now = "waiting"
		}
		open[state{r.Kind, now}]++
		if r.Progress == nil {
			continue
		}
		k := key{r.Kind, r.Progress.Phase, r.Progress.Unit}
		sum := far[k]
		sum.Done, sum.Total, sum.Rate = sum.Done+r.Progress.Done, sum.Total+r.Progress.Total, sum.Rate+r.Progress.Rate
		far[k] = sum
	}
	g := gauges(ch)
	for s, n := range open {
		g.value(openOperations, float64(n), s.kind, s.state)
	}
	for k, p := range far {
		labels := []string{k.kind, k.phase, k.unit}
		g.value(progressDone, float64(p.Done), labels...)
		g.value(progressRate, p.Rate, labels...)
		if p.Total > 0 {
			g.value(progressOf, float64(p.Total), labels...)
		}
	}
}
