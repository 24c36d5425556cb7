package backup

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/pgwal"
	"controld/internal/wait"
	"controld/internal/wal"
)

// A world is what backups are made of, made believe. It outlives controld: what the tool
// has begun goes on when nobody waits for it.
type world struct {
	t       *testing.T
	mu      sync.Mutex
	primary string
	dead    map[string]bool // servers that do not answer
	command string          // the archive_command that the leader has

	old      bool   // the nodes' containers cannot archive
	hangs    bool   // the tool, in what it does for a repository
	missing  string // why there is no place for a repository
	away     bool   // the tool's container does not answer
	stanza   bool
	copies   []Copy
	ever     []Copy // that were made, also those that are gone
	running  map[string]*job
	begun    []Order
	copyTime time.Duration // what a backup takes
	stuck    bool          // a backup makes no progress
	retain   int           // how many fulls are kept; 0: two
	cycle    bool          // only fulls of the cycle count among these
	keepWAL  bool          // the tool removes none
	foreign  bool          // the repository is another cluster's
	fail     *Failure      // what the next backups end with
	plan     Timetable     // what controld makes by itself
	// lookEvery is the longest pause between two looks; 0: a minute.
	lookEvery time.Duration
	// brokenChain: what builds on another backup fails.
	brokenChain bool
	expiry      expiries

	wal       logs
	catalogue *catalogueFake
	lookLike  func(*Repository) // what a look shows otherwise than it is
}

// logs are the WAL of the world: what the nodes and the archive have of it.
type logs struct {
	timeline wal.Timeline
	way      []pgwal.Branch
	flushed  wal.LSN
	archived map[string]bool            // names in the archive
	volumes  map[string]map[string]bool // by node: the whole files that lie there
	waiting  map[string]bool            // on the list of the leader's archiver
	unread   bool                       // a volume cannot be looked at
	conflict string                     // what the leader cannot archive, as another has its name
	same     bool                       // and that other is the same after all
	slots    map[string]wal.LSN         // by node: from where on it keeps WAL
	pushes   int                        // that were tried
	refused  *Failure                   // what pushes end with
}

// expiries are what the tool has of removals.
type expiries struct {
	time    time.Duration // that one takes
	running bool
	half    map[string]bool // backups without their manifests: listed, and not to be restored
	calls   []string
	version string
	fail    *Failure
}

type job struct {
	order Order
	began time.Time
	ended chan struct{}
	err   error
}

const (
	system      = 4711
	otherSystem = 4712
)

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{
		t: t, primary: "one", dead: map[string]bool{}, command: NotArchived, running: map[string]*job{}, copyTime: 10 * time.Second,
		expiry:    expiries{time: time.Second, half: map[string]bool{}, version: "2.55.1"},
		catalogue: newCatalogueFake(),
		wal: logs{
			timeline: 1, way: []pgwal.Branch{{Timeline: 1, End: ^wal.LSN(0)}}, flushed: at(2, 100),
			archived: map[string]bool{}, volumes: map[string]map[string]bool{"one": {}, "two": {}}, waiting: map[string]bool{},
			slots: map[string]wal.LSN{},
		},
	}
}

