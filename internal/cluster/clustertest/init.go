package clustertest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"controld/internal/node"
	"controld/internal/node/rules"
	"controld/internal/pgcontrol"
	"controld/internal/pgwal"
	"controld/internal/rights"
	"controld/internal/wal"
)

// What an order comes to is decided by package node/rules, as in the real init; how it is
// done is make-believe.

// A job is work beside the init's loop. Another job, or none, voids it.
type job struct{ epoch uint64 }

// consider takes up a new order.
func (h *host) consider() {
	o := h.order
	if !h.up || !h.ready || h.paused || o.Epoch == 0 {
		return
	}
	switch take, err := rules.TakeUp(o, h.taken.Epoch, h.status); {
	case err != nil:
		h.fail(node.StateRefused, err.Error())
		return
	case !take:
		return
	}
	h.taken = o
	h.act()
}

func (h *host) act() {
	if !h.up || !h.ready || h.paused || h.taken.Epoch == 0 {
		return
	}
	if h.job != nil && h.job.epoch != h.taken.Epoch {
		h.job, h.working = nil, false
	}
	switch {
	case h.server != nil && h.server.stopping: // its end calls act again
	case h.settled == h.taken.Epoch:
	case h.server != nil:
		h.actRunning()
	case h.job != nil:
	case h.taken.Role == node.RoleNone:
		h.settled = h.taken.Epoch
		h.report(func(s *node.Status) {
			s.Epoch, s.State, s.Role, s.PID, s.Error = h.taken.Epoch, node.StateWaiting, node.RoleNone, 0, ""
		})
	default:
		h.startJob(h.bringUp)
	}
}

// startJob does f a moment later, unless the job is void by then.
func (h *host) startJob(f func()) {
	h.job = &job{h.taken.Epoch}
	h.goOn(f)
}

func (h *host) goOn(f func()) {
	j, boot := h.job, h.boot
	h.w.after(noticeDelay, func() {
		if h.job == j && h.boot == boot && !h.paused {
			f()
		}
	})
}

func (h *host) jobEnded() {
	h.settled, h.job, h.working = h.job.epoch, nil, false
	h.consider()
	h.act()
}

func (h *host) actRunning() {
	o := h.taken
	step, err := rules.Running{Done: h.status, Leads: !h.data.standby, Control: &h.data.control}.Next(o)
	if err != nil {
		h.refuseRunning(err.Error())
		return
	}
	switch step {
	case rules.Stop:
		h.stop()
	case rules.Adopt:
		h.adopt()
	case rules.Salvage:
		h.beside(func() { h.salvage(o) })
	case rules.Provision:
		h.beside(func() { h.provision(o) })
	}
}

// beside does work while the server runs.
func (h *host) beside(do func()) {
	if h.job != nil {
		return
	}
	h.startJob(func() {
		do()
		h.jobEnded()
	})
}

func (h *host) presentRole() node.Role {
	if h.data.standby {
		return node.RoleStandby
	}
	return node.RolePrimary
}

func (h *host) adopt() {
	o := h.taken
	h.settled = o.Epoch
	h.report(func(s *node.Status) {
		s.Epoch, s.State, s.Role, s.PID, s.Error = o.Epoch, node.StateRunning, h.presentRole(), 1, ""
		if o.Role == node.RolePrimary {
			s.UsedEpoch = max(s.UsedEpoch, o.Epoch)
		}
	})
}

func (h *host) refuseRunning(why string) {
	o := h.taken
	h.settled = o.Epoch
	h.report(func(s *node.Status) {
		s.Epoch, s.State, s.Role, s.PID, s.Error = o.Epoch, node.StateRefused, h.presentRole(), 1, why
		if o.Role == node.RolePrimary {
			s.UsedEpoch = max(s.UsedEpoch, o.Epoch)
		}
		if o.Action == node.ActionSalvage {
			s.Salvaged = &node.Salvaged{Epoch: o.Epoch, Error: why}
		}
	})
}

func (h *host) stop() {
	h.stopServer()
	h.report(func(s *node.Status) { s.State, s.Error, s.Epoch = node.StateStopping, "", h.taken.Epoch })
}

func (h *host) fail(state node.State, why string) {
	h.report(func(s *node.Status) {
		s.Epoch = max(s.Epoch, h.taken.Epoch)
		s.State, s.Role, s.PID, s.Error = state, node.RoleNone, 0, why
	})
}

