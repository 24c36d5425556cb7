// Package manager puts together what looks after one cluster: who observes it, who acts on
// it, and the operations.
package manager

import (
	"context"
	"log/slog"
	"time"

	"controld/internal/actuator"
	"controld/internal/bootstrap"
	"controld/internal/cluster"
	"controld/internal/failover"
	"controld/internal/health"
	"controld/internal/observer"
	"controld/internal/operation"
	"controld/internal/rejoin"
	"controld/internal/upkeep"
)

// A Manager is all of them. What each offers is its own.
type Manager struct {
	*observer.Observer
	*failover.Failovers
	*rejoin.Rejoins
	*bootstrap.Starts
	*upkeep.Upkeep

	act        *actuator.Actuator
	operations *operation.Manager
}

// New makes the manager of a cluster, and registers its kinds of operation.
func New(set cluster.Settings, out cluster.Outside, ops *operation.Manager, facts cluster.Facts, log *slog.Logger) (*Manager, error) {
	look := observer.New(set, out, log)
	act, err := actuator.New(set, out, look, facts, log)
	if err != nil {
		return nil, err
	}
	failovers, err := failover.New(act, ops)
	if err != nil {
		return nil, err
	}
	rejoins, err := rejoin.New(act, ops)
	if err != nil {
		return nil, err
	}
	starts, err := bootstrap.New(act, ops, rejoins)
	if err != nil {
		return nil, err
	}
	keep, err := upkeep.New(act, ops)
	if err != nil {
		return nil, err
	}
	return &Manager{
		Observer: look, Failovers: failovers, Rejoins: rejoins, Starts: starts, Upkeep: keep,
		act: act, operations: ops,
	}, nil
}

// Health judges the last observation. It never blocks.
func (m *Manager) Health() health.Report {
	set := m.act.Settings
	h := cluster.AssessHealth(m.View(), m.Describe(), m.operations.Holding(operation.Cluster), time.Now(), set.Interval)
	if why := m.Stuck(); why != "" && h.Status == health.Down && h.Reason != "stale" {
		h = h.First(health.Bad(cluster.ComponentStart, health.Down, "no-start", why,
			"Follow what the detail says; nothing is started until then."))
	}
	return h
}

// Identity is what the journal knows; the zero Identity before the first start.
func (m *Manager) Identity() cluster.Identity { return m.act.Identity() }

// Wanted is how the cluster shall be.
func (m *Manager) Wanted() cluster.Wanted {
	return cluster.Wanted{Targets: cluster.WantTargets, ArchiveCommand: m.act.Settings.ArchiveCommand}
}

// ReloadServers lets the servers of these nodes read the files that controld has
// written anew.
func (m *Manager) ReloadServers(ctx context.Context, nodes []cluster.Node) {
	m.act.ReloadServers(ctx, nodes)
}

// Describe is what the journal knows of the cluster, and where a failback returns to.
func (m *Manager) Describe() cluster.Expectation {
	id := m.Identity()
	return cluster.Expectation{Primary: id.Primary, Epoch: id.Epoch, Preferred: m.act.Settings.Preferred}
}

// Nodes are the cluster's nodes, in the order of the configuration.
func (m *Manager) Nodes() []cluster.Node { return m.act.Settings.Nodes }

// Interval is the time between two observations.
func (m *Manager) Interval() time.Duration { return m.act.Settings.Interval }
