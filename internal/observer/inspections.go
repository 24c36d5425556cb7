package observer

import (
	"context"
	"sync"
	"time"

	"controld/internal/cluster"
)

// engineEvery: what the engine says of a container is asked for again after this
// time, and at once when it reports a change or something is not as it should be.
const engineEvery = 10 * time.Second

// inspect returns what the engine says of a container, or what it said before
// where nothing speaks for a change since. why says how it does not answer.
func (o *Observer) inspect(ctx context.Context, name string, l look, before cluster.Container) (c cluster.Container, why string) {
	if l.since.IsZero() && serves(before) && !o.inspected.due(name) {
		return before, ""
	}
	ctx, cancel := context.WithTimeout(ctx, l.limit/3)
	defer cancel()
	asked := time.Now()
	c, err := o.out.Engine.Inspect(ctx, name)
	if err != nil {
		return before, "the engine does not answer: " + err.Error()
	}
	o.inspected.note(name, asked)
	return c, ""
}

// EngineChanged is called when the engine reports an event of a container: what it
// said before counts no more.
func (o *Observer) EngineChanged() { o.inspected.forget() }

// inspections are when each container was last asked after.
type inspections struct {
	mu   sync.Mutex
	at   map[string]time.Time
	from time.Time // what was asked before counts no more
}

func (i *inspections) due(name string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	at := i.at[name]
	return at.Before(i.from) || time.Since(at) >= engineEvery
}

func (i *inspections) note(name string, asked time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.at == nil {
		i.at = map[string]time.Time{}
	}
	i.at[name] = asked
}

func (i *inspections) forget() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.from = time.Now()
}

// forgetOne has a container asked after at the next look.
func (i *inspections) forgetOne(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.at, name)
}
