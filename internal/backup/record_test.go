package backup

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/operation"
)

// spoken is what a controld has logged.
type spoken struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *spoken) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *spoken) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// telling is a world with a full in it that a controld watches, which has told the catalogue.
func telling(t *testing.T) (*world, *Backups, *operation.Manager, *spoken) {
	t.Helper()
	w := ready(t)
	w.copies[0].SystemID = system
	b, operations, stop := w.controld(t.TempDir())
	said := &spoken{}
	b.Log = slog.New(slog.NewTextHandler(said, nil))
	if err := b.Archiving.turnOn(system); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.Watch(ctx) }()
	t.Cleanup(func() { cancel(); <-done; stop() })
	time.Sleep(30 * time.Second)
	return w, b, operations, said
}

// tells fails unless the catalogue has a record for each of these labels, and the same keys in
// the index, and the API says the same keys.
func (w *world) tells(b *Backups, labels ...string) {
	w.t.Helper()
	entries, index := w.catalogue.held()
	var got, keys []string
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		if entries[key][fieldSystemID] != "" {
			got, keys = append(got, entries[key][fieldLabel]), append(keys, key)
		}
	}
	if !slices.Equal(got, labels) || !slices.Equal(index, keys) {
		w.t.Errorf("it tells of %v, index %v; want %v", got, index, labels)
	}
	records, _ := b.records()
	for _, r := range records {
		if !slices.Contains(keys, r.Key) {
			w.t.Errorf("%s has key %s here and another there: %v", r.Label, r.Key, keys)
		}
	}
}

func run(t *testing.T, b *Backups, operations *operation.Manager) {
	t.Helper()
	rec, err := b.Backup(t.Context(), Request{}, person)
	expect(t, ended(t, operations, rec, err), operation.Succeeded, "")
	time.Sleep(time.Second)
}

// Each backup is told at once, and what comes to nothing is not written again.
func TestCatalogue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b, operations, _ := telling(t)
		w.tells(b, "L1")
		run(t, b, operations)
		w.tells(b, "L1", "L2")
		if r := b.Recorded(); r.State() != CatalogueOK || r.Records != 2 || r.Version == "" || !r.Durable {
			t.Errorf("%+v", r)
		}
		reads, writes := w.catalogue.asked()
		time.Sleep(24 * time.Hour)
		if r, w := w.catalogue.asked(); w != writes || r-reads > 25 {
			t.Errorf("a day at rest: written %d times, read %d times", w-writes, r-reads)
		}
		w.catalogue.Flush()
		time.Sleep(15 * time.Second)
		w.tells(b, "L1", "L2")
		// What only a whole comparison sees.
		w.catalogue.Put(firstRecord(w), map[string]string{"maestro_usado": "x"})
		time.Sleep(time.Hour + time.Minute)
		if entries, _ := w.catalogue.held(); entries[firstRecord(w)]["maestro_usado"] == "x" {
			t.Error("a wrong field stays")
		}
		w.mu.Lock()
		w.copies = w.copies[:1]
		w.mu.Unlock()
		time.Sleep(2 * time.Minute)
		w.tells(b, "L1")
	})
}

func firstRecord(w *world) string {
	_, index := w.catalogue.held()
	return index[0]
}

// Without Redis backups are made all the same, which is said once, and told when it is back.
func TestCatalogueAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b, operations, said := telling(t)
		w.catalogue.Away(true)
		run(t, b, operations)
		time.Sleep(time.Hour)
		if n := strings.Count(said.String(), "is not told"); n != 1 {
			t.Errorf("said %d times:\n%s", n, said)
		}
		if r := b.Recorded(); r.State() != CatalogueAway || r.Detail == "" {
			t.Errorf("%+v", r)
		}
		if c := b.Components(time.Now())[0]; c.Status != "ok" { // redis says so of itself
			t.Errorf("%+v", c)
		}
		if _, err := b.Orphans(t.Context(), false, nil); !refusedWith(err, "catalogue-away") {
			t.Errorf("orphans: %v", err)
		}
		w.catalogue.Away(false)
		time.Sleep(31 * time.Second)
		w.tells(b, "L1", "L2")
		if !strings.Contains(said.String(), "again") || b.Recorded().State() != CatalogueOK {
			t.Errorf("%+v:\n%s", b.Recorded(), said)
		}
	})
}

func refusedWith(err error, kind string) bool {
	var p *operation.Problem
	return errors.As(err, &p) && p.Type == "/problems/"+kind
}

