package cluster

import "time"

// Settings is how a cluster is to be run.
type Settings struct {
	Nodes           []Node
	Preferred       string   // the node that a failback returns to
	PoolerContainer string   // with the cluster's prefix
	Databases       []string // the client databases of the pooler; the first is the probes' too
	Replication     ReplicationMode
	SyncTimeout     time.Duration // sync: how long a dead standby may block commits
	MaxLossBytes    int64         // emergency: accepted where the request says nothing
	MaxLagBytes     int64         // planned: the candidate may lag so much
	// MinFreeBytes, planned: room for segments, a history file and writes on the
	// candidate's volume; an eighth of it on the primary's.
	MinFreeBytes  int64
	PauseDeadline time.Duration // how long PAUSE may wait for open transactions
	PauseLimit    time.Duration // how long the clients may be held in all
	Interval      time.Duration // between two observations
	// ArchiveCommand is that of a node when it leads.
	ArchiveCommand func(Node) string
	// ArchiveStanza is the archive's name of the cluster; empty: it has none.
	ArchiveStanza string
	// Secret is the content of a secret by its name: the passwords of the roles, see
	// package rights.
	Secret func(name string) string
}
