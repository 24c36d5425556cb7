package manager_test

import (
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/manager"
	"controld/internal/monitor"
	"controld/internal/operation"
)

const (
	first  = "postgres_master"
	second = "postgres_slave"
)

var verbose = flag.Bool("log", false, "write the log of the operations")

// errBrokenWire is the error of a call that a test lets fail.
var errBrokenWire = errors.New("broken wire")

// A lab is a world with one controld after the other on the same journal.
type lab struct {
	t   *testing.T
	w   *clustertest.World
	dir string
	set cluster.Settings
	log *slog.Logger
	now *daemon
	all []*daemon
	// lawless: what must never happen is part of the test.
	lawless bool
	// remains: long work has left something behind.
	remains atomic.Bool
}

// A daemon is one run of controld.
type daemon struct {
	process *clustertest.Process
	journal *operation.Journal
	ops     *operation.Manager
	m       *manager.Manager
	cancel  context.CancelFunc
	running sync.WaitGroup
	closed  sync.Once
}

// inLab runs f in virtual time, in a world whose cluster has been started:
// first leads, second streams, clients write.
func inLab(t *testing.T, change func(*cluster.Settings), f func(l *lab)) {
	inEmptyLab(t, change, func(l *lab) {
		l.boot(nil)
		l.look()
		l.settle("the first start")
		l.w.Write("imdb", 20*time.Millisecond)
		l.w.Write("imdb", 30*time.Millisecond)
		time.Sleep(300 * time.Millisecond)
		f(l)
	})
}

// inEmptyLab runs f in virtual time, in a world that nobody has looked at yet.
func inEmptyLab(t *testing.T, change func(*cluster.Settings), f func(l *lab)) {
	dir := journalDir(t)
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, dir, change)
		defer l.close()
		f(l)
	})
}

// journalDir is in memory where there is such a place: thousands of operations
// are journalled here, and what a disk does with them is not what is tried.
func journalDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "controld-test") //nolint:usetesting // in memory: each cut syncs the journal many times
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newLab(t *testing.T, dir string, change func(*cluster.Settings)) *lab {
	set := cluster.Settings{
		Nodes: clustertest.Nodes(), Preferred: first, PoolerContainer: clustertest.PoolerContainer, Databases: []string{"imdb"},
		Replication: cluster.Async, SyncTimeout: 3 * time.Second, MaxLossBytes: 16 << 20, MaxLagBytes: 16 << 20, MinFreeBytes: 256 << 20,
		PauseDeadline: 5 * time.Second, PauseLimit: 30 * time.Second, Interval: time.Second,
		ArchiveCommand: func(cluster.Node) string { return "/bin/true" },
		Secret:         func(string) string { return "secret" },
	}
	if change != nil {
		change(&set)
	}
	to := io.Discard
	if *verbose {
		to = os.Stderr
	}
	return &lab{t: t, w: clustertest.NewWorld(set.Nodes, set.Databases...), dir: dir, set: set, log: slog.New(slog.NewTextHandler(to, nil))}
}

// boot starts a controld that waits for what the test asks of it; look lets it
// do what it does by itself.
func (l *lab) boot(hook func(ctx context.Context, call string, do func() error) error) *daemon {
	l.t.Helper()
	journal, err := operation.OpenJournal(l.dir)
	if err != nil {
		l.t.Fatal(err)
	}
	ops, err := operation.NewManager(journal, sorts, l.log)
	if err != nil {
		l.t.Fatal(err)
	}
	d := &daemon{process: l.w.Process(), journal: journal, ops: ops}
	d.process.Hook = hook
	d.m, err = manager.New(l.set, d.process.Outside(), d.ops, journal, l.log)
	if err != nil {
		l.t.Fatal(err)
	}
	l.register(d)
	d.cancel = func() {}
	l.now, l.all = d, append(l.all, d)
	return d
}

// look makes the present controld do what the daemon does: resume, begin, watch.
func (l *lab) look() {
	d := l.now
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	d.running.Go(func() {
		if err := d.ops.Resume(ctx); err != nil && ctx.Err() == nil {
			l.t.Errorf("resume: %v", err)
		}
	})
	d.running.Go(func() {
		cfg := monitor.Config{Interval: l.set.Interval, Replication: l.set.Replication, SyncTimeout: l.set.SyncTimeout}
		watcher := monitor.New(cfg, d.m, d.ops, l.log)
		if err := watcher.Run(ctx); err != nil {
			l.t.Errorf("monitor: %v", err)
		}
	})
}

// die is kill -9 of the present controld.
func (l *lab) die() {
	l.now.process.Die()
	l.now.closeJournal(l.t)
}

func (d *daemon) closeJournal(t *testing.T) {
	d.closed.Do(func() {
		if err := d.journal.Close(); err != nil {
			t.Errorf("close journal: %v", err)
		}
	})
}

// restart stops the present controld in an orderly way, and starts another.
func (l *lab) restart(hook func(ctx context.Context, call string, do func() error) error) *daemon {
	l.now.stop(l.t)
	return l.boot(hook)
}

