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

type backupRecord struct {
	Key        string   `json:"key"`
	Fecha      string   `json:"fecha"`
	Hora       string   `json:"hora"`
	Tipo       string   `json:"tipo_backup"`
	Dir        string   `json:"direccion_almacenamiento"`
	Primary    string   `json:"maestro_usado"`
	Metodo     string   `json:"metodo"`
	Stanza     string   `json:"stanza"`
	Label      string   `json:"label"`
	Type       string   `json:"type"`
	Needs      []string `json:"needs"`
	Consistent bool     `json:"consistent"`
	Operation  string   `json:"operation"`
	CycleDay   int      `json:"cycle_day"`
}

// backups are those in the repository, the oldest first.
func (c *cluster) backups() []backupRecord {
	c.t.Helper()
	var list struct{ Backups []backupRecord }
	a := c.call("viewer", "GET", "/backups", nil)
	if err := json.Unmarshal(a.Body, &list); err != nil || a.Status != 200 {
		c.t.Fatalf("GET /backups: %d %s", a.Status, a.Body)
	}
	slices.Reverse(list.Backups)
	return list.Backups
}

// TestBackups is the test that the scripts before had: day 1 on the first primary, a
// failover, day 2 on the other, a failback, day 4 on the first again. Each says of whom it is.
func TestBackups(t *testing.T) {
	t.Parallel()
	c := upAlone(t)
	first := c.backups()
	if len(first) != 1 || first[0].Tipo != "completo" { // nobody runs without one
		t.Fatalf("backups of a new cluster: %+v", first)
	}
	c.run("/failover", nil)
	c.run("/backups/cycle/2", nil)
	c.run("/failback", nil)
	c.run("/backups/cycle/4", map[string]any{"reason": "the scripts' own test"})
	all := c.backups()
	var cycle struct {
		Day  int
		Next struct{ Day int }
	}
	if a := c.call("viewer", "GET", "/backups/cycle", nil); json.Unmarshal(a.Body, &cycle) != nil || cycle.Day != 4 || cycle.Next.Day != 5 {
		t.Errorf("GET /backups/cycle: %d %s", a.Status, a.Body)
	}
	want := []struct {
		tipo, node string
		day        int
	}{
		{"completo", "postgres_master", 1}, {"incremental", "postgres_slave", 2}, {"incremental", "postgres_master", 4},
	}
	if len(all) != len(want) {
		t.Fatalf("%d backups: %+v", len(all), all)
	}
	for i, b := range all {
		tool := b.Metodo + " " + b.Stanza
		of := b.CycleDay == want[i].day && b.Primary == c.Container(want[i].node)
		if !of || b.Tipo != want[i].tipo || !b.Consistent || tool != "pgBackRest main" {
			t.Errorf("backup %d: %+v, want %v", i, b, want[i])
		}
		if b.Key != "backup:"+b.Fecha+"_"+strings.ReplaceAll(b.Hora, ":", "-") {
			t.Errorf("key %s of %s %s", b.Key, b.Fecha, b.Hora)
		}
		c.docker("exec", c.Container("pgbackrest"), "test", "-e", b.Dir+"/backup.manifest")
		var one backupRecord
		a := c.call("viewer", "GET", "/backups/"+strings.TrimPrefix(b.Key, "backup:"), nil)
		if err := json.Unmarshal(a.Body, &one); err != nil || one.Label != b.Label {
			t.Errorf("GET /backups/%s: %d %s", b.Key, a.Status, a.Body)
		}
	}
	c.refused("/backups", map[string]any{"mode": "offline"}, 409, "inconsistent")
	c.refused("/backups/cycle/7", nil, 404, "unknown-day")
	if a := c.call("viewer", "GET", "/backups/2001-01-01_00-00-00", nil); a.Status != 404 {
		t.Errorf("an unknown key: %d %s", a.Status, a.Body)
	}
	backupsByHand(t, c)
	catalogue(t, c)
	c.waitOK(time.Minute)
}

