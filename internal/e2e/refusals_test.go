package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"controld/internal/probe"
	"controld/internal/testcluster"
)

// A refusal is one reason why a planned failover must not begin. make brings it
// about and returns how to take it back.
type refusal struct {
	name string
	make func(c *cluster) (heal func())
	ask  map[string]any // the request; empty: none of its fields

	status  int    // 409 when 0
	problem string // the type's last part
	check   string // the precheck that the dry run shows as failed; empty: it does not come to them
	numbers []string
	// stirs: supervision acts on such a thing too. So the world does not stand still
	// while it is compared.
	stirs bool
}

// TestPlannedFailoverIsRefused makes every precheck refuse on real containers:
// the dry run says so with its numbers, the request is answered with the stable
// type of its problem, and nothing is touched.
// The volumes share one disk with everything else, so it is not filled: more is
// asked for than there is.
func TestPlannedFailoverIsRefused(t *testing.T) {
	t.Parallel()
	// Much of it is waiting, so two clusters share it.
	for half := range slices.Chunk(refusals, (len(refusals)+1)/2) {
		t.Run("from "+half[0].name, func(t *testing.T) {
			t.Parallel()
			isRefused(t, half)
		})
	}
}

func isRefused(t *testing.T, refusals []refusal) {
	t.Helper()
	c := up(t,
		"CONTROLD_POSTGRES_MAX_PREPARED_TRANSACTIONS=5", "CONTROLD_FAILOVER_MAX_LAG_BYTES=1048576",
		"CONTROLD_FAILOVER_PAUSE_DEADLINE=2s",
		// Supervision looks rarely: what is brought about must not be mended at once.
		"CONTROLD_OBSERVE_INTERVAL=15s")
	c.psql("postgres_master", "create table filler (x text); alter table filler owner to app")
	entries := c.showDatabases()
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) { r.try(c.in(t), entries) })
	}
	t.Run("afterwards nothing is in the way", func(t *testing.T) {
		c := c.in(t)
		w := c.writers(probe.Config{})
		op := c.run("/failover", map[string]any{"mode": "planned"})
		c.check(w.Stop(), op.Result.To)
	})
}

