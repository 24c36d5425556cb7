package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"controld/internal/api/gen"
	"controld/internal/client"
)

// work is what the commands that start an operation share: the reason, the
// key, and how long to wait.
type work struct {
	reason  string
	key     string
	noWait  bool
	timeout time.Duration
	// cancelRunning cancels what is in the way, where that may be cancelled.
	cancelRunning bool
}

func (c *cli) workFlags(cmd *cobra.Command) *work {
	w := &work{}
	f := cmd.Flags()
	f.StringVar(&w.reason, "reason", "", "why, for the audit")
	f.StringVar(&w.key, "idempotency-key", "", "repeat the command with the same key to join the first one's operation")
	f.BoolVar(&w.cancelRunning, "cancel-running", false,
		"cancel the operation that is in the way, where it may be cancelled for another, instead of being refused")
	f.BoolVar(&w.noWait, "no-wait", false, "start it and return at once")
	f.DurationVar(&w.timeout, "timeout", 0,
		"stop waiting after this time, such as 30s; the operation goes on in the daemon (default: wait)")
	return w
}

// bound is ctx for as long as --timeout allows.
func (w work) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if w.timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, w.timeout)
}

// carryOut starts an operation, follows it until it has ended, and prints how
// that was. --timeout counts from the start of the first call.
func (c *cli) carryOut(ctx context.Context, api *client.Client, w work, start func(context.Context) (gen.Operation, error)) error {
	ctx, cancel := w.bound(ctx)
	defer cancel()
	op, err := start(ctx)
	if err == nil && w.noWait {
		return c.printStarted(op)
	}
	if err == nil {
		op, err = c.await(ctx, api, op)
	}
	switch {
	case err == nil:
		return c.printResult(op)
	case ctx.Err() != nil:
		return &unfinished{after: w.timeout, cause: ctx.Err(), operation: op.ID}
	}
	return err
}

// plan asks for a dry run and prints it.
func (c *cli) plan(ctx context.Context, w work, ask func(context.Context) (gen.Plan, error)) error {
	ctx, cancel := w.bound(ctx)
	defer cancel()
	p, err := ask(ctx)
	switch {
	case err == nil:
		return c.printPlan(p)
	case ctx.Err() != nil:
		return &unfinished{after: w.timeout, cause: ctx.Err(), dryRun: true}
	}
	return err
}

// await follows an operation that was started, and shows its steps, until it has
// ended or is retried past its point of no return, which may last.
func (c *cli) await(ctx context.Context, api *client.Client, op gen.Operation) (gen.Operation, error) {
	settled := func(o gen.Operation) bool { return ended(o) || o.State == gen.OperationStateIncomplete }
	if settled(op) {
		return op, nil
	}
	p := newProgress(c)
	defer p.end()
	last, err := api.Follow(ctx, op.ID, settled, p.show)
	if err != nil {
		return op, err
	}
	return last, nil
}

// printStarted prints an operation that nobody waits for.
func (c *cli) printStarted(op gen.Operation) error {
	return c.print(op, func(w io.Writer) {
		fmt.Fprintf(w, "%s %s\n  follow it: controld operations follow %s\n", title(op), op.State, op.ID)
	})
}

// unfinished is the error of a wait that ended before the operation did: by
// --timeout, or because the command was interrupted. The operation goes on.
type unfinished struct {
	after     time.Duration
	cause     error  // why the context ended
	operation string // its id; empty: the daemon had not answered yet
	dryRun    bool
}

func (e *unfinished) Error() string {
	why := "interrupted"
	if errors.Is(e.cause, context.DeadlineExceeded) {
		why = fmt.Sprintf("not finished within %s (--timeout)", e.after)
	}
	switch {
	case e.dryRun:
		return why + "; nothing was changed"
	case e.operation == "":
		return why + "; if the daemon has begun the operation, it goes on there\n  See: controld operations"
	}
	return fmt.Sprintf("%s; the operation goes on in the daemon\n"+
		"  See it: controld operations follow %[2]s\n"+
		"  Stop it: controld operations cancel %[2]s", why, e.operation)
}

func (e *unfinished) Unwrap() error { return e.cause }
