package node_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"controld/internal/node"
)

func TestOrderReadsBack(t *testing.T) {
	dir := t.TempDir()
	want := node.Order{
		Epoch:    7,
		Role:     node.RoleStandby,
		Action:   node.ActionBaseBackup,
		Upstream: &node.Upstream{Host: "pg1", Port: 5432},
		Slot:     "node2",
	}
	if err := node.WriteOrder(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := node.ReadOrder(dir)
	if err != nil || got.Epoch != 7 || got.Role != want.Role || *got.Upstream != *want.Upstream || got.Slot != "node2" {
		t.Errorf("ReadOrder = %+v, %v", got, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left in the folder: %v, %v", entries, err)
	}
}

func TestWhatIsNoOrder(t *testing.T) {
	dir := t.TempDir()
	if _, err := node.ReadOrder(dir); !errors.Is(err, node.ErrNoOrder) {
		t.Errorf("missing: %v", err)
	}
	for _, text := range []string{
		"",
		"{",
		`"none"`,
		`{"role":"none","action":"none"}`,
		`{"epoch":1,"role":"king","action":"none"}`,
		`{"epoch":1,"role":"none","action":"dance"}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, node.OrderFile), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if o, err := node.ReadOrder(dir); !errors.Is(err, node.ErrNoOrder) {
			t.Errorf("%q: %+v, %v", text, o, err)
		}
	}
}

func TestOrdersWithoutSenseAreNotWritten(t *testing.T) {
	up := &node.Upstream{Host: "pg1", Port: 5432}
	dead := &node.Salvage{DataDir: "/pg/node1/data", SegmentBytes: 1}
	for name, o := range map[string]node.Order{
		"no epoch":                 {Role: node.RoleNone, Action: node.ActionNone},
		"initdb of a standby":      {Epoch: 1, Role: node.RoleStandby, Action: node.ActionInitDB},
		"base backup of a primary": {Epoch: 1, Role: node.RolePrimary, Action: node.ActionBaseBackup, Upstream: up},
		"base backup from nobody":  {Epoch: 1, Role: node.RoleStandby, Action: node.ActionBaseBackup},
		"rewind to nobody":         {Epoch: 1, Role: node.RoleStandby, Action: node.ActionRewind, Upstream: &node.Upstream{}},
		"salvage from nowhere":     {Epoch: 1, Role: node.RoleStandby, Action: node.ActionSalvage},
		"salvage by a primary":     {Epoch: 1, Role: node.RolePrimary, Action: node.ActionSalvage, Salvage: dead},
		"discard of all timelines": {Epoch: 1, Role: node.RoleStandby, Action: node.ActionDiscard, DiscardTimeline: 1},
		"discard by a primary":     {Epoch: 1, Role: node.RolePrimary, Action: node.ActionDiscard, DiscardTimeline: 2},
	} {
		dir := t.TempDir()
		if err := node.WriteOrder(dir, o); err == nil {
			t.Errorf("%s was written", name)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("%s: left in the folder: %v, %v", name, entries, err)
		}
	}
}

func TestStatusReadsBack(t *testing.T) {
	dir := t.TempDir()
	if s, err := node.ReadStatus(dir); err != nil || !reflect.DeepEqual(s, node.Status{}) {
		t.Errorf("never reported: %+v, %v", s, err)
	}
	want := node.Status{
		Epoch:       3,
		UsedEpoch:   2,
		ActionEpoch: 1,
		State:       node.StateRunning,
		Role:        node.RolePrimary,
		PID:         12,
		Actions:     node.Actions,
		At:          time.Now().UTC().Round(0),
	}
	if err := node.WriteStatus(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := node.ReadStatus(dir); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ReadStatus = %+v, %v; want %+v", got, err, want)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	locked := func() bool {
		t.Helper()
		held, err := node.Locked(dir)
		if err != nil {
			t.Fatal(err)
		}
		return held
	}
	if locked() {
		t.Error("a node without a lock file is locked")
	}
	f, err := node.OpenLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if locked() {
		t.Error("locked before it was taken")
	}
	if ok, err := node.TryLock(f); !ok || err != nil {
		t.Fatalf("TryLock = %v, %v", ok, err)
	}
	if !locked() {
		t.Error("not locked after it was taken")
	}
	second, err := node.OpenLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if ok, err := node.TryLock(second); ok || err != nil {
		t.Errorf("a second one took it: %v, %v", ok, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if locked() {
		t.Error("locked after the last descriptor was closed")
	}
}