// bringUp starts a server by the order, after its action.
func (h *host) bringUp() {
	o := h.taken
	if h.order.Epoch > o.Epoch { // superseded: the new order wins
		h.job = nil
		h.consider()
		return
	}
	if err := h.forbidden(o); err != nil {
		h.fail(node.StateRefused, err.Error())
		h.jobEnded()
		return
	}
	if why := h.unreachable(o); why != "" { // before anything is overwritten
		h.fail(node.StateFailed, fmt.Sprintf("%s: %s", o.Action, why))
		h.jobEnded()
		return
	}
	if why := h.nothingToRewind(o); why != "" {
		h.fail(node.StateRefused, fmt.Sprintf("%s: %s", o.Action, why))
		h.jobEnded()
		return
	}
	h.working = true
	switch {
	case rules.ActionWanted(o, h.status):
		h.report(func(s *node.Status) {
			s.Epoch, s.State, s.Role, s.PID, s.Error = o.Epoch, node.StateWorking, node.RoleNone, 0, ""
			if o.Action == node.ActionInitDB || o.Action == node.ActionRewind { // a copy is made beside
				s.Unfinished = o.Action
			}
		})
		j, boot := h.job, h.boot
		h.w.after(actionDelay, func() {
			if h.job == j && h.boot == boot {
				h.carryOut(o)
			}
		})
	default:
		if rules.SalvageWanted(o, h.status) {
			h.salvage(o)
		}
		h.start(o)
	}
}

// forbidden says why the order may not be carried out.
func (h *host) forbidden(o node.Order) error {
	rest := rules.AtRest{Done: h.status, Marker: h.status.Unfinished, Empty: func() error {
		if h.data != nil {
			return rules.Refuse("initdb needs an empty data directory")
		}
		return nil
	}}
	if h.data == nil {
		rest.ControlErr = pgcontrol.ErrNoCluster
	} else {
		rest.Control, rest.Standby = h.data.control, h.data.standby
	}
	return rest.Allowed(o)
}

// carryOut is the end of an action.
func (h *host) carryOut(o node.Order) {
	if why := h.action(o); why != "" {
		h.fail(node.StateFailed, fmt.Sprintf("%s: %s", o.Action, why))
		h.jobEnded()
		return
	}
	h.report(func(s *node.Status) {
		s.ActionEpoch = o.Epoch
		if o.Action != node.ActionDiscard {
			s.Unfinished, s.Compared = "", nil
		}
	})
	h.start(o)
}

func (h *host) action(o node.Order) string {
	if h.failing[o.Action] {
		return "told to fail"
	}
	switch o.Action {
	case node.ActionInitDB:
		h.w.nextID++
		h.data = newData(7000 + uint64(h.w.nextID))
		h.data.rights = rights.Version
		h.checkpoint(pgcontrol.StateShutDown)
	case node.ActionDiscard:
		for t := range h.data.history {
			if t >= o.DiscardTimeline {
				delete(h.data.history, t)
			}
		}
	case node.ActionBaseBackup, node.ActionRewind:
		if why := h.unreachable(o); why != "" {
			return why
		}
		u := h.w.byName(o.Upstream.Host)
		if o.Action == node.ActionRewind {
			return h.rewind(u)
		}
		if o.Slot != "" && !u.data.slots[o.Slot] {
			return "replication slot does not exist"
		}
		h.data = u.data.clone()
		h.data.standby = true
		delete(h.failing, node.ActionNone) // its settings are the upstream's now
		h.data.control.State = pgcontrol.StateInArchiveRecovery
	}
	return ""
}

// unreachable says why there is nothing to overwrite the data with.
func (h *host) unreachable(o node.Order) string {
	if !rules.ActionWanted(o, h.status) || o.Upstream == nil {
		return ""
	}
	u := h.w.byName(o.Upstream.Host)
	if u == nil || !u.reachable() || u.server.recovery || !h.connected {
		return "connection refused"
	}
	return ""
}

func newData(systemID uint64) *data {
	return &data{
		systemID: systemID, history: map[wal.Timeline]bool{}, slots: map[string]bool{},
		control: pgcontrol.Data{SystemID: systemID, CheckpointTimeline: 1, SegmentBytes: segmentBytes},
	}
}

// rewind goes by the control files alone, as pg_rewind does; before that it lets
// a server that was not shut down end its recovery, which writes WAL.
func (h *host) rewind(u *host) string {
	if !h.data.control.State.Stopped() {
		h.append(h.data.control.Timeline())
	}
	if u.data.control.CheckpointTimeline <= h.data.control.CheckpointTimeline {
		return "" // no rewind required: it stays as it is
	}
	n := common(h.data.wal, u.data.wal)
	if endOf(u.data.wal, n) < u.data.oldest {
		return "requested WAL segment has already been removed"
	}
	h.data.wal = slices.Clone(u.data.wal)
	h.data.history = maps.Clone(u.data.history)
	h.data.control = u.data.control
	h.data.standby = true
	return ""
}

// salvage copies what the dead node has and this one lacks.
func (h *host) salvage(o node.Order) {
	dead := h.w.byDataDir(o.Salvage.DataDir)
	done := node.Salvaged{Epoch: o.Epoch}
	switch {
	case dead == nil || dead.unreadable || dead.data == nil:
		done.Error = "the dead node's volume cannot be read"
	case dead.locked():
		done.Error = "the server still runs"
	case h.failing[node.ActionSalvage]:
		done.Error = "told to fail"
	case h.data.end() < dead.data.oldest:
		done.Error = "the WAL was removed from the dead node's volume"
	case isPrefix(h.data.wal, dead.data.wal):
		missing := dead.data.wal[len(h.data.wal):]
		h.data.wal = append(h.data.wal, missing...)
		done.Files, done.Bytes = len(missing), int64(len(missing)*recordBytes)
		for t := range dead.data.history {
			if t <= dead.data.control.Timeline() {
				h.data.history[t] = true
			}
		}
	case !isPrefix(dead.data.wal, h.data.wal):
		done.Error = "not the same history"
	}
	h.report(func(s *node.Status) { s.Epoch, s.Salvaged, s.Error = o.Epoch, &done, "" })
}

