// Package backup makes the backups: when, of which server, of which type, what becomes of
// them, and what a person is told. What makes them is a Tool, which is pgBackRest; who
// leads it learns from the model and asks the servers themselves.
package backup

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"controld/internal/cluster"
	"controld/internal/operation"
)

// The kinds of operation.
const (
	KindBackup     = "backup"
	KindRepository = "repository" // makes the repository, and turns archiving on
)

// Config is how backups are to be made.
type Config struct {
	Stanza string // pgBackRest's name of the cluster
	// StuckAfter is for how long a backup may make no progress.
	StuckAfter time.Duration
	// LookEvery is the longest time between two looks at the repository.
	LookEvery time.Duration
	// Timetable is what is made by itself, and when.
	Timetable Timetable
	// RetainFulls is how many full backups are kept, with what depends on them.
	RetainFulls int
	// CountManual: fulls that are of no day of the cycle count among these, too. Else they
	// push none out.
	CountManual bool
}

// A Cluster is what this package knows of the nodes.
type Cluster interface {
	View() cluster.View
	Identity() cluster.Identity
	Nodes() []cluster.Node
}

// Files are those through which the tool is configured, in its own container and in those
// of the nodes.
type Files interface {
	// Configure writes, durably, what the tool needs to know to work on the repository of
	// the cluster systemID. What stands there already is not written again.
	Configure(systemID uint64) error
	// There says why there is no place for a repository; empty: there is one. A cluster
	// that an earlier version made has none.
	There() string
	// Space is what is left on the repository's disk, and its size.
	Space() (freeBytes, totalBytes int64, err error)
	// Dir is where the files of a backup lie.
	Dir(systemID uint64, label string) string
	// Others are further clusters whose repositories lie beside that of systemID.
	Others(systemID uint64) ([]uint64, error)
}

// Parts are what Backups is made of.
type Parts struct {
	Cluster    Cluster
	Servers    cluster.Servers
	Tool       Tool
	Files      Files
	Logs       Logs
	Catalogue  Catalogue
	Archiving  *Archiving
	Operations *operation.Manager
	Facts      cluster.Facts
	Clock      func() time.Time // by which days are planned
	Log        *slog.Logger
}

// Backups is the capability.
type Backups struct {
	Parts
	cfg  Config
	seen atomic.Pointer[Seen]
	// continuity is what was last seen of the archive.
	continuity atomic.Pointer[Continuity]
	progress   *progress // of the cycle
	// expired is the oldest segment that the last expiry has left in the archive.
	expired atomic.Pointer[string]
	// recorded is what is known of the catalogue, keys are those that backups have there.
	recorded atomic.Pointer[Recorded]
	keys     atomic.Pointer[Keys]

	looking sync.Mutex    // one look at a time
	wake    chan struct{} // something is to be done before the next look
	looked  chan struct{} // the repository was looked at

	recording sync.Mutex // one change of the catalogue at a time
}

// Seen is what was last seen of the repository.
type Seen struct {
	At time.Time
	Repository
	// Missing says why there is no place for a repository; empty: there is one.
	Missing              string
	FreeBytes, DiskBytes int64 // what is left on its disk, and its size; both 0: not known
	// Others are further clusters whose repositories are kept beside this one.
	Others []uint64
}