var refusals = []refusal{
	{
		name: "unknown target", ask: map[string]any{"target": "postgres_slav"},
		status: 404, problem: "unknown-node",
	},
	{
		name: "target leads already", ask: map[string]any{"target": "postgres_master"},
		problem: "already-primary", numbers: []string{"primary"},
	},
	{
		name: "another node leads than expected", ask: map[string]any{"expected_primary": "postgres_slave"},
		problem: "unexpected-primary", numbers: []string{"primary", "expected_primary"},
	},
	{
		name: "candidate frozen", problem: "no-candidate", stirs: true,
		make: func(c *cluster) func() { return freezeContainer(c, "postgres_slave") },
	},
	{
		name: "candidate frozen and named", ask: map[string]any{"target": "postgres_slave"},
		problem: "no-candidate", check: "candidate-answers", stirs: true,
		make: func(c *cluster) func() { return freezeContainer(c, "postgres_slave") },
	},
	{
		name: "primary frozen", ask: map[string]any{"mode": "planned"},
		problem: "no-primary", check: "primary-serves", stirs: true,
		make: func(c *cluster) func() { return freezeContainer(c, "postgres_master") },
	},
	{
		name: "candidate streams from nowhere", problem: "not-streaming", check: "candidate-streams", stirs: true,
		make: func(c *cluster) func() {
			return alterSystem(c, "postgres_slave", "primary_conninfo", "host=127.0.0.1 port=1")
		},
	},
	{
		name: "walreceiver frozen", problem: "not-streaming", check: "candidate-streams", stirs: true,
		make: func(c *cluster) func() { return stopBackend(c, "postgres_slave", "walreceiver") },
	},
	{
		name: "candidate on another timeline", problem: "not-streaming", check: "same-timeline", stirs: true,
		make: func(c *cluster) func() {
			return resetWAL(c, "postgres_slave", "pg_resetwal -f -l 0000006300000000000000F0 .")
		},
	},
	{
		// The system identifier is the first thing in the control file. A later
		// timeline keeps supervision from overwriting the data.
		name: "candidate of another cluster", problem: "not-streaming", check: "same-cluster", stirs: true,
		make: func(c *cluster) func() {
			return resetWAL(c, "postgres_slave", "printf other | dd of=global/pg_control bs=1 conv=notrunc && "+
				"pg_resetwal -f -l 0000006300000000000000F0 .")
		},
	},
	{
		name: "replay paused", problem: "replay-paused", check: "replay-runs",
		make: func(c *cluster) func() {
			c.psql("postgres_slave", "select pg_wal_replay_pause()")
			return func() { c.psql("postgres_slave", "select pg_wal_replay_resume()") }
		},
	},
	{
		name: "candidate lags", problem: "lag", check: "candidate-lag", numbers: []string{"lag_bytes", "limit_bytes"},
		make: func(c *cluster) func() {
			heal := stopBackend(c, "postgres_slave", "startup")
			c.psql("postgres_master", "insert into filler select repeat('x', 1000) from generate_series(1, 3000)")
			return heal
		},
	},
	{
		name: "no slot left for the way back", problem: "no-reverse-replication", check: "reverse-replication",
		numbers: []string{"senders", "max_senders", "slots", "max_slots"},
		make: func(c *cluster) func() {
			c.psql("postgres_slave", `select pg_create_physical_replication_slot('full_' || i)
				from generate_series(1, 10 - (select count(*) from pg_replication_slots)) i`)
			return func() {
				c.psql("postgres_slave", `select pg_drop_replication_slot(slot_name) from pg_replication_slots
					where slot_name like 'full%'`)
			}
		},
	},
	{
		name: "no walsender left for the way back", problem: "no-reverse-replication", check: "reverse-replication",
		numbers: []string{"senders", "max_senders", "slots", "max_slots"},
		make: func(c *cluster) func() {
			var all []*pgx.Conn
			for range 10 { // max_wal_senders
				all = append(all, c.connect(c.NodeDSN("postgres_slave", "replicator", "postgres")+"&replication=true"))
			}
			return func() {
				for _, conn := range all {
					_ = conn.Close(context.WithoutCancel(c.t.Context()))
				}
			}
		},
	},
	{
		name: "too little disk space", problem: "disk-space", check: "candidate-has-disk-space",
		numbers: []string{"free_bytes", "needed_bytes"},
		make:    askForMoreSpace,
	},
	{
		name: "too little disk space on the primary", problem: "disk-space", check: "primary-has-disk-space",
		numbers: []string{"free_bytes", "needed_bytes"},
		make:    askForMoreSpace,
	},
	{
		name: "prepared transaction", problem: "prepared-transactions", check: "no-prepared-transaction",
		numbers: []string{"prepared_transactions"},
		make: func(c *cluster) func() {
			c.psql("postgres_master", "begin; insert into filler values ('prepared'); prepare transaction 'by hand'")
			return func() { c.psql("postgres_master", "rollback prepared 'by hand'") }
		},
	},
	{
		name: "long transaction", problem: "long-transaction", check: "no-long-transaction",
		numbers: []string{"pid", "user", "application", "age_ms", "limit_ms"},
		make: func(c *cluster) func() {
			conn := c.connect(c.DatabaseURL + "&application_name=nightly")
			if _, err := conn.Exec(c.t.Context(), "begin; insert into filler values ('long')"); err != nil {
				c.t.Fatal(err)
			}
			return func() {
				if _, err := conn.Exec(c.t.Context(), "commit"); err != nil {
					c.t.Errorf("the transaction that was refused for did not commit: %v", err)
				}
			}
		},
	},
	{
		name: "base backup", problem: "backup-running", check: "no-base-backup",
		make: func(c *cluster) func() {
			c.docker("exec", "-d", "-u", "5432", c.Container("postgres_slave"),
				"pg_basebackup", "-D", "/tmp/copy", "-X", "none", "-c", "fast", "--max-rate=32k",
				"-d", "host="+c.Container("postgres_master")+" user=replicator passfile=/run/secrets-own/pgpass")
			return func() {
				c.psql("postgres_master", "select pg_terminate_backend(pid) from pg_stat_progress_basebackup")
			}
		},
	},
	{
		name: "backup begun by a session", problem: "backup-running", check: "no-base-backup",
		make: func(c *cluster) func() {
			return c.session("postgres_master", "select pg_backup_start('by hand', true)")
		},
	},
	{
		name: "archive behind", problem: "archive-behind", check: "archive-is-not-behind",
		numbers: []string{"pending_segments", "limit_segments"},
		make: func(c *cluster) func() {
			resume := stopBackend(c, "postgres_master", "archiver") // it would remove files of segments that are not there
			status := "/pg/node1/data/pg_wal/archive_status/"
			c.docker("exec", "-u", "5432", c.Container("postgres_master"), "sh", "-c",
				"for i in $(seq 100 299); do : >"+status+"00000063000000000000$i.ready; done; rm "+status+"*5.ready")
			return func() {
				c.docker("exec", c.Container("postgres_master"), "sh", "-c", "rm "+status+"00000063*.ready")
				resume()
			}
		},
	},
	{
		name: "ALTER SYSTEM on the primary", problem: "settings-overridden", check: "settings-are-controlds",
		make: func(c *cluster) func() { return alterSystem(c, "postgres_master", "archive_command", "/bin/false") },
	},
	{
		name: "ALTER SYSTEM on the candidate", problem: "settings-overridden", check: "settings-are-controlds",
		make: func(c *cluster) func() { return alterSystem(c, "postgres_slave", "restore_command", "/bin/false") },
	},
	{
		name: "pooler down", problem: "pooler-down", check: "pooler-answers", stirs: true,
		make: func(c *cluster) func() {
			c.docker("stop", c.Container("pgbouncer"))
			return func() { c.docker("start", c.Container("pgbouncer")) }
		},
	},
	{
		// An init reports this when its container came back in the middle of a rewind. A
		// real rewind that is cut short is in the rejoin's test.
		name: "candidate half overwritten", problem: "no-candidate",
		make: markUnfinished,
	},
	{
		name: "candidate half overwritten and named", ask: map[string]any{"target": "postgres_slave", "mode": "planned"},
		problem: "unfinished", check: "candidate-is-whole",
		make: markUnfinished,
	},
}