// A Redis that answers and does not take it is told of by /health.
func TestCatalogueBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b, operations, said := telling(t)
		w.catalogue.mu.Lock()
		w.catalogue.refuses = errors.New("MISCONF")
		w.catalogue.mu.Unlock()
		run(t, b, operations)
		time.Sleep(4 * time.Minute)
		if c := b.Components(time.Now())[0]; c.Status != "ok" || b.Recorded().State() != CatalogueBehind {
			t.Errorf("%+v, %+v", c, b.Recorded())
		}
		time.Sleep(2 * time.Minute)
		if c := b.Components(time.Now())[0]; c.Reason != "catalogue-behind" || !strings.Contains(c.Detail, "MISCONF") {
			t.Errorf("%+v", c)
		}
		if n := strings.Count(said.String(), "is not told"); n != 1 {
			t.Errorf("said %d times:\n%s", n, said)
		}
		w.catalogue.mu.Lock()
		w.catalogue.refuses = nil
		w.catalogue.mu.Unlock()
		time.Sleep(31 * time.Second)
		w.tells(b, "L1", "L2")
		if c := b.Components(time.Now())[0]; c.Status != "ok" {
			t.Errorf("%+v", c)
		}
	})
}

// Away is not empty: a repository that is not seen, not there, or another one removes nothing.
func TestAwayIsNotEmpty(t *testing.T) {
	for name, change := range map[string]func(*world){
		"nobody can look": func(w *world) { w.away = true },
		"it is not there": func(w *world) { w.stanza = false },
		"it is broken":    func(w *world) { w.lookLike = func(r *Repository) { r.State = RepositoryBroken } },
		"it is another cluster's": func(w *world) {
			w.lookLike = func(r *Repository) { r.SystemID = otherSystem; r.Copies = []Copy{copied("X", Full, 0)} }
		},
		"it has no backup":        func(w *world) { w.lookLike = func(r *Repository) { r.Copies = nil } },
		"its volume is not there": func(w *world) { w.missing = "no volume" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, b, _, _ := telling(t)
				before, _ := w.catalogue.held()
				w.mu.Lock()
				w.fail = &Failure{Kind: FailureFull}
				change(w)
				w.mu.Unlock()
				time.Sleep(3 * time.Hour)
				w.catalogue.Away(true) // and it is not removed when Redis comes back, either
				time.Sleep(time.Minute)
				w.catalogue.Away(false)
				time.Sleep(time.Hour)
				after, index := w.catalogue.held()
				if len(after) != 1 || len(index) != 1 || !maps.Equal(after[index[0]], before[index[0]]) {
					t.Errorf("%v, index %v", after, index)
				}
				if b.Recorded().State() == CatalogueOK {
					t.Errorf("%+v", b.Recorded())
				}
				if name != "it has no backup" {
					if _, err := b.Orphans(t.Context(), true, nil); err == nil {
						t.Error("orphans are removed where nobody knows which are")
					}
				}
			})
		})
	}
}

// What others wrote stays, also where one of ours needs its key, until a person removes it.
func TestForeignRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b, operations, _ := telling(t)
		foreign := KeyPrefix + time.Now().UTC().Format(keyTime) // the second of the next backup
		w.catalogue.Put(foreign, map[string]string{"fecha": "2000-01-01", "tipo_backup": "completo"})
		run(t, b, operations)
		w.tells(b, "L1", "L2")
		entries, _ := w.catalogue.held()
		if len(entries[foreign]) != 2 {
			t.Errorf("overwritten: %v", entries[foreign])
		}
		found, err := b.Orphans(t.Context(), false, nil)
		if err != nil || len(found) != 1 || found[0].Key != foreign {
			t.Fatalf("%+v, %v", found, err)
		}
		if _, err := b.Orphans(t.Context(), true, []string{"backup:2001-01-01_00-00-00"}); err != nil {
			t.Error(err)
		}
		if entries, _ := w.catalogue.held(); len(entries) != 3 {
			t.Errorf("what was not named is removed: %v", entries)
		}
		if removed, err := b.Orphans(t.Context(), true, nil); err != nil || len(removed) != 1 {
			t.Errorf("%+v, %v", removed, err)
		}
		time.Sleep(2 * time.Hour)
		w.tells(b, "L1", "L2") // with the keys that they had
		if entries, _ := w.catalogue.held(); entries[foreign] != nil || len(entries) != 2 {
			t.Errorf("%v", entries)
		}
	})
}

