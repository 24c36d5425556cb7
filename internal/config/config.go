// Package config holds the settings of controld: their types, their defaults
// in one function, and a strict load from an optional YAML file and the
// environment. What a setting does belongs to the package that is handed it.
package config

import (
	"time"
)

// A Config is everything that can be set.
type Config struct {
	// Prefix goes before every container, volume and network name, so that
	// several clusters can live on one engine. It comes from CONTROLD_PREFIX
	// alone, because the containers are named before controld runs.
	Prefix string `koanf:"-"`

	Listen     string `koanf:"listen"`      // host:port of the API
	StateDir   string `koanf:"state_dir"`   // the journal
	SecretsDir string `koanf:"secrets_dir"` // one file per secret
	Network    string `koanf:"network"`     // the engine's network that the containers share

	// PreferredPrimary is the node that a failback returns to.
	PreferredPrimary string `koanf:"preferred_primary"`
	Nodes            []Node `koanf:"nodes"`

	API         API         `koanf:"api"`
	Postgres    Postgres    `koanf:"postgres"`
	Replication Replication `koanf:"replication"`
	Failover    Failover    `koanf:"failover"`
	Observe     Observe     `koanf:"observe"`
	Pooler      Pooler      `koanf:"pooler"`
	Redis       Redis       `koanf:"redis"`
	Backup      Backup      `koanf:"backup"`
	Engine      Engine      `koanf:"engine"`
	Audit       Audit       `koanf:"audit"`
	Log         Log         `koanf:"log"`
}

// API says who may call the API without a token.
type API struct {
	// Anonymous is the role of callers on this machine that send no token.
	Anonymous string `koanf:"anonymous"` // none, viewer, operator
}

// A Node is one PostgreSQL server and its container.
type Node struct {
	Name      string `koanf:"name"`      // in the API
	Container string `koanf:"container"` // on the engine, prefix included
	Dir       string `koanf:"dir"`       // its data volume
	OrderDir  string `koanf:"order_dir"` // its order volume
	Port      int    `koanf:"port"`
}

// Postgres is what goes into every node's postgresql.conf. Sizes are written
// as PostgreSQL writes them.
type Postgres struct {
	SharedBuffers           string `koanf:"shared_buffers"`
	MaxConnections          int    `koanf:"max_connections"`
	MaxWALSize              string `koanf:"max_wal_size"`
	MaxSlotWALKeepSize      string `koanf:"max_slot_wal_keep_size"`
	MaxPreparedTransactions int    `koanf:"max_prepared_transactions"`
}

// Replication says what a commit waits for.
type Replication struct {
	Mode string `koanf:"mode"` // async, sync, strict
	// SyncTimeout is how long a dead synchronous standby may block commits
	// before the wait is lifted; strict never lifts it.
	SyncTimeout time.Duration `koanf:"sync_timeout"`
}

// Failover bounds what a failover may cost.
type Failover struct {
	// MaxLossBytes is what an emergency failover may lose without being asked.
	MaxLossBytes int64 `koanf:"max_loss_bytes"`
	// PauseDeadline is how long a planned failover waits for open transactions.
	PauseDeadline time.Duration `koanf:"pause_deadline"`
	// MaxLagBytes is how far a candidate may be behind for a planned failover.
	MaxLagBytes int64 `koanf:"max_lag_bytes"`
	// MinFreeBytes is how much room a candidate's volume needs for a planned
	// failover; the primary's needs an eighth of it.
	MinFreeBytes int64 `koanf:"min_free_bytes"`
	// StrictPauseLimit is for how long a pause is kept up with replication.mode
	// strict, instead of 30 s.
	StrictPauseLimit time.Duration `koanf:"strict_pause_limit"`
}

// Observe says how the cluster is watched.
type Observe struct {
	Interval time.Duration `koanf:"interval"`
}

// Pooler is PgBouncer.
type Pooler struct {
	Address   string   `koanf:"address"` // host:port
	Container string   `koanf:"container"`
	ConfigDir string   `koanf:"config_dir"` // its configuration volume
	Databases []string `koanf:"databases"`  // each gets a read-only twin with _ro
	PoolSize  int      `koanf:"pool_size"`
}

// Redis holds the catalogue. A failover works without it.
type Redis struct {
	Address string `koanf:"address"`
}

