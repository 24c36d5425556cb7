package backup

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/cluster"
	"controld/internal/operation"
)

var person = operation.Caller{Name: "operator", Kind: operation.Person}

// ended waits for the end of an operation.
func ended(t *testing.T, operations *operation.Manager, rec operation.Record, err error) operation.Record {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
	defer cancel()
	if rec, err = operations.Wait(ctx, rec.ID); err != nil {
		t.Fatal(err)
	}
	return rec
}

func expect(t *testing.T, rec operation.Record, state operation.State, says string) {
	t.Helper()
	detail := ""
	if rec.Problem != nil {
		detail = rec.Problem.Detail
	}
	if rec.State != state || !strings.Contains(detail, says) {
		t.Errorf("%s %s: %s, want %s: %s", rec.Kind, rec.State, detail, state, says)
	}
}

// A cluster that has begun gets its repository, its archiving and a first full by itself.
func TestFirstFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b, operations, stop := w.controld(t.TempDir())
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go b.Watch(ctx)
		time.Sleep(time.Minute)
		seen := b.Seen()
		if seen.State != RepositoryOK || len(seen.Copies) != 1 || seen.Copies[0].Type != Full || w.history().command != "push" {
			t.Fatalf("%+v, archive_command %q", seen, w.history().command)
		}
		if notes := seen.Copies[0].Annotations; notes[NotePrimary] != "c-one" || notes[NoteRequested] != "full" || notes[NoteReason] == "" {
			t.Errorf("notes: %v", notes)
		}
		if c := b.Components(time.Now())[0]; c.Status != "ok" {
			t.Errorf("%+v", c)
		}
		time.Sleep(24 * time.Hour)
		if recs, _, err := operations.List(operation.Filter{Limit: 50}); err != nil || len(recs) != 2 {
			t.Errorf("more was done than was needed: %+v, %v", recs, err)
		}
	})
}

// A controld that ends while the repository is made, or its archive checked, leaves that to
// the next one.
func TestRepositoryIsGoneOnWith(t *testing.T) {
	for name, made := range map[string]bool{"while it is made": false, "while it is checked": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, dir := newWorld(t), t.TempDir()
				w.stanza = made
				w.setHangs(true)
				watch := func() (*operation.Manager, func()) {
					b, operations, stop := w.controld(dir)
					if err := operations.Resume(t.Context()); err != nil {
						t.Fatal(err)
					}
					ctx, cancel := context.WithCancel(t.Context())
					watched := make(chan struct{})
					go func() { defer close(watched); b.Watch(ctx) }()
					return operations, func() { cancel(); <-watched; stop() }
				}
				_, stop := watch()
				time.Sleep(20 * time.Second)
				stop()
				w.setHangs(false)
				operations, stop := watch()
				defer stop()
				time.Sleep(time.Minute)
				if h := w.history(); len(h.copies) != 1 || h.command != "push" {
					t.Errorf("%+v", h)
				}
				recs, _, err := operations.List(operation.Filter{Kind: KindRepository, Limit: 9})
				if err != nil || len(recs) != 1 || recs[0].State != operation.Succeeded {
					t.Errorf("%+v, %v", recs, err)
				}
			})
		})
	}
}

// What controld does by itself and fails is tried again, more and more seldom.
func TestFirstFullFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fail = &Failure{Kind: FailureFull, Code: 64, Said: "No space left"}
		b, _, stop := w.controld(t.TempDir())
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go b.Watch(ctx)
		time.Sleep(time.Hour)
		if n := w.history().begun; n < 8 || n > 15 {
			t.Errorf("tried %d times in an hour", n)
		}
		w.mu.Lock()
		w.fail = nil
		w.mu.Unlock()
		time.Sleep(16 * time.Minute)
		if len(w.history().copies) != 1 {
			t.Errorf("%d copies", len(w.history().copies))
		}
	})
}

func ready(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.stanza = true
	w.copies = []Copy{{Label: "L1", Type: Full, Mode: Online, StartedAt: time.Now().Add(-time.Hour), EndedAt: time.Now().Add(-time.Hour)}}
	return w
}

// underWay is a backup that has run for a while.
func underWay(t *testing.T, b *Backups) operation.Record {
	t.Helper()
	rec, err := b.Backup(t.Context(), Request{}, person)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	return rec
}

