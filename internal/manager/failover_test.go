package manager_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/health"
	"controld/internal/node"
	"controld/internal/operation"
)

func TestTheFakeKeepsThePoolersContract(t *testing.T) {
	w := startedWorld(t)
	clustertest.RunPoolerContract(t, clustertest.PoolerEnv{
		Pooler: w.Process().Outside().Pooler, Database: "imdb", Primary: w.Address(first), Standby: w.Address(second),
		Hold: func(t *testing.T, db string) func() error {
			commit, err := w.Hold(t.Context(), db)
			if err != nil {
				t.Fatal(err)
			}
			return commit
		},
	})
}

func TestTheFakeKeepsTheSessionsContract(t *testing.T) {
	w := startedWorld(t)
	nodes := clustertest.Nodes()
	clustertest.RunSessionContract(t, clustertest.SessionEnv{Servers: w.Process().Outside().Servers, Primary: nodes[0], Standby: nodes[1]})
}

func TestTheFakeKeepsTheInitsContract(t *testing.T) {
	nodes := clustertest.Nodes()
	w := clustertest.NewWorld(nodes)
	t.Cleanup(w.Close)
	outside := w.Process().Outside()
	volumes := outside.Volumes
	var env [2]clustertest.InitNode
	for i, n := range nodes {
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		other := nodes[1-i]
		must(volumes.WriteSettings(n, cluster.RoleSettings{Upstream: &other}))
		env[i] = clustertest.InitNode{
			Give: func(o node.Order) { must(volumes.WriteOrder(n, o)) },
			Status: func() node.Status {
				s, err := volumes.Status(n)
				must(err)
				return s
			},
			Locked: func() bool {
				held, err := volumes.Locked(n)
				must(err)
				return held
			},
			Answers: func() bool {
				s, err := outside.Servers.Connect(t.Context(), n)
				if err == nil {
					s.Close()
				}
				return err == nil
			},
			Kill:     func() { w.Do(n.Name, (*clustertest.Host).Crash) },
			Start:    func() { w.Do(n.Name, (*clustertest.Host).Start) },
			Upstream: node.Upstream{Host: n.Container, Port: n.Port},
			DataDir:  n.DataDir(),
		}
	}
	clustertest.RunInitContract(t, clustertest.InitEnv{First: env[0], Second: env[1]})
}

// startedWorld is a world in real time whose cluster was started by a controld
// that is gone.
func startedWorld(t *testing.T) *clustertest.World {
	l := newLab(t, t.TempDir(), nil)
	l.lawless = true // the contract of sessions promotes a standby beside its primary
	l.boot(nil)
	l.look()
	l.settle("the start")
	l.now.stop(t)
	t.Cleanup(l.close)
	return l.w
}

func TestPlannedFailoverAndBack(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		for i := range 4 {
			to := second
			if i%2 == 0 {
				l.want(failover(l, cluster.FailoverRequest{}), operation.Succeeded)
			} else {
				to = first
				l.want(failback(l), operation.Succeeded)
			}
			l.leads(to)
			l.settle("a failover")
		}
		if failed := l.w.Failed(); len(failed) > 0 {
			l.t.Errorf("clients saw %d transactions fail: %v", len(failed), failed[0])
		}
		if rec := failback(l); rec.State != operation.Succeeded || rec.Result["already"] == nil || len(rec.Steps) != 0 {
			l.t.Errorf("failback when there: %+v", rec)
		}
		if l.w.LongestPause() > time.Second {
			l.t.Errorf("clients were held for %v", l.w.LongestPause())
		}
	})
}

// Readers that are led to the primary, because their standby is only just back,
// are held with the others: the host of their entry changes, too.
func TestReadersOnThePrimaryAreHeldToo(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.quiet()
		o := l.w.Process().Outside()
		ctx := context.Background()
		primary := l.w.Address(first)
		paused := o.Pooler.Pause(ctx, "imdb_ro")
		pointed := o.Pooler.Point(ctx, cluster.Targets{Primary: primary, Standby: primary})
		resumed := o.Pooler.Resume(ctx, "imdb_ro")
		if err := errors.Join(paused, pointed, resumed); err != nil {
			l.t.Fatal(err)
		}
		var calls []string
		var mu sync.Mutex
		l.counted(func(_ context.Context, call string, do func() error) error {
			mu.Lock()
			calls = append(calls, call)
			mu.Unlock()
			return do()
		})
		l.want(failover(l, cluster.FailoverRequest{Mode: cluster.ModePlanned}), operation.Succeeded)
		for _, want := range []string{"Pooler.Pause imdb_ro", "Pooler.Resume imdb_ro"} {
			if !slices.Contains(calls, want) {
				l.t.Errorf("no %s", want)
			}
		}
		l.restart(nil)
		l.look()
		l.settle("the failover")
	})
}

