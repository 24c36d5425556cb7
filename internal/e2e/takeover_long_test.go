//go:build long

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"controld/internal/probe"
	"controld/internal/rights"
	"controld/internal/testcluster"
)

// firstVersion is the commit of the first version that others may have clusters of.
const firstVersion = "4593576"

// TestLongTakeover makes a cluster by the first version, from its own source, and brings it
// under this one as its user would, by make up: no node is restarted, what this version
// needs reaches PostgreSQL past an init that does not know how, and everything works but
// backups. /health names the command that brings those, and it does.
func TestLongTakeover(t *testing.T) {
	c, old := olderCluster(t)
	if err := old.Script(t.Context(), "up.sh"); err != nil {
		t.Fatal(err)
	}
	const nodes = 2 // of services
	before := c.containers(services[:nodes]...)
	if err := c.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.waitAllButBackups(2 * time.Minute)
	if after := c.containers(services[:nodes]...); after != before {
		t.Errorf("nodes were made anew or restarted:\n%s\nwas\n%s", after, before)
	}
	primary, standby := c.roles()
	comment := c.psql(primary, "select obj_description('controld'::regnamespace)")
	if in := c.docker("exec", c.Container(primary), "psql", "-XAtU", "root", "-d", "postgres", "-c",
		"select obj_description('controld'::regnamespace)"); rights.Of(in) != rights.Version {
		t.Errorf("database postgres tells %q (imdb %q)", in, comment)
	}
	w := c.writers(probe.Config{})
	for _, path := range []string{"/failover", "/failback"} {
		op := c.run(path, nil)
		t.Logf("%s: %s -> %s in %.1f ms", path, op.Result.From, op.Result.To, op.Result.PauseMS)
		c.waitAllButBackups(time.Minute)
	}
	c.run("/nodes/"+standby+"/rejoin", map[string]any{"method": "basebackup"})
	c.waitAllButBackups(comesBack)
	verdict(t, c, w)
	c.kill(primary)
	if op := c.run("/failover", nil); op.Result.LostBytes != 0 {
		t.Errorf("lost %d bytes", op.Result.LostBytes)
	}
	c.waitAllButBackups(comesBack)
	c.refused("/backups", nil, 409, "no-repository")

	if err := c.Script(t.Context(), "down.sh"); err != nil {
		t.Fatal(err)
	}
	if err := c.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.waitOK(comesBack)
	if all := c.backups(); len(all) != 1 {
		t.Errorf("backups: %+v", all)
	}
}

// waitAllButBackups waits until all is well but that the nodes are too old for backups.
func (c *cluster) waitAllButBackups(limit time.Duration) {
	c.t.Helper()
	c.until(limit, func() error {
		a, err := c.Call(c.t.Context(), "", "GET", "/health", nil)
		if err != nil {
			return err
		}
		var h struct {
			Components []struct{ Status, Reason, Do string }
		}
		if err := json.Unmarshal(a.Body, &h); err != nil {
			return err
		}
		told := false
		for _, component := range h.Components {
			told = told || component.Reason == "backups-unavailable" && strings.HasPrefix(component.Do, "make down && make up")
			if component.Status != "ok" && component.Reason != "backups-unavailable" {
				return fmt.Errorf("health: %s", a.Body)
			}
		}
		if !told {
			return fmt.Errorf("health does not tell of backups: %s", a.Body)
		}
		return nil
	})
}

// olderCluster is a cluster that is not up, with the scripts and images of this version
// and of the first one.
func olderCluster(t *testing.T) (c *cluster, old *testcluster.Cluster) {
	t.Helper()
	inner, err := testcluster.New(t.Context(), tag())
	if err != nil {
		t.Fatal(err)
	}
	inner.Env = append(inner.Env, "CONTROLD_SECRETS_DIR="+filepath.Join(inner.Root, ".controld", "secrets-"+inner.Prefix))
	c = &cluster{inner, t}
	source, oldTag := t.TempDir(), "test-"+firstVersion
	shell := func(script string, env ...string) {
		cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
		cmd.Dir, cmd.Env = source, append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	root, err := filepath.Abs(inner.Root)
	if err != nil {
		t.Fatal(err)
	}
	shell("git -C '" + root + "' archive " + firstVersion + " | tar -x")
	shell("make images", "CONTROLD_TAG="+oldTag)
	older := *inner
	older.Root = source
	older.Env = nil
	for _, s := range inner.Env {
		if !strings.HasPrefix(s, "CONTROLD_TAG=") {
			older.Env = append(older.Env, s)
		}
	}
	older.Env = append(older.Env, "CONTROLD_TAG="+oldTag)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), destroyLimit)
		defer cancel()
		if t.Failed() {
			t.Log(c.Logs(ctx))
		}
		if err := c.Destroy(ctx); err != nil {
			t.Error(err)
		}
		for _, image := range []string{"postgres", "pgbouncer", "redis", "controld"} {
			if _, err := c.Docker(ctx, "rmi", "controld/"+image+":"+oldTag); err != nil {
				t.Error(err)
			}
		}
	})
	return c, &older
}
