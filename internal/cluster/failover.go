package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/wal"
)

// Bounds of the steps inside a pause. Clients wait meanwhile, so each is short.
const (
	stopDeadline    = 8 * time.Second  // a fast shutdown after a checkpoint
	proveDeadline   = 3 * time.Second  // the candidate has the shutdown checkpoint
	promoteDeadline = 5 * time.Second  // a candidate that stands still does not lead: it is fenced and its control file read
	replayDeadline  = 5 * time.Minute  // one that replays what it has will
	deathDeadline   = 10 * time.Second // an emergency proves the death, or ends undone
	salvageDeadline = 20 * time.Second
	serveDeadline   = 20 * time.Second // a server that was stopped serves again
	streamDeadline  = 15 * time.Second // the old primary streams again
	leaseEvery      = 2 * time.Second
	pointDeadline   = 5 * time.Second // a RELOAD of the pooler
	resumeDeadline  = 5 * time.Second
	dropDeadline    = 5 * time.Second // an unused slot
	endedDeadline   = 2 * time.Second // the engine knows that a killed container has ended
	settingDeadline = 15 * time.Second
	engineDeadline  = time.Minute // a container's start on a busy machine
	// A checkpoint of much memory on a slow disk; clients run meanwhile.
	checkpointDeadline = 10 * time.Minute
	tick               = time.Millisecond
)

// failoverState is what the steps of a failover learn from each other.
type failoverState struct {
	Mode string `json:"mode"`
	From string `json:"from"` // the old primary
	To   string `json:"to"`   // the candidate, chosen before anything changes

	Timeline     wal.Timeline `json:"timeline"` // before the promotion
	SystemID     uint64       `json:"system_id"`
	SegmentBytes int64        `json:"segment_bytes"`
	Targets      Targets      `json:"targets"`      // of the pooler, after
	Back         Targets      `json:"back"`         // of the pooler, when undone
	RejoinFirst  bool         `json:"rejoin_first"` // failback: To does not stream yet
	Rejoin       rejoinState  `json:"rejoin"`       // then: how far it is brought back
	MaxLoss      int64        `json:"max_loss"`
	Synced       bool         `json:"synced"` // From had a synchronous standby

	Checkpoint  wal.LSN      `json:"checkpoint"` // of the shutdown
	NewTimeline wal.Timeline `json:"new_timeline"`
	PauseMS     float64      `json:"pause_ms"`
	Loss        Loss         `json:"loss"`
	Parted      bool         `json:"parted"` // emergency: To is on a later timeline than From already
	Salvaged    int64        `json:"salvaged_bytes"`
	Rejoined    bool         `json:"rejoined"`
	RejoinMS    int64        `json:"rejoin_ms"` // RESUME sent → the old primary streams
	Unprotected int64        `json:"unprotected_ms"`
	Proof       string       `json:"proof"` // emergency: what proved the death
	// NoWayBack says why the old primary of a planned failover could not be
	// started again; empty: that was not tried, or it could.
	NoWayBack string `json:"no_way_back"`

	pausedAt, resumedAt time.Time // of this process: pauses are measured, not journalled
}

// A failover is one attempt: the parts that its steps share and that a
// restarted daemon makes anew.
type failover struct {
	m        *Manager
	kind     string
	req      FailoverRequest
	sessions sessionCache
	seen     View   // when the mode was decided
	asked    string // who led when that was decided first
	tried    verdict
	primary  *pace // of the primary, as auto has measured it
	lease    *pauseLease
	holds    []string // see entries
	// heldSince is when this process first claimed the pause.
	heldSince time.Time
	pointed   chan error // the pooler's new configuration, written beside the stop
	paused    chan error // an emergency's PAUSE, sent and not awaited
	// wentOn: this process has gone on once where there was no way back.
	wentOn bool
	// stopPause ends that PAUSE; set with paused.
	stopPause context.CancelFunc
}

// Failover starts one: planned or emergency, as the request's mode says. A
// refused precheck returns the refused record and the *operation.Problem.
func (m *Manager) Failover(ctx context.Context, r FailoverRequest, by operation.Caller) (operation.Record, error) {
	if err := r.Validate(m.set.Nodes); err != nil {
		return operation.Record{}, err
	}
	return m.startFailover(ctx, KindFailover, r, by)
}

