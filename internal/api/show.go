package api

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"controld/internal/api/gen"
	"controld/internal/cluster"
	"controld/internal/health"
	"controld/internal/operation"
)

// This file turns what the domain knows into what the contract says.

func pointer[T any](v T) *T { return &v }

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return pointer(t.UTC())
}

func numbers(n map[string]any) *gen.Numbers {
	if len(n) == 0 {
		return nil
	}
	return &n
}

// milliseconds keeps a hundredth: steps inside the pause are short.
func milliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Millisecond)*100) / 100
}

func operationOf(r operation.Record) gen.Operation {
	op := gen.Operation{
		ID: r.ID, Kind: r.Kind, Mode: gen.Optional(r.Mode), State: gen.OperationState(r.State),
		RequestedBy: r.RequestedBy, Reason: gen.Optional(r.Reason),
		StartedAt: r.StartedAt.UTC(), EndedAt: moment(r.EndedAt),
		Steps: []gen.Step{}, Problem: causeOf(r.Problem), Follows: gen.Optional(r.Follows), FollowedBy: gen.Optional(r.FollowedBy),
		WaitsFor: gen.Optional(r.WaitsFor), Progress: progressOf(r.Progress),
	}
	for _, st := range r.Steps {
		op.Steps = append(op.Steps, stepOf(st))
	}
	if len(r.Checks) > 0 {
		op.Checks = pointer(checksOf(r.Checks))
	}
	if len(r.Result) > 0 {
		op.Result = &r.Result
	}
	return op
}

func progressOf(p *operation.Progress) *gen.Progress {
	if p == nil {
		return nil
	}
	out := gen.Progress{Phase: p.Phase, Done: p.Done, Unit: p.Unit, At: p.At.UTC()}
	if p.Total > 0 {
		out.Total = &p.Total
	}
	if p.Rate > 0 {
		out.Rate = &p.Rate
	}
	if p.ETA > 0 {
		out.EtaMs = pointer(milliseconds(p.ETA))
	}
	return &out
}

func stepOf(st operation.StepRecord) gen.Step {
	s := gen.Step{Name: st.Name, State: gen.StepState(st.State), StartedAt: moment(st.StartedAt), Error: gen.Optional(st.Error)}
	if st.State != operation.StepPending && st.State != operation.StepRunning {
		s.DurationMs = pointer(milliseconds(st.Duration))
	}
	return s
}

func checksOf(checks []operation.Check) []gen.Check {
	out := []gen.Check{}
	for _, c := range checks {
		out = append(out, gen.Check{Name: c.Name, Ok: c.OK, Detail: c.Detail, Numbers: numbers(c.Numbers)})
	}
	return out
}

func causeOf(p *operation.Problem) *gen.Cause {
	if p == nil {
		return nil
	}
	return &gen.Cause{Type: p.Type, Detail: p.Detail, Numbers: numbers(p.Numbers)}
}

func planOf(p cluster.Plan) gen.Plan {
	steps := p.Steps
	if steps == nil {
		steps = []string{}
	}
	return gen.Plan{
		Kind: p.Kind, Mode: p.Mode, From: gen.Optional(p.From), To: gen.Optional(p.To),
		Steps: steps, Checks: checksOf(p.Checks), WouldRun: p.WouldRun, Refusal: causeOf(p.Refusal),
	}
}

func healthOf(h health.Report) gen.Health {
	out := gen.Health{
		Status: gen.HealthStatus(h.Status), Reason: gen.Optional(h.Reason), Detail: gen.Optional(h.Detail), Do: gen.Optional(h.Do),
		ObservedAt: moment(h.ObservedAt), Operation: gen.Optional(h.Operation), Components: []gen.ComponentHealth{},
	}
	for _, c := range h.Components {
		out.Components = append(out.Components, gen.ComponentHealth{
			Name: c.Name, Status: gen.HealthStatus(c.Status), Reason: gen.Optional(c.Reason), Detail: gen.Optional(c.Detail),
			Do: gen.Optional(c.Do),
		})
	}
	return out
}

func clusterOf(view cluster.View, redis health.Part, expected cluster.Expectation, openOperation string, nodes []cluster.Node) gen.Cluster {
	c := gen.Cluster{
		Primary: primaryOf(view), PreferredPrimary: expected.Preferred,
		RecordedPrimary: gen.Optional(expected.Primary), Epoch: gen.Optional(int64(expected.Epoch)),
		ObservedAt: moment(view.At), Operation: gen.Optional(openOperation),
		Nodes: []gen.Node{}, Pooler: poolerOf(view), Redis: gen.Component{
			Ok: redis.OK, Detail: gen.Optional(redis.Detail), ObservedAt: moment(redis.SeenAt),
		},
	}
	for _, n := range nodes {
		state, ok := view.Node(n.Name)
		if !ok {
			state = cluster.NodeState{Node: n, Locked: cluster.Unknown} // not observed yet
		}
		c.Nodes = append(c.Nodes, nodeOf(view, state))
	}
	return c
}

// primaryOf names the one node that leads.
func primaryOf(view cluster.View) *string {
	var found *string
	for _, s := range view.Nodes {
		if s.Role() != cluster.RolePrimary {
			continue
		}
		if found != nil {
			return nil
		}
		found = pointer(s.Node.Name)
	}
	return found
}

