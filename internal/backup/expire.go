package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"controld/internal/operation"
	"controld/internal/wait"
)

// KindExpire removes backups, and the WAL that none of those needs that stay.
const KindExpire = "expire"

// An Expiry asks for backups to be removed: one, or all that retention does not keep.
type Expiry struct {
	Backup    string   `json:"backup,omitempty"`     // its label; empty: what is not kept
	KeepFulls int      `json:"keep_fulls,omitempty"` // 0: as many as are set
	Force     bool     `json:"force,omitempty"`      // also where fewer than LeastFulls would be left
	Expect    []string `json:"expect,omitempty"`     // the labels that are to go, no others; nil: any
}

// expiry is what the steps of an expiry learn from each other.
type expiry struct {
	Remove []string `json:"remove"` // labels, as in Plan.Go
	Stay   []string `json:"stay"`
	Own    []int64  `json:"own"` // the bytes of each that goes

	Removed  []string   `json:"removed,omitempty"`
	Freed    int64      `json:"freed,omitempty"`
	FreedWAL int64      `json:"freed_wal,omitempty"`
	From     *time.Time `json:"from,omitempty"` // from when on the database can be recovered then
}

// Bounds of an expiry.
const (
	// lockedFor is how long another one may take to let go of the repository: what an
	// earlier controld had begun, or a person in the container.
	lockedFor = 2 * time.Minute
	// needlessFew: so many segments that no backup needs are not worth an operation.
	needlessFew = 16
)

// keepFulls is how many fulls are kept.
func (b *Backups) keepFulls() int { return max(b.cfg.RetainFulls, LeastFulls) }

// counts reports whether a full counts among those that are kept.
func (b *Backups) counts(c Copy) bool {
	return c.Consistent() && (b.cfg.CountManual || c.Annotations[NoteCycleDay] != "")
}

// plan is what an expiry would remove of what was seen.
func (b *Backups) plan(copies []Copy, x Expiry) Plan {
	if x.Backup != "" {
		return Remove(copies, x.Backup)
	}
	keep := x.KeepFulls
	if keep == 0 {
		keep = b.keepFulls()
	}
	return Retain(copies, keep, b.counts)
}

// window is how far back what was seen reaches.
func (b *Backups) window(s Seen, now time.Time) window {
	from, _ := RecoverableFrom(s.Copies, b.Continuity().Reaches)
	return window{from: from, since: b.Archiving.since(), now: now, keepFulls: b.keepFulls(), copies: s.Copies}
}

// toExpire says why an expiry is to be started; empty: nothing is to go.
func (b *Backups) toExpire(s Seen) string {
	if s.Busy {
		return ""
	}
	if p := b.plan(s.Copies, Expiry{}); len(p.Go) > 0 {
		return fmt.Sprintf("%d full backups are kept, and what depends on them", b.keepFulls())
	}
	// What has been tried once and stayed is not tried for ever.
	min := oldestArchived(s.Repository)
	if n := needless(s.Repository, b.Continuity().SegmentBytes); n > needlessFew && min != b.expiredTo() {
		return fmt.Sprintf("%d segments of the archive are older than the oldest backup", n)
	}
	return ""
}

func oldestArchived(r Repository) string {
	if len(r.Archive) == 0 {
		return ""
	}
	return r.Archive[len(r.Archive)-1].Min
}

// expiredTo is the oldest segment of the archive after the last expiry.
func (b *Backups) expiredTo() string {
	if p := b.expired.Load(); p != nil {
		return *p
	}
	return ""
}

// Expire starts to remove backups.
func (b *Backups) Expire(ctx context.Context, x Expiry, reason string, cancelRunning bool, by operation.Caller) (operation.Record, error) {
	return b.start(ctx, operation.Spec{Kind: KindExpire, Reason: reason, Caller: by, CancelRunning: cancelRunning}, params{Expiry: &x})
}

