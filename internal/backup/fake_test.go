package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/operation"
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
	running  map[string]*job
	begun    []Order
	copyTime time.Duration // what a backup takes
	stuck    bool          // a backup makes no progress
	fail     *Failure      // what the next backups end with
}

type job struct {
	order Order
	began time.Time
	ended chan struct{}
	err   error
}

const system = 4711

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{
		t: t, primary: "one", dead: map[string]bool{}, command: NotArchived, running: map[string]*job{}, copyTime: 10 * time.Second,
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
	b, err = New(Config{Stanza: "main", StuckAfter: 10 * time.Minute, LookEvery: time.Minute}, Parts{
		Cluster: w, Servers: w, Tool: w, Files: w, Archiving: archiving, Operations: operations, Log: log,
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
			case <-time.After(time.Second):
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
			s.Server = &cluster.Server{InRecovery: n.Name != w.primary, Settings: map[string]string{cluster.ArchiveSetting: w.command}}
		}
		v.Nodes = append(v.Nodes, s)
	}
	return v
}

func (w *world) Knock(context.Context, cluster.Node) error { return nil }

// session says one thing; all else of the interface is not asked for here.
type session struct {
	cluster.Session
	standby bool
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
	return session{standby: n.Name != w.primary}, nil
}

func (w *world) Configure(systemID uint64) error {
	if systemID != system {
		w.t.Errorf("configured for %d", systemID)
	}
	return nil
}
func (w *world) There() string                { w.mu.Lock(); defer w.mu.Unlock(); return w.missing }
func (w *world) Space() (int64, int64, error) { return 50 << 30, 100 << 30, nil }
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
	r := Repository{State: RepositoryOK, SystemID: system, Copies: append([]Copy(nil), w.copies...)}
	for _, j := range w.running {
		if j.err == nil && !closed(j.ended) {
			r.Busy, r.TotalBytes = true, 1000
			if !w.stuck {
				r.DoneBytes = int64(1000 * time.Since(j.began) / w.copyTime)
			}
		}
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
	for other, x := range w.running {
		if other != id && !closed(x.ended) {
			j.err = &Failure{Kind: FailureLocked, Code: 50, Said: "another one runs"}
		}
	}
	if o.Servers[0].Name != w.primary {
		j.err = &Failure{Kind: FailureNotReady, Code: 56, Said: "unable to find primary cluster"}
	}
	if w.fail != nil {
		j.err = w.fail
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
		Label: fmt.Sprintf("L%d", len(w.copies)+1), Type: j.order.Type, Mode: j.order.Mode, StartedAt: j.began, EndedAt: time.Now(),
		Annotations: maps.Clone(j.order.Annotations), SystemID: system, Bytes: 1000,
	}
	w.copies = append(w.copies, c)
	close(j.ended)
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
func (w *world) left() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, j := range w.running {
		if !closed(j.ended) {
			n++
		}
	}
	return n
}
