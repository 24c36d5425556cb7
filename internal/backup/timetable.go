package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"controld/internal/cluster"
	"controld/internal/operation"
)

// A Timetable is the cycle, and when its days are made.
type Timetable struct {
	Cycle Cycle
	// Next is the first planned moment after another, the zero Time where there is none any
	// more; nil: nothing is made by itself.
	Next func(time.Time) time.Time
	// Expression and Zone are what Next was made of, to be shown.
	Expression, Zone string
}

// Failing is a day of the cycle that is tried again and again.
type Failing struct {
	Day      int
	Attempts int
	Since    time.Time // the first of them
	Detail   string    // what the last one failed with
}

// A progress is how far the cycle has come.
type progress struct {
	facts cluster.Facts

	mu      sync.Mutex
	served  Served
	failing *Failing
}

const servedFactName = "backup-cycle"

// newProgress reads how far the cycle had come before.
func newProgress(facts cluster.Facts) (*progress, error) {
	p := &progress{facts: facts}
	if _, err := facts.Fact(servedFactName, &p.served); err != nil {
		return nil, fmt.Errorf("how far the cycle of backups has come: %w", err)
	}
	return p, nil
}

func (p *progress) get() (Served, *Failing) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.served, p.failing
}

// put makes durable how far the cycle has come. What fails is another day then.
func (p *progress) put(s Served) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.facts.PutFact(servedFactName, s); err != nil {
		return fmt.Errorf("note how far the cycle of backups has come: %w", err)
	}
	p.served, p.failing = s, nil
	return nil
}

// attempted notes how an attempt at a day went.
func (p *progress) attempted(day int, at time.Time, rec operation.Record, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil && (rec.State == operation.Succeeded || rec.GaveWayTo != "") {
		p.failing = nil
		return
	}
	f := Failing{Since: at}
	if p.failing != nil {
		f = *p.failing
	}
	f.Day = day // another one, where the next is planned before this was made
	f.Attempts++
	if f.Detail = detail(rec); err != nil {
		f.Detail = err.Error()
	}
	p.failing = &f
}

// due is the day of the cycle that is due now, and false where none is, or nobody plans.
func (b *Backups) due() (Run, bool) {
	if b.cfg.Timetable.Next == nil {
		return Run{}, false
	}
	served, _ := b.progress.get()
	return b.cfg.Timetable.Cycle.Due(b.cfg.Timetable.Next, served, b.Clock())
}

// untilDue is how long it is until the next day of the cycle is due.
func (b *Backups) untilDue() time.Duration {
	if b.cfg.Timetable.Next == nil {
		return b.cfg.LookEvery
	}
	served, _ := b.progress.get()
	now := b.Clock()
	run, is := b.cfg.Timetable.Cycle.NextRun(b.cfg.Timetable.Next, served, now)
	if !is {
		return b.cfg.LookEvery
	}
	return run.Slot.Sub(now)
}

// begins has the cycle planned from now on where it was not, or by another schedule, or by a
// clock that was wrong: by that schedule, or clock, nothing was missed.
func (b *Backups) begins() error {
	served, _ := b.progress.get()
	now := b.Clock()
	planned := served.asOf(now)
	if !planned.Slot.Equal(served.Slot) {
		b.Log.Warn("the clock was set back: the cycle of backups is planned anew", "from", served.Slot, "to", now)
	}
	if t := b.cfg.Timetable; planned.Schedule != t.Expression+" in "+t.Zone {
		planned.Slot, planned.Schedule = latest(now, planned.Slot), t.Expression+" in "+t.Zone
	}
	if planned == served {
		return nil
	}
	return b.progress.put(planned)
}

// first is the first full of a cluster: the cycle's day 1, where that makes one.
func (b *Backups) first() params {
	p := params{Types: []Type{Full}}
	served, _ := b.progress.get()
	if c := b.cfg.Timetable.Cycle; b.cfg.Timetable.Next != nil && served.Day == 0 && len(c) > 0 && joinTypes(c[0], "") == string(Full) {
		p.Day, p.Slot, p.Moves = 1, b.Clock(), true
	}
	return p
}

// why is what the audit and the backup itself say of a run.
func (r Run) why() string {
	why := fmt.Sprintf("day %d of the cycle, planned for %s", r.Day, r.Slot.UTC().Format(time.RFC3339))
	if r.Missed > 0 {
		why += fmt.Sprintf("; %d before it were missed: the strongest of them all is made, %s", r.Missed, r.Types[0])
	}
	return why
}

// detail is what an operation that did not succeed has failed with.
func detail(rec operation.Record) string {
	if rec.Problem != nil {
		return rec.Problem.Detail
	}
	for _, s := range rec.Steps {
		if s.Error != "" {
			return s.Name + ": " + s.Error
		}
	}
	return "it was " + string(rec.State)
}

// serve notes that the day of this operation is made.
func (b *Backups) serve(ctx context.Context, s *state) error {
	before, _ := b.progress.get()
	return b.progress.put(Served{
		Day: s.Day, Slot: latest(s.Slot, before.Slot), EndedAt: b.Clock(), Operation: operation.ID(ctx), Schedule: before.Schedule,
	})
}

// A DayRequest asks for a day of the cycle.
type DayRequest struct {
	Day           int
	Reason        string
	Keep          bool // the cycle stays where it is
	CancelRunning bool
}

// Day starts a day of the cycle, or joins the operation that makes it just now. It moves the
// cycle: what was planned until now is served by it, and the next planned run makes the day
// after it.
func (b *Backups) Day(ctx context.Context, r DayRequest, by operation.Caller) (operation.Record, error) {
	for _, open := range b.Operations.Open() {
		if dayOf(open) == r.Day {
			return open, nil
		}
	}
	p := params{Types: b.cfg.Timetable.Cycle[r.Day-1], Day: r.Day, Slot: b.Clock(), Moves: !r.Keep}
	rec, err := b.start(ctx, operation.Spec{
		Kind: KindBackup, Mode: string(p.Types[0]), Reason: r.Reason, Caller: by, CancelRunning: r.CancelRunning,
		Foreseen: map[string]any{"cycle_day": r.Day},
	}, p)
	var busy *operation.Busy
	if errors.As(err, &busy) && dayOf(busy.Running) == r.Day {
		return busy.Running, nil // two have asked at the same moment
	}
	return rec, err
}

// dayOf is the day of the cycle that an operation makes; 0: none.
func dayOf(rec operation.Record) int {
	if rec.Kind != KindBackup {
		return 0
	}
	var r struct {
		Day int `json:"cycle_day"`
	}
	if encoded, err := json.Marshal(rec.Result); err != nil || json.Unmarshal(encoded, &r) != nil {
		return 0
	}
	return r.Day
}
