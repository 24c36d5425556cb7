package cluster

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"controld/internal/node"
	"controld/internal/operation"
)

// A HealthStatus is the answer to a monitoring system.
type HealthStatus string

// The three answers. Degraded: clients can write, but something needs a person.
const (
	HealthOK       HealthStatus = "ok"
	HealthDegraded HealthStatus = "degraded"
	HealthDown     HealthStatus = "down"
)

// Limits beyond which a component is no longer healthy.
const (
	// StaleIntervals is how many observation intervals a fact stays true.
	StaleIntervals = 3
	// UnhealthyLagBytes is the precheck's default limit too: a standby that
	// lags more cannot take over in a planned failover.
	UnhealthyLagBytes = 16 << 20
	UnhealthyLag      = 30 * time.Second
	// UnhealthyArchiveReady is how many segments may wait for the archive.
	UnhealthyArchiveReady = 64
	// A data volume with less than both of these left is low.
	LowDiskBytes    = 1 << 30
	LowDiskFraction = 0.1
)

// Expectation is what the journal holds of the cluster.
type Expectation struct {
	Primary   string // the node that shall lead; empty: no cluster is known yet
	Epoch     uint64
	Preferred string // where a failback returns to
}

// Health is what /health answers: the whole, and every component by itself.
type Health struct {
	Status     HealthStatus
	Reason     string // a stable word such as no-primary; empty when ok
	Detail     string // the same in a sentence
	Do         string // what to do next
	Components []ComponentHealth
	ObservedAt time.Time
	Operation  string // id of the open operation, if there is one
}

// ComponentHealth is one part of the cluster.
type ComponentHealth struct {
	Name   string
	Status HealthStatus
	Reason string
	Detail string
	Do     string
}

// Names of the components that are not nodes.
const (
	ComponentPrimary     = "primary"
	ComponentStart       = "start" // only where a person has to choose who leads
	ComponentReplication = "replication"
	ComponentPooler      = "pooler"
	ComponentArchiving   = "archiving"
	ComponentRedis       = "redis"
	ComponentDisk        = "disk"
)

// AssessHealth judges one observation. open are the operations that hold the cluster.
func AssessHealth(view View, expected Expectation, open []operation.Record, now time.Time, interval time.Duration) Health {
	a := assessment{view: view, expected: expected, now: now, limit: StaleIntervals * interval}
	a.running, a.incomplete = firstIn(open, operation.Running), firstIn(open, operation.Incomplete)
	h := Health{ObservedAt: view.At}
	if op := a.open(); op != nil {
		h.Operation = op.ID
	}
	if a.old(view.At) {
		c := a.stale(ComponentPrimary)
		h.Components = []ComponentHealth{c}
		return h.judged()
	}
	h.Components = append(h.Components, a.primary(), a.replication(), a.pooler())
	for _, s := range view.Nodes {
		h.Components = append(h.Components, a.node(s))
	}
	h.Components = append(h.Components, a.archiving(), a.redis())
	for _, s := range view.Nodes {
		if s.TotalBytes > 0 {
			h.Components = append(h.Components, AssessDisk(s.Node.Name, s.FreeBytes, s.TotalBytes))
		}
	}
	return h.judged()
}

// first returns the health with c as the component of the most weight: what it
// says to do is what the whole says. What is stale keeps its word.
func (h Health) first(c ComponentHealth) Health {
	if h.Reason == "stale" {
		return h
	}
	h.Components = slices.Insert(slices.Clone(h.Components), 0, c)
	return h.judged()
}

// judged derives the whole from the components: clients can write or not is
// what the primary's says, everything else only degrades. The first that is
// not ok gives the reason, so the order of the components is that of weight.
func (h Health) judged() Health {
	h.Status, h.Reason, h.Detail, h.Do = HealthOK, "", "", ""
	for _, c := range h.Components {
		if c.Status == HealthOK {
			continue
		}
		if h.Status == HealthOK {
			h.Status, h.Reason, h.Detail, h.Do = HealthDegraded, c.Reason, c.Detail, c.Do
		}
		if c.Name == ComponentPrimary && c.Status == HealthDown {
			h.Status = HealthDown
		}
	}
	return h
}

