package backup

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/cluster"
	"controld/internal/operation"
)

// stocked is a world whose repository has backups: F full, I incremental, D differential,
// X an offline full; one an hour, each with the segment that it begins in and nine more
// before it.
func stocked(t *testing.T, types string) *world {
	t.Helper()
	w := ready(t)
	w.copies = nil
	at := time.Now().Add(-time.Duration(len(types)) * time.Hour)
	for i, letter := range types {
		c := Copy{Label: fmt.Sprintf("L%d", i+1), Mode: Online, Type: Full, StartedAt: at, EndedAt: at.Add(time.Minute), RepoOwnBytes: 100,
			SystemID: system, Timeline: 1}
		switch letter {
		case 'I':
			c.Type = Incremental
		case 'D':
			c.Type = Differential
		case 'X':
			c.Mode, c.Timeline = Offline, 0
		}
		for on := i - 1; c.Type != Full; on-- {
			if c.Type == Incremental || w.copies[on].Type == Full {
				c.Prior, c.Needs = w.copies[on].Label, append(slices.Clone(w.copies[on].Needs), w.copies[on].Label)
				break
			}
		}
		for range 10 {
			name := Segment{1, w.wal.flushed.Segment(testSegment)}.Name(testSegment)
			w.wal.archived[name] = true
			w.wal.flushed += testSegment
			if c.Mode == Online {
				c.WALStart, c.WALStop, c.LSNStart, c.LSNStop = name, name, w.wal.flushed, w.wal.flushed
			}
		}
		w.copies = append(w.copies, c)
		at = at.Add(time.Hour)
	}
	return w
}

// has are the labels in the repository, and whether the archive has all WAL from the oldest
// backup on, and none older.
func (w *world) has() (labels string, archive string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	segments := w.segments()
	n, since := needsWAL(w.copies)
	if n == 0 {
		return labelsOf(w.copies), "none is needed"
	}
	switch at, found := slices.BinarySearch(segments, since); {
	case !found:
		return labelsOf(w.copies), "a gap at " + since
	case at > 0:
		return labelsOf(w.copies), fmt.Sprintf("%d older", at)
	default:
		for i := 1; i < len(segments); i++ {
			if segments[i] != nextSegment(segments[i-1]) {
				return labelsOf(w.copies), "a gap after " + segments[i-1]
			}
		}
	}
	return labelsOf(w.copies), "all"
}

func nextSegment(name string) string {
	a := NewArchive([]string{name + "-0.zst"}, testSegment)
	for s := range maps.Keys(a.Segments) {
		s.Number++
		return s.Name(testSegment)
	}
	return ""
}

