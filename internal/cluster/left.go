package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"controld/internal/node"
)

// leftDeadline is how long a server that was released a moment ago may take to
// say that it leads.
const leftDeadline = 5 * time.Second

// left is an error where an undo has left nobody who leads: it says who could,
// and by which command.
func (f *failover) left(ctx context.Context, s *failoverState) error {
	bounded, cancel := context.WithTimeout(ctx, leftDeadline)
	defer cancel()
	var v View
	err := poll(bounded, 100*time.Millisecond, func() (bool, error) {
		v = f.m.fresh(ctx)
		for _, n := range v.Nodes {
			if n.Role() == RolePrimary {
				return true, nil
			}
		}
		switch from, _ := v.Node(s.From); {
		case from.Dead():
			return false, errDead
		case from.Order.Role == node.RolePrimary:
			return true, nil // it runs, and may lead: that it does not answer proves nothing
		}
		return false, nil
	})
	if err == nil {
		return nil
	}
	return fmt.Errorf("nobody leads: %s", whoCouldLead(v, s.From, s.To))
}

var errDead = errors.New("no process of the server is left")

// whoCouldLead says how each of the two nodes of a failover would come to lead.
// The old primary has all that was acknowledged, so it is named first.
func whoCouldLead(v View, from, to string) string {
	var ways []string
	old, _ := v.Node(from)
	switch {
	case usable(old) && old.Dead():
		ways = append(ways, fmt.Sprintf("%s holds all that was acknowledged: controld start %[1]s", from))
	case old.Locked == Yes:
		ways = append(ways, fmt.Sprintf("the server of %s runs and does not say that it leads (%s): docker kill -s KILL %s, then controld start %[1]s", from, word(old.ServerErr, "no answer"), old.Node.Container))
	default:
		ways = append(ways, fmt.Sprintf("%s: %s", from, wholeness(old)))
	}
	candidate, _ := v.Node(to)
	switch why := candidate.Diverged(); {
	case why != "" || !usable(candidate):
		ways = append(ways, fmt.Sprintf("%s cannot lead: %s", to, word(why, wholeness(candidate))))
	case candidate.Role() == RoleStandby:
		ways = append(ways, fmt.Sprintf("%s is a standby: controld failover --mode emergency --target %[1]s, which says first what would be lost", to))
	default:
		ways = append(ways, fmt.Sprintf("%s does not answer (%s): controld start %[1]s brings it up as a standby, which a failover can make lead", to, word(candidate.ServerErr, "no answer")))
	}
	return strings.Join(ways, "; or ")
}