// primaryGone: the recorded primary is dead, or v does not show it to lead.
func (m *Manager) primaryGone(v View) bool {
	if _, problem := Leader(v); problem != nil {
		return true
	}
	n, err := m.node(m.Identity().Primary)
	return err == nil && m.unlocked(n)
}

// Failback starts a planned failover to the preferred primary, which is
// brought to stream first where it does not.
func (m *Manager) Failback(ctx context.Context, r FailbackRequest, by operation.Caller) (operation.Record, error) {
	if err := r.Validate(); err != nil {
		return operation.Record{}, err
	}
	return m.startFailover(ctx, KindFailback, m.failbackRequest(r), by)
}

func (m *Manager) failbackRequest(r FailbackRequest) FailoverRequest {
	return FailoverRequest{Target: m.set.Preferred, Mode: ModePlanned, Reason: r.Reason, CancelRunning: r.CancelRunning}
}

func (m *Manager) startFailover(ctx context.Context, kind string, r FailoverRequest, by operation.Caller) (operation.Record, error) {
	params, err := json.Marshal(r)
	if err != nil {
		return operation.Record{}, fmt.Errorf("encode request: %w", err)
	}
	spec := operation.Spec{
		Kind: kind, Mode: orAuto(r.Mode), Reason: r.Reason, Caller: by, Params: params, Foreseen: m.foreseen(r), CancelRunning: r.CancelRunning,
	}
	return m.operations.Start(ctx, spec, m.failoverWork(kind, r))
}

// foreseen is the way that a request would take by what was last known.
func (m *Manager) foreseen(r FailoverRequest) map[string]any {
	from, to := m.Identity().Primary, r.Target
	if others := m.others(from); to == "" && len(others) == 1 {
		to = others[0].Name
	}
	return map[string]any{"from": from, "to": to}
}

func orAuto(mode string) string {
	if mode == "" {
		return ModeAuto
	}
	return mode
}

// PlanFailback is the dry run of a failback.
func (m *Manager) PlanFailback(ctx context.Context, r FailbackRequest) (Plan, error) {
	if err := r.Validate(); err != nil {
		return Plan{}, err
	}
	return m.plan(ctx, KindFailback, m.failbackRequest(r))
}

// Plan is the dry run of a failover: what it would do now, with every precheck.
// It changes nothing.
func (m *Manager) Plan(ctx context.Context, r FailoverRequest) (Plan, error) {
	if err := r.Validate(m.set.Nodes); err != nil {
		return Plan{}, err
	}
	return m.plan(ctx, KindFailover, r)
}

func (m *Manager) plan(ctx context.Context, kind string, r FailoverRequest) (Plan, error) {
	f := &failover{m: m, kind: kind, req: r, sessions: sessionCache{servers: m.out.Servers}}
	defer f.sessions.closeAll()
	var s failoverState
	var prepared operation.Prepared
	decided, err := f.decide(ctx, &s)
	if err == nil {
		prepared, err = f.prepare(ctx, &s)
	}
	if prepared.Already == "" {
		way := m.wayCheck(kind, decided, r.CancelRunning)
		prepared.Checks = append(prepared.Checks, way)
		if err == nil {
			err = refusalOf([]operation.Check{way})
		}
	}
	plan := Plan{Kind: kind, Mode: s.Mode, From: s.From, To: s.To, Checks: prepared.Checks, WouldRun: err == nil}
	if s.Mode != "" && prepared.Already == "" {
		for _, st := range f.steps(&s) {
			plan.Steps = append(plan.Steps, st.Name)
		}
	}
	var refusal *operation.Problem
	if errors.As(err, &refusal) {
		plan.Refusal = refusal
		return plan, nil
	}
	return plan, err
}

// wayCheck says what would become of an operation that is in the way.
func (m *Manager) wayCheck(kind string, d operation.Decision, cancelRunning bool) operation.Check {
	what, busy := m.operations.InTheWay(kind, d, cancelRunning)
	return check("nothing-in-the-way", busy == nil, "operation-running", nil, "%s", what)
}

