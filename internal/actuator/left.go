package actuator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/wait"
)

// leftDeadline is how long a server that was released a moment ago may take to
// say that it leads.
const leftDeadline = 5 * time.Second

// errDead ends the wait for a server that will not say that it leads.
var errDead = errors.New("no process of the server is left")

// NobodyLeads looks whether what was undone has left somebody who leads: the node
// called primary, or another one. Where nobody does, v says who could.
func (a *Actuator) NobodyLeads(ctx context.Context, primary string) (v cluster.View, nobody bool) {
	ctx, cancel := context.WithTimeout(ctx, leftDeadline)
	defer cancel()
	err := wait.Poll(ctx, 100*time.Millisecond, func() (bool, error) {
		v = a.Look.Fresh(ctx)
		for _, n := range v.Nodes {
			if n.Role() == cluster.RolePrimary {
				return true, nil
			}
		}
		switch s, _ := v.Node(primary); {
		case s.Dead():
			return false, errDead
		case s.Order.Role == node.RolePrimary:
			return true, nil // it runs, and may lead: that it does not answer proves nothing
		}
		return false, nil
	})
	return v, err != nil
}

// OthersThatCouldLead says how each node but one would come to lead.
func (a *Actuator) OthersThatCouldLead(v cluster.View, except string) (ways []string) {
	add := func(format string, args ...any) { ways = append(ways, fmt.Sprintf(format, args...)) }
	for _, n := range a.Others(except) {
		s, _ := v.Node(n.Name)
		switch why := s.Diverged(); {
		case why != "" || !s.Usable():
			add("%s cannot lead: %s", n.Name, cmp.Or(why, s.Wholeness()))
		case s.Role() == cluster.RoleStandby:
			add("%s is a standby: controld failover --mode emergency --target %[1]s, which says first what would be lost", n.Name)
		default:
			add("%s does not answer (%s): controld start %[1]s brings it up as a standby, which a failover can make lead",
				n.Name, cmp.Or(s.ServerErr, "no answer"))
		}
	}
	return ways
}
