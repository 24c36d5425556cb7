package operation

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgress: the latest value is seen while the step runs, with its rate and what
// is left, two events a second at the most, and nothing of it on the disk.
func TestProgress(t *testing.T) {
	onBench(t, func(b *bench) {
		const step, perStep, total = 50 * time.Millisecond, 100, 120_000
		s := &script{do: acts{
			"b": func(ctx context.Context) error {
				for done := int64(0); done <= total; done += perStep {
					Report(ctx, Progress{Phase: "copy", Done: done, Total: total, Unit: "bytes"})
					time.Sleep(step)
				}
				return nil
			},
		}}
		rec, err := b.start("rejoin", s)
		if err != nil {
			t.Fatal(err)
		}
		events, stop := b.m.Subscribe(rec.ID)
		defer stop()
		time.Sleep(30*time.Second + step/2)
		rec, err = b.m.Get(rec.ID)
		if err != nil || rec.Progress == nil {
			t.Fatalf("no progress, %v", err)
		}
		p := *rec.Progress
		if p.Done != 60_000 || p.Phase != "copy" || math.Abs(p.Rate-2000) > 1 || p.ETA.Round(time.Second) != 30*time.Second {
			t.Errorf("after half a minute: %+v", p)
		}
		if kept, err := b.j.get(rec.ID); err != nil || kept.Record.Progress != nil {
			t.Errorf("on the disk: %+v, %v", kept.Record.Progress, err)
		}
		told := 0
		for len(events) > 0 {
			ev := <-events
			if ev.Type != EventProgress {
				continue
			}
			told++
			if ev.Progress == nil || ev.Record.ID != "" || ev.ID != rec.ID || ev.Ended() {
				t.Errorf("event: %+v", ev)
			}
		}
		if told < 59 || told > 61 {
			t.Errorf("%d events of progress in 30 s", told)
		}
		time.Sleep(time.Minute)
		if rec, _ = b.m.Get(rec.ID); rec.State != Succeeded || rec.Progress != nil {
			t.Errorf("after its end: %s, %+v", rec.State, rec.Progress)
		}
	})
	Report(t.Context(), Progress{}) // outside of an operation: nothing
}

func TestProgressThatIsNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m meter
		unit := "rows"
		far := func(phase string, done, total int64, after time.Duration) Progress {
			time.Sleep(after)
			p, _ := m.report(Progress{Phase: phase, Done: done, Total: total, Unit: unit}, time.Now())
			return p
		}
		if p := far("read", 5, 0, 0); p.Rate != 0 || p.ETA != 0 || p.Total != 0 {
			t.Errorf("at first: %+v", p)
		}
		if p := far("read", 15, 0, time.Second); p.Rate != 10 || p.ETA != 0 {
			t.Errorf("without a total: %+v", p)
		}
		if p := far("read", 15, 100, 0); p.Rate != 10 {
			t.Errorf("twice in a moment: %+v", p)
		}
		if p := far("read", 200, 100, time.Second); p.ETA != 0 {
			t.Errorf("more than was thought: %+v", p)
		}
		if p := far("write", 1, 100, time.Second); p.Rate != 0 || p.ETA != 0 {
			t.Errorf("another phase: %+v", p)
		}
		far("write", 1001, 0, time.Second)
		if p := far("write", 1001, 0, time.Minute); p.Rate > 200 { // it stands still
			t.Errorf("after a minute of nothing: %+v", p)
		}
		if p := far("write", 1501, 2001, time.Second); p.Rate == 0 || p.ETA != time.Duration(500/p.Rate*float64(time.Second)) {
			t.Errorf("on the way: %+v", p)
		}
		if p := far("write", 1500, 2001, time.Second); p.Rate != 0 {
			t.Errorf("fewer than before: %+v", p)
		}
		far("write", 1600, 2001, time.Second)
		unit = "bytes"
		if p := far("write", 9000, 9999, time.Second); p.Rate != 0 {
			t.Errorf("another unit: %+v", p)
		}
	})
}

// A rate is the plain average at first; later the last ten seconds count most.
func TestSmoothed(t *testing.T) {
	const second = time.Second
	for _, tt := range []struct {
		name           string
		rate, done     float64
		step, measured time.Duration
		want           float64
	}{
		{"the first step", 0, 300, 2 * second, 0, 150},
		{"a second one, as long and faster", 100, 200, second, second, 150},
		{"one of many", 100, 210, second, 60 * second, 110},
		{"it stands still", 110, 0, second, 60 * second, 100},
		{"a long step", 100, 8000, 40 * second, 60 * second, 180},
		{"no time has passed", 100, 50, 0, 60 * second, 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := smoothed(tt.rate, tt.done, tt.step, tt.measured); math.Abs(got-tt.want) > 1e-9 {
				t.Errorf("%v a second, want %v", got, tt.want)
			}
		})
	}
}