// controld starts one on what the one before has left. stop ends it as a signal does.
func (w *world) controld(dir string) (b *Backups, operations *operation.Manager, stop func()) {
	w.t.Helper()
	journal, err := operation.OpenJournal(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	operations, err = operation.NewManager(journal, operation.Claims, log)
	if err != nil {
		w.t.Fatal(err)
	}
	archiving, err := NewArchiving("push", journal, func(cluster.Node) bool { return true })
	if err != nil {
		w.t.Fatal(err)
	}
	for _, kind := range []string{cluster.KindFailover} {
		if err := operations.Register(kind, func(operation.Record, json.RawMessage) (operation.Runnable, error) {
			return nothing(),
				nil
		}); err != nil {
			w.t.Fatal(err)
		}
	}
	b, err = New(Config{
		Stanza: "main", StuckAfter: 10 * time.Minute, LookEvery: cmp.Or(w.lookEvery, time.Minute),
		RetainFulls: w.retain, CountManual: !w.cycle,
		Timetable: w.plan,
	}, Parts{
		Cluster: w, Servers: w, Tool: w, Files: w, Logs: w, Catalogue: w.catalogue, Archiving: archiving, Operations: operations,
		Facts: journal, Clock: time.Now, Log: log,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	// Supervision, which tells the leader how to archive.
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			w.mu.Lock()
			w.command = archiving.Command(cluster.Node{})
			w.mu.Unlock()
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Second):
			}
		}
	}()
	return b, operations, func() {
		cancel()
		<-done
		if err := operations.Stop(context.Background()); err != nil {
			w.t.Error(err)
		}
		if err := journal.Close(); err != nil {
			w.t.Error(err)
		}
	}
}

func (w *world) Nodes() []cluster.Node {
	return []cluster.Node{{Name: "one", Container: "c-one"}, {Name: "two", Container: "c-two"}}
}

func (w *world) Identity() cluster.Identity {
	w.mu.Lock()
	defer w.mu.Unlock()
	return cluster.Identity{SystemID: system, Primary: w.primary}
}

func (w *world) View() cluster.View {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := cluster.View{At: time.Now()}
	for _, n := range w.Nodes() {
		s := cluster.NodeState{Node: n, SeenAt: v.At, Container: cluster.Container{Exists: true, Running: true},
			Init: node.Status{Archives: !w.old}}
		if !w.dead[n.Name] {
			s.Server = &cluster.Server{
				InRecovery: n.Name != w.primary, Settings: map[string]string{cluster.ArchiveSetting: w.command},
				Timeline: w.wal.timeline, Flushed: w.wal.flushed, SegmentBytes: testSegment,
			}
			if w.wal.conflict != "" {
				s.Server.ArchiveLastFailed, s.Server.ArchiveLastFailedAt = w.wal.conflict, v.At
			}
			if n.Name != w.primary {
				s.Server.Flushed, s.Server.Replayed = 0, w.wal.flushed
			}
			if keep, has := w.wal.slots[n.Name]; has {
				s.Server.Slots = []cluster.Slot{{Name: HoldSlot, Restart: keep, WALStatus: "reserved"}}
			}
		}
		v.Nodes = append(v.Nodes, s)
	}
	return v
}

func (w *world) Knock(context.Context, cluster.Node) error { return nil }

// session says one thing; all else of the interface is not asked for here.
type session struct {
	cluster.Session
	w       *world
	node    string
	standby bool
}

func (s session) CreateSlot(_ context.Context, name string) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if name != HoldSlot {
		s.w.t.Errorf("slot %s", name)
	}
	s.w.wal.slots[s.node] = at(1, 0)
	return nil
}

func (s session) AdvanceSlot(_ context.Context, _ string, to wal.LSN) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if to < s.w.wal.slots[s.node] {
		return errors.New("cannot advance replication slot backwards")
	}
	s.w.wal.slots[s.node] = to
	return nil
}

func (s session) Position(context.Context) (cluster.Position, error) {
	return cluster.Position{InRecovery: s.standby}, nil
}
func (session) Close() {}

func (w *world) Connect(_ context.Context, n cluster.Node) (cluster.Session, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead[n.Name] {
		return nil, cluster.ErrRefused
	}
	return session{w: w, node: n.Name, standby: n.Name != w.primary}, nil
}

func (w *world) Configure(systemID uint64) error {
	if systemID != system {
		w.t.Errorf("configured for %d", systemID)
	}
	return nil
}
func (w *world) Others(uint64) ([]uint64, error) { return []uint64{otherSystem}, nil }
func (w *world) There() string                   { w.mu.Lock(); defer w.mu.Unlock(); return w.missing }
func (w *world) Space() (int64, int64, error)    { return 50 << 30, 100 << 30, nil }
func (w *world) Dir(systemID uint64, label string) string {
	return fmt.Sprintf("/repo/%d/%s", systemID, label)
}

