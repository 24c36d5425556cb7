package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"controld/internal/testcluster"
)

type retentionPlan struct {
	Removes []struct{ Label, Why string }
	Run     bool `json:"would_run"`
	Refusal struct{ Type string }
}

// TestRetention removes backups: one with what depends on it, and what is not kept, while
// those who do it are killed. What stays can be restored, and nothing is left of the rest.
func TestRetention(t *testing.T) {
	t.Parallel()
	// Without a schedule fulls that a person has made count, too.
	c := upAlone(t, "CONTROLD_BACKUP_RETAIN_FULLS=3", "CONTROLD_BACKUP_SCHEDULE=off")
	for _, kind := range []string{"incr", "incr", "full", "full"} {
		c.psql("postgres_master", "CREATE TABLE IF NOT EXISTS written AS SELECT 1 AS it")
		c.psql("postgres_master", "SELECT pg_switch_wal()")
		c.run("/backups", map[string]any{"type": kind})
	}
	all := c.backups()
	first, second := all[0], all[3]

	t.Log("what would go is said, and nothing goes")
	plan := c.planDelete(all[1].Key)
	if len(plan.Removes) != 2 || plan.Removes[0].Label != all[2].Label || plan.Removes[0].Why != "depends" || !plan.Run {
		t.Errorf("DELETE of an incremental: %+v", plan)
	}
	c.refused("/backups/retention", map[string]any{"keep_fulls": 1}, 409, "few-fulls")
	if a := c.call("operator", "DELETE", "/backups/"+all[1].Key, nil); a.Status != 403 {
		t.Errorf("an operator removes: %d %s", a.Status, a.Body)
	}
	if now := c.backups(); len(now) != 5 {
		t.Fatalf("%d backups after plans and refusals: %+v", len(now), now)
	}

	t.Log("one goes with what depends on it")
	if a := c.call("admin", "DELETE", "/backups/"+all[1].Key+"?expect="+all[1].Label, nil); a.Status != 409 {
		t.Errorf("other than expected: %d %s", a.Status, a.Body)
	}
	if a := c.call("admin", "DELETE", "/backups/"+all[1].Key, nil); a.Status != 200 {
		t.Errorf("DELETE: %d %s", a.Status, a.Body)
	}
	c.repositoryHas(first, second, all[4])

	t.Log("pgbackrest is killed in the middle of a removal, then controld: the rest goes all the same")
	begin := func() operation {
		a := c.call("admin", "POST", "/backups/retention", map[string]any{"keep_fulls": 2}, "Prefer", "respond-async")
		var op operation
		if err := json.Unmarshal(a.Body, &op); err != nil || a.Status != 202 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
		return op
	}
	pace := func(cpus string) { c.docker("update", "--cpus", cpus, c.Container("pgbackrest")) }
	pace("0.1")
	killed := make(chan error)
	go func() { // as soon as the backup has no manifest, and before what lists it has been written
		_, err := c.Docker(t.Context(), "exec", c.Container("pgbackrest"), "sh", "-c",
			"while [ -e "+first.Dir+"/backup.manifest ]; do sleep 0.005; done; pkill -KILL -f 'pgbackrest .*expire$'")
		killed <- err
	}()
	op := begin()
	if err := <-killed; err != nil {
		t.Logf("it had ended before it was killed: %v", err)
		c.endsAs(op.ID, "succeeded")
	} else {
		c.endsAs(op.ID, "undone")
	}
	op = begin()
	c.kill("controld")
	pace("2")
	c.docker("start", c.Container("controld"))
	c.waitOK(time.Minute)
	c.endsAs(op.ID, "succeeded")
	c.repositoryHas(second, all[4])

	t.Log("two are left, and stay")
	if a := c.call("admin", "DELETE", "/backups/"+second.Key, nil); a.Status != 409 || !strings.Contains(string(a.Body), "few-fulls") {
		t.Errorf("DELETE of one of two: %d %s", a.Status, a.Body)
	}
	if plan := c.planDelete(second.Key); plan.Run || plan.Refusal.Type != "/problems/few-fulls" {
		t.Errorf("%+v", plan)
	}
	c.run("/backups", map[string]any{"type": "incr"})
	c.waitOK(time.Minute)
}

func (c *cluster) planDelete(key string) (plan retentionPlan) {
	c.t.Helper()
	a := c.call("admin", "DELETE", "/backups/"+key+"?dry_run=true", nil)
	if err := json.Unmarshal(a.Body, &plan); err != nil || a.Status != 200 {
		c.t.Fatalf("%d %s", a.Status, a.Body)
	}
	return plan
}

// repositoryHas: pgBackRest itself finds these backups whole, and nothing else: no other
// backup, no folder of one, no WAL that is older, and no gap in what is newer.
func (c *cluster) repositoryHas(want ...backupRecord) {
	c.t.Helper()
	var labels []string
	for _, b := range want {
		labels = append(labels, b.Label)
	}
	slices.Sort(labels)
	backrest := func(args ...string) string {
		return c.docker(append([]string{"exec", c.Container("pgbackrest"), "pgbackrest", "--stanza=main"}, args...)...)
	}
	var info []struct {
		Archive []struct{ Min string }
		Backup  []struct {
			Label   string
			Archive struct{ Start string }
		}
	}
	if err := json.Unmarshal([]byte(backrest("--output=json", "info")), &info); err != nil || len(info) != 1 || len(info[0].Archive) != 1 {
		c.t.Fatalf("info: %+v, %v", info, err)
	}
	var listed []string
	for _, b := range info[0].Backup {
		listed = append(listed, b.Label)
	}
	dirs := strings.Fields(c.docker("exec", c.Container("pgbackrest"), "sh", "-c",
		"cd $(dirname "+want[0].Dir+") && find . -maxdepth 1 -type d -name '2*' -printf '%f\\n' | sort"))
	if !slices.Equal(listed, labels) || !slices.Equal(dirs, labels) {
		c.t.Errorf("info lists %q, the folders are %q; want %q", listed, dirs, labels)
	}
	if oldest := info[0].Backup[0].Archive.Start; info[0].Archive[0].Min != oldest {
		c.t.Errorf("the archive begins with %s, the oldest backup with %s", info[0].Archive[0].Min, oldest)
	}
	if verified := backrest("--output=text", "--verbose", "verify"); !strings.Contains(verified, "status: ok") ||
		strings.Contains(verified, "status: error") {
		c.t.Errorf("verify:\n%s", verified)
	}
	var usage struct {
		Backups []struct{ Label string }
		Archive int64 `json:"archive_bytes"`
		Own     int64 `json:"backups_bytes"`
		Free    int64 `json:"free_bytes"`
	}
	a := c.call("viewer", "GET", "/backups/usage", nil)
	err := json.Unmarshal(a.Body, &usage)
	if err != nil || len(usage.Backups) != len(want) || min(usage.Archive, usage.Own, usage.Free) <= 0 {
		c.t.Errorf("GET /backups/usage: %d %s", a.Status, a.Body)
	}
	if err := testcluster.Poll(c.t.Context(), time.Minute, 200*time.Millisecond, func(context.Context) error {
		var list struct{ Archive struct{ State string } }
		a := c.call("viewer", "GET", "/backups", nil)
		if err := json.Unmarshal(a.Body, &list); err != nil || list.Archive.State != "continuous" && list.Archive.State != "waiting" {
			return fmt.Errorf("the archive is %s: %s, %w", list.Archive.State, a.Body, err)
		}
		return nil
	}); err != nil {
		c.t.Error(err)
	}
}