// expireWork removes what the plan says as of its start, and nothing else. Each step may be
// repeated; one that was ended in the middle leaves something that the next one mends.
func (b *Backups) expireWork(x Expiry) operation.Runnable {
	return operation.Work[expiry]{
		Prepare: func(ctx context.Context, s *expiry) (operation.Prepared, error) { return b.prepareExpiry(ctx, s, x) },
		Steps: func(s *expiry) []operation.Step[expiry] {
			steps := []operation.Step[expiry]{
				{Name: "delete backups", Entry: true, Do: b.removeAll},
				{Name: "expire WAL", Entry: true, Do: b.expireWAL},
				{Name: "verify", Do: b.verifyExpired},
			}
			if len(s.Remove) == 0 {
				steps = steps[1:]
			}
			return steps
		},
		Forward: true,
		Result: func(s *expiry) map[string]any {
			r := map[string]any{"removed": append([]string{}, s.Removed...), "freed_bytes": s.Freed, "freed_wal_bytes": s.FreedWAL}
			if s.From != nil {
				r["recoverable_from"] = *s.From
			}
			return r
		},
	}
}

// prepareExpiry makes the plan, and touches nothing.
func (b *Backups) prepareExpiry(ctx context.Context, s *expiry, x Expiry) (operation.Prepared, error) {
	seen := b.Look(ctx)
	p, err := b.planExpiry(ctx, seen, x)
	if err != nil {
		return operation.Prepared{}, err
	}
	for _, r := range p.Go {
		s.Remove, s.Own = append(s.Remove, r.Label), append(s.Own, r.RepoOwnBytes)
	}
	for _, c := range p.Stay {
		s.Stay = append(s.Stay, c.Label)
	}
	what := operation.NewCheck("plan", true, "", map[string]any{"freed_bytes": p.Bytes()}, "%d of %d backups go: %s", len(p.Go),
		len(seen.Copies), strings.Join(p.labels(), ", "))
	if len(p.Go) == 0 {
		what.Detail = fmt.Sprintf("none of %d backups is to go", len(seen.Copies))
	}
	prepared := operation.Prepared{Checks: []operation.Check{what}}
	if len(p.Go) == 0 && needless(seen.Repository, b.Continuity().SegmentBytes) == 0 {
		prepared.Already = what.Detail
	}
	return prepared, nil
}

// planExpiry is the plan for what was seen. A *operation.Problem refuses it, with the plan as
// it would be where there is one.
func (b *Backups) planExpiry(ctx context.Context, seen Seen, x Expiry) (Plan, error) {
	if err := b.usable(seen, false); err != nil {
		return Plan{}, err
	}
	// Away is not empty, and another cluster's is not ours.
	if id := b.Cluster.Identity().SystemID; seen.SystemID != id {
		return Plan{}, operation.Refuse("repository-broken", nil,
			"the repository is of a cluster with system identifier %d, and this one's is %d", seen.SystemID, id)
	}
	if seen.Busy {
		return Plan{}, operation.Refuse("repository-busy", nil,
			"a backup runs that controld has not begun, or another command in the repository's container; wait for its end")
	}
	if x.Backup != "" && !slices.ContainsFunc(seen.Copies, func(c Copy) bool { return c.Label == x.Backup }) {
		return Plan{}, operation.Refuse("plan-changed", nil, "backup %s is not in the repository any more", x.Backup)
	}
	p := b.plan(seen.Copies, x)
	if err := p.refusal(x.Force); err != nil {
		return p, err
	}
	if p.newestFull() {
		version, err := b.Tool.Version(ctx)
		if err != nil {
			return p, err
		}
		if before(version, removesNewest) {
			return p, operation.Refuse("newest-full", nil, "pgBackRest %s makes no incremental or differential when its newest full was "+
				"removed, until there is a new one (%s does): make that first", version, removesNewest)
		}
	}
	if x.Expect != nil && !sameLabels(x.Expect, p.labels()) {
		return p, operation.Refuse("plan-changed", nil, "what would go is not what was expected, but: %s", strings.Join(p.labels(), ", "))
	}
	return p, nil
}

