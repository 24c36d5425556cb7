package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"controld/internal/probe"
	"controld/internal/testcluster"
)

// pauseDeadline is how long PAUSE may wait for transactions in these tests.
const pauseDeadline = 2 * time.Second

// TestPlannedFailoverIsUndone: whatever fails before the point of no return is
// taken back, the old primary serves, nothing is lost, and the next move works.
func TestPlannedFailoverIsUndone(t *testing.T) {
	t.Parallel()
	c := upFailpoint(t, "CONTROLD_FAILOVER_PAUSE_DEADLINE="+pauseDeadline.String())
	for _, tt := range []struct {
		name string
		try  func(*cluster)
	}{
		{"a transaction that began after the prechecks", lateTransaction},
		{"the candidate killed in the pause", func(c *cluster) {
			lostCandidate(c, func(node string) (back func()) {
				c.kill(node)
				return func() {}
			})
		}},
		{"the candidate's container frozen in the pause", func(c *cluster) {
			lostCandidate(c, func(node string) (back func()) { return freezeContainer(c, node) })
		}},
		{"the candidate's processes stopped in the pause", func(c *cluster) {
			lostCandidate(c, func(node string) (back func()) { return stopProcesses(c, node) })
		}},
		{"cancelled", cancelled},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.try(c.in(t)) })
	}
}

// lateTransaction: the transaction that blocks PAUSE is named, goes on, and commits. The other
// clients are held for the deadline at the most, and nothing has changed.
func lateTransaction(c *cluster) {
	t := c.t
	primary, _ := c.roles()
	c.psql(primary, "create table if not exists late (n int); alter table late owner to app")
	late := c.connect(c.DatabaseURL + "&application_name=late")
	before := c.picture()
	w := c.writers(probe.Config{})
	c.arm("Session.Checkpoint", "hang") // the prechecks are over by then
	asked := c.ask("/failover", map[string]any{"mode": "planned"})
	c.waitHung()
	// A transaction on the server itself is not the culprit: PAUSE does not wait for it.
	direct := c.connect(c.NodeDSN(primary, "app", "imdb"))
	if _, err := direct.Exec(t.Context(), "begin"); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := late.Exec(t.Context(), "begin; insert into late values (1)"); err != nil {
		t.Fatal(err)
	}
	if err := late.QueryRow(t.Context(), "select pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	c.goOn()
	p, op := asked.problem(t, 409, "long-transaction")
	if p.Numbers["pid"] != float64(pid) || p.Numbers["user"] != "app" || p.Numbers["application"] != "late" || p.Numbers["age_ms"] == nil {
		t.Errorf("the refusal's numbers are %v, the transaction is of process %d", p.Numbers, pid)
	}
	for _, part := range []string{strconv.Itoa(pid), "app", "late"} {
		if !strings.Contains(p.Detail, part) {
			t.Errorf("the refusal does not say %s: %s", part, p.Detail)
		}
	}
	if op.State != "refused" || stepOf(op, "pause pooler").State == "pending" {
		t.Errorf("operation %+v", op)
	}
	if took := time.Duration(stepOf(op, "pause pooler").DurationMS) * time.Millisecond; took > pauseDeadline+2*time.Second {
		t.Errorf("PAUSE was waited for for %s", took)
	}
	for _, conn := range []*pgx.Conn{late, direct} {
		if _, err := conn.Exec(t.Context(), "commit"); err != nil {
			t.Errorf("the transaction did not commit: %v", err)
		}
	}
	if got := c.psql(primary, "select count(*) from late"); got != "1" {
		t.Errorf("%s rows of the transaction", got)
	}
	c.goneOn(w, primary)
	c.unchanged(before)
}

// lostCandidate takes the candidate away while the clients are held: the old
// primary serves again within 10 s. lose returns how to give the candidate back.
func lostCandidate(c *cluster, lose func(node string) (back func())) {
	t := c.t
	c.waitOK(time.Minute)
	before := c.picture()
	primary, standby := c.roles()
	w := c.writers(probe.Config{})
	c.arm("Pooler.Pause", "hang")
	asked := c.ask("/failover", map[string]any{"mode": "planned"})
	c.waitHung()
	back := lose(standby)
	c.goOn()
	mark := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.WaitCommit(ctx, mark); err != nil {
		t.Errorf("10 s after the candidate was lost: %v", err)
	}
	t.Logf("writes flow again after %s", time.Since(mark))
	_, op := asked.problem(t, 500, "undone")
	if op.State != "undone" || stepOf(op, "promote").State != "pending" {
		t.Errorf("operation %+v", op)
	}
	// On a busy machine one observation may miss its deadline.
	c.until(10*time.Second, func() error {
		if now := c.topology().Primary; now != primary {
			return fmt.Errorf("%q leads, before it was %s", now, primary)
		}
		return nil
	})
	c.goneOn(w, primary)
	back()
	c.waitOK(time.Minute)
	c.restored(before)
	if op := c.move(); op.Result.To != standby {
		t.Errorf("the failover afterwards: %+v", op)
	}
}

// move asks for a failover, again while supervision is mending something.
func (c *cluster) move() (op operation) {
	c.t.Helper()
	c.until(time.Minute, func() error {
		a := c.call("admin", "POST", "/failover", nil)
		if p := decode(c.t, a); p.Type == "/problems/operation-running" {
			return fmt.Errorf("%s", p.Detail)
		}
		op = operation{}
		if err := json.Unmarshal(a.Body, &op); err != nil || a.Status != 200 || op.State != "succeeded" {
			c.t.Fatalf("POST /failover: %d %s", a.Status, a.Body)
		}
		return nil
	})
	return op
}

// cancelled: before the point of no return a cancel takes everything back.
func cancelled(c *cluster) {
	t := c.t
	c.waitOK(time.Minute)
	before := c.picture()
	primary, _ := c.roles()
	release := c.openTransaction()
	w := c.writers(probe.Config{})
	asked := c.ask("/failover", map[string]any{"mode": "planned"})
	id := c.reaches("pause pooler")
	a := c.call("operator", "POST", "/operations/"+id+"/cancel", nil)
	var op operation
	if err := json.Unmarshal(a.Body, &op); err != nil || a.Status != 200 || op.State != "cancelled" {
		t.Errorf("cancel: %d %s", a.Status, a.Body)
	}
	if _, op := asked.problem(t, 409, "cancelled"); op.ID != id {
		t.Errorf("whoever asked is told of operation %s", op.ID)
	}
	if a := c.call("operator", "POST", "/operations/"+id+"/cancel", nil); a.Status != 409 {
		t.Errorf("cancel of an ended operation: %d %s", a.Status, a.Body)
	}
	release()
	c.goneOn(w, primary)
	c.unchanged(before)
}

// TestRequests: what callers may rely on who ask twice, at the same time as another, without
// waiting, or who leave.
func TestRequests(t *testing.T) {
	t.Parallel()
	c := up(t, "CONTROLD_FAILOVER_PAUSE_DEADLINE=5s")
	for _, tt := range []struct {
		name string
		try  func(*cluster)
	}{
		{"one at a time", oneAtATime},
		{"idempotency key", idempotencyKey},
		{"asynchronous, with events", asynchronous},
		{"a client that leaves", clientThatLeaves},
		{"redis down", redisDown},
		{"slow archive", slowArchive},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.try(c.in(t)) })
	}
}

