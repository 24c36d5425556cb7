// Package health puts together what GET /health answers. Each part of controld hands
// in its components with their reasons; what is wrong with one is its part's to say.
package health

import (
	"slices"
	"time"
)

// A Status is the answer to a monitoring system.
type Status string

// The three answers. Degraded: clients can write, but something needs a person.
const (
	OK       Status = "ok"
	Degraded Status = "degraded"
	Down     Status = "down"
)

// StaleIntervals is for how many intervals what was observed stays true.
const StaleIntervals = 3

// Primary is the name of the component that says whether clients can write: where it
// is down, so is the whole. Every other one only degrades.
const Primary = "primary"

// A Component is one part of the whole.
type Component struct {
	Name   string
	Status Status
	Reason string // a stable word such as no-primary; empty when ok
	Detail string // the same in a sentence
	Do     string // what to do next
}

// Fine is a component that is as it should be.
func Fine(name string) Component { return Component{Name: name, Status: OK} }

// Noted is one that is as it should be, of which there is something to say.
func Noted(name, detail string) Component { return Component{Name: name, Status: OK, Detail: detail} }

// Bad is one that is not, with its reason, what that means, and what to do.
func Bad(name string, status Status, reason, detail, do string) Component {
	return Component{Name: name, Status: status, Reason: reason, Detail: detail, Do: do}
}

// A Report is the whole. What it says of itself is what the first component says that
// is not ok: the order of the components is that of their weight.
type Report struct {
	Status     Status
	Reason     string
	Detail     string
	Do         string
	Components []Component
	ObservedAt time.Time
	Operation  string // id of the operation that holds the cluster; empty: none does
}

// First is r with c before all others.
func (r Report) First(c Component) Report {
	r.Components = slices.Insert(slices.Clone(r.Components), 0, c)
	return r.judged()
}

// With is r with these components after its own.
func (r Report) With(components ...Component) Report {
	r.Components = slices.Concat(r.Components, components)
	return r.judged()
}

func (r Report) judged() Report {
	r.Status, r.Reason, r.Detail, r.Do = OK, "", "", ""
	for _, c := range r.Components {
		if c.Status == OK {
			continue
		}
		if r.Status == OK {
			r.Status, r.Reason, r.Detail, r.Do = Degraded, c.Reason, c.Detail, c.Do
		}
		if c.Name == Primary && c.Status == Down {
			r.Status = Down
		}
	}
	return r
}

// A Contributor hands in its components, as they were at now. It never blocks.
type Contributor interface {
	Components(now time.Time) []Component
}

// A Board is what /health shows.
type Board struct {
	// Cluster reports of the nodes, the pooler, and the operation that holds them.
	Cluster interface{ Health() Report }
	// Contributors are all others, those of more weight first.
	Contributors []Contributor
}

// Health never blocks.
func (b *Board) Health() Report {
	r, now := b.Cluster.Health(), time.Now()
	for _, c := range b.Contributors {
		r = r.With(c.Components(now)...)
	}
	return r
}

// A Part is one that is only watched, as it was at SeenAt.
type Part struct {
	SeenAt time.Time
	OK     bool
	Detail string // why it is not OK
}