func sameLabels(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// lookToRemove looks at the repository just before something of it is removed.
func (b *Backups) lookToRemove(ctx context.Context) (Seen, error) {
	seen := b.Look(ctx)
	if err := b.usable(seen, false); err != nil {
		return seen, err
	}
	if id := b.Cluster.Identity().SystemID; seen.SystemID != id {
		return seen, fmt.Errorf("the repository is of the cluster %d, and not of %d", seen.SystemID, id)
	}
	return seen, nil
}

// removeAll removes what is to go, one after the other. What is gone already is what an
// earlier try has removed.
func (b *Backups) removeAll(ctx context.Context, s *expiry) error {
	for i, label := range s.Remove {
		operation.Report(ctx, operation.Progress{Phase: "delete", Done: int64(i), Total: int64(len(s.Remove)), Unit: "backups"})
		if slices.Contains(s.Removed, label) {
			continue
		}
		if err := b.removeOne(ctx, label); err != nil {
			return fmt.Errorf("delete %s: %w", label, err)
		}
		s.Removed, s.Freed = append(s.Removed, label), s.Freed+s.Own[i]
	}
	return nil
}

// removeOne removes one backup, on which nothing depends any more.
func (b *Backups) removeOne(ctx context.Context, label string) error {
	seen, err := b.lookToRemove(ctx)
	if err != nil {
		return err
	}
	if p := Remove(seen.Copies, label); len(p.Go) > 1 {
		return fmt.Errorf("%s depends on %s, and was not to go: it has come since", p.Go[0].Label, label)
	}
	if !slices.ContainsFunc(seen.Copies, func(c Copy) bool { return c.Label == label }) {
		return nil
	}
	err = b.unlocked(ctx, func() error { return b.Tool.Expire(ctx, label) })
	if isFailure(err, FailureMissing) {
		return nil // removed by another hand, or its files were
	}
	return err
}

// unlocked does what needs the repository's lock, and waits a while for it.
func (b *Backups) unlocked(ctx context.Context, do func() error) error {
	until := time.Now().Add(lockedFor)
	return wait.Poll(ctx, time.Second, func() (bool, error) {
		err := do()
		if isFailure(err, FailureLocked) && time.Now().Before(until) {
			return false, nil
		}
		return err == nil, err
	})
}

// expireWAL removes the WAL that is older than the oldest backup needs, and the files of
// backups that were being removed when somebody was killed.
//
// The tool is told how many backups need WAL. One more than that keeps more, one less would
// tear a gap. So they are counted just before, and not while another one is being made.
func (b *Backups) expireWAL(ctx context.Context, s *expiry) error {
	id := b.Cluster.Identity().SystemID
	was, _, sizeErr := b.Logs.ArchiveSize(id, time.Time{})
	if err := b.unlocked(ctx, func() error {
		seen, err := b.lookToRemove(ctx)
		if err != nil {
			return err
		}
		if seen.Busy {
			return &Failure{Kind: FailureLocked, Said: "a backup runs that controld has not begun"}
		}
		n, _ := needsWAL(seen.Copies)
		if n == 0 {
			return nil
		}
		return b.Tool.ExpireWAL(ctx, n)
	}); err != nil {
		return err
	}
	is, _, err := b.Logs.ArchiveSize(id, time.Time{})
	if err = errors.Join(sizeErr, err); err != nil {
		b.Log.Warn("size of the archive not known", "err", err)
		return nil
	}
	s.FreedWAL += max(was-is, 0)
	return nil
}

// verifyExpired looks whether what was to go is gone, and what was to stay is there.
func (b *Backups) verifyExpired(ctx context.Context, s *expiry) error {
	seen, err := b.lookToRemove(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, c := range seen.Copies {
		there[c.Label] = true
	}
	for _, label := range s.Remove {
		if there[label] {
			return fmt.Errorf("backup %s was removed, and is still listed", label)
		}
	}
	for _, label := range s.Stay {
		if !there[label] {
			return fmt.Errorf("backup %s was to stay, and is not listed any more", label)
		}
	}
	if from, ok := RecoverableFrom(seen.Copies, b.Continuity().Reaches); ok {
		s.From = &from
	}
	oldest := oldestArchived(seen.Repository)
	b.expired.Store(&oldest)
	return nil
}
