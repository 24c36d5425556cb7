package health

import (
	"testing"
	"time"
)

// fixed is a part of controld that always says the same.
type fixed []Component

func (f fixed) Components(time.Time) []Component { return f }

func (f fixed) Health() Report { return Report{Operation: "op"}.With(f...) }

// The first component that is not ok gives the whole its reason; only the primary's can
// make it down.
func TestBoard(t *testing.T) {
	low := Bad("disk", Degraded, "disk-low", "little is left", "free some")
	gone := Bad("redis", Down, "redis-down", "it is gone", "start it")
	dead := Bad(Primary, Down, "no-primary", "nobody leads", "choose")
	for _, tt := range []struct {
		name    string
		cluster fixed
		others  []Contributor
		status  Status
		reason  string
		count   int
	}{
		{"all is well", fixed{Fine(Primary)}, []Contributor{fixed{Fine("redis")}}, OK, "", 2},
		{"what is contributed counts after the cluster", fixed{Fine(Primary), low}, []Contributor{fixed{gone}}, Degraded, "disk-low", 3},
		{"what is contributed counts", fixed{Fine(Primary)}, []Contributor{fixed{Fine("x")}, fixed{gone, low}}, Degraded, "redis-down", 4},
		{"nobody leads", fixed{low, dead}, []Contributor{fixed{gone}}, Down, "disk-low", 3},
	} {
		b := Board{Cluster: tt.cluster, Contributors: tt.others}
		r := b.Health()
		if r.Status != tt.status || r.Reason != tt.reason || len(r.Components) != tt.count || r.Operation != "op" {
			t.Errorf("%s: %+v", tt.name, r)
		}
		if first := r.First(dead); first.Reason != "no-primary" || len(r.Components) != tt.count {
			t.Errorf("%s, with another first: %+v", tt.name, first)
		}
	}
}
