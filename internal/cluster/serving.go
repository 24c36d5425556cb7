package cluster

import (
	"fmt"
	"time"

	"controld/internal/health"
	"controld/internal/node"
)

// Writable reports whether the node called name may be given to a client that wants
// to write: it leads, its order says so and is not withdrawn, and all of that is
// fresh. The answer false comes with its reason.
func Writable(view View, name string, now time.Time, interval time.Duration) (bool, string) {
	s, ok := view.Node(name)
	limit := health.StaleIntervals * interval
	switch {
	case !ok:
		return false, "there is no such node"
	case olderThan(view.At, now, limit) || olderThan(s.SeenAt, now, limit):
		return false, "the last observation is stale"
	case s.Role() != RolePrimary:
		return false, "its role is " + string(s.Role())
	case s.Order.Role != node.RolePrimary:
		return false, "its order as primary is withdrawn"
	}
	for _, other := range view.Nodes {
		ordered := other.Role() == RolePrimary && other.Order.Role == node.RolePrimary
		if other.Node.Name != name && ordered && other.Order.Epoch > s.Order.Epoch {
			return false, other.Node.Name + " leads by a newer order"
		}
	}
	return true, ""
}

// Readable reports whether the node called name may be given to a client that only
// reads: a standby that answers and lags no more than maxLagBytes. Where that is
// negative any lag will do, also that of a standby which was cut off.
func Readable(view View, name string, now time.Time, interval time.Duration, maxLagBytes int64) (bool, string) {
	s, ok := view.Node(name)
	limit := health.StaleIntervals * interval
	switch {
	case !ok:
		return false, "there is no such node"
	case olderThan(view.At, now, limit) || olderThan(s.SeenAt, now, limit):
		return false, "the last observation is stale"
	case s.Role() != RoleStandby:
		return false, "its role is " + string(s.Role())
	case s.Diverged() != "":
		return false, "it has diverged: " + s.Diverged()
	}
	lag, known := view.LagBytes(name)
	switch {
	case maxLagBytes < 0:
		return true, ""
	case !known:
		return false, "its lag is unknown: no primary answers"
	case lag > maxLagBytes:
		return false, fmt.Sprintf("it lags %d bytes", lag)
	}
	return true, ""
}

// LagBytes is how much of the primary's WAL the standby called name has not
// replayed; false when either is not known, or the standby has other WAL.
func (v View) LagBytes(name string) (int64, bool) {
	s, ok := v.Node(name)
	if !ok || s.Role() != RoleStandby || s.Diverged() != "" { // then its position says nothing
		return 0, false
	}
	for _, p := range v.Nodes {
		if p.Role() == RolePrimary {
			return s.Server.Replayed.Behind(p.Server.Flushed), true
		}
	}
	return 0, false
}