// A caller cannot know that controld mends something just now: it waits for
// that, and is refused only where that takes long, or where a person asked for it.
func TestUpkeepIsAwaited(t *testing.T) {
	for _, tt := range []struct {
		name  string
		by    operation.Caller
		takes time.Duration
		busy  bool
	}{
		{"a moment", controld, 3 * time.Second, false},
		{"long", controld, 8 * time.Second, true},
		{"a moment, asked for by a person", test, 3 * time.Second, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inLab(t, nil, func(l *lab) {
				l.quiet()
				l.w.Do(second, (*clustertest.Host).Crash)
				d := l.counted(func(_ context.Context, call string, do func() error) error {
					if strings.HasPrefix(call, "Session.CreateSlot") {
						time.Sleep(tt.takes)
					}
					return do()
				})
				mends, err := d.m.Rejoin(context.Background(), cluster.NodeRequest{Node: second}, tt.by)
				if err != nil {
					l.t.Fatal(err)
				}
				rec, err := d.m.Failover(context.Background(), cluster.FailoverRequest{Mode: cluster.ModePlanned}, test)
				if busy := new(*operation.Busy); errors.As(err, busy) != tt.busy || tt.busy && (*busy).Running.ID != mends.ID {
					l.t.Fatalf("POST /failover beside a rejoin: %v", err)
				}
				l.want(l.await(mends, nil), operation.Succeeded)
				if !tt.busy {
					l.want(l.await(rec, nil), operation.Succeeded)
				}
			})
		})
	}
}

func TestEmergency(t *testing.T) {
	for _, tt := range []struct {
		name string
		hurt func(*clustertest.Host)
		lost bool
	}{
		{"crashed", (*clustertest.Host).Crash, false},
		{"frozen", (*clustertest.Host).Freeze, false},
		{"paused", (*clustertest.Host).Pause, false},
		{"its server ended by itself", (*clustertest.Host).EndServer, false},
		{"crashed, its volume gone", func(h *clustertest.Host) { h.Crash(); h.Unreadable(true) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			inLab(t, nil, func(l *lab) {
				l.w.Do(first, tt.hurt)
				time.Sleep(time.Second)
				rec := failover(l, cluster.FailoverRequest{})
				l.want(rec, operation.Succeeded)
				l.leads(second)
				if rec.Mode != cluster.ModeEmergency || rec.Result["estimate"] != tt.lost {
					l.t.Errorf("mode %s, result %v", rec.Mode, rec.Result)
				}
				if tt.lost {
					if told, truth := number(rec.Result["lost_bytes"]), l.w.LostBytes(); told < truth {
						l.t.Errorf("told a loss of %d bytes, it is %d", told, truth)
					}
					return
				}
				l.settle("the failover")
				rejoins, _, err := l.now.ops.List(operation.Filter{Kind: cluster.KindRejoin})
				if err != nil || len(rejoins) == 0 || rejoins[0].Follows != rec.ID {
					l.t.Fatalf("the old primary's return is no operation that follows %s: %+v (%v)", rec.ID, rejoins, err)
				}
				if rec, err = l.now.ops.Get(rec.ID); err != nil || rec.FollowedBy != rejoins[0].ID {
					l.t.Errorf("it is followed by %q, want %s (%v)", rec.FollowedBy, rejoins[0].ID, err)
				}
			})
		})
	}
}

func TestAnEmergencySalvagesWhatAStandbyHadNotReceived(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.w.Do(second, func(h *clustertest.Host) { h.Deaf(true) })
		time.Sleep(time.Second)
		l.w.Do(first, (*clustertest.Host).Crash)
		l.w.Do(second, func(h *clustertest.Host) { h.Deaf(false) })
		rec := failover(l, cluster.FailoverRequest{})
		l.want(rec, operation.Succeeded)
		if number(rec.Result["salvaged_bytes"]) == 0 {
			l.t.Errorf("nothing salvaged: %v", rec.Result)
		}
		l.settle("the failover")
	})
}

