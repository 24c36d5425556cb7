package observer

import (
	"fmt"
	"sync"
	"time"

	"controld/internal/cluster"
)

// lateness is how long this process was held up itself: on a machine where it
// gets no processor in time, neither does a server.
type lateness struct {
	mu      sync.Mutex
	samples [30]time.Duration // of the newest looks, in a ring
	next    int
}

// A sleep of latenessSample that takes starvedBy longer tells of a starved machine.
const (
	latenessSample = 10 * time.Millisecond
	starvedBy      = 300 * time.Millisecond
)

// measure takes one sample. It returns after latenessSample, or as late as this
// process is held up.
func (l *lateness) measure() {
	began := time.Now()
	time.Sleep(latenessSample)
	late := time.Since(began) - latenessSample
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples[l.next] = late
	l.next = (l.next + 1) % len(l.samples)
}

// starved reports the longest time that this process was held up lately, and
// whether that is too long to judge others by their silence.
func (l *lateness) starved() (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	longest := time.Duration(0)
	for _, s := range l.samples {
		longest = max(longest, s)
	}
	return longest, longest >= starvedBy
}

// silence returns for how long the word of a server counts that answers nothing,
// and why it is longer than usual; empty: it is not.
func (l *lateness) silence() (limit time.Duration, why string) {
	if late, starved := l.starved(); starved {
		why = fmt.Sprintf("; the machine is starved: controld itself was held up for %s", late.Round(time.Millisecond))
		return 4 * cluster.SilenceLimit, why
	}
	return cluster.SilenceLimit, ""
}
