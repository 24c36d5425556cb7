package volume

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/pgcontrol"
	"controld/internal/render"
)

func newNode(t *testing.T) cluster.Node {
	t.Helper()
	n := cluster.Node{Name: "postgres_slave", Container: "x-postgres_slave", Dir: t.TempDir(), OrderDir: t.TempDir(), Port: 5432}
	return n
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOrder(t *testing.T) {
	n, v := newNode(t), &Volumes{}
	path := filepath.Join(n.OrderDir, node.OrderFile)
	if o, err := v.Order(n); err != nil || o.Epoch != 0 {
		t.Errorf("no order: %+v, %v", o, err)
	}
	for _, content := range []string{"", "{", `{"epoch":1`, `{"epoch":0,"role":"primary","action":"none"}`} {
		write(t, path, content)
		if o, err := v.Order(n); err != nil || o.Epoch != 0 {
			t.Errorf("order %q: %+v, %v; want none", content, o, err)
		}
	}
	want := node.Order{Epoch: 7, Role: node.RolePrimary, Action: node.ActionNone}
	if err := v.WriteOrder(n, want); err != nil {
		t.Fatal(err)
	}
	if o, err := v.Order(n); err != nil || !reflect.DeepEqual(o, want) {
		t.Errorf("order %+v, %v; want %+v", o, err, want)
	}
	if err := v.WriteOrder(n, node.Order{}); err == nil {
		t.Error("a senseless order was written")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Order(n); err == nil {
		t.Error("an order that cannot be read counts as none")
	}
}

func TestEnsureConfig(t *testing.T) {
	n, v := newNode(t), &Volumes{Sizes: render.DefaultSizes()}
	for i, want := range []bool{true, false} {
		changed, err := v.EnsureConfig(n)
		if err != nil || changed != want {
			t.Errorf("call %d: changed %v, %v; want %v", i+1, changed, err, want)
		}
	}
	for _, name := range []string{render.PostgresFile, render.HBAFile, render.IdentFile, render.RoleFile} {
		info, err := os.Stat(filepath.Join(n.OrderDir, name))
		if err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v, %v; the server must be able to read it", name, info, err)
		}
	}
	// Settings of a role are kept; sizes that changed are written.
	up := cluster.Node{Container: "x-postgres_master", Port: 5432}
	settings := cluster.RoleSettings{Upstream: &up, UpstreamAddress: "10.0.0.5", Slot: n.Slot(), SynchronousStandbys: []string{"a", "b"}}
	if err := v.WriteSettings(n, settings); err != nil {
		t.Fatal(err)
	}
	v.Sizes.SharedBuffers = "1GB"
	if changed, err := v.EnsureConfig(n); err != nil || !changed {
		t.Errorf("another size: changed %v, %v", changed, err)
	}
	want := render.RoleConf(render.Role{
		Upstream: &render.Upstream{
			Host:        "x-postgres_master",
			Address:     "10.0.0.5",
			Port:        5432,
			PassFile:    passFile,
			Application: "postgres_slave",
		},
		PrimarySlotName:         "postgres_slave",
		SynchronousStandbyNames: `FIRST 1 ("a", "b")`,
	})
	got, err := os.ReadFile(filepath.Join(n.OrderDir, render.RoleFile))
	if err != nil || string(got) != string(want) {
		t.Errorf("role.conf: %v\n%s\nwant\n%s", err, got, want)
	}
}

func TestWriteSettingsOnce(t *testing.T) {
	n, v := newNode(t), &Volumes{}
	path := filepath.Join(n.OrderDir, render.RoleFile)
	var infos []os.FileInfo
	for range 2 {
		if err := v.WriteSettings(n, cluster.RoleSettings{ArchiveCommand: "/bin/true"}); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		infos = append(infos, info)
	}
	if !os.SameFile(infos[0], infos[1]) {
		t.Error("the same settings were written twice")
	}
}

func TestDataVolume(t *testing.T) {
	n, v := newNode(t), &Volumes{}
	check := func(what string, got, want any, err error) {
		t.Helper()
		if err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", what, got, err, want)
		}
	}
	empty, err := v.Empty(n)
	check("empty without a data directory", empty, true, err)
	if _, err := v.Control(n); !errors.Is(err, pgcontrol.ErrNoCluster) {
		t.Errorf("control file without a data directory: %v", err)
	}
	if s, err := v.Status(n); err != nil || s.State != "" {
		t.Errorf("status that was never written: %+v, %v", s, err)
	}
	if err := os.Mkdir(n.DataDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	empty, err = v.Empty(n)
	check("empty with an empty data directory", empty, true, err)
	standby, err := v.StandbySignal(n)
	check("standby.signal", standby, false, err)

	for _, name := range []string{"PG_VERSION", "standby.signal", "pg_wal/00000002.history"} {
		write(t, filepath.Join(n.DataDir(), name), "")
	}
	empty, err = v.Empty(n)
	check("empty", empty, false, err)
	standby, err = v.StandbySignal(n)
	check("standby.signal", standby, true, err)
	has, err := v.HasHistory(n, 2)
	check("history of 2", has, true, err)
	has, err = v.HasHistory(n, 3)
	check("history of 3", has, false, err)
	free, total, err := v.Space(n)
	if err != nil || free <= 0 || free > total {
		t.Errorf("free: %d of %d, %v", free, total, err)
	}
	if _, _, err := v.Space(cluster.Node{Dir: filepath.Join(n.Dir, "missing")}); err == nil {
		t.Error("a missing volume has space")
	}
}

func TestLocked(t *testing.T) {
	n, v := newNode(t), &Volumes{}
	if locked, err := v.Locked(n); err != nil || locked {
		t.Errorf("without a lock file: %v, %v", locked, err)
	}
	f, err := node.OpenLock(n.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := node.TryLock(f); err != nil || !ok {
		t.Fatalf("lock: %v, %v", ok, err)
	}
	if locked, err := v.Locked(n); err != nil || !locked {
		t.Errorf("with a holder: %v, %v", locked, err)
	}
	f.Close()
	if locked, err := v.Locked(n); err != nil || locked {
		t.Errorf("after its end: %v, %v", locked, err)
	}
}

func TestClaim(t *testing.T) {
	n := newNode(t)
	release, err := Claim(n)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(n); !errors.Is(err, ErrClaimed) {
		t.Errorf("a second daemon: %v, want %v", err, ErrClaimed)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	release, err = Claim(n)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	if _, err := Claim(cluster.Node{OrderDir: filepath.Join(n.Dir, "missing")}); err == nil {
		t.Error("a missing volume was claimed")
	}
}
