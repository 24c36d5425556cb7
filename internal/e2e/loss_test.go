package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"controld/internal/probe"
	"controld/internal/testcluster"
	"controld/internal/wal"
)

// walPage is how exact a told loss is: WAL is written and sent in pages.
const walPage = 8192

// held is more WAL than the network holds for a receiver that has stopped: the
// kernel lets the buffers of one connection grow to 36 MB on large machines.
const held = 48 << 20

// TestLossIsTold kills the primary while the standby is behind by megabytes. Nothing is lost where
// the primary's volume can be read. Where it cannot, the loss is told beforehand, has to be
// accepted, and is then what was told.
func TestLossIsTold(t *testing.T) {
	t.Parallel()
	c := up(t)
	c.psql(testcluster.Nodes[0], "create table bulk (n int, t text) with (autovacuum_enabled = off)")
	c.waitOK(time.Minute)

	t.Run("nothing with the volume readable", func(t *testing.T) {
		c := c.in(t)
		primary, standby := c.roles()
		w := c.writers(probe.Config{})
		resume := c.stopReceiver(standby)
		c.bulk(primary, held)
		time.Sleep(300 * time.Millisecond)
		lost := time.Now()
		c.kill(primary)
		resume()
		op := c.run("/failover", nil)
		r := w.Stop()
		if op.Mode != "emergency" || op.Result.LostBytes != 0 || op.Result.Estimate || op.Result.SalvagedBytes < 5<<20 {
			t.Errorf("mode %s: %+v; want nothing lost and more than 5 MB salvaged", op.Mode, op.Result)
		}
		c.check(r, op.Result.To)
		if got := c.psql(op.Result.To, "select sum(length(t)) from bulk"); got != strconv.Itoa(held) {
			t.Errorf("%s of %d bytes are left", got, held)
		}
		c.comesBackBy("follow", primary, lost)
	})

	t.Run("exactly, when the writer had stopped", func(t *testing.T) {
		c := c.in(t)
		primary, standby := c.roles()
		resume := c.stopReceiver(standby)
		c.bulk(primary, held+24<<20)
		time.Sleep(2500 * time.Millisecond) // two observation intervals
		flushed := c.lsn(primary, "pg_current_wal_flush_lsn()")
		lost := time.Now()
		c.loseVolume(primary)
		resume()
		truth := c.received(standby).Behind(flushed)

		told := c.lossTold("loss-over-bound", nil) // the bound is 16 MiB
		if d := told - truth; truth < 5<<20 || d < -walPage || d > walPage {
			t.Errorf("told %d bytes, %d are lost", told, truth)
		}
		if less := c.lossTold("loss-over-bound", told-1); less != told {
			t.Errorf("told %d bytes, then %d", told, less)
		}
		op := c.run("/failover", map[string]any{"max_loss_bytes": told})
		if op.Mode != "emergency" || !op.Result.Estimate || op.Result.LostBytes != told {
			t.Errorf("mode %s: %+v; want an estimate of %d bytes", op.Mode, op.Result, told)
		}
		c.comesBackBy("base backup", primary, lost) // its volume holds no data any more
	})

	t.Run("at least what is lost, with the writer running", func(t *testing.T) {
		c := c.in(t)
		primary, standby := c.roles()
		w := c.writers(probe.Config{})
		resume := c.stopReceiver(standby)
		c.bulk(primary, held)
		time.Sleep(2500 * time.Millisecond)
		flushed, timeline := c.lsn(primary, "pg_current_wal_flush_lsn()"), c.topology().Nodes[0].Timeline
		lost := time.Now()
		c.loseVolume(primary)
		w.Stop()
		resume()
		truth := c.received(standby).Behind(c.endOfWAL(primary, timeline, flushed))

		told := c.lossTold("loss-over-bound", 0)
		if told < truth || truth == 0 {
			t.Errorf("told %d bytes, %d are lost", told, truth)
		}
		t.Logf("told %d bytes, %d are lost", told, truth)
		if op := c.run("/failover", map[string]any{"max_loss_bytes": told}); op.Result.LostBytes != told {
			t.Errorf("told %d bytes, then %d", told, op.Result.LostBytes)
		}
		c.comesBackBy("base backup", primary, lost)
	})

	t.Run("unknown, when controld never saw it", func(t *testing.T) {
		c := c.in(t)
		primary, _ := c.roles()
		lost := time.Now()
		c.loseVolume(primary)
		c.docker("restart", c.Container("controld"))
		err := testcluster.Poll(t.Context(), 30*time.Second, 100*time.Millisecond, func(ctx context.Context) error {
			_, err := c.Call(ctx, "", "GET", "/health/live", nil)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		c.lossTold("loss-unknown", nil)
		c.lossTold("loss-unknown", int64(1)<<50)
		op := c.run("/failover", map[string]any{"max_loss_bytes": -1})
		if op.Mode != "emergency" || !op.Result.Estimate {
			t.Errorf("mode %s: %+v; want an estimate", op.Mode, op.Result)
		}
		c.comesBackBy("base backup", primary, lost)
	})
}

// stopReceiver stops the standby's walreceiver; the returned function lets it go on.
func (c *cluster) stopReceiver(standby string) (resume func()) {
	c.t.Helper()
	pid := c.psql(standby, "select pid from pg_stat_wal_receiver")
	c.signal(standby, "STOP", pid)
	return func() {
		c.t.Helper()
		c.signal(standby, "CONT", pid)
	}
}

// signal sends a signal to a process, by its number in the node's container.
func (c *cluster) signal(node, name, pid string) {
	c.t.Helper()
	if err := c.inContainer(node, "kill -"+name+" "+pid); err != nil {
		c.t.Fatal(err)
	}
}

// bulk commits rows of so many bytes, which nothing compresses, and makes sure
// that their WAL is on the primary's disk.
func (c *cluster) bulk(primary string, bytes int) {
	c.t.Helper()
	c.psql(primary, fmt.Sprintf(`truncate bulk;
		insert into bulk select g, repeat(md5(g::text), 32) from generate_series(1, %d) g`, bytes/1024))
}

func (c *cluster) lsn(node, expression string) wal.LSN {
	c.t.Helper()
	text := c.psql(node, "select "+expression)
	lsn, err := wal.ParseLSN(text)
	if err != nil {
		c.t.Fatal(err)
	}
	return lsn
}

// received is the position up to which the standby has WAL on its disk, once its walreceiver has
// taken what the network still held and has ended.
func (c *cluster) received(standby string) wal.LSN {
	c.t.Helper()
	err := testcluster.Poll(c.t.Context(), 20*time.Second, 50*time.Millisecond, func(ctx context.Context) error {
		n, err := c.Psql(ctx, standby, "imdb", "select count(*) from pg_stat_wal_receiver where status = 'streaming'")
		if err == nil && n != "0" {
			err = fmt.Errorf("it still streams")
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return c.lsn(standby, "greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())")
}

// loseVolume kills a node and takes its data out of everybody's reach.
func (c *cluster) loseVolume(node string) {
	c.t.Helper()
	c.kill(node)
	c.helper(node, []string{"--rm"}, "sh", "-c", "rm -rf /v/lost && mv /v/data /v/lost")
}

// endOfWAL is where the WAL of a lost volume ends; from is a record in it.
func (c *cluster) endOfWAL(node string, timeline uint32, from wal.LSN) wal.LSN {
	c.t.Helper()
	dump := fmt.Sprintf("pg_waldump -p /v/lost/pg_wal -t %d -s %s 2>&1 || true", timeline, from)
	out := c.helper(node, []string{"--rm"}, "sh", "-c", dump)
	// It ends with a complaint that tells the last record and where the next one is missing.
	complaint := out[strings.LastIndex(out, "\n")+1:]
	var end wal.LSN
	for _, text := range regexp.MustCompile(`[0-9A-F]+/[0-9A-F]+`).FindAllString(complaint, -1) {
		at, err := wal.ParseLSN(text)
		if err != nil {
			c.t.Fatal(err)
		}
		end = max(end, at)
	}
	if end <= from {
		c.t.Fatalf("pg_waldump names no end after %s: %s", from, complaint)
	}
	return end
}

// lossTold is how many bytes the refusal of a failover says would be lost; it is
// refused by the problem kind, with the bound that the request accepts (nil: none).
func (c *cluster) lossTold(kind string, accepted any) int64 {
	c.t.Helper()
	body := map[string]any{}
	if accepted != nil {
		body["max_loss_bytes"] = accepted
	}
	p := c.refused("/failover", body, 409, kind)
	bytes, ok := p.Numbers["lost_bytes"].(float64)
	if !ok || p.Numbers["estimate"] != true {
		c.t.Errorf("the refusal has no figures: %+v", p)
	}
	return int64(bytes)
}