// AssessDisk judges the space left on a node's data volume.
func AssessDisk(nodeName string, freeBytes, totalBytes int64) ComponentHealth {
	name := ComponentDisk + " " + nodeName
	if freeBytes >= LowDiskBytes || float64(freeBytes) >= LowDiskFraction*float64(totalBytes) {
		return ComponentHealth{Name: name, Status: HealthOK}
	}
	return bad(name, HealthDegraded, "disk-low",
		fmt.Sprintf("%d of %d bytes are left on the data volume of %s", freeBytes, totalBytes, nodeName),
		"Free space on the engine's disk or grow it; see GET /cluster for a slot that holds WAL back. PostgreSQL stops when the disk is full.")
}

// Writable reports whether the node called name may be given to a client that wants to write: it
// leads, its order says so and is not withdrawn, and all of that is fresh. The
// answer false comes with its reason.
func Writable(view View, name string, now time.Time, interval time.Duration) (bool, string) {
	s, ok := view.Node(name)
	limit := StaleIntervals * interval
	switch {
	case !ok:
		return false, "there is no such node"
	case olderThan(view.At, now, limit) || olderThan(s.SeenAt, now, limit):
		return false, "the last observation is stale"
	case s.Role() != RolePrimary:
		return false, "its role is " + string(s.Role())
	case s.Order.Role != node.RolePrimary:
		return false, "its order as primary is withdrawn"
	}
	for _, other := range view.Nodes {
		if other.Node.Name != name && other.Role() == RolePrimary && other.Order.Role == node.RolePrimary && other.Order.Epoch > s.Order.Epoch {
			return false, other.Node.Name + " leads by a newer order"
		}
	}
	return true, ""
}

// Readable reports whether the node called name may be given to a client that only reads: a
// standby that answers and lags no more than maxLagBytes (negative: any lag, also of one that was cut off).
func Readable(view View, name string, now time.Time, interval time.Duration, maxLagBytes int64) (bool, string) {
	s, ok := view.Node(name)
	limit := StaleIntervals * interval
	switch {
	case !ok:
		return false, "there is no such node"
	case olderThan(view.At, now, limit) || olderThan(s.SeenAt, now, limit):
		return false, "the last observation is stale"
	case s.Role() != RoleStandby:
		return false, "its role is " + string(s.Role())
	case s.Diverged() != "":
		return false, "it has diverged: " + s.Diverged()
	}
	lag, known := view.LagBytes(name)
	switch {
	case maxLagBytes < 0:
		return true, ""
	case !known:
		return false, "its lag is unknown: no primary answers"
	case lag > maxLagBytes:
		return false, fmt.Sprintf("it lags %d bytes", lag)
	}
	return true, ""
}

// LagBytes is how much of the primary's WAL the standby called name has not
// replayed; false when either is not known, or the standby has other WAL.
func (v View) LagBytes(name string) (int64, bool) {
	s, ok := v.Node(name)
	if !ok || s.Role() != RoleStandby || s.Diverged() != "" { // then its position says nothing
		return 0, false
	}
	for _, p := range v.Nodes {
		if p.Role() == RolePrimary {
			return s.Server.Replayed.Behind(p.Server.Flushed), true
		}
	}
	return 0, false
}

// assessment is one observation while it is judged.
type assessment struct {
	view                View
	expected            Expectation
	now                 time.Time
	limit               time.Duration // what is older is not known any more
	running, incomplete *operation.Record
}

func (a assessment) open() *operation.Record {
	if a.running != nil {
		return a.running
	}
	return a.incomplete
}

func (a assessment) old(t time.Time) bool { return olderThan(t, a.now, a.limit) }

func olderThan(t, now time.Time, limit time.Duration) bool {
	return t.IsZero() || now.Sub(t) > limit
}

// with returns the nodes that had the role in a fresh answer.
func (a assessment) with(role Role) []NodeState {
	var found []NodeState
	for _, s := range a.view.Nodes {
		if s.Role() == role && !a.old(s.SeenAt) {
			found = append(found, s)
		}
	}
	return found
}

