package probe

import (
	"cmp"
	"slices"
	"time"
)

// A Phase is a part of a client's life in which something can fail.
type Phase uint8

// The phases. None: nothing failed, the commit is acknowledged.
const (
	None Phase = iota
	Begin
	Insert
	Commit
)

func (p Phase) String() string {
	return [...]string{"none", "begin", "insert", "commit"}[p]
}

// A Transaction is one attempt to write one row. Times are on the run's clock.
type Transaction struct {
	Start, End time.Duration
	Failed     Phase
	Connects   uint16 // how many connects were needed before it
}

// A Failure is a transaction that got an error, in words.
type Failure struct {
	Worker, Seq int64
	At          time.Duration
	Phase       Phase
	Err         string
}

// A FailedConnect is an attempt of a worker to connect.
type FailedConnect struct {
	Worker     int64
	Start, End time.Duration
	Err        string
}

// An Opening is one fresh connection and its select 1.
type Opening struct {
	Start, LoggedIn, End time.Duration
	Err                  string
}

// A Report is everything that one run saw.
type Report struct {
	Config Config
	Run    int64
	Base   time.Time     // when the run's clock was 0
	Length time.Duration // of the run, until it was to stop
	Ended  time.Duration // when the last transaction under way then had ended

	Transactions   [][]Transaction // by worker and number
	Failures       []Failure
	FailedConnects []FailedConnect
	Openings       []Opening
}

// A Stall is the longest time between two successive acknowledged commits of
// all workers together.
type Stall struct {
	From, To time.Time
	Open     bool // no commit was acknowledged after From until the run ended
}

// Length of the stall.
func (s Stall) Length() time.Duration { return s.To.Sub(s.From) }

// Stats are the figures of one part of a run.
type Stats struct {
	Acked               int
	Failed              int // transactions that got an error
	FailedPerConnection int // of the worker that had the most
	FailedConnects      int // of the workers and of fresh connections
	Outage              Stall
	FirstCommit         time.Duration // from the start of the part; -1: none
	P50, P99, Max       time.Duration // of the acknowledged transactions

	Openings     int // fresh connections
	OpeningMax   time.Duration
	OpeningsHeld int // those under way during the outage: begun in it, or held by it
}

// All is the figures of the whole run.
func (r *Report) All() Stats { return r.Since(r.Base) }

// Since is the figures from a mark on.
func (r *Report) Since(mark time.Time) Stats { return r.Between(mark, r.Base.Add(r.Ended)) }

// Between is the figures of what ended between two marks. The outage is the
// longest that touches this part, so it may have begun before.
func (r *Report) Between(from, to time.Time) Stats {
	a, b := from.Sub(r.Base), to.Sub(r.Base)
	s := Stats{Outage: r.stall(a, b), FirstCommit: -1}
	r.countTransactions(&s, a, b)
	for _, c := range r.FailedConnects {
		if within(c.End, a, b) {
			s.FailedConnects++
		}
	}
	r.countOpenings(&s, a, b)
	return s
}

func within(at, a, b time.Duration) bool { return at >= a && at <= b }

func (r *Report) countTransactions(s *Stats, a, b time.Duration) {
	var took []time.Duration
	for _, worker := range r.Transactions {
		failed := 0
		for _, t := range worker {
			switch {
			case !within(t.End, a, b):
			case t.Failed != None:
				failed++
			default:
				took = append(took, t.End-t.Start)
				if s.FirstCommit < 0 || t.End-a < s.FirstCommit {
					s.FirstCommit = t.End - a
				}
			}
		}
		s.Failed += failed
		s.FailedPerConnection = max(s.FailedPerConnection, failed)
	}
	s.Acked = len(took)
	slices.Sort(took)
	s.P50, s.P99, s.Max = Quantile(took, 0.5), Quantile(took, 0.99), Quantile(took, 1)
}

func (r *Report) countOpenings(s *Stats, a, b time.Duration) {
	from, to := s.Outage.From.Sub(r.Base), s.Outage.To.Sub(r.Base)
	for _, o := range r.Openings {
		if !within(o.End, a, b) {
			continue
		}
		s.Openings++
		if o.Err != "" {
			s.FailedConnects++
			continue
		}
		s.OpeningMax = max(s.OpeningMax, o.End-o.Start)
		if o.Start < to && o.End > from {
			s.OpeningsHeld++
		}
	}
}

// stall returns the longest stall that overlaps a to b. The run's own start and
// end count as commits, so that a run that never wrote is one open stall.
func (r *Report) stall(a, b time.Duration) Stall {
	acks := r.acks()
	commits := len(acks)
	if commits == 0 || acks[commits-1] < r.Length {
		acks = append(acks, r.Length)
	}
	var longest, from, last time.Duration
	open := false
	for i, at := range acks {
		if at > a && last < b && at-last > longest {
			longest, from, open = at-last, last, i == commits
		}
		last = at
	}
	return Stall{From: r.Base.Add(from), To: r.Base.Add(from + longest), Open: open}
}

// acks returns the times of all acknowledged commits in order.
func (r *Report) acks() []time.Duration {
	var acks []time.Duration
	for _, worker := range r.Transactions {
		for _, t := range worker {
			if t.Failed == None {
				acks = append(acks, t.End)
			}
		}
	}
	slices.Sort(acks)
	return acks
}

// Quantile returns the smallest of the sorted values that the part q of them does not
// exceed; 0 where there is none.
func Quantile[T cmp.Ordered](sorted []T, q float64) T {
	var zero T
	if len(sorted) == 0 {
		return zero
	}
	rank := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(rank, 0), len(sorted)-1)]
}
