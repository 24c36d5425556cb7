package backup

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"time"

	"controld/internal/api/gen"
	"controld/internal/operation"
)

// remove serves DELETE /backups/{key}.
func (c commands) remove(w http.ResponseWriter, r *http.Request) {
	records, seen := c.b.records()
	name, query := r.PathValue("key"), r.URL.Query()
	found, ok := Find(records, name)
	if !ok && c.b.usable(seen, false) == nil {
		c.kit.Fail(w, r, unknownBackup(name))
		return
	}
	yes := func(name string) bool { return query.Get(name) == "true" }
	x := Expiry{Backup: found.Label, Force: yes("force"), Expect: query["expect"]}
	if x.Backup == "" { // nobody can look into the repository: the refusal says so
		x.Backup = name
	}
	c.expire(w, r, x, yes("dry_run"), yes("cancel_running"), query.Get("reason"))
}

// retain serves POST /backups/retention.
func (c commands) retain(w http.ResponseWriter, r *http.Request) {
	var body gen.RetentionRequest
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil && !errors.Is(err, io.EOF) {
		c.kit.Fail(w, r, err)
		return
	}
	x := Expiry{KeepFulls: gen.Value(body.KeepFulls), Force: gen.Value(body.Force), Expect: gen.Value(body.Expect)}
	c.expire(w, r, x, gen.Value(body.DryRun), gen.Value(body.CancelRunning), gen.Value(body.Reason))
}

func (c commands) expire(w http.ResponseWriter, r *http.Request, x Expiry, dryRun, cancelRunning bool, reason string) {
	if !dryRun {
		c.kit.Run(w, r, func(ctx context.Context, by operation.Caller) (operation.Record, error) {
			return c.b.Expire(ctx, x, reason, cancelRunning, by)
		})
		return
	}
	plan, err := c.plan(r.Context(), x, cancelRunning)
	if err != nil {
		c.kit.Fail(w, r, err)
		return
	}
	c.kit.JSON(w, http.StatusOK, plan)
}

// plan is what an expiry would come to now.
func (c commands) plan(ctx context.Context, x Expiry, cancelRunning bool) (gen.RetentionPlan, error) {
	seen := c.b.Look(ctx)
	p, err := c.b.planExpiry(ctx, seen, x)
	var refusal *operation.Problem
	if err != nil && !errors.As(err, &refusal) {
		return gen.RetentionPlan{}, err
	}
	if what, busy := c.b.Operations.InTheWay(KindExpire, operation.Decision{}, cancelRunning); refusal == nil && busy != nil {
		refusal = operation.Refuse("operation-running", nil, "%s", what)
	}
	g := gen.RetentionPlan{
		Removes: []gen.PlannedRemoval{}, Keeps: []gen.PlannedKeep{}, FreedBytes: p.Bytes(), WouldRun: refusal == nil,
		RecoverableFrom: c.from(seen.Copies), RecoverableFromAfter: c.from(p.Stay),
	}
	if refusal != nil {
		g.Refusal = &gen.Cause{Type: refusal.Type, Detail: refusal.Detail}
		if len(refusal.Numbers) > 0 {
			g.Refusal.Numbers = &refusal.Numbers
		}
	}
	records := map[string]Record{}
	for _, record := range c.b.recordsOf(seen) {
		records[record.Label] = record
	}
	for _, goes := range p.Go {
		g.Removes = append(g.Removes, gen.PlannedRemoval{
			Key: records[goes.Label].Key, Label: goes.Label, Type: gen.BackupType(goes.Type), Consistent: goes.Consistent(),
			Why: gen.PlannedRemovalWhy(goes.Why), DependsOn: gen.Optional(goes.On), OwnBytes: goes.RepoOwnBytes,
		})
	}
	for _, stays := range slices.Backward(p.Stay) {
		g.Keeps = append(g.Keeps, gen.PlannedKeep{
			Key: records[stays.Label].Key, Label: stays.Label, Type: gen.BackupType(stays.Type), Consistent: stays.Consistent(),
		})
	}
	return g, nil
}

// from is the moment from which on the database can be recovered by these; nil: it cannot.
func (c commands) from(copies []Copy) *time.Time {
	from, ok := RecoverableFrom(copies, c.b.Continuity().Reaches)
	if !ok {
		return nil
	}
	return &from
}

// usage serves GET /backups/usage.
func (c commands) usage(w http.ResponseWriter, r *http.Request) {
	records, seen := c.b.records()
	if err := c.b.usable(seen, false); err != nil {
		c.kit.Fail(w, r, err)
		return
	}
	now := time.Now()
	archived, recent, err := c.b.Logs.ArchiveSize(c.b.Cluster.Identity().SystemID, now.Add(-growthSpan))
	if err != nil {
		c.kit.Fail(w, r, operation.Refuse("repository-away", nil, "%v", err))
		return
	}
	g := gen.BackupUsage{
		ArchiveBytes: archived, FreeBytes: gen.Optional(seen.FreeBytes), DiskBytes: gen.Optional(seen.DiskBytes),
		GrowthBytesPerDay: growth(seen.Copies, recent, now), Backups: []gen.BackupSize{}, ObservedAt: gen.Optional(seen.At),
	}
	for _, record := range records {
		g.BackupsBytes += record.RepoOwnBytes
		g.Backups = append(g.Backups, gen.BackupSize{
			Key: record.Key, Label: record.Label, Type: gen.BackupType(record.Type),
			OwnBytes: record.RepoOwnBytes, RepositoryBytes: record.RepoBytes, DatabaseBytes: record.Bytes,
		})
	}
	g.TotalBytes = g.BackupsBytes + g.ArchiveBytes
	if g.GrowthBytesPerDay > 0 && seen.DiskBytes > 0 {
		days := float64(seen.FreeBytes) / float64(g.GrowthBytesPerDay)
		g.DaysLeft = &days
	}
	c.kit.JSON(w, http.StatusOK, g)
}

// growthSpan is over how long growth is measured: a week has every day of a cycle.
const growthSpan = 7 * 24 * time.Hour

// growth is how many bytes a day backups, and recentWAL, have added in the last growthSpan, or
// since the oldest backup. Less than a day counts as one: what a first full adds in a minute
// says nothing of an hour.
func growth(copies []Copy, recentWAL int64, now time.Time) int64 {
	if len(copies) == 0 {
		return 0
	}
	added := recentWAL
	for _, c := range copies {
		if now.Sub(c.StartedAt) < growthSpan {
			added += c.RepoOwnBytes
		}
	}
	span := min(max(now.Sub(copies[0].StartedAt), 24*time.Hour), growthSpan)
	return int64(float64(added) / span.Hours() * 24)
}
