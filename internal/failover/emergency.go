package failover

import (
	"context"
	"fmt"
	"slices"
	"time"

	"controld/internal/actuator"
	"controld/internal/cluster"
	"controld/internal/operation"
	"controld/internal/pgwal"
)

// emergencySteps is the failover from a primary that is dead, hung or out of
// reach. Its order is withdrawn first, so that nobody can start it again;
// nothing is promoted before its death is proved; what it had written and the
// candidate lacks is fetched before the candidate leads.
func (f *failover) emergencySteps() []operation.Step[state] {
	return []operation.Step[state]{
		{Name: "withdraw order", Do: f.withdrawOld, Entry: true},
		{Name: "pause pooler", Do: f.sendPause, Undo: f.resumeUndone, HoldsClients: true},
		{Name: "kill old primary", Do: f.kill, Undo: f.reconnectOld, HoldsClients: true},
		{Name: "collect pause", Do: f.collectPause, HoldsClients: true},
		{Name: "salvage WAL", Do: f.salvage, HoldsClients: true},
		{Name: stepPromote, Do: f.promote, Undo: f.demoteCandidate, Entry: true, HoldsClients: true},
		{Name: "repoint pooler", Do: f.repoint, HoldsClients: true},
		{Name: "probe", Do: f.probe, HoldsClients: true},
		{Name: "resume pooler", Do: f.resume, HoldsClients: true},
		{Name: "record primary", Do: f.record, Entry: true},
		{Name: "probe as client", Do: f.probeAsClient},
		{Name: "restore archiving", Do: operation.Within(actuator.CheckpointDeadline, f.restoreNewAfterCrash)},
	}
}

// emergencyChecks are what must hold before the old primary is killed: a
// candidate that can lead, and a loss that is none, or is accepted.
func (f *failover) emergencyChecks(v cluster.View, from, to cluster.NodeState, s *state) []operation.Check {
	alone := !leadsBeside(v, s.From, s.To)
	answers := answersCheck(to)
	checks := []operation.Check{
		operation.NewCheck("candidate-is-whole", to.Usable(), "unfinished", nil, "%s: %s", to.Node.Name, to.Wholeness()),
		answers,
		operation.NewCheck("no-third-primary", alone, "two-primaries", nil, "no other node may lead beside %s", s.From),
	}
	if !answers.OK {
		return checks
	}
	s.Timeline = max(s.Timeline, to.Timeline())
	loss := f.lossCheck(from, to, s) // notes whether the two have parted
	if !s.Parted {
		checks = append(checks, f.notDivergedCheck(from, to, s))
	}
	return append(checks, loss)
}

// leadsBeside reports whether a node leads that is neither of these two.
func leadsBeside(v cluster.View, from, to string) bool {
	return slices.ContainsFunc(v.Nodes, func(n cluster.NodeState) bool {
		return n.Node.Name != from && n.Node.Name != to && n.Role() == cluster.RolePrimary
	})
}

// notDivergedCheck refuses a candidate that has other WAL than the old primary, which
// hides acknowledged commits, unless an unknown loss is accepted. It compares the two
// where the old primary's volume can be read; where not, lossCheck says what that means.
func (f *failover) notDivergedCheck(from, to cluster.NodeState, s *state) operation.Check {
	why := to.Diverged()
	if why == "" && from.Control != nil {
		if c := f.act.Compare(to.Node, from.Node); c.Relation == pgwal.Diverged || c.Relation == pgwal.Past {
			why = c.Why
		}
	}
	found := "nothing is known of other WAL on " + s.To
	if why != "" {
		found = fmt.Sprintf("%s has other WAL than %s: %s. An unknown loss is accepted by max_loss_bytes -1; "+
			"nothing is lost where %[2]s can be started in place (controld start %[2]s)", s.To, s.From, why)
	}
	ok := why == "" || s.MaxLoss == cluster.AcceptAnyLoss
	return operation.NewCheck("same-wal", ok, "diverged", nil, "%s", found)
}

func (f *failover) withdrawOld(_ context.Context, s *state) error {
	from, _ := f.nodes(s)
	return f.act.Withdraw(from)
}

// sendPause asks the pooler to hold the clients and does not wait: on a frozen
// primary only the kill ends what PAUSE waits for.
func (f *failover) sendPause(ctx context.Context, s *state) error {
	_, to := f.nodes(s)
	f.act.Look.Quiet(2 * time.Second)
	if err := f.pauseOf(s).send(ctx, actuator.DeathDeadline+actuator.ProveDeadline); err != nil {
		return err
	}
	login, done := context.WithTimeout(ctx, actuator.ProveDeadline)
	defer done()
	_, err := f.sessions.Get(login, to)
	return err
}

// kill ends the old primary and returns with the proof of its death. When the
// proof is late the node is cut from the network and the clients' connections
// dropped: something may still answer them.
func (f *failover) kill(ctx context.Context, s *state) error {
	from, _ := f.nodes(s)
	f.sessions.Drop(from)
	var err error
	if f.act.LockFree(from) {
		s.Proof = "lock"
		return nil
	}
	s.Proof, err = f.act.KillAndProve(ctx, from, func(ctx context.Context) {
		if err := f.act.Outside.Engine.Disconnect(ctx, from.Container); err != nil {
			f.act.Log.Warn("dying node not cut from the network", "node", from.Name, "err", err)
		}
		for _, db := range f.pauseOf(s).state.Entries {
			if err := f.act.Outside.Pooler.Kill(ctx, db); err != nil {
				f.act.Log.Warn("clients of the dying node not dropped", "database", db, "err", err)
			}
		}
	})
	return err
}

// reconnectOld gives a node that did not die its network back; its order stays
// withdrawn.
func (f *failover) reconnectOld(ctx context.Context, s *state) error {
	from, _ := f.nodes(s)
	if c, err := f.act.Outside.Engine.Inspect(ctx, from.Container); err != nil || c.Connected || !c.Running {
		return err
	}
	return f.act.Outside.Engine.Connect(ctx, from.Container)
}

// collectPause waits for PAUSE's answer, which the death of the server lets
// come. Beside what follows, the pooler's new configuration is written and its
// connection for the probe opened.
//
// A pooler that was started again has forgotten the pause, and is asked once
// more. One that does not run or does not answer serves nobody: the failover
// goes on without it, and is incomplete until it is back.
func (f *failover) collectPause(ctx context.Context, s *state) error {
	p := f.pauseOf(s)
	if err := p.collect(ctx); err != nil {
		return err
	}
	if err := p.again(ctx); err != nil {
		f.act.Log.Warn("the pooler does not answer: no clients are held", "err", err)
		return nil // a host may change only under a pause: repoint asks again
	}
	p.pointBeside(ctx, s.Targets, func(ctx context.Context) {
		_ = f.act.Outside.Pooler.Probe(ctx, cluster.ProbeEntry) // refused until the promotion; it opens the connection
	})
	return nil
}

// restoreNewAfterCrash sets the settings of a primary without a synchronous
// standby, except where strict asks for one, and makes the checkpoint that a
// rewind of the old primary would need.
func (f *failover) restoreNewAfterCrash(ctx context.Context, s *state) error {
	from, to := f.nodes(s)
	err := f.sessions.With(ctx, to, func(session cluster.Session) error { return session.CreateSlot(ctx, from.Slot()) })
	if err != nil {
		return err
	}
	return f.restoreNew(ctx, s)
}
