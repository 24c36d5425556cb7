package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"controld/internal/node/archive"
	"controld/internal/probe"
	"controld/internal/testcluster"
	"controld/internal/wal"
)

// TestRestoreAfterEmergencies loses the primary again and again under load. After each
// failover pgBackRest itself restores the only backup, made before all of them, to the
// latest state: it has every commit that a client was told of.
func TestRestoreAfterEmergencies(t *testing.T) {
	t.Parallel()
	restoreAfterEmergencies(t, 4)
}

func restoreAfterEmergencies(t *testing.T, count int) {
	t.Helper()
	c := upAlone(t)
	for i := range count {
		// In every other one nothing is archived from before the failover until after it.
		fails := i%2 == 1
		t.Logf("failover %d, archiving fails: %v", i+1, fails)
		w := c.writers(probe.Config{})
		primary, standby, err := c.leader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if fails {
			c.archiveTakes(false)
			const bulk = "SELECT count(pg_logical_emit_message(false, 'bulk', repeat(md5(g::text), 32768))) FROM generate_series(1, 132) g"
			c.psql(primary, bulk) // a MiB each
			for range 2 {
				c.psql(primary, "CHECKPOINT")
				c.caughtUp(t, primary, standby)
				c.psql(standby, "CHECKPOINT")
			}
			const waiting = "SELECT count(*) * 4 >= 128 FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
			if enough := c.psql(primary, waiting); enough != "t" {
				t.Error("less than 128 MiB wait to be archived")
			}
		}
		c.kill(primary)
		c.run("/failover", map[string]any{"mode": "emergency"})
		if fails {
			c.streams(standby, primary)
			if i%4 == 3 { // what was saved from the old primary is lost: the new one has kept its own
				c.docker("exec", c.Container(primary), "sh", "-c", "rm -r /pg/*/aside")
			}
			c.archiveTakes(true)
		}
		c.waitOK(2 * time.Minute)
		report := verdict(t, c, w)
		c.restoresToLatest(t, standby, report)
		if t.Failed() {
			return
		}
	}
}

// archiveTakes decides whether the archive takes anything.
func (c *cluster) archiveTakes(yes bool) {
	c.t.Helper()
	mode := "500"
	if yes {
		mode = "750"
	}
	c.docker("exec", "-u", "0", c.Container("pgbackrest"), "sh", "-c",
		"find /var/lib/pgbackrest/*/archive/main/15-1 -type d -exec chmod "+mode+" {} +")
}

// streams waits until the standby streams from the primary.
func (c *cluster) streams(primary, standby string) {
	c.t.Helper()
	c.until(2*time.Minute, func() error {
		var streaming bool
		err := c.query(c.t.Context(), primary, "select exists (select from pg_stat_replication where state = 'streaming' and "+
			"application_name = '"+standby+"')", &streaming)
		if err == nil && !streaming {
			err = fmt.Errorf("%s does not stream", standby)
		}
		return err
	})
}

type archived struct {
	State   string
	Reaches string
	Holes   []any
}

func (c *cluster) archived() archived {
	c.t.Helper()
	var list struct{ Archive archived }
	a := c.call("viewer", "GET", "/backups", nil)
	if err := json.Unmarshal(a.Body, &list); err != nil || a.Status != 200 {
		c.t.Fatalf("GET /backups: %d %s", a.Status, a.Body)
	}
	return list.Archive
}

// archiveReaches waits until the archive has all WAL that was written until now.
func (c *cluster) archiveReaches(primary string) {
	c.t.Helper()
	switched, err := wal.ParseLSN(c.psql(primary, "SELECT pg_switch_wal()"))
	if err != nil {
		c.t.Fatal(err)
	}
	c.until(2*time.Minute, func() error {
		a := c.archived()
		if reaches, err := wal.ParseLSN(a.Reaches); err != nil || a.State == "hole" || reaches < switched {
			return fmt.Errorf("the archive is %s and reaches %s, want %s", a.State, a.Reaches, switched)
		}
		return nil
	})
}

