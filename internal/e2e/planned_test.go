package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"controld/internal/probe"
)

// TestFailoverAndBack is the main promise: the primary moves there and back
// under a write load, from the HTTP call alone, and no client notices more than
// a pause. Twenty in a row are the benchmark's business.
func TestFailoverAndBack(t *testing.T) {
	c := up(t)
	const quick = 20 * time.Millisecond // the outage is held against the pause
	for _, tt := range []struct {
		name string
		load probe.Config
	}{
		{"plain", probe.Config{Every: quick}},
		{"open transactions", probe.Config{Every: quick, Mode: probe.Tx}},
		{"prepared statements", probe.Config{Every: quick, Mode: probe.Prepared}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := c.in(t)
			move(c, "/failover", tt.load)
			move(c, "/failback", tt.load)
		})
	}
	t.Run("an emergency is what its dry run says", func(t *testing.T) {
		c := c.in(t)
		primary, _ := c.roles()
		c.kill(primary)
		dry := c.dryRun("/failover", nil)
		op := c.run("/failover", nil)
		if dry.Mode != "emergency" || op.Mode != "emergency" {
			t.Errorf("the dry run says mode %s, executed was %s", dry.Mode, op.Mode)
		}
		dry.same(t, op)
	})
}

// TestFailbackRejoinsFirst: a failback brings its target to stream before it
// moves the primary there.
func TestFailbackRejoinsFirst(t *testing.T) {
	t.Parallel()
	// Supervision looks rarely, so that it is not the one that rejoins.
	c := up(t, "CONTROLD_PREFERRED_PRIMARY=postgres_slave", "CONTROLD_OBSERVE_INTERVAL=15s")
	c.run("/failover", nil)
	c.justLooked()
	c.endServer("postgres_slave")
	w := c.writers(probe.Config{})
	dry := c.dryRun("/failback", nil)
	op := c.run("/failback", nil)
	r := w.Stop()
	dry.same(t, op)
	if op.Result.To != "postgres_slave" || op.Steps[0].Name != "rejoin: reserve slot" {
		t.Errorf("failback: %+v", op)
	}
	if s := r.All(); s.Failed > 0 {
		t.Errorf("%d failed transactions: %v", s.Failed, r.Failures)
	}
	c.check(r, "postgres_slave")
}

// justLooked waits until supervision has looked: where it looks rarely, it now leaves time
// for what it must not be the first to see.
func (c *cluster) justLooked() {
	c.t.Helper()
	_, before := c.health()
	c.until(2*time.Minute, func() error {
		if _, now := c.health(); now["observed_at"] == before["observed_at"] {
			return fmt.Errorf("observed at %v", now["observed_at"])
		}
		return nil
	})
}

// endServer kills a node's server as a fault in it does: its container goes on.
func (c *cluster) endServer(node string) {
	c.t.Helper()
	c.docker("exec", c.Container(node), "sh", "-c", `kill -KILL "$(head -1 "${PGHOST%/run}"/data/postmaster.pid)"`)
}

// move makes one move under load and asserts everything that must hold.
func move(c *cluster, path string, load probe.Config) {
	t := c.t
	t.Helper()
	before := c.topology()
	u, err := probe.U(t.Context(), c.NodeDSN(before.Primary, "app", "imdb"))
	if err != nil {
		t.Fatal(err)
	}
	dry := c.dryRun(path, nil)
	w := c.writers(load)
	time.Sleep(500 * time.Millisecond)
	o := openConnections(c)
	asked := time.Now()
	op := c.run(path, nil)
	answered := time.Now()
	openings := o.stop()
	time.Sleep(500 * time.Millisecond)
	r := w.Stop()
	c.waitOK(30 * time.Second)
	after := c.topology()

	stats := r.All()
	if stats.Failed > 0 || stats.FailedConnects > 0 {
		t.Errorf("%s: %d failed transactions, %d failed connects: %v %v",
			path, stats.Failed, stats.FailedConnects, r.Failures, r.FailedConnects)
	}
	// The stall in the operation: at another time a busy machine may stall the clients for
	// longer.
	stall := r.Between(asked, answered).Outage
	checkOpenings(t, path, openings, stall)
	if after.Primary == before.Primary || after.Primary != op.Result.To {
		t.Errorf("%s: %s led, %s leads, the result says %s", path, before.Primary, after.Primary, op.Result.To)
	}
	if after.Nodes[0].Timeline != before.Nodes[0].Timeline+1 || after.Nodes[1].Timeline != after.Nodes[0].Timeline {
		t.Errorf("%s: timelines %v after %v", path, after.Nodes, before.Nodes)
	}
	if after.Nodes[0].SystemID != before.Nodes[0].SystemID || after.Nodes[1].SystemID != before.Nodes[0].SystemID {
		t.Errorf("%s: the system identifier changed: %v after %v", path, after.Nodes, before.Nodes)
	}
	dry.same(t, op)
	c.check(r, after.Primary)
	// How much longer the clients' outage may be is for the benchmark to judge.
	outage, pause := stall.Length(), time.Duration(op.Result.PauseMS*float64(time.Millisecond))
	// The last commit before it is noted when its client gets the processor, which may
	// be after controld has read the answer to PAUSE.
	const noted = 50 * time.Millisecond
	if pause <= 0 || pause > outage+noted {
		t.Errorf("%s: the daemon says a pause of %s, the clients saw an outage of %s", path, pause, outage)
	}
	t.Logf("%s: pause %s, outage %s = %.1f U (U %s), old primary back after %.0f ms",
		path, pause, outage, float64(outage)/float64(u), u, op.Result.RejoinMS)
}

