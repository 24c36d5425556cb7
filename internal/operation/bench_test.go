package operation

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A script is work whose steps do what a test tells them, and note that they did.
type script struct {
	mu     sync.Mutex
	done   []string
	do     acts
	past   func(context.Context) (bool, error)
	policy Work[scriptState]
}

// acts are what steps do, by name; an undo's is "undo NAME".
type acts map[string]func(context.Context) error

type scriptState struct {
	Names []string `json:"names"`
	Seen  int      `json:"seen"`
}

// note is what step name does.
func (s *script) note(name string) func(context.Context, *scriptState) error {
	return func(ctx context.Context, state *scriptState) error {
		s.mu.Lock()
		s.done = append(s.done, name)
		do := s.do[name]
		s.mu.Unlock()
		state.Seen++
		if do != nil {
			return do(ctx)
		}
		return nil
	}
}

func (s *script) trace() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.done, " ")
}

// work has the steps a, b!, c, leap!, d, e! where ! asks for an entry; leap is
// the point of no return.
func (s *script) work() Runnable {
	w := s.policy
	if w.Prepare == nil {
		w.Prepare = func(context.Context, *scriptState) (Prepared, error) { return Prepared{Mode: "tried"}, nil }
	}
	w.Steps = func(*scriptState) []Step[scriptState] {
		var out []Step[scriptState]
		for _, name := range []string{"a!", "b!", "c", "leap!", "d", "e!"} {
			plain := strings.TrimSuffix(name, "!")
			out = append(out, Step[scriptState]{Name: plain, Entry: plain != name, Do: s.note(plain), Undo: s.note("undo " + plain)})
		}
		return out
	}
	if w.NoReturn == "" && !w.Forward {
		w.NoReturn = "leap"
	}
	if w.NoReturn != "" {
		w.Past = func(ctx context.Context, _ *scriptState) (bool, error) {
			if s.past == nil {
				return false, nil
			}
			return s.past(ctx)
		}
	}
	w.Result = func(state *scriptState) map[string]any { return map[string]any{"seen": state.Seen} }
	return w
}

type bench struct {
	t   *testing.T
	dir string
	j   *Journal
	m   *Manager
	// table is what NewManager gets; nil: Claims.
	table Table
	build Builder // for every kind
	told  *logbook
	loud  bool // the test makes errors happen that are told
}

// A logbook is what a manager has told the operator.
type logbook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logbook) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// count is how often it says what.
func (l *logbook) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

func (b *bench) claims() Table {
	if b.table == nil {
		return Claims
	}
	return b.table
}

// kinds are those of the table that have a builder.
func (b *bench) kinds() map[string]bool {
	out := map[string]bool{}
	for _, row := range b.claims() {
		if row.Kind != KindCleanup {
			out[row.Kind] = true
		}
	}
	return out
}

// onBench runs f in virtual time with a manager.
func onBench(t *testing.T, f func(b *bench)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, dir: dir}
		b.open()
		defer b.close()
		f(b)
	})
}

func (b *bench) open() {
	b.t.Helper()
	j, err := OpenJournal(b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	b.told = &logbook{}
	if b.m, err = NewManager(j, b.claims(), slog.New(slog.NewTextHandler(b.told, nil))); err != nil {
		b.t.Fatal(err)
	}
	for kind := range b.kinds() {
		err := b.m.Register(kind, func(r Record, params json.RawMessage) (Runnable, error) { return b.build(r, params) })
		if err != nil {
			b.t.Fatal(err)
		}
	}
	b.j = j
	j.db.NoSync, j.checkpoints.NoSync = true, true // no test takes the power away
}

func (b *bench) close() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.m.Stop(ctx); err != nil {
		b.t.Error(err)
	}
	if err := b.j.Close(); err != nil {
		b.t.Error(err)
	}
	if !b.loud && b.told.count("level=ERROR") > 0 {
		b.t.Errorf("an error was told, and nothing had failed:\n%s", b.told.text.String())
	}
}

// crash leaves the journal as it stands: nothing of the old manager reaches it
// any more. Release lets its goroutines end.
func (b *bench) crash(release func()) {
	b.t.Helper()
	if err := b.j.Close(); err != nil {
		b.t.Fatal(err)
	}
	old := b.m
	b.open()
	release()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := old.Stop(ctx); err != nil {
		b.t.Error(err)
	}
}

func (b *bench) start(kind string, s *script) (Record, error) {
	return b.m.Start(context.Background(), Spec{Kind: kind, Caller: Caller{Name: "t"}, Params: json.RawMessage(`{}`)}, s.work())
}

// run starts an operation and waits until it is settled.
func (b *bench) run(s *script) Record {
	b.t.Helper()
	rec, err := b.start("failover", s)
	var p *Problem
	if err != nil && !errors.As(err, &p) {
		b.t.Fatal(err)
	}
	rec, err = b.m.Wait(context.Background(), rec.ID)
	if err != nil {
		b.t.Fatal(err)
	}
	return rec
}

func (b *bench) resume(s *script) Record {
	b.t.Helper()
	var id string
	b.build = func(r Record, _ json.RawMessage) (Runnable, error) {
		id = r.ID
		return s.work(), nil
	}
	if err := b.m.Resume(context.Background()); err != nil {
		b.t.Fatal(err)
	}
	rec, err := b.m.Get(id)
	if err != nil {
		b.t.Fatal(err)
	}
	return rec
}

