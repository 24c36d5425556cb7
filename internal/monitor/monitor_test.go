package monitor

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/rights"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world is a cluster whose standby is up or down, and what was asked of it when.
type world struct {
	mu       sync.Mutex
	begins   []time.Time
	beginsOK int // the call of Begin that succeeds, from 1
	beginErr error
	looks    []time.Time
	down     bool          // the standby
	astray   bool          // it looks for the primary elsewhere
	misled   bool          // the pooler's clients
	silent   time.Duration // of the standby, by the wall clocks
	names    string        // synchronous_standby_names
	asked    map[string][]time.Time
	open     []operation.Record
	takes    time.Duration   // a rejoin
	fails    map[string]bool // what is asked for and fails
	refuses  map[string]error
	told     bytes.Buffer // the log, once the monitor has ended
}

func (w *world) log() *slog.Logger { return slog.New(slog.NewTextHandler(&w.told, nil)) }

func newWorld() *world { return &world{beginsOK: 1, asked: map[string][]time.Time{}} }

func (w *world) EngineChanged() {}

func (w *world) Observe(context.Context) cluster.View {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.looks = append(w.looks, now)
	state := func(name string, s *cluster.Server) cluster.NodeState {
		return cluster.NodeState{
			Node: cluster.Node{Name: name}, SeenAt: now, Server: s, Locked: cluster.Yes,
			Container: cluster.Container{Exists: true, Running: true, Connected: true, Address: name},
			Init:      node.Status{State: node.StateRunning},
		}
	}
	leader := &cluster.Server{Timeline: 1, Rights: rights.Version, Settings: map[string]string{"synchronous_standby_names": w.names}}
	standby := &cluster.Server{InRecovery: true, Timeline: 1, UpstreamAddress: "one"}
	if w.astray {
		standby.UpstreamAddress = "elsewhere"
	}
	if w.down {
		standby = nil
	} else {
		leader.Senders = []cluster.Sender{{Application: "two", State: "streaming", SyncState: "sync", Silent: w.silent}}
	}
	v := cluster.View{At: now, Nodes: []cluster.NodeState{state("one", leader), state("two", standby)}}
	t := cluster.WantTargets(v)
	if w.misled {
		t.Primary = "elsewhere"
	}
	v.Pooler = cluster.PoolerState{SeenAt: now, Container: cluster.Container{Running: true}, Databases: []cluster.PoolerDatabase{
		{Name: "imdb", Host: t.Primary}, {Name: "imdb_ro", Host: t.Standby},
	}}
	return v
}

func (w *world) Begin(context.Context) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begins = append(w.begins, time.Now())
	return len(w.begins) >= w.beginsOK, w.beginErr
}

func (w *world) Identity() cluster.Identity { return cluster.Identity{Primary: "one"} }

func (w *world) Wanted() cluster.Wanted {
	return cluster.Wanted{Targets: cluster.WantTargets, ArchiveCommand: func(cluster.Node) string { return "" }}
}

func (w *world) ask(what string) (operation.Record, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[what] = append(w.asked[what], time.Now())
	if err := w.refuses[what]; err != nil {
		return operation.Record{}, err
	}
	return operation.Record{ID: what, State: operation.Succeeded}, nil
}

func (w *world) Rejoin(_ context.Context, r cluster.NodeRequest, _ operation.Caller) (operation.Record, error) {
	if w.takes > 0 {
		w.set(func() { w.open = []operation.Record{{Kind: cluster.KindRejoin, State: operation.Running}} })
		time.AfterFunc(w.takes, func() { w.set(func() { w.open = nil }) })
	}
	return w.ask("rejoin " + r.Node)
}

func (w *world) Align(context.Context, string, operation.Caller) (operation.Record, error) {
	return w.ask("align")
}

func (w *world) Provision(context.Context, string, operation.Caller) (operation.Record, error) {
	return w.ask("provision")
}

func (w *world) Protect(_ context.Context, how, _ string, _ operation.Caller) (operation.Record, error) {
	return w.ask("protect " + how)
}

func (w *world) Holding(x operation.Resource) []operation.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.open), func(r operation.Record) bool { return !operation.Claims.Holds(r, x) })
}

func (w *world) Wait(_ context.Context, id string) (operation.Record, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fails[id] {
		return operation.Record{ID: id, State: operation.Undone}, nil
	}
	return operation.Record{ID: id, State: operation.Succeeded}, nil
}

func (w *world) Subscribe(string) (<-chan operation.Event, func()) {
	return make(chan operation.Event), func() {}
}

// watch runs a monitor over w for the time of d, in synthetic time.
func watch(t *testing.T, w *world, cfg Config, d time.Duration) {
	t.Helper()
	cfg.Interval, cfg.Replication = time.Second, cluster.Async
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := New(cfg, w, w, w.log()).Run(ctx); err != nil {
		t.Fatal(err)
	}
}

