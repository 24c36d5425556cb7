// Package actuator is the hand of controld: orders to the nodes' inits, sessions on their
// servers, their settings, the fence, and where the pooler leads. Each of its acts is
// bounded, and says what it has proved. Which act comes when is the operations' to know.
package actuator

import (
	"log/slog"
	"sync"
	"time"

	"controld/internal/cluster"
	"controld/internal/observer"
)

// Bounds of single acts, and of steps that are made of a few.
const (
	SettingDeadline = 15 * time.Second
	EngineDeadline  = time.Minute      // a container's start on a busy machine
	ServeDeadline   = 20 * time.Second // a server that was stopped serves again
	StreamDeadline  = 15 * time.Second // a standby streams again
	PointDeadline   = 5 * time.Second  // a RELOAD of the pooler
	ProveDeadline   = 3 * time.Second  // one answer of a node that may be frozen
	DeathDeadline   = 10 * time.Second // an emergency proves the death, or ends undone
	LoginTimeout    = 5 * time.Second
	FrozenTimeout   = 2 * time.Second // for what an undo can do without
	// CheckpointDeadline: much memory on a slow disk; clients run meanwhile.
	CheckpointDeadline = 10 * time.Minute

	dropDeadline  = 5 * time.Second // an unused slot
	endedDeadline = 2 * time.Second // the engine knows that a killed container has ended

	// Tick is how often what ends a pause is looked for.
	Tick = time.Millisecond
)

// An Actuator acts on one cluster, and keeps its identity.
type Actuator struct {
	Settings cluster.Settings
	Outside  cluster.Outside
	Look     *observer.Observer
	Log      *slog.Logger

	facts    cluster.Facts
	mu       sync.Mutex
	identity cluster.Identity
}

// New makes the actuator of a cluster and reads its identity.
func New(set cluster.Settings, out cluster.Outside, look *observer.Observer, facts cluster.Facts, log *slog.Logger) (*Actuator, error) {
	a := &Actuator{Settings: set, Outside: out, Look: look, Log: log, facts: facts}
	if _, err := facts.Fact(identityFact, &a.identity); err != nil {
		return nil, err
	}
	return a, nil
}