func TestALossOverTheBoundIsRefused(t *testing.T) {
	inLab(t, func(s *cluster.Settings) { s.MaxLossBytes = 0 }, func(l *lab) {
		l.w.Do(second, func(h *clustertest.Host) { h.Deaf(true) })
		time.Sleep(3 * time.Second)
		l.w.Do(first, func(h *clustertest.Host) { h.Crash(); h.Unreadable(true) })
		l.w.Do(second, func(h *clustertest.Host) { h.Deaf(false) })
		time.Sleep(2 * time.Second)
		rec := failover(l, cluster.FailoverRequest{})
		l.want(rec, operation.Refused)
		bound := number(rec.Problem.Numbers["lost_bytes"])
		l.want(failover(l, cluster.FailoverRequest{MaxLossBytes: &bound}), operation.Succeeded)
		if truth := l.w.LostBytes(); bound < truth {
			l.t.Errorf("told at most %d lost bytes, they are %d", bound, truth)
		}
	})
}

// A candidate that is down has no address either: the refusal says why it is down.
func TestACandidateThatIsDownIsRefusedForThat(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.w.Do(first, (*clustertest.Host).Crash)
		l.w.Do(second, (*clustertest.Host).Crash)
		time.Sleep(time.Second)
		rec := failover(l, cluster.FailoverRequest{Target: second, Mode: cluster.ModeEmergency})
		l.want(rec, operation.Refused)
		if rec.Problem.Type != "/problems/no-candidate" {
			l.t.Errorf("%+v", rec.Problem)
		}
	})
}

// The volume can be read when the request is judged, and no more once the
// primary is dead: that is no refusal, which would say that nothing was touched.
func TestALossThatShowsAfterTheKillIsNoRefusal(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.quiet()
		l.w.Do(first, (*clustertest.Host).Freeze)
		l.counted(func(_ context.Context, call string, do func() error) error {
			if strings.HasPrefix(call, "Engine.Kill") {
				l.w.Do(first, func(h *clustertest.Host) { h.Unreadable(true) })
			}
			return do()
		})
		rec := failover(l, cluster.FailoverRequest{MaxLossBytes: new(int64)})
		l.want(rec, operation.Incomplete) // it was killed: nobody leads
		if rec.Problem.Type != "/problems/incomplete" || !strings.Contains(rec.Problem.Detail, "max_loss_bytes") {
			l.t.Errorf("%+v", rec.Problem)
		}
		l.want(failover(l, cluster.FailoverRequest{MaxLossBytes: new(int64(cluster.AcceptAnyLoss))}), operation.Succeeded)
		l.leads(second)
	})
}

// Where a person has to choose who leads, the health says that before all else.
func TestWhatKeepsTheClusterFromStartingIsSaidFirst(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.quiet()
		l.w.Do(second, (*clustertest.Host).Crash)
		l.w.Do(first, func(h *clustertest.Host) { h.Crash(); h.Wipe() })
		l.restart(nil)
		l.look()
		time.Sleep(10 * time.Second)
		if h := l.now.m.Health(); h.Status != health.Down || h.Reason != "no-start" || !strings.Contains(h.Detail, "choose who leads") {
			l.t.Errorf("health: %+v", h)
		}
	})
}

// A reader on the candidate can hold up its replay for 30 s, and a promotion
// waits for the replay: to kill the candidate for that would leave no server.
func TestAPromotionEndsReadersThatHoldItUp(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.w.Do(first, (*clustertest.Host).Crash)
		l.w.Do(second, (*clustertest.Host).Conflict)
		time.Sleep(time.Second)
		l.want(failover(l, cluster.FailoverRequest{}), operation.Succeeded)
		l.leads(second)
		l.settle("the failover")
	})
}

// PgBouncer that is started again while an emergency failover waits for its
// PAUSE, or that hangs, serves nobody: the failover goes on.
func TestAnEmergencyDoesNotWaitForThePooler(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
	}{{"it was started again", errBrokenWire}, {"it hangs", nil}} {
		t.Run(tt.name, func(t *testing.T) {
			inLab(t, nil, func(l *lab) {
				l.quiet()
				l.w.Do(first, (*clustertest.Host).Freeze)
				var asked atomic.Int32
				l.counted(func(ctx context.Context, call string, do func() error) error {
					if !strings.HasPrefix(call, "Pooler.PauseNow") || asked.Add(1) > 1 {
						return do()
					}
					if tt.err == nil {
						<-ctx.Done()
						return ctx.Err()
					}
					return tt.err
				})
				began := time.Now()
				l.want(failover(l, cluster.FailoverRequest{}), operation.Succeeded)
				l.leads(second)
				if took := time.Since(began); took > 10*time.Second {
					l.t.Errorf("it took %s", took)
				}
				l.restart(nil)
				l.look()
				l.settle("the failover")
			})
		})
	}
}