// try brings the reason about, asks, and takes it back. entries are the pooler's
// when all is well.
func (r refusal) try(c *cluster, entries string) {
	t := c.t
	if r.make != nil {
		heal := r.make(c)
		defer func() { heal(); c.healed(entries) }()
	}
	ask := func() plan { return c.dryRun("/failover", r.ask) }
	if r.problem == "unknown-node" { // the request itself is wrong: there is no plan for it
		dry := map[string]any{"dry_run": true, "target": r.ask["target"]}
		before := c.picture()
		c.refused("/failover", dry, r.status, r.problem)
		if p := c.refused("/failover", r.ask, r.status, r.problem); p.Operation != nil {
			t.Errorf("a request that is not valid became operation %s", p.Operation.ID)
		}
		c.unchanged(before)
		return
	}
	var dry plan
	c.until(15*time.Second, func() error {
		if dry = ask(); dry.Refusal == nil || dry.Refusal.Type != "/problems/"+r.problem {
			return fmt.Errorf("the dry run says %+v", dry)
		}
		return nil
	})
	before := c.picture()
	dry = ask()
	if dry.WouldRun || dry.Refusal == nil || dry.Refusal.Detail == "" {
		t.Errorf("the dry run would run: %+v", dry)
	}
	r.checkShown(t, dry)
	var p problem
	c.until(30*time.Second, func() error { // while supervision acts, that is what the refusal names
		a := c.call("admin", "POST", "/failover", r.body())
		p = problem{}
		if err := json.Unmarshal(a.Body, &p); err != nil || a.Status != 409 {
			t.Fatalf("POST /failover: %d %s", a.Status, a.Body)
		}
		if p.Type != "/problems/"+r.problem {
			return fmt.Errorf("refused by %s: %s", p.Type, p.Detail)
		}
		return nil
	})
	if !r.stirs {
		c.unchanged(before)
	}
	for _, n := range r.numbers {
		if _, ok := p.Numbers[n]; !ok {
			t.Errorf("the refusal lacks the number %s: %+v", n, p)
		}
	}
	c.refusedInAudit(p)
}

func (r refusal) body() any {
	if r.ask == nil {
		return nil
	}
	return r.ask
}

// checkShown: the dry run shows the failed precheck, with its numbers, and all
// others beside it.
func (r refusal) checkShown(t *testing.T, dry plan) {
	t.Helper()
	if r.check == "" {
		return
	}
	for _, x := range dry.Checks {
		if x.Name != r.check {
			continue
		}
		if x.OK || x.Detail == "" {
			t.Errorf("precheck %+v", x)
		}
		for _, n := range r.numbers {
			if _, ok := x.Numbers[n]; !ok {
				t.Errorf("precheck %s lacks the number %s: %+v", x.Name, n, x)
			}
		}
		return
	}
	t.Errorf("the dry run does not show %s: %+v", r.check, dry)
}

