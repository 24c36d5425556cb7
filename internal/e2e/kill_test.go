package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"controld/internal/backup"
	"controld/internal/node/archive"
	"controld/internal/probe"
	"controld/internal/testcluster"
)

// settleLimit is the time within which the world must be in order again after controld was
// killed.
const settleLimit = 60 * time.Second

// A cut is a call that leaves controld, and what becomes of it: see package
// failpoint. before and after kill the daemon, lost loses the answer.
type cut struct{ call, when string }

func (x cut) String() string { return x.call + " " + x.when }

// killSettings are those of clusters that are to be broken. Several tests ask for them.
var killSettings = []string{"CONTROLD_OBSERVE_INTERVAL=300ms"}

// newKills brings up a cluster that is to be broken. Its test runs beside others.
func newKills(t *testing.T) *kills {
	t.Helper()
	t.Parallel()
	return &kills{cluster: upFailpoint(t, killSettings...)}
}

// TestKilledInPlannedFailover kills controld at points of a planned failover at which
// the world looks different. Docker starts it again. TestLongKilled has the others, and
// package manager all of them, in a simulated world.
func TestKilledInPlannedFailover(t *testing.T) {
	newKills(t).inPlanned([]cut{
		{"Pooler.Pause", "after"},            // paused
		{"Volumes.WriteOrder.none", "after"}, // the old primary is stopping
		{"Volumes.Control.stopped", "after"}, // stopped
		{"Session.Promote", "before"},
		{"Session.Promote", "lost"},             // sent
		{"Pooler.Probe 2", "before"},            // promoted
		{"Pooler.Resume", "before"},             // repointed
		{"Volumes.WriteOrder.standby", "after"}, // the old primary is on its way back
	})
}

// TestKilledInOtherOperations is the same for an emergency failover, for a node that is
// brought back, a crashed primary that is started in place, and a failback.
func TestKilledInOtherOperations(t *testing.T) {
	k := newKills(t)
	k.inEmergency([]cut{
		{"Volumes.WriteOrder.none", "after"},
		{"Session.Promote", "lost"},
		{"Pooler.Resume", "before"},
	})
	k.inRejoin("basebackup", cut{"Volumes.WriteOrder.standby", "after"})
	k.inStart(cut{"Volumes.WriteOrder.primary", "after"})
	k.inFailback(cut{"Pooler.Probe 2", "before"}) // promoted
}

func (k *kills) inPlanned(cuts []cut) {
	for _, x := range cuts {
		k.run(k.t, x, func(t *testing.T) { k.move(t, "/failover", nil) })
	}
}

// inEmergency lets the primary die before each failover. An undone one leaves no
// primary: until controld starts, which starts the recorded one, or until it is asked
// again.
func (k *kills) inEmergency(cuts []cut) {
	// The first follows a move so closely that no control file of the standby
	// names the new timeline yet.
	k.cluster.run("/failover", nil)
	k.settle(k.t)
	for _, x := range cuts {
		k.run(k.t, x, func(t *testing.T) {
			primary, _ := k.roles()
			k.kill(primary)
			k.move(t, "/failover", map[string]any{"mode": "emergency"})
		})
	}
}

func (k *kills) inRejoin(method string, x cut) {
	k.run(k.t, x, func(t *testing.T) {
		_, standby := k.roles()
		k.move(t, "/nodes/"+standby+"/rejoin", map[string]any{"method": method})
	})
}

func (k *kills) inStart(x cut) {
	k.run(k.t, x, func(t *testing.T) {
		primary, _ := k.roles()
		k.kill(primary)
		k.move(t, "/nodes/"+primary+"/start", nil)
	})
}

func (k *kills) inFailback(x cut) {
	if primary, _ := k.roles(); primary == testcluster.Nodes[0] {
		k.cluster.run("/failover", nil)
		k.waitOK(settleLimit)
	}
	k.run(k.t, x, func(t *testing.T) { k.move(t, "/failback", nil) })
}