// A new primary that takes no write of controld's does not hold the clients for
// longer than one pause may last.
func TestAProbeThatFailsHoldsNobodyForEver(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.quiet()
		l.w.Do(first, (*clustertest.Host).Crash)
		var broken atomic.Bool
		broken.Store(true)
		d := l.counted(func(_ context.Context, call string, do func() error) error {
			if strings.HasPrefix(call, "Pooler.Probe") && broken.Load() {
				return errBrokenWire
			}
			return do()
		})
		rec, err := d.m.Failover(context.Background(), cluster.FailoverRequest{}, test)
		if err != nil {
			l.t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if longest := l.w.LongestPause(); longest > l.set.PauseLimit+15*time.Second {
			l.t.Errorf("clients were held for %s", longest)
		}
		if paused := l.w.Paused(); len(paused) > 0 {
			l.t.Errorf("still paused: %v", paused)
		}
		broken.Store(false)
		l.want(l.await(rec, nil), operation.Incomplete)
		time.Sleep(2 * time.Minute)
		if rec, err = d.ops.Get(rec.ID); err != nil || rec.State != operation.Succeeded {
			l.t.Errorf("in the end %s (%v)", rec.State, err)
		}
	})
}

// What a person gives up past its point of no return leaves a primary that
// controld knows and looks after.
func TestWhatIsGivenUpLeavesAKnownPrimary(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.quiet()
		var promoted, mended atomic.Bool
		d := l.counted(func(_ context.Context, call string, do func() error) error {
			if strings.HasPrefix(call, "Session.Promote") {
				promoted.Store(true)
			}
			if strings.HasPrefix(call, "Pooler.") && promoted.Load() && !mended.Load() {
				return errBrokenWire
			}
			return do()
		})
		l.want(failover(l, cluster.FailoverRequest{Mode: cluster.ModePlanned}), operation.Incomplete)
		rec, err := d.ops.Cancel(context.Background(), d.ops.Open()[0].ID, test)
		if err != nil || rec.State != operation.Incomplete || rec.Open() {
			l.t.Fatalf("cancelled: %+v (%v)", rec, err)
		}
		mended.Store(true)
		l.look()
		l.settle("what was given up")
		l.leads(second)
	})
}

// Data of another cluster on a node's volume is overwritten only when a person asks.
func TestAnotherClustersDataIsLeft(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.w.Do(second, func(h *clustertest.Host) { h.Crash(); h.Foreign() })
		time.Sleep(time.Minute)
		if s, _ := l.now.m.View().Node(second); s.Control == nil || s.Control.SystemID == l.now.m.Identity().SystemID {
			l.t.Fatal("it was overwritten")
		}
		l.want(l.await(l.now.m.Rejoin(context.Background(), cluster.NodeRequest{Node: second}, test)), operation.Succeeded)
		l.settle("the rejoin")
	})
}

// A standby whose server ends at each start, as for a setting that PostgreSQL
// does not take, keeps its data: a copy would end alike.
func TestAStandbyThatDoesNotComeUpKeepsItsData(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.w.Do(second, func(h *clustertest.Host) { h.Crash(); h.Fail(node.ActionNone, true) })
		time.Sleep(15 * time.Minute)
		recs, _, err := l.now.ops.List(operation.Filter{Kind: cluster.KindRejoin})
		if err != nil || len(recs) < 3 {
			l.t.Fatalf("%d rejoins (%v)", len(recs), err)
		}
		for _, rec := range recs[:len(recs)-1] { // the oldest is the first start's
			if rec.State == operation.Succeeded || !strings.Contains(rec.Problem.Detail, "does not come up") {
				l.t.Errorf("%s: %+v", rec.State, rec.Problem)
			}
		}
		l.w.Do(second, func(h *clustertest.Host) {
			if o := h.Order(); o.Action != node.ActionNone {
				l.t.Errorf("its order is %s", o.Action)
			}
			h.Fail(node.ActionNone, false)
		})
		l.settle("what kept it down was mended")
	})
}