func TestExpire(t *testing.T) {
	for _, tt := range []struct {
		name    string
		types   string
		change  func(*world)
		x       Expiry
		state   operation.State
		says    string // the problem
		labels  string
		archive string
		calls   int
	}{
		{"what is not kept", "FIDFIF", nil, Expiry{}, operation.Succeeded, "", "L4 L5 L6", "all", 4},
		{"nothing is to go", "FF", nil, Expiry{}, operation.Succeeded, "", "L1 L2", "9 older", 1},
		{"one backup", "FIDFF", nil, Expiry{Backup: "L3"}, operation.Succeeded, "", "L1 L2 L4 L5", "9 older", 2},
		{"with dependents", "FIIFF", nil, Expiry{Backup: "L2"}, operation.Succeeded, "", "L1 L4 L5", "all", 3},
		{"the oldest full", "FIFF", nil, Expiry{Backup: "L1"}, operation.Succeeded, "", "L3 L4", "all", 3},
		{"one of two fulls", "FIF", nil, Expiry{Backup: "L1"}, operation.Refused, "backups 1 would be left", "L1 L2 L3", "", 0},
		{"one of two fulls, forced", "FIF", nil, Expiry{Backup: "L1", Force: true}, operation.Succeeded, "", "L3", "all", 3},
		{"the last full, forced", "F", nil, Expiry{Backup: "L1", Force: true}, operation.Refused, "no full backup would be", "L1", "", 0},
		{"keep one", "FFF", nil, Expiry{KeepFulls: 1}, operation.Refused, "full backups 1 would be left", "L1 L2 L3", "", 0},
		{"keep one, forced", "FFF", nil, Expiry{KeepFulls: 1, Force: true}, operation.Succeeded, "", "L3", "all", 3},
		{"keep more", "FFFF", nil, Expiry{KeepFulls: 3}, operation.Succeeded, "", "L2 L3 L4", "all", 2},
		{"offline ones among them", "XFXIFXF", nil, Expiry{KeepFulls: 3}, operation.Succeeded, "", "L2 L3 L4 L5 L6 L7", "all", 2},
		{"the newest full of an old tool", "FFF", func(w *world) { w.expiry.version = "2.45" }, Expiry{Backup: "L3"}, operation.Refused,
			"2.45", "L1 L2 L3", "", 0},
		{"another full of an old tool", "FFF", func(w *world) { w.expiry.version = "2.45" }, Expiry{Backup: "L1"}, operation.Succeeded, "",
			"L2 L3", "all", 2},
		{"a backup that is not there", "FFF", nil, Expiry{Backup: "L9"}, operation.Refused, "not in the repository", "L1 L2 L3", "", 0},
		{"as expected", "FIFF", nil, Expiry{Expect: []string{"L1", "L2"}}, operation.Succeeded, "", "L3 L4", "all", 3},
		{"other than expected", "FIFF", nil, Expiry{Expect: []string{"L1"}}, operation.Refused, "L2, L1", "L1 L2 L3 L4", "", 0},
		{"the repository is away", "FFF", func(w *world) { w.away = true }, Expiry{}, operation.Refused, "not answer", "L1 L2 L3", "", 0},
		{"it is not there", "FFF", func(w *world) { w.stanza = false }, Expiry{}, operation.Refused, "not made yet", "L1 L2 L3", "", 0},
		{"another cluster's", "FFF", func(w *world) { w.foreign = true }, Expiry{}, operation.Refused, "identifier", "L1 L2 L3", "", 0},
		{"a backup by hand runs", "FFF", func(w *world) { w.running["x"] = &job{began: time.Now(), ended: make(chan struct{})} }, Expiry{},
			operation.Refused, "not begun", "L1 L2 L3", "", 0},
		{"the tool fails", "FFF", func(w *world) { w.expiry.fail = &Failure{Kind: FailureSetup, Code: 41, Said: "Permission denied"} },
			Expiry{}, operation.Undone, "Permission denied", "L1 L2 L3", "", 1},
		{"nobody leads", "FFF", func(w *world) { w.dead["one"] = true }, Expiry{}, operation.Succeeded, "", "L2 L3", "all", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := stocked(t, tt.types)
				if tt.change != nil {
					tt.change(w)
				}
				b, operations, stop := w.controld(t.TempDir())
				defer stop()
				b.continuity.Store(&Continuity{SegmentBytes: testSegment})
				rec, err := b.Expire(t.Context(), tt.x, "why", false, person)
				var problem *operation.Problem
				if errors.As(err, &problem) {
					rec = operation.Record{Kind: KindExpire, State: operation.Refused, Problem: problem}
				} else {
					rec = ended(t, operations, rec, err)
				}
				expect(t, rec, tt.state, tt.says)
				labels, archive := w.has()
				if labels != tt.labels || tt.archive != "" && tt.archive != "9 older" && archive != tt.archive {
					t.Errorf("there are %s with %s; want %s with %s", labels, archive, tt.labels, tt.archive)
				}
				if len(w.expiry.calls) != tt.calls {
					t.Errorf("calls: %q", w.expiry.calls)
				}
				if tt.state == operation.Succeeded && len(w.copies) < len(tt.types) {
					removed := len(tt.types) - len(w.copies)
					if number(rec, "removed") != removed || fmt.Sprint(rec.Result["freed_bytes"]) != fmt.Sprint(100*removed) {
						t.Errorf("result: %v", rec.Result)
					}
				}
			})
		})
	}
}