// refusedInAudit: the audit has the attempt as refused, and no step of it began.
func (c *cluster) refusedInAudit(p problem) {
	c.t.Helper()
	if p.Operation == nil {
		c.t.Errorf("the refusal %s holds no operation", p.Type)
		return
	}
	op := c.operation(p.Operation.ID)
	began := false
	for _, s := range op.Steps {
		began = began || s.State != "pending"
	}
	if op.State != "refused" || began || op.By == "" {
		c.t.Errorf("in the audit: %+v", op)
	}
}

// healed waits until a failover would run again, nothing is at work, and the
// pooler's entries are what they were. A dry run looks anew at everything,
// whatever the interval is.
func (c *cluster) healed(entries string) {
	c.t.Helper()
	c.until(time.Minute, func() error {
		if dry := c.dryRun("/failover", nil); !dry.WouldRun || dry.Mode != "planned" {
			return fmt.Errorf("dry run: %+v", dry.Refusal)
		}
		if status, h := c.health(); status != "ok" || h["operation"] != nil && h["operation"] != "" {
			return fmt.Errorf("health: %v", h)
		}
		if now := c.showDatabases(); now != entries {
			return fmt.Errorf("the pooler's entries:\n%s", difference(entries, now))
		}
		return nil
	})
}

func askForMoreSpace(c *cluster) func() {
	c.setting("CONTROLD_FAILOVER_MIN_FREE_BYTES", "1125899906842624")
	return func() { c.setting("CONTROLD_FAILOVER_MIN_FREE_BYTES", "") }
}

func freezeContainer(c *cluster, node string) func() {
	c.freeze(node)
	return func() { c.docker("unpause", c.Container(node)) }
}

// stopBackend freezes one process of a server, named as pg_stat_activity does.
func stopBackend(c *cluster, node, kind string) func() {
	pid := c.psql(node, "select pid from pg_stat_activity where backend_type = '"+kind+"'")
	c.docker("exec", c.Container(node), "sh", "-c", "kill -STOP "+pid)
	return func() { c.docker("exec", c.Container(node), "sh", "-c", "kill -CONT "+pid+" || true") }
}

func alterSystem(c *cluster, node, name, value string) func() {
	c.psql(node, "alter system set "+name+" = '"+value+"'")
	c.psql(node, "select pg_reload_conf()")
	return func() {
		c.psql(node, "alter system reset "+name)
		c.psql(node, "select pg_reload_conf()")
	}
}

func markUnfinished(c *cluster) func() {
	status := "/pg/node2/status.json"
	c.docker("exec", c.Container("postgres_slave"), "sh", "-c",
		`sed 's/"state"/"unfinished":"rewind","state"/' `+status+` >/pg/node2/x && mv /pg/node2/x `+status)
	return func() {
		c.docker("exec", c.Container("postgres_slave"), "sh", "-c",
			`sed 's/"unfinished":"rewind",//' `+status+` >/pg/node2/x && mv /pg/node2/x `+status)
	}
}

// resetWAL does to a node's data, while its server is down, what the line says. The node then
// starts as a standby that can follow nobody. A standby does not start after pg_resetwal, which
// notes wal_level=minimal in pg_control. A primary does, and notes its own level. So the data
// leads once in between.
func resetWAL(c *cluster, node, line string) func() {
	c.freeze("controld") // it would start the node at once
	c.docker("stop", c.Container(node))
	const leadOnce = `set -e; PATH=$PATH:/usr/lib/postgresql/15/bin; cd /v/data; eval "$1"; rm standby.signal
		pg_ctl -D . -w -s -o '-c wal_level=replica -c listen_addresses= -c unix_socket_directories=/tmp' start
		pg_ctl -D . -w -s stop; touch standby.signal`
	c.helper(node, []string{"--rm", "-u", "5432"}, "sh", "-c", leadOnce, "sh", line)
	c.docker("start", c.Container(node))
	c.docker("unpause", c.Container("controld"))
	return func() { c.anew(node, "basebackup") }
}

// session runs SQL as the superuser and keeps the session open.
func (c *cluster) session(node, sql string) (end func()) {
	c.t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(c.t.Context()),
		"docker", "exec", "-i", c.Container(node), "psql", "-XAtq", "-U", "root", "-d", "imdb")
	in, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	if _, err := io.WriteString(in, sql+";\n"); err != nil {
		c.t.Fatal(err)
	}
	return func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
}

