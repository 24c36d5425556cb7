package cluster

import (
	"context"
	"errors"
	"time"

	"controld/internal/node"
	"controld/internal/pgcontrol"
	"controld/internal/pgwal"
	"controld/internal/wal"
)

// Outside is everything that a cluster reaches out of the process for.
type Outside struct {
	Engine  Engine
	Volumes Volumes
	Servers Servers
	Pooler  Pooler
}

// An Engine is what an operation needs of the container engine. Each call is
// bounded by its context.
type Engine interface {
	// Inspect of a container that does not exist is no error: Exists is false.
	Inspect(ctx context.Context, container string) (Container, error)
	Start(ctx context.Context, container string) error
	// Kill sends SIGKILL to every process of the container, while it is still
	// frozen when it is paused, and thaws it after. A sent kill proves nothing.
	// Killing a container that does not run is no error.
	Kill(ctx context.Context, container string) error
	// Throttled is for how long in all the container was held back by its own
	// limit of the processor.
	Throttled(ctx context.Context, container string) (time.Duration, error)
	// Exec runs a command in the container with this on its standard input, and
	// returns its standard output. The error has the end of what it said on the other
	// one. Where ctx ends first, the command may go on.
	Exec(ctx context.Context, container string, command []string, stdin string) (stdout string, err error)
	// Disconnect cuts the container from the cluster's network; Connect undoes
	// it. Both accept that it was done before.
	Disconnect(ctx context.Context, container string) error
	Connect(ctx context.Context, container string) error
}

// Volumes is what an operation reads and writes on the nodes' volumes.
type Volumes interface {
	// Order returns the node's order, the zero Order where there is none.
	Order(n Node) (node.Order, error)
	WriteOrder(n Node, o node.Order) error
	// WriteSettings renders the settings that change with the role, durably.
	// A running server takes them at its next reload.
	WriteSettings(n Node, s RoleSettings) error
	Status(n Node) (node.Status, error)
	// Control returns pgcontrol.ErrNoCluster where there is no data directory.
	Control(n Node) (pgcontrol.Data, error)
	// Locked reports whether a process of the node's server is left.
	Locked(n Node) (bool, error)
	// Empty reports whether the node's data volume holds no data directory yet.
	Empty(n Node) (bool, error)
	// Space is what is left on the node's data volume, and its size.
	Space(n Node) (freeBytes, totalBytes int64, err error)
	// StandbySignal reports whether the node's data would start in recovery.
	StandbySignal(n Node) (bool, error)
	// HasWAL reports whether the node's pg_wal still holds the segment with the
	// record that ends at lsn, on whatever timeline.
	HasWAL(n Node, lsn wal.LSN, segmentBytes int64) (bool, error)
	// HasHistory reports whether the node's pg_wal holds the history file of t.
	HasHistory(n Node, t wal.Timeline) (bool, error)
	// Compare holds the WAL of n against that of the node that leads, by what
	// lies on their volumes: all that n's recovery would need, or the newest
	// limit bytes of it. What cannot be read is pgwal.Unknown, and no error.
	Compare(ctx context.Context, n, leader Node, limit int64) (pgwal.Comparison, error)
}

// RoleSettings are the settings that change with a node's role. An empty
// string or nil is an empty setting.
type RoleSettings struct {
	Upstream            *Node  // primary_conninfo points there; nil: none
	UpstreamAddress     string // where that is; empty: it is looked up by its name
	Slot                string // primary_slot_name
	RestoreCommand      string
	ArchiveCommand      string
	SynchronousStandbys []string // names for FIRST 1 (...)
	Switching           bool     // around a planned switch: what makes it quicker and is no state to stay in
}

// Servers opens sessions on the nodes' servers.
type Servers interface {
	// Connect logs in anew: a frozen server is told by nothing less.
	// ErrStarting: it does not accept connections yet. ErrFull: no more of them.
	// ErrRefused: it, or its host, says no. Any other error is silence.
	Connect(ctx context.Context, n Node) (Session, error)
	// Knock opens a connection and returns when the server has answered to it,
	// without a login: a frozen one does not, and a slow one does long before it
	// has let anybody in. ErrRefused: nobody listens.
	Knock(ctx context.Context, n Node) error
}

// ErrStarting means that the server is up but accepts no connections yet.
var ErrStarting = errors.New("server is starting up")

// ErrFull means that the server runs and has no connection left.
var ErrFull = errors.New("server has no connection left")

// ErrRefused means that nobody listens where the server should be, or that it
// lets controld not in.
var ErrRefused = errors.New("connection refused")