// number is how many there are in a result, which is of another type after a restart.
func number(rec operation.Record, name string) int {
	return len(strings.Fields(strings.Trim(fmt.Sprint(rec.Result[name]), "[]")))
}

// What a backup makes superfluous goes by itself, soon, and once.
func TestRetentionByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b, operations, stop := watched(t, w, t.TempDir())
		defer stop()
		for range 2 {
			rec, err := b.Backup(t.Context(), Request{Type: Full}, person)
			expect(t, ended(t, operations, rec, err), operation.Succeeded, "")
			time.Sleep(2 * time.Minute)
		}
		if labels, archive := w.has(); labels != "L2 L3" || archive != "all" {
			t.Errorf("%s with %s", labels, archive)
		}
		time.Sleep(24 * time.Hour)
		recs, _, err := operations.List(operation.Filter{Kind: KindExpire, Limit: 9})
		if err != nil || len(recs) != 1 || recs[0].State != operation.Succeeded || recs[0].RequestedBy != string(operation.Daemon) ||
			!strings.Contains(recs[0].Reason, "2 full backups are kept") {
			t.Errorf("%+v, %v", recs, err)
		}
		if c := b.Components(time.Now())[0]; c.Status != "ok" {
			t.Errorf("%+v", c)
		}
	})
}

// One that fails is tried again, ever more seldom, and nothing else waits for it.
func TestRetentionFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := stocked(t, "FFF")
		w.expiry.fail = &Failure{Kind: FailureSetup, Code: 41, Said: "Permission denied"}
		b, operations, stop := watched(t, w, t.TempDir())
		defer stop()
		time.Sleep(time.Hour)
		w.mu.Lock()
		tries := len(w.expiry.calls)
		w.expiry.fail = nil
		w.mu.Unlock()
		if tries < 8 || tries > 15 {
			t.Errorf("tried %d times in an hour", tries)
		}
		time.Sleep(16 * time.Minute)
		if labels, archive := w.has(); labels != "L2 L3" || archive != "all" {
			t.Errorf("%s with %s", labels, archive)
		}
		rec, err := b.Backup(t.Context(), Request{}, person)
		expect(t, ended(t, operations, rec, err), operation.Succeeded, "")
	})
}

// WAL that pgBackRest does not remove is not tried to be removed for ever; what is older
// than the oldest backup goes.
func TestNeedlessWALGoes(t *testing.T) {
	for name, stays := range map[string]bool{"it goes": false, "it stays": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := stocked(t, "FFFF")
				w.copies = w.copies[2:]
				w.keepWAL = stays // as if it were of another version of PostgreSQL
				_, operations, stop := watched(t, w, t.TempDir())
				defer stop()
				time.Sleep(time.Hour)
				if labels, archive := w.has(); labels != "L3 L4" || archive != "all" && !stays {
					t.Errorf("%s with %s", labels, archive)
				}
				recs, _, err := operations.List(operation.Filter{Kind: KindExpire, Limit: 9})
				if err != nil || len(recs) != 1 {
					t.Errorf("%d operations, %v", len(recs), err)
				}
			})
		})
	}
}

// A controld that is stopped or killed before, in or after any call leaves a repository that
// the next one brings to where this one was going.
func TestExpireIsGoneOnWith(t *testing.T) {
	const calls = 4 // three removals and the WAL
	for half := range 2*calls + 1 {
		synctest.Test(t, func(t *testing.T) {
			w, dir := stocked(t, "FIIFF"), t.TempDir()
			b, _, stop := w.controld(dir)
			rec, err := b.Expire(t.Context(), Expiry{}, "", false, person)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(half)*time.Second/2 + time.Millisecond)
			stop()
			_, operations, stop := w.controld(dir)
			defer stop()
			if err := operations.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
			rec = ended(t, operations, rec, nil)
			expect(t, rec, operation.Succeeded, "")
			if labels, archive := w.has(); labels != "L4 L5" || archive != "all" || len(w.expiry.half) > 0 {
				t.Errorf("cut after %d halves: %s with %s", half, labels, archive)
			}
			if number(rec, "removed") != 3 {
				t.Errorf("cut after %d halves: %v", half, rec.Result)
			}
		})
	}
}

