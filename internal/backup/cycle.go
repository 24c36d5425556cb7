package backup

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Cycle is what is made on each of its days, the first of which is day 1. After the last
// one it begins anew.
type Cycle [][]Type

// longestCycle bounds the days of a cycle.
const longestCycle = 31

// ParseCycle reads a cycle as it is written in the settings: days between semicolons, types
// between commas, such as "full; incr; incr,diff". The error says what is wrong with it.
func ParseCycle(text string) (Cycle, error) {
	var c Cycle
	fulls := 0
	for day := range strings.SplitSeq(text, ";") {
		var types []Type
		for name := range strings.SplitSeq(day, ",") {
			t := Type(strings.TrimSpace(name))
			switch {
			case !slices.Contains(Types, t):
				return nil, fmt.Errorf("day %d: %q is no type of backup: write full, diff or incr", len(c)+1, t)
			case slices.Contains(types, t):
				return nil, fmt.Errorf("day %d: %s stands there twice", len(c)+1, t)
			case t == Full:
				fulls++
			}
			types = append(types, t)
		}
		c = append(c, types)
	}
	switch {
	case len(c) > longestCycle:
		return nil, fmt.Errorf("%d days are more than %d", len(c), longestCycle)
	case fulls == 0:
		return nil, fmt.Errorf("no day makes a full backup: all others build on one")
	}
	return c, nil
}

// String is how the cycle is written in the settings.
func (c Cycle) String() string {
	days := make([]string, len(c))
	for i, types := range c {
		days[i] = joinTypes(types, ",")
	}
	return strings.Join(days, "; ")
}

func joinTypes(types []Type, separator string) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = string(t)
	}
	return strings.Join(names, separator)
}

// after is the day that is n days after another; after day 0 comes day 1.
func (c Cycle) after(day, n int) int { return (day+n-1)%len(c) + 1 }

// Served is how far the cycle has come.
type Served struct {
	Day       int       `json:"day"`                 // that was made last; 0: none yet
	Slot      time.Time `json:"slot"`                // what was planned for until then is done, or was given up
	EndedAt   time.Time `json:"ended_at,omitzero"`   // of its last backup
	Operation string    `json:"operation,omitempty"` // that made it
	Schedule  string    `json:"schedule,omitempty"`  // by which Slot is planned
}

// asOf is how far the cycle has come by a clock that shows now. One that was far ahead until
// it was set right would else have nothing made for as long as it was ahead.
func (s Served) asOf(now time.Time) Served {
	if s.Slot.After(now.Add(clockBack)) {
		s.Slot = now
	}
	return s
}

// A Run is a day of the cycle that is due.
type Run struct {
	Day    int
	Types  []Type
	Slot   time.Time // for which it was planned
	Missed int       // planned ones before it that nobody has made, and nobody will
}

// Bounds of what may be missed.
const (
	// clockBack: where the clock was set back by more than this, what was planned by the
	// one before counts for nothing. By less, nothing is made twice.
	clockBack = OverdueAfter
	// mostMissed: who has missed so many begins with day 1.
	mostMissed = 10_000
)

// Due is the run that is due now, and false where none is. next is the schedule: the first
// planned moment after another, the zero Time where there is none.
//
// It is a function of what was served last, the schedule and the clock. So a daemon that was
// down, a clock that was set, and the change to summer time are one case: what was planned
// since is one run, of the last day that was missed. It makes that day's backups where it
// is the only one, and else one backup, of the strongest type that was missed.
func (c Cycle) Due(next func(time.Time) time.Time, served Served, now time.Time) (Run, bool) {
	var run Run
	for slot := next(served.Slot); !slot.IsZero() && !slot.After(now); slot = next(slot) {
		run.Slot = slot
		run.Missed++
		if run.Missed == mostMissed {
			run.Slot = now
			break
		}
	}
	planned := run.Missed
	switch {
	case planned == 0:
		return Run{}, false
	case planned == mostMissed:
		run.Day = 1
	default:
		run.Day = c.after(served.Day, planned)
	}
	run.Missed--
	run.Types = c[run.Day-1]
	if planned > 1 {
		run.Types = []Type{c.strongest(served.Day, planned)}
	}
	return run, true
}

// strongest is the strongest type of the n days that come after day.
func (c Cycle) strongest(day, n int) Type {
	best := len(Types) - 1
	for i := range min(n, len(c)) {
		for _, t := range c[c.after(day, i+1)-1] {
			best = min(best, slices.Index(Types, t))
		}
	}
	return Types[best]
}

// NextRun is the first run that is not due yet, and when it will be; false where nothing is
// planned any more.
func (c Cycle) NextRun(next func(time.Time) time.Time, served Served, now time.Time) (Run, bool) {
	day := served.Day
	if due, is := c.Due(next, served, now); is {
		day = due.Day
	}
	slot := next(latest(now, served.Slot))
	if slot.IsZero() {
		return Run{}, false
	}
	day = c.after(day, 1)
	return Run{Day: day, Types: c[day-1], Slot: slot}, true
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
