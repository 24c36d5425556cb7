//go:build long

package e2e

import (
	"slices"
	"testing"
	"time"

	"controld/internal/probe"
)

// TestLongBusyHost is TestBusyHost for as long as it takes to believe it.
func TestLongBusyHost(t *testing.T) {
	c := upAlone(t)
	quiet := lossToCommit(c, 3)
	t.Logf("quiet host: killed to first commit, median %.1f U", quiet)

	t.Run("failovers", func(t *testing.T) {
		h := makeBusy(c.in(t))
		var pauses []time.Duration
		for range 20 {
			if op, ok := h.move(); ok {
				pauses = append(pauses, time.Duration(op.Result.PauseMS*float64(time.Millisecond)))
			}
		}
		slices.Sort(pauses)
		t.Logf("%d of 20 moved, %v", len(pauses), h.neverDown())
		if len(pauses) < 18 {
			t.Error("at least 18 were to succeed")
		} else {
			t.Logf("pauses: median %s, longest %s", probe.Quantile(pauses, 0.5), pauses[len(pauses)-1])
		}
		h.relieve()
	})
	t.Run("ten minutes", func(t *testing.T) {
		h := makeBusy(c.in(t))
		own := h.ownOperations()
		time.Sleep(10 * time.Minute)
		if now := h.ownOperations(); now != own {
			t.Errorf("controld has begun %d operations", now-own)
		}
		t.Logf("%v, %d answers to busy clients, %d commits", h.neverDown(), h.busy.Queries(), h.writers.Acked())
		h.relieve()
	})
	t.Run("a primary of a tenth of a core", func(t *testing.T) {
		c := c.in(t)
		h := makeBusy(c)
		moved := 0
		for range 20 {
			primary, _ := c.roles()
			c.docker("update", "--cpus", "0.1", c.Container(primary))
			time.Sleep(10 * time.Second)
			if _, ok := h.move(); ok {
				moved++
			}
			c.docker("update", "--cpus", "2", c.Container(primary))
		}
		t.Logf("%d of 20 moved, %v", moved, h.neverDown())
		h.relieve()
	})
	t.Run("a killed primary", func(t *testing.T) {
		c := c.in(t)
		busy, err := probe.StartBusy(t.Context(), c.DatabaseURL, busyClients)
		if err != nil {
			t.Fatal(err)
		}
		got := lossToCommit(c, 1)
		if err := busy.Stop(); err != nil {
			t.Logf("the busy clients of the dead primary: %v", err)
		}
		t.Logf("busy host: killed to first commit %.1f U", got)
		if got > 3*quiet {
			t.Errorf("%.1f U, more than 3 times the %.1f U of the quiet host", got, quiet)
		}
	})
}

// lossToCommit kills the primary and fails over, some times, and returns the median
// time from the call to the first commit, in U as measured just before.
func lossToCommit(c *cluster, runs int) float64 {
	c.t.Helper()
	var took []float64
	for range runs {
		primary, _ := c.roles()
		u, err := probe.U(c.t.Context(), c.NodeDSN(primary, "app", "imdb"))
		if err != nil {
			c.t.Fatal(err)
		}
		w := c.writers(probe.Config{ConnectTimeout: 2 * time.Minute, TransactionTimeout: 2 * time.Minute})
		if err := w.WaitCommit(c.t.Context(), time.Now()); err != nil {
			c.t.Fatal(err)
		}
		c.kill(primary)
		called := time.Now()
		op := c.run("/failover", nil)
		if err := w.WaitCommit(c.t.Context(), time.Now()); err != nil {
			c.t.Fatal(err)
		}
		r := w.Stop()
		took = append(took, float64(r.Since(called).FirstCommit)/float64(u))
		c.waitOK(10 * comesBack)
		c.check(r, op.Result.To)
	}
	slices.Sort(took)
	return took[len(took)/2]
}
