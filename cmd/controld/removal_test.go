package main

import (
	"strings"
	"testing"
	"time"

	"controld/internal/api"
	"controld/internal/api/gen"
)

const adminToken = "admin-secret-0003"

// startAdmin is a daemon with two fulls and an incremental, whose user may remove them.
func startAdmin(t *testing.T) *daemon {
	t.Helper()
	d := startDaemon(t, func(o *api.Options) {
		tokens, err := api.NewTokens(map[api.Role]string{api.Viewer: viewerToken, api.Admin: adminToken})
		if err != nil {
			t.Fatal(err)
		}
		o.Tokens = tokens
	})
	d.env["CONTROLD_TOKEN"] = adminToken
	first, second := time.Date(2026, 3, 1, 2, 0, 9, 0, time.UTC), time.Date(2026, 3, 6, 2, 0, 9, 0, time.UTC)
	on, free, disk, left := "20260301-020000F", int64(80<<30), int64(100<<30), 812.4
	d.fake.RetentionPlan = gen.RetentionPlan{
		Removes: []gen.PlannedRemoval{
			{Key: "backup:2026-03-02_02-00-00", Label: "20260301-020000F_20260302-020000I", Type: "incr", Consistent: true, Why: "depends",
				DependsOn: &on, OwnBytes: 4 << 20},
			{Key: "backup:2026-03-01_02-00-00", Label: on, Type: "full", Consistent: true, Why: "older", OwnBytes: 37 << 20},
		},
		Keeps:      []gen.PlannedKeep{{Key: "backup:2026-03-06_02-00-00", Label: "20260306-020000F", Type: "full", Consistent: true}},
		FreedBytes: 41 << 20, RecoverableFrom: &first, RecoverableFromAfter: &second, WouldRun: true,
	}
	d.fake.BackupList = gen.BackupList{
		Backups: []gen.Backup{
			{Key: "backup:2026-03-06_02-00-00", Type: "full", OwnBytes: 38 << 20, Consistent: true, Needs: []string{}},
			{Key: "backup:2026-03-01_02-00-00", Type: "full", OwnBytes: 37 << 20, Consistent: true, Needs: []string{}},
		},
		Repository: gen.Repository{State: "ok"}, Archive: gen.ArchivedWAL{State: "continuous"},
	}
	d.fake.BackupUsage = gen.BackupUsage{
		BackupsBytes: 79 << 20, ArchiveBytes: 31 << 20, TotalBytes: 110 << 20, GrowthBytesPerDay: 18 << 20,
		FreeBytes: &free, DiskBytes: &disk, DaysLeft: &left,
		Backups: []gen.BackupSize{
			{Key: "backup:2026-03-02_02-00-00", Type: "incr", OwnBytes: 4 << 20, RepositoryBytes: 41 << 20, DatabaseBytes: 500 << 20},
			{Key: "backup:2026-03-01_02-00-00", Type: "full", OwnBytes: 37 << 20, RepositoryBytes: 37 << 20, DatabaseBytes: 499 << 20},
		},
	}
	return d
}

func TestRemovals(t *testing.T) {
	refused := func(d *daemon) {
		p := d.fake.RetentionPlan.(gen.RetentionPlan) //nolint:forcetypeassert // as startAdmin has made it
		p.WouldRun, p.Refusal = false, &gen.Cause{Type: "/problems/few-fulls", Detail: "of the consistent full backups 1 would be left"}
		d.fake.RetentionPlan = p
	}
	nothing := func(d *daemon) {
		p := d.fake.RetentionPlan.(gen.RetentionPlan) //nolint:forcetypeassert // as startAdmin has made it
		p.Removes, p.FreedBytes = []gen.PlannedRemoval{}, 0
		d.fake.RetentionPlan = p
	}
	const key = "2026-03-01_02-00-00"
	for _, tt := range []struct {
		name    string
		answers string
		change  func(*daemon)
		args    []string
		code    int
		removes bool
	}{
		{"backup-size", "", nil, []string{"backup", "size"}, 0, false},
		{"backup-delete", "y\n", nil, []string{"backup", "delete", key}, 0, true},
		{"backup-delete-no", "n\n", nil, []string{"backup", "delete", key}, exitError, false},
		{"backup-delete-nobody", "", nil, []string{"backup", "delete", key}, exitError, false},
		{"backup-delete-yes", "", nil, []string{"backup", "delete", key, "--yes", "--force"}, 0, true},
		{"backup-delete-dry-run", "", nil, []string{"backup", "delete", key, "--dry-run"}, 0, false},
		{"backup-delete-refused", "y\n", refused, []string{"backup", "delete", key}, exitRefused, false},
		{"backup-delete-json", "", nil, []string{"backup", "delete", key, "-o", "json"}, exitUsage, false},
		{"backup-delete-json-yes", "", nil, []string{"backup", "delete", key, "-o", "json", "--yes"}, 0, true},
		{"backup-prune-dry-run", "", nil, []string{"backup", "prune", "--dry-run"}, 0, false},
		{"backup-prune-keep", "", nil, []string{"backup", "prune", "--keep-fulls", "3", "--yes"}, 0, true},
		{"backup-prune-nothing", "", nothing, []string{"backup", "prune", "--dry-run"}, 0, false},
		{"backup-prune-none", "", nil, []string{"backup", "prune", "--keep-fulls", "0"}, exitUsage, false},
		{"backup-prune-quit", "q\n", nil, []string{"backup", "prune"}, 0, false},
		{"backup-prune-menu-one", "9\n1\n2\ny\nq\n", nil, []string{"backup", "prune"}, 0, true},
		{"backup-prune-menu-one-no", "1\n\n1\n1\nn\nq\n", nil, []string{"backup", "prune"}, 0, false},
		{"backup-prune-menu-old", "2\n3\nyes\n\n", nil, []string{"backup", "prune"}, 0, true},
		{"backup-prune-menu-refused", "2\nx\n2\n1\nq\n", refused, []string{"backup", "prune"}, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := startAdmin(t)
			if tt.change != nil {
				tt.change(d)
			}
			d.stdin = tt.answers
			out := d.run(tt.args...)
			if out.code != tt.code {
				t.Errorf("exit code %d, want %d; stderr: %s", out.code, tt.code, out.stderr)
			}
			if calls := strings.Join(d.fake.Calls(), " "); tt.removes != (calls == "expire") {
				t.Errorf("calls: %q", calls)
			}
			if asked := jsonOf(t, d.fake.Last); tt.removes &&
				!strings.Contains(asked, `"expect":["20260301-020000F_20260302-020000I","20260301-020000F"]`) {
				t.Errorf("what was shown was not expected: %s", asked)
			}
			golden(t, tt.name, "--- stdout\n"+out.stdout+"--- stderr\n"+out.stderr)
		})
	}
}