// An opening is one fresh connection and its first answer.
type opening struct {
	start, end time.Time
	err        error
}

// An opener opens fresh connections one after the other without waiting for the
// one before, so that some begin inside every pause.
type opener struct {
	cancel  context.CancelFunc
	running sync.WaitGroup
	mu      sync.Mutex
	done    []opening
}

func openConnections(c *cluster) *opener {
	ctx, cancel := context.WithCancel(c.t.Context())
	o := &opener{cancel: cancel}
	o.running.Go(func() {
		beat := time.NewTicker(25 * time.Millisecond)
		defer beat.Stop()
		for {
			o.running.Go(func() { o.open(c.DatabaseURL) })
			select {
			case <-ctx.Done():
				return
			case <-beat.C:
			}
		}
	})
	return o
}

// open does not end with the load: what it began must be answered.
func (o *opener) open(dsn string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	it := opening{start: time.Now()}
	conn, err := pgx.Connect(ctx, dsn)
	if err == nil {
		_, err = conn.Exec(ctx, "select 1")
		defer conn.Close(ctx)
	}
	it.end, it.err = time.Now(), err
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done = append(o.done, it)
}

func (o *opener) stop() []opening {
	o.cancel()
	o.running.Wait()
	return o.done
}

// checkOpenings: each connection succeeded, and at least one was begun while
// the clients were held.
func checkOpenings(t *testing.T, path string, openings []opening, outage probe.Stall) {
	t.Helper()
	held := 0
	for _, o := range openings {
		if o.err != nil {
			t.Errorf("%s: a connection opened at %s failed: %v", path, o.start.Sub(outage.From), o.err)
		}
		if o.start.After(outage.From) && o.start.Before(outage.To) {
			held++
		}
	}
	if held == 0 {
		t.Errorf("%s: none of %d connections was opened in the pause", path, len(openings))
	}
}

// A plan is what the tests read of a dry run.
type plan struct {
	Mode     string   `json:"mode"`
	Steps    []string `json:"steps"`
	WouldRun bool     `json:"would_run"`
	Checks   []struct {
		Name    string         `json:"name"`
		OK      bool           `json:"ok"`
		Detail  string         `json:"detail"`
		Numbers map[string]any `json:"numbers"`
	} `json:"checks"`
	Refusal *problem `json:"refusal"`
}

// dryRun asks what path would do with body, which is nil or a map.
func (c *cluster) dryRun(path string, body map[string]any) plan {
	c.t.Helper()
	asked := map[string]any{"dry_run": true}
	for k, v := range body {
		asked[k] = v
	}
	a := c.call("admin", "POST", path, asked)
	var p plan
	if err := json.Unmarshal(a.Body, &p); err != nil || a.Status != 200 {
		c.t.Fatalf("dry run of %s: %d %s", path, a.Status, a.Body)
	}
	return p
}

// same: the steps that were executed are called as the dry run called them.
func (p plan) same(t *testing.T, op operation) {
	t.Helper()
	var executed []string
	for _, s := range op.Steps {
		executed = append(executed, s.Name)
	}
	if !slices.Equal(p.Steps, executed) {
		t.Errorf("the dry run says %q, executed was %q", p.Steps, executed)
	}
}