func TestBackup(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*world)
		request Request
		state   operation.State
		says    string
		made    Type
		primary string
	}{
		{"what is due", func(*world) {}, Request{}, operation.Succeeded, "", Incremental, "c-one"},
		{"a differential", func(*world) {}, Request{Type: Differential}, operation.Succeeded, "", Differential, "c-one"},
		{"of whoever leads", func(w *world) { w.primary = "two" }, Request{}, operation.Succeeded, "", Incremental, "c-two"},
		{"with a dead standby", func(w *world) { w.dead["two"] = true }, Request{}, operation.Succeeded, "", Incremental, "c-one"},
		{"there is no full", func(w *world) { w.copies = nil }, Request{Type: Incremental}, operation.Succeeded, "", Full, "c-one"},
		{"nobody leads", func(w *world) { w.primary, w.dead["one"] = "one", true }, Request{}, operation.Refused,
			"not in recovery", "", ""},
		{"no place", func(w *world) { w.missing = "no volume" }, Request{}, operation.Refused, "no volume", "", ""},
		{"an earlier version made the nodes", func(w *world) { w.old, w.stanza = true, false }, Request{}, operation.Refused,
			"make down", "", ""},
		{"the tool is away", func(w *world) { w.away = true }, Request{}, operation.Refused, "does not answer", "", ""},
		{"no repository yet", func(w *world) { w.stanza = false }, Request{}, operation.Refused, "not made yet", "", ""},
		{"it fails", func(w *world) { w.fail = &Failure{Kind: FailureFull, Code: 64, Said: "No space left"} }, Request{},
			operation.Undone, "No space left", "", ""},
		{"nothing has changed, offline", func(w *world) { w.fail = &Failure{Kind: FailureUnchanged, Code: 55} },
			Request{Mode: Offline, AcceptInconsistent: true}, operation.Succeeded, "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := ready(t)
				tt.change(w)
				before := len(w.history().copies)
				b, operations, stop := w.controld(t.TempDir())
				defer stop()
				rec, err := b.Backup(t.Context(), tt.request, person)
				if err == nil {
					rec = ended(t, operations, rec, nil)
				} else if problem, is := err.(*operation.Problem); is { //nolint:errorlint // as it is returned
					rec = operation.Record{Kind: KindBackup, State: operation.Refused, Problem: problem}
				}
				expect(t, rec, tt.state, tt.says)
				made := w.history().copies[before:]
				switch {
				case tt.made == "" && len(made) > 0:
					t.Errorf("it made %+v", made)
				case tt.made != "" && (len(made) != 1 || made[0].Type != tt.made || made[0].Annotations[NotePrimary] != tt.primary):
					t.Errorf("it made %+v", made)
				case tt.made != "" && rec.Result["label"] != made[0].Label:
					t.Errorf("result: %v", rec.Result)
				}
				if w.left() > 0 {
					t.Error("a backup is left running")
				}
			})
		})
	}
}

// An offline copy is made only by who says that it may not restore.
func TestOffline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := ready(t)
		b, operations, stop := w.controld(t.TempDir())
		defer stop()
		if _, err := b.Backup(t.Context(), Request{Mode: Offline}, person); err == nil || !strings.Contains(err.Error(),
			"accept_inconsistent") {
			t.Errorf("not refused: %v", err)
		}
		rec, err := b.Backup(t.Context(), Request{Mode: Offline, Type: Full, AcceptInconsistent: true}, person)
		expect(t, ended(t, operations, rec, err), operation.Succeeded, "")
		if c := b.Seen().Copies[1]; c.Consistent() || c.Mode != Offline {
			t.Errorf("%+v", c)
		}
	})
}

// A controld that ends leaves the backup running, and the next one goes on with it: there
// is never a second beside it, also when it has ended meanwhile.
func TestAdoption(t *testing.T) {
	for name, away := range map[string]time.Duration{"while it runs": time.Second, "after its end": time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, dir := ready(t), t.TempDir()
				b, _, stop := w.controld(dir)
				rec := underWay(t, b)
				stop()
				if w.left() != 1 {
					t.Fatalf("%d backups run", w.left())
				}
				time.Sleep(away)
				_, operations, stop := w.controld(dir)
				defer stop()
				if err := operations.Resume(t.Context()); err != nil {
					t.Fatal(err)
				}
				expect(t, ended(t, operations, rec, nil), operation.Succeeded, "")
				if w.history().begun != 1 || len(w.history().copies) != 2 {
					t.Errorf("begun %d times, made %d", w.history().begun, len(w.history().copies)-1)
				}
			})
		})
	}
}

