// Package job is how controld has commands run in a container whose init takes them over
// a unix socket: what is asked, what is answered, and the client. The init's side is
// package node/runner.
//
// A command belongs to the init, not to who asked for it. It goes on when controld ends,
// and a later controld finds it by the identity that was chosen, and written down, before
// it was started. What the init does not know does not run: jobs end with its container.
package job

import (
	"errors"
	"fmt"
	"regexp"
	"time"
)

// A Spec is a command to run.
type Spec struct {
	// Args are the program, one that the init knows, and its arguments.
	Args []string `json:"args"`
	// Idle: it gets processor and disk only where nobody else wants them.
	Idle bool `json:"idle,omitempty"`
	// Limit is how long it may take; then the init ends it.
	Limit time.Duration `json:"limit"`
}

// A Status is what is known of a job.
type Status struct {
	ID        string    `json:"id"`
	Args      []string  `json:"args"`
	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at,omitzero"` // zero: it runs
	// ExitCode is what a shell would report: 128 + n for one killed by signal n.
	ExitCode int `json:"exit_code"`
	// Ended says why the init has ended it; empty: it has not.
	Ended string `json:"ended,omitempty"`
	// Stdout and Stderr are what it has said; of a running one, nothing.
	Stdout string `json:"stdout,omitempty"`
	Stderr string `json:"stderr,omitempty"`
	// Cut: it said more than is kept of it.
	Cut bool `json:"cut,omitempty"`
}

// Running reports whether the job has not ended.
func (s Status) Running() bool { return s.EndedAt.IsZero() }

// SocketFile is the name of the socket in the volume that the two share.
const SocketFile = "jobs.sock"

// LongestLimit is the longest time that a job may be given.
const LongestLimit = 30 * 24 * time.Hour

var idForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// CheckID refuses what is no identity of a job.
func CheckID(id string) error {
	if !idForm.MatchString(id) {
		return fmt.Errorf("%q is no identity of a job: letters, digits and . _ -, at most 100", id)
	}
	return nil
}

// Errors that a caller tells apart.
var (
	// ErrUnknown: there is no such job, or no longer.
	ErrUnknown = errors.New("no such job")
	// ErrOther: another job has that identity.
	ErrOther = errors.New("another job has this identity")
	// ErrAway: nobody answers where the init should be.
	ErrAway = errors.New("the container's init does not answer")
)