func nodeOf(view cluster.View, s cluster.NodeState) gen.Node {
	left := s.Locked
	if left == "" {
		left = cluster.Unknown
	}
	n := gen.Node{
		Name: s.Node.Name, Role: gen.Role(s.Role()), ObservedAt: moment(s.SeenAt), Error: gen.Optional(s.ServerErr),
		Fenced:      s.Order.Role == "none",
		ProcessLeft: gen.NodeProcessLeft(left),
		Timeline:    gen.Optional(int64(s.Timeline())),
		Container:   containerOf(s.Container, s.Node.Container, s.SeenAt),
		Order:       gen.Order{Epoch: int64(s.Order.Epoch), Role: string(s.Order.Role), Action: string(s.Order.Action)},
		Init: gen.Init{
			State: string(s.Init.State), Epoch: int64(s.Init.Epoch), UsedEpoch: int64(s.Init.UsedEpoch),
			Error: gen.Optional(s.Init.Error), Unfinished: gen.Optional(string(s.Init.Unfinished)),
		},
	}
	if c := s.Control; c != nil {
		n.SystemIdentifier = gen.Optional(strconv.FormatUint(c.SystemID, 10))
		n.Control = &gen.Control{State: controlState(int(c.State)), Timeline: int64(c.Timeline()), CheckpointLsn: c.Checkpoint.String()}
	}
	if s.Server != nil {
		showServer(&n, view, s)
	}
	return n
}

func showServer(n *gen.Node, view cluster.View, s cluster.NodeState) {
	srv := s.Server
	n.StartedAt, n.AnsweredAt = moment(srv.StartedAt), moment(s.AnsweredAt)
	if srv.SystemID != 0 {
		n.SystemIdentifier = pointer(strconv.FormatUint(srv.SystemID, 10))
	}
	n.PreparedTransactions = pointer(srv.PreparedCount)
	if t := srv.OldestTransaction(); t != nil {
		n.OldestTransaction = &gen.Transaction{
			Pid: t.PID, User: t.User, Application: t.Application, Database: t.Database, State: t.State, AgeMs: t.Age.Milliseconds(),
		}
	}
	if !srv.InRecovery {
		n.FlushedLsn = pointer(srv.Flushed.String())
		n.Archive = &gen.Archive{
			Ready: srv.ArchiveReady, FailedCount: srv.ArchiveFailedCount,
			LastAt: moment(srv.ArchiveLastAt), LastFailedAt: moment(srv.ArchiveLastFailedAt),
		}
		return
	}
	n.ReceivedLsn, n.ReplayedLsn = pointer(srv.Received.String()), pointer(srv.Replayed.String())
	n.LagMs = pointer(srv.Lag.Milliseconds())
	if lag, known := view.LagBytes(s.Node.Name); known {
		n.LagBytes = pointer(lag)
	}
	if r := srv.Receiver; r != nil {
		n.Receiver = &gen.Receiver{Status: r.Status, From: gen.Optional(r.Host), Slot: gen.Optional(r.Slot),
			LastMessageAt: moment(r.LastMessageAt)}
	}
	showUpstream(n, view, s)
}

// showUpstream adds what the primary says of this standby.
func showUpstream(n *gen.Node, view cluster.View, s cluster.NodeState) {
	for _, p := range view.Nodes {
		if p.Role() != cluster.RolePrimary {
			continue
		}
		for _, sender := range p.Server.Senders {
			if sender.Application == s.Node.Name {
				n.SyncState = gen.Optional(sender.SyncState)
			}
		}
		for _, slot := range p.Server.Slots {
			if slot.Name == s.Node.Slot() {
				n.Slot = &gen.Slot{Name: slot.Name, Active: slot.Active, WalStatus: slot.WALStatus, LagBytes: pointer(slot.LagBytes)}
				if slot.Restart != 0 {
					n.Slot.RestartLsn = pointer(slot.Restart.String())
				}
			}
		}
	}
}

func containerOf(c cluster.Container, name string, seenAt time.Time) gen.Container {
	out := gen.Container{
		Name: gen.Optional(name), State: c.Health, Running: c.Running, Paused: c.Paused, Connected: c.Connected,
		Address: gen.Optional(c.Address), StartedAt: moment(c.StartedAt),
	}
	switch {
	case seenAt.IsZero():
		out.State = "unknown"
	case !c.Exists:
		out.State = "missing"
	}
	if c.Exists && !c.Running {
		out.ExitCode = pointer(c.ExitCode)
	}
	return out
}

func poolerOf(view cluster.View) gen.Pooler {
	p := gen.Pooler{
		Answers: view.Pooler.Err == "" && !view.Pooler.SeenAt.IsZero(), Error: gen.Optional(view.Pooler.Err),
		ObservedAt: moment(view.Pooler.SeenAt), Databases: []gen.PoolerDatabase{},
		Container: containerOf(view.Pooler.Container, "", view.Pooler.SeenAt),
	}
	for _, d := range view.Pooler.Databases {
		entry := gen.PoolerDatabase{Name: d.Name, Host: d.Host, Paused: d.Paused}
		for _, s := range view.Nodes {
			if d.Host != "" && s.Container.Address == d.Host {
				entry.Node = pointer(s.Node.Name)
			}
		}
		p.Databases = append(p.Databases, entry)
	}
	return p
}

// controlState is DBState as pg_controldata prints it.
func controlState(state int) string {
	names := []string{
		"starting up", "shut down", "shut down in recovery", "shutting down",
		"in crash recovery", "in archive recovery", "in production",
	}
	if state < 0 || state >= len(names) {
		return fmt.Sprintf("unknown (%d)", state)
	}
	return names[state]
}
