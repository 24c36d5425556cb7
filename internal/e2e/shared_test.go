package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"controld/internal/testcluster"
)

// A start of a cluster costs some 20 s of a processor, which is more than what most
// tests do with it. So one that a test leaves as good as new goes to the next test
// that asks for the same.
var shared = struct {
	mu    sync.Mutex
	whole map[string][]*testcluster.Cluster // by asked
}{whole: map[string][]*testcluster.Cluster{}}

// asked names what a test asks for: clusters of the same name are alike.
func asked(tag string, settings []string) string {
	return strings.Join(append([]string{tag}, settings...), " ")
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, clusters := range shared.whole {
		for _, c := range clusters {
			ctx, cancel := context.WithTimeout(context.Background(), destroyLimit)
			if err := c.Destroy(ctx); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
			cancel()
		}
	}
	os.Exit(code)
}

// borrow returns a cluster that is up, or nil.
func borrow(what string) *testcluster.Cluster {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	clusters := shared.whole[what]
	if len(clusters) == 0 {
		return nil
	}
	last := len(clusters) - 1
	shared.whole[what] = clusters[:last]
	return clusters[last]
}

func giveBack(what string, c *testcluster.Cluster) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.whole[what] = append(shared.whole[what], c)
}

// tidy makes a cluster as good as new where its test has left what can be taken
// back: a primary that moved, sessions, tables. The error says what else is left.
func tidy(ctx context.Context, c *testcluster.Cluster) error {
	for _, step := range []func(context.Context, *testcluster.Cluster) error{containersAsMade, primaryAtHome, databaseEmpty} {
		if err := step(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func containersAsMade(ctx context.Context, c *testcluster.Cluster) error {
	inspect := []string{"inspect", "-f", "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.CpuQuota}} {{.State.Running}} {{.RestartCount}}"}
	for _, s := range services {
		inspect = append(inspect, c.Container(s))
	}
	containers, err := c.Docker(ctx, inspect...)
	if err != nil {
		return err
	}
	for i, line := range strings.Split(containers, "\n") {
		policy := "always"
		if slices.Contains(testcluster.Nodes, services[i]) {
			policy = "no"
		}
		made, restarts, _ := strings.Cut(line, " true ")
		if made != policy+" 0" {
			return fmt.Errorf("%s is not as it was: %s", services[i], line)
		}
		if restarts != "0" {
			// The engine waits longer after each crash, and begins anew after a start by hand.
			if _, err := c.Docker(ctx, "restart", c.Container(services[i])); err != nil {
				return err
			}
		}
	}
	return isOK(ctx, c, time.Minute)
}

func primaryAtHome(ctx context.Context, c *testcluster.Cluster) error {
	a, err := c.Call(ctx, "", "GET", "/nodes/"+testcluster.Nodes[0]+"/primary", nil)
	if err != nil || a.Status == http.StatusOK {
		return err
	}
	if a, err = c.Call(ctx, "admin", "POST", "/failback", nil); err != nil {
		return err
	}
	if a.Status != http.StatusOK {
		return fmt.Errorf("failback: %s", a.Body)
	}
	return isOK(ctx, c, time.Minute)
}

func databaseEmpty(ctx context.Context, c *testcluster.Cluster) error {
	const inPublic = "where %s = 'public'::regnamespace"
	for _, want := range []struct{ what, question, answer string }{
		{"sessions", "select count(pg_terminate_backend(pid)) * 0 from pg_stat_activity where usename = 'app'", "0"},
		{"tables", `do $$ declare t regclass; begin
			for t in select oid from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace
			loop execute format('drop table %s cascade', t); end loop; end $$`, ""},
		{"relations", "select string_agg(relname, ' ') from pg_class " + fmt.Sprintf(inPublic, "relnamespace"), ""},
		{"functions", "select string_agg(proname, ' ') from pg_proc " + fmt.Sprintf(inPublic, "pronamespace"), ""},
		{"databases", "select string_agg(datname, ' ' order by datname) from pg_database", "imdb postgres template0 template1"},
		{
			"roles", "select string_agg(rolname, ' ' order by rolname) from pg_roles where rolname !~ '^pg_'",
			"app backup controld pooler replicator rewind root",
		},
		{"roles' settings", "select count(*) from pg_db_role_setting where setrole = 'app'::regrole", "0"},
		{"tablespaces", "select count(*) from pg_tablespace", "2"},
	} {
		got, err := c.Psql(ctx, testcluster.Nodes[0], "imdb", want.question)
		if err != nil {
			return err
		}
		if got != want.answer {
			return fmt.Errorf("%s: %q, want %q", want.what, got, want.answer)
		}
	}
	for _, n := range testcluster.Nodes {
		const set = "select string_agg(name, ' ') from pg_file_settings where sourcefile like '%postgresql.auto.conf'"
		got, err := c.Psql(ctx, n, "imdb", set)
		if err != nil {
			return err
		}
		if got != "" {
			return fmt.Errorf("alter system on %s: %s", n, got)
		}
	}
	return nil
}
