package backup

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"controld/internal/cluster"
	"controld/internal/operation"
)

// probeTimeout is what a server gets to say whether it leads. One that does not answer in
// that time would make the tool hang.
const probeTimeout = 3 * time.Second

// Servers is what the servers themselves say of who leads, at one moment.
type Servers struct {
	Primary cluster.Node
	Live    []cluster.Node // that have answered, the one that leads first
	Silent  []string       // the names of the others, each with why
}

// detect asks every server whether it is in recovery (pg_is_in_recovery), over a new
// connection: the last observation may be a second old, and a backup is of the server that
// leads now.
func (b *Backups) detect(ctx context.Context) (Servers, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	nodes := b.Cluster.Nodes()
	positions, errs := make([]cluster.Position, len(nodes)), make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { positions[i], errs[i] = b.ask(ctx, n) })
	}
	wg.Wait()
	var s Servers
	var leaders []string
	for i, n := range nodes {
		switch {
		case errs[i] != nil:
			s.Silent = append(s.Silent, fmt.Sprintf("%s: %v", n.Name, errs[i]))
		case !positions[i].InRecovery:
			leaders = append(leaders, n.Name)
			s.Primary = n
			s.Live = append([]cluster.Node{n}, s.Live...)
		default:
			s.Live = append(s.Live, n)
		}
	}
	switch len(leaders) {
	case 1:
		return s, nil
	case 0:
		return s, operation.Refuse("no-primary", nil, "no server answers that is not in recovery (%s); see GET /health for what to do",
			strings.Join(append(names(s.Live), s.Silent...), "; "))
	}
	return s, operation.Refuse("two-primaries", nil,
		"%s all lead; fence the one whose data does not count (docker kill -s KILL) and rejoin it", strings.Join(leaders, " and "))
}

func (b *Backups) ask(ctx context.Context, n cluster.Node) (cluster.Position, error) {
	session, err := b.Servers.Connect(ctx, n)
	if err != nil {
		return cluster.Position{}, err
	}
	defer session.Close()
	return session.Position(ctx)
}

func names(nodes []cluster.Node) []string {
	out := make([]string, len(nodes))
	for i, n := range nodes {
		out[i] = n.Name + " is in recovery"
	}
	return out
}