// One whose container has ended meanwhile is begun anew.
func TestBegunAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, dir := ready(t), t.TempDir()
		b, _, stop := w.controld(dir)
		rec := underWay(t, b)
		stop()
		w.restart()
		_, operations, stop := w.controld(dir)
		defer stop()
		if err := operations.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		expect(t, ended(t, operations, rec, nil), operation.Succeeded, "")
		if w.history().begun != 2 || len(w.history().copies) != 2 {
			t.Errorf("begun %d times, made %d", w.history().begun, len(w.history().copies)-1)
		}
	})
}

func TestContainerEndsMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := ready(t)
		b, operations, stop := w.controld(t.TempDir())
		defer stop()
		rec := underWay(t, b)
		w.restart()
		expect(t, ended(t, operations, rec, nil), operation.Undone, "container")
	})
}

// One that makes no progress is ended, with all of it.
func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := ready(t)
		w.stuck = true
		b, operations, stop := w.controld(t.TempDir())
		defer stop()
		began := time.Now()
		rec, err := b.Backup(t.Context(), Request{}, person)
		expect(t, ended(t, operations, rec, err), operation.Undone, "no progress for 10m0s")
		if took := time.Since(began); took < 10*time.Minute || took > 11*time.Minute || w.left() > 0 {
			t.Errorf("ended after %s, %d run", took, w.left())
		}
	})
}

// A long one that gets on is let be.
func TestLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := ready(t)
		w.copyTime = 30 * time.Hour
		b, operations, stop := w.controld(t.TempDir())
		defer stop()
		rec, err := b.Backup(t.Context(), Request{}, person)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Hour)
		running, err := operations.Get(rec.ID)
		if err != nil || running.Progress == nil || running.Progress.Total != 1000 || running.Progress.Done < 400 {
			t.Errorf("progress: %+v, %v", running.Progress, err)
		}
		time.Sleep(16 * time.Hour)
		expect(t, ended(t, operations, rec, nil), operation.Succeeded, "")
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := ready(t)
		b, operations, stop := w.controld(t.TempDir())
		defer stop()
		rec, err := operations.Cancel(t.Context(), underWay(t, b).ID, person)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, rec, operation.Cancelled, "")
		cleanup := ended(t, operations, operation.Record{ID: rec.FollowedBy}, nil)
		expect(t, cleanup, operation.Succeeded, "")
		if w.left() > 0 || len(w.history().copies) != 1 {
			t.Errorf("%d run, %d made", w.left(), len(w.history().copies)-1)
		}
		rec, err = b.Backup(t.Context(), Request{}, person)
		expect(t, ended(t, operations, rec, err), operation.Succeeded, "")
	})
}

// A second one is refused while one runs; a failover is not.
func TestBesideOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := ready(t)
		b, operations, stop := w.controld(t.TempDir())
		defer stop()
		first, err := b.Backup(t.Context(), Request{}, person)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if _, err := b.Backup(t.Context(), Request{}, person); err == nil || !strings.Contains(err.Error(), first.ID) {
			t.Errorf("a second one: %v", err)
		}
		began := time.Now()
		rec, err := operations.Start(t.Context(), operation.Spec{Kind: cluster.KindFailover, Mode: "planned", Caller: person}, nothing())
		expect(t, ended(t, operations, rec, err), operation.Succeeded, "")
		if took := time.Since(began); took > time.Second {
			t.Errorf("the failover waited %s", took)
		}
		if rec, err = operations.Get(first.ID); err != nil {
			t.Fatal(err)
		}
		expect(t, rec, operation.Cancelled, "gave way to failover")
		// It is made again, of who leads now.
		w.mu.Lock()
		w.primary = "two"
		w.mu.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go b.Watch(ctx)
		time.Sleep(5 * time.Minute)
		copies := w.history().copies
		if len(copies) != 2 || copies[1].Annotations[NotePrimary] != "c-two" || copies[1].Type != Incremental {
			t.Errorf("copies: %+v", copies)
		}
		if recs, _, err := operations.List(operation.Filter{Kind: KindBackup,
			Limit: 9}); err != nil || len(recs) != 3 { // the second one was refused
			t.Errorf("%d backups, %v", len(recs), err)
		}
	})
}

// nothing is a failover that has nothing to do.
func nothing() operation.Runnable {
	type state struct{}
	return operation.Work[state]{
		Prepare: func(context.Context, *state) (operation.Prepared, error) { return operation.Prepared{}, nil },
		Steps: func(*state) []operation.Step[state] {
			return []operation.Step[state]{{Name: "nothing", Do: func(context.Context, *state) error { return nil }}}
		},
	}
}
