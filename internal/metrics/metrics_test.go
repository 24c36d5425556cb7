package metrics

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"controld/internal/cluster"
	"controld/internal/health"
	"controld/internal/operation"
)

type source struct{ view cluster.View }

func (s source) View() cluster.View { return s.view }
func (s source) Redis() health.Part { return health.Part{} }
func (s source) Health() health.Report {
	redis := health.Component{Name: "redis", Status: health.Down}
	return health.Report{Status: health.Degraded, Components: []health.Component{redis}}
}

// Open has a copy under way, where there is a view at all.
func (s source) Open() []operation.Record {
	if s.view.At.IsZero() {
		return nil
	}
	quarter := operation.Progress{Phase: "copy", Done: 25, Total: 100, Unit: "bytes", Rate: 5}
	return []operation.Record{
		{Kind: "rejoin", State: operation.Running, Progress: &quarter},
		{Kind: "failover", State: operation.Running, WaitsFor: "x"},
	}
}

func observed() source {
	standby := cluster.Server{InRecovery: true, Timeline: 3, Received: 900, Replayed: 800, Lag: 1500 * time.Millisecond}
	primary := cluster.Server{Timeline: 3, Flushed: 1000, ArchiveReady: 2, ArchiveFailedCount: 4,
		Slots: []cluster.Slot{{Name: "postgres_slave", Active: true, LagBytes: 200}}}
	on := cluster.Container{Exists: true, Running: true}
	return source{cluster.View{
		At: time.Now(),
		Nodes: []cluster.NodeState{
			{Node: cluster.Node{Name: "postgres_master"}, Container: on, Server: &primary},
			{Node: cluster.Node{Name: "postgres_slave"}, Container: on, Server: &standby},
			{Node: cluster.Node{Name: "third"}},
		},
		Pooler: cluster.PoolerState{Container: on, Databases: []cluster.PoolerDatabase{{Name: "imdb", Paused: true}}},
	}}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

func TestObservationIsShown(t *testing.T) {
	out := scrape(t, New(observed(), observed(), nil, "1.2.3", "go1.26", quiet()))
	for _, line := range []string{
		`pg_up{node="postgres_master"} 1`, `pg_up{node="third"} 0`,
		`pg_replication_lag_bytes{node="postgres_slave"} 200`,
		`pg_replication_lag_seconds{node="postgres_slave"} 1.5`,
		`pg_timeline{node="postgres_slave"} 3`,
		`controld_operations_open{kind="failover",state="waiting"} 1`,
		`controld_operations_open{kind="rejoin",state="running"} 1`,
		`controld_operation_progress_done{kind="rejoin",phase="copy",unit="bytes"} 25`,
		`controld_operation_progress_expected{kind="rejoin",phase="copy",unit="bytes"} 100`,
		`controld_operation_progress_rate{kind="rejoin",phase="copy",unit="bytes"} 5`,
		`controld_node_role{node="postgres_master",role="primary"} 1`,
		`controld_node_role{node="postgres_slave",role="primary"} 0`,
		`pg_replication_slots_pg_wal_lsn_diff{node="postgres_master",slot_name="postgres_slave"} 200`,
		`pg_replication_slots_active{node="postgres_master",slot_name="postgres_slave"} 1`,
		`pg_stat_archiver_failed_count{node="postgres_master"} 4`,
		`pg_archive_ready_segments{node="postgres_master"} 2`,
		`controld_cluster_writable 1`,
		`controld_component_status{component="redis",status="down"} 1`,
		`controld_pooler_database_paused{database="imdb"} 1`,
		`controld_redis_up 0`,
		`controld_build_info{goversion="go1.26",version="1.2.3"} 1`,
	} {
		if !strings.Contains(out, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if strings.Contains(out, `pg_replication_lag_bytes{node="postgres_master"}`) {
		t.Error("a primary has no lag")
	}
}

func TestOperationsAreCounted(t *testing.T) {
	m := New(observed(), observed(), nil, "", "", quiet())
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	m.Ended(operation.Record{
		Kind: "failover", Mode: "planned", State: operation.Succeeded, StartedAt: begin, EndedAt: begin.Add(2 * time.Second),
		Steps: []operation.StepRecord{
			{Name: "pause pooler", State: operation.StepDone, Duration: 12 * time.Millisecond},
			{Name: "x", State: operation.StepPending},
		},
		Result: map[string]any{"pause_ms": 290.5, "lost_bytes": int64(0)},
	})
	m.Ended(operation.Record{Kind: "failover", Mode: "emergency", State: operation.Succeeded, StartedAt: begin, EndedAt: begin,
		Result: map[string]any{"pause_ms": 400, "lost_bytes": float64(8192), "estimate": true}})
	m.Ended(operation.Record{Kind: "failover", Mode: "planned", State: operation.Undone, StartedAt: begin, EndedAt: begin,
		Result: map[string]any{"pause_ms": 100}})
	out := scrape(t, m)
	for _, line := range []string{
		`controld_operations_total{kind="failover",mode="planned",state="succeeded"} 1`,
		`controld_operations_total{kind="failover",mode="planned",state="undone"} 1`,
		`controld_failover_pause_seconds_bucket{kind="failover",mode="planned",le="0.01"} 0`,
		`controld_failover_pause_seconds_sum{kind="failover",mode="planned"} 0.2905`,
		`controld_failover_pause_seconds_count{kind="failover",mode="planned"} 1`,
		`controld_failover_lost_bytes_total{estimate="true"} 8192`,
		`controld_operation_step_duration_seconds_sum{kind="failover",mode="planned",step="pause pooler"} 0.012`,
		`controld_operation_duration_seconds_sum{kind="failover",mode="planned",state="succeeded"} 2`,
	} {
		if !strings.Contains(out, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
}

func TestNamesAreClean(t *testing.T) {
	m := New(observed(), observed(), nil, "", "", quiet())
	m.Ended(operation.Record{Kind: "failover", Mode: "planned", State: operation.Succeeded,
		Result: map[string]any{"pause_ms": 1.0, "lost_bytes": 1}})
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if p.Metric == "pg_stat_archiver_failed_count" {
			continue // named as postgres_exporter names it
		}
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// docs/api.md lists every metric with its labels, and none that is not there.
func TestEveryMetricIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	row := regexp.MustCompile("(?m)^\\| `((?:pg|controld)_[a-z_]+)` \\|([^|]*)\\|")
	for _, m := range row.FindAllStringSubmatch(string(doc), -1) {
		if strings.HasPrefix(m[1], "controld_backup_") {
			continue // shown by that capability, which holds them against the page
		}
		documented[m[1]] = strings.TrimSpace(strings.ReplaceAll(m[2], "`", ""))
	}
	m := New(observed(), observed(), nil, "", "", quiet())
	m.Ended(operation.Record{
		Kind: "failover", Mode: "planned", State: operation.Succeeded, EndedAt: time.Now(),
		Steps:  []operation.StepRecord{{Name: "promote", State: operation.StepDone}},
		Result: map[string]any{"pause_ms": 1.0, "lost_bytes": 1},
	})
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	served := map[string]string{}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "go_") || strings.HasPrefix(f.GetName(), "process_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		served[f.GetName()] = strings.Join(labels, ", ")
	}
	if len(served) != len(all)+len(progressAll)+6 { // the collectors', the five of operations, and the build's
		t.Errorf("%d metrics are served: the sample does not make all of them", len(served))
	}
	if diff := cmp.Diff(served, documented); diff != "" {
		t.Errorf("served (-), in docs/api.md (+):\n%s", diff)
	}
}

func TestNothingObservedYet(t *testing.T) {
	out := scrape(t, New(source{}, source{}, nil, "", "", quiet()))
	if strings.Contains(out, "pg_up") || !strings.Contains(out, "controld_cluster_writable 1\n") {
		t.Errorf("before the first observation:\n%s", out)
	}
}

// cutting cuts the first subscription off, as a manager does with one that is too slow.
type cutting struct{ streams chan chan operation.Event }

func (c cutting) Subscribe(string) (<-chan operation.Event, func()) {
	ch := make(chan operation.Event, 1)
	c.streams <- ch
	return ch, func() {}
}

func TestRunSubscribesAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(observed(), observed(), nil, "", "", quiet())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		events := cutting{streams: make(chan chan operation.Event)}
		go func() { done <- m.Run(ctx, events) }()
		close(<-events.streams)
		second := <-events.streams
		ended := operation.Record{Kind: "rejoin", State: operation.Succeeded, EndedAt: time.Now()}
		second <- operation.Event{Type: "step", Record: ended}
		synctest.Wait()
		second <- operation.Event{Type: "operation", Record: operation.Record{Kind: "rejoin", State: operation.Running}}
		second <- operation.Event{Type: "operation", Record: operation.Record{Kind: "failover", State: operation.Incomplete}}
		synctest.Wait()
		second <- operation.Event{Type: "operation", Record: ended}
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := testutil.CollectAndCount(m.operations); got != 1 {
			t.Errorf("%d kinds were counted, want 1: incomplete without an end is being retried", got)
		}
		if got := testutil.ToFloat64(m.operations.WithLabelValues("rejoin", "", "succeeded")); got != 1 {
			t.Errorf("counted %v, want 1: an operation counts once, when it ends", got)
		}
	})
}
