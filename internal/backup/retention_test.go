package backup

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"controld/internal/operation"
)

// A repo is a repository in the making: copies with labels that say what they are.
type repo struct {
	copies []Copy
	at     time.Time
}

func newRepo() *repo { return &repo{at: time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC)} }

// add makes a backup as pgBackRest would: a differential builds on the newest full, an
// incremental on the newest of all.
func (r *repo) add(label string, t Type, change ...func(*Copy)) {
	c := Copy{Label: label, Type: t, Mode: Online, StartedAt: r.at, EndedAt: r.at, Annotations: map[string]string{NoteCycleDay: "1"},
		RepoOwnBytes: 10, WALStart: fmt.Sprintf("%024X", len(r.copies)+1)}
	for i := len(r.copies) - 1; t != Full && i >= 0; i-- {
		if on := r.copies[i]; t == Incremental || on.Type == Full {
			c.Prior, c.Needs = on.Label, append(slices.Clone(on.Needs), on.Label)
			break
		}
	}
	for _, f := range change {
		f(&c)
	}
	r.copies = append(r.copies, c)
	r.at = r.at.Add(time.Hour)
}

func offline(c *Copy) { c.Mode, c.WALStart = Offline, "" }
func damaged(c *Copy) { c.PageErrors = true }
func byHand(c *Copy)  { c.Annotations = nil }
func day(r *repo, n int) { // of the cycle of six
	cycle := 1 + (n-1)/6
	add := func(t Type) { r.add(fmt.Sprintf("c%dD%d%s", cycle, (n-1)%6+1, strings.ToUpper(string(t[:1]))), t) }
	switch (n - 1) % 6 {
	case 0:
		add(Full)
	case 1, 3:
		add(Incremental)
	case 2, 4:
		add(Incremental)
		add(Differential)
	case 5:
		add(Differential)
		add(Full)
	}
	r.at = time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC).AddDate(0, 0, n)
}

func cycled(c Copy) bool { return c.Consistent() && c.Annotations[NoteCycleDay] != "" }

func labelsOf(copies []Copy) string {
	var out []string
	for _, c := range copies {
		out = append(out, c.Label)
	}
	return strings.Join(out, " ")
}

// What stays each day of two cycles, and how far back it reaches: with two fulls one day
// after each first day, with three never less than six.
func TestRotation(t *testing.T) {
	const c1 = "c1D1F c1D2I c1D3I c1D3D c1D4I c1D5I c1D5D c1D6D"
	for _, tt := range []struct {
		keep   int
		stay   []string
		window []int // days that it reaches back, by day
	}{
		{2, []string{
			"c1D1F", "c1D1F c1D2I", "c1D1F c1D2I c1D3I c1D3D", "c1D1F c1D2I c1D3I c1D3D c1D4I",
			"c1D1F c1D2I c1D3I c1D3D c1D4I c1D5I c1D5D", c1 + " c1D6F",
			"c1D6F c2D1F", "c1D6F c2D1F c2D2I", "c1D6F c2D1F c2D2I c2D3I c2D3D", "c1D6F c2D1F c2D2I c2D3I c2D3D c2D4I",
			"c1D6F c2D1F c2D2I c2D3I c2D3D c2D4I c2D5I c2D5D", "c2D1F c2D2I c2D3I c2D3D c2D4I c2D5I c2D5D c2D6D c2D6F",
		}, []int{0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 5}},
		{3, []string{
			"c1D1F", "c1D1F c1D2I", "c1D1F c1D2I c1D3I c1D3D", "c1D1F c1D2I c1D3I c1D3D c1D4I",
			"c1D1F c1D2I c1D3I c1D3D c1D4I c1D5I c1D5D", c1 + " c1D6F",
			c1 + " c1D6F c2D1F", c1 + " c1D6F c2D1F c2D2I", c1 + " c1D6F c2D1F c2D2I c2D3I c2D3D",
			c1 + " c1D6F c2D1F c2D2I c2D3I c2D3D c2D4I", c1 + " c1D6F c2D1F c2D2I c2D3I c2D3D c2D4I c2D5I c2D5D",
			"c1D6F c2D1F c2D2I c2D3I c2D3D c2D4I c2D5I c2D5D c2D6D c2D6F",
		}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 6}},
	} {
		r := newRepo()
		for n := 1; n <= 12; n++ {
			day(r, n)
			p := Retain(r.copies, tt.keep, cycled)
			r.copies = p.Stay
			if got := labelsOf(r.copies); got != tt.stay[n-1] {
				t.Errorf("keep %d, day %d: stay %s\nwant %s", tt.keep, n, got, tt.stay[n-1])
			}
			last := r.copies[len(r.copies)-1].StartedAt
			if got := int(last.Sub(r.copies[0].StartedAt).Hours()+1) / 24; got != tt.window[n-1] {
				t.Errorf("keep %d, day %d: it reaches back %d days, want %d", tt.keep, n, got, tt.window[n-1])
			}
		}
	}
}