// oneAtATime: the second is told which one runs, and the audit has both.
func oneAtATime(c *cluster) {
	t := c.t
	release := c.openTransaction()
	first := c.ask("/failover", map[string]any{"reason": "the first"})
	id := c.reaches("pause pooler")
	a := c.call("operator", "POST", "/failback", map[string]any{"reason": "the second"})
	p := decode(t, a)
	location := a.Header.Get("Location")
	if a.Status != 409 || p.Type != "/problems/operation-running" || !strings.Contains(p.Detail, id) || location != "/operations/"+id {
		t.Errorf("the second: %d %s, Location %s, want the name of %s", a.Status, a.Body, location, id)
	}
	release()
	if op := first.succeeded(t); op.ID != id {
		t.Errorf("the first was operation %s, its answer tells of %s", id, op.ID)
	}
	var list struct{ Operations []operation }
	if err := json.Unmarshal(c.call("viewer", "GET", "/operations?limit=5", nil).Body, &list); err != nil {
		t.Fatal(err)
	}
	audit := map[string]string{}
	for _, op := range list.Operations {
		audit[op.Reason] = op.Kind + " " + op.State + " " + op.By
	}
	if audit["the first"] != "failover succeeded admin" || audit["the second"] != "failback refused operator" {
		t.Errorf("audit: %v", audit)
	}
}

