package operation

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestAFailoverIsAnsweredByTheRow: with each sort open, at once unless the row says wait.
func TestAFailoverIsAnsweredByTheRow(t *testing.T) {
	for _, tt := range []struct {
		running       string
		cancelRunning bool
		busy          bool
		after         time.Duration // until it has begun, or is refused
		left          State         // the one that ran
	}{
		{kindCopy, false, false, 0, Cancelled},
		{kindLoad, false, true, 10 * time.Second, Running},
		{kindAgain, false, false, 0, Cancelled},
		{kindHeavy, false, true, 0, Running},
		{kindHeavy, true, false, 0, Cancelled},
		{kindProud, false, true, 0, Running},
		{kindProud, true, true, 0, Running},
	} {
		t.Run(tt.running, func(t *testing.T) {
			onSorts(t, func(b *bench) {
				b.build = func(Record, json.RawMessage) (Runnable, error) { return (&script{}).work(), nil }
				running := b.begin(tt.running, holding())
				for _, x := range []Resource{Cluster, Commit} {
					if held := b.m.Holding(x); len(held) > 0 {
						t.Errorf("%s holds %s, and supervision would stop for it", tt.running, x)
					}
				}
				began := time.Now()
				s := &script{}
				spec := Spec{Kind: "failover", Caller: Caller{Name: "t"}, CancelRunning: tt.cancelRunning}
				rec, err := b.m.Start(context.Background(), spec, s.work())
				if took := time.Since(began); took != tt.after {
					t.Errorf("answered after %s, want %s", took, tt.after)
				}
				var busy *Busy
				if errors.As(err, &busy) != tt.busy {
					t.Fatalf("%v, want busy %v", err, tt.busy)
				}
				if tt.busy && busy.Running.ID != running.ID {
					t.Errorf("refused by: %v", busy)
				}
				costs := "cancel_running it is cancelled first: an hour"
				if tt.busy && strings.Contains(busy.Error(), costs) != (tt.running == kindHeavy) {
					t.Errorf("refused, and what cancel_running costs: %v", busy)
				}
				if !tt.busy {
					if rec, err = b.m.Wait(context.Background(), rec.ID); err != nil || rec.State != Succeeded {
						t.Errorf("%s, %v", rec.State, err)
					}
				}
				if got := b.state(running.ID); got != tt.left {
					t.Errorf("%s is %s, want %s", tt.running, got, tt.left)
				}
			})
		})
	}
}

// TestAFailoverWaits: it begins when what it waits for ends within the row's time.
func TestAFailoverWaits(t *testing.T) {
	onSorts(t, func(b *bench) {
		b.begin(kindLoad, &script{do: acts{"b": taking(4 * time.Second)}})
		began := time.Now()
		rec, err := b.start("failover", &script{})
		if took := time.Since(began); err != nil || took != 4*time.Second {
			t.Errorf("began after %s: %v", took, err)
		}
		if rec.WaitsFor != "" {
			t.Errorf("it has begun, and still waits for %s", rec.WaitsFor)
		}
	})
}

