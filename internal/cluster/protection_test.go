package cluster

import (
	"testing"
	"time"
)

func TestNextProtection(t *testing.T) {
	const names = `FIRST 1 ("pg2")`
	waits := func(v *View) { v.Nodes[0].Server.Settings["synchronous_standby_names"] = names }
	synced := func(v *View) { waits(v); v.Nodes[0].Server.Senders[0].SyncState = "sync" }
	silent := func(v *View) {
		synced(v)
		v.Nodes[0].Server.Senders[0].Silent = 4 * time.Second
		v.Nodes[1].Server = nil
	}
	alone := func(v *View) { v.Nodes[0].Server.Senders = nil; v.Nodes[1].Server = nil }
	person := func(names string) func(*View) {
		return func(v *View) {
			v.Nodes[0].Server.Settings["synchronous_standby_names"] = names
			v.Nodes[0].Server.Overridden = []string{"synchronous_standby_names"}
		}
	}
	both := func(f, g func(*View)) func(*View) { return func(v *View) { f(v); g(v) } }
	for _, tt := range []struct {
		name     string
		mode     ReplicationMode
		change   func(*View)
		unsynced bool
		blocked  time.Duration
		want     string
	}{
		{"async waits for nobody", Async, func(*View) {}, true, 0, ""},
		{"async lifts what another mode left", Async, synced, false, 0, protectLift},
		{"async lifts it for a dead standby too", Async, both(waits, alone), false, 0, protectLift},
		{"sync sets it for a standby that streams", Sync, func(*View) {}, true, 0, protectSet},
		{"sync proves it again after a lift that was noted", Sync, synced, true, 0, protectSet},
		{"sync in sync has nothing to do", Sync, synced, false, 0, ""},
		{"sync without a standby has nothing to set", Sync, alone, true, time.Hour, ""},
		{"sync leaves a dead standby its time", Sync, both(waits, alone), false, time.Second, ""},
		{"sync lifts it then", Sync, both(waits, alone), false, 5 * time.Second, protectLift},
		{"sync leaves a silent standby its time", Sync, silent, false, 4 * time.Second, ""},
		{"sync lifts it for a silent one", Sync, silent, false, 5 * time.Second, protectLift},
		{"strict sets what async had not", Strict, func(*View) {}, true, 0, protectSet},
		{"strict in sync has nothing to do", Strict, synced, false, 0, ""},
		{"async leaves a person's names", Async, person("*"), false, 0, ""},
		{"async leaves a person's names for a dead standby", Async, both(person("*"), alone), false, time.Hour, ""},
		{"sync leaves a person's names for a dead standby", Sync, both(person("*"), alone), false, time.Hour, ""},
		{"sync proves nothing by a person's names", Sync, person("*"), true, 0, ""},
		{"sync notes that a person lifted it", Sync, person(""), false, 0, protectLift},
		{"strict notes that a person lifted it", Strict, person(""), false, 0, protectLift},
		{"sync notes that once", Sync, person(""), true, 0, ""},
		{"async notes nothing", Async, person(""), false, 0, ""},
		{"strict never lifts", Strict, both(waits, alone), false, time.Hour, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := healthyView()
			tt.change(&v)
			got := NextProtection(v, Identity{Primary: "pg1", Unsynced: tt.unsynced}, tt.mode, tt.blocked, 5*time.Second)
			if got.How != tt.want || (got.Kind == KindProtect) != (tt.want != "") {
				t.Errorf("got %+v, want %q", got, tt.want)
			}
		})
	}
}

func TestCommitsBlocked(t *testing.T) {
	for _, tt := range []struct {
		name    string
		names   string
		senders []Sender
		silent  time.Duration
		blocked bool
	}{
		{"nobody is waited for", "", nil, 0, false},
		{"the standby is in sync", "pg2", []Sender{{SyncState: "sync", Silent: time.Second}}, time.Second, false},
		{"the standby is gone", "pg2", nil, 0, true},
		{"the standby is there and not in sync", "pg2", []Sender{{SyncState: "async", Silent: time.Second}}, 0, true},
		{"the standby is frozen", "pg2", []Sender{{SyncState: "sync", Silent: 4 * time.Second}}, 4 * time.Second, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := healthyView()
			v.Nodes[0].Server.Settings["synchronous_standby_names"], v.Nodes[0].Server.Senders = tt.names, tt.senders
			if silent, blocked := CommitsBlocked(v); silent != tt.silent || blocked != tt.blocked {
				t.Errorf("got %s, %v; want %s, %v", silent, blocked, tt.silent, tt.blocked)
			}
		})
	}
}
