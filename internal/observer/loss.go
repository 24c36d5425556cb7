package observer

import (
	"sync"
	"time"

	"controld/internal/cluster"
	"controld/internal/wal"
)

// A rateMeter remembers the last two positions of the primary: what it wrote
// since the last one is the unknown part of a loss.
type rateMeter struct {
	mu   sync.Mutex
	name string
	last wal.LSN
	at   time.Time
	rate float64 // bytes per second, over a time long enough to tell
	// What the rate is measured from: two observations can be milliseconds
	// apart, when the engine reports something, and nothing written between.
	base   wal.LSN
	baseAt time.Time
}

// rateOver is the shortest time that a rate is measured over.
const rateOver = 500 * time.Millisecond

// note takes the primary's position out of a view; a view without one keeps
// what was known.
func (r *rateMeter) note(v cluster.View) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range v.Nodes {
		if s.Role() != cluster.RolePrimary || s.AnsweredAt.Equal(r.at) {
			continue
		}
		if r.name != s.Node.Name {
			r.rate, r.base, r.baseAt = 0, s.Server.Flushed, s.AnsweredAt
		}
		if elapsed := s.AnsweredAt.Sub(r.baseAt); elapsed >= rateOver {
			r.rate = float64(r.base.Behind(s.Server.Flushed)) / elapsed.Seconds()
			r.base, r.baseAt = s.Server.Flushed, s.AnsweredAt
		}
		r.name, r.last, r.at = s.Node.Name, s.Server.Flushed, s.AnsweredAt
	}
}

// over is how many bytes the node called name writes in d, by the last observations.
func (r *rateMeter) over(name string, d time.Duration) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.name != name {
		return 0
	}
	return int64(r.rate * d.Seconds())
}

// A Loss says how many bytes of WAL a promotion would leave behind.
type Loss struct {
	Known     bool  // false: the primary was never observed
	Bytes     int64 // at the most, if nothing faster than the observed rate was written since
	LagBytes  int64 // of the candidate behind the last observed position
	SinceMS   int64 // age of that position
	RateBytes int64 // observed, per second
	Estimate  bool
}

// rateMargin covers that the last moments may have been busier than those before.
const rateMargin = 2

// bound estimates what a candidate that has received up to received lacks of
// the node called name: its observed lag, and the observed write rate times
// the age of the observation.
func (r *rateMeter) bound(name string, received wal.LSN, diedAt time.Time) Loss {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.name != name || r.at.IsZero() {
		return Loss{Estimate: true}
	}
	age := max(diedAt.Sub(r.at), 0)
	l := Loss{
		Known: true, Estimate: true, SinceMS: age.Milliseconds(), RateBytes: int64(r.rate),
		LagBytes: received.Behind(r.last),
	}
	// What streamed after the observation is no part of the loss: the
	// candidate may be ahead of the observed position.
	ahead := r.last.Behind(received)
	written := int64(rateMargin * r.rate * age.Seconds())
	l.Bytes = l.LagBytes + max(written-ahead, 0)
	return l
}