// TestWaiting: it says what it waits for, holds nothing, can be cancelled, and is
// gone on with by the next process if it can be.
func TestWaiting(t *testing.T) {
	for _, tt := range []struct {
		kind  string
		what  string
		state State
		trace string
	}{
		{kindTidy, "the other ends", Succeeded, "a b c leap d e"},
		{kindTidy, "cancelled", Cancelled, ""},
		{kindTidy, "crash", Succeeded, "a b c leap d e"},
		{kindOnce, "crash", Undone, ""},
		{kindTidy, "stop", Succeeded, "a b c leap d e"},
	} {
		t.Run(tt.kind+" "+tt.what, func(t *testing.T) {
			onSorts(t, func(b *bench) {
				open := make(chan struct{})
				loading := &script{do: acts{"b": hold(open)}, policy: Work[scriptState]{Forward: true}}
				load := b.begin(kindLoad, loading)
				s := &script{policy: Work[scriptState]{Forward: tt.kind == kindTidy}}
				rec := b.begin(tt.kind, s)
				time.Sleep(time.Hour)
				if rec, _ = b.m.Get(rec.ID); rec.WaitsFor != load.ID || rec.State != Running || s.trace() != "" {
					t.Fatalf("%s waits for %q after %q", rec.State, rec.WaitsFor, s.trace())
				}
				if held := b.m.Holding(dataset); len(held) != 1 || held[0].ID != load.ID {
					t.Errorf("the data set is held by %+v", held)
				}
				b.build = func(r Record, _ json.RawMessage) (Runnable, error) {
					if r.Kind == kindLoad {
						return loading.work(), nil
					}
					return s.work(), nil
				}
				switch tt.what {
				case "cancelled":
					if _, err := b.m.Cancel(context.Background(), rec.ID, Caller{Name: "t"}); err != nil {
						t.Error(err)
					}
				case "crash":
					b.crash(func() {})
					go func() { _ = b.m.Resume(context.Background()) }()
				case "stop":
					began := time.Now()
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					defer cancel()
					if err := b.m.Stop(ctx); err != nil {
						t.Error(err)
					}
					if took := time.Since(began); took > time.Second {
						t.Errorf("stopped after %s", took)
					}
					b.crash(func() {})
					go func() { _ = b.m.Resume(context.Background()) }()
				}
				synctest.Wait()
				close(open)
				time.Sleep(time.Minute)
				if rec, _ = b.m.Get(rec.ID); rec.State != tt.state || s.trace() != tt.trace || rec.WaitsFor != "" {
					t.Errorf("%s after %q, waits for %q, want %s after %q", rec.State, s.trace(), rec.WaitsFor, tt.state, tt.trace)
				}
			})
		})
	}
}

// TestDecidedBeforeAnythingIsClaimed: the mode is one before the rules are asked, and
// is decided anew when what excluded the operation has ended.
func TestDecidedBeforeAnythingIsClaimed(t *testing.T) {
	onSorts(t, func(b *bench) {
		decided := 0
		w := func(mode string) *script {
			return &script{policy: Work[scriptState]{Decide: func(context.Context, *scriptState) (Decision, error) {
				decided++
				return Decision{Mode: mode}, nil
			}, Prepare: func(context.Context, *scriptState) (Prepared, error) { return Prepared{}, nil }}}
		}
		rejoin := func() Record {
			spec := Spec{Kind: "rejoin", Caller: Caller{Name: "controld", Kind: Daemon}}
			rec, err := b.m.Start(context.Background(), spec, holding().work())
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return rec
		}
		running := rejoin()
		rec, err := b.start("failover", w("emergency"))
		if err != nil || rec.Mode != "emergency" || b.state(running.ID) != Cancelled || decided != 2 {
			t.Errorf("%+v, %v, decided %d times", rec, err, decided)
		}
		synctest.Wait()
		decided = 0
		running = rejoin()
		time.AfterFunc(3*time.Second, func() { _, _ = b.m.Cancel(context.Background(), running.ID, Caller{Name: "t"}) })
		rec, err = b.start("failover", w("planned"))
		if err != nil || rec.Mode != "planned" || decided != 2 {
			t.Errorf("%+v, %v, decided %d times", rec, err, decided)
		}
		synctest.Wait()
		decided = 0
		b.begin(kindProud, holding())
		if _, err := b.start("failover", w("planned")); !errors.As(err, new(*Busy)) || decided != 0 {
			t.Errorf("refused in any mode: %v, decided %d times", err, decided)
		}
	})
}

