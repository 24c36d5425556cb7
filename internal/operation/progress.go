package operation

import (
	"context"
	"time"
)

// Progress is how far the running step has come, as its latest report says. It is
// kept in memory only.
type Progress struct {
	Phase string // what is being done, such as "copy"
	Done  int64  // in Unit
	Total int64  // in Unit; 0: not known
	Unit  string // bytes, rows, files, ...
	// Rate is in Unit a second, over the last ten seconds or so; 0: not known yet.
	Rate float64
	// ETA is how long the rest takes at that rate; 0: not known.
	ETA time.Duration
	At  time.Time
}

const (
	// progressEvery is the shortest time between two events of progress.
	progressEvery = 500 * time.Millisecond
	// rateOver is the time constant of the rate, an exponentially weighted moving
	// average: what is that old still counts for 1/e.
	rateOver = 10 * time.Second
)

// Report tells how far the step whose context is given has come. Phase, Done, Total
// and Unit are the caller's; rate and ETA are derived. It never blocks, and may be
// called as often as is handy.
func Report(ctx context.Context, p Progress) {
	r, ok := ctx.Value(runKey{}).(*run)
	if !ok {
		return
	}
	now := time.Now()
	r.mu.Lock()
	latest, tell := r.progress.report(p, now)
	r.mu.Unlock()
	if tell {
		r.m.publish(Event{Type: EventProgress, ID: r.id, Progress: &latest})
	}
}

// A meter derives the rate of what is reported.
type meter struct {
	latest  Progress
	began   time.Time // of the phase
	told    time.Time
	present bool
}

// report takes p in, and says whether it is time to tell it.
func (m *meter) report(p Progress, now time.Time) (latest Progress, tell bool) {
	last := m.latest
	switch {
	case !m.present || p.Phase != last.Phase || p.Unit != last.Unit || p.Done < last.Done:
		m.began, p.Rate = now, 0
	default:
		p.Rate = smoothed(last.Rate, float64(p.Done-last.Done), now.Sub(last.At), last.At.Sub(m.began))
	}
	p.ETA = 0
	if p.Rate > 0 && p.Total > p.Done {
		p.ETA = time.Duration(float64(p.Total-p.Done) / p.Rate * float64(time.Second))
	}
	p.At = now
	m.latest, m.present = p, true
	if tell = now.Sub(m.told) >= progressEvery; tell {
		m.told = now
	}
	return p, tell
}

// smoothed adds what was done in the last step of time to a rate that was measured
// for measured before. Until rateOver has been measured it is the plain average.
func smoothed(rate, done float64, step, measured time.Duration) float64 {
	if step <= 0 {
		return rate
	}
	weight := step.Seconds() / min(measured+step, rateOver+step).Seconds()
	return rate + weight*(done/step.Seconds()-rate)
}

// current is a copy of the latest report, nil where there is none.
func (m *meter) current() *Progress {
	if !m.present {
		return nil
	}
	p := m.latest
	return &p
}

// forget drops the report; when one was told last is remembered.
func (m *meter) forget() { *m = meter{told: m.told} }
