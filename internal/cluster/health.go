package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"controld/internal/health"
	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/rights"
)

// Limits beyond which a component is no longer healthy.
const (
	// UnhealthyLagBytes is the precheck's default limit too: a standby that
	// lags more cannot take over in a planned failover.
	UnhealthyLagBytes = 16 << 20
	UnhealthyLag      = 30 * time.Second
	// UnhealthyArchiveReady is how many segments may wait for the archive.
	UnhealthyArchiveReady = 64
	// SilenceLimit is for how long the last word of a server counts that answers
	// nothing while no fact contradicts it.
	SilenceLimit = 15 * time.Second
	// A disk with less than both of these left is low.
	LowDiskBytes    = 1 << 30
	LowDiskFraction = 0.1
)

// Expectation is what the journal holds of the cluster.
type Expectation struct {
	Primary   string // the node that shall lead; empty: no cluster is known yet
	Epoch     uint64
	Preferred string // where a failback returns to
}

// Names of the components that are not nodes.
const (
	ComponentPrimary     = health.Primary
	ComponentStart       = "start" // only where a person has to choose who leads
	ComponentReplication = "replication"
	ComponentPooler      = "pooler"
	ComponentArchiving   = "archiving"
	ComponentDisk        = "disk"
)

// AssessHealth judges one observation. open are the operations that hold the cluster.
func AssessHealth(view View, expected Expectation, open []operation.Record, now time.Time, interval time.Duration) health.Report {
	a := assessment{view: view, expected: expected, now: now, limit: health.StaleIntervals * interval}
	a.running, a.incomplete = firstIn(open, operation.Running), firstIn(open, operation.Incomplete)
	h := health.Report{ObservedAt: view.At}
	if op := a.open(); op != nil {
		h.Operation = op.ID
	}
	if a.old(view.At) {
		return h.With(a.stale(ComponentPrimary))
	}
	components := []health.Component{a.primary(), a.replication(), a.pooler()}
	for _, s := range view.Nodes {
		components = append(components, a.node(s))
	}
	components = append(components, a.archiving())
	for _, s := range view.Nodes {
		if s.TotalBytes > 0 {
			components = append(components, AssessDisk(s.Node.Name, s.FreeBytes, s.TotalBytes))
		}
	}
	return h.With(components...)
}

func firstIn(recs []operation.Record, state operation.State) *operation.Record {
	for i := range recs {
		if recs[i].State == state {
			return &recs[i]
		}
	}
	return nil
}

// LowDisk reports whether a disk has less left than both limits.
func LowDisk(freeBytes, totalBytes int64) bool {
	return freeBytes < LowDiskBytes && float64(freeBytes) < LowDiskFraction*float64(totalBytes)
}