// ErrReadOnly means that the server is in recovery and takes no write.
var ErrReadOnly = errors.New("server is read-only")

// A Session is one connection to a server. It is used by one goroutine.
type Session interface {
	// Observe answers everything that a Server says, in one round trip.
	Observe(ctx context.Context) (Server, error)
	// Position answers the little that is polled inside a failover's pause.
	Position(ctx context.Context) (Position, error)
	// EndQueries ends the sessions of all others on a standby: one that reads can
	// hold up the replay of what the primary did.
	EndQueries(ctx context.Context) error
	// WriteProbe commits a small record with synchronous_commit=local: it
	// fails where the server cannot write: with ErrReadOnly in recovery.
	WriteProbe(ctx context.Context) error
	Checkpoint(ctx context.Context) error
	// FillSegment commits, on this server alone, WAL that says nothing, until
	// leave bytes of the present segment are left. Where fewer are, it does nothing.
	FillSegment(ctx context.Context, leave int64) error
	// Reload makes the server read its files again and waits until the given
	// settings have the given values.
	Reload(ctx context.Context, want map[string]string) error
	// CreateSlot makes a physical slot that reserves WAL at once; one that is
	// there already is no error. DropSlot of a missing one is none either.
	CreateSlot(ctx context.Context, name string) error
	DropSlot(ctx context.Context, name string) error
	// AdvanceSlot lets go of the WAL before to that a physical slot keeps. Of what the
	// server has not replayed it lets go nothing; one that is further already stays.
	AdvanceSlot(ctx context.Context, name string, to wal.LSN) error
	// Senders says who streams from it.
	Senders(ctx context.Context) ([]Sender, error)
	// Copies says how far the base backups are that it is sending.
	Copies(ctx context.Context) ([]Copy, error)
	// SyncProbe is WriteProbe with a commit that waits as synchronous
	// replication asks.
	SyncProbe(ctx context.Context) error
	// Databases are those that take connections.
	Databases(ctx context.Context) ([]string, error)
	// Promote asks for promotion and returns without waiting.
	Promote(ctx context.Context) error
	Close()
}

// A Copy is a base backup on its way, as pg_stat_progress_basebackup shows it.
type Copy struct {
	Address string // of who receives it
	Phase   string // in PostgreSQL's words, such as "streaming database files"
	Sent    int64  // bytes
	Total   int64  // bytes, the server's estimate; 0: not known
}

// A Position is where a server stands in the WAL.
type Position struct {
	InRecovery bool
	Timeline   wal.Timeline // a standby's: of what it has received
	Received   wal.LSN      // standby
	Replayed   wal.LSN      // standby
	Flushed    wal.LSN      // primary
}

// A Pooler is what an operation needs of PgBouncer.
type Pooler interface {
	Observe(ctx context.Context) (PoolerState, error)
	// Point renders the configuration, reloads, and proves with SHOW DATABASES
	// that each entry leads where t says. An entry must be paused, or without
	// a host before, when its host changes.
	Point(ctx context.Context, t Targets) error
	// Pause returns when no transaction of the database is open any more and
	// its server connections are closed. It waits for logins under way first,
	// which it would break off. Paused already is no error. After an
	// error, also of ctx, Resume is owed.
	Pause(ctx context.Context, database string) error
	// PauseNow is Pause without that wait: the logins of a dead server do not end.
	PauseNow(ctx context.Context, database string) error
	// Resume goes over a connection of its own. Not paused is no error.
	Resume(ctx context.Context, database string) error
	// Kill drops the database's clients and servers and leaves it paused.
	Kill(ctx context.Context, database string) error
	// Drain bounds the pool's server connections to size for a while; 0 undoes it.
	Drain(ctx context.Context, size int) error
	// Load says what the pools of the database hold now.
	Load(ctx context.Context, database string) (PoolLoad, error)
	// RenewLease tells the pooler's init that the pause of these databases is
	// wanted; without a renewal for node.LeaseDuration it resumes them.
	RenewLease(operation string, databases []string) error
	RemoveLease() error
	// Probe commits a small record through the entry; ErrReadOnly where the
	// entry leads to a standby.
	Probe(ctx context.Context, database string) error
}

// A PoolLoad is what the pools of one database hold, one pool for each user.
type PoolLoad struct {
	Busy    int // server connections at work, in the busiest pool
	Largest int // server connections that are open, in the largest pool
	Logins  int // server connections that are being opened, in all pools
}