// What another command holds is waited for; a backup that is asked for meanwhile waits, and a
// failover does not.
func TestExpireBesideOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := stocked(t, "FIFF")
		w.expiry.time = 10 * time.Second
		b, operations, stop := w.controld(t.TempDir())
		defer stop()
		began := time.Now()
		rec, err := b.Expire(t.Context(), Expiry{}, "", false, person)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		moved, err := operations.Start(t.Context(), operation.Spec{Kind: cluster.KindFailover, Mode: "planned", Caller: person}, nothing())
		expect(t, ended(t, operations, moved, err), operation.Succeeded, "")
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the failover waited %s", took)
		}
		made, err := b.Backup(t.Context(), Request{}, person)
		expect(t, ended(t, operations, made, err), operation.Succeeded, "")
		if took := time.Since(began); took < 30*time.Second || took > time.Minute {
			t.Errorf("the backup ended after %s", took)
		}
		expect(t, ended(t, operations, rec, nil), operation.Succeeded, "")
		// Somebody else has the lock.
		w.mu.Lock()
		w.expiry.running = true
		w.mu.Unlock()
		time.AfterFunc(20*time.Second, func() { w.mu.Lock(); w.expiry.running = false; w.mu.Unlock() })
		if seen := b.Look(t.Context()); !seen.Busy {
			t.Error("it is not busy")
		}
		if err := b.removeOne(t.Context(), "L5"); err != nil {
			t.Error(err)
		}
		if labels, _ := w.has(); labels != "L3 L4" {
			t.Errorf("there are %s", labels)
		}
	})
}

// What has come meanwhile, and was in no plan, is not removed with what it depends on.
func TestOnlyWhatWasPlannedGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := stocked(t, "FFI")
		b, _, stop := w.controld(t.TempDir())
		defer stop()
		if err := b.removeOne(t.Context(), "L2"); err == nil || !strings.Contains(err.Error(), "L3 depends on L2") {
			t.Errorf("%v", err)
		}
		if err := b.verifyExpired(t.Context(), &expiry{Stay: []string{"L1", "L0"}}); err == nil || !strings.Contains(err.Error(), "L0") {
			t.Errorf("%v", err)
		}
		err := b.verifyExpired(t.Context(), &expiry{Remove: []string{"L1"}})
		if err == nil || !strings.Contains(err.Error(), "still listed") {
			t.Errorf("%v", err)
		}
		if len(w.expiry.calls) > 0 {
			t.Errorf("calls: %q", w.expiry.calls)
		}
	})
}

// /health says that few fulls are left, and how far back these reach.
func TestHealthOfFulls(t *testing.T) {
	now := time.Now()
	full := func(age time.Duration) Copy {
		return Copy{Label: age.String(), Type: Full, Mode: Online, StartedAt: now.Add(-age), EndedAt: now.Add(-age)}
	}
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name   string
		copies []Copy
		since  time.Duration
		reason string
	}{
		{"the first one", []Copy{full(day)}, day, ""},
		{"still one after a week", []Copy{full(day)}, 8 * day, "few-fulls"},
		{"one that is old, too", []Copy{full(8 * day)}, 8 * day, "backup-overdue"},
		{"two", []Copy{full(6 * day), full(day)}, 8 * day, ""},
	} {
		f := findings{
			seen: Seen{Repository: Repository{State: RepositoryOK, Copies: tt.copies}}, on: true, since: now.Add(-tt.since), now: now,
			note: "only the last 26 h",
		}
		c := f.assess()
		if c.Reason != tt.reason || tt.reason == "" && (c.Detail != "only the last 26 h" || c.Status != "ok") {
			t.Errorf("%s: %+v", tt.name, c)
		}
	}
}