var errBoom = errors.New("boom")

func failing(context.Context) error { return errBoom }

func refusing(context.Context) error { return Refuse("no-candidate", map[string]any{"lag": 5}, "none") }

func panicking(context.Context) error { panic("oh") }

// times returns a step that fails the first n times.
func times(n int, err error) func(context.Context) error {
	return func(context.Context) error {
		if n--; n >= 0 {
			return err
		}
		return nil
	}
}

func yes(context.Context) (bool, error) { return true, nil }

const undoOfC = "undo c undo b undo a"

// hold is a step that waits for its context or for open.
func hold(open <-chan struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Kinds of each sort, beside those of the cluster.
const (
	kindCopy  = "copy"  // long, shared; gives way to a failover and is let go
	kindLoad  = "load"  // long, shared, of a data set; a failover waits for it, for a while
	kindTidy  = "tidy"  // waits for a load as long as it takes, and is gone on with after a crash
	kindOnce  = "once"  // the same, but it is not gone on with
	kindAgain = "again" // restartable; gives way to a failover, and undoes what it did first
	kindHeavy = "heavy" // refuses a failover, unless it is to be cancelled for it
	kindProud = "proud" // refuses one in any case
)

const dataset, repository Resource = "dataset", "repository"

// sorts is a table with a kind of each sort.
var sorts = append(slices.Clone(Claims), Table{
	{
		Kind: kindCopy, Shared: []Resource{Primary}, Exclusive: []Resource{repository}, Loose: true,
		Yields: []Yield{{To: "failover", How: AnswerCancel}}, CancelCosts: "it is made anew",
	},
	{Kind: KindCleanup, Modes: []string{kindCopy}, Exclusive: []Resource{repository}, Yields: []Yield{{To: kindCopy, How: AnswerWait}}},
	{
		Kind: kindLoad, Shared: []Resource{Primary}, Exclusive: []Resource{dataset},
		Yields: []Yield{
			{To: "failover", How: AnswerWait, Within: 10 * time.Second},
			{To: kindTidy, How: AnswerWait},
			{To: kindOnce, How: AnswerWait},
		},
	},
	{Kind: kindTidy, Exclusive: []Resource{dataset}, Yields: []Yield{{To: kindLoad, How: AnswerWait}}},
	{Kind: kindOnce, Exclusive: []Resource{dataset}},
	{Kind: kindAgain, Shared: []Resource{Primary}, Restartable: true, Yields: []Yield{{To: "failover", How: AnswerCancel}}},
	{Kind: kindHeavy, Shared: []Resource{Primary}, CancelCosts: "an hour"},
	{Kind: kindProud, Shared: []Resource{Primary}},
}...)

func onSorts(t *testing.T, f func(b *bench)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, dir: dir, table: sorts}
		b.open()
		defer b.close()
		f(b)
	})
}

// begin starts an operation that must begin.
func (b *bench) begin(kind string, s *script) Record {
	b.t.Helper()
	rec, err := b.start(kind, s)
	if err != nil {
		b.t.Fatalf("start %s: %v", kind, err)
	}
	synctest.Wait()
	return rec
}

func (b *bench) state(id string) State {
	b.t.Helper()
	rec, err := b.m.Get(id)
	if err != nil {
		b.t.Fatal(err)
	}
	return rec.State
}

// holdClients begins an operation that has clients waiting until resume is closed, and
// that does not end.
func (b *bench) holdClients(resume <-chan struct{}) {
	b.t.Helper()
	until := func(open <-chan struct{}) func(context.Context, *scriptState) error {
		return func(ctx context.Context, _ *scriptState) error { return hold(open)(ctx) }
	}
	b.beginWork("align", []Step[scriptState]{
		{Name: "pause", HoldsClients: true, Entry: true, Do: until(resume)},
		{Name: "after", Entry: true, Do: until(nil)},
	})
}

func (b *bench) beginWork(kind string, steps []Step[scriptState]) {
	b.t.Helper()
	work := Work[scriptState]{
		Prepare: func(context.Context, *scriptState) (Prepared, error) { return Prepared{}, nil },
		Steps:   func(*scriptState) []Step[scriptState] { return steps },
	}
	if _, err := b.m.Start(context.Background(), Spec{Kind: kind}, work); err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
}

// write begins an operation that saves a checkpoint after a second, and tells how long
// it had to wait for that.
func (b *bench) write() (waited <-chan time.Duration) {
	b.t.Helper()
	out := make(chan time.Duration, 1)
	b.begin("protect", &script{do: acts{"b": func(ctx context.Context) error {
		time.Sleep(time.Second)
		began := time.Now()
		err := SaveCheckpoint(ctx, "rows", here, mark{1})
		out <- time.Since(began).Round(time.Millisecond)
		return err
	}}})
	return out
}

// taking is a step that takes d, whatever its context says.
func taking(d time.Duration) func(context.Context) error {
	return func(context.Context) error { time.Sleep(d); return nil }
}

// holding is a script whose step b takes until its context ends.
func holding() *script {
	return &script{do: acts{"b": hold(nil)}}
}