func (a assessment) stale(name string) ComponentHealth {
	detail := "nothing was observed yet"
	if !a.view.At.IsZero() {
		detail = fmt.Sprintf("the last observation was made %s ago, the limit is %s", a.now.Sub(a.view.At).Round(time.Millisecond), a.limit)
	}
	return bad(name, HealthDown, "stale", detail,
		"Wait a few seconds after a start. If it stays, controld's observation loop hangs: read its log (docker logs) and restart the controld container; the database runs on without it.")
}

func (a assessment) primary() ComponentHealth {
	leaders := a.with(RolePrimary)
	switch {
	case len(leaders) > 1:
		return a.twoPrimaries(leaders)
	case len(leaders) == 0:
		return a.noPrimary()
	}
	p := leaders[0]
	switch {
	case a.inPause():
		return a.paused()
	case a.running != nil:
		// orders and roles change on purpose while it runs
	case p.Order.Role != node.RolePrimary:
		return bad(ComponentPrimary, HealthDegraded, "order-withdrawn",
			fmt.Sprintf("%s leads although its order as primary is withdrawn; it would not start again", p.Node.Name),
			fmt.Sprintf("If it shall lead, give its order back: controld start %s. If not, move the primary: controld failover.", p.Node.Name))
	case a.expected.Primary == "":
		return bad(ComponentPrimary, HealthDegraded, "not-recorded",
			fmt.Sprintf("%s leads, and the journal does not say so yet", p.Node.Name),
			"controld records it by itself within a few intervals. If it stays, read controld's log.")
	case p.Node.Name != a.expected.Primary:
		return bad(ComponentPrimary, HealthDegraded, "unexpected-primary",
			fmt.Sprintf("%s leads, the journal says %s", p.Node.Name, a.expected.Primary),
			fmt.Sprintf("Somebody promoted it past controld. Compare both in GET /cluster; controld start %s makes the present state the recorded one.", p.Node.Name))
	}
	if a.incomplete != nil {
		return bad(ComponentPrimary, HealthDegraded, "incomplete",
			fmt.Sprintf("%s %s failed past its point of no return and is being retried", a.incomplete.Kind, a.incomplete.ID),
			fmt.Sprintf("See which step hangs and why: controld operations show %s.", a.incomplete.ID))
	}
	if c, found := a.notAnswering(ComponentPrimary, p); found {
		return c
	}
	if p.Full {
		return bad(ComponentPrimary, HealthDegraded, "connections-full",
			fmt.Sprintf("%s serves, and has no connection left for controld: what is said of it is what it said before", p.Node.Name),
			"See who holds its connections (as root on its socket: select usename, application_name, count(*) from pg_stat_activity group by 1, 2), or raise max_connections.")
	}
	return fine(ComponentPrimary)
}

// notAnswering is of a server that answers nothing any more, or takes no new connection,
// while no fact says that it does not serve.
func (a assessment) notAnswering(component string, s NodeState) (ComponentHealth, bool) {
	do := fmt.Sprintf("Look at the load of its host and its container (docker stats %s). It counts as lost after %s without any answer; if it hangs: controld failover.", s.Node.Container, silenceLimit)
	switch {
	case a.running != nil:
		return ComponentHealth{}, false // it may be left alone on purpose
	case s.Late && a.old(s.AnsweredAt):
		return bad(component, HealthDegraded, "not-answering",
			fmt.Sprintf("%s has not answered for %s; what is said of it is what it said then", s.Node.Name, a.now.Sub(s.AnsweredAt).Round(100*time.Millisecond)), do), true
	case !s.LoginFailingSince.IsZero() && a.now.Sub(s.LoginFailingSince) > silenceLimit:
		return bad(component, HealthDegraded, "not-answering",
			fmt.Sprintf("%s answers over an open connection, and has let nobody in for %s: %v", s.Node.Name, a.now.Sub(s.LoginFailingSince).Round(time.Second), s.LoginErr), do), true
	}
	return ComponentHealth{}, false
}

