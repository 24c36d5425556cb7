package cluster_test

import (
	"slices"
	"testing"

	"controld/internal/cluster"
)

func TestMoved(t *testing.T) {
	before := cluster.Targets{Primary: "10.0.0.1", Standby: "10.0.0.2", Probe: "10.0.0.1"}
	want := cluster.Targets{Primary: "10.0.0.9", Standby: "10.0.0.2", Probe: "10.0.0.9"}
	if got := before.Moved("10.0.0.1", "10.0.0.9"); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := before.Moved("10.0.0.3", "10.0.0.9"); got != before {
		t.Errorf("an address that no entry leads to changed them: %+v", got)
	}
}

// Where the entries should lead, and which of them do not.
func TestWantTargets(t *testing.T) {
	const first, second = "10.0.0.1", "10.0.0.2"
	for _, tt := range []struct {
		name     string
		change   func(*cluster.View)
		want     cluster.Targets
		changing []string
	}{
		{"all is well", func(*cluster.View) {}, cluster.Targets{Primary: first, Standby: second}, nil},
		{"no standby follows", func(v *cluster.View) { v.Nodes[0].Server.Senders = nil },
			cluster.Targets{Primary: first, Standby: first}, []string{"imdb_ro"}},
		{"the standby has no address", func(v *cluster.View) { v.Nodes[1].Container.Address = "" },
			cluster.Targets{Primary: first, Standby: first}, []string{"imdb_ro"}},
		{"nobody leads", func(v *cluster.View) { v.Nodes[0].Server = nil }, cluster.Targets{}, []string{"imdb", "imdb_ro"}},
		{"the console and the probe's own entry are no clients", func(v *cluster.View) {
			v.Pooler.Databases = append(v.Pooler.Databases, cluster.PoolerDatabase{Name: "pgbouncer", Host: "10.0.0.9"},
				cluster.PoolerDatabase{Name: "controld_probe", Host: "10.0.0.9"})
		}, cluster.Targets{Primary: first, Standby: second}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := healthyView()
			tt.change(&v)
			got := cluster.WantTargets(v)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			changing := v.Pooler.Changing(got)
			if !slices.Equal(changing, tt.changing) || v.Pooler.Aligned(got) != (changing == nil) {
				t.Errorf("changing: %q, aligned: %v; want %q", changing, v.Pooler.Aligned(got), tt.changing)
			}
		})
	}
}

// Pools of another size, or entries that are missing, are not in line either.
func TestAlignedPools(t *testing.T) {
	v := healthyView()
	want := cluster.WantTargets(v)
	v.Pooler.Missing = []string{"imdb2"}
	if v.Pooler.Aligned(want) {
		t.Error("aligned with an entry missing")
	}
	v.Pooler.Missing, v.Pooler.Resized = nil, []string{"imdb"}
	if v.Pooler.Aligned(want) {
		t.Error("aligned with a pool of another size")
	}
}