// A standby that was killed and is rewound by request wrote on the primary's
// timeline once, and the next failover lost what the primary had written there.
func TestARewindOfAFollowerLosesNothing(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.w.Do(second, (*clustertest.Host).Crash)
		rec := l.await(l.now.m.Rejoin(context.Background(), cluster.NodeRequest{Node: second, Method: cluster.MethodRewind}, test))
		l.want(rec, operation.Succeeded)
		if rec.Result["method"] != "follow" {
			l.t.Errorf("method %v", rec.Result["method"])
		}
		time.Sleep(5 * time.Second)
		l.want(failover(l, cluster.FailoverRequest{}), operation.Succeeded)
		l.leads(second)
		l.settle("the failover")
	})
}

// A standby with WAL of its own never leads, planned or not, says so, and is
// copied anew where it can be.
func TestADivergedStandbyNeverLeads(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.w.Do(second, func(h *clustertest.Host) {
			h.Fail(node.ActionBaseBackup, true)
			h.Crash()
			h.Diverge()
		})
		time.Sleep(time.Minute)
		if h := l.now.m.Health(); h.Reason != "diverged" || h.Status != health.Degraded {
			l.t.Errorf("health %+v", h)
		}
		if lag, known := l.now.m.View().LagBytes(second); known {
			l.t.Errorf("a lag of %d bytes", lag)
		}
		for _, mode := range []string{cluster.ModePlanned, cluster.ModeEmergency, ""} {
			rec := failover(l, cluster.FailoverRequest{Mode: mode})
			l.want(rec, operation.Refused)
			if !strings.Contains(rec.Problem.Detail, "diverged") {
				l.t.Errorf("mode %q: %s", mode, rec.Problem.Detail)
			}
		}
		l.w.Do(second, func(h *clustertest.Host) { h.Fail(node.ActionBaseBackup, false) })
		l.settleWithin("what kept it from being copied was mended", 10*time.Minute)
		if rec := lastOf(l, cluster.KindRejoin); rec.Result["method"] != "base backup" {
			l.t.Errorf("rejoined by %v", rec.Result["method"])
		}
	})
}

// A running standby whose WAL is not the primary's, of which its init knows
// nothing, is refused by the comparison.
func TestAFailoverLooksAtTheWALOnceMore(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.w.Do(second, func(h *clustertest.Host) { h.Deaf(true) })
		time.Sleep(time.Second)
		l.w.Do(second, (*clustertest.Host).Diverge)
		l.w.Do(first, (*clustertest.Host).Crash)
		rec := failover(l, cluster.FailoverRequest{})
		l.want(rec, operation.Refused)
		if rec.Problem.Type != "/problems/diverged" || !strings.Contains(rec.Problem.Detail, "controld start "+first) {
			l.t.Errorf("%+v", rec.Problem)
		}
		l.want(l.await(l.now.m.StartNode(context.Background(), cluster.NodeRequest{Node: first}, test)), operation.Succeeded)
		l.w.Do(second, func(h *clustertest.Host) { h.Deaf(false) })
		l.settleWithin("the start", 10*time.Minute)
	})
}

// A standby that says that it has more than the primary has written is told, no
// candidate, and copied anew, though it streams.
func TestAStandbyAheadOfThePrimary(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.quiet()
		l.w.Do(second, func(h *clustertest.Host) {
			h.Deaf(true)
			for range 100_000 { // the clients write on
				h.Diverge()
			}
		})
		v := l.now.m.Observe(context.Background())
		s, _ := v.Node(second)
		if !strings.Contains(s.Diverged(), "more than the primary has written") {
			l.t.Fatalf("not found: %q, received %s", s.Diverged(), s.Server.Received)
		}
		if lag, known := v.LagBytes(second); known {
			l.t.Errorf("a lag of %d bytes", lag)
		}
		if h := l.now.m.Health(); h.Reason != "diverged" {
			l.t.Errorf("health %s: %s", h.Reason, h.Detail)
		}
		l.want(failover(l, cluster.FailoverRequest{}), operation.Refused)
		l.w.Do(second, func(h *clustertest.Host) { h.Deaf(false) })
		l.look()
		l.settleWithin("it was found", 10*time.Minute)
	})
}