// inPause: an operation holds the clients back on purpose.
func (a assessment) inPause() bool {
	return a.running != nil && slices.ContainsFunc(a.view.Pooler.Databases, func(d PoolerDatabase) bool { return d.Paused })
}

func (a assessment) paused() ComponentHealth {
	return bad(ComponentPrimary, HealthDegraded, "pause",
		fmt.Sprintf("clients are held by %s %s for a moment", a.running.Kind, a.running.ID),
		fmt.Sprintf("Nothing; the pause is bounded. Follow it: controld operations follow %s.", a.running.ID))
}

func (a assessment) twoPrimaries(leaders []NodeState) ComponentHealth {
	do := "Decide which one holds the data that counts, kill the other's container (docker kill -s KILL), then rejoin it: controld rejoin NAME."
	for _, s := range leaders {
		if s.Node.Name != a.expected.Primary && a.expected.Primary != "" {
			do = fmt.Sprintf("The journal says %s. Stop the other now: docker kill -s KILL %s; then controld rejoin %s. What was written to it is not on %s.",
				a.expected.Primary, s.Node.Container, s.Node.Name, a.expected.Primary)
		}
	}
	return bad(ComponentPrimary, HealthDown, "two-primaries", "these nodes all accept writes: "+names(leaders), do)
}

func (a assessment) noPrimary() ComponentHealth {
	standbys := a.with(RoleStandby)
	switch {
	case a.inPause():
		return a.paused()
	case a.open() != nil:
		op := a.open()
		return bad(ComponentPrimary, HealthDown, "no-primary",
			fmt.Sprintf("no node accepts writes; %s %s is at work", op.Kind, op.ID),
			fmt.Sprintf("Wait for it: controld operations follow %s.", op.ID))
	case len(standbys) > 1 && len(standbys) == len(a.view.Nodes):
		return bad(ComponentPrimary, HealthDown, "all-in-recovery",
			"every node answers, and all are in recovery: "+names(standbys),
			fmt.Sprintf("Choose who leads: controld start %s for the recorded primary, or controld failover --target NAME.", a.recorded()))
	case a.expected.Primary == "":
		return bad(ComponentPrimary, HealthDown, "no-primary",
			"no node accepts writes, and the journal knows no primary",
			"A first start takes a minute. If it stays, the nodes contradict each other: compare timelines and LSNs in GET /cluster, then choose: controld start NAME.")
	case len(standbys) > 0:
		return bad(ComponentPrimary, HealthDown, "no-primary",
			fmt.Sprintf("%s does not accept writes; %s in recovery", a.expected.Primary, isOrAre(standbys)),
			fmt.Sprintf("Move the primary: controld failover. Or start the old one in place: controld start %s.", a.expected.Primary))
	}
	return bad(ComponentPrimary, HealthDown, "no-primary",
		fmt.Sprintf("%s does not accept writes, and no standby answers", a.expected.Primary),
		fmt.Sprintf("Start the recorded primary in place: controld start %s.", a.expected.Primary))
}

func (a assessment) recorded() string {
	if a.expected.Primary == "" {
		return "NAME"
	}
	return a.expected.Primary
}

func (a assessment) replication() ComponentHealth {
	leaders := a.with(RolePrimary)
	if len(leaders) != 1 {
		return bad(ComponentReplication, HealthDegraded, "no-primary", "there is no single primary to replicate from", "See the component primary.")
	}
	p := leaders[0]
	if c, found := syncBlocked(p); found {
		return c
	}
	standbys := a.with(RoleStandby)
	if len(standbys) == 0 {
		for _, s := range a.view.Nodes { // it says why it does not start
			if c, found := divergedHealth(ComponentReplication, s); found {
				return c
			}
		}
		return bad(ComponentReplication, HealthDegraded, "no-standby",
			fmt.Sprintf("no standby answers; the loss of %s would be an outage", p.Node.Name), a.bringBack(p))
	}
	for _, s := range standbys {
		if c, found := standbyTrouble(p, s); found {
			return c
		}
	}
	return fine(ComponentReplication)
}