func (m *Manager) failoverWork(kind string, r FailoverRequest) operation.Runnable {
	f := &failover{m: m, kind: kind, req: r, sessions: sessionCache{servers: m.out.Servers}}
	return operation.Work[failoverState]{
		Decide:   f.decide,
		Prepare:  f.prepare,
		Steps:    f.steps,
		NoReturn: stepPromote,
		Past:     f.past,
		Left:     f.left,
		GiveUp:   f.giveUp,
		Result:   f.result,
		Close:    f.close,
	}
}

// close gives back what the operation held open, and looks once more: whoever
// is told that it ended finds its result in the next view.
func (f *failover) close() {
	f.stopLease()
	f.sessions.closeAll()
	f.m.lookAgain(context.Background())
}

func (f *failover) result(s *failoverState) map[string]any {
	out := map[string]any{"from": s.From, "to": s.To}
	if s.NewTimeline != 0 {
		out["timeline"] = s.NewTimeline
	}
	if s.PauseMS > 0 { // not known to a process that did not see it begin
		out["pause_ms"] = s.PauseMS
	}
	if s.NewTimeline != 0 {
		out["lost_bytes"] = s.Loss.Bytes
		out["estimate"] = s.Loss.Estimate
		out["rejoined"] = s.Rejoined
	}
	if s.Mode == ModeEmergency {
		out["salvaged_bytes"] = s.Salvaged
		out["proof_of_death"] = s.Proof
	}
	if s.NoWayBack != "" {
		out["old_primary_failed"] = s.NoWayBack
	}
	if s.RejoinMS > 0 {
		out["rejoin_ms"] = s.RejoinMS
	}
	if s.Synced {
		out["unprotected_ms"] = s.Unprotected
	}
	return out
}

// decide observes anew, and decides the mode and the candidate.
func (f *failover) decide(ctx context.Context, s *failoverState) (operation.Decision, error) {
	f.seen = f.lookForCandidate(ctx)
	var d operation.Decision
	if f.m.primaryGone(f.seen) {
		d.Facts = append(d.Facts, operation.PrimaryGone)
	}
	if err := f.choose(ctx, f.seen, s); err != nil {
		return d, err
	}
	d.Mode = s.Mode
	if f.asked == "" {
		f.asked = s.From
	}
	if f.kind == KindFailover && f.asked != s.From { // another one has moved it since
		return d, operation.Refuse("unexpected-primary", map[string]any{"primary": s.From, "expected_primary": f.asked},
			"%s led when this was asked for, %s leads now, after another operation; nothing was done", f.asked, s.From)
	}
	return d, nil
}

// prepare checks what can be checked before anything changes, in what was seen when
// the mode was decided: what excludes a failover has not ended since.
func (f *failover) prepare(ctx context.Context, s *failoverState) (operation.Prepared, error) {
	v, p := f.seen, operation.Prepared{Mode: s.Mode}
	if s.Mode == ModePlanned && s.From != s.To {
		v = f.awaitAnswers(ctx, v, s)
	}
	if f.kind == KindFailback && s.From == s.To {
		p.Already = s.To + " leads already"
		return p, nil
	}
	p.Checks = f.checks(ctx, v, s)
	if err := refusalOf(p.Checks); err != nil || s.RejoinFirst { // which may be down yet
		return p, err
	}
	return p, f.reachable(s)
}

// refusalOf makes the first failed check the refusal.
func refusalOf(checks []operation.Check) error {
	for _, c := range checks {
		if !c.OK {
			return &operation.Problem{Type: c.Problem, Detail: c.Detail, Numbers: c.Numbers}
		}
	}
	return nil
}

// choose fills in who leads, who is to lead, and by which mode.
func (f *failover) choose(ctx context.Context, v View, s *failoverState) error {
	leader, problem := Leader(v)
	if problem != nil {
		if problem.Type == "/problems/two-primaries" && f.req.Target == "" {
			return problem
		}
		var err error
		if leader, err = f.missingLeader(v); err != nil {
			return err
		}
	}
	s.From, s.Timeline = leader.Node.Name, leader.Timeline()
	if f.req.ExpectedPrimary != "" && f.req.ExpectedPrimary != s.From {
		return operation.Refuse("unexpected-primary", map[string]any{"primary": s.From, "expected_primary": f.req.ExpectedPrimary},
			"%s leads, not %s as the request expects; nothing was done", s.From, f.req.ExpectedPrimary)
	}
	if err := f.chooseTarget(v, s); err != nil {
		return err
	}
	if f.kind == KindFailback && s.From == s.To {
		return nil
	}
	mode, err := f.chooseMode(ctx, leader)
	if err != nil {
		return err
	}
	s.Mode = mode
	s.MaxLoss = f.m.set.MaxLossBytes
	if f.req.MaxLossBytes != nil {
		s.MaxLoss = *f.req.MaxLossBytes
	}
	f.addresses(ctx, v, s)
	return nil
}