// restoresToLatest has pgBackRest restore the newest backup to the latest state, in a
// container of its own, and holds the result against what the writers were told.
func (c *cluster) restoresToLatest(t *testing.T, primary string, report *probe.Report) {
	t.Helper()
	c.archiveReaches(primary)
	name := c.Container("restored")
	remove := func() { _, _ = c.Docker(context.WithoutCancel(t.Context()), "rm", "-f", "-v", name) }
	defer remove()
	c.docker("run", "-d", "--name", name, "-p", "127.0.0.1::5432", "--user", "5432:5432", "--entrypoint", "sleep",
		"-v", c.Container("pgbackrest-repo")+":/var/lib/pgbackrest", "-e", "PGBACKREST_CONFIG_INCLUDE_PATH=/tmp/none",
		"controld/postgres:"+tag(), "3600")
	began := time.Now()
	c.docker("exec", name, "bash", "-ec", `
		mkdir -p /tmp/none /tmp/run && mkdir -m 700 /tmp/data
		export TZ=UTC PGBACKREST_CONFIG=/dev/null
		/usr/bin/pgbackrest --stanza=main --repo1-path=$(echo /var/lib/pgbackrest/[0-9]*) --pg1-path=/tmp/data --lock-path=/tmp/run \
			--log-level-file=off --log-level-console=error restore --archive-mode=off
		echo 'host all all all trust' >/tmp/hba
		cat >/tmp/postgresql.conf <<-end
			data_directory = '/tmp/data'
			hba_file = '/tmp/hba'
			listen_addresses = '*'
			unix_socket_directories = '/tmp/run'
			max_wal_senders = 10
			fsync = off
		end
		/usr/lib/postgresql/15/bin/postgres -D /tmp/data -c config_file=/tmp/postgresql.conf >/tmp/log 2>&1 &`)
	host := strings.TrimPrefix(strings.Split(c.docker("port", name, "5432"), "\n")[0], "5432/tcp -> ")
	dsn := "postgresql://app@" + host + "/imdb?sslmode=disable"
	err := testcluster.Poll(t.Context(), 3*time.Minute, 200*time.Millisecond, func(ctx context.Context) error {
		var recovery bool
		if err := queryAt(ctx, dsn, "select pg_is_in_recovery()", &recovery); err != nil {
			return err
		}
		if recovery {
			return fmt.Errorf("%s is still in recovery", name)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, c.docker("exec", name, "tail", "-n", "30", "/tmp/log"))
	}
	v, err := report.Check(t.Context(), dsn)
	if err == nil {
		err = v.Err()
	}
	if err != nil {
		t.Errorf("restored: %v\n%s", err, c.docker("exec", name, "tail", "-n", "30", "/tmp/log"))
	}
	t.Logf("restored to the latest state in %s, %d acknowledged commits are there", time.Since(began).Round(time.Millisecond), v.Acked)
}

// TestArchiveInTrouble moves and stops servers whose archive hangs, and has another server's
// WAL in the archive.
func TestArchiveInTrouble(t *testing.T) {
	t.Parallel()
	c := upAlone(t)
	w := c.writers(probe.Config{})
	first, second := testcluster.Nodes[0], testcluster.Nodes[1]

	t.Log("a repository that hangs delays no move and no stop")
	info := "$(echo /var/lib/pgbackrest/[0-9]*/archive/main/archive.info)"
	repository := func(do string) {
		c.docker("exec", "-u", "5432", c.Container("pgbackrest"), "sh", "-ec", "f="+info+"; "+do)
	}
	repository(`mv $f $f.kept; mkfifo $f`)
	hangs := func(node string) {
		t.Helper()
		c.psql(node, "SELECT pg_switch_wal()")
		c.until(time.Minute, func() error {
			if processes := c.docker("top", c.Container(node), "-eo", "pid,args"); !strings.Contains(processes, archive.Program+" ") {
				return errors.New("nothing is being archived")
			}
			return nil
		})
	}
	hangs(first)
	began := time.Now()
	moved := c.run("/failover", nil)
	if took := moved.Ended.Sub(moved.Began); took > archive.PushLimit/2 {
		t.Errorf("the failover took %s", took)
	}
	written(t, w, began, time.Minute)
	c.streams(second, first)
	hangs(second)
	c.kill(second)
	c.run("/failover", map[string]any{"mode": "emergency"})
	c.streams(first, second)
	hangs(first)
	began = time.Now()
	c.docker("stop", "-t", "120", c.Container(first))
	took := time.Since(began)
	if took > archive.PushLimit/2 {
		t.Errorf("%s stopped after %s", first, took)
	}
	t.Logf("moved in %s, stopped in %s", moved.Ended.Sub(moved.Began), took)
	c.docker("start", c.Container(first))
	c.run("/nodes/"+first+"/start", nil)
	repository(`rm $f; mv $f.kept $f`)
	// The one that hangs would do so until its limit.
	c.killProcesses(first, "pgbackrest")
	c.waitOK(2 * time.Minute)
	report := verdict(t, c, w)
	primary, _, err := c.leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.restoresToLatest(t, primary, report)

	t.Log("a segment of another server in the archive is told, and cured by a move")
	c.psql(primary, "SELECT pg_switch_wal()")
	name := c.psql(primary, "SELECT pg_walfile_name(pg_logical_emit_message(false, 'more', 'more'))")
	repository(`cd $(dirname $f)/15-1/` + name[:16] + `; cp $(ls | grep -v backup | head -n 1) ` + name +
		`-0123456789abcdef0123456789abcdef01234567.zst`)
	c.psql(primary, "SELECT pg_switch_wal()")
	c.until(2*time.Minute, func() error {
		if _, body := c.health(); !strings.Contains(fmt.Sprint(body), "archive-conflict") {
			return fmt.Errorf("health: %v", body)
		}
		return nil
	})
	c.run("/failover", nil)
	c.until(3*time.Minute, func() error {
		if all := c.backups(); len(all) != 2 || all[1].Tipo != "completo" {
			return fmt.Errorf("backups %+v", all)
		}
		return nil
	})
	c.waitOK(2 * time.Minute)
	if a := c.archived(); a.State != "hole" || len(a.Holes) != 1 {
		t.Errorf("archive %+v, want one hole", a)
	}
}
