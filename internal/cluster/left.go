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

var errDead = errors.New("no process of the server is left")

// nobodyLeads looks whether an undo has left somebody who leads: primary, or
// another node. Where not, the view says who could.
func (m *Manager) nobodyLeads(ctx context.Context, primary string) (v View, nobody bool) {
	ctx, cancel := context.WithTimeout(ctx, leftDeadline)
	defer cancel()
	err := poll(ctx, 100*time.Millisecond, func() (bool, error) {
		v = m.fresh(ctx)
		for _, n := range v.Nodes {
			if n.Role() == RolePrimary {
				return true, nil
			}
		}
		switch s, _ := v.Node(primary); {
		case s.Dead():
			return false, errDead // it will not say so in a moment
		case s.Order.Role == node.RolePrimary:
			return true, nil // it runs, and may lead: that it does not answer proves nothing
		}
		return false, nil
	})
	return v, err != nil
}

// left is an error where an undone failover has left nobody who leads: it says
// who could, and by which command. The old primary has all that was
// acknowledged, so it is named first.
func (f *failover) left(ctx context.Context, s *failoverState) error {
	v, nobody := f.m.nobodyLeads(ctx, s.From)
	if !nobody {
		return nil
	}
	old, _ := v.Node(s.From)
	way := fmt.Sprintf("%s: %s", s.From, wholeness(old))
	switch {
	case usable(old) && old.Dead():
		way = fmt.Sprintf("%s holds all that was acknowledged: controld start %[1]s", s.From)
	case old.Locked == Yes:
		way = fmt.Sprintf("the server of %s runs and does not say that it leads (%s): docker kill -s KILL %s, then controld start %[1]s",
			s.From, word(old.ServerErr, "no answer"), old.Node.Container)
	}
	return fmt.Errorf("nobody leads: %s", strings.Join(append([]string{way}, f.m.othersThatCouldLead(v, s.From)...), "; or "))
}

// left is the same for a start that failed.
func (st *starter) left(ctx context.Context, _ *startState) error {
	v, nobody := st.m.nobodyLeads(ctx, st.node.Name)
	if !nobody {
		return nil
	}
	way := fmt.Sprintf("the log of %s says why its server did not start (docker logs %s)", st.node.Name, st.node.Container)
	return fmt.Errorf("nobody leads: %s", strings.Join(append([]string{way}, st.m.othersThatCouldLead(v, st.node.Name)...), "; or "))
}

// othersThatCouldLead says how each node but one would come to lead.
func (m *Manager) othersThatCouldLead(v View, except string) (ways []string) {
	for _, n := range m.others(except) {
		s, _ := v.Node(n.Name)
		switch why := s.Diverged(); {
		case why != "" || !usable(s):
			ways = append(ways, fmt.Sprintf("%s cannot lead: %s", n.Name, word(why, wholeness(s))))
		case s.Role() == RoleStandby:
			ways = append(ways, fmt.Sprintf("%s is a standby: controld failover --mode emergency --target %[1]s, which says first what would be lost", n.Name))
		default:
			ways = append(ways, fmt.Sprintf("%s does not answer (%s): controld start %[1]s brings it up as a standby, which a failover can make lead", n.Name, word(s.ServerErr, "no answer")))
		}
	}
	return ways
}