func TestRetain(t *testing.T) {
	good := func(c Copy) bool { return c.Consistent() }
	for _, tt := range []struct {
		name   string
		keep   int
		counts func(Copy) bool
		make   func(*repo)
		goes   string // dependents first
	}{
		{"nothing is there", 2, cycled, func(*repo) {}, ""},
		{"too few", 2, cycled, func(r *repo) { r.add("A", Full); r.add("i", Incremental) }, ""},
		{"just enough", 2, cycled, func(r *repo) { r.add("A", Full); r.add("B", Full) }, ""},
		{"one more, with all that depends on it", 2, cycled, func(r *repo) {
			r.add("A", Full)
			r.add("i", Incremental)
			r.add("d", Differential)
			r.add("B", Full)
			r.add("C", Full)
		}, "d i A"},
		{"offline ones push out none", 2, cycled, func(r *repo) {
			r.add("A", Full)
			r.add("x", Full, offline)
			r.add("y", Full, offline)
			r.add("B", Full)
			r.add("z", Full, offline)
		}, ""},
		{"nor do those with page errors", 2, cycled, func(r *repo) { r.add("A", Full); r.add("B", Full); r.add("x", Full, damaged) }, ""},
		{"nor those by hand", 2, cycled, func(r *repo) { r.add("A", Full); r.add("B", Full); r.add("x", Full, byHand) }, ""},
		{"which do where there is no cycle", 2, good, func(r *repo) { r.add("A", Full); r.add("B", Full); r.add("x", Full, byHand) }, "A"},
		{"what does not count goes with its time", 2, cycled, func(r *repo) {
			r.add("x", Full, offline)
			r.add("A", Full)
			r.add("y", Full, byHand)
			r.add("i", Incremental)
			r.add("B", Full)
			r.add("C", Full)
		}, "i y A x"},
		{"what needs a copy that goes goes with it", 2, cycled, func(r *repo) {
			r.add("A", Full)
			r.add("B", Full)
			r.add("C", Full)
			r.add("i", Incremental, func(c *Copy) { c.Prior, c.Needs = "A", []string{"A"} })
		}, "i A"},
		{"none is asked to be kept", 0, cycled, func(r *repo) { r.add("A", Full); r.add("B", Full) }, ""},
	} {
		r := newRepo()
		tt.make(r)
		p := Retain(r.copies, tt.keep, tt.counts)
		if got := strings.Join(p.labels(), " "); got != tt.goes {
			t.Errorf("%s: %q goes, want %q", tt.name, got, tt.goes)
		}
		if p.Bytes() != int64(10*len(p.Go)) || len(p.Go)+len(p.Stay) != len(r.copies) {
			t.Errorf("%s: %+v", tt.name, p)
		}
	}
}