// TestSignalledContainersRunAgain sends controld a signal that means nothing, and kills it: an
// image without a STOPSIGNAL stays down after that.
func TestSignalledContainersRunAgain(t *testing.T) {
	t.Parallel()
	c := upFailpoint(t, killSettings...)
	for _, service := range services {
		if c.docker("inspect", "-f", "{{.Config.StopSignal}}", c.Container(service)) == "" {
			t.Errorf("the image of %s names no signal to stop by", service)
		}
	}
	name := c.Container("controld")
	pid := c.docker("inspect", "-f", "{{.State.Pid}}", name)
	c.docker("kill", "-s", "WINCH", name)
	_, _ = c.Docker(t.Context(), "exec", name, "sh", "-c", "kill -9 "+pid) // which ends this shell, too
	c.until(settleLimit, func() error {
		if is := c.docker("inspect", "-f", "{{.State.Running}} {{.RestartCount}}", name); is != "true 1" {
			return fmt.Errorf("running, and how often started again: %s", is)
		}
		return nil
	})
	c.waitOK(settleLimit)
}

// leaseLimit is the time within which the pooler's init releases clients whose pause nobody keeps
// up.
const leaseLimit = 15 * time.Second

// TestPauseWithoutControld breaks what holds a pause.
func TestPauseWithoutControld(t *testing.T) {
	t.Parallel()
	inPause(t, []pauseCase{
		{"controld gone for good", goneForGood},
		{"controld stopped for a while", stoppedInPause},
		{"controld told to end", toldToEnd},
	})
}

// TestPause lets others ask while a pause ends, and breaks the pooler that is held by it.
func TestPause(t *testing.T) {
	t.Parallel()
	inPause(t, []pauseCase{
		{"asked again while it resumes", askedAgain},
		{"looks while it resumes", looksWhileItResumes},
		{"pooler killed", poolerKilledInPause},
		{"pooler killed outside of a pause", poolerKilled},
	})
}

type pauseCase struct {
	name string
	hold func(*testing.T, *cluster)
}

func inPause(t *testing.T, cases []pauseCase) {
	t.Helper()
	c := upFailpoint(t, killSettings...)
	for _, tt := range cases {
		if !t.Run(tt.name, func(t *testing.T) { tt.hold(t, c) }) {
			t.FailNow() // what follows would begin in a broken world
		}
	}
}

// goneForGood lets controld die in a pause and not come back. The pooler's own init releases the
// clients: to the old primary while that runs, and to an error where it does not.
func goneForGood(t *testing.T, c *cluster) {
	for _, tt := range []struct {
		cut    cut
		serves bool // the old primary
	}{
		{cut{"Pooler.Pause", "after"}, true},
		{cut{"Volumes.WriteOrder.none", "after"}, false},
	} {
		t.Run(tt.cut.String(), func(t *testing.T) {
			primary, _ := c.roles()
			start := c.staysDown("controld")
			w := c.writers(probe.Config{})
			defer w.Stop()
			c.arm(tt.cut.call, tt.cut.when)
			if a, err := c.Call(t.Context(), "admin", "POST", "/failover", nil); err == nil {
				t.Fatalf("POST /failover: %d %s, and controld should have died", a.Status, a.Body)
			}
			died := time.Now()
			if tt.serves {
				written(t, w, died, leaseLimit)
				if leads, _, err := c.leader(t.Context()); err != nil || leads != primary {
					t.Errorf("%s leads (%v), should be %s", leads, err, primary)
				}
			} else {
				answered(t, c, died.Add(leaseLimit))
			}
			start()
			c.settle(t)
			verdict(t, c, w)
		})
	}
}

// stoppedInPause stops the daemon for longer than its lease on the pause lasts. The clients are
// released meanwhile. When the daemon goes on it must notice that, and take everything back.
func stoppedInPause(t *testing.T, c *cluster) {
	for _, call := range []string{"Pooler.Pause", "Volumes.WriteOrder.none"} {
		t.Run(call, func(t *testing.T) {
			primary, _ := c.roles()
			w := c.writers(probe.Config{})
			defer w.Stop()
			started := c.serverStarted(t, primary)
			answer := c.hang(t, call, "/failover", nil)
			stopped := time.Now()
			if call == "Pooler.Pause" {
				written(t, w, stopped, leaseLimit)
			} else {
				answered(t, c, stopped.Add(leaseLimit))
			}
			c.docker("kill", "-s", "CONT", c.Container("controld"))
			a := <-answer
			if a.Status != 500 || a.JSON()["type"] != "/problems/undone" {
				t.Errorf("POST /failover: %d %s, want it undone", a.Status, a.Body)
			}
			if call == "Pooler.Pause" && c.serverStarted(t, primary) != started {
				t.Errorf("%s was stopped after the pause was lost", primary)
			}
			c.settle(t)
			verdict(t, c, w)
			if leads, _ := c.roles(); leads != primary {
				t.Errorf("%s leads, should be %s", leads, primary)
			}
		})
	}
}