// New makes the capability and registers its kinds of operation.
func New(cfg Config, parts Parts) (*Backups, error) {
	progress, err := newProgress(parts.Facts)
	if err != nil {
		return nil, err
	}
	b := &Backups{Parts: parts, cfg: cfg, progress: progress, wake: make(chan struct{}, 1), looked: make(chan struct{}, 1)}
	b.seen.Store(&Seen{Repository: Repository{State: RepositoryUnknown, Detail: "nobody has looked yet"}})
	b.continuity.Store(&Continuity{})
	b.recorded.Store(&Recorded{Detail: "it was not compared with the repository yet"})
	b.keys.Store(&Keys{})
	for kind, build := range map[string]operation.Builder{
		KindBackup: b.buildBackup, KindRepository: b.buildRepository, KindArchive: b.buildArchive,
		KindExpire: b.buildExpire,
	} {
		if err := b.Operations.Register(kind, build); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Seen is what was last seen of the repository. It never blocks.
func (b *Backups) Seen() Seen { return *b.seen.Load() }

// lookTimeout bounds one look at the repository.
const lookTimeout = time.Minute

// Look looks at the repository.
func (b *Backups) Look(ctx context.Context) Seen {
	b.looking.Lock()
	defer b.looking.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	s := b.look(ctx)
	s.At = time.Now()
	was := b.seen.Swap(&s)
	poke(b.looked)
	if was.State == RepositoryOK && s.State != RepositoryOK {
		poke(b.wake) // from now on it is looked at often
	}
	return s
}

// poke has whoever waits for c go on, at once or when they wait next.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (b *Backups) look(ctx context.Context) Seen {
	unknown := func(err error) Seen {
		return Seen{Repository: Repository{State: RepositoryUnknown, Detail: err.Error()}}
	}
	if why := b.Files.There(); why != "" {
		return Seen{Repository: Repository{State: RepositoryUnknown, Detail: why}, Missing: why}
	}
	id := b.Cluster.Identity().SystemID
	if id == 0 {
		return Seen{Repository: Repository{State: RepositoryUnknown, Detail: "the cluster has not begun yet"}}
	}
	if err := b.Files.Configure(id); err != nil {
		return unknown(err)
	}
	repository, err := b.Tool.Look(ctx)
	if err != nil {
		return unknown(err)
	}
	s := Seen{Repository: repository}
	if s.FreeBytes, s.DiskBytes, err = b.Files.Space(); err != nil {
		b.Log.Warn("space of the repository not known", "err", err)
	}
	if s.Others, err = b.Files.Others(id); err != nil {
		b.Log.Warn("which other repositories there are is not known", "err", err)
	}
	return s
}

// Pauses between looks and attempts.
const (
	// soon is when the repository is looked at again while it is not as it should be.
	soon = 3 * time.Second
	// seldom is the longest pause after attempts at a backup that failed.
	seldom = 15 * time.Minute
)

// Watch looks at the repository and the archive until ctx ends, and has made what is missing
// and what is due.
func (b *Backups) Watch(ctx context.Context) {
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { b.keepArchive(ctx) })
	beside.Go(func() { b.keepCatalogue(ctx) })
	failures, again := 0, time.Time{}
	for ctx.Err() == nil {
		s := b.Look(ctx)
		pause := min(b.cfg.LookEvery, b.untilDue())
		var did attempt
		if !time.Now().Before(again) {
			did = b.next(ctx, s)
		}
		switch {
		case did.state == operation.Succeeded:
			failures, pause = 0, 0 // there may be more to do
		case did.kind != "":
			longest := seldom
			if did.kind == KindRepository {
				longest = b.cfg.LookEvery
			}
			failures++
			wait := min(longest, soon<<min(failures, 10))
			if did.state == operation.Cancelled && !did.gaveWay {
				wait = longest // who has cancelled it does not want it now
			}
			again, pause = time.Now().Add(wait), min(pause, wait)
		case s.State != RepositoryOK || !b.archives():
			pause = min(pause, soon)
		}
		select {
		case <-ctx.Done():
		case <-b.wake:
		case <-time.After(pause):
		}
	}
}

// An attempt is what controld has done by itself.
type attempt struct {
	kind    string          // of operation; empty: there was nothing to do
	state   operation.State // it came to; empty: it was not even started
	gaveWay bool
}

// next has done what is missing or due, and waits for its end.
func (b *Backups) next(ctx context.Context, s Seen) attempt {
	leader, able := b.ready()
	if !able || s.Missing != "" || len(b.Operations.Holding(operation.Repository)) > 0 || b.moving() {
		return attempt{}
	}
	var rec operation.Record
	var err error
	archives := s.State == RepositoryOK && b.archives()
	if archives {
		err = b.begins()
	}
	owed := b.owed()
	run, due := b.due()
	expire := b.toExpire(s)
	day := false
	kind := KindBackup
	switch {
	case err != nil:
	case b.lost(s) && (owed == nil || !owed.NewRepository):
		return attempt{} // it may be on its way back: a person says that it is not
	case b.lost(s):
		rec, err = b.startBackup(ctx, *owed, "again: the one before gave way to another operation")
	case s.State == RepositoryNew, s.State == RepositoryOK && !archives:
		kind = KindRepository
		why := "the cluster " + leader.Node.Name + " leads has no repository yet"
		rec, err = b.start(ctx, operation.Spec{Kind: KindRepository, Reason: why, Caller: daemon}, params{})
	case archives && owed != nil:
		owed.NewRepository = false // it was made
		rec, err = b.startBackup(ctx, *owed, "again: the one before gave way to another operation")
	case archives && b.severed(s.Copies):
		h := b.Continuity().Holes()
		why := fmt.Sprintf("the archive lacks WAL up to %s for good: what was made before does not reach the present", h[len(h)-1].To)
		rec, err = b.startBackup(ctx, params{Types: []Type{Full}}, why)
	case archives && !hasFull(s.Copies):
		rec, err = b.startBackup(ctx, b.first(), "there is no backup yet")
	case archives && due:
		day = true
		rec, err = b.startBackup(ctx, params{Types: run.Types, Day: run.Day, Slot: run.Slot, Moves: true}, run.why())
	case archives && expire != "":
		kind = KindExpire
		rec, err = b.Expire(ctx, Expiry{}, expire, false, daemon)
	default:
		return attempt{}
	}
	if err == nil {
		rec, err = b.Operations.Wait(ctx, rec.ID)
	}
	if day && ctx.Err() == nil {
		b.progress.attempted(run.Day, b.Clock(), rec, err)
	}
	if err != nil && ctx.Err() == nil {
		b.Log.Warn("work on the repository not started", "err", err)
	}
	if err != nil {
		return attempt{kind: kind}
	}
	return attempt{kind, rec.State, rec.GaveWayTo != ""}
}

