package operation

import (
	"fmt"
	"slices"
	"time"
)

// A Resource is something that operations claim while they run.
type Resource string

// The resources.
const (
	Cluster Resource = "cluster" // the nodes' orders, the servers' settings, the pooler's entries
	Primary Resource = "primary" // who leads
	Commit  Resource = "commit"  // what commits wait for
	// Repository: that of the backups.
	Repository Resource = "repository"
	// Archive: WAL that is put into the archive by another than the server that leads.
	Archive Resource = "archive"
)

// A CallerKind is what sort of caller asks for an operation.
type CallerKind string

// The kinds of caller.
const (
	Person    CallerKind = "person"    // somebody with a token
	Daemon    CallerKind = "controld"  // its own upkeep
	Scheduler CallerKind = "scheduler" // at the time that was set for it
)

// An Answer is what becomes of a request while an operation runs that excludes it.
type Answer string

// The answers. What no row says is AnswerRefuse.
const (
	AnswerRefuse Answer = "refuse"
	AnswerWait   Answer = "wait"
	AnswerCancel Answer = "cancel" // the one that runs, and go
)

// A Fact is what a row's answer may depend on, as the request's Decide has found it.
type Fact string

// PrimaryGone says that the recorded primary is proved dead, or was not seen to lead lately.
const PrimaryGone Fact = "the primary is gone"

// A Table says of every kind of operation what it claims and gives way to.
type Table []Row

// A Row is what operations of a kind hold from their start to their end.
type Row struct {
	Kind      string
	Modes     []string // those that the row is for; none: all
	Exclusive []Resource
	Shared    []Resource
	// Yields are the rules by which it gives way, the first that fits counts.
	Yields []Yield
	// HoldsClients: it may have clients waiting, and is resumed first.
	HoldsClients bool
	// Restartable: a stop of the daemon leaves it at once, to be gone on with.
	Restartable bool
	// Loose: when it is cancelled it ends at once, and an operation "cleanup" takes
	// back what it did (see loose.go). The mode of that is this kind, and its row says
	// which of the claims it keeps.
	Loose bool
	// CancelCosts is what is lost when it is cancelled for another's sake because
	// the request says so (cancel_running). Empty: it is not.
	CancelCosts string
}

// A Yield is how an operation that runs answers one that it excludes. What is
// empty fits everything.
type Yield struct {
	To     string     // the kind that is asked for
	Mode   string     // its mode
	From   CallerKind // who asks for it
	Of     CallerKind // who has asked for the one that runs
	When   Fact
	How    Answer
	Within time.Duration // of AnswerWait: after it the request is refused; 0: it waits as long as it takes
}

// KindCleanup is the operation that cleans up after a cancelled one that is Loose.
const KindCleanup = "cleanup"

// Check finds what a table must not say: it is a fault of the program.
func (t Table) Check() error {
	for i, row := range t {
		for _, other := range t[:i] {
			if other.Kind == row.Kind && (len(row.Modes) == 0 || len(other.Modes) == 0) {
				return fmt.Errorf("table of claims: two rows for %q", row.Kind)
			}
		}
		if err := t.checkCleanup(row); err != nil {
			return err
		}
		for _, y := range row.Yields {
			if y.To != "" && !t.has(y.To) {
				return fmt.Errorf("table of claims: %q yields to %q, which is no kind", row.Kind, y.To)
			}
		}
	}
	return nil
}

// checkCleanup: a clean-up takes over claims of what it cleans up after, and no others,
// which it might have to wait for.
func (t Table) checkCleanup(row Row) error {
	if !row.Loose {
		return nil
	}
	at := slices.IndexFunc(t, func(r Row) bool { return r.Kind == KindCleanup && slices.Contains(r.Modes, row.Kind) })
	if at < 0 {
		return fmt.Errorf("table of claims: %q is loose, and no row says what its cleanup claims", row.Kind)
	}
	for i, x := range slices.Concat(t[at].Exclusive, t[at].Shared) {
		shared := i >= len(t[at].Exclusive) && slices.Contains(row.Shared, x)
		if !slices.Contains(row.Exclusive, x) && !shared {
			return fmt.Errorf("table of claims: the cleanup of %q claims %s, which %q does not, or not for itself", row.Kind, x, row.Kind)
		}
	}
	return nil
}

// rows are those of a kind, one for each of its modes that have one of their own.
func (t Table) rows(kind string) []Row {
	var out []Row
	for _, r := range t {
		if r.Kind == kind {
			out = append(out, r)
		}
	}
	return out
}

func (t Table) has(kind string) bool { return len(t.rows(kind)) > 0 }

// row is that of a kind in a mode. Where the mode is not decided it claims what any of
// the kind's rows claims. A kind that the table does not know claims everything: only
// the journal of another version can have one.
func (t Table) row(kind, mode string) Row {
	merged := Row{Kind: kind}
	for _, r := range t.rows(kind) {
		if len(r.Modes) == 0 || slices.Contains(r.Modes, mode) {
			return r
		}
		merged.Exclusive = append(merged.Exclusive, r.Exclusive...)
		merged.Shared = append(merged.Shared, r.Shared...)
	}
	if !t.has(kind) {
		for _, r := range t {
			merged.Exclusive = append(merged.Exclusive, slices.Concat(r.Exclusive, r.Shared)...)
		}
	}
	return merged
}

// Holds reports whether such an operation has x for itself.
func (t Table) Holds(rec Record, x Resource) bool {
	return slices.Contains(t.row(rec.Kind, rec.Mode).Exclusive, x)
}

// excludes reports whether operations of the two rows exclude each other.
func (r Row) excludes(other Row) bool {
	return r.needs(other) || other.needs(r)
}

// needs: r wants something for itself that the other one holds.
func (r Row) needs(other Row) bool {
	return slices.ContainsFunc(r.Exclusive, func(x Resource) bool {
		return slices.Contains(other.Exclusive, x) || slices.Contains(other.Shared, x)
	})
}

// A request is who asks for what, as the rules of giving way read it.
type request struct {
	kind, mode    string
	by            CallerKind
	facts         []Fact
	cancelRunning bool
}

// answers says how running, which has the row r, answers a request that it excludes.
func (r Row) answers(req request, running Record) (Answer, time.Duration) {
	for _, y := range r.Yields {
		if y.between(req, running) && (y.Mode == "" || y.Mode == req.mode) && (y.When == "" || slices.Contains(req.facts, y.When)) {
			return y.How, y.Within
		}
	}
	return AnswerRefuse, 0
}

// mayAnswer: in some mode, under some facts, the answer is another than AnswerRefuse.
func (r Row) mayAnswer(req request, running Record) bool {
	return slices.ContainsFunc(r.Yields, func(y Yield) bool { return y.How != AnswerRefuse && y.between(req, running) })
}

func (y Yield) between(req request, running Record) bool {
	return (y.To == "" || y.To == req.kind) && (y.From == "" || y.From == req.by) && (y.Of == "" || y.Of == running.CallerKind)
}

// mayCancel: the request says that the one that runs is to be cancelled for it.
func (r Row) mayCancel(req request) bool { return req.cancelRunning && r.CancelCosts != "" }
