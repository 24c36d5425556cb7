// Package cluster knows what a cluster is and decides what is to be done with it.
// The decisions are pure functions of one observation. What observes and what acts
// reaches out of the process through the interfaces in outside.go.
package cluster

import (
	"fmt"
	"iter"
	"path/filepath"
	"strings"
	"time"

	"controld/internal/node"
	"controld/internal/pgcontrol"
	"controld/internal/wal"
)

// A Node is one PostgreSQL server of the cluster and the container it runs
// in: what stands in the configuration, not what was observed.
type Node struct {
	Name      string // in the API: postgres_master
	Container string // with the cluster's prefix; also its host name on the cluster's network
	Dir       string // its data volume, at the same path in every container: /pg/node1
	OrderDir  string // its order volume, as controld sees it
	Port      int
}

// DataDir is the node's PGDATA.
func (n Node) DataDir() string { return filepath.Join(n.Dir, node.DataDir) }

// Slot is the replication slot that keeps WAL for the node on its upstream.
func (n Node) Slot() string { return n.Name }

// NodeNames are the names of nodes.
func NodeNames(nodes []Node) []string {
	out := make([]string, len(nodes))
	for i, n := range nodes {
		out[i] = n.Name
	}
	return out
}

// Names are the names of nodes, as a list to read.
func Names(nodes []NodeState) string {
	var list []string
	for _, s := range nodes {
		list = append(list, s.Node.Name)
	}
	return strings.Join(list, ", ")
}

// ReplicationMode says what a commit waits for.
type ReplicationMode string

// The replication modes. Async: nothing. Sync: the standby, lifted when it is
// gone for longer than a stated limit. Strict: the standby, always.
const (
	Async  ReplicationMode = "async"
	Sync   ReplicationMode = "sync"
	Strict ReplicationMode = "strict"
)

// A Role is what a server says it is.
type Role string

// The observed roles. RoleNone: no server answers.
const (
	RolePrimary Role = "primary"
	RoleStandby Role = "standby"
	RoleNone    Role = "none"
)

// A NodeState is one node as it was last seen. Everything in it was true at SeenAt,
// but what its server says at AnsweredAt.
type NodeState struct {
	Node       Node
	SeenAt     time.Time
	Container  Container
	Order      node.Order // zero: none
	Init       node.Status
	Locked     Tristate        // does a process of its server exist
	Control    *pgcontrol.Data // nil: no data directory, or not readable
	FreeBytes  int64           // left on its data volume, of TotalBytes; both 0: not known
	TotalBytes int64
	Server     *Server   // nil: it does not answer, ServerErr says why
	AnsweredAt time.Time // when Server was true
	ServerErr  string
	Late       bool // it did not answer in time just now; Server is what it said before
	Silent     bool // it answers nothing, which proves nothing; Server is nil
	Full       bool // it has no connection left for controld; Server may be what it said before
	// LoginFailingSince is since when it has taken no new connection while it answers
	// over an open one; zero: it takes them. LoginErr says how.
	LoginFailingSince time.Time
	LoginErr          error
	// OtherWAL says how this standby's WAL is not the primary's, as far as controld
	// has found that out; empty: it has not.
	OtherWAL string
}

// A Tristate is an answer that may be missing.
type Tristate string

// The answers.
const (
	Unknown Tristate = "unknown"
	Yes     Tristate = "yes"
	No      Tristate = "no"
)

// Role is what the node's server said it was.
func (s NodeState) Role() Role {
	switch {
	case s.Server == nil:
		return RoleNone
	case s.Server.InRecovery:
		return RoleStandby
	}
	return RolePrimary
}

// Timeline is the server's timeline, or that of the stopped node's control
// file; 0 when neither is known.
func (s NodeState) Timeline() wal.Timeline {
	if s.Server != nil {
		return s.Server.Timeline
	}
	if s.Control != nil {
		return s.Control.Timeline()
	}
	return 0
}

// Diverged says how the node's WAL is not the primary's; empty: nothing is known
// of that kind. Such a node never leads, and is copied anew.
func (s NodeState) Diverged() string {
	if why := s.Init.Diverged(); why != "" {
		return why
	}
	return s.OtherWAL
}

// Dead reports whether it is proved that no process of the node's server is left.
func (s NodeState) Dead() bool { return s.Locked == No || s.Container.Exists && !s.Container.Running }

// Usable reports whether the node may lead: it has data that nobody is overwriting.
func (s NodeState) Usable() bool {
	return s.Control != nil && (s.Init.Unfinished == "" || s.Init.Unfinished == node.ActionNone)
}

// Wholeness says what Usable found.
func (s NodeState) Wholeness() string {
	switch {
	case s.Init.Unfinished != "" && s.Init.Unfinished != node.ActionNone:
		return fmt.Sprintf("an unfinished %s overwrote its data", s.Init.Unfinished)
	case s.Control == nil:
		return "its volume holds no readable data directory"
	}
	return "its data is whole"
}