// Where the old primary of a planned failover does not start again, and the
// candidate lacks what it wrote last, the candidate gets that and leads.
func TestNoWayBackLosesNothing(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.counted(func(_ context.Context, call string, do func() error) error {
			if strings.HasPrefix(call, "Volumes.WriteOrder none "+first) {
				l.w.Do(first, func(h *clustertest.Host) { h.Fail(node.ActionNone, true) })
				l.w.Do(second, func(h *clustertest.Host) { h.Deaf(true) })
			}
			return do()
		})
		rec := failover(l, cluster.FailoverRequest{Mode: cluster.ModePlanned})
		l.want(rec, operation.Succeeded)
		l.leads(second)
		if why, _ := rec.Result["old_primary_failed"].(string); !strings.Contains(why, "ended by itself") {
			l.t.Errorf("result %v", rec.Result)
		}
		if len(l.w.Failed()) > 0 {
			l.t.Errorf("failed: %v", l.w.Failed())
		}
		l.w.Do(second, func(h *clustertest.Host) { h.Deaf(false) })
		l.restart(nil)
		l.look()
		l.settleWithin("the failover", 10*time.Minute)
	})
}

// Where neither can lead, that is what is said, with who could.
func TestNobodyLeadsIsSaid(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.counted(func(_ context.Context, call string, do func() error) error {
			if strings.HasPrefix(call, "Volumes.WriteOrder none "+first) {
				l.w.Do(first, func(h *clustertest.Host) { h.Fail(node.ActionNone, true) })
				l.w.Do(second, (*clustertest.Host).Crash)
				l.w.Do(second, func(h *clustertest.Host) { h.Fail(node.ActionNone, true) })
			}
			return do()
		})
		rec := failover(l, cluster.FailoverRequest{Mode: cluster.ModePlanned})
		l.want(rec, operation.Incomplete)
		said := "nobody leads: " + first + " holds all that was acknowledged: controld start " + first
		if rec.EndedAt.IsZero() || !strings.Contains(rec.Problem.Detail, said) {
			l.t.Errorf("%+v", rec.Problem)
		}
		for _, name := range []string{first, second} {
			l.w.Do(name, func(h *clustertest.Host) { h.Fail(node.ActionNone, false) })
		}
		l.want(l.await(l.now.m.StartNode(context.Background(), cluster.NodeRequest{Node: first}, test)), operation.Succeeded)
		l.restart(nil)
		l.look()
		l.settleWithin("the start", 10*time.Minute)
	})
}

// A standby that is made to lead by a start, where the journal is lost, begins a
// timeline of its own.
func TestAStartOfAStandbyPromotesIt(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.w.Do(first, func(h *clustertest.Host) { h.Crash(); h.Wipe() })
		time.Sleep(2 * time.Second)
		l.now.stop(l.t)
		l.dir = l.t.TempDir() // the journal is lost
		l.boot(nil)
		rec := l.await(l.now.m.StartNode(context.Background(), cluster.NodeRequest{Node: second}, test))
		l.want(rec, operation.Succeeded)
		if fmt.Sprint(rec.Result["timeline"]) != "2" {
			l.t.Errorf("timeline %v, want 2", rec.Result["timeline"])
		}
		l.leads(second)
	})
}

// A standby that was away for so long that the primary has removed the WAL that
// it lacks: what would be lost is told before anything is touched.
func TestAGapInTheWALIsALoss(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.w.Do(second, func(h *clustertest.Host) { h.Deaf(true) })
		time.Sleep(5 * time.Second)
		l.w.Do(first, func(h *clustertest.Host) { h.RemoveWAL(); h.Crash() })
		time.Sleep(time.Second)
		rec := failover(l, cluster.FailoverRequest{MaxLossBytes: new(int64)})
		l.want(rec, operation.Refused)
		if p := rec.Problem; p.Type != "/problems/loss-over-bound" || !strings.Contains(p.Detail, "was removed") {
			l.t.Errorf("%+v", p)
		}
		rec = failover(l, cluster.FailoverRequest{MaxLossBytes: new(int64(cluster.AcceptAnyLoss))})
		l.want(rec, operation.Succeeded)
		if told, truth := number(rec.Result["lost_bytes"]), l.w.LostBytes(); rec.Result["estimate"] != true || told < truth || truth == 0 {
			l.t.Errorf("told %v, the truth is %d", rec.Result, truth)
		}
		l.w.Forget()
	})
}

