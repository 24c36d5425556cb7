package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"controld/internal/cluster"
	"controld/internal/health"
)

// collector shows the last observation at the moment of the scrape.
type collector struct{ source Source }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	up         = describe("pg_up", "Whether the node's server answered.", "node")
	isReplica  = describe("pg_replication_is_replica", "Whether the server is in recovery.", "node")
	lagBytes   = describe("pg_replication_lag_bytes", "The primary's WAL that the standby has not replayed.", "node")
	lagSeconds = describe("pg_replication_lag_seconds",
		"Age of the last replayed commit; 0 when all that was received is replayed.", "node")

	timeline    = describe("pg_timeline", "The node's timeline.", "node")
	walPosition = describe("pg_wal_position_bytes", "Where the server stands in the WAL.", "node", "position")

	slotActive = describe("pg_replication_slots_active", "Whether somebody streams by the slot.", "node", "slot_name")
	slotLag    = describe("pg_replication_slots_pg_wal_lsn_diff",
		"WAL in bytes that a replication slot holds back.", "node", "slot_name")

	archiveReady  = describe("pg_archive_ready_segments", "Segments that wait to be archived.", "node")
	archiveFailed = describe("pg_stat_archiver_failed_count", "Failed calls of archive_command since the statistics were reset.", "node")

	oldest = describe("pg_oldest_transaction_age_seconds",
		"Age of the client's transaction that is open longest; 0 when there is none.", "node")

	role    = describe("controld_node_role", "1 for the role that the node's server has, 0 for the others.", "node", "role")
	running = describe("controld_node_container_running", "Whether the node's container runs and is not frozen.", "node")
	fenced  = describe("controld_node_fenced", "Whether the node's order is withdrawn: it may not start.", "node")

	writable       = describe("controld_cluster_writable", "Whether clients can write: health is ok or degraded.")
	observationAge = describe("controld_observation_age_seconds", "How old the last observation is.")
	poolerUp       = describe("controld_pooler_up", "Whether the pooler's console answered.")
	poolerPaused   = describe("controld_pooler_database_paused", "Whether the entry's clients are held.", "database")
	redisUp        = describe("controld_redis_up", "Whether redis answered.")
	status         = describe("controld_component_status",
		"1 for the status that the component has, 0 for the others.", "component", "status")
)

var all = []*prometheus.Desc{
	up, isReplica, lagBytes, lagSeconds, timeline, walPosition, slotLag, slotActive, archiveReady, archiveFailed, oldest,
	role, running, fenced, writable, status, observationAge, poolerUp, poolerPaused, redisUp,
}

// Describe lists everything that Collect may send.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range all {
		ch <- d
	}
}

// Collect sends the last observation. Before the first there is nothing to say
// but that nothing is writable.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	view, report := c.source.View(), c.source.Health()
	g := gauges(ch)
	g.flag(writable, report.Status != health.Down)
	for _, component := range report.Components {
		for _, s := range []health.Status{health.OK, health.Degraded, health.Down} {
			g.flag(status, component.Status == s, component.Name, string(s))
		}
	}
	if view.At.IsZero() {
		return
	}
	g.value(observationAge, time.Since(view.At).Seconds())
	for _, s := range view.Nodes {
		g.node(view, s)
	}
	g.flag(poolerUp, view.Pooler.Err == "" && view.Pooler.Container.Running)
	for _, d := range view.Pooler.Databases {
		g.flag(poolerPaused, d.Paused, d.Name)
	}
	g.flag(redisUp, c.source.Redis().OK)
}

type gauges chan<- prometheus.Metric

func (g gauges) value(d *prometheus.Desc, v float64, labels ...string) {
	g <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (g gauges) flag(d *prometheus.Desc, on bool, labels ...string) {
	v := 0.0
	if on {
		v = 1
	}
	g.value(d, v, labels...)
}

func (g gauges) node(view cluster.View, s cluster.NodeState) {
	name := s.Node.Name
	g.flag(up, s.Server != nil, name)
	for _, r := range []cluster.Role{cluster.RolePrimary, cluster.RoleStandby, cluster.RoleNone} {
		g.flag(role, s.Role() == r, name, string(r))
	}
	g.flag(running, s.Container.Running && !s.Container.Paused, name)
	g.flag(fenced, s.Order.Role == "none", name)
	if t := s.Timeline(); t != 0 {
		g.value(timeline, float64(t), name)
	}
	if s.Server == nil {
		return
	}
	g.server(view, name, s.Server)
}

func (g gauges) server(view cluster.View, name string, srv *cluster.Server) {
	g.flag(isReplica, srv.InRecovery, name)
	age := 0.0
	if t := srv.OldestTransaction(); t != nil {
		age = t.Age.Seconds()
	}
	g.value(oldest, age, name)
	for _, slot := range srv.Slots {
		g.value(slotLag, float64(slot.LagBytes), name, slot.Name)
		g.flag(slotActive, slot.Active, name, slot.Name)
	}
	if !srv.InRecovery {
		g.value(walPosition, float64(srv.Flushed), name, "flushed")
		g.value(archiveReady, float64(srv.ArchiveReady), name)
		g <- prometheus.MustNewConstMetric(archiveFailed, prometheus.CounterValue, float64(srv.ArchiveFailedCount), name)
		return
	}
	g.value(walPosition, float64(srv.Received), name, "received")
	g.value(walPosition, float64(srv.Replayed), name, "replayed")
	g.value(lagSeconds, srv.Lag.Seconds(), name)
	if lag, known := view.LagBytes(name); known {
		g.value(lagBytes, float64(lag), name)
	}
}