// backupsByHand: what a person runs in the container leaves no files of root, and is seen.
func backupsByHand(t *testing.T, c *cluster) {
	t.Helper()
	c.docker("exec", c.Container("pgbackrest"), "pgbackrest", "--stanza=main", "--type=incr", "backup")
	others := c.docker("exec", c.Container("pgbackrest"), "find", "/var/lib/pgbackrest", "!", "-user", "postgres")
	if others != "" {
		t.Errorf("files of others in the repository:\n%s", others)
	}
	c.run("/backups", nil) // after which the repository was looked at
	if all := c.backups(); len(all) != 5 || all[3].Operation != "" || all[3].Primary != "" {
		t.Errorf("backups after one by hand: %+v", all)
	}
}

// TestBackupsAreCutOff kills what takes part in a backup while it runs, of an encrypted
// repository.
func TestBackupsAreCutOff(t *testing.T) {
	t.Parallel()
	c := upAlone(t, "CONTROLD_BACKUP_ENCRYPTION=aes-256-cbc", "CONTROLD_BACKUP_RETAIN_FULLS=9")
	var list struct{ Repository struct{ Cipher string } }
	if a := c.call("viewer", "GET", "/backups", nil); json.Unmarshal(a.Body, &list) != nil || list.Repository.Cipher != "aes-256-cbc" {
		t.Errorf("it is not encrypted: %s", a.Body)
	}
	c.psql("postgres_master", "CREATE TABLE bulk AS SELECT g, md5(g::text) AS pad FROM generate_series(1, 1000000) g") // 65 MB
	pace := func(cpus string) { c.docker("update", "--cpus", cpus, c.Container("pgbackrest")) }
	begin := func() operation {
		pace("0.05")
		a := c.call("admin", "POST", "/backups", map[string]any{"type": "full"}, "Prefer", "respond-async")
		var op operation
		if err := json.Unmarshal(a.Body, &op); err != nil || a.Status != 202 {
			c.t.Fatalf("%d %s", a.Status, a.Body)
		}
		c.progressOf(op.ID)
		return op
	}
	count := func(want int) {
		t.Helper()
		if all := c.backups(); len(all) != want {
			t.Errorf("%d backups, want %d: %+v", len(all), want, all)
		}
	}

	t.Log("controld is killed: the next one goes on with it")
	op := begin()
	c.kill("controld")
	c.docker("start", c.Container("controld"))
	c.progressOf(op.ID)
	pace("2")
	c.endsAs(op.ID, "succeeded")
	count(2)

	t.Log("its container is killed: it fails, and says so")
	op = begin()
	c.kill("pgbackrest")
	pace("2")
	c.docker("start", c.Container("pgbackrest"))
	c.endsAs(op.ID, "undone")
	c.waitOK(time.Minute)
	count(2)

	t.Log("pgbackrest's first process is killed: its workers go too, and the lock is free")
	op = begin()
	c.docker("exec", c.Container("pgbackrest"), "pkill", "-KILL", "-o", "-f", "pgbackrest .*backup$")
	c.endsAs(op.ID, "undone")
	pace("2")
	c.run("/backups", map[string]any{"type": "full"})
	count(3)

	t.Log("a failover does not wait for it, and it is made again of the new primary")
	op = begin()
	moved := c.run("/failover", nil)
	if took := moved.Ended.Sub(moved.Began); took > 20*time.Second {
		t.Errorf("the failover took %s", took)
	}
	c.endsAs(op.ID, "cancelled")
	pace("2")
	if err := testcluster.Poll(t.Context(), 5*time.Minute, time.Second, func(context.Context) error {
		all := c.backups()
		if len(all) != 4 || all[3].Primary != c.Container("postgres_slave") {
			return fmt.Errorf("backups: %+v", all)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	c.waitOK(time.Minute)
}
