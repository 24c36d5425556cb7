package rules

import (
	"errors"
	"strings"
	"testing"

	"controld/internal/node"
	"controld/internal/pgcontrol"
	"controld/internal/wal"
)

// order is one with epoch 9.
func order(role node.Role, action node.Action) node.Order {
	return node.Order{Epoch: 9, Role: role, Action: action, DiscardTimeline: 3}
}

func TestTakeUp(t *testing.T) {
	for _, tt := range []struct {
		taken, reported uint64
		take, refused   bool
	}{
		{0, 0, true, false},
		{0, 8, true, false},
		{0, 9, true, false}, // the same process as before, or one that ended at it
		{9, 9, false, false},
		{10, 10, false, false},
		{0, 10, false, true},
	} {
		take, err := TakeUp(order(node.RoleStandby, node.ActionNone), tt.taken, node.Status{Epoch: tt.reported})
		if take != tt.take || (err != nil) != tt.refused {
			t.Errorf("taken %d, reported %d: %t, %v", tt.taken, tt.reported, take, err)
		}
	}
}

func TestRunning(t *testing.T) {
	on := func(timeline wal.Timeline) *pgcontrol.Data { return &pgcontrol.Data{CheckpointTimeline: timeline} }
	done := node.Status{ActionEpoch: 9, Salvaged: &node.Salvaged{Epoch: 9}, Provisioned: &node.Provisioned{Epoch: 9}}
	before := node.Status{ActionEpoch: 8, Salvaged: &node.Salvaged{Epoch: 8}, Provisioned: &node.Provisioned{Epoch: 8}}
	for _, tt := range []struct {
		name    string
		running Running
		order   node.Order
		want    Step
		refusal string
	}{
		{"withdrawn", Running{Leads: true}, order(node.RoleNone, node.ActionNone), Stop, ""},
		{"leads and shall lead", Running{Leads: true}, order(node.RolePrimary, node.ActionNone), Adopt, ""},
		{"stands by and shall lead", Running{}, order(node.RolePrimary, node.ActionNone), Adopt, ""},
		{"initdb", Running{Leads: true}, order(node.RolePrimary, node.ActionInitDB), "", "while a server runs"},
		{"initdb that was done", Running{Done: done}, order(node.RolePrimary, node.ActionInitDB), Adopt, ""},
		{"provision", Running{Leads: true, Done: before}, order(node.RolePrimary, node.ActionProvision), Provision, ""},
		{"provision that was tried", Running{Leads: true, Done: done}, order(node.RolePrimary, node.ActionProvision), Adopt, ""},
		{"leads and shall follow", Running{Leads: true}, order(node.RoleStandby, node.ActionNone), Stop, ""},
		{"stands by and shall follow", Running{}, order(node.RoleStandby, node.ActionNone), Adopt, ""},
		{"a copy", Running{Done: before}, order(node.RoleStandby, node.ActionBaseBackup), Stop, ""},
		{"a copy that was made", Running{Done: done}, order(node.RoleStandby, node.ActionBaseBackup), Adopt, ""},
		{"a rewind", Running{}, order(node.RoleStandby, node.ActionRewind), Stop, ""},
		{"salvage", Running{Done: before}, order(node.RoleStandby, node.ActionSalvage), Salvage, ""},
		{"salvage that was tried", Running{Done: done}, order(node.RoleStandby, node.ActionSalvage), Adopt, ""},
		{"salvage on one that leads", Running{Leads: true}, order(node.RoleStandby, node.ActionSalvage), "", "that leads"},
		{"discard", Running{Control: on(2)}, order(node.RoleStandby, node.ActionDiscard), Stop, ""},
		{"discard too late", Running{Control: on(3)}, order(node.RoleStandby, node.ActionDiscard), "", "cannot be discarded"},
		{"discard of what cannot be read", Running{}, order(node.RoleStandby, node.ActionDiscard), Stop, ""},
		{"discard that was done", Running{Control: on(3), Done: done}, order(node.RoleStandby, node.ActionDiscard), Adopt, ""},
	} {
		got, err := tt.running.Next(tt.order)
		if got != tt.want || (err != nil) != (tt.refusal != "") {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
		if err != nil && (!strings.Contains(err.Error(), tt.refusal) || !errors.As(err, new(Refusal))) {
			t.Errorf("%s: refused by %v", tt.name, err)
		}
	}
}

func TestAtRest(t *testing.T) {
	lead := func(a node.Action) node.Order { return order(node.RolePrimary, a) }
	follow := func(a node.Action) node.Order { return order(node.RoleStandby, a) }
	used := node.Status{UsedEpoch: 9}
	holds := func() error { return errors.New("it holds something") }
	empty := func() error { return nil }
	at := func(state pgcontrol.State, timeline wal.Timeline) pgcontrol.Data {
		return pgcontrol.Data{State: state, CheckpointTimeline: timeline}
	}
	shut, standby := at(pgcontrol.StateShutDown, 2), at(pgcontrol.StateShutDownInRecovery, 2)
	nothing := AtRest{ControlErr: pgcontrol.ErrNoCluster, Empty: empty}
	for _, tt := range []struct {
		name    string
		rest    AtRest
		order   node.Order
		refusal string
	}{
		{"a primary", AtRest{Control: shut}, lead(node.ActionNone), ""},
		{"its order was used", AtRest{Control: shut, Done: used}, lead(node.ActionNone), "used already"},
		{"one before was used", AtRest{Control: shut, Done: node.Status{UsedEpoch: 8}}, lead(node.ActionNone), ""},
		{"a standby's is good for any start", AtRest{Control: standby, Standby: true, Done: used}, follow(node.ActionNone), ""},
		{"nothing to start", nothing, follow(node.ActionNone), "nothing to start"},
		{"a copy into nothing", nothing, follow(node.ActionBaseBackup), ""},
		{"a copy over half of one", AtRest{Marker: node.ActionBaseBackup}, follow(node.ActionBaseBackup), ""},
		{"a start of half of one", AtRest{Marker: node.ActionBaseBackup}, follow(node.ActionNone), "unfinished basebackup"},
		{"initdb", nothing, lead(node.ActionInitDB), ""},
		{"initdb over data", AtRest{Control: shut, Empty: holds}, lead(node.ActionInitDB), "it holds something"},
		{"initdb over its beginning", AtRest{Marker: node.ActionInitDB, Empty: holds}, lead(node.ActionInitDB), ""},
		{"initdb over a copy's beginning", AtRest{Marker: node.ActionRewind, Empty: empty}, lead(node.ActionInitDB), "unfinished rewind"},
		{"a standby that shall lead", AtRest{Control: standby, Standby: true}, lead(node.ActionNone), "only a promotion does"},
		{"one that was promoted", AtRest{Control: shut, Standby: true}, lead(node.ActionNone), ""},
		{"unreadable", AtRest{ControlErr: pgcontrol.ErrBroken, Standby: true}, lead(node.ActionNone), ""},
		{"discard", AtRest{Control: shut}, follow(node.ActionDiscard), ""},
		{"discard too late", AtRest{Control: at(pgcontrol.StateShutDown, 3)}, follow(node.ActionDiscard), "is on timeline 3"},
		{"provision at rest starts", AtRest{Control: shut}, lead(node.ActionProvision), ""},
	} {
		err := tt.rest.Allowed(tt.order)
		if (err != nil) != (tt.refusal != "") || err != nil && !strings.Contains(err.Error(), tt.refusal) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.refusal)
		}
	}
}