// bringBack says what to do about the nodes that should be standbys of p.
func (a assessment) bringBack(p NodeState) string {
	for _, s := range a.view.Nodes {
		if s.Node.Name != p.Node.Name {
			return fmt.Sprintf("Bring %s back: controld start %s; if that does not make it stream, controld rejoin %s.", s.Node.Name, s.Node.Name, s.Node.Name)
		}
	}
	return "Add a second node."
}

func syncBlocked(p NodeState) (ComponentHealth, bool) {
	wanted := p.Server.Settings["synchronous_standby_names"]
	if wanted == "" || inSync(*p.Server) {
		return ComponentHealth{}, false
	}
	do := "Bring the standby back (controld start or rejoin). With replication.mode sync controld lifts the wait after replication.sync_timeout; with strict it does not."
	if overridden(p, synchronousNames) {
		do = "Somebody set that by ALTER SYSTEM, so controld does not lift it. ALTER SYSTEM RESET synchronous_standby_names and a reload give it back to controld."
	}
	return bad(ComponentReplication, HealthDegraded, "sync-blocked",
		fmt.Sprintf("commits on %s wait for a synchronous standby (%s), and none is in sync", p.Node.Name, wanted), do), true
}

func standbyTrouble(p, s NodeState) (ComponentHealth, bool) {
	name := s.Node.Name
	if c, found := divergedHealth(ComponentReplication, s); found {
		return c, true
	}
	slot := slices.IndexFunc(p.Server.Slots, func(x Slot) bool { return x.Name == s.Node.Slot() })
	if slot >= 0 && p.Server.Slots[slot].WALStatus == "lost" {
		return bad(ComponentReplication, HealthDegraded, "slot-lost",
			fmt.Sprintf("WAL that %s needs was removed: its slot exceeded max_slot_wal_keep_size", name),
			fmt.Sprintf("Copy it anew: controld rejoin %s --method basebackup.", name)), true
	}
	if s.Server.Timeline < p.Server.Timeline {
		return bad(ComponentReplication, HealthDegraded, "timeline",
			fmt.Sprintf("%s is on timeline %d, the primary on %d", name, s.Server.Timeline, p.Server.Timeline),
			fmt.Sprintf("It follows within seconds after a failover. If it stays: controld rejoin %s.", name)), true
	}
	if r := s.Server.Receiver; r == nil || r.Status != "streaming" {
		return bad(ComponentReplication, HealthDegraded, "not-streaming",
			fmt.Sprintf("%s is a standby and does not stream from %s", name, p.Node.Name),
			fmt.Sprintf("Read its log (docker logs %s); then controld rejoin %s.", s.Node.Container, name)), true
	}
	if s.Server.ReplayPaused {
		return bad(ComponentReplication, HealthDegraded, "replay-paused", "replay on "+name+" is paused",
			"Somebody called pg_wal_replay_pause(); pg_wal_replay_resume() on "+name+" ends it."), true
	}
	if lag := s.Server.Replayed.Behind(p.Server.Flushed); lag > UnhealthyLagBytes || s.Server.Lag > UnhealthyLag {
		return bad(ComponentReplication, HealthDegraded, "lag",
			fmt.Sprintf("%s lags %d bytes and %s", name, lag, s.Server.Lag.Round(time.Millisecond)),
			"Look for a long query on it that conflicts with replay, or a load that outruns its disk. A planned failover is refused while it lags."), true
	}
	return ComponentHealth{}, false
}

// divergedHealth is of a node that has other WAL than the primary.
func divergedHealth(component string, s NodeState) (ComponentHealth, bool) {
	why := s.Diverged()
	if why == "" {
		return ComponentHealth{}, false
	}
	return bad(component, HealthDegraded, "diverged",
		fmt.Sprintf("%s has other WAL than the primary: %s. It does not follow, and cannot lead", s.Node.Name, why),
		fmt.Sprintf("controld copies it anew by itself; at once: controld rejoin %s --method basebackup.", s.Node.Name)), true
}