// reachable refuses a candidate whose address nobody knows. It is asked last: one
// that is down has none either, and the checks say that better.
func (f *failover) reachable(s *failoverState) error {
	_, to := f.nodes(s)
	if s.Targets.Primary == "" {
		return operation.Refuse("precheck-failed", nil, "where %s is to be reached is not known: the engine does not say it. See that docker inspect %s answers, then try again", s.To, to.Container)
	}
	return nil
}

// missingLeader is the node to move away from when no single server leads: the
// recorded primary, or the node that is not the target.
func (f *failover) missingLeader(v View) (NodeState, error) {
	recorded := f.m.Identity().Primary
	if f.req.Target != "" && (recorded == "" || recorded == f.req.Target) {
		for _, s := range v.Nodes {
			if s.Node.Name != f.req.Target {
				return s, nil
			}
		}
	}
	if s, ok := v.Node(recorded); ok {
		return s, nil
	}
	return NodeState{}, operation.Refuse("no-primary", nil,
		"no node leads and the journal knows no primary; name the node that shall lead in target, with mode emergency")
}

func (f *failover) chooseTarget(v View, s *failoverState) error {
	if f.req.Target == "" {
		best, problem := BestStandby(v, s.From)
		if problem != nil {
			return problem
		}
		s.To = best.Node.Name
		return nil
	}
	s.To = f.req.Target
	if s.To == s.From && f.kind != KindFailback {
		return operation.Refuse("already-primary", map[string]any{"primary": s.From}, "%s leads already; name another target or none", s.To)
	}
	return nil
}

// addresses are where the pooler's entries shall lead, and, undone, led.
func (f *failover) addresses(ctx context.Context, v View, s *failoverState) {
	from, _ := v.Node(s.From)
	to, _ := v.Node(s.To)
	old, next := from.Container.Address, f.m.address(ctx, to.Node)
	s.Targets = Targets{Primary: next, Standby: next, Probe: next}
	s.Back = Targets{Primary: old, Standby: next, Probe: old}
	f.holds = nil // by the view of today
	if len(f.entries()) > len(f.m.set.Databases) {
		s.Back.Standby = old // the readers are there yet, and are held with the others
	}
	if old == "" {
		s.Back = s.Targets
	}
	for _, n := range []NodeState{to, from} {
		if n.Server != nil && s.SystemID == 0 {
			s.SystemID, s.SegmentBytes = n.Server.SystemID, n.Server.SegmentBytes
		}
	}
	s.Synced = commitsWait(from)
	s.RejoinFirst = f.kind == KindFailback && !follows(to, from)
}

func (f *failover) checks(ctx context.Context, v View, s *failoverState) []operation.Check {
	from, _ := v.Node(s.From)
	to, _ := v.Node(s.To)
	if s.RejoinFirst {
		return f.m.rejoinFirstChecks(v, from)
	}
	if s.Mode == ModeEmergency {
		return f.emergencyChecks(v, from, to, s)
	}
	checks := f.m.plannedChecks(v, from, to)
	if from.Role() == RolePrimary && to.Role() == RoleStandby {
		checks = append(checks, f.paceCheck(ctx, from, to))
	}
	return checks
}

// steps is the list for the mode that was chosen.
func (f *failover) steps(s *failoverState) []operation.Step[failoverState] {
	if s.Mode == ModeEmergency {
		return f.emergencySteps()
	}
	if s.RejoinFirst {
		return append(f.rejoinSteps(s), f.plannedSteps()...)
	}
	return f.plannedSteps()
}

func (f *failover) nodes(s *failoverState) (from, to Node) {
	from, _ = f.m.node(s.From)
	to, _ = f.m.node(s.To)
	return from, to
}