// Whatever there is, nothing that stays lacks what it needs, and of good fulls there are as
// many as are to be kept, or all.
func TestRetainLeavesWhatCanBeRestored(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test
		r := newRepo()
		for n := range rnd.IntN(25) {
			change := []func(*Copy){func(*Copy) {}, offline, damaged, byHand, func(c *Copy) {
				if c.Type != Full && len(r.copies) > 0 { // built on anything
					on := r.copies[rnd.IntN(len(r.copies))]
					c.Prior, c.Needs = on.Label, append(slices.Clone(on.Needs), on.Label)
				}
			}}[rnd.IntN(5)]
			r.add(fmt.Sprint(n), Types[rnd.IntN(3)], change)
		}
		keep := 1 + rnd.IntN(4)
		fulls := func(copies []Copy) (n int) {
			for _, c := range copies {
				n += oneIf(c.Type == Full && cycled(c))
			}
			return n
		}
		plans := []Plan{Retain(r.copies, keep, cycled)}
		if got, want := fulls(plans[0].Stay), min(keep, fulls(r.copies)); got < want {
			t.Fatalf("seed %d: %d fulls stay, want %d", seed, got, want)
		}
		if fulls(r.copies) < keep && len(plans[0].Go) > 0 {
			t.Fatalf("seed %d: of too few some go", seed)
		}
		if len(r.copies) > 0 {
			plans = append(plans, Remove(r.copies, r.copies[rnd.IntN(len(r.copies))].Label))
		}
		for _, p := range plans {
			gone := map[string]bool{}
			for i, g := range p.Go {
				gone[g.Label] = true
				for _, later := range p.Go[i+1:] {
					if slices.Contains(later.Needs, g.Label) {
						t.Fatalf("seed %d: %s goes before %s, which needs it", seed, g.Label, later.Label)
					}
				}
			}
			for _, c := range p.Stay {
				if slices.ContainsFunc(c.Needs, func(l string) bool { return gone[l] }) {
					t.Fatalf("seed %d: %s stays without what it needs", seed, c.Label)
				}
			}
		}
	}
}

func TestRemove(t *testing.T) {
	chain := func(r *repo) {
		r.add("A", Full)
		r.add("i", Incremental)
		r.add("j", Incremental)
		r.add("d", Differential)
		r.add("B", Full)
		r.add("k", Incremental)
	}
	for _, tt := range []struct {
		name   string
		make   func(*repo)
		label  string
		goes   string
		why    Why // of the first
		force  bool
		refuse string
		newest bool
	}{
		{"one alone", chain, "d", "d", WhyAsked, false, "", false},
		{"with what depends on it", chain, "i", "j i", WhyDepends, false, "", false},
		{"a full of two", chain, "A", "d j i A", WhyDepends, false, "/problems/few-fulls", false},
		{"a full of two, forced", chain, "A", "d j i A", WhyDepends, true, "", false},
		{"the newest full, forced", chain, "B", "k B", WhyDepends, true, "", true},
		{"the last full", func(r *repo) { r.add("A", Full) }, "A", "A", WhyAsked, true, "/problems/last-full", true},
		{"of three fulls one", func(r *repo) { chain(r); r.add("C", Full) }, "A", "d j i A", WhyDepends, false, "", false},
		{"an offline one takes no good one away", func(r *repo) { r.add("A", Full); r.add("x", Full, offline) }, "x", "x", WhyAsked,
			false, "", true},
		{"an offline one is none of two", func(r *repo) { r.add("A", Full); r.add("B", Full); r.add("x", Full, offline) }, "A", "A",
			WhyAsked, false, "/problems/few-fulls", false},
		{"an incremental where there is one full", func(r *repo) { r.add("A", Full); r.add("i", Incremental) }, "i", "i", WhyAsked,
			false, "", false},
	} {
		r := newRepo()
		tt.make(r)
		p := Remove(r.copies, tt.label)
		if got := strings.Join(p.labels(), " "); got != tt.goes || p.Go[0].Why != tt.why || p.newestFull() != tt.newest {
			t.Errorf("%s: %+v", tt.name, p.Go)
		}
		refused := ""
		if err := p.refusal(tt.force); err != nil {
			var problem *operation.Problem
			if errors.As(err, &problem) {
				refused = problem.Type
			}
		}
		if refused != tt.refuse {
			t.Errorf("%s: refused with %q, want %q", tt.name, refused, tt.refuse)
		}
	}
}

