// Package operation runs long work as lists of named steps. It owns the journal
// that outlives the daemon, the audit of every attempt, the one rule of which
// operations exclude each other, and the stream of events. What the steps do
// belongs to the packages that define them.
package operation

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// A State is where an operation stands.
type State string

// The states of an operation. A running one is open: work on it goes on.
//
// An incomplete one has failed past its point of no return. While it has no end it is
// open, too, and is tried again. With an end it was given up there; or it was undone,
// and that has left a cluster that nobody leads.
const (
	Running    State = "running"
	Succeeded  State = "succeeded"
	Refused    State = "refused"
	Undone     State = "undone"
	Incomplete State = "incomplete"
	Cancelled  State = "cancelled"
)

// A StepState is where one step of an operation stands.
type StepState string

// The states of a step.
const (
	StepPending  StepState = "pending"
	StepRunning  StepState = "running"
	StepDone     StepState = "done"
	StepFailed   StepState = "failed"
	StepRetrying StepState = "retrying"
	StepUndone   StepState = "undone"
)

// A StepRecord tells of one step.
type StepRecord struct {
	Name      string        `json:"name"`
	State     StepState     `json:"state"`
	StartedAt time.Time     `json:"started_at,omitzero"`
	Duration  time.Duration `json:"duration,omitempty"` // by the monotonic clock
	Error     string        `json:"error,omitempty"`
}

// A Check is one precheck with the numbers that decided it.
type Check struct {
	Name    string         `json:"name"`
	OK      bool           `json:"ok"`
	Detail  string         `json:"detail"`
	Numbers map[string]any `json:"numbers,omitempty"`
	Problem string         `json:"-"` // the type of the refusal when not OK, such as /problems/no-candidate
}

// A Record is an operation as the journal, the audit and the API know it.
type Record struct {
	ID          string         `json:"id"` // UUIDv7: sorts by time
	Kind        string         `json:"kind"`
	Mode        string         `json:"mode,omitempty"`
	State       State          `json:"state"`
	RequestedBy string         `json:"requested_by"`
	CallerKind  CallerKind     `json:"caller_kind,omitempty"`
	Reason      string         `json:"reason,omitempty"`
	StartedAt   time.Time      `json:"started_at"`
	EndedAt     time.Time      `json:"ended_at,omitzero"`
	Steps       []StepRecord   `json:"steps"`
	Checks      []Check        `json:"checks,omitempty"`
	Result      map[string]any `json:"result,omitempty"` // from, to, pause_ms, lost_bytes, ...
	Problem     *Problem       `json:"problem,omitempty"`
	// Follows is the operation that this one goes on from, such as the
	// failover whose old primary is rejoined. FollowedBy points back.
	Follows    string `json:"follows,omitempty"`
	FollowedBy string `json:"followed_by,omitempty"`
	// GaveWayTo is the operation for whose sake this one was cancelled and let go.
	GaveWayTo string `json:"gave_way_to,omitempty"`
	// WaitsFor is the operation whose end this one waits for; it has begun nothing.
	WaitsFor string `json:"waits_for,omitempty"`
	// Progress is the latest of the running step. It is not kept.
	Progress *Progress `json:"-"`
}

// Open reports whether work on the operation goes on. One that was given up past
// its point of no return stays incomplete, and has ended.
func (r Record) Open() bool { return r.EndedAt.IsZero() }

// A Problem is why an operation was refused or failed: a stable type, what to
// do next, and the numbers that led to it.
type Problem struct {
	Type    string         `json:"type"` // such as /problems/no-candidate
	Detail  string         `json:"detail"`
	Numbers map[string]any `json:"numbers,omitempty"`
}

// Error makes a Problem the error that a precheck returns to refuse.
func (p *Problem) Error() string { return p.Detail }

// Refuse makes a refusal of type kind, such as "no-candidate".
func Refuse(kind string, numbers map[string]any, format string, args ...any) *Problem {
	return &Problem{Type: "/problems/" + kind, Detail: fmt.Sprintf(format, args...), Numbers: numbers}
}

// A Caller is who asks for an operation.
type Caller struct {
	Name string     // in the audit: the token's role, or controld for its own loops
	Kind CallerKind // empty: Person
	// Idempotency binds a retried request to the operation it started; nil: none.
	Idempotency *Idempotency
}

// Idempotency is a client's Idempotency-Key and the request it came with.
type Idempotency struct {
	Key    string `json:"key"`
	Caller string `json:"caller"`
	Method string `json:"method"`
	Path   string `json:"path"`
	Body   []byte `json:"body"` // a hash
}

func (c Caller) kind() CallerKind {
	if c.Kind == "" {
		return Person
	}
	return c.Kind
}

// Errors that a caller tells apart.
var (
	ErrNotFound  = errors.New("no such operation")
	ErrKeyReused = errors.New("idempotency key was used with another request")
	ErrEnded     = errors.New("operation has ended")
	ErrStopping  = errors.New("controld is stopping")
)

// Busy is the refusal of an operation that an open one excludes.
type Busy struct {
	Running Record
	// CancelCosts is what a request with cancel_running would give up; empty: the
	// one that runs is not cancelled for another's sake.
	CancelCosts string
}

func (b *Busy) Error() string {
	text := fmt.Sprintf("%s %s is running; wait for it (GET /operations/%s) or cancel it", b.Running.Kind, b.Running.ID, b.Running.ID)
	if b.CancelCosts == "" {
		return text
	}
	return fmt.Sprintf("%s. With cancel_running it is cancelled first: %s", text, b.CancelCosts)
}

// An Event is one change of an operation, as the event stream sends it: the
// record after the change, or, of type progress, that alone.
type Event struct {
	Seq      uint64    `json:"seq"` // rising within the process
	At       time.Time `json:"at"`
	Type     string    `json:"type"` // operation, step, progress
	Step     string    `json:"step,omitempty"`
	ID       string    `json:"operation_id"`
	Record   Record    `json:"operation"`
	Progress *Progress `json:"progress,omitempty"`
}

// Ended: with this change the operation has ended.
func (e Event) Ended() bool { return e.Type == EventOperation && !e.Record.Open() }

// The types of event.
const (
	EventOperation = "operation"
	EventStep      = "step"
	EventProgress  = "progress"
)

// A Spec is what to start.
type Spec struct {
	Kind    string
	Mode    string
	Reason  string
	Caller  Caller
	Follows string
	Checks  []Check
	// Foreseen is whom it would be about. It is the result of an operation that is
	// refused before it could look.
	Foreseen map[string]any
	// Params is what a restarted daemon needs to build the same work again.
	Params json.RawMessage
	// CancelRunning cancels what excludes it and may be cancelled, instead of being refused.
	CancelRunning bool
}

// record is what the audit first holds of the request.
func (s Spec) record(id string, state State) Record {
	return Record{
		ID: id, Kind: s.Kind, Mode: s.Mode, State: state, RequestedBy: s.Caller.Name, CallerKind: s.Caller.kind(), Reason: s.Reason,
		StartedAt: time.Now().UTC(), Steps: []StepRecord{}, Result: s.Foreseen,
	}
}
