package node_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"controld/internal/node"
	"controld/internal/pgcontrol"
	"controld/internal/testcluster"
)

// These tests run the real init and PostgreSQL 15 in containers, with the
// orders written as controld writes them.

const (
	clusterBytes = 4 << 20 // wal_segment_size of initdb
	patience     = 90 * time.Second
)

func image() string {
	if s := os.Getenv("CONTROLD_TEST_POSTGRES_IMAGE"); s != "" {
		return s
	}
	return "controld/postgres:dev"
}

// nodeBinary builds the init once for all tests; TestMain removes it.
var nodeBinary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(buildDir, "controld-node")
	// As deploy/images/binaries.sh does, which has compiled most of it already.
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false", "-o", path, "controld/cmd/node")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the init: %w: %s", err, out)
	}
	return path, nil
})

var buildDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if buildDir, err = os.MkdirTemp("", "controld-node-test-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(buildDir)
		return m.Run()
	}())
}

// A pair is two nodes' volumes and the network between their containers.
type pair struct {
	t       *testing.T
	prefix  string
	binary  string
	secrets string
	nodes   []*testNode
}

// A testNode is one node's volumes, and the container that runs on them.
type testNode struct {
	t          *testing.T
	pair       *pair
	name       string // node1, node2
	dir, order string
	container  string
	epoch      uint64
}

func newPair(t *testing.T) *pair {
	t.Helper()
	if testing.Short() {
		t.Skip("needs containers, which -short leaves out")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to look into the nodes' volumes: sudo go test ./internal/node")
	}
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("needs the docker command and an engine: apt-get install docker.io")
	}
	if out, err := exec.Command("docker", "image", "inspect", image()).CombinedOutput(); err != nil {
		t.Skipf("needs image %s (make images): %s", image(), bytes.TrimSpace(out))
	}
	t.Parallel() // most of their time is waiting
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		t.Fatal(err)
	}
	binary, err := nodeBinary()
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, prefix: "controld-test-" + hex.EncodeToString(id[:]) + "-", secrets: t.TempDir(), binary: binary}
	for _, role := range []string{"app", "controld", "replicator", "rewind", "pooler"} {
		if err := os.WriteFile(filepath.Join(p.secrets, "role_"+role), []byte("secret-of-"+role), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	docker(t, "network", "create", "--label", "controld.test=1", p.prefix+"net")
	t.Cleanup(func() { _, _ = tryDocker("network", "rm", p.prefix+"net") })
	for _, name := range []string{"node1", "node2"} {
		n := &testNode{t: t, pair: p, name: name, dir: t.TempDir(), order: t.TempDir(), container: p.prefix + name}
		n.writeConfig()
		p.nodes = append(p.nodes, n)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range p.nodes {
				out, _ := tryDocker("logs", "--tail", "60", n.container)
				t.Logf("log of %s:\n%s", n.name, out)
			}
		}
		for _, n := range p.nodes {
			_, _ = tryDocker("rm", "-f", "-v", n.container)
		}
	})
	return p
}

