package failover

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"controld/internal/node"
	"controld/internal/wait"
)

// leaseEvery is how often a claim is renewed.
const leaseEvery = 2 * time.Second

// A lease renews the claim on a pause until it is dropped, or for limit at the most:
// a daemon that hangs must not hold the clients.
type lease struct {
	renew  func() error
	limit  time.Duration
	began  time.Time
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	renewed time.Time
	err     error
}

// claim makes the claim that renew writes, and keeps it up.
func claim(renew func() error, limit time.Duration) (*lease, error) {
	now := time.Now() // the claim is as old as the act, not as its end
	if err := renew(); err != nil {
		return nil, fmt.Errorf("claim the pause: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &lease{renew: renew, limit: limit, began: now, cancel: cancel, done: make(chan struct{}), renewed: now}
	go l.keepUp(ctx)
	return l, nil
}

func (l *lease) keepUp(ctx context.Context) {
	defer close(l.done)
	for wait.Sleep(ctx, leaseEvery) == nil && time.Since(l.began) < l.limit && l.valid() == nil {
		now := time.Now()
		err := l.renew()
		l.mu.Lock()
		if l.err = err; err == nil {
			l.renewed = now
		}
		l.mu.Unlock()
	}
}

// valid fails once the claim is so old that the pooler's init may have ended the
// pause. From then on it is not renewed either: a process that was stopped for a
// while must not take up again what it has lost.
func (l *lease) valid() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	since := time.Since(l.renewed)
	if since < node.LeaseDuration-leaseEvery {
		return nil
	}
	return fmt.Errorf("the claim on the pause was last renewed %s ago: %w",
		since.Round(time.Millisecond), errors.Join(l.err, context.DeadlineExceeded))
}

// drop stops renewing.
func (l *lease) drop() {
	l.cancel()
	<-l.done
}
