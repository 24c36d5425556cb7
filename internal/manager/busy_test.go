package manager_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/health"
	"controld/internal/operation"
)

// A busyServer is what a node's server is to controld while it gets little of a
// processor: everything takes its time, and happens. Zero: no time at all.
type busyServer struct {
	node                    string
	login, question, answer time.Duration // answer: to a new connection, before the login
	commit                  time.Duration
}

func (b busyServer) hook(ctx context.Context, call string, do func() error) error {
	wait := time.Duration(0)
	if strings.HasSuffix(call, " "+b.node) {
		switch {
		case strings.HasPrefix(call, "Servers.Connect"):
			wait = b.login
		case strings.HasPrefix(call, "Servers.Knock"):
			wait = b.answer
		case strings.HasPrefix(call, "Session.WriteProbe"):
			wait = max(b.commit, b.question)
		case strings.HasPrefix(call, "Session."):
			wait = b.question
		}
	}
	select {
	case <-time.After(wait):
		return do()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// never is longer than anybody waits.
const never = time.Hour

// A late look is not a dead server: while it answers at all, clients are led to
// it, and nothing is done about it.
func TestABusyServerIsNotDown(t *testing.T) {
	for _, tt := range []struct {
		name     string
		busy     busyServer
		degraded string // whether it may be said: no, maybe, yes: it must
	}{
		{"questions take a little", busyServer{node: first, login: time.Second, question: 300 * time.Millisecond}, "no"},
		{"questions take longer than a look",
			busyServer{node: first, login: 8 * time.Second, question: 2 * time.Second, answer: time.Second}, "maybe"},
		{"questions take long",
			busyServer{node: first, login: 14 * time.Second, question: 4500 * time.Millisecond, answer: time.Second}, "yes"},
		{"nobody is let in", busyServer{node: first, login: never, question: 100 * time.Millisecond, answer: never}, "yes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inLab(t, nil, func(l *lab) {
				l.counted(tt.busy.hook)
				l.look()
				time.Sleep(time.Second)
				tried := l.tries(cluster.KindRejoin) + l.tries(cluster.KindAlign)
				degraded := false
				for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
					h := l.now.m.Health()
					degraded = degraded || h.Status == health.Degraded
					if h.Status == health.Down || h.Reason != "" && h.Reason != "not-answering" {
						t.Fatalf("health: %+v", h)
					}
					if ok, why := cluster.Writable(l.now.m.View(), first, time.Now(), l.set.Interval); !ok {
						t.Fatalf("load balancers are turned away: %s", why)
					}
				}
				if tt.degraded != "maybe" && degraded != (tt.degraded == "yes") {
					t.Errorf("degraded: %v, want %v", degraded, tt.degraded)
				}
				if now := l.tries(cluster.KindRejoin) + l.tries(cluster.KindAlign); now != tried {
					t.Errorf("%d operations were begun", now-tried)
				}
			})
		})
	}
}

// A frozen server proves nothing. It is told at once that it does not answer, and
// is lost after a time; what the engine says is lost at once.
func TestWhatDoesNotAnswerIsDownInTime(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		time.Sleep(2 * time.Second)
		l.w.Do(first, (*clustertest.Host).Freeze)
		frozen := time.Now()
		first := map[string]time.Duration{}
		for time.Since(frozen) < 30*time.Second {
			h := l.now.m.Health()
			word := string(h.Status) + " " + h.Reason
			if _, seen := first[word]; !seen {
				first[word] = time.Since(frozen)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if at, said := first["degraded not-answering"]; !said || at > 5*time.Second {
			t.Errorf("said %v", first)
		}
		if at, said := first["down no-primary"]; !said || at < 14*time.Second || at > 18*time.Second {
			t.Errorf("said %v", first)
		}
	})
	inLab(t, nil, func(l *lab) {
		time.Sleep(2 * time.Second)
		l.w.Do(first, (*clustertest.Host).Pause)
		time.Sleep(2500 * time.Millisecond)
		if h := l.now.m.Health(); h.Status != health.Down {
			t.Errorf("a container that the engine froze: %+v", h)
		}
	})
}

