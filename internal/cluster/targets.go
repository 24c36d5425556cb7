package cluster

import (
	"slices"
	"strings"
)

// Targets says where the entries of the pooler lead, as addresses.
type Targets struct {
	Primary string // every client database
	Standby string // their read-only twins; the primary's where there is no standby
	Probe   string // the entry for probes; empty: as Primary
}

// of is where an entry of clients leads.
func (t Targets) of(entry string) string {
	if strings.HasSuffix(entry, ReadOnlySuffix) {
		return t.Standby
	}
	return t.Primary
}

// Moved is t once what was at one address is at another.
func (t Targets) Moved(from, to string) Targets {
	for _, a := range []*string{&t.Primary, &t.Standby, &t.Probe} {
		if *a == from {
			*a = to
		}
	}
	return t
}

// Aligned reports whether the entries lead where t says, with the pools that are
// configured.
func (p PoolerState) Aligned(t Targets) bool {
	for d := range p.Clients() {
		if d.Host != t.of(d.Name) {
			return false
		}
	}
	return len(p.Missing) == 0 && len(p.Resized) == 0
}

// Names of the pooler's entries beside the client databases.
const (
	ReadOnlySuffix = "_ro"
	ProbeEntry     = "controld_probe"
	consoleEntry   = "pgbouncer" // PgBouncer's own
)

// WantTargets says where the pooler's entries should lead: clients to the
// leader, their read-only twins to a standby that follows, or to the leader
// where there is none.
func WantTargets(v View) Targets {
	leader, problem := Leader(v)
	if problem != nil {
		return Targets{}
	}
	t := Targets{Primary: leader.Container.Address, Standby: leader.Container.Address}
	for _, s := range v.Nodes {
		if s.Node.Name != leader.Node.Name && s.Follows(leader) && s.Container.Address != "" {
			t.Standby = s.Container.Address
			break
		}
	}
	return t
}

// Changing are the entries of clients that t leads elsewhere than they lead now. An
// entry without a host holds no connection.
func (p PoolerState) Changing(t Targets) []string {
	var out []string
	for d := range p.Clients() {
		if d.Host != "" && d.Host != t.of(d.Name) {
			out = append(out, d.Name)
		}
	}
	slices.Sort(out)
	return out
}

// Paused are the entries of clients that are paused.
func (p PoolerState) Paused() []string {
	var out []string
	for d := range p.Clients() {
		if d.Paused {
			out = append(out, d.Name)
		}
	}
	return out
}
