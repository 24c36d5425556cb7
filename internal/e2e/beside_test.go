package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestALongOperation is about a copy that takes long. It tells how far it is. It refuses
// others, and says what its end would cost; it is ended for one that asks for that. It gives
// way to an emergency at once. A stop of controld leaves it.
func TestALongOperation(t *testing.T) {
	t.Parallel()
	c := up(t)
	c.psql("postgres_master", "CREATE TABLE bulk AS SELECT g, repeat(md5(g::text), 30) AS pad FROM generate_series(1, 250000) g") // 260 MB
	slow := func() { c.docker("update", "--cpus", "0.05", c.Container("postgres_slave")) }
	quick := func() { c.docker("update", "--cpus", "2", c.Container("postgres_slave")) }
	copying := func() operation {
		a := c.call("admin", "POST", "/nodes/postgres_slave/rejoin", map[string]any{"method": "basebackup"}, "Prefer", "respond-async")
		var op operation
		if err := json.Unmarshal(a.Body, &op); err != nil || a.Status != 202 {
			c.t.Fatalf("%d %s", a.Status, a.Body)
		}
		return op
	}
	slow()
	first := copying()
	far := c.progressOf(first.ID)
	if far.Unit != "bytes" || far.Total < 250<<20 || far.Done > far.Total || far.Phase != "streaming database files" {
		t.Errorf("progress %+v", far)
	}
	const metric = `controld_operation_progress_expected{kind="rejoin",phase="streaming database files",unit="bytes"}`
	if a := c.call("viewer", "GET", "/metrics", nil); !strings.Contains(string(a.Body), metric) {
		t.Error("no progress in /metrics")
	}

	p := c.refused("/nodes/postgres_slave/rejoin", map[string]any{"method": "basebackup"}, 409, "operation-running")
	const cost = "With cancel_running it is cancelled first: the node stays as it is"
	if p.Operation == nil || p.Operation.ID != first.ID || !strings.Contains(p.Detail, cost) {
		t.Errorf("refused: %+v", p)
	}
	a := c.call("admin", "POST", "/nodes/postgres_slave/rejoin",
		map[string]any{"method": "basebackup", "cancel_running": true}, "Prefer", "respond-async")
	var second operation
	if err := json.Unmarshal(a.Body, &second); err != nil || a.Status != 202 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	c.endsAs(first.ID, "cancelled")

	c.progressOf(second.ID)
	ordered := c.ordered("postgres_slave")
	began := time.Now()
	c.docker("stop", c.Container("controld"))
	t.Logf("controld stopped within %s beside a copy", time.Since(began).Round(100*time.Millisecond))
	c.docker("start", c.Container("controld"))
	if c.progressOf(second.ID); c.ordered("postgres_slave") != ordered {
		t.Error("the copy was ordered anew, and begun from nothing")
	}
	quick()
	c.endsAs(second.ID, "succeeded")
	c.waitOK(time.Minute)
	c.sameRows("bulk")
}

// ordered is the epoch of the node's order.
func (c *cluster) ordered(name string) float64 {
	c.t.Helper()
	var all struct {
		Nodes []struct {
			Name  string
			Order struct{ Epoch float64 }
		}
	}
	a := c.call("viewer", "GET", "/cluster", nil)
	if err := json.Unmarshal(a.Body, &all); err != nil {
		c.t.Fatal(err)
	}
	for _, n := range all.Nodes {
		if n.Name == name && n.Order.Epoch > 0 {
			return n.Order.Epoch
		}
	}
	c.t.Fatalf("%s has no order: %s", name, a.Body)
	return 0
}

type progress struct {
	Phase       string
	Done, Total int64
	Unit        string
}

// progressOf waits until the operation has done something, and says how far it is.
func (c *cluster) progressOf(id string) progress {
	c.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		a, err := c.Call(c.t.Context(), "viewer", "GET", "/operations/"+id, nil)
		var op struct {
			State    string
			Progress *progress
		}
		if err != nil || json.Unmarshal(a.Body, &op) != nil {
			continue // controld starts
		}
		if op.State != "running" {
			c.t.Fatalf("it has ended: %s", a.Body)
		}
		if op.Progress != nil && op.Progress.Done > 0 {
			return *op.Progress
		}
	}
	c.t.Fatal("no progress is told")
	return progress{}
}

// endsAs waits for the end of an operation.
func (c *cluster) endsAs(id, state string) {
	c.t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		var op operation
		a := c.call("viewer", "GET", "/operations/"+id, nil)
		if err := json.Unmarshal(a.Body, &op); err != nil {
			c.t.Fatalf("%d %s", a.Status, a.Body)
		}
		if !op.Ended.IsZero() {
			if op.State != state {
				c.t.Errorf("%s, want %s: %s", op.State, state, a.Body)
			}
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("still open: %s", a.Body)
		}
	}
}
