package probe

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var base = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const ms = time.Millisecond

// history makes a report of workers whose transactions took 2 ms each.
func history(length time.Duration, workers ...[]Transaction) *Report {
	return &Report{Config: Config{Mode: Exec, Table: "probe"}, Base: base, Length: length, Ended: length, Transactions: workers}
}

// acked are transactions acknowledged at the given times, in ms.
func acked(at ...int) []Transaction {
	var ts []Transaction
	for _, a := range at {
		end := time.Duration(a) * ms
		ts = append(ts, Transaction{Start: end - 2*ms, End: end})
	}
	return ts
}

func failed(phase Phase, at int) Transaction {
	end := time.Duration(at) * ms
	return Transaction{Start: end - 2*ms, End: end, Failed: phase}
}

func at(millis int) time.Time { return base.Add(time.Duration(millis) * ms) }

func TestStall(t *testing.T) {
	steady := acked(10, 20, 30, 40, 50, 60, 70, 80, 90)
	for _, c := range []struct {
		name     string
		report   *Report
		from, to int
		want     Stall
	}{
		{"steady", history(100*ms, steady), 0, 100, Stall{From: at(0), To: at(10)}},
		{"one worker's gap is filled by another's commits",
			history(100*ms, acked(5, 95), acked(15, 35, 55, 75)), 0, 90, Stall{From: at(15), To: at(35)}},
		{"all workers together stand still",
			history(100*ms, acked(10, 20, 70), acked(15, 25, 75, 99)), 0, 100, Stall{From: at(25), To: at(70)}},
		{"a stall that began before the part counts whole",
			history(100*ms, acked(10, 20, 70, 80, 90)), 50, 100, Stall{From: at(20), To: at(70)}},
		{"a stall before the part does not",
			history(100*ms, acked(10, 60, 70, 80, 95)), 60, 95, Stall{From: at(80), To: at(95)}},
		{"a failed transaction is no commit",
			history(100*ms, append(acked(10, 20), failed(Insert, 50)), acked(90)), 0, 100, Stall{From: at(20), To: at(90)}},
		{"no commit until the end", history(100*ms, acked(10, 20)), 30, 100, Stall{From: at(20), To: at(100), Open: true}},
		{"a commit that was under way at the end", history(60*ms, acked(10, 20, 30, 70)), 0, 100, Stall{From: at(30), To: at(70)}},
		{"no commit at all", history(100*ms, nil), 0, 100, Stall{From: at(0), To: at(100), Open: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.report.Between(at(c.from), at(c.to)).Outage
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestStats(t *testing.T) {
	r := history(200*ms,
		append(acked(10, 20), failed(Insert, 110), failed(Insert, 120)),
		append(acked(15, 25), failed(Commit, 90), failed(Begin, 130)),
		acked(30, 160))
	r.FailedConnects = []FailedConnect{{End: 50 * ms}, {End: 125 * ms}}
	r.Openings = []Opening{
		{Start: 20 * ms, End: 22 * ms},              // before the outage
		{Start: 110 * ms, End: 165 * ms},            // held by it
		{Start: 170 * ms, End: 172 * ms, Err: "no"}, // failed
	}
	want := Stats{
		Acked: 1, Failed: 3, FailedPerConnection: 2, FailedConnects: 2,
		Outage:      Stall{From: at(30), To: at(160)},
		FirstCommit: 60 * ms,
		P50:         2 * ms, P99: 2 * ms, Max: 2 * ms,
		Openings: 2, OpeningMax: 55 * ms, OpeningsHeld: 1,
	}
	if diff := cmp.Diff(want, r.Since(at(100))); diff != "" {
		t.Error("since a mark:", diff)
	}
	if all := r.All(); all.Acked != 6 || all.Failed != 4 || all.FirstCommit != 10*ms || all.Openings != 3 {
		t.Errorf("the whole run: %+v", all)
	}
	if none := r.Between(at(170), at(171)); none.FirstCommit != -1 || none.P50 != 0 {
		t.Errorf("a part without commits: %+v", none)
	}
}

func TestQuantile(t *testing.T) {
	ten := []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for _, c := range []struct {
		sorted []int
		q      float64
		want   int
	}{
		{nil, 0.5, 0}, {[]int{7}, 0.99, 7}, {ten, 0, 1}, {ten, 0.5, 5}, {ten, 0.9, 9}, {ten, 0.95, 10}, {ten, 1, 10},
	} {
		if got := Quantile(c.sorted, c.q); got != c.want {
			t.Errorf("Quantile(%v, %v) = %d, want %d", c.sorted, c.q, got, c.want)
		}
	}
}

func TestJudge(t *testing.T) {
	sent := append(acked(10, 20), failed(Insert, 30), failed(Commit, 40), failed(Begin, 50))
	for _, c := range []struct {
		name string
		mode Mode
		read []ID
		want Verdict
	}{
		{"all there", Exec, []ID{{0, 0}, {0, 1}}, Verdict{Read: 2, Unknown: 2}},
		{"one is lost", Exec, []ID{{0, 1}}, Verdict{Read: 1, Unknown: 2, Lost: []ID{{0, 0}}}},
		{"one is there three times", Exec, []ID{{0, 0}, {0, 1}, {0, 1}, {0, 1}}, Verdict{Read: 4, Unknown: 2, Doubled: []ID{{0, 1}}}},
		{"an INSERT that failed may have been committed", Exec, []ID{{0, 0}, {0, 1}, {0, 2}},
			Verdict{Read: 3, Unknown: 2, UnknownRead: 1}},
		{"not inside a transaction", Tx, []ID{{0, 0}, {0, 1}, {0, 2}}, Verdict{Read: 3, Unknown: 1, Alien: []ID{{0, 2}}}},
		{"a COMMIT that failed may have worked, once", Tx, []ID{{0, 0}, {0, 1}, {0, 3}, {0, 3}},
			Verdict{Read: 4, Unknown: 1, UnknownRead: 1, Doubled: []ID{{0, 3}}}},
		{"nothing was sent when BEGIN failed", Tx, []ID{{0, 0}, {0, 1}, {0, 4}}, Verdict{Read: 3, Unknown: 1, Alien: []ID{{0, 4}}}},
		{"a number never sent, a worker never there", Exec, []ID{{0, 0}, {0, 1}, {0, 5}, {0, -1}, {1, 0}, {-1, 0}},
			Verdict{Read: 6, Unknown: 2, Alien: []ID{{0, 5}, {0, -1}, {1, 0}, {-1, 0}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := history(100*ms, sent)
			r.Config.Mode = c.mode
			c.want.Sent, c.want.Acked = 5, 2
			got := r.judge(c.read)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if wrong := len(c.want.Lost)+len(c.want.Doubled)+len(c.want.Alien) > 0; (got.Err() != nil) != wrong {
				t.Errorf("Err() = %v", got.Err())
			}
		})
	}
}

func TestVerdictNamesSome(t *testing.T) {
	v := Verdict{Acked: 9, Read: 2, Lost: []ID{{0, 1}, {0, 2}, {0, 3}, {1, 4}, {1, 5}, {1, 6}}, Doubled: []ID{{3, 3}}}
	want := "of 9 acknowledged and 2 read rows: 6 (0:1, 0:2, 0:3, 1:4, 1:5, ...) lost, 1 (3:3) there twice, 0 never committed but there"
	if got := v.Err().Error(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
