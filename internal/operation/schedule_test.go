package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A world is what the operations of a schedule act on: clients that are held, and
// things that a step makes and its undo removes. A process that was killed reaches it
// no more.
type scheduleWorld struct {
	mu      sync.Mutex
	process int
	held    map[string]bool // by operation
	made    map[string]bool
}

// act does f as process, unless that is dead.
func (w *scheduleWorld) act(process int, f func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if process != w.process {
		return errors.New("killed")
	}
	f()
	return nil
}

// A player makes the work of one process's operations.
type player struct {
	t       *testing.T
	w       *scheduleWorld
	process int
	rng     *rand.Rand
	mu      sync.Mutex
}

type playState struct {
	Name string `json:"name"`
	Deaf bool   `json:"deaf"` // its steps do not hear that their context has ended
}

// takes is how long a step takes, and whether it fails.
func (p *player) takes(ctx context.Context, s *playState) error {
	p.mu.Lock()
	d, fails := time.Duration(p.rng.IntN(4000))*time.Millisecond, p.rng.IntN(8) == 0
	p.mu.Unlock()
	if s.Deaf {
		time.Sleep(d)
	} else {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if fails {
		return errBoom
	}
	return nil
}

func (p *player) work(kind string, s playState) Runnable {
	w := p.w
	step := func(name string, entry bool, act, undo func()) Step[playState] {
		st := Step[playState]{Name: name, Entry: entry, Do: func(ctx context.Context, s *playState) error {
			if act != nil {
				if err := w.act(p.process, act); err != nil {
					return err
				}
			}
			return p.takes(ctx, s)
		}}
		if undo != nil {
			st.Undo = func(context.Context, *playState) error { return w.act(p.process, undo) }
		}
		return st
	}
	hold, release := func() { w.held[s.Name] = true }, func() { delete(w.held, s.Name) }
	build, remove := func() { w.made[s.Name] = true }, func() { delete(w.made, s.Name) }
	moves := kind == "failover"
	work := Work[playState]{
		Prepare: func(_ context.Context, state *playState) (Prepared, error) { *state = s; return Prepared{}, nil },
		Forward: kind == kindTidy || kind == "align",
		Steps: func(*playState) []Step[playState] {
			if !moves {
				return []Step[playState]{
					step("look", true, nil, nil),
					step("make", true, build, remove),
					step("more", false, nil, nil),
					step("take", true, remove, nil),
				}
			}
			pause := step("pause", true, hold, release)
			leap, resume := step("leap", true, nil, nil), step("resume", false, release, nil)
			pause.HoldsClients, leap.HoldsClients, resume.HoldsClients = true, true, true
			return []Step[playState]{step("look", true, nil, nil), pause, leap, resume, step("after", true, nil, nil)}
		},
	}
	if moves {
		work.NoReturn = "leap"
		work.Past = func(context.Context, *playState) (bool, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.rng.IntN(2) == 0, nil
		}
		work.GiveUp = func(context.Context, *playState) error { return w.act(p.process, release) }
		work.Decide = func(context.Context, *playState) (Decision, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return Decision{Mode: []string{"planned", "emergency"}[p.rng.IntN(2)]}, nil
		}
	}
	return work
}

// TestRandomSchedules: whatever is started, cancelled, stopped and killed in whatever
// order, in the end no claim is held, nothing waits, no client is held, and nothing
// that was made is left behind.
func TestRandomSchedules(t *testing.T) {
	schedules := uint64(200)
	if testing.Short() {
		schedules = 20
	}
	for seed := range schedules {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			onSorts(t, func(b *bench) { playSchedule(b, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

var scheduleKinds = []string{
	"failover", kindCopy, kindCopy, kindLoad, kindTidy, kindOnce, kindAgain, kindHeavy, "rejoin", "align", "protect",
}

func playSchedule(b *bench, rng *rand.Rand) {
	w := &scheduleWorld{held: map[string]bool{}, made: map[string]bool{}}
	p := &player{t: b.t, w: w, rng: rand.New(rand.NewPCG(rng.Uint64(), 2))}
	b.build = func(r Record, params json.RawMessage) (Runnable, error) {
		var s playState
		kind := r.Kind
		if kind == KindCleanup {
			kind = r.Mode
		}
		return p.work(kind, s.with(params)), json.Unmarshal(params, &s)
	}
	var resumed sync.WaitGroup
	restart := func(kill bool) {
		if kill { // the journal first: what is not done any more is not noted either
			_ = b.j.Close()
		} else {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(3000))*time.Millisecond)
			if err := b.m.Stop(ctx); err != nil {
				b.t.Error(err)
			}
			cancel()
		}
		w.mu.Lock()
		w.process++
		w.mu.Unlock()
		p = &player{t: b.t, w: w, process: w.process, rng: rand.New(rand.NewPCG(rng.Uint64(), 3))}
		b.crash(func() {})
		m := b.m
		resumed.Go(func() { _ = m.Resume(context.Background()) })
	}
	names := 0
	for range 40 {
		switch rng.IntN(10) {
		case 0:
			restart(rng.IntN(2) == 0)
		case 1, 2:
			open := slices.DeleteFunc(b.m.Open(), func(r Record) bool { return r.Kind == KindCleanup }) // that would leave something
			if len(open) > 0 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				_, _ = b.m.Cancel(ctx, open[rng.IntN(len(open))].ID, Caller{Name: "t"})
				cancel()
			}
		default:
			kind := scheduleKinds[rng.IntN(len(scheduleKinds))]
			s := playState{Name: fmt.Sprint(kind, " ", names), Deaf: rng.IntN(3) == 0}
			names++
			params, err := json.Marshal(s)
			if err != nil {
				b.t.Fatal(err)
			}
			by := Caller{Name: "t", Kind: []CallerKind{Person, Daemon, Scheduler}[rng.IntN(3)]}
			spec := Spec{Kind: kind, Caller: by, Params: params, CancelRunning: rng.IntN(3) == 0}
			work, m := p.work(kind, s), b.m
			go func() { _, _ = m.Start(context.Background(), spec, work) }()
		}
		time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
	}
	time.Sleep(24 * time.Hour)
	synctest.Wait()
	resumed.Wait()
	for _, r := range b.m.Open() {
		b.t.Errorf("open: %s %s %s, waits for %q, problem %+v", r.Kind, r.ID, r.State, r.WaitsFor, r.Problem)
	}
	for _, x := range []Resource{Cluster, Primary, Commit, dataset, repository} {
		if held := b.m.Holding(x); len(held) > 0 {
			b.t.Errorf("%s is held by %d operations", x, len(held))
		}
	}
	if len(w.held) > 0 || len(w.made) > 0 {
		b.t.Errorf("clients held by %v, left behind %v", w.held, w.made)
		recs, _, _ := b.m.List(Filter{Limit: 1000})
		for _, r := range recs {
			b.t.Logf("%s %s %s %s %s follows %s: %v %+v", r.ID, r.Kind, r.Mode, r.State, r.StartedAt, r.Follows, r.Problem, r.Steps)
		}
	}
	if left, err := b.j.open(); err != nil || len(left) > 0 {
		b.t.Errorf("the journal has %d open: %v", len(left), err)
	}
	if left, err := b.j.withCheckpoints(); err != nil || len(left) > 0 {
		b.t.Errorf("checkpoints are left: %v, %v", left, err)
	}
}

// with is the state that the parameters hold.
func (s playState) with(params json.RawMessage) playState {
	_ = json.Unmarshal(params, &s)
	return s
}