// until asks until the answer is nil, and fails the test with the last one.
func (c *cluster) until(limit time.Duration, ready func() error) {
	c.t.Helper()
	if err := testcluster.Poll(c.t.Context(), limit, 100*time.Millisecond, func(context.Context) error { return ready() }); err != nil {
		c.t.Fatal(err)
	}
}

// operation reads one from the audit.
func (c *cluster) operation(id string) operation {
	c.t.Helper()
	a := c.call("viewer", "GET", "/operations/"+id, nil)
	var op operation
	if err := json.Unmarshal(a.Body, &op); err != nil || a.Status != 200 {
		c.t.Fatalf("GET /operations/%s: %d %s", id, a.Status, a.Body)
	}
	return op
}

// picture is all of the world that a refused or undone operation has to leave as it was: the
// orders and settings, what the servers made of them, slots, roles and timelines, the pooler's
// configuration and entries, and the absence of a lease. Of a server that does not answer it
// says only that.
func (c *cluster) picture() string {
	c.t.Helper()
	parts := []string{c.docker("exec", c.Container("controld"), "sh", "-c",
		"cd / && grep -HE 'epoch|role' orders/*/order.json && for f in orders/*/role.conf pgbouncer/*; do echo \"== $f\"; cat $f; done")}
	const facts = `select 'recovery ' || pg_is_in_recovery() || ', timeline ' || case when pg_is_in_recovery()
			then (select received_tli from pg_stat_wal_receiver)
			else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end
		union all select 'slot ' || slot_name from ` + ownSlots + `
		union all select name || ' = ' || setting from pg_settings
			where name in ('archive_command', 'restore_command', 'autovacuum',
				'primary_conninfo', 'primary_slot_name', 'synchronous_standby_names')
		order by 1`
	for _, n := range testcluster.Nodes {
		parts = append(parts, "== "+n, c.lines(n, facts))
	}
	return strings.Join(append(parts, "== pooler", c.showDatabases()), "\n")
}

// lines are the rows of a query with one column, asked as controld asks: an exec
// in the container would take longer than all the rest.
func (c *cluster) lines(node, sql string) string {
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.NodeDSN(node, "controld", "imdb"))
	if err != nil {
		return "does not answer"
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		c.t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[*string])
	if err != nil {
		c.t.Fatal(err)
	}
	var out []string
	for _, line := range list {
		if line != nil {
			out = append(out, *line)
		}
	}
	return strings.Join(out, "\n")
}

// showDatabases is what the pooler's console says of its entries.
func (c *cluster) showDatabases() string {
	config, err := pgx.ParseConfig(c.PoolerDSN("controld", "pgbouncer"))
	if err != nil {
		c.t.Fatal(err)
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(c.t.Context(), config)
	if err != nil {
		return "does not answer"
	}
	defer conn.Close(c.t.Context())
	rows, err := conn.Query(c.t.Context(), "SHOW DATABASES")
	if err != nil {
		c.t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			c.t.Fatal(err)
		}
		var line []string
		for i, f := range rows.FieldDescriptions() {
			if slices.Contains([]string{"name", "host", "database", "pool_size", "paused", "disabled"}, f.Name) {
				line = append(line, fmt.Sprint(f.Name, " ", values[i]))
			}
		}
		out = append(out, strings.Join(line, ", "))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// unchanged compares the world with a picture of it.
func (c *cluster) unchanged(before string) {
	c.t.Helper()
	if after := c.picture(); after != before {
		c.t.Errorf("the world changed:\n%s", difference(before, after))
	}
}

var epochText = regexp.MustCompile(`"epoch": \d+`)

// restored compares the world with a picture of it, from before an operation
// that was undone: the orders are given anew, and say the same.
func (c *cluster) restored(before string) {
	c.t.Helper()
	before = epochText.ReplaceAllString(before, "")
	err := testcluster.Poll(c.t.Context(), 30*time.Second, 200*time.Millisecond, func(context.Context) error {
		if after := epochText.ReplaceAllString(c.picture(), ""); after != before {
			return fmt.Errorf("the world is not as before:\n%s", difference(before, after))
		}
		return nil
	})
	if err != nil {
		c.t.Error(err)
	}
}

// difference are the lines that only one of the two has.
func difference(before, after string) string {
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	var out []string
	for _, l := range was {
		if !slices.Contains(is, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range is {
		if !slices.Contains(was, l) {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}