// The count that pgBackRest is told is of backups from the first on that needs WAL.
func TestNeedsWAL(t *testing.T) {
	r := newRepo()
	r.add("x", Full, offline)
	if n, _ := needsWAL(r.copies); n != 0 {
		t.Errorf("an offline one needs WAL: %d", n)
	}
	r.add("A", Full)
	r.add("y", Full, offline)
	r.add("i", Incremental)
	if n, since := needsWAL(r.copies); n != 3 || since != r.copies[1].WALStart {
		t.Errorf("%d from %s", n, since)
	}
}

func TestNeedless(t *testing.T) {
	segment := func(n int) string { return fmt.Sprintf("00000001%08X%08X", 0, n) }
	for _, tt := range []struct {
		name  string
		min   string
		start string
		want  int64
	}{
		{"older by thirty", segment(10), segment(40), 30},
		{"none older", segment(40), segment(40), 0},
		{"on an older timeline", segment(10), "00000002" + segment(40)[8:], 30},
		{"no archive", "", segment(40), 0},
		{"no backup that needs any", segment(10), "", 0},
	} {
		r := Repository{Archive: []ArchiveRange{{Min: tt.min}}, Copies: []Copy{{WALStart: tt.start}}}
		if got := needless(r, testSegment); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
	if got := needless(Repository{}, testSegment); got != 0 {
		t.Errorf("of nothing: %d", got)
	}
}

// It is said that the window is short where two fulls that are adjacent are why.
func TestWindowNote(t *testing.T) {
	r := newRepo()
	for n := 1; n <= 7; n++ {
		day(r, n)
		r.copies = Retain(r.copies, 2, cycled).Stay
	}
	start := newRepo().at
	now := r.at.Add(2 * time.Hour)
	from := r.copies[0].EndedAt
	for _, tt := range []struct {
		name string
		w    window
		says string
	}{
		{"after the first day of the second cycle", window{from, start, now, 2, r.copies}, "only the last 4"},
		{"three are kept", window{from, start, now, 3, r.copies}, ""},
		{"the cluster is young", window{from, from, now, 2, r.copies}, ""},
		{"nobody knows since when", window{from, time.Time{}, now, 2, r.copies}, ""},
		{"a hole is why", window{from.Add(time.Hour), start, now, 2, r.copies}, ""},
		{"it cannot be recovered at all", window{time.Time{}, start, now, 2, r.copies}, ""},
		{"it is long enough", window{from, start, from.AddDate(0, 0, 6), 2, r.copies}, ""},
	} {
		got := tt.w.note()
		if (tt.says == "") != (got == "") || !strings.HasPrefix(got, tt.says) {
			t.Errorf("%s: %q", tt.name, got)
		}
		if got != "" && !strings.Contains(got, "CONTROLD_BACKUP_RETAIN_FULLS=3 keeps 6 days") {
			t.Errorf("%s: no cure in %q", tt.name, got)
		}
	}
}

func TestVersions(t *testing.T) {
	for _, tt := range []struct {
		version string
		before  bool
	}{{"2.45", true}, {"2.46", true}, {"2.47", false}, {"2.55.1", false}, {"3.0", false}, {"", true}, {"unknown", true}} {
		if got := before(tt.version, removesNewest); got != tt.before {
			t.Errorf("%s: %v", tt.version, got)
		}
	}
}
