package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"controld/internal/backup"
)

// index is a sorted set of the keys of the catalogue. Its own name does not begin as theirs
// do: who asks for KEYS backup:* and reads each as a hash does not meet it.
const index = "backups"

// Bounds of what the catalogue is asked and told at once, and of how long that may take.
const (
	batch        = 200
	batchTimeout = 5 * time.Second
)

var _ backup.Catalogue = (*Client)(nil)

// Read is all that is there: every key of the catalogue's shape, whoever wrote it. It is
// found by SCAN, which keeps nobody waiting.
func (c *Client) Read(ctx context.Context) (backup.Held, error) {
	held := backup.Held{Entries: map[string]map[string]string{}, Index: map[string]time.Time{}}
	for cursor := uint64(0); ; {
		var keys []string
		err := c.ask(ctx, func(ctx context.Context) (err error) {
			keys, cursor, err = c.inner.Scan(ctx, cursor, backup.KeyPrefix+"*", batch).Result()
			return err
		})
		if err != nil {
			return backup.Held{}, fmt.Errorf("list the catalogue: %w", err)
		}
		keys = slices.DeleteFunc(keys, func(key string) bool { _, is := backup.KeyTime(key); return !is })
		if err := c.readEntries(ctx, keys, held.Entries); err != nil {
			return backup.Held{}, fmt.Errorf("read the catalogue: %w", err)
		}
		if cursor == 0 {
			break
		}
	}
	err := c.ask(ctx, func(ctx context.Context) error {
		members, err := c.inner.ZRangeWithScores(ctx, index, 0, -1).Result()
		for _, m := range members {
			if key, is := m.Member.(string); is {
				held.Index[key] = time.Unix(int64(m.Score), 0).UTC()
			}
		}
		return err
	})
	if err != nil {
		return backup.Held{}, fmt.Errorf("read the index of the catalogue: %w", err)
	}
	err = c.ask(ctx, func(ctx context.Context) error {
		info, err := c.inner.Info(ctx, "server", "persistence").Result()
		held.Version, held.Durable = infoField(info, "redis_version"), infoField(info, "aof_enabled") == "1"
		return err
	})
	if err != nil {
		return backup.Held{}, fmt.Errorf("ask for the version of redis: %w", err)
	}
	return held, nil
}

// readEntries reads these keys into entries. One that is gone meanwhile is left out.
func (c *Client) readEntries(ctx context.Context, keys []string, entries map[string]map[string]string) error {
	for some := range slices.Chunk(keys, batch) {
		err := c.ask(ctx, func(ctx context.Context) error {
			pipe := c.inner.Pipeline()
			answers := make([]*redis.MapStringStringCmd, len(some))
			for i, key := range some {
				answers[i] = pipe.HGetAll(ctx, key)
			}
			_, _ = pipe.Exec(ctx) // each answer has its own error
			for i, key := range some {
				fields, err := answers[i].Result()
				switch {
				case redis.HasErrorPrefix(err, "WRONGTYPE"):
					entries[key] = nil
				case err != nil:
					return err
				case len(fields) > 0:
					entries[key] = fields
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// infoField is a field of the answer to INFO; empty where it has none of that name.
func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, found := strings.CutPrefix(line, name+":"); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Count is how many keys the index has.
func (c *Client) Count(ctx context.Context) (n int, err error) {
	err = c.ask(ctx, func(ctx context.Context) error {
		count, err := c.inner.ZCard(ctx, index).Result()
		n = int(count)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("count the catalogue: %w", err)
	}
	return n, nil
}

// Apply makes the changes: a record and its place in the index in one transaction, so that
// nobody sees the one without the other.
func (c *Client) Apply(ctx context.Context, changes []backup.Change) error {
	for some := range slices.Chunk(changes, batch) {
		err := c.ask(ctx, func(ctx context.Context) error {
			_, err := c.inner.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
				for _, change := range some {
					queue(ctx, pipe, change)
				}
				return nil
			})
			return err
		})
		if err != nil {
			return fmt.Errorf("write the catalogue: %w", err)
		}
	}
	return nil
}

func queue(ctx context.Context, pipe redis.Pipeliner, c backup.Change) {
	if c.Remove {
		pipe.Del(ctx, c.Key)
	}
	if c.Remove || c.Unlist {
		pipe.ZRem(ctx, index, c.Key)
		return
	}
	if len(c.Set) > 0 {
		pipe.HSet(ctx, c.Key, c.Set)
	}
	if len(c.Unset) > 0 {
		pipe.HDel(ctx, c.Key, c.Unset...)
	}
	pipe.ZAdd(ctx, index, redis.Z{Score: float64(c.At.Unix()), Member: c.Key})
}

// ask bounds a question. What is no answer of Redis's own is backup.ErrAway.
func (c *Client) ask(ctx context.Context, question func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	err := question(ctx)
	var answered redis.Error
	if err == nil || errors.As(err, &answered) {
		return err
	}
	return fmt.Errorf("%w: %w", backup.ErrAway, err)
}