// A Container is what the engine says of a node's container.
type Container struct {
	Exists    bool
	Running   bool
	Paused    bool
	Connected bool   // to the cluster's network
	Address   string // on the cluster's network; empty when it has none
	PID       int    // of its init on the host; 0 when not running
	StartedAt time.Time
	EndedAt   time.Time // when it last ended; zero when it never did
	ExitCode  int
	Health    string // the engine's own word for its state: running, exited, paused, ...
}

// A Server is what a PostgreSQL server answered, in one query.
type Server struct {
	InRecovery bool
	SystemID   uint64
	Timeline   wal.Timeline
	StartedAt  time.Time

	Flushed  wal.LSN // primary: flushed to its disk; standby: 0
	Received wal.LSN // standby: flushed to its disk (the larger of received and replayed); primary: 0
	Replayed wal.LSN // standby
	// Lag is how old the last replayed commit is; 0 when all that was received is replayed.
	Lag time.Duration

	Receiver *Receiver // standby: nil when it does not stream
	Senders  []Sender  // who streams from it
	Slots    []Slot
	Settings map[string]string // those in SettingNames

	ArchiveReady        int // segments waiting to be archived
	ArchiveFailedCount  int64
	ArchiveLastFailed   string // the file that was not archived then
	ArchiveLastFailedAt time.Time
	ArchiveLastAt       time.Time
	PreparedCount       int
	Transactions        []Transaction // open ones of clients, the oldest first, 100 at the most
	ReplayPaused        bool
	BackupRunning       bool // a base backup is being taken from it that is not one of controld's own
	SenderCount         int
	MaxSenders          int
	MaxSlots            int
	SegmentBytes        int64
	UpstreamAddress     string // where primary_conninfo leads; empty: to a name, or nowhere
	// Overridden are settings of controld's that ALTER SYSTEM overrides.
	Overridden []string
	// PendingRestart are settings that its files have and it does not.
	PendingRestart []string
	// Rights is which version of what controld needs in it is there; see package rights.
	Rights int
}

// SettingNames are the settings that an observation reads.
var SettingNames = []string{
	"archive_command", "archive_mode", "autovacuum", "primary_conninfo", "primary_slot_name",
	"restore_command", "synchronous_standby_names",
}

// A Receiver is the standby's walreceiver.
type Receiver struct {
	Status        string // streaming, ...
	Host          string // whom it streams from
	Slot          string
	LastMessageAt time.Time // from the sender
}

// A Sender is one walsender of a primary.
type Sender struct {
	Application string // the standby's name
	State       string // streaming, catchup, ...
	Sent        wal.LSN
	Flushed     wal.LSN
	Replayed    wal.LSN
	SyncState   string        // async, sync, quorum, potential
	Silent      time.Duration // since the standby's last report
}

// A Slot is a replication slot.
type Slot struct {
	Name      string
	Active    bool
	Restart   wal.LSN // 0: reserves nothing
	WALStatus string  // reserved, extended, unreserved, lost
	LagBytes  int64
	Logical   bool
	Database  string
}

// A Transaction is a session that holds a transaction open.
type Transaction struct {
	PID         int
	User        string
	Application string
	Database    string
	Address     string // of the client, which is the pooler's where it comes through it; empty: a local one
	State       string // active, idle in transaction
	Age         time.Duration
}

// OldestTransaction is the client's that is open longest; nil: none is.
func (s Server) OldestTransaction() *Transaction {
	if len(s.Transactions) == 0 {
		return nil
	}
	return &s.Transactions[0]
}

// A PoolerState is what PgBouncer's console says.
type PoolerState struct {
	SeenAt    time.Time
	Container Container
	Err       string // why it does not answer
	Databases []PoolerDatabase
	Missing   []string // entries that are configured and that it does not have yet
	Resized   []string // entries with another pool size than is configured, as a drain gives them
}

// Clients are the entries that clients use: not the console, not the probes' own.
func (p PoolerState) Clients() iter.Seq[PoolerDatabase] {
	return func(yield func(PoolerDatabase) bool) {
		for _, d := range p.Databases {
			if d.Name != consoleEntry && d.Name != ProbeEntry && !yield(d) {
				return
			}
		}
	}
}

// Answered grows with each query of clients that was answered at an address, as far
// as the entries that lead there now tell; 0: none leads there.
func (p PoolerState) Answered(address string) time.Duration {
	sum := time.Duration(0)
	for d := range p.Clients() {
		if address != "" && d.Host == address {
			sum += d.Answered
		}
	}
	return sum
}

// A PoolerDatabase is one entry of SHOW DATABASES.
type PoolerDatabase struct {
	Name   string
	Host   string
	Paused bool
	// Answered is how long the queries of its clients took that were answered, since
	// the pooler's start: it grows with each.
	Answered time.Duration
}

// A View is one observation of everything.
type View struct {
	At     time.Time // when it was complete
	Nodes  []NodeState
	Pooler PoolerState
}

// Node returns the state of the node called name.
func (v View) Node(name string) (NodeState, bool) {
	for _, s := range v.Nodes {
		if s.Node.Name == name {
			return s, true
		}
	}
	return NodeState{}, false
}
