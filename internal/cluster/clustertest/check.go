package clustertest

import (
	"fmt"
	"slices"
	"strings"

	"controld/internal/cluster"
	"controld/internal/pgwal"
)

// Faults are the things that must never have happened: a second primary, a
// host that changed under its clients, orders out of turn.
func (w *World) Faults() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.faults)
}

// Failed are the transactions that clients saw fail, by their errors.
func (w *World) Failed() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.failed)
}

// Acked counts the commits that clients were told of.
func (w *World) Acked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

// Leader is the node that accepts writes; empty for none.
func (w *World) Leader() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		if h.leads() && !h.frozen() {
			return h.node.Name
		}
	}
	return ""
}

// Serving is the node that accepts writes and that the clients are led to.
func (w *World) Serving() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		if h.leads() && !h.frozen() && len(w.wrongEntries(h)) == 0 {
			return h.node.Name
		}
	}
	return ""
}

// Wrong says what is not as it must be in the end: one node leads, all clients
// are led to it and none is held, every acknowledged commit is on it, the other
// nodes stream from it, and nobody keeps WAL for nobody.
func (w *World) Wrong() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var leaders []*host
	for _, h := range w.hosts {
		if h.leads() {
			leaders = append(leaders, h)
		}
	}
	if len(leaders) != 1 {
		return []string{fmt.Sprintf("%d nodes lead", len(leaders))}
	}
	leader := leaders[0]
	wrong := w.wrongEntries(leader)
	if missing := w.missing(leader); missing > 0 {
		wrong = append(wrong, fmt.Sprintf("%d acknowledged commits are not on %s", missing, leader.node.Name))
	}
	for _, h := range w.hosts {
		wrong = append(wrong, wrongNode(h, leader)...)
	}
	if leader.data.slots[leader.node.Slot()] {
		wrong = append(wrong, "the primary keeps a slot for itself")
	}
	return wrong
}

// wrongNode says what is not as it must be of one node, whether it leads or follows.
func wrongNode(h, leader *host) (wrong []string) {
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	name, leads := h.node.Name, leader.node.Name
	if c := compare(h, leader); c.Relation == pgwal.Diverged {
		add("%s and %s have other WAL from %s on, on one timeline", name, leads, c.At)
	}
	if h.server != nil && h.server.applied.Switching {
		add("%s runs with the settings of a move", name)
	}
	if h == leader {
		return wrong
	}
	if h.server == nil || h.server.upstream != leader {
		add("%s does not stream from %s: its init is %s %s", name, leads, h.status.State, h.status.Error)
	}
	if h.server != nil && h.server.applied.UpstreamAddress != leader.address {
		add("%s looks for %s at %q, which is at %s", name, leads, h.server.applied.UpstreamAddress, leader.address)
	}
	if h.data != nil && len(h.data.slots) > 0 {
		add("the standby %s keeps the slots %v", name, (&Host{h}).Slots())
	}
	return wrong
}

func (w *World) wrongEntries(leader *host) (wrong []string) {
	for _, e := range w.pooler.entries {
		if e.name == cluster.ProbeEntry {
			continue
		}
		if e.paused {
			wrong = append(wrong, e.name+" is paused")
		}
		if !strings.HasSuffix(e.name, cluster.ReadOnlySuffix) && e.host != leader.address {
			wrong = append(wrong, fmt.Sprintf("%s leads to %s, not to %s", e.name, e.host, leader.address))
		}
		if e.size < poolSize && e.name != cluster.ProbeEntry {
			wrong = append(wrong, fmt.Sprintf("the pool of %s is still drained to %d", e.name, e.size))
		}
	}
	return wrong
}

// missing counts the acknowledged commits that h does not have.
func (w *World) missing(h *host) int {
	have := make(map[int]bool, len(h.data.wal))
	for _, r := range h.data.wal {
		have[r.id] = true
	}
	n := 0
	for _, a := range w.acked {
		if !have[a.record] {
			n++
		}
	}
	return n
}

// LostBytes is what acknowledged commits weigh that the leader does not have.
func (w *World) LostBytes() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		if h.leads() {
			return int64(w.missing(h) * recordBytes)
		}
	}
	return -1
}

// Forget drops the acknowledged commits that the leader does not have: their
// loss was accepted.
func (w *World) Forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		if h.leads() {
			w.acked = slices.DeleteFunc(w.acked, func(a ack) bool { return !h.has(a.record) })
		}
	}
}
