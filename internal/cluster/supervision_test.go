package cluster_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/node"
	"controld/internal/operation"
)

// controld is who asks for what it mends by itself.
var controld = operation.Caller{Name: "controld", Kind: operation.Daemon}

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
		if rec.State == operation.Succeeded || rec.Problem == nil || !strings.Contains(rec.Problem.Detail, "does not know the action basebackup") {
			t.Errorf("%s %+v", rec.State, rec.Problem)
		}
		l.w.Do(second, func(h *clustertest.Host) { now = h.Order() })
		if now != before {
			t.Errorf("ordered %+v", now)
		}
		l.w.Do(second, func(h *clustertest.Host) { h.Knows() })
		l.want(rejoin(cluster.MethodBaseBackup), operation.Succeeded)
	})
}