// idempotencyKey: a repeated request joins the first, another body is an error.
func idempotencyKey(c *cluster) {
	t := c.t
	c.waitOK(time.Minute)
	timeline := c.topology().Nodes[0].Timeline
	key := []string{"Idempotency-Key", "e2e-1"}
	body := map[string]any{"reason": "once"}
	release := c.openTransaction()
	first := c.ask("/failover", body, key...)
	id := c.reaches("pause pooler")
	second := c.ask("/failover", body, key...)
	a := c.call("admin", "POST", "/failover", map[string]any{"reason": "another"}, key...)
	if p := decode(t, a); a.Status != 422 || p.Type != "/problems/idempotency-key-reused" {
		t.Errorf("another body: %d %s", a.Status, a.Body)
	}
	release()
	if one, two := first.succeeded(t), second.succeeded(t); one.ID != id || two.ID != id {
		t.Errorf("operation %s, answers of %s and %s", id, one.ID, two.ID)
	}
	c.waitOK(time.Minute)
	a = c.call("admin", "POST", "/failover", body, key...)
	var late operation
	if err := json.Unmarshal(a.Body, &late); err != nil || a.Status != 200 || late.ID != id {
		t.Errorf("the same key after the end: %d %s", a.Status, a.Body)
	}
	if now := c.topology().Nodes[0].Timeline; now != timeline+1 {
		t.Errorf("timeline %d after %d: more than one failover", now, timeline)
	}
}

// asynchronous: 202 at once, and the events tell of each step in order.
func asynchronous(c *cluster) {
	t := c.t
	c.waitOK(time.Minute)
	release := c.openTransaction() // it ends when the stream is read
	dry := c.dryRun("/failover", nil)
	a := c.call("admin", "POST", "/failover", nil, "Prefer", "respond-async")
	var op operation
	if err := json.Unmarshal(a.Body, &op); err != nil || a.Status != 202 ||
		a.Header.Get("Location") != "/operations/"+op.ID || a.Header.Get("Preference-Applied") != "respond-async" {
		t.Fatalf("%d %v %s", a.Status, a.Header, a.Body)
	}
	var begun, done []string
	var last operation
	c.events(op.ID, func(kind, name string, now operation) {
		if last.ID == "" {
			release()
		}
		last = now
		for _, s := range now.Steps {
			if s.State != "pending" && !slices.Contains(begun, s.Name) {
				begun = append(begun, s.Name)
			}
		}
		if kind == "step" && stepOf(now, name).State == "done" {
			done = append(done, name)
		}
	})
	if last.State != "succeeded" || !slices.Equal(begun, dry.Steps) {
		t.Errorf("%s; the events tell of %q, the dry run of %q", last.State, begun, dry.Steps)
	}
	at := slices.Index(dry.Steps, "pause pooler") // what was done before the stream began shows in its first event
	if at < 0 || !slices.Equal(done[max(0, len(done)-len(dry.Steps)+at):], dry.Steps[at:]) {
		t.Errorf("the ends of the steps: %q, of %q", done, dry.Steps)
	}
}

// clientThatLeaves changes nothing by it.
func clientThatLeaves(c *cluster) {
	t := c.t
	c.waitOK(time.Minute)
	_, standby := c.roles()
	release := c.openTransaction()
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := c.Call(ctx, "admin", "POST", "/failover", map[string]any{"reason": "left alone"})
		left <- err
	}()
	id := c.reaches("pause pooler")
	leave()
	if err := <-left; err == nil {
		t.Fatal("the request was answered before its client left")
	}
	release()
	c.until(time.Minute, func() error {
		if op := c.operation(id); op.State != "succeeded" || op.Result.To != standby {
			return fmt.Errorf("operation %+v", op)
		}
		return nil
	})
}

// redisDown: the failover does not need it.
func redisDown(c *cluster) {
	t := c.t
	c.waitOK(time.Minute)
	c.docker("stop", "-t", "1", c.Container("redis"))
	c.until(10*time.Second, func() error {
		if status, h := c.health(); status != "degraded" || h["reason"] != "redis-down" {
			return fmt.Errorf("health: %v", h)
		}
		return nil
	})
	w := c.writers(probe.Config{})
	op := c.run("/failover", map[string]any{"mode": "planned"})
	c.goneOn(w, op.Result.To)
	if status, h := c.health(); status != "degraded" {
		t.Errorf("health: %v", h)
	}
	c.docker("start", c.Container("redis"))
	c.waitOK(time.Minute)
}

