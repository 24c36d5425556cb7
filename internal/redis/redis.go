// Package redis is the one that speaks to Redis. Nothing that moves or keeps the primary
// needs it.
package redis

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"controld/internal/health"
	"controld/internal/wait"
)

// component is its name in /health.
const component = "redis"

// askTimeout bounds one question.
const askTimeout = 900 * time.Millisecond

// Config is where Redis is, and how often it is asked.
type Config struct {
	Address  string
	Password string
	Interval time.Duration
}

// A Client is the connection to Redis, and what was last seen of it.
type Client struct {
	inner    *redis.Client
	interval time.Duration
	seen     atomic.Pointer[health.Part]
}

// New makes a client. It connects when it is first used.
func New(cfg Config) *Client {
	// A frozen Redis must not hold up who asks: without ContextTimeoutEnabled its
	// answer is waited for past the context's end.
	inner := redis.NewClient(&redis.Options{
		Addr: cfg.Address, Password: cfg.Password,
		DialTimeout: time.Second, ContextTimeoutEnabled: true, MaxRetries: -1, PoolSize: 2,
	})
	c := &Client{inner: inner, interval: cfg.Interval}
	c.seen.Store(&health.Part{})
	return c
}

// Close closes the connection.
func (c *Client) Close() error { return c.inner.Close() }

// Watch asks whether it answers, until ctx ends.
func (c *Client) Watch(ctx context.Context) {
	for {
		c.look(ctx)
		if wait.Sleep(ctx, c.interval) != nil {
			return
		}
	}
}

func (c *Client) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	seen := health.Part{OK: true}
	if err := c.inner.Ping(ctx).Err(); err != nil {
		seen = health.Part{Detail: err.Error()}
	}
	seen.SeenAt = time.Now()
	c.seen.Store(&seen)
}

// Seen is what was last seen. It never blocks.
func (c *Client) Seen() health.Part { return *c.seen.Load() }

// Components judges what was last seen.
func (c *Client) Components(now time.Time) []health.Component {
	return []health.Component{assess(c.Seen(), now, health.StaleIntervals*c.interval)}
}

// assess judges it; what is older than limit is not known any more.
func assess(seen health.Part, now time.Time, limit time.Duration) health.Component {
	switch {
	case seen.SeenAt.IsZero() || now.Sub(seen.SeenAt) > limit:
		return health.Bad(component, health.Degraded, "redis-unknown", "redis was not observed lately", "Read controld's log.")
	case !seen.OK:
		return health.Bad(component, health.Down, "redis-down", "redis does not answer: "+seen.Detail,
			"Start it: docker start redis (with the cluster's prefix), or make up. Failover works without it.")
	}
	return health.Fine(component)
}
