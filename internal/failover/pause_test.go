package failover

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/node"
)

const (
	oldHost, newHost = "10.0.0.1", "10.0.0.2"
	pauseLimit       = 30 * time.Second
	pauseDeadline    = 5 * time.Second
)

// pausing runs f with a pause in a world whose entries lead to the old primary.
func pausing(t *testing.T, change func(*cluster.Outside), f func(t *testing.T, w *clustertest.World, p *pause)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.NewWorld(clustertest.Nodes(), "imdb")
		defer w.Close()
		out := w.Process().Outside()
		if err := out.Pooler.Point(t.Context(), cluster.Targets{Primary: oldHost, Standby: newHost}); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(&out)
		}
		set := cluster.Settings{
			Nodes: clustertest.Nodes(), Databases: []string{"imdb"}, PauseLimit: pauseLimit, PauseDeadline: pauseDeadline,
		}
		p := attempt(t, set, out).pauseOf(&state{})
		f(t, w, p)
		p.drop()
		if paused := w.Paused(); len(paused) > 0 {
			t.Errorf("left paused: %v", paused)
		}
	})
}

// another is the pause as another process takes it up: what is journalled of it.
func another(t *testing.T, p *pause) *pause {
	t.Helper()
	encoded, err := json.Marshal(state{Pause: *p.state})
	if err != nil {
		t.Fatal(err)
	}
	var s state
	if err := json.Unmarshal(encoded, &s); err != nil {
		t.Fatal(err)
	}
	return &pause{act: p.act, kind: p.kind, state: &s.Pause}
}

// leads is where an entry leads.
func leads(t *testing.T, p *pause, entry string) string {
	t.Helper()
	s, err := p.act.Outside.Pooler.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for d := range s.Clients() {
		if d.Name == entry {
			return d.Host
		}
	}
	t.Fatalf("no entry %s", entry)
	return ""
}

func TestPauseHoldsAndReleases(t *testing.T) {
	pausing(t, nil, func(t *testing.T, w *clustertest.World, p *pause) {
		if err := p.held(); err == nil {
			t.Error("held before it was asked for")
		}
		if outlasted, err := p.hold(t.Context()); err != nil || outlasted {
			t.Fatal(outlasted, err)
		}
		if got := w.Paused(); !slices.Equal(got, []string{"imdb"}) {
			t.Errorf("holds %v", got)
		}
		time.Sleep(12 * time.Second) // longer than one lease
		if err := p.held(); err != nil {
			t.Errorf("not held after 12 s: %v", err)
		}
		if err := p.repoint(t.Context(), cluster.Targets{Primary: newHost, Standby: newHost}); err != nil {
			t.Error(err)
		}
		if err := p.release(t.Context()); err != nil {
			t.Error(err)
		}
		if got := leads(t, p, "imdb"); got != newHost {
			t.Errorf("the clients were released to %s", got)
		}
		if ms := p.lengthMS(); ms < 12000 || ms > 13000 {
			t.Errorf("held for %v ms", ms)
		}
		if p.held() == nil {
			t.Error("held after the release")
		}
	})
}