// slowArchive: segments that wait for an archive command of 12 s do not
// lengthen the pause, are not lost, and are archived by the node that has them.
func slowArchive(c *cluster) {
	t := c.t
	c.waitOK(time.Minute)
	primary, standby := c.roles()
	c.docker("exec", c.Container(primary), "sh", "-c",
		`cd /usr/local/bin && mv pgbackrest quick &&
			printf '#!/bin/sh\nsleep 12\nexec /usr/bin/pgbackrest "$@"\n' >pgbackrest &&
			chmod 755 pgbackrest`)
	const waiting = "select string_agg(name, ' ' order by name) from pg_ls_archive_statusdir() where name like '%.ready'"
	w := c.writers(probe.Config{})
	c.until(10*time.Second, func() error {
		if ready := strings.Fields(c.psql(primary, "select pg_switch_wal()::text where false; "+waiting)); len(ready) < 2 {
			c.psql(primary, "select pg_switch_wal()")
			return fmt.Errorf("waiting: %v", ready)
		}
		return nil
	})
	ready := strings.Fields(c.psql(primary, waiting))
	op := c.run("/failover", map[string]any{"mode": "planned"})
	c.goneOn(w, standby)
	if op.Result.PauseMS > 3000 {
		t.Errorf("a pause of %.0f ms", op.Result.PauseMS)
	}
	c.waitOK(time.Minute)
	c.docker("exec", c.Container(primary), "mv", "/usr/local/bin/quick", "/usr/local/bin/pgbackrest")
	t.Logf("pause %.0f ms, old primary back after %.0f ms with %v", op.Result.PauseMS, op.Result.RejoinMS, ready)
	c.run("/failover", map[string]any{"mode": "planned"})
	c.until(30*time.Second, func() error {
		left := c.psql(primary, waiting)
		for _, name := range ready {
			if strings.Contains(left, name) {
				return fmt.Errorf("still waiting: %s", left)
			}
		}
		return nil
	})
	for _, name := range ready {
		done := strings.TrimSuffix(name, ".ready") + ".done"
		archived := c.psql(primary, "select count(*) from pg_ls_archive_statusdir() where name = '"+done+"'")
		if archived != "1" {
			t.Errorf("%s was not archived", name)
		}
	}
}

// TestWrongPrimaries: two nodes that lead, no node, and nothing but standbys are recognised and
// named. The answer says what to do, and doing it works.
func TestWrongPrimaries(t *testing.T) {
	t.Parallel()
	c := up(t)
	c.psql("postgres_master", "create table kept (n int); insert into kept values (1)")
	t.Run("none, started in place", func(t *testing.T) {
		c := c.in(t)
		primary, _ := c.roles()
		c.kill(primary)
		c.advised("down", "no-primary", "controld start "+primary, "controld failover")
		c.run("/nodes/"+primary+"/start", nil)
		c.waitOK(time.Minute)
		c.leads(primary)
	})
	t.Run("none, started by hand and then by controld", func(t *testing.T) {
		c := c.in(t)
		primary, _ := c.roles()
		for range 3 {
			c.docker("stop", c.Container(primary))
			c.docker("start", c.Container(primary)) // it waits for an order
			c.run("/nodes/"+primary+"/start", nil)
			c.waitOK(time.Minute)
		}
		c.leads(primary)
	})
	t.Run("none, moved", func(t *testing.T) {
		c := c.in(t)
		primary, standby := c.roles()
		c.docker("stop", c.Container(primary))
		c.advised("down", "no-primary", "controld start "+primary, "controld failover")
		c.run("/failover", nil)
		c.waitOK(time.Minute)
		c.leads(standby)
	})
	t.Run("two", func(t *testing.T) {
		c := c.in(t)
		primary, standby := c.roles()
		c.psql(standby, "select pg_promote()")
		c.advised("down", "two-primaries", "docker kill -s KILL "+c.Container(standby), "controld rejoin "+standby)
		c.refused("/failover", nil, 409, "two-primaries")
		c.psql(primary, "insert into kept values (2)")
		c.kill(standby)
		c.rejoin(standby)
		c.waitOK(time.Minute)
		c.sameData()
		c.leads(primary)
	})
	t.Run("all in recovery, started in place", func(t *testing.T) {
		c := c.in(t)
		primary, _ := c.roles()
		c.makeStandby(primary)
		c.advised("down", "all-in-recovery", "controld start "+primary, "controld failover --target")
		c.run("/nodes/"+primary+"/start", nil)
		c.waitOK(time.Minute)
		c.leads(primary)
	})
	t.Run("all in recovery, moved", func(t *testing.T) {
		c := c.in(t)
		primary, standby := c.roles()
		c.makeStandby(primary)
		c.advised("down", "all-in-recovery", "controld start "+primary, "controld failover --target")
		c.run("/failover", map[string]any{"target": standby})
		c.waitOK(time.Minute)
		c.leads(standby)
	})
}

