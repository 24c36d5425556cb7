package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// CheckpointFile is the name of the checkpoints' file in the state directory. They
// have one of their own, so that their writes never queue ahead of an entry of the
// journal.
const CheckpointFile = "checkpoints.db"

// An Origin is the history that a checkpoint was made in. Another one, as after a
// failover that lost rows or a restore, makes the checkpoint worth nothing.
type Origin struct {
	SystemID uint64 `json:"system_id"`
	Timeline uint32 `json:"timeline"`
}

// A checkpoint is one kept value.
type checkpoint struct {
	Origin Origin          `json:"origin"`
	At     time.Time       `json:"at"`
	Value  json.RawMessage `json:"value"`
}

// ErrNoRun is the error of a checkpoint whose context is none of an operation's step.
var ErrNoRun = errors.New("not in a step of an operation")

// SaveCheckpoint keeps value under name until the operation ends, or its clean-up
// does; it is on the disk when SaveCheckpoint returns. While another operation holds
// clients it waits.
//
// A checkpoint is a hint until the world confirms it. An emergency failover may lose
// rows that a checkpoint calls done: what tells of rows in PostgreSQL is to be committed
// there, in the transaction of the rows. What is started in another container gets an
// identity that is saved before, so that it is found again.
func SaveCheckpoint(ctx context.Context, name string, origin Origin, value any) error {
	r, ok := ctx.Value(runKey{}).(*run)
	if !ok {
		return fmt.Errorf("checkpoint %s: %w", name, ErrNoRun)
	}
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", name, err)
	}
	if err := r.m.awaitRelease(ctx, r); err != nil {
		return fmt.Errorf("checkpoint %s: %w", name, err)
	}
	return r.m.journal.saveCheckpoint(r.subject(), name, checkpoint{Origin: origin, At: time.Now().UTC(), Value: data})
}

// LoadCheckpoint reads into value what was saved under name in the same origin;
// false where there is nothing.
func LoadCheckpoint(ctx context.Context, name string, origin Origin, value any) (bool, error) {
	r, ok := ctx.Value(runKey{}).(*run)
	if !ok {
		return false, fmt.Errorf("checkpoint %s: %w", name, ErrNoRun)
	}
	c, found, err := r.m.journal.checkpoint(r.subject(), name)
	if err != nil || !found {
		return false, err
	}
	if c.Origin != origin {
		r.log.Warn("checkpoint is of another history, and is not used", "name", name, "of", c.Origin, "now", origin)
		return false, nil
	}
	if err := json.Unmarshal(c.Value, value); err != nil {
		return false, fmt.Errorf("checkpoint %s: %w", name, err)
	}
	return true, nil
}

// subject is the operation whose work this is: of a clean-up, what it cleans up after.
func (r *run) subject() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.e.Record.Kind == KindCleanup {
		return r.e.Record.Follows
	}
	return r.id
}

func (j *Journal) saveCheckpoint(operation, name string, c checkpoint) error {
	data, err := json.Marshal(c)
	if err == nil {
		err = j.checkpoints.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte(operation))
			if err != nil {
				return err
			}
			return b.Put([]byte(name), data)
		})
	}
	if err != nil {
		return fmt.Errorf("checkpoint %s of operation %s: %w", name, operation, err)
	}
	return nil
}

func (j *Journal) checkpoint(operation, name string) (c checkpoint, found bool, err error) {
	err = j.checkpoints.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(operation))
		if b == nil {
			return nil
		}
		data := b.Get([]byte(name))
		if data == nil {
			return nil
		}
		found = true
		return json.Unmarshal(data, &c)
	})
	if err != nil {
		return checkpoint{}, false, fmt.Errorf("checkpoint %s of operation %s: %w", name, operation, err)
	}
	return c, found, nil
}

// dropCheckpointsOf forgets those of an operation that has ended.
func (j *Journal) dropCheckpointsOf(operation string) error {
	there := false
	err := j.checkpoints.View(func(tx *bbolt.Tx) error { there = tx.Bucket([]byte(operation)) != nil; return nil })
	if err != nil || !there {
		return err
	}
	return j.checkpoints.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(operation)) })
}

// withCheckpoints are the operations that have some.
func (j *Journal) withCheckpoints() (operations []string, err error) {
	err = j.checkpoints.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, _ *bbolt.Bucket) error {
			operations = append(operations, string(name))
			return nil
		})
	})
	return operations, err
}