// A repository that was there and is gone is not made again by itself: a person says so.
func TestLostRepository(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b, operations, _ := telling(t)
		rec, err := b.Backup(t.Context(), Request{Type: Full, NewRepository: true}, person)
		if err == nil {
			rec = ended(t, operations, rec, nil)
		}
		if !refusedWith(err, "repository-not-lost") && (rec.Problem == nil || rec.Problem.Type != "/problems/repository-not-lost") {
			t.Errorf("a new one beside one that is there: %v, %+v", err, rec)
		}
		w.mu.Lock()
		w.copies[0].Label = "L0" // no two backups have one label
		copies := w.copies
		w.stanza, w.copies = false, nil
		w.mu.Unlock()
		if _, err := b.Backup(t.Context(), Request{}, person); !refusedWith(err, "repository-lost") {
			t.Errorf("a backup: %v", err)
		}
		w.mu.Lock()
		w.stanza, w.copies = true, copies
		w.mu.Unlock()
		time.Sleep(2 * soon) // what somebody has seen to be lost is looked at often
		if s := b.Seen(); s.State != RepositoryOK {
			t.Errorf("%+v", s)
		}
		w.mu.Lock()
		w.stanza, w.copies = false, nil
		w.mu.Unlock()
		time.Sleep(time.Hour)
		if w.history().begun > 0 || w.stanza {
			t.Errorf("made by itself: %+v", w.history())
		}
		if c := b.Components(time.Now())[0]; c.Reason != "repository-lost" {
			t.Errorf("%+v", c)
		}
		if _, err := b.Backup(t.Context(), Request{}, person); !refusedWith(err, "repository-lost") {
			t.Errorf("a backup: %v", err)
		}
		if _, err := b.Backup(t.Context(), Request{Type: Incremental, NewRepository: true}, person); err == nil {
			t.Error("an incremental in a new repository")
		}

		t.Log("its volume comes back")
		w.mu.Lock()
		w.stanza, w.copies = true, copies
		w.mu.Unlock()
		time.Sleep(10 * time.Second)
		if c := b.Components(time.Now())[0]; c.Status != "ok" || w.history().begun > 0 {
			t.Errorf("%+v", c)
		}

		t.Log("it is lost for good")
		w.mu.Lock()
		w.stanza, w.copies = false, nil
		w.mu.Unlock()
		time.Sleep(time.Minute)
		rec, err = b.Backup(t.Context(), Request{Type: Full, NewRepository: true}, person)
		rec = ended(t, operations, rec, err)
		expect(t, rec, operation.Succeeded, "")
		if len(rec.Steps) != 3 || rec.Steps[0].Name != "create repository" || len(w.history().copies) != 1 {
			t.Errorf("%+v", rec.Steps)
		}
		time.Sleep(time.Minute)
		if c := b.Components(time.Now())[0]; c.Status != "ok" {
			t.Errorf("%+v", c)
		}
		w.tells(b, "L1")
	})
}

// A new repository that was asked for is made also where controld ends meanwhile, or a
// failover comes.
func TestNewRepositoryIsGoneOnWith(t *testing.T) {
	for _, name := range []string{"controld ends", "a failover"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, dir := ready(t), t.TempDir()
				w.stanza, w.copies = false, nil
				b, operations, stop := w.controld(dir)
				if err := b.Archiving.turnOn(system); err != nil {
					t.Fatal(err)
				}
				w.setHangs(true)
				first, err := b.Backup(t.Context(), Request{Type: Full, NewRepository: true}, person)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second)
				if name == "controld ends" {
					stop()
					w.setHangs(false) // a daemon waits for what it resumes
					b, operations, stop = w.controld(dir)
					if err := operations.Resume(t.Context()); err != nil {
						t.Fatal(err)
					}
				} else {
					rec, err := operations.Start(t.Context(), operation.Spec{Kind: "failover", Mode: "planned", Caller: person}, nothing())
					expect(t, ended(t, operations, rec, err), operation.Succeeded, "")
				}
				defer stop()
				w.setHangs(false)
				ctx, cancel := context.WithCancel(t.Context())
				watched := make(chan struct{})
				go func() { defer close(watched); b.Watch(ctx) }()
				defer func() { cancel(); <-watched }()
				time.Sleep(5 * time.Minute)
				if !w.stanza || len(w.history().copies) != 1 {
					rec, _ := operations.Get(first.ID)
					t.Errorf("%+v: %+v", w.history(), rec)
				}
			})
		})
	}
}