func (d *daemon) stop(t *testing.T) {
	d.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := d.ops.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
	d.running.Wait()
	d.m.Close()
	d.closeJournal(t)
}

// close ends everything, the dead too.
func (l *lab) close() {
	if !l.t.Failed() && !l.lawless {
		if faults := l.w.Faults(); len(faults) > 0 {
			l.t.Errorf("in the world:\n%s", strings.Join(faults, "\n"))
		}
	}
	l.w.Close()
	for _, d := range l.all {
		d.cancel()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = d.ops.Stop(ctx)
		d.running.Wait()
		d.m.Close()
		d.closeJournal(l.t)
	}
}

// quiet ends the supervision of the controld that started the cluster.
func (l *lab) quiet() { l.restart(nil) }

// counted ends the controld that prepared the world, and starts one that does nothing but
// the operation; each of its calls goes through hook.
func (l *lab) counted(hook func(context.Context, string, func() error) error) *daemon {
	armed := false
	d := l.restart(func(ctx context.Context, call string, do func() error) error {
		if !armed {
			return do()
		}
		return hook(ctx, call, do)
	})
	d.m.Observe(context.Background()) // so that the rate of writes is known
	time.Sleep(time.Second)
	d.m.Observe(context.Background())
	armed = true
	return d
}

// wrong is what the world and the journal's list of open operations lack.
func (l *lab) wrong() []string {
	wrong := l.w.Wrong()
	for _, rec := range l.now.ops.Open() {
		wrong = append(wrong, "open: "+rec.Kind+" "+string(rec.State))
	}
	if l.remains.Load() {
		wrong = append(wrong, "long work has left something behind")
	}
	return wrong
}

// settle waits until the world is as it must be, and stays so for a moment.
func (l *lab) settle(after string) {
	l.t.Helper()
	l.settleWithin(after, 2*time.Minute)
}

func (l *lab) settleWithin(after string, limit time.Duration) {
	l.t.Helper()
	good := 0
	for deadline := time.Now().Add(limit); good < 3; {
		time.Sleep(200 * time.Millisecond)
		good++
		wrong := l.wrong()
		if len(wrong) > 0 {
			good = 0
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("not settled %v after %s:\n%s\n%s", limit, after, strings.Join(append(wrong, l.w.Faults()...), "\n"), l.story())
		}
	}
}

// story tells the operations of the journal.
func (l *lab) story() string {
	var out strings.Builder
	recs, _, err := l.now.ops.List(operation.Filter{})
	if err != nil {
		return err.Error()
	}
	for i := len(recs) - 1; i >= 0; i-- {
		rec := recs[i]
		out.WriteString(rec.Kind + " " + rec.Mode + " " + string(rec.State))
		if rec.Problem != nil {
			out.WriteString(": " + rec.Problem.Detail)
		}
		out.WriteString("\n")
		for _, s := range rec.Steps {
			if s.Error != "" {
				out.WriteString("    " + s.Name + " " + string(s.State) + ": " + s.Error + "\n")
			}
		}
	}
	return out.String()
}

// await is the end of an operation that was started with these results.
func (l *lab) await(rec operation.Record, err error) operation.Record {
	l.t.Helper()
	var problem *operation.Problem
	if err != nil && !errors.As(err, &problem) {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	rec, err = l.now.ops.Wait(ctx, rec.ID)
	if err != nil {
		l.t.Fatalf("%v\n%s", err, l.story())
	}
	return rec
}

func (l *lab) want(rec operation.Record, state operation.State) {
	l.t.Helper()
	if rec.State != state {
		l.t.Fatalf("the operation is %s, want %s\n%s", rec.State, state, l.story())
	}
}

func (l *lab) leads(name string) {
	l.t.Helper()
	if got := l.w.Leader(); got != name {
		l.t.Errorf("%q leads, want %q\n%s", got, name, l.story())
	}
}

// Who asks: a person, or controld for what it mends by itself.
var (
	test     = operation.Caller{Name: "test"}
	controld = operation.Caller{Name: "controld", Kind: operation.Daemon}
)

// failover asks for one and is its end, as failback below.
func failover(l *lab, r cluster.FailoverRequest) operation.Record {
	l.t.Helper()
	return l.await(l.now.m.Failover(context.Background(), r, test))
}

func failback(l *lab) operation.Record {
	l.t.Helper()
	return l.await(l.now.m.Failback(context.Background(), cluster.FailbackRequest{}, test))
}

// lastOf is the last operation of a kind that succeeded.
func lastOf(l *lab, kind string) operation.Record {
	recs, _, err := l.now.ops.List(operation.Filter{Kind: kind, State: operation.Succeeded, Limit: 1})
	if err != nil || len(recs) != 1 {
		l.t.Fatalf("%d operations of kind %s (%v)", len(recs), kind, err)
	}
	return recs[0]
}

// number is one of a record, which may have come through the journal.
func number(v any) int64 {
	switch n := v.(type) {
	case int64:
		return n
	case int:
		return int64(n)
	case float64:
		return int64(n)
	}
	return -1
}