// owed is what the newest backup was to make that gave way to a failover, or the like; nil
// where it has not. It is made again, of who leads now.
func (b *Backups) owed() *params {
	recs, _, err := b.Operations.List(operation.Filter{Kind: KindBackup, Limit: 20})
	if err != nil {
		return nil
	}
	recs = slices.DeleteFunc(recs, func(r operation.Record) bool { return r.State == operation.Refused })
	if len(recs) == 0 || recs[0].GaveWayTo == "" {
		return nil
	}
	var owed struct {
		Types  []Type    `json:"types"`
		Labels []string  `json:"labels"`
		Mode   Mode      `json:"mode"`
		Day    int       `json:"cycle_day"`
		Slot   time.Time `json:"cycle_slot"`
		Moves  bool      `json:"moves_cycle"`
		New    bool      `json:"new_repository"`
	}
	encoded, err := json.Marshal(recs[0].Result)
	if err == nil {
		err = json.Unmarshal(encoded, &owed)
	}
	if err != nil || len(owed.Types) <= len(owed.Labels) {
		return nil
	}
	return &params{
		Types: owed.Types[len(owed.Labels):], Mode: owed.Mode, Day: owed.Day, Slot: owed.Slot, Moves: owed.Moves, NewRepository: owed.New,
	}
}

// severed reports whether there is a hole in the archive, and no full from after it.
func (b *Backups) severed(copies []Copy) bool {
	c := b.Continuity()
	return len(c.Lost) > 0 && c.Unread == "" && c.Conflict == "" && !slices.ContainsFunc(copies, func(x Copy) bool {
		return x.Type == Full && x.Mode == Online && c.Reaches(x)
	})
}

var (
	daemon    = operation.Caller{Name: string(operation.Daemon), Kind: operation.Daemon}
	scheduler = operation.Caller{Name: string(operation.Scheduler), Kind: operation.Scheduler}
)

// archives reports whether WAL of the present cluster is archived.
func (b *Backups) archives() bool { return b.Archiving.on(b.Cluster.Identity().SystemID) }

// lost reports whether there was a repository for this cluster, and is none: it is gone, or
// its volume is not the one that it was.
func (b *Backups) lost(s Seen) bool {
	return s.State == RepositoryNew && s.Missing == "" && b.archives()
}

// ready returns who leads, where that node can archive, and false where nobody does.
func (b *Backups) ready() (cluster.NodeState, bool) {
	leader, problem := cluster.Leader(b.Cluster.View())
	return leader, problem == nil && leader.Node.Name == b.Cluster.Identity().Primary && leader.Init.Archives
}

// params are the journalled parameters of an operation.
type params struct {
	Types []Type `json:"types,omitempty"`
	Mode  Mode   `json:"mode,omitempty"`
	// Day is the day of the cycle that this is; 0: none.
	Day int `json:"day,omitempty"`
	// Moves: when it is made the cycle stands at Day, and what was planned until Slot is served.
	Moves  bool      `json:"moves,omitempty"`
	Slot   time.Time `json:"slot,omitzero"`
	Reason string    `json:"reason,omitempty"`
	Expiry *Expiry   `json:"expiry,omitempty"`
	// NewRepository: in place of one that is lost, a new one is made before.
	NewRepository bool `json:"new_repository,omitempty"`
}

// startBackup starts one that controld decides on by itself.
func (b *Backups) startBackup(ctx context.Context, p params, why string) (operation.Record, error) {
	return b.start(ctx, operation.Spec{Kind: KindBackup, Mode: string(p.Types[0]), Reason: why, Caller: scheduler}, p)
}

func (b *Backups) start(ctx context.Context, spec operation.Spec, p params) (operation.Record, error) {
	p.Reason = spec.Reason
	encoded, err := json.Marshal(p)
	if err != nil {
		return operation.Record{}, fmt.Errorf("encode request: %w", err)
	}
	var work operation.Runnable
	switch spec.Kind {
	case KindBackup:
		work = b.backupWork(p)
	case KindRepository:
		work = b.repositoryWork()
	case KindArchive:
		work = b.archiveWork()
	case KindExpire:
		work = b.expireWork(*p.Expiry)
	}
	spec.Params = encoded
	return b.Operations.Start(ctx, spec, work)
}

func (b *Backups) buildBackup(_ operation.Record, encoded json.RawMessage) (operation.Runnable, error) {
	var p params
	if err := json.Unmarshal(encoded, &p); err != nil {
		return nil, fmt.Errorf("parameters: %w", err)
	}
	return b.backupWork(p), nil
}

func (b *Backups) buildExpire(_ operation.Record, encoded json.RawMessage) (operation.Runnable, error) {
	p := params{Expiry: &Expiry{}}
	if err := json.Unmarshal(encoded, &p); err != nil {
		return nil, fmt.Errorf("parameters: %w", err)
	}
	return b.expireWork(*p.Expiry), nil
}

func (b *Backups) buildArchive(operation.Record, json.RawMessage) (operation.Runnable, error) {
	return b.archiveWork(), nil
}

func (b *Backups) buildRepository(operation.Record, json.RawMessage) (operation.Runnable, error) {
	return b.repositoryWork(), nil
}
