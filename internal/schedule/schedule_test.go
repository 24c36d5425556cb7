package schedule

import (
	"strings"
	"testing"
	"time"
)

func parse(t *testing.T, expression, zone string) *Schedule {
	t.Helper()
	s, err := Parse(expression, zone, true)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct{ expression, zone, says string }{
		{"", "UTC", "empty"},
		{"0 3 * *", "UTC", "0 3 * * *"},
		{"0 3 * * * *", "UTC", "expected exactly 5"},
		{"60 3 * * *", "UTC", "above maximum"},
		{"0 3 * * mum", "UTC", "mum"},
		{"0 3 30 2 *", "UTC", "never"},
		{"@every 24h", "UTC", "@every"},
		{"TZ=UTC 0 3 * * *", "UTC", "TZ="},
		{"CRON_TZ=UTC", "UTC", "TZ="},
		{"0 3,14 * * *", "UTC", "03:00 and again at 14:00"},
		{"0 3,14 29 2 *", "UTC", "twelve hours"},
		{"* * * * *", "UTC", "twelve hours"},
		{"0 3 * * *", "Europe/Nowhere", "Europe/Nowhere"},
	} {
		if _, err := Parse(tt.expression, tt.zone, false); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%q in %s: %v, want %q", tt.expression, tt.zone, err, tt.says)
		}
	}
	for _, fine := range []string{"0 3 * * *", "0 3,15 * * *", "@daily", "@weekly", "30 2 1 * *", "0 4 29 2 *"} {
		if _, err := Parse(fine, "Europe/Madrid", false); err != nil {
			t.Errorf("%q: %v", fine, err)
		}
	}
	if _, err := Parse("0 3,14 * * *", "UTC", true); err != nil {
		t.Errorf("more often than allowed, and that is allowed: %v", err)
	}
}

// What comes after what, where the clock on the wall jumps.
func TestNext(t *testing.T) {
	for _, tt := range []struct {
		name, expression, zone, from string
		want                         []string
	}{
		{"an ordinary day", "0 3 * * *", "UTC", "2026-12-01T02:59:59Z", []string{"2026-12-01T03:00:00Z", "2026-12-02T03:00:00Z"}},
		{"at the moment itself comes the next one", "0 3 * * *", "UTC", "2026-12-01T03:00:00Z", []string{"2026-12-02T03:00:00Z"}},
		{"local time", "0 3 * * *", "Europe/Madrid", "2026-12-01T00:00:00Z", []string{"2026-12-01T02:00:00Z"}},
		{"midnight", "0 0 * * *", "UTC", "2026-12-31T23:59:59.9Z", []string{"2027-01-01T00:00:00Z", "2027-01-02T00:00:00Z"}},
		// 2027-03-28 01:00Z: 02:00 becomes 03:00.
		{
			"the gap", "30 2 * * *", "Europe/Madrid", "2027-03-27T12:00:00Z",
			[]string{"2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z"},
		},
		{"the gap's end", "0 3 * * *", "Europe/Madrid", "2027-03-27T12:00:00Z", []string{"2027-03-28T01:00:00Z", "2027-03-29T01:00:00Z"}},
		{
			"two in the gap are one", "0,30 2 * * *", "Europe/Madrid", "2027-03-28T00:59:59Z",
			[]string{"2027-03-28T01:00:00Z", "2027-03-29T00:00:00Z"},
		},
		// 2027-10-31 01:00Z: 03:00 becomes 02:00.
		{
			"the hour that comes twice", "30 2 * * *", "Europe/Madrid", "2027-10-30T12:00:00Z",
			[]string{"2027-10-31T00:30:00Z", "2027-11-01T01:30:00Z"},
		},
		{"asked for in its second pass", "30 2 * * *", "Europe/Madrid", "2027-10-31T01:10:00Z", []string{"2027-11-01T01:30:00Z"}},
		{
			"a change at midnight", "0 0 * * *", "America/Santiago", "2026-09-05T12:00:00Z",
			[]string{"2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"},
		},
		{
			"half an hour", "15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z",
			[]string{"2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"},
		},
		{
			"a day that was left out", "0 12 * * *", "Pacific/Apia", "2011-12-29T22:00:01Z",
			[]string{"2011-12-30T10:00:00Z", "2011-12-30T22:00:00Z"},
		},
		{"29 February", "0 3 29 2 *", "UTC", "2026-12-01T00:00:00Z", []string{"2028-02-29T03:00:00Z", "2032-02-29T03:00:00Z"}},
	} {
		at, err := time.Parse(time.RFC3339Nano, tt.from)
		if err != nil {
			t.Fatal(err)
		}
		s := parse(t, tt.expression, tt.zone)
		for _, want := range tt.want {
			at = s.Next(at)
			if got := at.UTC().Format(time.RFC3339); got != want {
				t.Errorf("%s: %s, want %s", tt.name, got, want)
			}
		}
	}
}

// Over years of any zone a daily schedule fires once for each day, at times that rise, and
// not more than a day and a jump apart.
func TestOnceEachDay(t *testing.T) {
	for _, zone := range []string{
		"UTC", "Europe/Madrid", "America/Santiago", "America/St_Johns", "Australia/Lord_Howe", "Africa/Casablanca",
	} {
		for _, expression := range []string{"0 0 * * *", "30 0 * * *", "30 1 * * *", "30 2 * * *", "0 3 * * *", "59 23 * * *"} {
			s := parse(t, expression, zone)
			at := s.Next(time.Date(2026, 1, 1, 12, 0, 0, 0, s.zone))
			for range 3 * 365 {
				next := s.Next(at)
				days := next.Truncate(0).In(s.zone).YearDay() - at.In(s.zone).YearDay()
				if days != 1 && days > -363 || next.Sub(at) > 26*time.Hour {
					t.Fatalf("%s in %s: %s comes after %s", expression, zone, next, at)
				}
				at = next
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"0 3 * * *", "@every 1h", "TZ= ", "*/0 * * * *", "1-2-3 * * * *", "? ? ? ? ?", "@", "0 3 31 2 *"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, expression string) {
		s, err := Parse(expression, "Europe/Madrid", true)
		if err != nil {
			return
		}
		now := time.Date(2027, 3, 28, 0, 59, 59, 0, time.UTC)
		if next := s.Next(now); !next.IsZero() && !next.After(now) {
			t.Errorf("%q: %s comes after %s", expression, next, now)
		}
	})
}
