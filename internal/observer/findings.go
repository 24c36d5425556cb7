package observer

import (
	"sync"

	"controld/internal/cluster"
	"controld/internal/pgwal"
)

// findings are the nodes whose WAL was found not to be the primary's, with how.
// They hold until the node is in order again; after a restart the next rejoin
// finds out anew.
type findings struct {
	mu  sync.Mutex
	why map[string]string
}

// note keeps what was found of n. What cannot be told changes nothing.
func (f *findings) note(n cluster.Node, c pgwal.Comparison) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch c.Relation {
	case pgwal.Diverged:
		if f.why == nil {
			f.why = map[string]string{}
		}
		f.why[n.Name] = c.Why
	case pgwal.Same:
		delete(f.why, n.Name)
	}
}

func (f *findings) of(n cluster.Node) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.why[n.Name]
}