// Where the init of the candidate cannot copy the dead primary's WAL, which can
// be read, to lose it is for the request itself to say.
func TestASalvageThatFailsLosesNothingUnasked(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.w.Do(first, (*clustertest.Host).Crash)
		l.w.Do(second, func(h *clustertest.Host) { h.Fail(node.ActionSalvage, true) })
		time.Sleep(time.Second)
		l.want(failover(l, cluster.FailoverRequest{}), operation.Incomplete)
		l.want(failover(l, cluster.FailoverRequest{MaxLossBytes: new(int64(16 << 20))}), operation.Succeeded)
		l.leads(second)
	})
}

func TestTheDeathOfAPrimaryThatDoesNotDieIsNotProved(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.w.Do(first, func(h *clustertest.Host) { h.Freeze(); h.Stuck(true) })
		time.Sleep(time.Second)
		rec := failover(l, cluster.FailoverRequest{})
		if rec.State != operation.Incomplete && rec.State != operation.Refused {
			l.t.Fatalf("the operation is %s\n%s", rec.State, l.story())
		}
		if l.w.Leader() != "" {
			l.t.Errorf("%s leads", l.w.Leader())
		}
		if l.w.LongestPause() > 15*time.Second {
			l.t.Errorf("clients were held for %v", l.w.LongestPause())
		}
		l.w.Do(first, func(h *clustertest.Host) { h.Stuck(false); h.Crash() })
		l.want(failover(l, cluster.FailoverRequest{}), operation.Succeeded)
		l.settle("the second failover")
	})
}

func TestATransactionThatOutlastsThePause(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		commit, err := l.w.Hold(context.Background(), "imdb")
		if err != nil {
			t.Fatal(err)
		}
		rec := failover(l, cluster.FailoverRequest{})
		l.want(rec, operation.Refused)
		if rec.Problem.Type != "/problems/long-transaction" || number(rec.Problem.Numbers["pid"]) != 4711 {
			l.t.Errorf("%+v", rec.Problem)
		}
		if held, _ := rec.Result["pause_ms"].(float64); held < 5000 || held > 7000 {
			l.t.Errorf("the audit says that clients were held for %v ms, want the 5 s of the deadline", rec.Result["pause_ms"])
		}
		if err := commit(); err != nil {
			l.t.Errorf("the transaction: %v", err)
		}
		l.leads(first)
		l.settle("the refusal")
		if len(l.w.Failed()) > 0 {
			l.t.Errorf("failed: %v", l.w.Failed())
		}
	})
}

// The candidate goes at each moment of a planned failover: the old primary
// serves again, or, once it leads, the new one.
func TestTheCandidateFailsInThePause(t *testing.T) {
	for _, hurt := range []struct {
		name string
		do   func(*clustertest.Host)
	}{{"crash", (*clustertest.Host).Crash}, {"freeze", (*clustertest.Host).Freeze}, {"pause", (*clustertest.Host).Pause}} {
		for _, at := range []string{
			"Pooler.Pause imdb", "Volumes.WriteOrder none", "Session.Promote", "Pooler.Probe controld_probe", "Pooler.Resume imdb",
		} {
			t.Run(hurt.name+" at "+at, func(t *testing.T) {
				t.Parallel()
				inLab(t, nil, func(l *lab) {
					// The first probe of the probes' entry opens its connection, before the pause.
					left := int32(1)
					if at == "Pooler.Probe controld_probe" {
						left = 2
					}
					l.restart(func(_ context.Context, call string, do func() error) error {
						if strings.HasPrefix(call, at) && atomic.AddInt32(&left, -1) == 0 {
							l.w.Do(second, hurt.do)
						}
						return do()
					})
					l.look()
					time.Sleep(2 * time.Second)
					began := time.Now()
					rec := failover(l, cluster.FailoverRequest{Target: second, Mode: cluster.ModePlanned})
					if rec.State == operation.Succeeded {
						l.t.Logf("succeeded all the same")
					}
					acked := l.w.Acked()
					time.Sleep(time.Second)
					if took := time.Since(began); l.w.Acked() == acked && rec.State != operation.Incomplete {
						l.t.Errorf("%v after the call nobody writes\n%s", took, l.story())
					}
					l.w.Do(second, (*clustertest.Host).Thaw)
					l.settle("the failover")
					if l.w.LongestPause() > 20*time.Second {
						l.t.Errorf("clients were held for %v", l.w.LongestPause())
					}
				})
			})
		}
	}
}