// All that gives way is cancelled at once, however long the decision takes.
func TestSeveralGiveWay(t *testing.T) {
	onSorts(t, func(b *bench) {
		var running []Record
		for _, kind := range []string{"rejoin", "protect"} {
			rec, err := b.m.Start(context.Background(), Spec{Kind: kind, Caller: Caller{Name: "controld", Kind: Daemon}}, holding().work())
			if err != nil {
				t.Fatal(err)
			}
			running = append(running, rec)
		}
		s := &script{policy: Work[scriptState]{Decide: func(context.Context, *scriptState) (Decision, error) {
			time.Sleep(6 * time.Second)
			return Decision{Mode: "emergency"}, nil
		}}}
		if rec := b.run(s); rec.State != Succeeded {
			t.Errorf("%s %+v", rec.State, rec.Problem)
		}
		for _, rec := range running {
			if got := b.state(rec.ID); got != Cancelled {
				t.Errorf("%s is %s", rec.Kind, got)
			}
		}
	})
}

// What gives way and does not end is waited for, 5 s, and then refuses.
func TestWhatGivesWayHasFiveSeconds(t *testing.T) {
	for _, tt := range []struct {
		takes, after time.Duration
		busy         bool
	}{{3 * time.Second, 3 * time.Second, false}, {20 * time.Second, 5 * time.Second, true}} {
		onSorts(t, func(b *bench) {
			running := b.begin(kindAgain, &script{do: acts{"b": taking(tt.takes)}})
			began := time.Now()
			rec, err := b.start("failover", &script{})
			var busy *Busy
			if took := time.Since(began); errors.As(err, &busy) != tt.busy || took != tt.after {
				t.Errorf("answered %+v, %v after %s, want busy %v after %s", rec, err, took, tt.busy, tt.after)
			}
			if tt.busy && busy.Running.ID != running.ID {
				t.Errorf("refused by %s, want %s", busy.Running.ID, running.ID)
			}
			time.Sleep(time.Minute)
			if got := b.state(running.ID); got != Cancelled {
				t.Errorf("what gave way is %s", got)
			}
		})
	}
}

// Also what another process has left gives way, once it is resumed.
func TestAFailoverMeetsWhatWasLeft(t *testing.T) {
	for _, tt := range []struct {
		resumed, after time.Duration
		busy           bool
	}{{2 * time.Second, 2 * time.Second, false}, {time.Minute, 5 * time.Second, true}} {
		onSorts(t, func(b *bench) {
			gone := make(chan struct{})
			dies := func(context.Context) error { <-gone; return errBoom }
			left := b.begin(kindAgain, &script{do: acts{"b": dies}})
			b.crash(func() { close(gone) })
			b.build = func(Record, json.RawMessage) (Runnable, error) { return holding().work(), nil }
			time.AfterFunc(tt.resumed, func() { _ = b.m.Resume(context.Background()) })
			began := time.Now()
			rec, err := b.start("failover", &script{})
			var busy *Busy
			if took := time.Since(began).Round(100 * time.Millisecond); errors.As(err, &busy) != tt.busy || took != tt.after {
				t.Errorf("answered %+v, %v after %s, want busy %v after %s", rec, err, took, tt.busy, tt.after)
			}
			if tt.busy && busy.Running.ID != left.ID {
				t.Errorf("refused by %s, want %s", busy.Running.ID, left.ID)
			}
			time.Sleep(2 * time.Minute)
		})
	}
}

