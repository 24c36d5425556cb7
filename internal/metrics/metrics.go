// Package metrics is the registry behind GET /metrics: what was last observed,
// what operations did, and the process itself. It observes nothing by itself.
// What PostgreSQL says begins with pg_ and has a label node. Where
// postgres_exporter has the same figure it bears that name (pg_up,
// pg_replication_lag_seconds), also where Prometheus would name it otherwise.
// The rest begins with controld_. docs/api.md lists all of them.
package metrics

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"controld/internal/cluster"
	"controld/internal/health"
	"controld/internal/metrics/sample"
	"controld/internal/operation"
)

// A Source is where the present state comes from. No call blocks.
type Source interface {
	View() cluster.View
	Health() health.Report
	Redis() health.Part
}

// Events is where operations report to.
type Events interface {
	Subscribe(id string) (events <-chan operation.Event, cancel func())
}

// Metrics is the registry.
type Metrics struct {
	registry   *prometheus.Registry
	log        *slog.Logger
	operations *prometheus.CounterVec
	durations  *prometheus.HistogramVec
	pauses     *prometheus.HistogramVec
	steps      *prometheus.HistogramVec
	lost       *prometheus.CounterVec
}

// pauseBuckets are dense where a pause of a planned failover lies.
var pauseBuckets = []float64{0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60}

// New makes the registry. more are what capabilities have to show. version and goVersion go into controld_build_info.
func New(source Source, running Running, more []sample.Source, version, goVersion string, log *slog.Logger) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		log:      log,
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "controld_operations_total", Help: "Operations that have ended, by how they ended.",
		}, []string{"kind", "mode", "state"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "controld_operation_duration_seconds", Help: "How long operations took.",
			Buckets: []float64{0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 60, 300, 1800},
		}, []string{"kind", "mode", "state"}),
		pauses: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "controld_failover_pause_seconds",
			Help:    "How long clients were held by a failover or failback, from PAUSE answered to RESUME sent.",
			Buckets: pauseBuckets,
		}, []string{"kind", "mode"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "controld_operation_step_duration_seconds", Help: "How long the steps of operations took.",
			Buckets: []float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30},
		}, []string{"kind", "mode", "step"}),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "controld_failover_lost_bytes_total", Help: "WAL that failovers left behind on the old primary.",
		}, []string{"estimate"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "controld_build_info", Help: "Always 1; the labels say which program runs.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": goVersion},
	})
	build.Set(1)
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build, m.operations, m.durations, m.pauses, m.steps, m.lost, collector{source: source}, progressCollector{running: running},
		families{sources: more},
	)
	return m
}

// Handler serves the registry.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelWarn),
		Registry: m.registry,
	})
}

// Run counts what operations report, until ctx ends. A subscription that was
// cut off, because it did not keep up, is made anew.
func (m *Metrics) Run(ctx context.Context, events Events) error {
	for ctx.Err() == nil {
		m.follow(ctx, events)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond): // of events that close at once no busy loop is made
		}
	}
	return nil
}

func (m *Metrics) follow(ctx context.Context, events Events) {
	stream, cancel := events.Subscribe("")
	defer cancel()
	for {
		select {
		case ev, more := <-stream:
			if !more {
				return
			}
			if ev.Ended() {
				m.Ended(ev.Record)
			}
		case <-ctx.Done():
			return
		}
	}
}

// Ended counts one operation that has ended.
func (m *Metrics) Ended(rec operation.Record) {
	m.operations.WithLabelValues(rec.Kind, rec.Mode, string(rec.State)).Inc()
	if !rec.EndedAt.IsZero() {
		m.durations.WithLabelValues(rec.Kind, rec.Mode, string(rec.State)).Observe(rec.EndedAt.Sub(rec.StartedAt).Seconds())
	}
	for _, st := range rec.Steps {
		if st.State == operation.StepDone {
			m.steps.WithLabelValues(rec.Kind, rec.Mode, st.Name).Observe(st.Duration.Seconds())
		}
	}
	if rec.State != operation.Succeeded {
		return
	}
	if pauseMS, ok := number(rec.Result["pause_ms"]); ok {
		m.pauses.WithLabelValues(rec.Kind, rec.Mode).Observe(pauseMS / 1000)
	}
	if bytes, ok := number(rec.Result["lost_bytes"]); ok && bytes > 0 {
		estimate := "false"
		if rec.Result["estimate"] == true {
			estimate = "true"
		}
		m.lost.WithLabelValues(estimate).Add(bytes)
	}
}

// number reads a result, whose numbers are floats once the journal had them.
func number(v any) (float64, bool) {
	switch n := v.(type) {
	case float64:
		return n, true
	case int64:
		return float64(n), true
	case int:
		return float64(n), true
	}
	return 0, false
}