func TestPauseUndone(t *testing.T) {
	back := cluster.Targets{Primary: oldHost, Standby: newHost}
	pausing(t, nil, func(t *testing.T, _ *clustertest.World, p *pause) {
		if _, err := p.hold(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.pointBeside(t.Context(), cluster.Targets{Primary: newHost, Standby: newHost}, nil)
		if err := p.undo(t.Context(), back); err != nil {
			t.Error(err)
		}
		if got := leads(t, p, "imdb"); got != oldHost {
			t.Errorf("the clients were released to %s", got)
		}
		if p.lengthMS() < 0 || p.releasedAt.IsZero() {
			t.Error("its end is not noted")
		}
	})
}

// unanswered is a pooler on which no PAUSE is answered.
type unanswered struct{ cluster.Pooler }

func (unanswered) Pause(ctx context.Context, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}

func (p unanswered) PauseNow(ctx context.Context, db string) error { return p.Pause(ctx, db) }

func TestPauseOutlasted(t *testing.T) {
	stubborn := func(out *cluster.Outside) { out.Pooler = unanswered{out.Pooler} }
	pausing(t, stubborn, func(t *testing.T, _ *clustertest.World, p *pause) {
		began := time.Now()
		if outlasted, err := p.hold(t.Context()); !outlasted || err == nil {
			t.Errorf("outlasted %t, %v", outlasted, err)
		}
		if err := p.undo(t.Context(), cluster.Targets{}); err != nil {
			t.Error(err)
		}
		if ms := p.lengthMS(); time.Since(began) != pauseDeadline || ms != float64(pauseDeadline.Milliseconds()) {
			t.Errorf("clients between two transactions were held for %v ms", ms)
		}
		if p.again(t.Context()) == nil || p.lease != nil {
			t.Error("what is not held is claimed")
		}
	})
}

// The PAUSE of an emergency is not awaited: it is answered later, or given up.
func TestPauseSent(t *testing.T) {
	pausing(t, nil, func(t *testing.T, w *clustertest.World, p *pause) {
		if err := p.collect(t.Context()); err == nil {
			t.Error("the answer to nothing was collected")
		}
		if err := p.send(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := p.collect(t.Context()); err != nil || p.held() != nil || len(w.Paused()) != 1 {
			t.Errorf("%v, %v, holds %v", err, p.held(), w.Paused())
		}
		if err := p.release(t.Context()); err != nil {
			t.Error(err)
		}
	})
	stubborn := func(out *cluster.Outside) { out.Pooler = unanswered{out.Pooler} }
	pausing(t, stubborn, func(t *testing.T, _ *clustertest.World, p *pause) {
		if err := p.send(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := p.collect(t.Context()); err != nil {
			t.Errorf("no answer is no error: %v", err)
		}
		if p.held() == nil || p.asked != nil {
			t.Error("what was not answered is held, or waits still")
		}
		if err := p.send(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := p.undo(t.Context(), cluster.Targets{}); err != nil || p.asked != nil {
			t.Errorf("undone: %v, waits still %t", err, p.asked != nil)
		}
	})
}

// What holds the clients again and again counts as one pause, also over two processes,
// unless the first one's is over for certain.
func TestPauseIsSpent(t *testing.T) {
	for _, tt := range []struct {
		away  time.Duration
		spent bool // at once, in the other process
	}{
		{20 * time.Second, false},
		{pauseLimit + time.Second, true},
		{pauseLimit + node.LeaseDuration + time.Second, false},
	} {
		pausing(t, nil, func(t *testing.T, _ *clustertest.World, p *pause) {
			if _, err := p.hold(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.drop() // it dies
			time.Sleep(tt.away)
			next := another(t, p)
			if err := next.again(t.Context()); err != nil {
				t.Fatal(err)
			}
			if next.spent() != tt.spent {
				t.Errorf("away for %s: spent %t", tt.away, next.spent())
			}
			time.Sleep(pauseLimit + time.Millisecond)
			if !next.spent() {
				t.Errorf("away for %s: not spent %s later", tt.away, pauseLimit)
			}
			if err := next.release(t.Context()); err != nil {
				t.Error(err)
			}
			if next.lengthMS() != 0 {
				t.Errorf("a pause that another process began has a length of %v ms", next.lengthMS())
			}
			next.drop()
		})
	}
}

// Another process pauses nobody whose entry leads where it shall already.
func TestPauseRepointedAlready(t *testing.T) {
	to := cluster.Targets{Primary: newHost, Standby: newHost, Probe: newHost}
	pausing(t, nil, func(t *testing.T, w *clustertest.World, p *pause) {
		if _, err := p.hold(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := p.repoint(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		if err := p.release(t.Context()); err != nil {
			t.Fatal(err)
		}
		next := another(t, p)
		if err := next.repoint(t.Context(), to); err != nil || len(w.Paused()) > 0 || next.lease != nil {
			t.Errorf("%v, holds %v", err, w.Paused())
		}
		if err := next.repoint(t.Context(), cluster.Targets{Primary: oldHost, Standby: newHost}); err != nil || len(w.Paused()) != 1 {
			t.Errorf("led elsewhere: %v, holds %v", err, w.Paused())
		}
		if err := next.pointBack(t.Context(), to); err != nil || leads(t, next, "imdb") != newHost {
			t.Errorf("led back: %v, leads to %s", err, leads(t, next, "imdb"))
		}
		if err := next.release(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestHeldEntries(t *testing.T) {
	for _, tt := range []struct {
		readers string // where they are led
		want    string
	}{
		{newHost, "[imdb]"},
		{oldHost, "[imdb imdb_ro]"},
		{"", "[imdb]"},
	} {
		p := cluster.PoolerState{Databases: []cluster.PoolerDatabase{
			{Name: "pgbouncer"}, {Name: cluster.ProbeEntry, Host: oldHost},
			{Name: "imdb", Host: oldHost}, {Name: "imdb_ro", Host: tt.readers},
		}}
		if got := fmt.Sprint(heldEntries([]string{"imdb"}, p)); got != tt.want {
			t.Errorf("readers at %q: %s, want %s", tt.readers, got, tt.want)
		}
	}
	if got := fmt.Sprint(heldEntries([]string{"imdb"}, cluster.PoolerState{})); got != "[imdb]" {
		t.Errorf("of a pooler that does not answer: %s", got)
	}
}