// A pauseLease renews the claim on a pause until it is stopped, or for limit at
// the most: a daemon that hangs must not hold the clients.
type pauseLease struct {
	cancel  context.CancelFunc
	done    chan struct{}
	began   time.Time
	limit   time.Duration
	mu      sync.Mutex
	renewed time.Time
	err     error
}

// holdLease claims the pause before it is asked for.
func (f *failover) holdLease() error {
	if f.lease != nil {
		return nil
	}
	databases := f.entries()
	if err := f.m.out.Pooler.RenewLease(f.kind, databases); err != nil {
		return fmt.Errorf("claim the pause: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	now := time.Now()
	if f.heldSince.IsZero() {
		f.heldSince = now
	}
	l := &pauseLease{cancel: cancel, done: make(chan struct{}), began: now, renewed: now, limit: f.m.set.PauseLimit}
	f.lease = l
	go func() {
		defer close(l.done)
		for sleep(ctx, leaseEvery) == nil && time.Since(l.began) < l.limit && l.valid() == nil {
			now := time.Now() // the claim is as old as the act, not as its end
			err := f.m.out.Pooler.RenewLease(f.kind, databases)
			l.mu.Lock()
			if l.err = err; err == nil {
				l.renewed = now
			}
			l.mu.Unlock()
		}
	}()
	return nil
}

// held reports whether the pause is still ours: not, once the pooler's init may
// have resumed the clients.
func (f *failover) held() error {
	if f.lease == nil {
		return errors.New("the pause is not claimed any more")
	}
	return f.lease.valid()
}

// valid fails once the claim is so old that the pooler's init may have ended the
// pause. From then on it is not renewed either: a process that was stopped for a
// while must not take up again what it has lost.
func (l *pauseLease) valid() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if since := time.Since(l.renewed); since >= node.LeaseDuration-leaseEvery {
		return fmt.Errorf("the claim on the pause was last renewed %s ago: %w", since.Round(time.Millisecond), errors.Join(l.err, context.DeadlineExceeded))
	}
	return nil
}

func (f *failover) stopLease() {
	if f.lease == nil {
		return
	}
	f.lease.cancel()
	<-f.lease.done
	f.lease = nil
}

// entries are what a pause holds: the clients' databases, and those of their
// read-only twins that lead where they do, as long as a standby that is back has
// not got its readers.
func (f *failover) entries() []string {
	if f.holds != nil {
		return f.holds
	}
	f.holds = slices.Clone(f.m.set.Databases)
	var primary string
	for d := range f.m.View().Pooler.Clients() {
		if d.Name == f.m.set.Databases[0] {
			primary = d.Host
		}
	}
	for d := range f.m.View().Pooler.Clients() {
		if primary != "" && d.Host == primary && strings.HasSuffix(d.Name, ReadOnlySuffix) {
			f.holds = append(f.holds, d.Name)
		}
	}
	return f.holds
}

// each does the same with every entry that a pause holds at once, each over its own
// connection, and goes on after an error: what can be paused or released is.
func (f *failover) each(ctx context.Context, do func(context.Context, string) error) error {
	entries := f.entries()
	errs := make([]error, len(entries))
	var wg sync.WaitGroup
	for i, db := range entries {
		wg.Go(func() { errs[i] = do(ctx, db) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// past reports whether the candidate leads on a new timeline, on its disk: the
// point of no return is that fact, not a call. A candidate that does not say so
// within the deadline is fenced, so that a promotion still on its way cannot
// happen later.
func (f *failover) past(ctx context.Context, s *failoverState) (bool, error) {
	_, to := f.nodes(s)
	if f.leads(ctx, to, s) {
		return true, nil
	}
	f.sessions.drop(to)
	if err := f.m.fence(ctx, to, nil); err != nil {
		return false, fmt.Errorf("find out whether %s was promoted: %w", to.Name, err)
	}
	control, err := f.m.out.Volumes.Control(to)
	if err != nil {
		return false, fmt.Errorf("find out whether %s was promoted: %w", to.Name, err)
	}
	return control.Timeline() > s.Timeline, nil
}

// giveUp notes that the new primary leads, where it does: controld looks after it
// from then on, and brings about what the operation did not.
func (f *failover) giveUp(ctx context.Context, s *failoverState) error {
	_, to := f.nodes(s)
	if f.m.Identity().Primary == to.Name || !f.leads(ctx, to, s) {
		return nil
	}
	return f.m.recordPrimary(to, s.SystemID, s.NewTimeline, f.m.set.Replication != Strict)
}

func (f *failover) leads(ctx context.Context, to Node, s *failoverState) bool {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	pos, err := f.sessions.position(ctx, to)
	if err != nil || pos.InRecovery || pos.Timeline <= s.Timeline {
		return false
	}
	s.NewTimeline = pos.Timeline
	return true
}

// fence withdraws a node's order, kills what runs of it, and returns when the
// death is proved: a kill that was sent proves nothing. cut, if any, is called
// once when the proof is late.
func (m *Manager) fence(ctx context.Context, n Node, cut func(context.Context)) error {
	if err := m.withdraw(n); err != nil {
		return err
	}
	if m.lockFree(n) {
		return nil
	}
	if _, err := m.killAndProve(ctx, n, cut); err != nil {
		return err
	}
	m.awaitEnded(ctx, n)
	return nil
}

// lockFree is the proof that no process of n's server is left: the lock on its
// volume is free. It proves nothing where the volume is not seen as the node
// sees it, and the lock file is missing for that.
func (m *Manager) lockFree(n Node) bool {
	if !m.unlocked(n) {
		return false
	}
	_, err := m.out.Volumes.Control(n)
	return err == nil
}

// unlocked: nobody is seen to hold the lock on n's volume. That proves a death
// only together with something else, such as lockFree or the engine's word.
func (m *Manager) unlocked(n Node) bool {
	locked, err := m.out.Volumes.Locked(n)
	return err == nil && !locked
}

// awaitEnded waits until the engine knows of a container's end too, which the
// lock proves some 200 ms before: until then it would not start it again.
func (m *Manager) awaitEnded(ctx context.Context, n Node) {
	ctx, cancel := context.WithTimeout(ctx, endedDeadline)
	defer cancel()
	_ = poll(ctx, 20*time.Millisecond, func() (bool, error) {
		c, err := m.out.Engine.Inspect(ctx, n.Container)
		return err == nil && !c.Running, nil
	})
}

// withdraw makes the node's order none, durably. One that is withdrawn already
// is left: its epoch may be on its way through the init.
func (m *Manager) withdraw(n Node) error {
	if o, err := m.out.Volumes.Order(n); err == nil && o.Role == node.RoleNone {
		return nil
	}
	_, err := m.order(n, node.Order{Role: node.RoleNone})
	return err
}

// cutAfter is how long a proof of death may be missing before the dying node is
// cut from its clients.
const cutAfter = 300 * time.Millisecond

// killAndProve kills the node's container and waits for a proof: the lock on
// its volume is free, or the engine says that the container has ended. Which
// one it was is returned.
func (m *Manager) killAndProve(ctx context.Context, n Node, cut func(context.Context)) (proof string, err error) {
	ctx, cancel := context.WithTimeout(ctx, deathDeadline)
	defer cancel()
	killed := make(chan error, 1)
	go func() { killed <- m.out.Engine.Kill(ctx, n.Container) }()
	defer func() {
		if killErr := <-killed; killErr != nil && err != nil {
			err = errors.Join(err, killErr)
		}
	}()
	began := time.Now()
	for i := 0; ; i++ {
		if m.lockFree(n) {
			return "lock", nil
		}
		if i%25 == 24 {
			// One that is not found under its name may have another.
			if c, err := m.out.Engine.Inspect(ctx, n.Container); err == nil && !c.Running && (c.Exists || m.unlocked(n)) {
				return "engine", nil
			}
		}
		if cut != nil && time.Since(began) > cutAfter {
			cut(ctx)
			cut = nil
		}
		if sleep(ctx, 2*tick) != nil {
			// No refusal: the order is withdrawn, so something was touched.
			return "", fmt.Errorf(
				"the death of %s is not proved: the lock on its volume is held or cannot be seen, and the engine does not say that its container ended. Its order stays withdrawn; end the container (docker kill -s KILL %s) and ask again",
				n.Name, n.Container)
		}
	}
}
