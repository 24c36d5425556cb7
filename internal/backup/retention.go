package backup

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"controld/internal/operation"
	"controld/internal/wal"
)

// A Plan says which backups go from a repository and which stay.
type Plan struct {
	Go   []Removal // what depends on another stands before it
	Stay []Copy    // the oldest first
}

// A Removal is a backup that goes, and why.
type Removal struct {
	Copy
	Why Why
	On  string // WhyDepends: the label of what it depends on
}

// A Why says why a backup goes.
type Why string

// The reasons.
const (
	WhyAsked   Why = "asked"   // it was named
	WhyDepends Why = "depends" // it cannot be restored without one that goes
	WhyOlder   Why = "older"   // than the oldest full that is kept
)

// Retain plans what goes of the copies, the oldest of which is first, so that the newest
// keepFulls fulls that count stay, with everything from the oldest of them on. Where fewer
// count nothing goes. What does not count pushes nothing out: it goes when it is older than
// the oldest full that is kept.
func Retain(copies []Copy, keepFulls int, counts func(Copy) bool) Plan {
	kept, oldest := 0, 0
	for i := len(copies) - 1; i >= 0 && kept < keepFulls; i-- {
		if copies[i].Type == Full && counts(copies[i]) {
			kept, oldest = kept+1, i
		}
	}
	if keepFulls < 1 || kept < keepFulls {
		oldest = 0
	}
	why := map[string]Removal{}
	for _, c := range copies[:oldest] {
		why[c.Label] = Removal{Why: WhyOlder}
	}
	return planned(copies, why)
}

// Remove plans that one of the copies goes, with everything that depends on it.
func Remove(copies []Copy, label string) Plan {
	return planned(copies, map[string]Removal{label: {Why: WhyAsked}})
}

// planned is the plan by which these go, and what depends on them.
func planned(copies []Copy, why map[string]Removal) Plan {
	for found := true; found; {
		found = false
		for _, c := range copies {
			if _, goes := why[c.Label]; goes {
				continue
			}
			for _, need := range append([]string{c.Prior}, c.Needs...) {
				if _, goes := why[need]; goes {
					why[c.Label] = Removal{Why: WhyDepends, On: need}
					found = true
					break
				}
			}
		}
	}
	var p Plan
	for _, c := range copies {
		if r, goes := why[c.Label]; goes {
			r.Copy = c
			p.Go = append(p.Go, r)
		} else {
			p.Stay = append(p.Stay, c)
		}
	}
	slices.Reverse(p.Go) // the newest first: nothing depends on what is newer
	return p
}

// Bytes are those that what goes takes in the repository.
func (p Plan) Bytes() (n int64) {
	for _, r := range p.Go {
		n += r.RepoOwnBytes
	}
	return n
}

// labels are those of what goes, in the order in which it does.
func (p Plan) labels() []string {
	labels := make([]string, len(p.Go))
	for i, r := range p.Go {
		labels[i] = r.Label
	}
	return labels
}

// LeastFulls is how many consistent fulls stay unless it is forced: with one alone a file
// of it that has gone bad takes everything.
const LeastFulls = 2

// refusal is why a plan is not carried out; nil: nothing is in its way.
func (p Plan) refusal(force bool) error {
	fulls, good := 0, 0
	for _, c := range p.Stay {
		if c.Type == Full {
			fulls++
			good += oneIf(c.Consistent())
		}
	}
	goes, goodGoes := false, false
	for _, r := range p.Go {
		goes = goes || r.Type == Full
		goodGoes = goodGoes || r.Type == Full && r.Consistent()
	}
	numbers := map[string]any{"fulls_left": fulls, "consistent_fulls_left": good}
	switch {
	case goes && fulls == 0:
		return operation.Refuse("last-full", numbers,
			"no full backup would be left; make another one first: controld backup run --type full")
	case goodGoes && good < LeastFulls && !force:
		return operation.Refuse("few-fulls", numbers,
			"of the consistent full backups %d would be left, and %d are always kept; make one more first "+
				"(controld backup run --type full), or force it",
			good, LeastFulls)
	}
	return nil
}

func oneIf(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// newestFull reports whether the newest full of all goes.
func (p Plan) newestFull() bool {
	newest, goes := time.Time{}, false
	for _, c := range p.Stay {
		if c.Type == Full && c.StartedAt.After(newest) {
			newest = c.StartedAt
		}
	}
	for _, r := range p.Go {
		goes = goes || r.Type == Full && r.StartedAt.After(newest)
	}
	return goes
}

// needsWAL is how many of the copies, the oldest of which is first, there are from the
// first on that needs WAL, and the segment with which that begins; 0: none needs any.
func needsWAL(copies []Copy) (n int, since string) {
	for i, c := range copies {
		if c.WALStart != "" {
			return len(copies) - i, c.WALStart
		}
	}
	return 0, ""
}

// needless is how many segments of the archive are older than the oldest backup needs.
func needless(r Repository, segmentBytes int64) int64 {
	_, since := needsWAL(r.Copies)
	if len(r.Archive) == 0 || segmentBytes == 0 {
		return 0
	}
	oldest := r.Archive[len(r.Archive)-1].Min
	_, from, ok := wal.ParseSegmentName(oldest, segmentBytes)
	_, to, needed := wal.ParseSegmentName(since, segmentBytes)
	if !ok || !needed || oldest >= since || from >= to {
		return 0
	}
	return int64(to - from) //nolint:gosec // numbers of segments
}

// cycleDays is how many days the cycle of backups has, and how far back they are to reach.
const cycleDays = 6

// A window is how far back the database can be recovered, and what decides that.
type window struct {
	from      time.Time // the moment from which on it can be; zero: it cannot
	since     time.Time // since when there are backups; zero: not known
	now       time.Time
	keepFulls int
	copies    []Copy // the oldest first
}

// note says that it is short because of how many fulls are kept, and which setting cures
// that; empty: it is as long as a cycle, or could not be longer yet, or is short for
// another reason.
func (w window) note() string {
	const span = cycleDays * 24 * time.Hour
	length := w.now.Sub(w.from)
	if w.from.IsZero() || w.since.IsZero() || w.keepFulls != LeastFulls || length >= span || w.now.Sub(w.since) < span {
		return ""
	}
	var fulls []Copy
	for _, c := range w.copies {
		if c.Type == Full && c.Consistent() {
			fulls = append(fulls, c)
		}
	}
	if len(fulls) < w.keepFulls || !fulls[0].EndedAt.Equal(w.from) {
		return ""
	}
	return fmt.Sprintf("only the last %s can be recovered: %d fulls are kept, and they are %s apart. "+
		"CONTROLD_BACKUP_RETAIN_FULLS=%d keeps %d days", hours(length), w.keepFulls,
		hours(fulls[len(fulls)-1].StartedAt.Sub(fulls[0].StartedAt)), w.keepFulls+1, cycleDays)
}

func hours(d time.Duration) string {
	if d < time.Hour {
		return fmt.Sprintf("%d min", int(d.Minutes()))
	}
	return fmt.Sprintf("%d h", int(d.Hours()))
}

// removesNewest is the version of pgBackRest from which on the newest full can be removed:
// before it every incremental and differential fails then, until there is a new full.
const removesNewest = "2.47"

// before reports whether a version, such as 2.45, is older than another. One that cannot be
// read is.
func before(version, than string) bool {
	a, aOK := numbers(version)
	b, _ := numbers(than)
	return !aOK || slices.Compare(a, b) < 0
}

func numbers(version string) (out []int, ok bool) {
	for part := range strings.SplitSeq(version, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return nil, false
		}
		out = append(out, n)
	}
	return out, true
}
