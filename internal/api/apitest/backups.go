package apitest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"

	"controld/internal/api/command"
	"controld/internal/api/gen"
	"controld/internal/operation"
)

// Backups serves the commands of backups: what BackupList, OneBackup and Cycle hold, whatever is asked,
// and backups that change nothing.
func (f *Fake) Backups(kit command.Kit) []command.Route {
	return []command.Route{
		{Method: http.MethodGet, Path: "/backups", Handler: func(w http.ResponseWriter, _ *http.Request) {
			kit.JSON(w, http.StatusOK, f.BackupList)
		}},
		{Method: http.MethodGet, Path: "/backups/{key}", Handler: func(w http.ResponseWriter, r *http.Request) {
			if f.OneBackup == nil {
				kit.Fail(w, r, &command.Unknown{Type: "/problems/unknown-backup", Detail: "there is no backup " + r.PathValue("key")})
				return
			}
			kit.JSON(w, http.StatusOK, f.OneBackup)
		}},
		{Method: http.MethodPost, Path: "/backups/orphans", Handler: func(w http.ResponseWriter, r *http.Request) {
			var asked gen.OrphansRequest
			if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
				kit.Fail(w, r, err)
				return
			}
			answer := gen.Orphans{Applied: !gen.Value(asked.DryRun), Records: slices.Clone(f.Orphans)}
			if answer.Applied {
				named := gen.Value(asked.Keys)
				f.Orphans = slices.DeleteFunc(f.Orphans, func(o gen.Orphan) bool { return slices.Contains(named, o.Key) })
			}
			kit.JSON(w, http.StatusOK, answer)
		}},
		{Method: http.MethodGet, Path: "/backups/cycle", Handler: func(w http.ResponseWriter, _ *http.Request) {
			kit.JSON(w, http.StatusOK, f.Cycle)
		}},
		{Method: http.MethodGet, Path: "/backups/usage", Handler: func(w http.ResponseWriter, _ *http.Request) {
			kit.JSON(w, http.StatusOK, f.BackupUsage)
		}},
		{Method: http.MethodDelete, Path: "/backups/{key}", Handler: func(w http.ResponseWriter, r *http.Request) {
			query := r.URL.Query()
			f.expire(kit, w, r, query.Get("dry_run") == "true", map[string]any{
				"key": r.PathValue("key"), "force": query.Get("force") == "true", "expect": query["expect"],
			})
		}},
		{Method: http.MethodPost, Path: "/backups/retention", Handler: func(w http.ResponseWriter, r *http.Request) {
			asked := map[string]any{}
			if err := json.NewDecoder(r.Body).Decode(&asked); err != nil && !errors.Is(err, io.EOF) {
				kit.Fail(w, r, err)
				return
			}
			f.expire(kit, w, r, asked["dry_run"] == true, asked)
		}},
		{Method: http.MethodPost, Path: "/backups", Handler: f.backup(kit)},
		{Method: http.MethodPost, Path: "/backups/cycle/{day}", Handler: f.backup(kit)},
	}
}

func (f *Fake) backup(kit command.Kit) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		asked := map[string]any{}
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil && !errors.Is(err, io.EOF) {
			kit.Fail(w, r, err)
			return
		}
		kit.Run(w, r, func(_ context.Context, by operation.Caller) (operation.Record, error) {
			return f.start("backup", "incr", "", asked, by, func() map[string]any {
				return map[string]any{"type": "incr", "label": "L", "cycle_day": r.PathValue("day")}
			})
		})
	}
}

// expire answers with RetentionPlan, or removes nothing.
func (f *Fake) expire(kit command.Kit, w http.ResponseWriter, r *http.Request, dryRun bool, asked map[string]any) {
	if dryRun {
		kit.JSON(w, http.StatusOK, f.RetentionPlan)
		return
	}
	kit.Run(w, r, func(_ context.Context, by operation.Caller) (operation.Record, error) {
		return f.start("expire", "", "", asked, by, func() map[string]any {
			return map[string]any{"removed": []string{"L"}, "freed_bytes": 1 << 20}
		})
	})
}