// serverStarted is when the node's PostgreSQL was started.
func (c *cluster) serverStarted(t *testing.T, node string) (at string) {
	t.Helper()
	if err := c.query(t.Context(), node, "select pg_postmaster_start_time()::text", &at); err != nil {
		t.Fatal(err)
	}
	return at
}

// toldToEnd sends what docker stop sends: the operation is finished or undone first.
func toldToEnd(t *testing.T, c *cluster) {
	for _, call := range []string{"Pooler.Pause", "Volumes.WriteOrder.none", "Session.Promote"} {
		t.Run(call, func(t *testing.T) {
			w := c.writers(probe.Config{})
			defer w.Stop()
			c.hang(t, call, "/failover", nil)
			c.docker("kill", "-s", "TERM", c.Container("controld")) // taken up once it goes on
			ended := make(chan string, 1)
			go func() {
				out, err := c.Docker(t.Context(), "wait", c.Container("controld"))
				ended <- fmt.Sprint(out, err)
			}()
			c.docker("kill", "-s", "CONT", c.Container("controld"))
			select {
			case code := <-ended:
				if code != "0<nil>" {
					t.Errorf("controld ended with %s", code)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("controld did not end within the 30 s that docker stop gives it")
			}
			entries, err := c.entries(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for name, e := range entries {
				if e.paused != "0" {
					t.Errorf("%s is left paused", name)
				}
			}
			written(t, w, time.Now(), 5*time.Second)
			c.docker("start", c.Container("controld"))
			c.settle(t)
			verdict(t, c, w)
		})
	}
}

// poolerKilledInPause kills PgBouncer, which forgets the pause, while controld thinks that it
// holds the clients.
func poolerKilledInPause(t *testing.T, c *cluster) {
	// Few, because Docker waits longer before each start of what keeps crashing.
	for _, tt := range []struct {
		call string
		back bool // before controld looks
	}{
		{"Pooler.Drain", false},
		{"Pooler.Pause", true},
		{"Pooler.Pause", false},
		{"Volumes.WriteOrder.none", true},
		{"Session.Promote", false},
	} {
		t.Run(fmt.Sprintf("%s, back before controld looks %t", tt.call, tt.back), func(t *testing.T) {
			w := c.writers(probe.Config{})
			defer w.Stop()
			answer := c.hang(t, tt.call, "/failover", nil)
			c.crash("pgbouncer")
			if tt.back {
				c.poolerBack(t)
			}
			c.docker("kill", "-s", "CONT", c.Container("controld"))
			a := <-answer
			t.Logf("POST /failover: %d %v", a.Status, a.JSON()["detail"])
			c.settle(t)
			verdict(t, c, w)
		})
	}
}

// poolerKilled kills PgBouncer while nothing is going on. It is back by itself, with the
// configuration that it had.
func poolerKilled(t *testing.T, c *cluster) {
	before, err := c.entries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := c.writers(probe.Config{})
	defer w.Stop()
	c.crash("pgbouncer")
	c.poolerBack(t)
	c.settle(t)
	verdict(t, c, w)
	if after, err := c.entries(t.Context()); err != nil || !maps.Equal(before, after) {
		t.Errorf("the entries are %+v (%v), were %+v", after, err, before)
	}
}

// askedAgain: a client asks again at once, because controld died under its first request. That
// starts no second failover beside the open one. The candidate is frozen, so that finding out
// whether it leads takes a login's time.
func askedAgain(t *testing.T, c *cluster) {
	_, standby := c.roles()
	w := c.writers(probe.Config{})
	defer w.Stop()
	start := c.staysDown("controld")
	c.arm("Session.Promote", "before")
	if _, err := c.Call(t.Context(), "admin", "POST", "/failover", nil); err == nil {
		t.Fatal("controld did not die")
	}
	c.freeze(standby)
	start()
	var a testcluster.Answer
	err := testcluster.Poll(t.Context(), settleLimit, 5*time.Millisecond, func(ctx context.Context) (err error) {
		a, err = c.Call(ctx, "admin", "POST", "/failover", nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if a.Status != 409 || a.JSON()["type"] != "/problems/operation-running" {
		t.Errorf("POST /failover: %d %v, want it refused while the first is open", a.Status, a.JSON()["detail"])
	}
	c.settle(t)
	verdict(t, c, w)
}

// looksWhileItResumes: what was left open may take long to end, and /health
// must not go stale over it.
func looksWhileItResumes(t *testing.T, c *cluster) {
	_, standby := c.roles()
	c.hang(t, "Volumes.WriteOrder.standby", "/nodes/"+standby+"/rejoin", map[string]any{"method": "basebackup"})
	c.freeze(standby) // its copy does not end
	c.kill("controld")
	c.docker("start", c.Container("controld"))
	err := testcluster.Poll(t.Context(), 20*time.Second, 50*time.Millisecond, func(ctx context.Context) error {
		open, err := c.operations(ctx, "state=running")
		if err == nil && len(open) != 1 {
			err = fmt.Errorf("%d open operations, want the rejoin", len(open))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c.keepsLooking(t)
	if open, err := c.operations(t.Context(), "state=running"); err != nil || len(open) != 1 {
		t.Errorf("the rejoin has ended (%v %v): nothing was shown", open, err)
	}
	c.docker("unpause", c.Container(standby))
	c.settle(t)
}

// hang sends a request and returns when the call in it has stopped controld,
// with the request's answer to come.
func (c *cluster) hang(t *testing.T, call, path string, body any) <-chan testcluster.Answer {
	t.Helper()
	fired := c.fired()
	c.arm(call, "hang")
	answer := make(chan testcluster.Answer, 1)
	go func() {
		a, _ := c.Call(t.Context(), "admin", "POST", path, body)
		answer <- a
	}()
	c.awaitHang(t, fired)
	return answer
}

// awaitHang returns when controld is stopped, by one more failpoint than fired.
func (c *cluster) awaitHang(t *testing.T, fired int) {
	t.Helper()
	pid := c.docker("inspect", "-f", "{{.State.Pid}}", c.Container("controld"))
	err := testcluster.Poll(t.Context(), 30*time.Second, 20*time.Millisecond, func(context.Context) error {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if err == nil && !bytes.Contains(status, []byte("T (stopped)")) {
			err = errors.New("controld is not stopped")
		}
		return err
	})
	if err == nil && c.fired() == fired {
		err = errors.New("no failpoint has come")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// crash ends a service's own process. docker kill of its container would count as a stop by hand,
// after which Docker starts nothing again.
func (c *cluster) crash(service string) {
	c.t.Helper()
	c.killProcesses(service, service)
}

// killProcesses kills the processes of a service's container that have this name.
func (c *cluster) killProcesses(service, name string) {
	c.t.Helper()
	// The shell may end with the container, so its exit code says nothing.
	_, _ = c.Docker(c.t.Context(), "exec", c.Container(service), "sh", "-c",
		`for p in /proc/[0-9]*; do if [ "$(cat $p/comm)" = `+name+` ]; then kill -9 ${p#/proc/}; fi; done`)
}

// staysDown keeps the engine from starting a service that ends; the returned
// function starts it.
func (c *cluster) staysDown(service string) (start func()) {
	c.t.Helper()
	c.docker("update", "--restart=no", c.Container(service))
	return func() {
		c.t.Helper()
		c.docker("update", "--restart=always", c.Container(service))
		c.docker("start", c.Container(service))
	}
}

// poolerBack waits until the pooler answers again.
func (c *cluster) poolerBack(t *testing.T) {
	t.Helper()
	err := testcluster.Poll(t.Context(), 20*time.Second, 50*time.Millisecond, func(ctx context.Context) error {
		_, err := c.entries(ctx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// written waits until a commit was acknowledged after since.
func written(t *testing.T, w *probe.Prober, since time.Time, limit time.Duration) {
	t.Helper()
	bounded, cancel := context.WithDeadline(t.Context(), since.Add(limit))
	defer cancel()
	if err := w.WaitCommit(bounded, since); err != nil {
		t.Errorf("no write gets through within %s: %v", limit, err)
	}
	t.Logf("clients write again after %s", time.Since(since).Round(time.Millisecond))
}

// answered expects that a client of the pooler gets an answer, be it an error.
func answered(t *testing.T, c *cluster, until time.Time) {
	t.Helper()
	bounded, cancel := context.WithDeadline(t.Context(), until)
	defer cancel()
	conn, err := pgx.Connect(bounded, c.DatabaseURL)
	if err == nil {
		_, err = conn.Exec(bounded, "create temporary table answered ()")
		_ = conn.Close(context.WithoutCancel(bounded))
	}
	if bounded.Err() != nil {
		t.Errorf("a client of the pooler got no answer: %v", err)
	}
	t.Logf("a client of the pooler was told %v, %s before the limit", err, time.Until(until).Round(time.Millisecond))
}

// kills is a cluster in which controld is killed again and again.
type kills struct {
	*cluster
	crashes int
}

// run lets do happen under load with x set, and holds the world against what
// must be after it.
func (k *kills) run(t *testing.T, x cut, do func(*testing.T)) {
	t.Helper()
	held := t.Run(x.String(), func(t *testing.T) {
		k.refresh()
		w := k.writers(probe.Config{})
		defer w.Stop()
		fired := k.fired()
		call, count, _ := strings.Cut(x.call, " ")
		k.arm(call, x.when+" "+count)
		began := time.Now()
		do(t)
		took := k.settle(t)
		if k.fired() == fired {
			t.Errorf("%s never came", x)
		}
		if x.when != "lost" {
			k.crashes++
		}
		verdict(t, k.cluster, w)
		t.Logf("settled %s after the request, %s after its answer", time.Since(began).Round(time.Millisecond), took.Round(time.Millisecond))
	})
	if !held {
		t.FailNow() // what follows would begin in a broken world
	}
}

// refresh starts the container by hand. Docker waits longer and longer before it starts it again
// by itself, and begins anew after a start by hand.
func (k *kills) refresh() {
	k.t.Helper()
	if k.crashes < 4 {
		return
	}
	k.crashes = 0
	k.docker("restart", k.Container("controld"))
	k.waitOK(settleLimit)
}

// fired counts the failpoints that have come so far.
func (c *cluster) fired() int {
	c.t.Helper()
	return strings.Count(c.docker("logs", c.Container("controld")), "failpoint: ")
}

// move sends a request that may get no answer. It sends it once more where the first was taken
// back and nobody leads.
func (k *kills) move(t *testing.T, path string, body any) {
	t.Helper()
	a, err := k.Call(t.Context(), "admin", "POST", path, body)
	if err != nil {
		t.Logf("POST %s: %v", path, err)
		return
	}
	t.Logf("POST %s: %d %s %v", path, a.Status, a.JSON()["state"], a.JSON()["detail"])
	if a.Status != 500 {
		return
	}
	// One that is retried leads soon.
	err = testcluster.Poll(t.Context(), 10*time.Second, 100*time.Millisecond, func(ctx context.Context) error {
		_, _, err := k.leader(ctx)
		return err
	})
	if err == nil {
		return
	}
	if a, err = k.Call(t.Context(), "admin", "POST", path, body); err != nil || a.Status != 200 {
		t.Errorf("POST %s again: %v %d %s", path, err, a.Status, a.Body)
	}
}

// settle waits until the world is in order, and returns how long that took.
func (c *cluster) settle(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	var last error // the one that says what is missing, and not that time is up
	err := testcluster.Poll(t.Context(), settleLimit, 100*time.Millisecond, func(ctx context.Context) error {
		err := c.inOrder(ctx)
		if ctx.Err() == nil {
			last = err
		}
		return err
	})
	if err != nil {
		t.Fatalf("not in order within %s: %v", settleLimit, last)
	}
	return time.Since(began)
}

// verdict holds what clients were told against both nodes, once they can write.
func verdict(t *testing.T, c *cluster, w *probe.Prober) *probe.Report {
	t.Helper()
	bounded, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.WaitCommit(bounded, time.Now()); err != nil {
		t.Errorf("no write gets through the pooler: %v", err)
	}
	r := w.Stop()
	primary, standby, err := c.leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.caughtUp(t, primary, standby)
	for _, n := range []string{primary, standby} {
		v, err := r.Check(t.Context(), c.NodeDSN(n, "app", "imdb"))
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Err(); err != nil {
			t.Errorf("%s: %v", n, err)
		}
	}
	s := r.All()
	t.Logf("%s leads; outage %s, %d acknowledged, %d failed", primary, s.Outage.Length().Round(time.Millisecond), s.Acked, s.Failed)
	return r
}

// caughtUp waits until the standby has replayed what the primary has.
func (c *cluster) caughtUp(t *testing.T, primary, standby string) {
	t.Helper()
	var end string
	if err := c.query(t.Context(), primary, "select pg_current_wal_lsn()::text", &end); err != nil {
		t.Fatal(err)
	}
	err := testcluster.Poll(t.Context(), 20*time.Second, 50*time.Millisecond, func(ctx context.Context) error {
		var there bool
		if err := c.query(ctx, standby, "select pg_last_wal_replay_lsn() >= '"+end+"'", &there); err != nil {
			return err
		}
		if !there {
			return fmt.Errorf("%s has not replayed %s", standby, end)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// query asks a node itself for one row.
func (c *cluster) query(ctx context.Context, node, sql string, into ...any) error {
	return queryAt(ctx, c.NodeDSN(node, "controld", "imdb"), sql, into...)
}

func queryAt(ctx context.Context, dsn, sql string, into ...any) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return conn.QueryRow(ctx, sql).Scan(into...)
}

// leader asks both nodes which of them leads, and never controld.
func (c *cluster) leader(ctx context.Context) (primary, standby string, err error) {
	for _, n := range testcluster.Nodes {
		var recovery bool
		err := c.query(ctx, n, "select pg_is_in_recovery()", &recovery)
		switch {
		case err != nil:
			return "", "", fmt.Errorf("%s: %w", n, err)
		case recovery:
			standby = n
		case primary != "":
			return "", "", errors.New("two nodes lead")
		default:
			primary = n
		}
	}
	if primary == "" {
		return "", "", errors.New("no node leads")
	}
	return primary, standby, nil
}

// inOrder looks at the world: what controld says itself, which is the cheapest question,
// then both nodes, the pooler and the lease.
func (c *cluster) inOrder(ctx context.Context) error {
	if err := c.controldInOrder(ctx); err != nil {
		return err
	}
	primary, standby, err := c.leader(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(
		c.primaryInOrder(ctx, primary, standby),
		c.standbyInOrder(ctx, standby),
		c.poolerInOrder(ctx, primary, standby),
	); err != nil {
		return err
	}
	return c.noLease(ctx)
}

const settings = `current_setting('archive_command') || ' ' || current_setting('restore_command') || ' ' ||
	current_setting('synchronous_standby_names') || ' ' || current_setting('autovacuum')`

// ownSlots are the slots but for that which keeps WAL for the archive, on every node.
const ownSlots = "(select * from pg_replication_slots where slot_name <> '" + backup.HoldSlot + "') own"

func (c *cluster) primaryInOrder(ctx context.Context, primary, standby string) error {
	var set string
	var streams, slots int
	err := c.query(ctx, primary, `select `+settings+`,
		(select count(*) from pg_stat_replication where application_name = '`+standby+`' and state = 'streaming'),
		(select count(*) from `+ownSlots+` where not (active and slot_name = '`+standby+`'))`, &set, &streams, &slots)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", primary, err)
	case set != archive.PushCommand("main")+"   on":
		return fmt.Errorf("%s leads with the settings %q", primary, set)
	case streams != 1:
		return fmt.Errorf("%s does not stream from %s", standby, primary)
	case slots != 0:
		return fmt.Errorf("%s has %d slots that nobody uses", primary, slots)
	}
	return nil
}

func (c *cluster) standbyInOrder(ctx context.Context, standby string) error {
	var set string
	var slots int
	err := c.query(ctx, standby, `select `+settings+`, (select count(*) from `+ownSlots+`)`, &set, &slots)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", standby, err)
	case set != "   on":
		return fmt.Errorf("%s follows with the settings %q", standby, set)
	case slots != 0:
		return fmt.Errorf("%s is in recovery and has %d slots", standby, slots)
	}
	return nil
}

func (c *cluster) poolerInOrder(ctx context.Context, primary, standby string) error {
	entries, err := c.entries(ctx)
	if err != nil {
		return err
	}
	for name, node := range map[string]string{"imdb": primary, "imdb_ro": standby} {
		address, err := c.address(ctx, node)
		if err != nil {
			return err
		}
		want := entry{host: address, poolSize: "20", paused: "0"}
		if got := entries[name]; got != want {
			return fmt.Errorf("the pooler's %s is %+v, should be %+v", name, got, want)
		}
	}
	for name, e := range entries {
		if e.paused != "0" {
			return fmt.Errorf("the pooler's %s is paused", name)
		}
	}
	return nil
}

// An entry is what the pooler says of one of its databases.
type entry struct{ host, poolSize, paused string }

// entries asks the pooler's console.
func (c *cluster) entries(ctx context.Context) (map[string]entry, error) {
	conn, err := pgconn.Connect(ctx, c.PoolerDSN("controld", "pgbouncer"))
	if err != nil {
		return nil, fmt.Errorf("pooler: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	results, err := conn.Exec(ctx, "SHOW DATABASES").ReadAll()
	if err != nil {
		return nil, fmt.Errorf("pooler: SHOW DATABASES: %w", err)
	}
	r := results[0]
	at := func(name string) int {
		return slices.IndexFunc(r.FieldDescriptions, func(f pgconn.FieldDescription) bool { return f.Name == name })
	}
	out := map[string]entry{}
	for _, row := range r.Rows {
		out[string(row[at("name")])] = entry{string(row[at("host")]), string(row[at("pool_size")]), string(row[at("paused")])}
	}
	return out, nil
}

// address is the node's on the cluster's network.
func (c *cluster) address(ctx context.Context, node string) (string, error) {
	return c.Docker(ctx, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", c.Container(node))
}

func (c *cluster) noLease(ctx context.Context) error {
	out, err := c.Docker(ctx, "exec", c.Container("controld"), "sh", "-c", "test ! -e /pgbouncer/lease || cat /pgbouncer/lease")
	if err == nil && out != "" {
		err = fmt.Errorf("a lease is left: %s", out)
	}
	return err
}

func (c *cluster) controldInOrder(ctx context.Context) error {
	for _, state := range []string{"running", "incomplete"} {
		open, err := c.operations(ctx, "state="+state)
		if err != nil {
			return err
		}
		// One that has left nobody who leads is incomplete too, and has ended.
		if open = slices.DeleteFunc(open, func(op operation) bool { return !op.Ended.IsZero() }); len(open) > 0 {
			return fmt.Errorf("open operations: %+v", open)
		}
	}
	a, err := c.Call(ctx, "", "GET", "/health", nil)
	if err != nil {
		return err
	}
	if a.JSON()["status"] != "ok" {
		return fmt.Errorf("health: %s", a.Body)
	}
	return nil
}

// operations asks the audit, newest first.
func (c *cluster) operations(ctx context.Context, filter string) ([]operation, error) {
	a, err := c.Call(ctx, "viewer", "GET", "/operations?"+filter, nil)
	if err != nil {
		return nil, err
	}
	var list struct {
		Operations []operation `json:"operations"`
	}
	if err := json.Unmarshal(a.Body, &list); err != nil || a.Status != 200 {
		return nil, fmt.Errorf("GET /operations: %d %s", a.Status, a.Body)
	}
	return list.Operations, nil
}
