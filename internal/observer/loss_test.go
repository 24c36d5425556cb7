package observer

import (
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/wal"
)

func TestRateMeter(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(1000+s), 0) }
	a, b := clustertest.A, clustertest.B
	seen := func(n cluster.Node, lsn wal.LSN, s int) cluster.View {
		told := func(x *cluster.NodeState) { x.Server.Flushed, x.AnsweredAt = lsn, at(s) }
		return clustertest.View(clustertest.State(n, clustertest.Leading(1), told))
	}
	views := func(v ...cluster.View) []cluster.View { return v }
	first, then := seen(a, 1000, 0), seen(a, 2000, 1)
	down := clustertest.View(clustertest.State(a))
	for _, tt := range []struct {
		name     string
		views    []cluster.View
		received wal.LSN
		died     int
		want     int64
		known    bool
	}{
		{"never seen", nil, 0, 0, 0, false},
		{"seen once: no rate", views(first), 900, 5, 100, true},
		{"a quiet primary", views(first, seen(a, 1000, 1)), 1000, 5, 0, true},
		{"lag and what was written since, twice", views(first, then), 1900, 3, 100 + 2*2*1000, true},
		{"what has streamed since is no loss", views(first, then), 3000, 2, 2*1000 - 1000, true},
		{"died before it was last seen", views(first, then), 2000, 0, 0, true},
		{"another node led before", views(seen(b, 1, 0), seen(a, 1000, 1)), 1000, 9, 0, true},
		{"another node leads since", views(first, seen(b, 1, 1)), 1000, 9, 0, false},
		{"a view without a primary changes nothing", views(first, then, down), 2000, 2, 2000, true},
		{"the same observation twice", views(first, then, then), 2000, 2, 2000, true},
	} {
		var r rateMeter
		for _, v := range tt.views {
			r.note(v)
		}
		if got := r.bound("a", tt.received, at(tt.died)); got.Bytes != tt.want || got.Known != tt.known || !got.Estimate {
			t.Errorf("%s: %+v, want %d bytes, known %v", tt.name, got, tt.want, tt.known)
		}
	}
}
