package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"controld/internal/cluster"
	"controld/internal/wal"
)

// A Type is what a backup copies.
type Type string

// The types. Full: everything. Differential: what has changed since the last full.
// Incremental: what has changed since the last backup of any type.
const (
	Full         Type = "full"
	Differential Type = "diff"
	Incremental  Type = "incr"
)

// Types are all of them, the strongest first.
var Types = []Type{Full, Differential, Incremental}

// A Mode is how the files are read.
type Mode string

// The modes. Online: with the server's knowledge, and with the WAL that makes the copy
// consistent. Offline: behind its back; a copy of a server that writes is not consistent.
const (
	Online  Mode = "online"
	Offline Mode = "offline"
)

// A Copy is a backup that is in the repository.
type Copy struct {
	Label     string // the repository's own name of it
	Type      Type
	Prior     string   // what it builds on directly; empty for a full
	Needs     []string // every other backup without which it cannot be restored
	StartedAt time.Time
	EndedAt   time.Time

	Mode     Mode
	WALStart string // the segments without which it is not consistent; empty when offline
	WALStop  string
	LSNStart wal.LSN // 0 when offline
	LSNStop  wal.LSN
	Timeline wal.Timeline // 0 when offline

	Bytes          int64 // of the database
	CopiedBytes    int64 // of that, by this backup
	RepoBytes      int64 // in the repository, of it and all that it needs
	RepoOwnBytes   int64 // in the repository, of this backup alone
	PageErrors     bool  // pages of the database did not match their checksums
	SystemID       uint64
	DatabaseID     int    // the tool's number of that cluster
	Version        string // of the tool that made it
	Annotations    map[string]string
	DatabaseFormat string // PostgreSQL's major version
}

// Consistent reports whether it restores to a state that the database was in.
func (c Copy) Consistent() bool { return c.Mode == Online && !c.PageErrors }

// The annotations that controld gives a backup. They say in the repository itself what no
// other tool would know of it.
const (
	NoteOperation = "controld-operation" // the operation and which of its backups this is
	NotePrimary   = "controld-primary"   // the container that led
	NoteReason    = "controld-reason"
	NoteCycleDay  = "controld-cycle-day"
	NoteRequested = "controld-requested" // the type that was asked for
)

// A RepositoryState says what lies where the repository should be.
type RepositoryState string

// The states of a repository.
const (
	RepositoryOK      RepositoryState = "ok"
	RepositoryNew     RepositoryState = "new"     // nothing is there yet
	RepositoryBroken  RepositoryState = "broken"  // something is there that cannot be used
	RepositoryUnknown RepositoryState = "unknown" // nobody could look
)

// A Repository is what is in a repository, as of one look.
type Repository struct {
	State    RepositoryState
	Detail   string // why it is not ok
	SystemID uint64 // of the cluster that it is of; 0: none yet
	Cipher   string // empty: not encrypted
	Copies   []Copy // the oldest first
	Archive  []ArchiveRange
	// Busy: a backup, or something else that needs the repository for itself, runs.
	Busy bool
	// DoneBytes and TotalBytes are how far the backup is that runs; 0: not known.
	DoneBytes, TotalBytes int64
}

// An ArchiveRange is the WAL that is archived of one version of PostgreSQL.
type ArchiveRange struct {
	ID       string // PostgreSQL's major version and the tool's number of the cluster, such as 15-1
	Min, Max string // segments; empty: none
}

// Made returns the backup that carries this note.
func (r Repository) Made(note, value string) (Copy, bool) {
	at := slices.IndexFunc(r.Copies, func(c Copy) bool { return c.Annotations[note] == value })
	if at < 0 {
		return Copy{}, false
	}
	return r.Copies[at], true
}

// A Tool reads and writes the repository. It runs in a container of its own, and what it
// does goes on when controld ends.
type Tool interface {
	// Look says what is in the repository that is configured.
	Look(ctx context.Context) (Repository, error)
	// Create makes the repository for the cluster that these servers are of; one that is
	// there already, and is of this cluster, is no error.
	Create(ctx context.Context, servers []cluster.Node) error
	// Check proves that WAL which the primary writes arrives in the repository.
	Check(ctx context.Context, servers []cluster.Node) error
	// Begin begins a backup under an identity; one that has begun already is no error.
	Begin(ctx context.Context, id string, o Order) error
	// Await waits for the end of a backup, or for ctx, and forgets it. ErrNotRunning: none
	// such runs, nor has ended and was not forgotten.
	Await(ctx context.Context, id string) error
	// Push puts a whole file of the log of the cluster that n is of into the archive. One
	// that is there already is no error, unless another has its name.
	Push(ctx context.Context, n cluster.Node, path string) error
	// Expire removes a backup, and what depends on it. FailureMissing: there is none such.
	// One that is ended in the middle leaves a backup that may be listed and cannot be
	// restored; the next call of Expire or ExpireWAL removes the rest of it.
	Expire(ctx context.Context, label string) error
	// ExpireWAL removes the WAL that is older than what the oldest of the newest n backups,
	// of any type, begins with. That one has to need WAL, else nothing is removed.
	ExpireWAL(ctx context.Context, n int) error
	// Version is the tool's own, such as 2.55.1.
	Version(ctx context.Context) (string, error)
	// End kills a backup with every process of it. One that does not run is no error.
	End(ctx context.Context, id string) error
}

// An Order is a backup that is to be made.
type Order struct {
	Type        Type
	Mode        Mode
	Servers     []cluster.Node // that answer; the one that leads is among them
	Annotations map[string]string
	Limit       time.Duration
}

// ErrNotRunning means that there is no such backup under way.
var ErrNotRunning = errors.New("no such backup runs")

// A FailureKind says what is to be done about a failure of the tool.
type FailureKind string

// The kinds of failure.
const (
	FailureSetup       FailureKind = "setup"       // settings, rights or files: a person mends it
	FailureNotReady    FailureKind = "not-ready"   // a server or the archive: later it may work
	FailureTwoPrimary  FailureKind = "two-primary" // more than one server leads
	FailureLocked      FailureKind = "locked"      // another one runs
	FailureUnchanged   FailureKind = "unchanged"   // offline: there is nothing to copy
	FailureOther       FailureKind = "other-cluster"
	FailureEnded       FailureKind = "ended"   // it was ended, or killed
	FailureFull        FailureKind = "full"    // the repository's disk
	FailureMissing     FailureKind = "missing" // no such backup
	FailureLabel       FailureKind = "label"   // a label would not be later than the last
	FailureUnexplained FailureKind = "unexplained"
)

// A Failure is an error of the tool.
type Failure struct {
	Kind FailureKind
	Code int
	// Said is what the tool said of it.
	Said string
}

func (f *Failure) Error() string { return fmt.Sprintf("pgbackrest: exit code %d: %s", f.Code, f.Said) }