func (a assessment) pooler() ComponentHealth {
	p := a.view.Pooler
	switch {
	case a.old(p.SeenAt):
		return bad(ComponentPooler, HealthDown, "stale", "the pooler was not observed lately", "Read controld's log; restart the pgbouncer container if it hangs.")
	case !p.Container.Exists:
		return bad(ComponentPooler, HealthDown, "container-missing", "the pooler's container does not exist", "Bring it back: make up.")
	case !p.Container.Running:
		return bad(ComponentPooler, HealthDown, "container-stopped", "the pooler's container is "+word(p.Container.Health, "stopped"), "Start it: docker start pgbouncer (with the cluster's prefix), or make up.")
	case p.Container.Paused:
		return bad(ComponentPooler, HealthDown, "container-paused", "the pooler's container is frozen", "Thaw it: docker unpause pgbouncer (with the cluster's prefix).")
	case p.Err != "":
		return bad(ComponentPooler, HealthDown, "not-answering", "the pooler's console does not answer: "+p.Err, "Read its log (docker logs); restart the pgbouncer container if it hangs. PostgreSQL itself is not affected.")
	}
	if a.running != nil {
		return fine(ComponentPooler) // paused and repointed on purpose
	}
	return a.poolerEntries()
}

func (a assessment) poolerEntries() ComponentHealth {
	if missing := a.view.Pooler.Missing; len(missing) > 0 {
		return bad(ComponentPooler, HealthDegraded, "entries-missing",
			"the pooler does not serve "+strings.Join(missing, ", ")+" yet",
			"controld corrects it by itself within a few intervals. If it stays, read controld's log.")
	}
	leaders := a.with(RolePrimary)
	for _, d := range a.view.Pooler.Databases {
		if d.Paused {
			return bad(ComponentPooler, HealthDown, "paused",
				fmt.Sprintf("database %s is paused and no operation holds it: its clients wait", d.Name),
				"The pooler's init resumes a pause that nobody renews within 10 s. If it stays, RESUME it on PgBouncer's console.")
		}
		// Only client databases follow the primary: the read-only twins and the
		// probe's entry lead elsewhere on purpose.
		follows := !strings.HasSuffix(d.Name, "_ro") && !strings.HasPrefix(d.Name, "controld_") && d.Host != ""
		if follows && len(leaders) == 1 && d.Host != leaders[0].Container.Address && a.known(d.Host) {
			return bad(ComponentPooler, HealthDegraded, "points-elsewhere",
				fmt.Sprintf("database %s leads to %s, the primary %s is at %s", d.Name, d.Host, leaders[0].Node.Name, leaders[0].Container.Address),
				"controld corrects it by itself within a few intervals. If it stays, read controld's log.")
		}
	}
	return fine(ComponentPooler)
}

// known reports whether host is the address of a node: only then is a
// mismatch a fact and not a name that the pooler resolves.
func (a assessment) known(host string) bool {
	return slices.ContainsFunc(a.view.Nodes, func(s NodeState) bool { return s.Container.Address == host })
}

