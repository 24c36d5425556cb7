package backup

import (
	"fmt"
	"time"

	"controld/internal/cluster"
	"controld/internal/health"
)

// component is its name in /health.
const component = "backups"

// Ages beyond which a backup is overdue, whatever anybody has planned.
const (
	OverdueAfter     = 48 * time.Hour
	FullOverdueAfter = 7 * 24 * time.Hour
)

// Components judges what was last seen. It never blocks.
func (b *Backups) Components(now time.Time) []health.Component {
	f := findings{seen: b.Seen(), archive: b.Continuity(), now: now, on: b.archives(), severed: b.severed(b.Seen().Copies)}
	_, f.failing = b.progress.get()
	f.since, f.note = b.Archiving.since(), b.window(f.seen, now).note()
	f.recorded, f.lost = b.Recorded(), b.lost(f.seen)
	for _, s := range b.Cluster.View().Nodes {
		if s.Container.Exists && !s.Init.Archives {
			f.unable = append(f.unable, s.Node.Container)
		}
	}
	return []health.Component{f.assess()}
}

// findings are what is judged.
type findings struct {
	seen    Seen
	archive Continuity
	unable  []string // containers that cannot archive
	on      bool     // WAL is archived
	severed bool     // a hole is in the archive, and no full from after it
	failing *Failing // a day of the cycle
	since   time.Time
	note    string // on how far back it reaches
	lost    bool   // there was a repository, and is none
	// recorded is what is known of the catalogue.
	recorded Recorded
	now      time.Time
}

// behindFor is for how long the catalogue may be there and not be written.
const behindFor = 5 * time.Minute

// What is said of a repository that is lost, and what to do.
const (
	lostDetail = "there is no repository where that of this cluster was: it is gone, or its volume is not mounted"
	lostDo     = "Mount the volume again: what is missing is then archived and backed up by itself. If the repository is lost for good: " +
		"controld backup run --type full --new-repository. WAL stays on the primary meanwhile."
)

func (f findings) assess() health.Component {
	degraded := func(reason, detail, do string) health.Component {
		return health.Bad(component, health.Degraded, reason, detail, do)
	}
	renew := "make down && make up renews the containers and brings backups; the data stays."
	s := f.seen
	switch {
	case s.Missing != "":
		return degraded("backups-unavailable", "there are no backups: "+s.Missing, renew)
	case len(f.unable) > 0:
		return degraded("backups-unavailable", fmt.Sprintf("%v cannot archive: an earlier version made it", f.unable), renew)
	case s.State == RepositoryUnknown:
		return degraded("repository-away", "nobody can look into the repository: "+s.Detail,
			"Start its container: docker start pgbackrest (with the cluster's prefix), or make up; then read its log. "+
				"WAL stays on the primary meanwhile.")
	case s.State == RepositoryBroken:
		return degraded("repository-broken", "the repository cannot be used: "+s.Detail,
			"Look at it: docker exec pgbackrest pgbackrest info. Nothing of it is removed by controld.")
	case f.lost:
		return degraded("repository-lost", lostDetail, lostDo)
	case s.State == RepositoryNew || !f.on:
		return degraded("no-repository", "the repository is not made yet",
			"controld makes it by itself when a node leads. If it stays: controld operations list --kind repository says why.")
	}
	return f.assessCopies(degraded)
}

func (f findings) assessCopies(degraded func(reason, detail, do string) health.Component) health.Component {
	last, full, fulls := time.Time{}, time.Time{}, 0
	for _, c := range f.seen.Copies {
		if !c.Consistent() {
			continue
		}
		last = c.EndedAt
		if c.Type == Full {
			full = c.EndedAt
			fulls++
		}
	}
	age := func(t time.Time) string { return f.now.Sub(t).Round(time.Minute).String() }
	free, total := f.seen.FreeBytes, f.seen.DiskBytes
	switch {
	case full.IsZero():
		return degraded("no-backup", "there is no consistent full backup", "Make one: controld backup run --type full.")
	case f.archive.Conflict != "":
		return degraded("archive-conflict", fmt.Sprintf("the archive has another %s than the server that leads wants to archive: "+
			"two servers have written on one timeline. Nothing is archived until that is settled", f.archive.Conflict),
			"Make sure that only one node leads (GET /cluster), and that no other cluster uses this repository. Then move the primary "+
				"(controld failover; with --mode emergency where that is refused for the WAL that waits): it goes on with a timeline "+
				"of its own, and a full backup is made by itself.")
	case f.severed:
		h := f.archive.Holes()
		return degraded("archive-hole", fmt.Sprintf("the archive lacks WAL of timeline %d from %s to %s, and no node has it: "+
			"no backup from before it is recovered to a moment after it", h[len(h)-1].Timeline, h[len(h)-1].From, h[len(h)-1].To),
			"controld makes a full backup by itself. If that fails: controld operations list --kind backup says why.")
	case f.failing != nil:
		return degraded("backup-failed", fmt.Sprintf("day %d of the cycle of backups has failed %s since %s: %s",
			f.failing.Day, times(f.failing.Attempts), f.failing.Since.UTC().Format(time.RFC3339), f.failing.Detail),
			"It is tried again by itself. All attempts: controld operations list --kind backup.")
	case f.now.Sub(last) > OverdueAfter:
		return degraded("backup-overdue", "the last good backup was made "+age(last)+" ago", "Make one: controld backup run.")
	case f.now.Sub(full) > FullOverdueAfter:
		return degraded("backup-overdue", "the last good full backup was made "+age(full)+" ago",
			"Make one: controld backup run --type full.")
	case fulls < LeastFulls && f.now.Sub(f.since) > FullOverdueAfter:
		return degraded("few-fulls", fmt.Sprintf("there is one consistent full backup, and there have been backups for %s: "+
			"nothing is left where a file of it goes bad", age(f.since)), "Make one more: controld backup run --type full.")
	case cluster.LowDisk(free, total):
		return degraded("repository-disk-low", fmt.Sprintf("%d of %d bytes are left on the repository's disk", free, total),
			"Free space there or grow it. When it is full, WAL stays on the primary, and fills its disk.")
	case !f.recorded.Failing.IsZero() && f.now.Sub(f.recorded.Failing) > behindFor:
		return degraded("catalogue-behind", "the catalogue in Redis is not told of the backups: "+f.recorded.Detail,
			"Look at Redis: controld check redis. The backups are in the repository all the same.")
	}
	return health.Noted(component, f.note)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