// AssessDisk judges the space left on a node's data volume.
func AssessDisk(nodeName string, freeBytes, totalBytes int64) health.Component {
	name := ComponentDisk + " " + nodeName
	if !LowDisk(freeBytes, totalBytes) {
		return health.Fine(name)
	}
	return health.Bad(name, health.Degraded, "disk-low",
		fmt.Sprintf("%d of %d bytes are left on the data volume of %s", freeBytes, totalBytes, nodeName),
		"Free space on the engine's disk or grow it; see GET /cluster for a slot that holds WAL back. "+
			"PostgreSQL stops when the disk is full.")
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

func (a assessment) stale(name string) health.Component {
	detail := "nothing was observed yet"
	if !a.view.At.IsZero() {
		age := a.now.Sub(a.view.At).Round(time.Millisecond)
		detail = fmt.Sprintf("the last observation was made %s ago, the limit is %s", age, a.limit)
	}
	return health.Bad(name, health.Down, "stale", detail,
		"Wait a few seconds after a start. If it stays, controld's observation loop hangs: "+
			"read its log (docker logs) and restart the controld container; the database runs on without it.")
}

func (a assessment) primary() health.Component {
	switch leaders := a.with(RolePrimary); len(leaders) {
	case 0:
		return a.noPrimary()
	case 1:
		return a.onePrimary(leaders[0])
	default:
		return a.twoPrimaries(leaders)
	}
}

func (a assessment) onePrimary(p NodeState) health.Component {
	name := p.Node.Name
	degraded := func(reason, detail, do string) health.Component {
		return health.Bad(ComponentPrimary, health.Degraded, reason, detail, do)
	}
	switch {
	case a.inPause():
		return a.paused()
	case a.running != nil:
		// orders and roles change on purpose while it runs
	case p.Order.Role != node.RolePrimary:
		return degraded("order-withdrawn",
			fmt.Sprintf("%s leads although its order as primary is withdrawn; it would not start again", name),
			fmt.Sprintf("If it shall lead, give its order back: controld start %s. If not, move the primary: controld failover.", name))
	case a.expected.Primary == "":
		return degraded("not-recorded",
			fmt.Sprintf("%s leads, and the journal does not say so yet", name),
			"controld records it by itself within a few intervals. If it stays, read controld's log.")
	case name != a.expected.Primary:
		return degraded("unexpected-primary",
			fmt.Sprintf("%s leads, the journal says %s", name, a.expected.Primary),
			fmt.Sprintf("Somebody promoted it past controld. Compare both in GET /cluster; "+
				"controld start %s makes the present state the recorded one.", name))
	}
	if op := a.incomplete; op != nil {
		return degraded("incomplete",
			fmt.Sprintf("%s %s failed past its point of no return and is being retried", op.Kind, op.ID),
			fmt.Sprintf("See which step hangs and why: controld operations show %s.", op.ID))
	}
	if c, found := a.notAnswering(ComponentPrimary, p); found {
		return c
	}
	if p.Full {
		return degraded("connections-full",
			fmt.Sprintf("%s serves, and has no connection left for controld: what is said of it is what it said before", name),
			"See who holds its connections (as root on its socket: "+
				"select usename, application_name, count(*) from pg_stat_activity group by 1, 2), or raise max_connections.")
	}
	if p.Server.Rights < rights.Version && !p.Late && a.running == nil {
		return health.Bad(ComponentPrimary, health.Degraded, "rights-outdated",
			p.Node.Name+" lacks roles or rights that this version of controld needs: an earlier one made the cluster",
			"controld brings them by itself within a few intervals. If it stays: controld operations list --kind provision says why.")
	}
	return health.Fine(ComponentPrimary)
}

// notAnswering is of a server that answers nothing any more, or takes no new connection,
// while no fact says that it does not serve.
func (a assessment) notAnswering(component string, s NodeState) (health.Component, bool) {
	detail := ""
	switch {
	case a.running != nil: // it may be left alone on purpose
	case s.Late && a.old(s.AnsweredAt):
		silence := a.now.Sub(s.AnsweredAt).Round(100 * time.Millisecond)
		detail = fmt.Sprintf("%s has not answered for %s; what is said of it is what it said then", s.Node.Name, silence)
	case !s.LoginFailingSince.IsZero() && a.now.Sub(s.LoginFailingSince) > SilenceLimit:
		failing := a.now.Sub(s.LoginFailingSince).Round(time.Second)
		detail = fmt.Sprintf("%s answers over an open connection, and has let nobody in for %s: %v", s.Node.Name, failing, s.LoginErr)
	}
	if detail == "" {
		return health.Component{}, false
	}
	return health.Bad(component, health.Degraded, "not-answering", detail,
		fmt.Sprintf("Look at the load of its host and its container (docker stats %s). "+
			"It counts as lost after %s without any answer; if it hangs: controld failover.", s.Node.Container, SilenceLimit)), true
}

// inPause: an operation holds the clients back on purpose.
func (a assessment) inPause() bool {
	return a.running != nil && slices.ContainsFunc(a.view.Pooler.Databases, func(d PoolerDatabase) bool { return d.Paused })
}

func (a assessment) paused() health.Component {
	return health.Bad(ComponentPrimary, health.Degraded, "pause",
		fmt.Sprintf("clients are held by %s %s for a moment", a.running.Kind, a.running.ID),
		fmt.Sprintf("Nothing; the pause is bounded. Follow it: controld operations follow %s.", a.running.ID))
}

func (a assessment) twoPrimaries(leaders []NodeState) health.Component {
	do := "Decide which one holds the data that counts, kill the other's container (docker kill -s KILL), " +
		"then rejoin it: controld rejoin NAME."
	for _, s := range leaders {
		if s.Node.Name != a.expected.Primary && a.expected.Primary != "" {
			do = fmt.Sprintf("The journal says %[1]s. Stop the other now: docker kill -s KILL %[2]s; then controld rejoin %[3]s. "+
				"What was written to it is not on %[1]s.", a.expected.Primary, s.Node.Container, s.Node.Name)
		}
	}
	return health.Bad(ComponentPrimary, health.Down, "two-primaries", "these nodes all accept writes: "+Names(leaders), do)
}

func (a assessment) noPrimary() health.Component {
	down := func(reason, detail, do string) health.Component {
		return health.Bad(ComponentPrimary, health.Down, reason, detail, do)
	}
	standbys := a.with(RoleStandby)
	switch {
	case a.inPause():
		return a.paused()
	case a.open() != nil:
		op := a.open()
		return down("no-primary",
			fmt.Sprintf("no node accepts writes; %s %s is at work", op.Kind, op.ID),
			fmt.Sprintf("Wait for it: controld operations follow %s.", op.ID))
	case len(standbys) > 1 && len(standbys) == len(a.view.Nodes):
		return down("all-in-recovery",
			"every node answers, and all are in recovery: "+Names(standbys),
			fmt.Sprintf("Choose who leads: controld start %s for the recorded primary, or controld failover --target NAME.", a.recorded()))
	case a.expected.Primary == "":
		return down("no-primary",
			"no node accepts writes, and the journal knows no primary",
			"A first start takes a minute. If it stays, the nodes contradict each other: "+
				"compare timelines and LSNs in GET /cluster, then choose: controld start NAME.")
	case len(standbys) > 0:
		return down("no-primary",
			fmt.Sprintf("%s does not accept writes; %s in recovery", a.expected.Primary, isOrAre(standbys)),
			fmt.Sprintf("Move the primary: controld failover. Or start the old one in place: controld start %s.", a.expected.Primary))
	}
	return down("no-primary",
		fmt.Sprintf("%s does not accept writes, and no standby answers", a.expected.Primary),
		fmt.Sprintf("Start the recorded primary in place: controld start %s.", a.expected.Primary))
}

func isOrAre(nodes []NodeState) string {
	if len(nodes) == 1 {
		return Names(nodes) + " is"
	}
	return Names(nodes) + " are"
}

func (a assessment) recorded() string {
	if a.expected.Primary == "" {
		return "NAME"
	}
	return a.expected.Primary
}

func (a assessment) replication() health.Component {
	leaders := a.with(RolePrimary)
	if len(leaders) != 1 {
		return health.Bad(ComponentReplication, health.Degraded, "no-primary",
			"there is no single primary to replicate from", "See the component primary.")
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
		return health.Bad(ComponentReplication, health.Degraded, "no-standby",
			fmt.Sprintf("no standby answers; the loss of %s would be an outage", p.Node.Name), a.bringBack(p))
	}
	for _, s := range standbys {
		if c, found := standbyTrouble(p, s); found {
			return c
		}
	}
	return health.Fine(ComponentReplication)
}

// bringBack says what to do about the nodes that should be standbys of p.
func (a assessment) bringBack(p NodeState) string {
	for _, s := range a.view.Nodes {
		if s.Node.Name != p.Node.Name {
			return fmt.Sprintf("Bring %[1]s back: controld start %[1]s; "+
				"if that does not make it stream, controld rejoin %[1]s.", s.Node.Name)
		}
	}
	return "Add a second node."
}

func syncBlocked(p NodeState) (health.Component, bool) {
	wanted := p.Server.Settings[SynchronousSetting]
	if wanted == "" || p.Server.InSync() {
		return health.Component{}, false
	}
	do := "Bring the standby back (controld start or rejoin). " +
		"With replication.mode sync controld lifts the wait after replication.sync_timeout; with strict it does not."
	if p.Overrides(SynchronousSetting) {
		do = "Somebody set that by ALTER SYSTEM, so controld does not lift it. " +
			"ALTER SYSTEM RESET synchronous_standby_names and a reload give it back to controld."
	}
	return health.Bad(ComponentReplication, health.Degraded, "sync-blocked",
		fmt.Sprintf("commits on %s wait for a synchronous standby (%s), and none is in sync", p.Node.Name, wanted), do), true
}

// standbyTrouble says what is wrong with the standby s of p, if anything is.
func standbyTrouble(p, s NodeState) (health.Component, bool) {
	name := s.Node.Name
	degraded := func(reason, detail, do string) (health.Component, bool) {
		return health.Bad(ComponentReplication, health.Degraded, reason, detail, do), true
	}
	if c, found := divergedHealth(ComponentReplication, s); found {
		return c, true
	}
	slot := slices.IndexFunc(p.Server.Slots, func(x Slot) bool { return x.Name == s.Node.Slot() })
	if slot >= 0 && p.Server.Slots[slot].WALStatus == "lost" {
		return degraded("slot-lost",
			fmt.Sprintf("WAL that %s needs was removed: its slot exceeded max_slot_wal_keep_size", name),
			fmt.Sprintf("Copy it anew: controld rejoin %s --method basebackup.", name))
	}
	if s.Server.Timeline < p.Server.Timeline {
		return degraded("timeline",
			fmt.Sprintf("%s is on timeline %d, the primary on %d", name, s.Server.Timeline, p.Server.Timeline),
			fmt.Sprintf("It follows within seconds after a failover. If it stays: controld rejoin %s.", name))
	}
	if r := s.Server.Receiver; r == nil || r.Status != "streaming" {
		return degraded("not-streaming",
			fmt.Sprintf("%s is a standby and does not stream from %s", name, p.Node.Name),
			fmt.Sprintf("Read its log (docker logs %s); then controld rejoin %s.", s.Node.Container, name))
	}
	if s.Server.ReplayPaused {
		return degraded("replay-paused",
			"replay on "+name+" is paused",
			"Somebody called pg_wal_replay_pause(); pg_wal_replay_resume() on "+name+" ends it.")
	}
	if lag := s.Server.Replayed.Behind(p.Server.Flushed); lag > UnhealthyLagBytes || s.Server.Lag > UnhealthyLag {
		return degraded("lag",
			fmt.Sprintf("%s lags %d bytes and %s", name, lag, s.Server.Lag.Round(time.Millisecond)),
			"Look for a long query on it that conflicts with replay, or a load that outruns its disk. "+
				"A planned failover is refused while it lags.")
	}
	return health.Component{}, false
}

// divergedHealth is of a node that has other WAL than the primary.
func divergedHealth(component string, s NodeState) (health.Component, bool) {
	why := s.Diverged()
	if why == "" {
		return health.Component{}, false
	}
	return health.Bad(component, health.Degraded, "diverged",
		fmt.Sprintf("%s has other WAL than the primary: %s. It does not follow, and cannot lead", s.Node.Name, why),
		fmt.Sprintf("controld copies it anew by itself; at once: controld rejoin %s --method basebackup.", s.Node.Name)), true
}

func (a assessment) pooler() health.Component {
	down := func(reason, detail, do string) health.Component {
		return health.Bad(ComponentPooler, health.Down, reason, detail, do)
	}
	p := a.view.Pooler
	switch {
	case a.old(p.SeenAt):
		return down("stale", "the pooler was not observed lately",
			"Read controld's log; restart the pgbouncer container if it hangs.")
	case !p.Container.Exists:
		return down("container-missing", "the pooler's container does not exist", "Bring it back: make up.")
	case !p.Container.Running:
		return down("container-stopped", "the pooler's container is "+cmp.Or(p.Container.Health, "stopped"),
			"Start it: docker start pgbouncer (with the cluster's prefix), or make up.")
	case p.Container.Paused:
		return down("container-paused", "the pooler's container is frozen",
			"Thaw it: docker unpause pgbouncer (with the cluster's prefix).")
	case p.Err != "":
		return down("not-answering", "the pooler's console does not answer: "+p.Err,
			"Read its log (docker logs); restart the pgbouncer container if it hangs. PostgreSQL itself is not affected.")
	}
	if a.running != nil {
		return health.Fine(ComponentPooler) // paused and repointed on purpose
	}
	return a.poolerEntries()
}

func (a assessment) poolerEntries() health.Component {
	corrects := "controld corrects it by itself within a few intervals. If it stays, read controld's log."
	if missing := a.view.Pooler.Missing; len(missing) > 0 {
		return health.Bad(ComponentPooler, health.Degraded, "entries-missing",
			"the pooler does not serve "+strings.Join(missing, ", ")+" yet", corrects)
	}
	leaders := a.with(RolePrimary)
	for _, d := range a.view.Pooler.Databases {
		if d.Paused {
			return health.Bad(ComponentPooler, health.Down, "paused",
				fmt.Sprintf("database %s is paused and no operation holds it: its clients wait", d.Name),
				"The pooler's init resumes a pause that nobody renews within 10 s. If it stays, RESUME it on PgBouncer's console.")
		}
		if len(leaders) == 1 && a.leadsElsewhere(d, leaders[0]) {
			p := leaders[0]
			return health.Bad(ComponentPooler, health.Degraded, "points-elsewhere",
				fmt.Sprintf("database %s leads to %s, the primary %s is at %s", d.Name, d.Host, p.Node.Name, p.Container.Address), corrects)
		}
	}
	return health.Fine(ComponentPooler)
}

// leadsElsewhere reports whether an entry should lead to the primary p and leads to
// another node. Only client databases follow the primary: the read-only twins and
// the probe's entry lead elsewhere on purpose.
func (a assessment) leadsElsewhere(d PoolerDatabase, p NodeState) bool {
	follows := !strings.HasSuffix(d.Name, ReadOnlySuffix) && !strings.HasPrefix(d.Name, "controld_") && d.Host != ""
	return follows && d.Host != p.Container.Address && a.known(d.Host)
}

// known reports whether host is the address of a node: only then is a
// mismatch a fact and not a name that the pooler resolves.
func (a assessment) known(host string) bool {
	return slices.ContainsFunc(a.view.Nodes, func(s NodeState) bool { return s.Container.Address == host })
}

func (a assessment) node(s NodeState) health.Component {
	n := s.Node
	down := func(reason, detail, do string) health.Component {
		return health.Bad(n.Name, health.Down, reason, detail, do)
	}
	start := fmt.Sprintf("Start it: controld start %s.", n.Name)
	readLog := fmt.Sprintf("Read its log (docker logs %s)", n.Container)
	switch {
	case a.old(s.SeenAt):
		return down("stale", "it was not observed lately", "Read controld's log: its observation of this node hangs.")
	case !s.Container.Exists:
		return down("container-missing", "its container "+n.Container+" does not exist", "Bring it back: make up.")
	case !s.Container.Running:
		state := cmp.Or(s.Container.Health, "stopped")
		return down("container-stopped",
			fmt.Sprintf("its container %s is %s, exit code %d", n.Container, state, s.Container.ExitCode), start)
	case s.Container.Paused:
		return down("container-paused", "its container "+n.Container+" is frozen", "Thaw it: docker unpause "+n.Container+".")
	case !s.Container.Connected:
		return down("disconnected", "its container "+n.Container+" is not on the cluster's network", start)
	case s.Init.State == node.StateWorking:
		work := cmp.Or(string(s.Order.Action), "its order")
		return health.Bad(n.Name, health.Degraded, "working", "its init carries out "+work, "Wait for it.")
	case s.Init.Unfinished != "" && s.Init.Unfinished != node.ActionNone:
		return down("unfinished",
			fmt.Sprintf("%s began to overwrite its data and did not end", s.Init.Unfinished),
			fmt.Sprintf("Copy it anew: controld rejoin %s --method basebackup.", n.Name))
	case s.Diverged() != "":
		c, _ := divergedHealth(n.Name, s)
		return c
	case s.Server != nil:
		if c, found := a.notAnswering(n.Name, s); found {
			return c
		}
		return restartPending(s)
	case s.Init.State == node.StateFailed || s.Init.State == node.StateRefused:
		return down("order-"+string(s.Init.State), "its init could not carry out its order: "+s.Init.Error,
			readLog+"; then controld rejoin "+n.Name+".")
	case s.Order.Role == node.RoleNone:
		return down("fenced", "its order is withdrawn: it may not start",
			"Bring it back as a standby: controld rejoin "+n.Name+".")
	case s.Order.Role == "":
		return down("no-order", "it waits for its first order", "A first start takes a minute; then "+start)
	case s.Init.State == node.StateEnded:
		return down("ended", "PostgreSQL ended by itself: "+cmp.Or(s.Init.Error, "no reason known"), start)
	}
	return down("not-answering", "PostgreSQL does not answer: "+cmp.Or(s.ServerErr, "no reason known"),
		readLog+". If it leads and hangs: controld failover.")
}

// restartPending is of a server whose files have settings that it takes at a start alone.
func restartPending(s NodeState) health.Component {
	pending := s.Server.PendingRestart
	if len(pending) == 0 {
		return health.Fine(s.Node.Name)
	}
	do := fmt.Sprintf("Start it anew, which no client of the primary notices: docker restart %s.", s.Node.Container)
	if s.Role() == RolePrimary {
		do = "Move the primary, which starts it anew as a standby and which clients do not notice: " +
			"controld failover; then, if you like, controld failback."
	}
	return health.Bad(s.Node.Name, health.Degraded, "restart-pending",
		"its settings "+strings.Join(pending, ", ")+" are others than it runs with, and take effect when it starts", do)
}

func (a assessment) archiving() health.Component {
	leaders := a.with(RolePrimary)
	if len(leaders) != 1 {
		return health.Fine(ComponentArchiving)
	}
	name, p := leaders[0].Node.Name, leaders[0].Server
	if p.ArchiveLastFailedAt.After(p.ArchiveLastAt) {
		last := p.ArchiveLastFailedAt.UTC().Format(time.RFC3339)
		return health.Bad(ComponentArchiving, health.Degraded, "archiving-failing",
			fmt.Sprintf("archive_command fails on %s (%d times, last at %s); %d segments wait",
				name, p.ArchiveFailedCount, last, p.ArchiveReady),
			"Read the primary's log for the command's error. WAL stays on the primary's disk until it succeeds.")
	}
	if p.ArchiveReady > UnhealthyArchiveReady {
		return health.Bad(ComponentArchiving, health.Degraded, "archiving-behind",
			fmt.Sprintf("%d segments wait to be archived on %s", p.ArchiveReady, name),
			"Check that the archive's target is fast enough; WAL stays on the primary's disk until it is archived.")
	}
	return health.Fine(ComponentArchiving)
}