// Check and Create hang while the tool does.
func (w *world) Check(ctx context.Context, _ []cluster.Node) error { return w.work(ctx) }
func (w *world) Create(ctx context.Context, _ []cluster.Node) error {
	if err := w.work(ctx); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stanza = true
	return nil
}

func (w *world) work(ctx context.Context) error {
	w.mu.Lock()
	hangs := w.hangs
	w.mu.Unlock()
	if !hangs {
		return nil
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (w *world) setHangs(yes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hangs = yes
}

var errAway = errors.New("the init does not answer")

func (w *world) Look(context.Context) (Repository, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.away:
		return Repository{}, errAway
	case !w.stanza:
		return Repository{State: RepositoryNew}, nil
	}
	r := Repository{State: RepositoryOK, SystemID: system, Copies: append([]Copy(nil), w.copies...), Busy: w.expiry.running}
	if w.foreign {
		r.SystemID++
	}
	if names := w.segments(); len(names) > 0 {
		r.Archive = []ArchiveRange{{ID: "15-1", Min: names[0], Max: names[len(names)-1]}}
	}
	for _, j := range w.running {
		if j.err == nil && !closed(j.ended) {
			r.Busy, r.TotalBytes = true, 1000
			if !w.stuck {
				r.DoneBytes = int64(1000 * time.Since(j.began) / w.copyTime)
			}
		}
	}
	if w.lookLike != nil {
		w.lookLike(&r)
	}
	return r, nil
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Begin behaves: one backup at a time, of a server that leads.
func (w *world) Begin(_ context.Context, id string, o Order) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away {
		return errAway
	}
	if w.running[id] != nil {
		return nil
	}
	j := &job{order: o, began: time.Now(), ended: make(chan struct{})}
	w.running[id] = j
	w.begun = append(w.begun, o)
	w.mend()
	if w.expiry.running {
		j.err = locked
	}
	for other, x := range w.running {
		if other != id && !closed(x.ended) {
			j.err = locked
		}
	}
	if o.Servers[0].Name != w.primary {
		j.err = &Failure{Kind: FailureNotReady, Code: 56, Said: "unable to find primary cluster"}
	}
	if w.fail != nil {
		j.err = w.fail
	}
	if w.brokenChain && o.Type != Full {
		j.err = &Failure{Kind: FailureLabel, Code: 106, Said: "new backup label is not later than latest backup label"}
	}
	if j.err != nil {
		close(j.ended)
		return nil
	}
	time.AfterFunc(w.copyTime, func() { w.finish(id) })
	return nil
}

func (w *world) finish(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	j := w.running[id]
	if j == nil || closed(j.ended) || w.stuck {
		return
	}
	c := Copy{
		Label: fmt.Sprintf("L%d", w.label()), Type: j.order.Type, Mode: j.order.Mode, StartedAt: j.began, EndedAt: time.Now(),
		Annotations: maps.Clone(j.order.Annotations), SystemID: system, Bytes: 1000,
	}
	if at := len(w.copies) - 1; c.Type != Full && at >= 0 {
		for c.Type == Differential && w.copies[at].Type != Full {
			at--
		}
		c.Prior = w.copies[at].Label
		c.Needs = append(append([]string(nil), w.copies[at].Needs...), c.Prior)
	}
	if c.Mode == Online { // it waits for its own WAL, and begins the next segment
		first := Segment{w.wal.timeline, w.wal.flushed.Segment(testSegment)}
		c.Timeline, c.WALStart, c.WALStop = first.Timeline, first.Name(testSegment), first.Name(testSegment)
		c.LSNStart, c.LSNStop = w.wal.flushed, w.wal.flushed+1000
		w.wal.archived[c.WALStart] = true
		w.wal.flushed = (first.Number + 1).Start(testSegment) + 40
	}
	w.copies, w.ever = append(w.copies, c), append(w.ever, c)
	close(j.ended)
}

var locked = &Failure{Kind: FailureLocked, Code: 50, Said: "another one runs"}

// label is the next number of a label; they only rise.
func (w *world) label() int {
	next := 1
	for _, c := range w.copies {
		var n int
		if _, err := fmt.Sscanf(c.Label, "L%d", &n); err == nil {
			next = max(next, n+1)
		}
	}
	return next
}

// segments are the names of those in the archive, the oldest first.
func (w *world) segments() (names []string) {
	for name, is := range w.wal.archived {
		if is && !strings.HasSuffix(name, ".history") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// mend is what every command that has the lock does with backups whose removal was cut off,
// and with those that need them.
func (w *world) mend() {
	if w.expiry.running {
		return
	}
	for label := range w.expiry.half {
		w.drop(label)
	}
	clear(w.expiry.half)
}

func (w *world) drop(label string) {
	w.copies = slices.DeleteFunc(w.copies, func(c Copy) bool { return c.Label == label || slices.Contains(c.Needs, label) })
}

// expire behaves: one at a time, and what is cut off in the middle is mended by the next.
func (w *world) expire(ctx context.Context, call string, begin, end func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expiry.calls = append(w.expiry.calls, call)
	switch {
	case w.away:
		return errAway
	case w.expiry.fail != nil:
		return w.expiry.fail
	case w.expiry.running || w.leftLocked() > 0:
		return locked
	}
	w.mend()
	if err := begin(); err != nil {
		return err
	}
	w.expiry.running = true
	w.mu.Unlock()
	err := wait.Sleep(ctx, w.expiry.time)
	w.mu.Lock()
	w.expiry.running = false
	if err != nil {
		return err
	}
	return end()
}

func (w *world) Expire(ctx context.Context, label string) error {
	return w.expire(ctx, "expire "+label, func() error {
		at := slices.IndexFunc(w.copies, func(c Copy) bool { return c.Label == label })
		fulls := slices.ContainsFunc(w.copies, func(c Copy) bool { return c.Type == Full && c.Label != label })
		switch {
		case at < 0:
			return &Failure{Kind: FailureMissing, Said: "backup " + label + " does not exist"}
		case w.copies[at].Type == Full && !fulls:
			return &Failure{Kind: FailureSetup, Code: 104, Said: "full backup " + label + " cannot be expired"}
		}
		w.expiry.half[label] = true
		return nil
	}, func() error { w.mend(); return nil })
}

// ExpireWAL tears a gap where it is told less than there is, as pgBackRest does: of older
// backups only the WAL that makes them consistent stays.
func (w *world) ExpireWAL(ctx context.Context, n int) error {
	return w.expire(ctx, fmt.Sprintf("expire WAL %d", n), func() error { return nil }, func() error {
		if w.keepWAL || n < 1 || n > len(w.copies) || w.copies[len(w.copies)-n].WALStart == "" {
			return nil
		}
		older, since := w.copies[:len(w.copies)-n], w.copies[len(w.copies)-n].WALStart
		for _, name := range w.segments() {
			own := slices.ContainsFunc(older, func(c Copy) bool { return c.WALStart != "" && c.WALStart <= name && name <= c.WALStop })
			if name < since && !own {
				delete(w.wal.archived, name)
			}
		}
		return nil
	})
}

func (w *world) Version(context.Context) (string, error) { return w.expiry.version, nil }

func (w *world) ArchiveSize(uint64, time.Time) (all, recent int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := int64(len(w.segments()))
	return n * testSegment, n * testSegment, nil
}

func (w *world) Await(ctx context.Context, id string) error {
	w.mu.Lock()
	j := w.running[id]
	w.mu.Unlock()
	if j == nil {
		return ErrNotRunning
	}
	select {
	case <-j.ended:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.running, id)
	return j.err
}

func (w *world) End(_ context.Context, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if j := w.running[id]; j != nil && !closed(j.ended) {
		j.err = &Failure{Kind: FailureEnded, Code: 137, Said: "ended on request"}
		close(j.ended)
	}
	delete(w.running, id)
	return nil
}

func (w *world) Archived(systemID uint64, since string) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for name, is := range w.wal.archived {
		if is && (name >= since || strings.HasSuffix(name, ".history")) {
			if strings.HasSuffix(name, ".history") {
				names = append(names, name)
				continue
			}
			names = append(names, name+"-"+archivedSum+".zst")
		}
	}
	if w.away || systemID != system {
		return nil, errAway
	}
	return names, nil
}

func (w *world) Way(cluster.Node, wal.Timeline, int64) ([]pgwal.Branch, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wal.way, nil
}

func (w *world) Whole(_ cluster.Node, file string, _ int64) (path string, waits bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wal.waiting[file] {
		return "", true, nil
	}
	for _, n := range w.Nodes() {
		if w.wal.volumes[n.Name][file] {
			return "/pg/" + n.Name + "/" + file, false, nil
		}
	}
	if w.wal.unread {
		return "", false, errors.New("input/output error")
	}
	return "", false, nil
}

// archivedSum is the checksum of all that is archived.
const archivedSum = "0123456789abcdef0123456789abcdef01234567"

func (w *world) Checksum(_ cluster.Node, file string) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wal.same {
		return archivedSum, nil
	}
	return "another", nil
}

// Push behaves: what is not there cannot be pushed.
func (w *world) Push(_ context.Context, _ cluster.Node, path string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wal.pushes++
	file := filepath.Base(path)
	switch {
	case w.away:
		return errAway
	case w.wal.refused != nil:
		return w.wal.refused
	case !w.wal.volumes[filepath.Base(filepath.Dir(path))][file]:
		return &Failure{Kind: FailureMissing, Code: 55, Said: "unable to open missing file"}
	}
	w.wal.archived[file] = true
	return nil
}

// failover makes the other node lead on a new timeline. What the old primary wrote and did
// not archive it leaves behind, on the volumes of those that have it.
func (w *world) failover(unarchived int, volumes ...string) (files []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := w.wal.flushed.Segment(testSegment)
	for n := range unarchived {
		s := Segment{w.wal.timeline, first + wal.SegmentNumber(n)}
		files = append(files, s.Name(testSegment))
		for _, name := range volumes {
			w.wal.volumes[name][s.Name(testSegment)] = true
		}
	}
	fork := (first + wal.SegmentNumber(unarchived)).Start(testSegment) + 300
	w.wal.way[len(w.wal.way)-1].End = fork
	w.wal.timeline++
	w.wal.way = append(w.wal.way, pgwal.Branch{Timeline: w.wal.timeline, End: ^wal.LSN(0)})
	w.wal.archived[w.wal.timeline.HistoryName()] = true
	w.wal.flushed = fork + 500
	w.primary = map[string]string{"one": "two", "two": "one"}[w.primary]
	return files
}

// lacks are those of the files that the archive does not have.
func (w *world) lacks(files []string) (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range files {
		if !w.wal.archived[f] {
			out = append(out, f)
		}
	}
	return out
}

// restart is what becomes of the jobs when the tool's container is started again.
func (w *world) restart() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, j := range w.running {
		if !closed(j.ended) {
			j.err = ErrNotRunning
			close(j.ended)
		}
		delete(w.running, id)
	}
}

// A history is what has become of a world.
type history struct {
	copies  []Copy
	begun   int
	command string
}

func (w *world) history() history {
	w.mu.Lock()
	defer w.mu.Unlock()
	return history{append([]Copy(nil), w.copies...), len(w.begun), w.command}
}

// left are the backups that run.
func (w *world) left() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leftLocked()
}

func (w *world) leftLocked() (n int) {
	for _, j := range w.running {
		if !closed(j.ended) {
			n++
		}
	}
	return n
}
