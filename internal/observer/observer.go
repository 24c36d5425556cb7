// Package observer looks at a cluster: it asks the engine, the volumes, the servers and
// the pooler, and keeps what they said as a value with the time at which it was true.
// It decides nothing and changes nothing.
package observer

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"controld/internal/cluster"
	"controld/internal/pgwal"
	"controld/internal/wal"
)

// An Observer holds the last observation and what it takes to make the next one.
type Observer struct {
	nodes  []cluster.Node
	pooler string // its container
	out    cluster.Outside
	log    *slog.Logger

	view       atomic.Pointer[cluster.View]
	viewMu     sync.Mutex          // keeps an observation from putting back an older order
	quietUntil atomic.Int64        // unix nanoseconds: the servers are not asked for observation before
	contacts   map[string]*contact // by node
	inspected  inspections
	late       lateness
	rate       rateMeter
	otherWAL   findings
	end        context.CancelFunc
}

// New makes the observer of a cluster. It looks when it is asked to.
func New(set cluster.Settings, out cluster.Outside, log *slog.Logger) *Observer {
	ctx, end := context.WithCancel(context.Background())
	o := &Observer{nodes: set.Nodes, pooler: set.PoolerContainer, out: out, log: log, contacts: map[string]*contact{}, end: end}
	for _, n := range set.Nodes {
		o.contacts[n.Name] = &contact{node: n, servers: out.Servers, ctx: ctx}
	}
	o.view.Store(&cluster.View{})
	return o
}

// Close ends the standing connections to the servers. Nothing is looked at after.
func (o *Observer) Close() {
	o.end()
	for _, c := range o.contacts {
		c.running.Wait()
		c.release()
	}
}

// View is the last observation. It never blocks.
func (o *Observer) View() cluster.View { return *o.view.Load() }

// Quiet keeps the observation from logging in to the servers for a while: a
// login costs the machine more than the steps of a pause do.
func (o *Observer) Quiet(d time.Duration) { o.quietUntil.Store(time.Now().Add(d).UnixNano()) }

func (o *Observer) isQuiet(now time.Time) bool { return now.UnixNano() < o.quietUntil.Load() }

// Release closes the standing connection to n until the next look: it is one more
// process that a shutdown has to end.
func (o *Observer) Release(n cluster.Node) { o.contacts[n.Name].release() }

// Write commits a small record on n over the standing connection. Without one it fails.
func (o *Observer) Write(ctx context.Context, n cluster.Node) error {
	return o.contacts[n.Name].write(ctx)
}

// Starved reports the longest time that this process was held up lately, and
// whether that is too long to judge others by their silence.
func (o *Observer) Starved() (time.Duration, bool) { return o.late.starved() }

// Written is how many bytes of WAL the node called name writes in d, by the last
// observations; 0 where that is not known.
func (o *Observer) Written(name string, d time.Duration) int64 { return o.rate.over(name, d) }

// Bound estimates what a candidate that has received up to received lacks of the node
// called name, which may have written until diedAt.
func (o *Observer) Bound(name string, received wal.LSN, diedAt time.Time) Loss {
	return o.rate.bound(name, received, diedAt)
}

// NoteWAL keeps what was found of n's WAL, for the views to come.
func (o *Observer) NoteWAL(n cluster.Node, c pgwal.Comparison) { o.otherWAL.note(n, c) }
