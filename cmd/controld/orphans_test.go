package main

import (
	"strings"
	"testing"
	"time"

	"controld/internal/api"
	"controld/internal/api/gen"
	"controld/internal/health"
)

// What tells of no backup is shown, asked about, and removed by a yes.
func TestOrphans(t *testing.T) {
	const token = "admin-secret-0004"
	fecha := "2024-03-01"
	for _, tt := range []struct {
		name, answer string
		args         []string
		code, left   int
		says         string
	}{
		{"yes", "y\n", nil, exitOK, 0, "1 removed"},
		{"no", "n\n", nil, exitError, 1, "nothing was removed"},
		{"nobody answers", "", nil, exitError, 1, "nothing was removed"},
		{"nobody is asked", "", []string{"--yes"}, exitOK, 0, "1 removed"},
		{"they are listed", "y\n", []string{"--dry-run"}, exitOK, 1, "controld did not write it"},
		{"as JSON nobody is asked", "y\n", []string{"-o", "json"}, exitUsage, 1, "--yes or --dry-run"},
		{"as JSON", "", []string{"-o", "json", "--yes"}, exitOK, 0, `"applied": true`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := startDaemon(t, func(o *api.Options) {
				tokens, err := api.NewTokens(map[api.Role]string{api.Operator: operatorToken, api.Admin: token})
				if err != nil {
					t.Fatal(err)
				}
				o.Tokens = tokens
			})
			d.fake.Orphans = []gen.Orphan{{Key: "backup:2024-03-01_02-00-00", Why: "controld did not write it", Fecha: &fecha}}
			if out := d.run("backup", "orphans", "--yes"); out.code != exitForbidden {
				t.Errorf("as operator: %+v", out)
			}
			d.env["CONTROLD_TOKEN"], d.stdin = token, tt.answer
			out := d.run(append([]string{"backup", "orphans"}, tt.args...)...)
			if out.code != tt.code || len(d.fake.Orphans) != tt.left || !strings.Contains(out.stdout+out.stderr, tt.says) {
				t.Errorf("%d left, %+v", len(d.fake.Orphans), out)
			}
		})
	}
}

// What is checked of Redis and of the repository.
func TestCheckParts(t *testing.T) {
	ten, two, free, total, yes := 10, 2, int64(80<<30), int64(100<<30), true
	version, reaches, stanza, why := "7.0.15", "0/7400000", "main", "connection refused"
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	good := gen.BackupList{
		Backups: []gen.Backup{
			{Key: "backup:2026-03-01_02-00-00", Type: "full", MaestroUsado: "postgres_master", EndedAt: at, Needs: []string{}},
		},
		Repository: gen.Repository{State: "ok", Stanza: &stanza, Backups: &two, FreeBytes: &free, TotalBytes: &total,
			Others: &[]string{"7311"}},
		Archive:   gen.ArchivedWAL{State: "continuous", Reaches: &reaches, Holes: []gen.Hole{}},
		Catalogue: gen.Catalogue{State: "ok", Records: 2, WrittenAt: &at, Version: &version, AppendOnly: &yes},
	}
	for _, tt := range []struct {
		name   string
		part   string
		change func(*gen.BackupList)
		says   []string
		failed bool
	}{
		{"redis", "redis", func(*gen.BackupList) {}, []string{"Redis 7.0.15, with an append-only file", "2, as many as"}, false},
		{"fewer records", "redis", func(l *gen.BackupList) { l.Repository.Backups = &ten }, []string{"2 in Redis, 10 backups"}, true},
		{"redis is away", "redis", func(l *gen.BackupList) { l.Catalogue = gen.Catalogue{State: "away", Detail: &why} },
			[]string{"away: connection refused"}, true},
		{"pgbackrest", "pgbackrest", func(*gen.BackupList) {},
			[]string{"stanza main, not encrypted, backups: 2", "7311", "2026-03-01_02-00-00, full, of postgres_master, 5 min ago",
				"continuous up to 0/7400000", "80.0 GB free of 100.0 GB"}, false},
		{"there is none", "pgbackrest", func(l *gen.BackupList) { l.Backups = []gen.Backup{} }, []string{"there is none"}, true},
		{"a hole", "pgbackrest", func(l *gen.BackupList) {
			l.Archive.State, l.Archive.Holes = "hole", []gen.Hole{{From: "0/1", To: "0/2"}}
		}, []string{"lacks WAL from 0/1 to 0/2"}, true},
		{"the repository is away", "pgbackrest", func(l *gen.BackupList) { l.Repository.State, l.Repository.Detail = "unknown", &why },
			[]string{"unknown: connection refused"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := startDaemon(t)
			list := good
			tt.change(&list)
			d.fake.BackupList = list
			d.fake.Parts = []health.Component{health.Fine("redis"), health.Fine("backups")}
			out := d.run("check", tt.part)
			if (out.code != exitOK) != tt.failed {
				t.Errorf("%+v", out)
			}
			for _, says := range tt.says {
				if !strings.Contains(out.stdout, says) {
					t.Errorf("%q is not said:\n%s%s", says, out.stdout, out.stderr)
				}
			}
		})
	}
	d := startDaemon(t)
	d.env["CONTROLD_URL"] = "http://127.0.0.1:1"
	if out := d.run("check", "redis"); out.code != exitUnreachable {
		t.Errorf("no daemon: %+v", out)
	}
}