// auto never kills what may only be slow, and never waits for what is dead.
func TestAutoTellsSlowFromDead(t *testing.T) {
	refusedFor := func(d time.Duration) func(context.Context, string, func() error) error {
		var began sync.Once
		var end time.Time
		return func(_ context.Context, call string, do func() error) error {
			began.Do(func() { end = time.Now().Add(d) })
			if strings.HasPrefix(call, "Servers.") && strings.HasSuffix(call, first) && time.Now().Before(end) {
				return fmt.Errorf("connect: %w", cluster.ErrRefused)
			}
			return do()
		}
	}
	// busy is what the first node's calls go through: it needs so long.
	busy := func(b busyServer) func(context.Context, string, func() error) error {
		b.node = first
		return b.hook
	}
	quick := busy(busyServer{})
	const planned, emergency = cluster.ModePlanned, cluster.ModeEmergency
	for _, tt := range []struct {
		name  string
		hook  func(context.Context, string, func() error) error
		hurt  func(*clustertest.Host)
		mode  string // of the operation; empty: refused
		limit time.Duration
	}{
		{"quick", quick, nil, planned, time.Second},
		{"slow", busy(busyServer{login: time.Second, question: 200 * time.Millisecond}), nil, planned, 20 * time.Second},
		{"slower than one question may take",
			busy(busyServer{login: 2500 * time.Millisecond, question: 100 * time.Millisecond}), nil, planned, 30 * time.Second},
		{"throttled",
			busy(busyServer{login: 20 * time.Second, question: 2 * time.Second, answer: time.Second}), nil, "", 10 * time.Second},
		{"throttled so that it answers nothing",
			busy(busyServer{login: never, question: never, answer: never}), (*clustertest.Host).Throttle, "", 10 * time.Second},
		{"refused for a moment", refusedFor(3 * time.Second), nil, planned, 10 * time.Second},
		{"only its postmaster is frozen", busy(busyServer{login: never, answer: never}), nil, emergency, 10 * time.Second},
		{"frozen", quick, (*clustertest.Host).Freeze, emergency, 10 * time.Second},
		{"paused", quick, (*clustertest.Host).Pause, emergency, 4 * time.Second},
		{"dead", quick, (*clustertest.Host).Crash, emergency, 2 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inLab(t, nil, func(l *lab) {
				d := l.counted(tt.hook)
				if tt.hurt != nil {
					l.w.Do(first, tt.hurt)
					time.Sleep(200 * time.Millisecond)
				}
				began := time.Now()
				rec, err := d.m.Failover(context.Background(), cluster.FailoverRequest{}, test)
				if tt.mode == "" {
					var p *operation.Problem
					refused := errors.As(err, &p) && p.Type == "/problems/primary-slow"
					if !refused || !strings.Contains(p.Detail, "mode planned") || !strings.Contains(p.Detail, "mode emergency") {
						t.Errorf("%s %v, want a refusal", rec.State, err)
					}
					l.leads(first)
				} else {
					rec = l.await(rec, err)
					l.want(rec, operation.Succeeded)
					if rec.Mode != tt.mode {
						t.Errorf("mode %s, want %s", rec.Mode, tt.mode)
					}
				}
				if took := time.Since(began); took > tt.limit {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// A planned failover that would hold its clients for long is refused before
// anything is touched, with the numbers.
func TestASlowPlannedFailoverIsRefused(t *testing.T) {
	for name, busy := range map[string]busyServer{
		"the primary's login":   {node: first, login: 4 * time.Second},
		"the primary's commit":  {node: first, commit: 2500 * time.Millisecond},
		"the primary's answers": {node: first, question: 3 * time.Second},
		"the candidate's login": {node: second, login: 4 * time.Second},
		"no login at all":       {node: first, login: never, question: 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, nil, func(l *lab) {
				d := l.counted(busy.hook)
				_, err := d.m.Failover(context.Background(), cluster.FailoverRequest{Mode: cluster.ModePlanned}, test)
				var p *operation.Problem
				if !errors.As(err, &p) || p.Type != "/problems/primary-slow" || busy.question == 0 && p.Numbers["login_limit_ms"] == nil {
					t.Errorf("%v", err)
				}
				if len(l.w.Failed()) > 0 {
					t.Error("clients failed")
				}
				l.leads(first)
			})
		})
	}
}

// Two ask at once, and one of them needs long to see that the primary hangs: what the
// other has moved meanwhile is not moved back.
func TestASecondRequestMovesNothingBack(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		d := l.counted(busyServer{node: first, login: never, question: never, answer: never}.hook)
		slow := make(chan error, 1)
		go func() {
			_, err := d.m.Failover(context.Background(), cluster.FailoverRequest{}, test)
			slow <- err
		}()
		time.Sleep(500 * time.Millisecond)
		l.want(failover(l, cluster.FailoverRequest{Mode: cluster.ModeEmergency}), operation.Succeeded)
		if err := <-slow; err == nil {
			t.Error("the second has moved something too")
		}
		l.leads(second)
	})
}