// What cannot be cancelled, since the disk refuses its end, is named at once.
func TestWhatCannotGiveWay(t *testing.T) {
	onSorts(t, func(b *bench) {
		b.loud = true
		b.begin(kindCopy, holding())
		if err := b.j.db.Close(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		rec, err := b.start("failover", &script{})
		if rec.State != Refused || err == nil || !strings.Contains(err.Error(), "cancel copy") || time.Since(began) != 0 {
			t.Errorf("%s after %s: %v", rec.State, time.Since(began), err)
		}
		b.crash(func() {})
	})
}

// Who is refused by its own decision has nobody cancelled for that. What would only be
// waited for may change what the decision sees.
func TestNobodyGivesWayToWhatIsRefused(t *testing.T) {
	for _, tt := range []struct {
		running string
		after   time.Duration
		decided int
		busy    bool
	}{
		{"", 0, 1, false},
		{kindCopy, 0, 1, false},
		{kindLoad, 4 * time.Second, 2, false},
		{kindProud, 0, 0, true},
	} {
		t.Run("beside "+tt.running, func(t *testing.T) {
			onSorts(t, func(b *bench) {
				var running Record
				if tt.running != "" {
					running = b.begin(tt.running, &script{do: acts{"b": taking(4 * time.Second)}})
				}
				decided := 0
				s := &script{policy: Work[scriptState]{Decide: func(context.Context, *scriptState) (Decision, error) {
					decided++
					return Decision{}, Refuse("no-candidate", nil, "none")
				}}}
				began := time.Now()
				rec, err := b.start("failover", s)
				if took := time.Since(began); took != tt.after || decided != tt.decided {
					t.Errorf("refused after %s and %d decisions, want %s and %d", took, decided, tt.after, tt.decided)
				}
				if busy := errors.As(err, new(*Busy)); busy != tt.busy {
					t.Errorf("%v, want busy %v", err, tt.busy)
				} else if !busy && (rec.State != Refused || rec.Problem.Type != "/problems/no-candidate") {
					t.Errorf("%+v, %v", rec, err)
				}
				time.Sleep(time.Minute)
				if running.ID != "" && b.state(running.ID) != Succeeded {
					t.Errorf("%s is %s", tt.running, b.state(running.ID))
				}
			})
		})
	}
}

// A decision beside which something has ended is made anew, but not for ever.
func TestADecisionIsMadeAnewTwentyTimes(t *testing.T) {
	onSorts(t, func(b *bench) {
		decided := 0
		s := &script{policy: Work[scriptState]{Decide: func(context.Context, *scriptState) (Decision, error) {
			decided++
			if _, err := b.start("protect", &script{}); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			return Decision{}, nil
		}}}
		rec, err := b.start("failover", s)
		if rec.State != Refused || err == nil || rec.Problem.Type != "/problems/operation-running" || decided != 20 {
			t.Errorf("%s after %d decisions: %v", rec.State, decided, err)
		}
	})
}

// A dry run tells what a request would meet.
func TestWhatIsInTheWay(t *testing.T) {
	for _, tt := range []struct {
		running, asked string
		cancelRunning  bool
		says           string
		busy           bool
	}{
		{"protect", kindLoad, false, "no other operation is in the way", false},
		{kindLoad, "failover", false, "load ID would be waited for, 10s at the most", false},
		{kindLoad, kindTidy, false, "load ID would be waited for", false},
		{kindCopy, "failover", false, "copy ID would be cancelled", false},
		{kindHeavy, "failover", true, "heavy ID would be cancelled", false},
		{kindHeavy, "failover", false, "heavy ID is running; wait for it (GET /operations/ID) or cancel it." +
			" With cancel_running it is cancelled first: an hour", true},
		{kindProud, "failover", true, "proud ID is running; wait for it (GET /operations/ID) or cancel it", true},
	} {
		t.Run(tt.asked+" beside "+tt.running, func(t *testing.T) {
			onSorts(t, func(b *bench) {
				b.build = func(Record, json.RawMessage) (Runnable, error) { return (&script{}).work(), nil }
				running := b.begin(tt.running, holding())
				what, busy := b.m.InTheWay(tt.asked, Decision{}, tt.cancelRunning)
				if got := strings.ReplaceAll(what, running.ID, "ID"); got != tt.says {
					t.Errorf("%q, want %q", got, tt.says)
				}
				if (busy != nil) != tt.busy || busy != nil && busy.Running.ID != running.ID {
					t.Errorf("busy %v, want %v", busy, tt.busy)
				}
				if rec, err := b.m.Get(running.ID); err != nil || !rec.Open() {
					t.Errorf("%+v, %v", rec, err)
				}
			})
		})
	}
}
