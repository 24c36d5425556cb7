package cluster_test

import (
	"testing"
	"time"

	"controld/internal/cluster"
)

func TestNextProtection(t *testing.T) {
	const names = `FIRST 1 ("pg2")`
	waits := func(v *cluster.View) { v.Nodes[0].Server.Settings["synchronous_standby_names"] = names }
	synced := func(v *cluster.View) { waits(v); v.Nodes[0].Server.Senders[0].SyncState = "sync" }
	silent := func(v *cluster.View) {
		synced(v)
		v.Nodes[0].Server.Senders[0].Silent = 4 * time.Second
		v.Nodes[1].Server = nil
	}
	alone := func(v *cluster.View) { v.Nodes[0].Server.Senders = nil; v.Nodes[1].Server = nil }
	person := func(names string) func(*cluster.View) {
		return func(v *cluster.View) {
			v.Nodes[0].Server.Settings["synchronous_standby_names"] = names
			v.Nodes[0].Server.Overridden = []string{"synchronous_standby_names"}
		}
	}
	both := func(f, g func(*cluster.View)) func(*cluster.View) { return func(v *cluster.View) { f(v); g(v) } }
	for _, tt := range []struct {
		name     string
		mode     cluster.ReplicationMode
		change   func(*cluster.View)
		unsynced bool
		blocked  time.Duration
		want     string
	}{
		{"async waits for nobody", cluster.Async, func(*cluster.View) {}, true, 0, ""},
		{"async lifts what another mode left", cluster.Async, synced, false, 0, cluster.ProtectLift},
		{"async lifts it for a dead standby too", cluster.Async, both(waits, alone), false, 0, cluster.ProtectLift},
		{"sync sets it for a standby that streams", cluster.Sync, func(*cluster.View) {}, true, 0, cluster.ProtectSet},
		{"sync proves it again after a lift that was noted", cluster.Sync, synced, true, 0, cluster.ProtectSet},
		{"sync in sync has nothing to do", cluster.Sync, synced, false, 0, ""},
		{"sync without a standby has nothing to set", cluster.Sync, alone, true, time.Hour, ""},
		{"sync leaves a dead standby its time", cluster.Sync, both(waits, alone), false, time.Second, ""},
		{"sync lifts it then", cluster.Sync, both(waits, alone), false, 5 * time.Second, cluster.ProtectLift},
		{"sync leaves a silent standby its time", cluster.Sync, silent, false, 4 * time.Second, ""},
		{"sync lifts it for a silent one", cluster.Sync, silent, false, 5 * time.Second, cluster.ProtectLift},
		{"strict sets what async had not", cluster.Strict, func(*cluster.View) {}, true, 0, cluster.ProtectSet},
		{"strict in sync has nothing to do", cluster.Strict, synced, false, 0, ""},
		{"async leaves a person's names", cluster.Async, person("*"), false, 0, ""},
		{"async leaves a person's names for a dead standby", cluster.Async, both(person("*"), alone), false, time.Hour, ""},
		{"sync leaves a person's names for a dead standby", cluster.Sync, both(person("*"), alone), false, time.Hour, ""},
		{"sync proves nothing by a person's names", cluster.Sync, person("*"), true, 0, ""},
		{"sync notes that a person lifted it", cluster.Sync, person(""), false, 0, cluster.ProtectLift},
		{"strict notes that a person lifted it", cluster.Strict, person(""), false, 0, cluster.ProtectLift},
		{"sync notes that once", cluster.Sync, person(""), true, 0, ""},
		{"async notes nothing", cluster.Async, person(""), false, 0, ""},
		{"strict never lifts", cluster.Strict, both(waits, alone), false, time.Hour, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := healthyView()
			tt.change(&v)
			got := cluster.NextProtection(v, cluster.Identity{Primary: "pg1", Unsynced: tt.unsynced}, tt.mode, tt.blocked, 5*time.Second)
			if got.How != tt.want || (got.Kind == cluster.KindProtect) != (tt.want != "") {
				t.Errorf("got %+v, want %q", got, tt.want)
			}
		})
	}
}

func TestCommitsBlocked(t *testing.T) {
	for _, tt := range []struct {
		name    string
		names   string
		senders []cluster.Sender
		silent  time.Duration
		blocked bool
	}{
		{"nobody is waited for", "", nil, 0, false},
		{"the standby is in sync", "pg2", []cluster.Sender{{SyncState: "sync", Silent: time.Second}}, time.Second, false},
		{"one of a quorum is in sync", "ANY 1 (pg2)", []cluster.Sender{{SyncState: "quorum", Silent: time.Second}}, time.Second, false},
		{"the standby could be in sync", "pg2", []cluster.Sender{{SyncState: "potential", Silent: time.Second}}, 0, true},
		{"the standby is gone", "pg2", nil, 0, true},
		{"the standby is there and not in sync", "pg2", []cluster.Sender{{SyncState: "async", Silent: time.Second}}, 0, true},
		{"the standby says nothing just now", "pg2", []cluster.Sender{{SyncState: "sync", Silent: 3*time.Second - 1}},
			3*time.Second - 1, false},
		{"the standby says nothing", "pg2", []cluster.Sender{{SyncState: "sync", Silent: 3 * time.Second}}, 3 * time.Second, true},
		{"the standby is frozen", "pg2", []cluster.Sender{{SyncState: "sync", Silent: 4 * time.Second}}, 4 * time.Second, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := healthyView()
			v.Nodes[0].Server.Settings["synchronous_standby_names"], v.Nodes[0].Server.Senders = tt.names, tt.senders
			if silent, blocked := cluster.CommitsBlocked(v); silent != tt.silent || blocked != tt.blocked {
				t.Errorf("got %s, %v; want %s, %v", silent, blocked, tt.silent, tt.blocked)
			}
		})
	}
}