// writeConfig writes the settings that controld would render.
func (n *testNode) writeConfig() {
	n.t.Helper()
	other := "node1"
	if n.name == "node1" {
		other = "node2"
	}
	conninfo := "host=" + n.pair.prefix + other + " user=replicator passfile=/run/secrets-own/pgpass" +
		" connect_timeout=5 application_name=" + n.name
	for name, text := range map[string]string{
		"postgresql.conf": `
listen_addresses = '*'
unix_socket_directories = '/pg/` + n.name + `/run'
hba_file = '/order/pg_hba.conf'
ident_file = '/order/pg_ident.conf'
wal_level = replica
wal_log_hints = on
shared_buffers = 16MB
max_wal_senders = 10
wal_keep_size = 64MB
hot_standby = on
hot_standby_feedback = on
wal_sender_timeout = 60s
wal_retrieve_retry_interval = 20ms
max_logical_replication_workers = 0
logging_collector = off
include = '/order/role.conf'
`,
		"role.conf": `primary_conninfo = '` + conninfo + `'
restore_command = '/bin/false'
`,
		"pg_hba.conf": `
local all root peer
host all all all scram-sha-256
host replication all all scram-sha-256
`,
		"pg_ident.conf": "",
	} {
		if err := node.WriteFile(filepath.Join(n.order, name), []byte(text), 0o644); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := os.Chmod(n.order, 0o755); err != nil {
		n.t.Fatal(err)
	}
}

func (n *testNode) runArgs(container string) []string {
	args := []string{
		"run", "-d", "--name", container, "--label", "controld.test=1", "--network", n.pair.prefix + "net",
		"--shm-size", "64m", "--stop-signal", "SIGINT", "-e", "NODE_DIR=/pg/" + n.name,
		"-v", n.order + ":/order:ro", "-v", n.pair.secrets + ":/secrets:ro", "--tmpfs", "/run/secrets-own",
		"-v", n.pair.binary + ":/usr/local/bin/controld-node:ro",
	}
	for _, other := range n.pair.nodes {
		mode := ":ro"
		if other == n {
			mode = ""
		}
		args = append(args, "-v", other.dir+":/pg/"+other.name+mode)
	}
	return append(args, "--entrypoint", "/usr/local/bin/controld-node", image(), "postgres")
}

// run makes and starts the node's container.
func (n *testNode) run() {
	n.t.Helper()
	docker(n.t, n.runArgs(n.container)...)
}

func (n *testNode) kill() {
	n.t.Helper()
	docker(n.t, "kill", "-s", "KILL", n.container)
	n.waitExited()
}

func (n *testNode) waitExited() {
	n.t.Helper()
	docker(n.t, "wait", n.container)
}

func (n *testNode) start() {
	n.t.Helper()
	docker(n.t, "start", n.container)
}

// give writes the next order.
func (n *testNode) give(o node.Order) uint64 {
	n.t.Helper()
	n.epoch++
	o.Epoch = n.epoch
	if o.Action == "" {
		o.Action = node.ActionNone
	}
	if err := node.WriteOrder(n.order, o); err != nil {
		n.t.Fatal(err)
	}
	return o.Epoch
}

func (n *testNode) status() node.Status {
	n.t.Helper()
	s, err := node.ReadStatus(n.dir)
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// await waits until the node reports the state for the epoch last ordered.
func (n *testNode) await(want node.State) node.Status {
	n.t.Helper()
	var s node.Status
	waitFor(n.t, fmt.Sprintf("%s to report %s for epoch %d", n.name, want, n.epoch), func() bool {
		s = n.status()
		return s.Epoch == n.epoch && s.State == want
	}, func() string { return fmt.Sprintf("%+v", s) })
	return s
}

// sql runs a statement as the superuser, on the node's own socket.
func (n *testNode) sql(statement string) (string, error) {
	return testcluster.SocketSQL(n.t.Context(), filepath.Join(n.dir, "run"), "imdb", statement)
}

func (n *testNode) mustSQL(statement string) string {
	n.t.Helper()
	var out string
	var err error
	waitFor(n.t, n.name+" to answer "+statement, func() bool { // it may still be starting
		out, err = n.sql(statement)
		return err == nil
	}, func() string { return fmt.Sprint(out, err) })
	return out
}

func (n *testNode) recovers() string {
	n.t.Helper()
	return n.mustSQL("select pg_is_in_recovery()")
}

func (n *testNode) locked() bool {
	n.t.Helper()
	held, err := node.Locked(n.dir)
	if err != nil {
		n.t.Fatal(err)
	}
	return held
}

func (n *testNode) control() pgcontrol.Data {
	n.t.Helper()
	d, err := pgcontrol.Read(filepath.Join(n.dir, node.DataDir))
	if err != nil {
		n.t.Fatal(err)
	}
	return d
}

// dataDir is the node's PGDATA as the containers have it.
func (n *testNode) dataDir() string { return "/pg/" + n.name + "/data" }

// other is the other node of the pair.
func (n *testNode) other() *testNode {
	if n == n.pair.nodes[0] {
		return n.pair.nodes[1]
	}
	return n.pair.nodes[0]
}

func (n *testNode) upstream() *node.Upstream { return &node.Upstream{Host: n.container, Port: 5432} }

// lead makes node 1 a new primary.
func (p *pair) lead() *testNode {
	p.t.Helper()
	one := p.nodes[0]
	one.run()
	one.give(node.Order{Role: node.RolePrimary, Action: node.ActionInitDB})
	one.await(node.StateRunning)
	if got := one.recovers(); got != "f" {
		p.t.Fatalf("the new primary is in recovery: %s", got)
	}
	return one
}

// both makes node 1 a primary and node 2 its standby.
func (p *pair) both() (one, two *testNode) {
	p.t.Helper()
	one, two = p.lead(), p.nodes[1]
	two.run()
	two.give(node.Order{Role: node.RoleStandby, Action: node.ActionBaseBackup, Upstream: one.upstream()})
	two.await(node.StateRunning)
	p.awaitStreaming(one)
	return one, two
}

func (p *pair) awaitStreaming(primary *testNode) {
	p.t.Helper()
	waitFor(p.t, "a standby to stream from "+primary.name, func() bool {
		out, err := primary.sql("select count(*) from pg_stat_replication where state = 'streaming' and application_name like 'node%'")
		return err == nil && out == "1"
	}, nil)
}

func tryDocker(args ...string) (string, error) {
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("docker %s: %w: %s", args[0], err, bytes.TrimSpace(out))
	}
	return string(bytes.TrimSpace(out)), err
}

func docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := tryDocker(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func waitFor(t *testing.T, what string, ready func() bool, last func() string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		if ready() {
			return
		}
		if time.Now().After(deadline) {
			if last != nil {
				t.Fatalf("waited %v for %s; last: %s", patience, what, last())
			}
			t.Fatalf("waited %v for %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestFirstStartAndRoles(t *testing.T) {
	p := newPair(t)
	one, two := p.both()
	for statement, want := range map[string]string{
		`select pg_encoding_to_char(encoding), datcollate, pg_get_userbyid(datdba)
			from pg_database where datname = 'imdb'`: "UTF8|C.UTF-8|app",
		"show data_checksums":   "on",
		"show wal_segment_size": "4MB",
		`select string_agg(rolname, ',' order by rolname)
			from pg_authid where rolsuper`: "root",
		`select string_agg(rolname, ',' order by rolname)
			from pg_authid where rolreplication and not rolsuper`: "controld,replicator",
		`select count(*)
			from pg_authid where rolcanlogin and not rolsuper and rolpassword like 'SCRAM-SHA-256$4096:%'`: "5",
	} {
		if got := one.mustSQL(statement); got != want {
			t.Errorf("%s: %s, want %s", statement, got, want)
		}
	}
	as := func(role, database, statement string) (string, error) {
		return tryDocker("exec", "-e", "PGPASSWORD=secret-of-"+role, one.container,
			"psql", "-h", one.container, "-U", role, "-d", database, "-XqAt", "-c", statement)
	}
	for _, tt := range []struct {
		role, database, statement string
		ok                        bool
	}{
		{"app", "imdb", "create table films (id int); insert into films values (1)", true},
		{"app", "imdb", "select pg_promote(false)", false},
		{"app", "imdb", "select * from controld.pooler_lookup('app')", false},
		{"controld", "imdb", "select pg_reload_conf(); checkpoint", true},
		{"controld", "imdb", "select count(*) from pg_stat_wal_receiver", true},
		{"controld", "postgres", "select pg_reload_conf()", true},
		{"controld", "imdb", "select pg_logical_emit_message(true, 'controld', 'probe')", true},
		{"controld", "imdb", "insert into films values (2)", false},
		{"controld", "imdb", "create role intruder", false},
		{"rewind", "postgres", "select count(*) from pg_ls_dir('.', true, false)", true},
		{"rewind", "postgres", "select pg_read_binary_file('PG_VERSION')", true},
		{"rewind", "imdb", "insert into films values (2)", false},
		{"pooler", "imdb", "select usename from controld.pooler_lookup('app')", true},
		{"pooler", "imdb", "select * from pg_authid", false},
		{"replicator", "imdb", "insert into films values (2)", false},
	} {
		if out, err := as(tt.role, tt.database, tt.statement); (err == nil) != tt.ok {
			t.Errorf("%s in %s: %s: %v %v, want ok %v", tt.role, tt.database, tt.statement, out, err, tt.ok)
		}
	}
	for _, fixed := range []string{"controld", "pooler", "replicator", "rewind", "root"} {
		if out, err := as("pooler", "imdb", "select count(*) from controld.pooler_lookup('"+fixed+"')"); err != nil || out != "0" {
			t.Errorf("pooler_lookup(%s): %v rows, %v; want none", fixed, out, err)
		}
	}
	if got := two.recovers(); got != "t" {
		t.Errorf("standby in recovery: %s", got)
	}
	logs := docker(t, "logs", one.container)
	if strings.Contains(logs, "secret-of-") {
		t.Error("the log holds a password")
	}
	if held := one.locked(); !held {
		t.Error("a running server holds no lock")
	}
	if s := one.status(); s.UsedEpoch != one.epoch || s.Unfinished != "" {
		t.Errorf("status %+v: the order to lead is not used", s)
	}
}
