package operation

import (
	"context"
	"fmt"
	"time"
)

// NewCheck is a precheck named name. problem is the type of the refusal where it is not
// ok, without its path; format says what was found either way.
func NewCheck(name string, ok bool, problem string, numbers map[string]any, format string, args ...any) Check {
	return Check{Name: name, OK: ok, Problem: "/problems/" + problem, Numbers: numbers, Detail: fmt.Sprintf(format, args...)}
}

// EitherCheck is a check without numbers: yes says what is the case where it is ok, no
// where it is not.
func EitherCheck(name string, ok bool, problem, yes, no string) Check {
	return NewCheck(name, ok, problem, nil, "%s", Either(ok, yes, no))
}

// Either is yes where ok, else no: for the words of a check.
func Either(ok bool, yes, no string) string {
	if ok {
		return yes
	}
	return no
}

// Refusal is the first check that is not ok as a *Problem; nil: all are.
func Refusal(checks []Check) error {
	for _, c := range checks {
		if !c.OK {
			return &Problem{Type: c.Problem, Detail: c.Detail, Numbers: c.Numbers}
		}
	}
	return nil
}

// Within gives a step's Do or Undo a deadline of its own: what hangs outside must not
// hold its operation for ever.
func Within[S any](d time.Duration, do func(context.Context, *S) error) func(context.Context, *S) error {
	return func(ctx context.Context, s *S) error {
		bounded, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		return do(bounded, s)
	}
}