// advised waits until the health says that, and advises this.
func (c *cluster) advised(status, reason string, advice ...string) {
	c.t.Helper()
	c.until(10*time.Second, func() error {
		now, h := c.health()
		if now != status || h["reason"] != reason {
			return fmt.Errorf("health: %v", h)
		}
		for _, a := range advice {
			if do := fmt.Sprint(h["do"]); !strings.Contains(do, a) {
				return fmt.Errorf("the advice is %q, want %q", do, a)
			}
		}
		return nil
	})
}

// leads: the node leads, the clients reach it, and what was written is there.
func (c *cluster) leads(node string) {
	c.t.Helper()
	c.until(10*time.Second, func() error {
		if primary := c.topology().Primary; primary != node {
			return fmt.Errorf("%q leads, want %s", primary, node)
		}
		return nil
	})
	conn := c.connect(c.DatabaseURL)
	var recovering bool
	if err := conn.QueryRow(c.t.Context(), "select pg_is_in_recovery()").Scan(&recovering); err != nil || recovering {
		c.t.Errorf("through the pooler: in recovery %v, %v", recovering, err)
	}
	if got := c.psql(node, "select count(*) > 0 from kept"); got != "t" {
		c.t.Errorf("%s lost its rows", node)
	}
}

// rejoin asks for it as a person does, again when something else runs.
func (c *cluster) rejoin(node string) {
	c.t.Helper()
	c.until(time.Minute, func() error {
		a := c.call("admin", "POST", "/nodes/"+node+"/rejoin", nil)
		if p := decode(c.t, a); p.Type == "/problems/operation-running" {
			return fmt.Errorf("%s", p.Detail)
		}
		if a.Status != 200 {
			c.t.Fatalf("rejoin: %d %s", a.Status, a.Body)
		}
		return nil
	})
}

// makeStandby makes the primary a standby past controld: nobody leads then.
func (c *cluster) makeStandby(node string) {
	c.t.Helper()
	dir := "/orders/node1"
	if node == testcluster.Nodes[1] {
		dir = "/orders/node2"
	}
	c.docker("exec", c.Container("controld"), "sh", "-c",
		`cd `+dir+` && epoch=$(cat /orders/*/order.json | sed -n 's/.*"epoch": \([0-9]*\).*/\1/p' | sort -n | tail -1) &&
		echo "{\"epoch\": $((epoch+1)), \"role\": \"standby\", \"action\": \"none\"}" >x && mv x order.json`)
}

// waitHung waits until the armed failpoint has stopped controld.
func (c *cluster) waitHung() {
	c.t.Helper()
	pid := c.docker("inspect", "-f", "{{.State.Pid}}", c.Container("controld"))
	c.until(20*time.Second, func() error {
		// The container shares the host's pids.
		_, err := c.Docker(c.t.Context(), "exec", c.Container("controld"), "sh", "-c",
			"test ! -e /var/lib/controld/failpoint && grep -q '^State:.T' /proc/"+pid+"/status")
		return err
	})
}

// goOn lets a controld that was stopped continue.
func (c *cluster) goOn() {
	c.t.Helper()
	c.docker("kill", "-s", "CONT", c.Container("controld"))
}

// stopProcesses freezes every process of a node, which the engine does not know.
func stopProcesses(c *cluster, node string) (back func()) {
	rows := strings.Split(c.docker("top", c.Container(node), "-eo", "pid"), "\n")
	pids := strings.Join(rows[1:], " ")
	signal := func(name string) {
		// From the container that shares the host's pids and may kill.
		c.docker("exec", c.Container("controld"), "sh", "-c", "for p in "+pids+"; do kill -"+name+" $p; done; true")
	}
	signal("STOP")
	return func() { signal("CONT") }
}

