package backup

import (
	"slices"
	"strings"
	"testing"
	"testing/quick"
	"time"

	"controld/internal/schedule"
)

// sixDays is the cycle as the scripts had it.
const sixDays = "full; incr; incr,diff; incr; incr,diff; diff,full"

func cycle(t *testing.T, text string) Cycle {
	t.Helper()
	c, err := ParseCycle(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParseCycle(t *testing.T) {
	c := cycle(t, " full;incr ;incr , diff; incr;incr,diff;diff,full")
	if c.String() != sixDays || len(c) != 6 {
		t.Errorf("%s", c)
	}
	for text, says := range map[string]string{
		"":                                   `day 1: "" is no type`,
		"full;":                              `day 2: "" is no type`,
		"full; icnr":                         `day 2: "icnr" is no type of backup: write full, diff or incr`,
		"full; incr,incr":                    "day 2: incr stands there twice",
		"incr; diff":                         "no day makes a full",
		strings.Repeat("incr;", 31) + "full": "32 days",
	} {
		if _, err := ParseCycle(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}

// nightly is at three o'clock in Madrid: 02:00Z in winter, 01:00Z in summer.
func nightly(t *testing.T) func(time.Time) time.Time {
	t.Helper()
	s, err := schedule.Parse("0 3 * * *", "Europe/Madrid", false)
	if err != nil {
		t.Fatal(err)
	}
	return s.Next
}

func utc(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse("2006-01-02 15:04", text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestDue(t *testing.T) {
	c := cycle(t, sixDays)
	for _, tt := range []struct {
		name           string
		day            int
		slot, now      string
		want           int // the day; 0: nothing is due
		types, slotFor string
		missed         int
	}{
		{"before it", 1, "2026-12-01 02:00", "2026-12-02 01:59", 0, "", "", 0},
		{"at the moment", 1, "2026-12-01 02:00", "2026-12-02 02:00", 2, "incr", "2026-12-02 02:00", 0},
		{"two types", 2, "2026-12-01 02:00", "2026-12-02 09:00", 3, "incr diff", "2026-12-02 02:00", 0},
		{"day 6", 5, "2026-12-01 02:00", "2026-12-02 02:01", 6, "diff full", "2026-12-02 02:00", 0},
		{"after day 6 comes day 1", 6, "2026-12-01 02:00", "2026-12-02 02:01", 1, "full", "2026-12-02 02:00", 0},
		{"nothing was made yet", 0, "2026-12-01 13:00", "2026-12-02 02:01", 1, "full", "2026-12-02 02:00", 0},
		{"down over one night", 1, "2026-12-01 02:00", "2026-12-03 02:01", 3, "diff", "2026-12-03 02:00", 1},
		{"down over day 6", 3, "2026-12-01 02:00", "2026-12-05 10:00", 1, "full", "2026-12-05 02:00", 3},
		{"down over incrementals", 3, "2026-12-01 02:00", "2026-12-02 10:00", 4, "incr", "2026-12-02 02:00", 0},
		{"down for a year", 3, "2026-12-01 02:00", "2027-12-01 10:00", 2, "full", "2027-12-01 02:00", 364},
		{"a clock set back by an hour makes nothing twice", 3, "2026-12-02 02:00", "2026-12-02 01:10", 0, "", "", 0},
		{"and when it comes to that moment again", 3, "2026-12-02 02:00", "2026-12-02 02:00", 0, "", "", 0},
		{"a clock set back by a day", 3, "2026-12-02 02:00", "2026-12-01 02:10", 0, "", "", 0},
		{"summer time begins", 1, "2027-03-27 02:00", "2027-03-28 01:00", 2, "incr", "2027-03-28 01:00", 0},
		{"summer time ends", 1, "2027-10-30 01:00", "2027-10-31 02:00", 2, "incr", "2027-10-31 02:00", 0},
		{"and not before", 1, "2027-10-30 01:00", "2027-10-31 01:59", 0, "", "", 0},
	} {
		got, due := c.Due(nightly(t), Served{Day: tt.day, Slot: utc(t, tt.slot)}, utc(t, tt.now))
		if due != (tt.want > 0) || got.Day != tt.want || got.Missed != tt.missed || joinTypes(got.Types, " ") != tt.types {
			t.Errorf("%s: %+v, due %t", tt.name, got, due)
		}
		if due && !got.Slot.Equal(utc(t, tt.slotFor)) {
			t.Errorf("%s: for %s", tt.name, got.Slot)
		}
	}
}

// A clock that was a year ahead: the first night after it was set right is served.
func TestClockWasAhead(t *testing.T) {
	c, next, now := cycle(t, sixDays), nightly(t), utc(t, "2026-12-02 02:10")
	served := Served{Day: 3, Slot: utc(t, "2027-12-02 02:00")}.asOf(now)
	if upcoming, is := c.NextRun(next, served, now); !is || upcoming.Day != 4 || !upcoming.Slot.Equal(utc(t, "2026-12-03 02:00")) {
		t.Errorf("%+v", upcoming)
	}
	if run, due := c.Due(next, served, now); due {
		t.Errorf("due at once: %+v", run)
	}
	now = utc(t, "2026-12-03 02:00")
	if run, due := c.Due(next, served.asOf(now), now); !due || run.Day != 4 || run.Missed != 0 {
		t.Errorf("%+v, due %t", run, due)
	}
}

// However often somebody looks, at whatever times, however long nobody did: what is planned
// is served once, nothing is served before its time, and days follow one another.
func TestServedOnce(t *testing.T) {
	c, next := cycle(t, sixDays), nightly(t)
	try := func(steps []uint16) bool {
		now := utc(t, "2027-03-20 12:00")
		served := Served{Slot: now}
		planned := next(now)
		for _, step := range steps {
			now = now.Add(time.Duration(step) * time.Minute) // up to 45 days
			run, due := c.Due(next, served, now)
			if due != !planned.After(now) {
				t.Logf("at %s: due %t, planned for %s", now, due, planned)
				return false
			}
			if !due {
				continue
			}
			n := 0
			for ; !planned.After(now); planned = next(planned) {
				n++
			}
			if run.Missed != n-1 || run.Day != c.after(served.Day, n) || n > 1 && len(run.Types) != 1 || run.Slot.After(now) {
				t.Logf("at %s: %+v, %d were planned", now, run, n)
				return false
			}
			served = Served{Day: run.Day, Slot: run.Slot}
			if _, again := c.Due(next, served, now); again {
				return false
			}
			upcoming, is := c.NextRun(next, served, now)
			if !is || !upcoming.Slot.Equal(planned) || upcoming.Day != c.after(run.Day, 1) {
				t.Logf("at %s: next is %+v, want %s", now, upcoming, planned)
				return false
			}
		}
		return true
	}
	if err := quick.Check(try, &quick.Config{MaxCount: 300}); err != nil {
		t.Error(err)
	}
}

// A schedule that fires each minute, and a daemon that was away for years.
func TestMostMissed(t *testing.T) {
	each := func(at time.Time) time.Time { return at.Truncate(time.Minute).Add(time.Minute) }
	now := utc(t, "2027-12-01 10:00")
	run, due := cycle(t, sixDays).Due(each, Served{Day: 3, Slot: utc(t, "2020-12-01 02:00")}, now)
	if !due || run.Day != 1 || !slices.Equal(run.Types, []Type{Full}) || !run.Slot.Equal(now) {
		t.Errorf("%+v, due %t", run, due)
	}
}
