package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"controld/internal/testcluster"
)

// What the days of the cycle make.
var cycleDays = [][]string{
	{"completo"}, {"incremental"}, {"incremental", "diferencial"}, {"incremental"}, {"incremental", "diferencial"},
	{"diferencial", "completo"},
}

// TestCycle has three days pass, and a whole week that nobody was there for.
func TestCycle(t *testing.T) {
	t.Parallel()
	c := upFailpoint(t)
	want := []string{"1 completo postgres_master"}
	for day := 2; day <= 3; day++ {
		want = append(want, c.passDay(day, "postgres_master")...)
		c.made(want)
	}
	c.clock(9 * 24 * time.Hour) // seven days more, and after day 3 and seven days comes day 4
	want = append(want, "4 completo postgres_master")
	c.made(want)
}

// cycles has the six days pass n times, with a failover at every boundary.
func cycles(t *testing.T, n int) {
	t.Helper()
	c := upFailpoint(t)
	nodes := []string{"postgres_master", "postgres_slave"}
	want := []string{"1 completo postgres_master"}
	for day := 2; day <= 6*n; day++ {
		c.run("/failover", nil)
		c.waitOK(5 * time.Minute)
		want = append(want, c.passDay(day, nodes[(day-1)%2])...)
		c.made(want)
		fulls := 0
		for _, b := range c.backups() {
			if b.Tipo == "completo" && b.Consistent {
				fulls++
			}
		}
		if day >= 6 && fulls < 2 {
			t.Errorf("%d good fulls after day %d", fulls, day)
		}
	}
}

// passDay has the clock show the day-th day, and returns what it makes of the node that leads.
func (c *cluster) passDay(day int, node string) (want []string) {
	c.t.Helper()
	c.clock(time.Duration(day-1) * 24 * time.Hour)
	n := (day - 1) % len(cycleDays)
	for _, tipo := range cycleDays[n] {
		want = append(want, fmt.Sprintf("%d %s %s", n+1, tipo, node))
	}
	return want
}

// clock has controld plan by a clock that is ahead, and kills it: the next one looks at once.
func (c *cluster) clock(ahead time.Duration) {
	c.t.Helper()
	c.docker("exec", c.Container("controld"), "sh", "-c", fmt.Sprintf("echo %s >/var/lib/controld/clock", ahead))
	c.kill("controld")
	c.docker("start", c.Container("controld"))
}

// made waits until the last backups are these: "day type node".
func (c *cluster) made(want []string) {
	c.t.Helper()
	if err := testcluster.Poll(c.t.Context(), 5*time.Minute, time.Second, func(context.Context) error {
		var got []string
		if _, err := c.Call(c.t.Context(), "viewer", "GET", "/health/live", nil); err != nil {
			return err // the next controld does not answer yet
		}
		for _, b := range c.backups() {
			got = append(got, fmt.Sprintf("%d %s %s", b.CycleDay, b.Tipo, strings.TrimPrefix(b.Primary, c.Prefix)))
		}
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			return fmt.Errorf("made %q, want %q", got, want)
		}
		return nil
	}); err != nil {
		c.t.Fatal(err)
	}
	c.waitOK(5 * time.Minute)
}
