package docker

import (
	"context"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
)

// An Event is a change of a container's state that the engine told of.
type Event struct {
	Container string
	Action    string // die, start, pause, unpause, oom; Lost
	At        time.Time
}

// Lost is the action of an event that stands for unknown others: the engine
// was not heard for a while, so all containers are worth a look.
const Lost = "lost"

// watched are the actions that change what an observation would say.
var watched = []events.Action{events.ActionDie, events.ActionStart, events.ActionPause, events.ActionUnPause, events.ActionOOM}

// reconnectDelay is between two attempts to hear the engine again.
const reconnectDelay = time.Second

// Events sends the events of the containers until ctx ends; then it closes the channel.
// When the engine's stream breaks, it is opened again where it ended, after an event
// Lost. A reader that is slow delays the stream and loses nothing.
//
// An event may come twice. The engine repeats one that happens while the stream is
// opened. And it tells a pause and its end once more, with a later time, when
// containerd's own word of both reaches it after the calls that asked for them have
// ended.
func (e *Engine) Events(ctx context.Context, containers ...string) <-chan Event {
	out := make(chan Event)
	go func() {
		defer close(out)
		since := time.Now()
		for ctx.Err() == nil {
			var err error
			since, err = e.stream(ctx, containers, since, out)
			if ctx.Err() != nil {
				return
			}
			e.log.Warn("event stream of the engine broke", "err", err)
			if !wait(ctx, reconnectDelay) || !send(ctx, out, Event{Action: Lost, At: time.Now()}) {
				return
			}
		}
	}()
	return out
}

// stream forwards events until the stream breaks, and returns when the last was.
func (e *Engine) stream(ctx context.Context, containers []string, since time.Time, out chan<- Event) (time.Time, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	filter := filters.NewArgs(filters.Arg("type", string(events.ContainerEventType)))
	for _, c := range containers {
		filter.Add("container", c)
	}
	for _, a := range watched {
		filter.Add("event", string(a))
	}
	messages, errs := e.api.Events(ctx, events.ListOptions{Since: unixNano(since), Filters: filter})
	for {
		select {
		case err := <-errs:
			return since, err
		case m := <-messages:
			since = time.Unix(0, m.TimeNano+1) // not the same one again
			ev := Event{Container: m.Actor.Attributes["name"], Action: string(m.Action), At: time.Unix(0, m.TimeNano)}
			if !send(ctx, out, ev) {
				return since, ctx.Err()
			}
		}
	}
}

// unixNano writes a time as the engine's since reads it.
func unixNano(t time.Time) string {
	nanos := strconv.Itoa(t.Nanosecond())
	return strconv.FormatInt(t.Unix(), 10) + "." + "000000000"[len(nanos):] + nanos
}

func send(ctx context.Context, out chan<- Event, ev Event) bool {
	select {
	case out <- ev:
		return true
	case <-ctx.Done():
		return false
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