func (a assessment) node(s NodeState) ComponentHealth {
	n := s.Node
	down := func(reason, detail, do string) ComponentHealth { return bad(n.Name, HealthDown, reason, detail, do) }
	start := fmt.Sprintf("Start it: controld start %s.", n.Name)
	switch {
	case a.old(s.SeenAt):
		return down("stale", "it was not observed lately", "Read controld's log: its observation of this node hangs.")
	case !s.Container.Exists:
		return down("container-missing", "its container "+n.Container+" does not exist", "Bring it back: make up.")
	case !s.Container.Running:
		return down("container-stopped", fmt.Sprintf("its container %s is %s, exit code %d", n.Container, word(s.Container.Health, "stopped"), s.Container.ExitCode), start)
	case s.Container.Paused:
		return down("container-paused", "its container "+n.Container+" is frozen", "Thaw it: docker unpause "+n.Container+".")
	case !s.Container.Connected:
		return down("disconnected", "its container "+n.Container+" is not on the cluster's network", start)
	case s.Init.State == node.StateWorking:
		return bad(n.Name, HealthDegraded, "working", fmt.Sprintf("its init carries out %s", word(string(s.Order.Action), "its order")), "Wait for it.")
	case s.Init.Unfinished != "" && s.Init.Unfinished != node.ActionNone:
		return down("unfinished", fmt.Sprintf("%s began to overwrite its data and did not end", s.Init.Unfinished), fmt.Sprintf("Copy it anew: controld rejoin %s --method basebackup.", n.Name))
	case s.Diverged() != "":
		c, _ := divergedHealth(n.Name, s)
		return c
	case s.Server != nil:
		if c, found := a.notAnswering(n.Name, s); found {
			return c
		}
		return fine(n.Name)
	case s.Init.State == node.StateFailed || s.Init.State == node.StateRefused:
		return down("order-"+string(s.Init.State), "its init could not carry out its order: "+s.Init.Error, fmt.Sprintf("Read its log (docker logs %s); then controld rejoin %s.", n.Container, n.Name))
	case s.Order.Role == node.RoleNone:
		return down("fenced", "its order is withdrawn: it may not start", fmt.Sprintf("Bring it back as a standby: controld rejoin %s.", n.Name))
	case s.Order.Role == "":
		return down("no-order", "it waits for its first order", "A first start takes a minute; then "+start)
	case s.Init.State == node.StateEnded:
		return down("ended", "PostgreSQL ended by itself: "+word(s.Init.Error, "no reason known"), start)
	}
	return down("not-answering", "PostgreSQL does not answer: "+word(s.ServerErr, "no reason known"), fmt.Sprintf("Read its log (docker logs %s). If it leads and hangs: controld failover.", n.Container))
}

func (a assessment) archiving() ComponentHealth {
	leaders := a.with(RolePrimary)
	if len(leaders) != 1 {
		return fine(ComponentArchiving)
	}
	p := leaders[0].Server
	if p.ArchiveLastFailedAt.After(p.ArchiveLastAt) {
		return bad(ComponentArchiving, HealthDegraded, "archiving-failing",
			fmt.Sprintf("archive_command fails on %s (%d times, last at %s); %d segments wait", leaders[0].Node.Name, p.ArchiveFailedCount, p.ArchiveLastFailedAt.UTC().Format(time.RFC3339), p.ArchiveReady),
			"Read the primary's log for the command's error. WAL stays on the primary's disk until it succeeds.")
	}
	if p.ArchiveReady > UnhealthyArchiveReady {
		return bad(ComponentArchiving, HealthDegraded, "archiving-behind",
			fmt.Sprintf("%d segments wait to be archived on %s", p.ArchiveReady, leaders[0].Node.Name),
			"Check that the archive's target is fast enough; WAL stays on the primary's disk until it is archived.")
	}
	return fine(ComponentArchiving)
}

func (a assessment) redis() ComponentHealth {
	r := a.view.Redis
	switch {
	case a.old(r.SeenAt):
		return bad(ComponentRedis, HealthDegraded, "redis-unknown", "redis was not observed lately", "Read controld's log.")
	case !r.OK:
		return bad(ComponentRedis, HealthDown, "redis-down", "redis does not answer: "+word(r.Detail, "no reason known"),
			"Start it: docker start redis (with the cluster's prefix), or make up. Failover works without it.")
	}
	return fine(ComponentRedis)
}

func fine(name string) ComponentHealth { return ComponentHealth{Name: name, Status: HealthOK} }

func bad(name string, status HealthStatus, reason, detail, do string) ComponentHealth {
	return ComponentHealth{Name: name, Status: status, Reason: reason, Detail: detail, Do: do}
}

func firstIn(recs []operation.Record, state operation.State) *operation.Record {
	for i := range recs {
		if recs[i].State == state {
			return &recs[i]
		}
	}
	return nil
}

func names(nodes []NodeState) string {
	var list []string
	for _, s := range nodes {
		list = append(list, s.Node.Name)
	}
	return strings.Join(list, ", ")
}

func isOrAre(nodes []NodeState) string {
	if len(nodes) == 1 {
		return names(nodes) + " is"
	}
	return names(nodes) + " are"
}

func word(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
