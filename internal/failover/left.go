package failover

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"controld/internal/cluster"
)

// left is an error where an undone failover has left nobody who leads: it says
// who could, and by which command. The old primary has all that was
// acknowledged, so it is named first.
func (f *failover) left(ctx context.Context, s *state) error {
	v, nobody := f.act.NobodyLeads(ctx, s.From)
	if !nobody {
		return nil
	}
	old, _ := v.Node(s.From)
	way := fmt.Sprintf("%s: %s", s.From, old.Wholeness())
	switch {
	case old.Usable() && old.Dead():
		way = fmt.Sprintf("%s holds all that was acknowledged: controld start %[1]s", s.From)
	case old.Locked == cluster.Yes:
		way = fmt.Sprintf("the server of %s runs and does not say that it leads (%s): docker kill -s KILL %s, then controld start %[1]s",
			s.From, cmp.Or(old.ServerErr, "no answer"), old.Node.Container)
	}
	return fmt.Errorf("nobody leads: %s", strings.Join(append([]string{way}, f.act.OthersThatCouldLead(v, s.From)...), "; or "))
}