// provision runs what was ordered.
func (h *host) provision(o node.Order) {
	done := node.Provisioned{Epoch: o.Epoch}
	if h.failing[node.ActionProvision] {
		done.Error = "told to fail"
	}
	for _, b := range o.Provision {
		if done.Error == "" {
			done.Error = h.runs(b.Database, strings.Join(b.SQL, ";\n"))
		}
	}
	h.report(func(s *node.Status) {
		s.Epoch, s.State, s.Role, s.PID, s.Error, s.Provisioned = o.Epoch, node.StateRunning, h.presentRole(), 1, "", &done
		s.UsedEpoch = max(s.UsedEpoch, o.Epoch)
	})
}

// runs is SQL that the superuser runs; empty: it could.
func (h *host) runs(database, sql string) (why string) {
	switch {
	case !h.serves():
		return "connection refused"
	case !h.leads():
		return "cannot execute in a read-only transaction"
	case !slices.Contains(append([]string{"postgres", "template1"}, h.w.databases...), database):
		return fmt.Sprintf("database %q does not exist", database)
	case database == "postgres" && strings.Contains(sql, "COMMENT ON SCHEMA controld"):
		h.data.rights = rights.Version
		for _, x := range h.w.hosts {
			if x.server != nil && x.server.upstream == h {
				x.data.rights = rights.Version
			}
		}
	}
	return ""
}

func (w *World) byDataDir(dir string) *host {
	for _, x := range w.hosts {
		if x.node.DataDir() == dir {
			return x
		}
	}
	return nil
}

// nothingToRewind: only what went on where the leader's timeline branched off has
// anything to take back.
func (h *host) nothingToRewind(o node.Order) string {
	if !rules.ActionWanted(o, h.status) || o.Action != node.ActionRewind {
		return ""
	}
	if o.LeaderDir == "" {
		return "the order does not say where the leader's WAL is"
	}
	if c := compare(h, h.w.byDataDir(o.LeaderDir)); c.Relation != pgwal.Past {
		return "nothing was changed: the WAL is " + string(c.Relation)
	}
	return ""
}

// mayFollow refuses a standby that has WAL of its own.
func (h *host) mayFollow(o node.Order) string {
	if o.Role != node.RoleStandby {
		return ""
	}
	if o.LeaderDir != "" {
		c := compare(h, h.w.byDataDir(o.LeaderDir))
		if c.Relation != pgwal.Unknown || h.status.Diverged() == "" {
			h.report(func(s *node.Status) { s.Compared = &c })
		}
	}
	return h.status.Diverged()
}

// compare says what the WAL of one is to the leader's, as package pgwal does.
func compare(own, leader *host) pgwal.Comparison {
	readable := own != nil && leader != nil && own.data != nil && leader.data != nil && !leader.unreadable
	if !readable || own.data.systemID != leader.data.systemID {
		return pgwal.Comparison{Relation: pgwal.Unknown, Why: "nothing to compare with"}
	}
	mine, theirs := own.data, leader.data
	c := pgwal.Comparison{Relation: pgwal.Same, End: mine.end()}
	n := common(mine.wal, theirs.wal)
	fork := endOf(mine.wal, n)
	left := n < len(theirs.wal) && n < len(mine.wal) && theirs.wal[n].timeline != mine.wal[n].timeline
	switch {
	case n == len(mine.wal) && mine.end() < theirs.oldest:
		c.Relation, c.Why = pgwal.Unknown, "the leader has removed it"
	case n == len(mine.wal):
	case left, n == len(theirs.wal) && mine.wal[n].timeline != theirs.control.Timeline():
		c.Relation, c.At, c.Why = pgwal.Past, fork, "it went on where the leader left"
	default:
		c.Relation, c.At, c.Why = pgwal.Diverged, fork, fmt.Sprintf("its WAL differs from the leader's from %s on", fork)
	}
	return c
}

// start starts the server in the order's role, unless the order was superseded.
func (h *host) start(o node.Order) {
	h.working = false
	if h.order.Epoch > o.Epoch {
		h.job = nil
		h.consider()
		return
	}
	if why := h.mayFollow(o); why != "" {
		h.fail(node.StateRefused, "diverged from the leader: "+why)
		h.jobEnded()
		return
	}
	h.data.standby = o.Role == node.RoleStandby
	h.report(func(s *node.Status) {
		s.Epoch, s.State, s.Role, s.PID, s.Error = o.Epoch, node.StateRunning, o.Role, 1, ""
		if o.Role == node.RolePrimary {
			s.UsedEpoch = o.Epoch
		}
	})
	h.startServer()
	h.jobEnded()
	if h.failing[node.ActionNone] {
		h.w.after(time.Millisecond, func() { h.serverGone(false) })
	}
}
