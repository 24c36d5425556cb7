// Package schedule says when something is due that is to be done at certain times of the
// day, as a clock on the wall shows them: at the change to summer time nothing of it is
// left out, and at the change back nothing is done twice. It starts nothing.
package schedule

import (
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // an image without the zones knows them, too

	"github.com/robfig/cron/v3"
)

// A Schedule is the moments at which something is due.
type Schedule struct {
	wall cron.Schedule // of times on the wall, which are written as if they were UTC
	zone *time.Location
}

// closest is how near two moments may be to one another, where that is not allowed.
const closest = 12 * time.Hour

// Parse reads a cron expression of five fields (minute, hour, day of month, month, day of
// week), or @daily, @weekly, @monthly, @yearly, whose times are those of zone, such as
// Europe/Madrid. Only with often may it name moments that are less than twelve hours apart.
// The error says what is wrong with the expression or the zone, and what to write.
func Parse(expression, zone string, often bool) (*Schedule, error) {
	location, err := time.LoadLocation(zone)
	if err != nil {
		return nil, fmt.Errorf("zone %q is not known: write one as UTC or Europe/Madrid", zone)
	}
	switch {
	case strings.Contains(expression, "="):
		return nil, errors.New("the zone is a setting of its own: leave TZ= out of the expression")
	case strings.HasPrefix(expression, "@every"):
		return nil, errors.New("@every counts from when controld was started, and so begins anew with each start: " +
			"write the times, such as 0 3 * * * for three o'clock each night")
	}
	wall, err := cron.ParseStandard(expression)
	if err != nil {
		return nil, fmt.Errorf("%w: write minute, hour, day of month, month and day of week, such as 0 3 * * * for three o'clock", err)
	}
	s := &Schedule{wall: wall, zone: location}
	return s, s.check(often)
}

// check refuses what never fires, and what fires too often. A year that leaps is among the
// years that it looks at.
func (s *Schedule) check(often bool) error {
	begin := time.Date(2027, 12, 31, 23, 59, 59, 0, time.UTC)
	last := s.wall.Next(begin)
	if last.IsZero() {
		return errors.New("it never fires: there is no such day")
	}
	for end := begin.AddDate(2, 0, 0); !often && last.Before(end); {
		next := s.wall.Next(last)
		if next.IsZero() {
			return nil
		}
		if next.Sub(last) < closest {
			return fmt.Errorf("it fires at %s and again at %s: name times that are twelve hours apart, or allow more with backup.often",
				last.Format("15:04"), next.Format("15:04"))
		}
		last = next
	}
	return nil
}

// Next is the first moment after t at which something is due; the zero Time where there is
// none any more. A time that the wall's clock leaves out is due when it has jumped over it,
// one that it shows twice when it shows it first.
func (s *Schedule) Next(t time.Time) time.Time {
	shown := t.In(s.zone)
	wall := time.Date(shown.Year(), shown.Month(), shown.Day(), shown.Hour(), shown.Minute(), shown.Second(), shown.Nanosecond(), time.UTC)
	for {
		wall = s.wall.Next(wall)
		if wall.IsZero() {
			return time.Time{}
		}
		// In the hour that comes twice the clock shows times that were due in its first pass.
		if at := s.moment(wall); at.After(t) {
			return at
		}
	}
}

// moment is when the clock on the wall shows this time first, or jumps over it.
func (s *Schedule) moment(wall time.Time) time.Time {
	_, before := wall.Add(-24 * time.Hour).In(s.zone).Zone() // a zone changes at the most once in two days
	_, after := wall.Add(24 * time.Hour).In(s.zone).Zone()
	first := wall.Add(-time.Duration(max(before, after)) * time.Second)
	for _, offset := range []int{max(before, after), min(before, after)} {
		at := wall.Add(-time.Duration(offset) * time.Second)
		if _, shown := at.In(s.zone).Zone(); shown == offset {
			return at.In(s.zone)
		}
	}
	_, jump := first.In(s.zone).ZoneBounds()
	return jump
}