// watchSync runs a monitor over w that has begun, or not, in mode sync with a timeout
// of 5 s, and returns when it lifted the wait.
func watchSync(t *testing.T, w *world, begun bool, d time.Duration) []time.Time {
	t.Helper()
	m := New(Config{Interval: time.Second, Replication: cluster.Sync, SyncTimeout: 5 * time.Second}, w, w, w.log())
	m.begun = begun
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := m.Run(ctx); err != nil {
		t.Fatal(err)
	}
	return w.asked["protect lift"]
}

func TestBeginsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.beginsOK = 3
		watch(t, w, Config{}, time.Minute)
		if len(w.begins) != 3 {
			t.Fatalf("begun %d times, want it to stop at the third, which succeeds", len(w.begins))
		}
		for i := 1; i < 3; i++ {
			if gap := w.begins[i].Sub(w.begins[i-1]); gap < time.Second {
				t.Errorf("attempt %d came %s after the one before, sooner than an interval", i+1, gap)
			}
		}
		if len(w.asked) != 0 {
			t.Errorf("asked for %v of a healthy cluster", w.asked)
		}
	})
}

// What fails again and again, or has no effect, is tried more and more seldom.
func TestRejoinsAreSpacedOut(t *testing.T) {
	t.Run("a node is down", func(t *testing.T) { spacedOut(t, func(w *world) { w.down = true }) })
	t.Run("its settings do not change", func(t *testing.T) { spacedOut(t, func(w *world) { w.astray = true }) })
	t.Run("a rejoin takes a while", func(t *testing.T) { spacedOut(t, func(w *world) { w.down, w.takes = true, 3*time.Second }) })
}

func spacedOut(t *testing.T, hurt func(*world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		hurt(w)
		watch(t, w, Config{}, 20*time.Minute)
		tries := w.asked["rejoin two"]
		if len(tries) < 4 || len(tries) > 12 {
			t.Fatalf("%d attempts in 20 minutes", len(tries))
		}
		for i := 2; i < len(tries); i++ {
			before, gap := tries[i-1].Sub(tries[i-2]), tries[i].Sub(tries[i-1])
			if gap < before && before < 5*time.Minute || gap > 5*time.Minute+2*time.Second {
				t.Errorf("attempt %d came after %s, the one before after %s", i+1, gap, before)
			}
		}
		if first := tries[1].Sub(tries[0]); first < 5*time.Second {
			t.Errorf("the second attempt came after %s, want at least 5 s", first)
		}
	})
}

// A node that came back is rejoined at once when it fails anew.
func TestASuccessForgetsTheAttemptsBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.down = true
		time.AfterFunc(3*time.Minute, func() { w.set(func() { w.down = false }) })
		again := time.Now().Add(4 * time.Minute) // before the next attempt would be due
		time.AfterFunc(4*time.Minute, func() { w.set(func() { w.down = true }) })
		watch(t, w, Config{}, 6*time.Minute)
		for _, at := range w.asked["rejoin two"] {
			if !at.Before(again) {
				if late := at.Sub(again); late > 2*time.Second {
					t.Errorf("rejoined %s after it failed anew", late)
				}
				return
			}
		}
		t.Error("not rejoined when it failed anew")
	})
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// A start that fails is told, and tried again; one that a person has to settle is not
// told each second.
func TestAFailedStartIsTold(t *testing.T) {
	for _, err := range []error{errors.New("no engine"), nil} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.beginsOK, w.beginErr = 100, err
			watch(t, w, Config{}, 10*time.Second+time.Millisecond)
			if len(w.begins) < 5 || len(w.begins) > 11 {
				t.Errorf("%d attempts in ten seconds", len(w.begins))
			}
			told, want := strings.Count(w.told.String(), "cluster not started"), len(w.begins)
			if err == nil {
				want = 0
			}
			if told != want {
				t.Errorf("told %d times, want %d, with error %v", told, want, err)
			}
		})
	}
}

// What is refused is told and tried more and more seldom. What somebody else's
// operation excludes is not: that was quicker, and the next look says what is left to
// do. What succeeds and yet changes nothing is tried at each look, and no more often.
func TestHowOftenAnActionIsTried(t *testing.T) {
	for _, tt := range []struct {
		name       string
		err        error
		atLeast    int
		atMost     int
		toldOfEach bool
	}{
		{"refused", errors.New("no"), 6, 20, true},
		{"excluded", &operation.Busy{}, 300, 601, false},
		{"without effect", nil, 300, 601, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.misled, w.refuses = true, map[string]error{"align": tt.err}
				watch(t, w, Config{}, 10*time.Minute)
				tries, told := len(w.asked["align"]), strings.Count(w.told.String(), "action refused")
				if tries < tt.atLeast || tries > tt.atMost {
					t.Errorf("tried %d times in ten minutes, want %d to %d", tries, tt.atLeast, tt.atMost)
				}
				if tt.toldOfEach && told != tries || !tt.toldOfEach && told != 0 {
					t.Errorf("told of %d refusals in %d attempts", told, tries)
				}
			})
		})
	}
}

