package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"controld/internal/testcluster"
)

// records are those in Redis, read as the scripts before did.
func records(ctx context.Context, r *redis.Client) (map[string]map[string]string, error) {
	keys, err := r.Keys(ctx, "backup:*").Result()
	if err != nil {
		return nil, err
	}
	all := map[string]map[string]string{}
	for _, key := range keys {
		if all[key], err = r.HGetAll(ctx, key).Result(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// recorded waits until Redis has a record for each of these backups, and of others only those
// of the keys more.
func (c *cluster) recorded(r *redis.Client, backups []backupRecord, more ...string) map[string]map[string]string {
	c.t.Helper()
	want := slices.Clone(more)
	for _, b := range backups {
		want = append(want, b.Key)
	}
	slices.Sort(want)
	var all map[string]map[string]string
	err := testcluster.Poll(c.t.Context(), 40*time.Second, 200*time.Millisecond, func(ctx context.Context) (err error) {
		if all, err = records(ctx, r); err != nil {
			return err
		}
		index, err := r.ZCard(ctx, "backups").Result()
		if got := slices.Sorted(maps.Keys(all)); err != nil || !slices.Equal(got, want) || int(index) != len(backups) {
			return fmt.Errorf("redis has %v, %d in the index, %w; want %v", got, index, err, want)
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return all
}

// catalogue: Redis tells of the backups, whatever becomes of it.
func catalogue(t *testing.T, c *cluster) {
	t.Helper()
	options, err := redis.ParseURL(c.RedisURL)
	if err != nil {
		t.Fatal(err)
	}
	r := redis.NewClient(options)
	t.Cleanup(func() { _ = r.Close() })
	ctx := t.Context()

	all := c.backups()
	held := c.recorded(r, all)
	for _, b := range all {
		x := held[b.Key]
		for name, want := range map[string]string{
			"fecha": b.Fecha, "hora": b.Hora, "tipo_backup": b.Tipo, "direccion_almacenamiento": b.Dir, "maestro_usado": b.Primary,
			"metodo": "pgBackRest", "stanza": "main", "label": b.Label,
		} {
			if got, has := x[name]; !has || got != want {
				t.Errorf("%s: %s is %q, want %q", b.Key, name, got, want)
			}
		}
	}
	want := []string{
		"consistent", "copied_bytes", "cycle_day", "database_bytes", "direccion_almacenamiento", "duration_ms", "ended_at", "fecha", "hora",
		"label", "lsn_start", "lsn_stop", "maestro_usado", "metodo", "mode", "needs", "operation", "own_bytes", "page_errors", "prior",
		"repository_bytes", "requested_type", "stanza", "started_at", "system_id", "timeline", "tipo_backup", "type",
		"wal_start", "wal_stop",
	}
	if got := slices.Sorted(maps.Keys(held[all[1].Key])); !slices.Equal(got, want) {
		t.Errorf("fields of %s: %v", all[1].Key, got)
	}

	t.Log("without Redis a backup is made, and told when it is back")
	const foreign = "backup:2024-01-01_01-00-00"
	if err := r.HSet(ctx, foreign, "fecha", "2024-01-01", "maestro_usado", "postgres_master").Err(); err != nil {
		t.Fatal(err)
	}
	c.kill("redis")
	c.run("/backups", nil)
	var list struct{ Catalogue struct{ State string } }
	if a := c.call("viewer", "GET", "/backups", nil); json.Unmarshal(a.Body, &list) != nil || list.Catalogue.State != "away" {
		t.Errorf("the catalogue is %+v", list)
	}
	c.docker("start", c.Container("redis"))
	all = c.backups()
	held = c.recorded(r, all, foreign)
	if len(held[foreign]) != 2 {
		t.Errorf("%s: %v", foreign, held[foreign])
	}

	t.Log("one of a backup that does not exist goes, one of others stays until a person removes it")
	const gone = "backup:2024-01-01_02-00-00"
	bogus := maps.Clone(held[all[0].Key])
	bogus["label"] = "20240101-020000F"
	if err := r.HSet(ctx, gone, bogus).Err(); err != nil {
		t.Fatal(err)
	}
	r.ZAdd(ctx, "backups", redis.Z{Score: 1, Member: gone})
	c.recorded(r, all, foreign)
	for _, dry := range []bool{true, false} {
		var answer struct {
			Applied bool
			Records []struct{ Key, Why string }
		}
		a := c.call("admin", "POST", "/backups/orphans", map[string]any{"dry_run": dry})
		if err := json.Unmarshal(a.Body, &answer); err != nil || answer.Applied == dry || len(answer.Records) != 1 ||
			answer.Records[0].Key != foreign {
			t.Errorf("orphans: %d %s", a.Status, a.Body)
		}
	}
	c.recorded(r, all)

	t.Log("a repository that is not there removes nothing, and is not made anew")
	repository := path.Dir(path.Dir(path.Dir(all[0].Dir)))
	c.docker("exec", c.Container("pgbackrest"), "mv", repository, repository+".away")
	c.refused("/backups", nil, 409, "repository-lost")
	if _, h := c.health(); h["reason"] != "repository-lost" {
		t.Errorf("health: %v", h)
	}
	r.FlushAll(ctx)
	time.Sleep(5 * time.Second)
	c.docker("exec", c.Container("pgbackrest"), "mv", repository+".away", repository)

	t.Log("what was emptied is filled again")
	c.recorded(r, all)
	if left := c.backups(); len(left) != len(all) {
		t.Errorf("backups: %+v", left)
	}

	t.Log("one that is lost for good is replaced by who says so")
	c.refused("/backups", map[string]any{"type": "full", "new_repository": true}, 409, "repository-not-lost")
	c.docker("exec", c.Container("pgbackrest"), "mv", repository, repository+".lost")
	c.run("/backups", map[string]any{"type": "full", "new_repository": true})
	all = c.backups()
	if len(all) != 1 || all[0].Tipo != "completo" {
		t.Errorf("backups: %+v", all)
	}
	c.recorded(r, all)
}