// openTransaction holds a transaction open through the pooler, until it is released.
func (c *cluster) openTransaction() (release func()) {
	c.t.Helper()
	conn := c.connect(c.DatabaseURL)
	if _, err := conn.Exec(c.t.Context(), "begin; select pg_current_xact_id()"); err != nil {
		c.t.Fatal(err)
	}
	return func() {
		if _, err := conn.Exec(c.t.Context(), "commit"); err != nil {
			c.t.Errorf("the open transaction did not commit: %v", err)
		}
		_ = conn.Close(context.Background())
	}
}

// goneOn stops the writers after some more commits: none failed, and nothing
// is missing or doubled on the node that leads.
func (c *cluster) goneOn(w *probe.Prober, primary string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	if err := w.WaitCommit(ctx, time.Now()); err != nil {
		c.t.Error(err)
	}
	r := w.Stop()
	if s := r.All(); s.Failed > 0 || s.FailedConnects > 0 {
		c.t.Errorf("%d failed transactions, %d failed connects: %v %v", s.Failed, s.FailedConnects, r.Failures, r.FailedConnects)
	}
	c.check(r, primary)
}

// A question is a request whose answer comes later.
type question struct {
	answer chan testcluster.Answer
	failed chan error
}

// ask sends a request as admin and does not wait for the answer.
func (c *cluster) ask(path string, body any, header ...string) question {
	q := question{make(chan testcluster.Answer, 1), make(chan error, 1)}
	ctx := c.t.Context()
	go func() {
		a, err := c.Call(ctx, "admin", "POST", path, body, header...)
		if err != nil {
			q.failed <- err
			return
		}
		q.answer <- a
	}()
	return q
}

func (q question) get(t *testing.T) testcluster.Answer {
	t.Helper()
	select {
	case a := <-q.answer:
		return a
	case err := <-q.failed:
		t.Fatal(err)
	case <-time.After(2 * time.Minute):
		t.Fatal("no answer")
	}
	panic("unreachable")
}

// problem expects a problem of this kind, with the operation that it ended.
func (q question) problem(t *testing.T, status int, kind string) (problem, operation) {
	t.Helper()
	a := q.get(t)
	p := decode(t, a)
	if a.Status != status || p.Type != "/problems/"+kind || p.Operation == nil {
		t.Fatalf("%d %s, want %d %s", a.Status, a.Body, status, kind)
	}
	return p, *p.Operation
}

func (q question) succeeded(t *testing.T) operation {
	t.Helper()
	a := q.get(t)
	var op operation
	if err := json.Unmarshal(a.Body, &op); err != nil || a.Status != 200 || op.State != "succeeded" {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	return op
}

func decode(t *testing.T, a testcluster.Answer) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal(a.Body, &p); err != nil {
		t.Fatalf("%d %s: %v", a.Status, a.Body, err)
	}
	return p
}

// reaches waits until the newest operation is at the step, and returns its id.
func (c *cluster) reaches(name string) (id string) {
	c.t.Helper()
	c.until(20*time.Second, func() error {
		a := c.call("viewer", "GET", "/operations?limit=1", nil)
		var list struct{ Operations []operation }
		if err := json.Unmarshal(a.Body, &list); err != nil || len(list.Operations) != 1 {
			return fmt.Errorf("operations: %s", a.Body)
		}
		op := list.Operations[0]
		if s := stepOf(op, name); s.State != "running" {
			return fmt.Errorf("%s is %s: %+v", name, s.State, op)
		}
		id = op.ID
		return nil
	})
	return id
}

// A stepState is what became of one step.
type stepState struct {
	State      string
	DurationMS float64
}

func stepOf(op operation, name string) stepState {
	for _, s := range op.Steps {
		if s.Name == name {
			return stepState{s.State, s.DurationMS}
		}
	}
	return stepState{}
}

// events follows an operation until its stream ends.
func (c *cluster) events(id string, each func(kind, step string, op operation)) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+"/operations/"+id+"/events", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Token["viewer"])
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || got != "text/event-stream" {
		c.t.Fatalf("events: %d %s", resp.StatusCode, got)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var ev struct {
			Type, Step string
			Operation  operation
		}
		if err := json.Unmarshal([]byte(data), &ev); err != nil {
			c.t.Fatal(err)
		}
		each(ev.Type, ev.Step, ev.Operation)
	}
	if err := lines.Err(); err != nil {
		c.t.Errorf("the stream broke off: %v", err)
	}
}