// Backup says how backups are made and kept.
type Backup struct {
	ControlDir    string `koanf:"control_dir"`    // the volume by which pgBackRest's container is told what to do
	RepositoryDir string `koanf:"repository_dir"` // the repositories' volume
	Stanza        string `koanf:"stanza"`
	Processes     int    `koanf:"processes"` // that copy side by side
	CompressType  string `koanf:"compress_type"`
	CompressLevel int    `koanf:"compress_level"`
	// StartFast begins a backup with an immediate checkpoint instead of waiting for the next.
	StartFast bool `koanf:"start_fast"`
	// Encryption is fixed when a repository is made.
	Encryption string `koanf:"encryption"` // none, aes-256-cbc
	// Priority is that of a backup for processor and disk.
	Priority string `koanf:"priority"` // idle, normal
	// StuckAfter is for how long a backup may make no progress.
	StuckAfter time.Duration `koanf:"stuck_after"`
	// RetainFulls is how many full backups are kept, with what depends on them.
	RetainFulls int `koanf:"retain_fulls"`
	// ArchiveTimeout bounds what an idle cluster has not archived: a segment is ended, and
	// archived, when something in it is so old.
	ArchiveTimeout time.Duration `koanf:"archive_timeout"`
	// Schedule is when a day of the cycle is made, as a cron expression; off: never by itself.
	Schedule string `koanf:"schedule"`
	Zone     string `koanf:"zone"` // of its times
	// Often: the schedule may name times that are less than twelve hours apart.
	Often bool   `koanf:"often"`
	Cycle string `koanf:"cycle"` // what each day makes, see backup.ParseCycle
}

// Engine is the container engine.
type Engine struct {
	Host string `koanf:"host"` // as DOCKER_HOST; empty: the environment's
}

// Audit says which ended operations are kept: the newest Keep that are no older than
// KeepFor.
type Audit struct {
	Keep    int           `koanf:"keep"`
	KeepFor time.Duration `koanf:"keep_for"`
}

// Log says what is logged.
type Log struct {
	Level string `koanf:"level"`
}

// Default is the configuration of a cluster with the given prefix when nothing
// is set.
func Default(prefix string) Config {
	return Config{
		Prefix:           prefix,
		Listen:           "127.0.0.1:8088",
		StateDir:         "/var/lib/controld",
		SecretsDir:       "/secrets",
		Network:          prefix + "controld",
		PreferredPrimary: "",
		Nodes: []Node{
			{Name: "postgres_master", Container: prefix + "postgres_master", Dir: "/pg/node1", OrderDir: "/orders/node1", Port: 5432},
			{Name: "postgres_slave", Container: prefix + "postgres_slave", Dir: "/pg/node2", OrderDir: "/orders/node2", Port: 5432},
		},
		API: API{Anonymous: "none"},
		Postgres: Postgres{
			SharedBuffers:      "256MB",
			MaxConnections:     100,
			MaxWALSize:         "2GB",
			MaxSlotWALKeepSize: "4GB",
		},
		Replication: Replication{Mode: "async", SyncTimeout: 5 * time.Second},
		Failover: Failover{
			MaxLossBytes:     16 << 20,
			PauseDeadline:    5 * time.Second,
			MaxLagBytes:      16 << 20,
			MinFreeBytes:     256 << 20,
			StrictPauseLimit: time.Minute,
		},
		Observe: Observe{Interval: time.Second},
		Pooler: Pooler{
			Address:   prefix + "pgbouncer:6432",
			Container: prefix + "pgbouncer",
			ConfigDir: "/pgbouncer",
			Databases: []string{"imdb"},
			PoolSize:  20,
		},
		Redis: Redis{Address: prefix + "redis:6379"},
		Backup: Backup{
			ControlDir: "/control", RepositoryDir: "/var/lib/pgbackrest", Stanza: "main",
			Processes: 4, CompressType: "zst", CompressLevel: 3, StartFast: true,
			Encryption: "none", Priority: "idle", StuckAfter: 10 * time.Minute, ArchiveTimeout: time.Minute,
			Schedule: "0 3 * * *", Zone: "UTC", Cycle: "full; incr; incr,diff; incr; incr,diff; diff,full",
			RetainFulls: 2,
		},
		Audit: Audit{Keep: 10_000, KeepFor: 400 * 24 * time.Hour},
		Log:   Log{Level: "info"},
	}
}