// What fails again and again is tried again and again, and keeps nothing of less
// weight from being done.
func TestWhatFailsHoldsUpNothingElse(t *testing.T) {
	for _, tt := range []struct {
		fails string
		hurt  func(*world)
	}{
		{"protect lift", func(w *world) { w.names = "*" }}, // in mode async
		{"align", func(w *world) { w.misled = true }},
	} {
		t.Run(tt.fails, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.fails = map[string]bool{tt.fails: true}
				tt.hurt(w)
				died := time.Now().Add(10 * time.Minute)
				time.AfterFunc(10*time.Minute, func() { w.set(func() { w.down = true }) })
				watch(t, w, Config{}, 30*time.Minute)
				rejoins := w.asked["rejoin two"]
				if len(rejoins) == 0 {
					t.Fatal("the standby was not rejoined")
				}
				if late := rejoins[0].Sub(died); late > 2*time.Second {
					t.Errorf("rejoined %s after it died", late)
				}
				if tries := len(w.asked[tt.fails]); tries < 6 || tries > 20 {
					t.Errorf("%s was tried %d times in half an hour", tt.fails, tries)
				}
			})
		})
	}
}

// A frozen standby counts as dead from its last word on, which came some time
// before it is known.
func TestAFrozenStandbyIsLiftedFromItsLastWordOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.names = "FIRST 1 (two)"
		word := time.Now().Add(10*time.Second + 300*time.Millisecond)
		look := time.NewTicker(100 * time.Millisecond)
		defer look.Stop()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-look.C:
					w.set(func() { w.silent = max(0, time.Since(word)) })
				}
			}
		}()
		lifts := watchSync(t, w, true, 20*time.Second)
		if len(lifts) == 0 {
			t.Fatal("not lifted")
		}
		if after := lifts[0].Sub(word); after < 5*time.Second || after > 6*time.Second {
			t.Errorf("lifted %s after its last word, want just after 5 s", after)
		}
	})
}

// The wall clock of a machine steps forward, or the machine was suspended: for
// one observation a healthy standby seems to have said nothing for long.
func TestAClockThatStepsLiftsNothing(t *testing.T) {
	for _, at := range []time.Duration{0, 500 * time.Millisecond, 10*time.Second + 500*time.Millisecond} {
		t.Run("at "+at.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.names, w.silent = "FIRST 1 (two)", 900*time.Millisecond
				if at == 0 {
					w.silent = time.Hour // when controld looks for the first time
				}
				time.AfterFunc(at, func() { w.set(func() { w.silent = time.Hour }) })
				time.AfterFunc(at+time.Second, func() { w.set(func() { w.silent = 100 * time.Millisecond }) })
				if lifts := watchSync(t, w, true, time.Minute); len(lifts) > 0 {
					t.Errorf("lifted %d times", len(lifts))
				}
			})
		})
	}
}

// A dead synchronous standby is lifted while it is being rejoined, not after;
// also where an earlier controld began that, which keeps this one from beginning.
func TestLiftsWhileARejoinRuns(t *testing.T) {
	for _, begun := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.down, w.names = true, "FIRST 1 (two)"
			w.open = []operation.Record{{Kind: cluster.KindRejoin, State: operation.Running}}
			start := time.Now()
			lifts := watchSync(t, w, begun, 10*time.Second)
			if len(lifts) == 0 {
				t.Fatalf("not lifted, begun %v", begun)
			}
			if after := lifts[0].Sub(start); after < 5*time.Second || after > 7*time.Second {
				t.Errorf("lifted after %s, want just after 5 s", after)
			}
			if len(w.asked["rejoin two"]) != 0 || len(w.begins) != 0 {
				t.Errorf("asked for %v while a rejoin runs", w.asked)
			}
		})
	}
}

func TestLeavesThePersonsOperationAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.down, w.names = true, "FIRST 1 (two)"
		w.open = []operation.Record{{Kind: cluster.KindFailover, State: operation.Running}}
		watchSync(t, w, true, time.Minute)
		if len(w.asked) != 0 {
			t.Errorf("asked for %v while a failover runs", w.asked)
		}
	})
}

// What the engine reports is looked at when it comes, not at the next interval.
func TestAnEventWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		events := make(chan struct{}, 1)
		start := time.Now()
		time.AfterFunc(2300*time.Millisecond, func() { events <- struct{}{} })
		watch(t, w, Config{Events: events}, 2900*time.Millisecond)
		for _, at := range w.looks {
			if at.Sub(start) == 2300*time.Millisecond {
				return
			}
		}
		t.Errorf("looked at %v, not when the event came", w.looks)
	})
}
