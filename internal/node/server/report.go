package server

import (
	"sync"
	"time"

	"controld/internal/node"
)

// A report is the node's status, in memory and on the data volume.
type report struct {
	dir string
	// archives: see node.Status.
	archives bool
	mu       sync.Mutex
	status   node.Status
}

func (r *report) get() node.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// update changes the status and makes it durable. The change stands in memory
// even when it could not be written: what was used up stays used up.
func (r *report) update(change func(*node.Status)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.status)
	r.status.At, r.status.Actions, r.status.Archives = time.Now().UTC(), node.Actions, r.archives
	return node.WriteStatus(r.dir, r.status)
}
