package backup

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/api/command"
	"controld/internal/api/gen"
	"controld/internal/operation"
)

// answers is a command.Kit that keeps what it is to answer.
type answers struct {
	value any
	rec   operation.Record
	err   error
}

func (a *answers) Run(_ http.ResponseWriter, r *http.Request, start command.Start) {
	a.rec, a.err = start(r.Context(), person)
}
func (a *answers) JSON(_ http.ResponseWriter, _ int, value any)           { a.value = value }
func (a *answers) Fail(_ http.ResponseWriter, _ *http.Request, err error) { a.err = err }

// asked calls a command as the API does.
func asked(ctx context.Context, b *Backups, method, path, body string) answers {
	var a answers
	mux := http.NewServeMux()
	for _, route := range b.Commands(&a) {
		mux.HandleFunc(route.Method+" "+route.Path, route.Handler)
	}
	mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, method, path, strings.NewReader(body)))
	return a
}

func TestPlansOfRemovals(t *testing.T) {
	for _, tt := range []struct {
		name               string
		types              string
		method, path, body string
		removes            string // label why
		keeps              string // the newest first
		refusal            string
	}{
		{"one with what depends on it", "FIIFF", "DELETE", "/backups/L2?dry_run=true", "", "L3 depends L2 asked", "L5 L4 L1", ""},
		{"a full of two", "FIF", "DELETE", "/backups/L1?dry_run=true", "", "L2 depends L1 asked", "L3", "/problems/few-fulls"},
		{"forced", "FIF", "DELETE", "/backups/L1?dry_run=true&force=true", "", "L2 depends L1 asked", "L3", ""},
		{"other than expected", "FIIFF", "DELETE", "/backups/L2?dry_run=true&expect=L2", "", "L3 depends L2 asked", "L5 L4 L1",
			"/problems/plan-changed"},
		{"as expected", "FIIFF", "DELETE", "/backups/L2?dry_run=true&expect=L2&expect=L3", "", "L3 depends L2 asked", "L5 L4 L1", ""},
		{"what is not kept", "FIFF", "POST", "/backups/retention", `{"dry_run": true}`, "L2 older L1 older", "L4 L3", ""},
		{"three are kept", "FIFF", "POST", "/backups/retention", `{"dry_run": true, "keep_fulls": 3}`, "", "L4 L3 L2 L1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := stocked(t, tt.types)
				b, _, stop := w.controld(t.TempDir())
				defer stop()
				b.Look(t.Context())
				a := asked(t.Context(), b, tt.method, tt.path, tt.body)
				p, ok := a.value.(gen.RetentionPlan)
				if !ok {
					t.Fatalf("%+v", a)
				}
				var removes, keeps []string
				for _, r := range p.Removes {
					removes = append(removes, r.Label, string(r.Why))
					if !strings.HasPrefix(r.Key, KeyPrefix) || (r.DependsOn != nil) != (r.Why == gen.Depends) {
						t.Errorf("%+v", r)
					}
				}
				for _, k := range p.Keeps {
					keeps = append(keeps, k.Label)
				}
				refusal := ""
				if p.Refusal != nil {
					refusal = p.Refusal.Type
				}
				if strings.Join(removes, " ") != tt.removes || strings.Join(keeps, " ") != tt.keeps || refusal != tt.refusal ||
					p.WouldRun != (refusal == "") || p.FreedBytes != int64(100*len(p.Removes)) || p.RecoverableFrom == nil {
					t.Errorf("%+v", p)
				}
				if _, err := json.Marshal(p); err != nil || len(w.expiry.calls) > 0 {
					t.Errorf("calls %q, %v", w.expiry.calls, err)
				}
			})
		})
	}
}

func TestCommandsOfRemovals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := stocked(t, "FIFFF")
		b, operations, stop := w.controld(t.TempDir())
		defer stop()
		b.Look(t.Context())
		var unknown *command.Unknown
		if a := asked(t.Context(), b, "DELETE", "/backups/L9", ""); !errors.As(a.err, &unknown) {
			t.Errorf("one that is not there: %+v", a)
		}
		a := asked(t.Context(), b, "DELETE", "/backups/L2?reason=full", "")
		rec := ended(t, operations, a.rec, a.err)
		expect(t, rec, operation.Succeeded, "")
		a = asked(t.Context(), b, "POST", "/backups/retention", "")
		rec = ended(t, operations, a.rec, a.err)
		expect(t, rec, operation.Succeeded, "")
		if labels, archive := w.has(); labels != "L4 L5" || archive != "all" {
			t.Errorf("%s with %s", labels, archive)
		}
		w.mu.Lock()
		w.away = true
		w.mu.Unlock()
		b.Look(t.Context())
		for _, path := range []string{"/backups/L4", "/backups/L4?dry_run=true"} {
			a := asked(t.Context(), b, "DELETE", path, "")
			p, isPlan := a.value.(gen.RetentionPlan)
			if a.err == nil && a.rec.ID != "" {
				rec := ended(t, operations, a.rec, nil)
				expect(t, rec, operation.Refused, "not answer")
			} else if a.err == nil && (!isPlan || p.WouldRun || p.Refusal.Type != "/problems/repository-away") {
				t.Errorf("%s of a repository that is away: %+v", path, a)
			}
		}
	})
}

func TestUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := stocked(t, "FIF")
		b, _, stop := w.controld(t.TempDir())
		defer stop()
		if a := asked(t.Context(), b, "GET", "/backups/usage", ""); a.err == nil {
			t.Errorf("before anybody has looked: %+v", a)
		}
		b.Look(t.Context())
		a := asked(t.Context(), b, "GET", "/backups/usage", "")
		u, ok := a.value.(gen.BackupUsage)
		if !ok {
			t.Fatalf("%+v", a)
		}
		const wal = 30 * testSegment
		if u.BackupsBytes != 300 || u.ArchiveBytes != wal || u.TotalBytes != wal+300 || len(u.Backups) != 3 ||
			u.GrowthBytesPerDay != wal+300 || u.DaysLeft == nil || *u.DaysLeft != float64(50<<30)/(wal+300) {
			t.Errorf("%+v", u)
		}
	})
}

func TestGrowth(t *testing.T) {
	now := time.Now()
	ago := func(days int) Copy { return Copy{StartedAt: now.AddDate(0, 0, -days), RepoOwnBytes: 700} }
	for _, tt := range []struct {
		name   string
		copies []Copy
		wal    int64
		want   int64
	}{
		{"there is none", nil, 700, 0},
		{"one of today", []Copy{ago(0)}, 300, 1000},
		{"two in two days", []Copy{ago(2), ago(1)}, 0, 700},
		{"older ones count no more", []Copy{ago(20), ago(10), ago(3)}, 0, 100},
		{"nothing is added", []Copy{ago(20)}, 0, 0},
	} {
		if got := growth(tt.copies, tt.wal, now); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}
