package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"controld/internal/probe"
	"controld/internal/testcluster"
)

// busyClients are by far more than the two cores of a small host can serve, and twice as many
// as the pooler lets in at once.
const busyClients = 40

// A busyHost is a cluster under clients that calculate and clients that write,
// and what /health said of it meanwhile.
type busyHost struct {
	*cluster
	busy    *probe.Busy
	writers *probe.Prober
	stop    func()

	mu    sync.Mutex
	said  map[string]int
	downs []string
}

// makeBusy puts the load on. The clients wait for as long as it takes: only an
// answer that is an error is a failure.
func makeBusy(c *cluster) *busyHost {
	c.t.Helper()
	h := &busyHost{cluster: c, said: map[string]int{}}
	h.writers = c.writers(probe.Config{
		Every:              20 * time.Millisecond,
		NewConnectionEvery: 500 * time.Millisecond,
		ConnectTimeout:     2 * time.Minute,
		TransactionTimeout: 2 * time.Minute,
	})
	busy, err := probe.StartBusy(c.t.Context(), c.DatabaseURL, busyClients)
	if err != nil {
		c.t.Fatal(err)
	}
	h.busy = busy
	h.stop = c.again(func(ctx context.Context) {
		a, err := c.Call(ctx, "", "GET", "/health", nil)
		if ctx.Err() != nil {
			return
		}
		h.note(a, err)
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	})
	return h
}

func (h *busyHost) note(a testcluster.Answer, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	health := a.JSON()
	word := fmt.Sprint(health["status"], " ", health["reason"])
	if err != nil {
		word = "no answer"
	}
	h.said[word]++
	if err != nil || health["status"] == "down" {
		h.downs = append(h.downs, fmt.Sprintf("%s %v", a.Body, err))
	}
}

// neverDown fails the test if /health has said down since the last call, and
// returns what it said.
func (h *busyHost) neverDown() map[string]int {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.downs) > 0 {
		h.t.Errorf("/health was down, or silent, %d times; first: %s", len(h.downs), h.downs[0])
	}
	said := maps.Clone(h.said)
	clear(h.said)
	h.downs = nil
	return said
}

// relieve ends the load. No client may have been told an error, and nothing that
// was acknowledged may be missing.
func (h *busyHost) relieve() {
	h.t.Helper()
	h.stop()
	if err := h.busy.Stop(); err != nil {
		h.t.Errorf("busy clients were told: %v", err)
	}
	r := h.writers.Stop()
	if s := r.All(); s.Failed > 0 || s.FailedConnects > 0 {
		h.t.Errorf("%d failed transactions, %d failed connects: %v %v", s.Failed, s.FailedConnects, r.Failures, r.FailedConnects)
	}
	h.waitOK(comesBack)
	primary, _ := h.roles()
	h.check(r, primary)
	h.sameData()
}

// ownOperations counts the operations that controld began by itself.
func (c *cluster) ownOperations() int {
	c.t.Helper()
	a := c.call("viewer", "GET", "/operations?limit=500", nil)
	var list struct {
		Operations []operation `json:"operations"`
	}
	if err := json.Unmarshal(a.Body, &list); err != nil || a.Status != 200 {
		c.t.Fatalf("GET /operations: %d %s", a.Status, a.Body)
	}
	own := 0
	for _, op := range list.Operations {
		if op.By == "controld" {
			own++
		}
	}
	return own
}

// move asks for a failover, and reports whether it was carried out. On a busy host
// it may be refused, as long as nothing was touched.
func (h *busyHost) move() (operation, bool) {
	h.t.Helper()
	a := h.call("admin", "POST", "/failover", nil)
	var op operation
	var p problem
	switch _ = json.Unmarshal(a.Body, &op); {
	case a.Status == 200 && op.State == "succeeded" && op.Mode == "planned":
		return op, true
	case a.Status == 202: // it outlasts the call
		h.until(10*time.Minute, func() error {
			if op = h.last("failover"); op.State == "running" {
				return fmt.Errorf("%s is running", op.ID)
			}
			return nil
		})
		if op.State == "succeeded" && op.Mode == "planned" {
			return op, true
		}
	}
	err := json.Unmarshal(a.Body, &p)
	tooBusy := p.Type == "/problems/primary-slow" || p.Type == "/problems/long-transaction"
	if err != nil || a.Status != 409 || !tooBusy {
		h.t.Errorf("POST /failover: %d %s", a.Status, a.Body)
	}
	h.t.Logf("refused: %s", p.Detail)
	return op, false
}

// TestBusyHost: on a busy host nothing that serves is called down, and nothing is done about
// it. The primary moves without a failed client, or is not moved. The long form is
// TestLongBusyHost.
func TestBusyHost(t *testing.T) {
	h := makeBusy(up(t))
	own := h.ownOperations()
	time.Sleep(time.Minute)
	if now := h.ownOperations(); now != own {
		t.Errorf("controld has begun %d operations", now-own)
	}
	t.Logf("in a minute: %v, %d answers to busy clients, %d commits", h.neverDown(), h.busy.Queries(), h.writers.Acked())
	moved := 0
	for range 3 {
		if op, ok := h.move(); ok {
			moved++
			t.Logf("moved, pause %.0f ms", op.Result.PauseMS)
		}
	}
	t.Logf("%d of 3 moved: %v", moved, h.neverDown())
	h.relieve()
}
