package manager_test

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/node"
	"controld/internal/operation"
	"controld/internal/rights"
)

// follows waits until the node streams, as supervision sees it.
func (l *lab) follows(name string, limit time.Duration) {
	l.t.Helper()
	for deadline := time.Now().Add(limit); !slices.Contains(cluster.Followers(l.now.m.View()), name); {
		if time.Now().After(deadline) {
			l.t.Fatalf("%s does not stream after %v\n%s", name, limit, l.story())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// tries counts the operations of a kind that did not succeed.
func (l *lab) tries(kind string) int {
	l.t.Helper()
	recs, _, err := l.now.ops.List(operation.Filter{Kind: kind})
	if err != nil {
		l.t.Fatal(err)
	}
	return len(slices.DeleteFunc(recs, func(r operation.Record) bool { return r.State == operation.Succeeded }))
}

// A primary that keeps what commits wait for, as one does after ALTER SYSTEM,
// does not keep its standby from being brought back: every commit waits for it.
func TestSupervisionRejoinsBesideALiftThatFails(t *testing.T) {
	inLab(t, func(s *cluster.Settings) { s.Replication = cluster.Sync }, func(l *lab) {
		time.Sleep(10 * time.Second) // until commits wait for the standby
		l.set.Replication = cluster.Async
		l.restart(func(_ context.Context, call string, do func() error) error {
			if call == "Session.Reload "+first {
				return errBrokenWire
			}
			return do()
		})
		l.look()
		time.Sleep(5 * time.Minute) // until it is tried seldom
		if l.tries(cluster.KindProtect) < 3 {
			l.t.Fatalf("the lift does not fail\n%s", l.story())
		}
		l.w.Do(second, (*clustertest.Host).Crash)
		time.Sleep(2 * time.Second)
		l.follows(second, 20*time.Second)
		acked := l.w.Acked()
		time.Sleep(time.Second)
		if l.w.Acked() == acked {
			l.t.Error("nobody commits")
		}
	})
}

// A standby that was cut from the network has a reader that waits for it, so the
// pooler's entry of the readers cannot be led elsewhere. It is connected again
// all the same, which is what the reader waits for.
func TestSupervisionReconnectsAStandbyWithAReader(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.follows(second, 20*time.Second)
		read, err := l.w.Hold(context.Background(), "imdb_ro")
		if err != nil {
			l.t.Fatal(err)
		}
		if err := l.w.Process().Outside().Engine.Disconnect(context.Background(), second); err != nil {
			l.t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		l.follows(second, 20*time.Second)
		if l.tries(cluster.KindAlign) == 0 {
			l.t.Errorf("the readers were led elsewhere\n%s", l.story())
		}
		_ = read() // a standby takes no write
		l.settle("the reader's end")
	})
}

// A primary that freezes while controld changes what commits wait for holds up
// neither the supervision nor the failover that is asked for then.
func TestProtectionOfAPrimaryThatFreezes(t *testing.T) {
	sync := func(s *cluster.Settings) { s.Replication = cluster.Sync }
	freezing := func(l *lab, call string) *daemon {
		return l.counted(func(_ context.Context, got string, do func() error) error {
			if strings.HasPrefix(got, call) {
				l.w.Do(first, (*clustertest.Host).Freeze)
			}
			return do()
		})
	}
	t.Run("lift", func(t *testing.T) {
		inLab(t, sync, func(l *lab) {
			time.Sleep(10 * time.Second)
			l.quiet()
			d := freezing(l, "Volumes.WriteSettings "+first)
			began := time.Now()
			l.want(l.await(d.m.Protect(context.Background(), "lift", "", controld)), operation.Undone)
			if took := time.Since(began); took > 20*time.Second {
				l.t.Errorf("given up after %v", took)
			}
			if !d.m.Identity().Unsynced {
				l.t.Error("the lift is not noted")
			}
		})
	})
	t.Run("set", func(t *testing.T) {
		inLab(t, sync, func(l *lab) {
			time.Sleep(10 * time.Second)
			l.quiet()
			l.now.m.Observe(context.Background())
			l.want(l.await(l.now.m.Protect(context.Background(), "lift", "", controld)), operation.Succeeded)
			d := freezing(l, "Session.Senders "+first)
			set, err := d.m.Protect(context.Background(), "set", "", controld)
			if err != nil {
				l.t.Fatal(err)
			}
			time.Sleep(time.Second)
			d.m.Observe(context.Background())
			l.want(failover(l, cluster.FailoverRequest{}), operation.Succeeded)
			l.leads(second)
			if state := l.await(set, nil).State; state == operation.Succeeded {
				l.t.Errorf("what commits wait for on a frozen primary was set: %s", state)
			}
		})
	})
}

// What this version needs in PostgreSQL reaches a cluster that an earlier one made: by an
// order, or past an init that does not know it. Where it fails it is tried again, and the
// health says so.
func TestProvision(t *testing.T) {
	provisions := func(l *lab, state operation.State) []operation.Record {
		recs, _, err := l.now.ops.List(operation.Filter{Kind: cluster.KindProvision, State: state})
		if err != nil {
			l.t.Fatal(err)
		}
		return recs
	}
	outdated := func(l *lab) {
		for _, n := range []string{first, second} {
			l.w.Do(n, (*clustertest.Host).OutdatedRights)
		}
	}
	current := func(l *lab) {
		l.t.Helper()
		for _, n := range []string{first, second} {
			l.w.Do(n, func(h *clustertest.Host) {
				if h.Rights() != rights.Version {
					l.t.Errorf("%s has version %d", n, h.Rights())
				}
			})
		}
		if reason := l.now.m.Health().Reason; reason != "" {
			l.t.Errorf("health: %s", reason)
		}
	}
	t.Run("by an order", func(t *testing.T) {
		inLab(t, nil, func(l *lab) {
			l.follows(second, 20*time.Second)
			epoch := l.now.m.Identity().Epoch
			outdated(l)
			time.Sleep(5 * time.Second)
			current(l)
			if done := provisions(l, operation.Succeeded); len(done) != 1 || l.now.m.Identity().Epoch == epoch {
				l.t.Errorf("%+v", done)
			}
			l.want(failover(l, cluster.FailoverRequest{}), operation.Succeeded)
			time.Sleep(5 * time.Second)
			current(l)
		})
	})
	t.Run("past an init that does not know it", func(t *testing.T) {
		inLab(t, nil, func(l *lab) {
			l.follows(second, 20*time.Second)
			epoch := l.now.m.Identity().Epoch
			l.w.Do(first, func(h *clustertest.Host) { h.Knows(node.ActionNone, node.ActionBaseBackup) })
			outdated(l)
			time.Sleep(5 * time.Second)
			current(l)
			if done := provisions(l, operation.Succeeded); len(done) != 1 || l.now.m.Identity().Epoch != epoch {
				l.t.Errorf("%+v", done)
			}
		})
	})
	t.Run("it fails", func(t *testing.T) {
		inLab(t, nil, func(l *lab) {
			l.follows(second, 20*time.Second)
			l.w.Do(first, func(h *clustertest.Host) { h.Fail(node.ActionProvision, true) })
			outdated(l)
			time.Sleep(time.Minute)
			if reason := l.now.m.Health().Reason; reason != "rights-outdated" {
				l.t.Errorf("health: %s", reason)
			}
			failed := provisions(l, operation.Undone)
			if len(failed) < 2 || len(failed) > 6 || !strings.Contains(failed[0].Problem.Detail, "told to fail") {
				l.t.Errorf("tried %d times in a minute: %+v", len(failed), failed)
			}
			l.w.Do(first, func(h *clustertest.Host) { h.Fail(node.ActionProvision, false) })
			time.Sleep(5 * time.Minute)
			current(l)
		})
	})
}

// An init of another version gets no order that it does not know, and one that does
// not tell what it knows gets those that every one has known.
func TestAnInitOfAnotherVersion(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.quiet()
		rejoin := func(method string) operation.Record {
			rec, err := l.now.m.Rejoin(context.Background(), cluster.NodeRequest{Node: second, Method: method}, test)
			return l.await(rec, err)
		}
		l.w.Do(second, func(h *clustertest.Host) { h.Knows(node.ActionNone, node.ActionSalvage) })
		var before, now node.Order
		l.w.Do(second, func(h *clustertest.Host) { before = h.Order() })
		rec := rejoin(cluster.MethodBaseBackup)
		const why = "does not know the action basebackup"
		if rec.State == operation.Succeeded || rec.Problem == nil || !strings.Contains(rec.Problem.Detail, why) {
			t.Errorf("%s %+v", rec.State, rec.Problem)
		}
		l.w.Do(second, func(h *clustertest.Host) { now = h.Order() })
		if !reflect.DeepEqual(now, before) {
			t.Errorf("ordered %+v", now)
		}
		l.w.Do(second, func(h *clustertest.Host) { h.Knows() })
		l.want(rejoin(cluster.MethodBaseBackup), operation.Succeeded)
	})
}
