package operation

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// A Journal is the daemon's own durable memory: open operations and how far
// they came, the audit of ended ones, the idempotency keys, and a few facts
// about the cluster. It is one bbolt file; every Put is on the disk when it
// returns. A restart reads it but trusts only what it then observes.
type Journal struct{ db *bbolt.DB }

var (
	bucketOperations = []byte("operations")
	bucketOpen       = []byte("open")
	bucketKeys       = []byte("idempotency")
	bucketFacts      = []byte("facts")
)

// JournalFile is the journal's name in the state directory.
const JournalFile = "journal.db"

// keptFor is how long an idempotency key binds.
const keptFor = 24 * time.Hour

// OpenJournal opens the journal in dir, made when missing. A second process
// gets an error after a second, since bbolt locks the file.
func OpenJournal(dir string) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	path := filepath.Join(dir, JournalFile)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open journal %s: another controld has it open", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketOperations, bucketOpen, bucketKeys, bucketFacts} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", path, err), db.Close())
	}
	return &Journal{db: db}, nil
}

// Close closes the file.
func (j *Journal) Close() error { return j.db.Close() }

// entry is what the journal keeps of one operation.
type entry struct {
	Record  Record          `json:"record"`
	Params  json.RawMessage `json:"params,omitempty"`
	Reached int             `json:"reached"` // index of the step that the last durable entry announced
	State   json.RawMessage `json:"state,omitempty"`
	// Undoing is why the operation is being undone; empty while it goes forward.
	Undoing string `json:"undoing,omitempty"`
}

// put makes e durable. Open operations are indexed, so that a start need not
// read the whole audit.
func (j *Journal) put(e entry) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("journal operation %s: %w", e.Record.ID, err)
	}
	id := []byte(e.Record.ID)
	err = j.db.Update(func(tx *bbolt.Tx) error {
		open := tx.Bucket(bucketOpen)
		if e.Record.EndedAt.IsZero() {
			if err := open.Put(id, nil); err != nil {
				return err
			}
		} else if err := open.Delete(id); err != nil {
			return err
		}
		return tx.Bucket(bucketOperations).Put(id, data)
	})
	if err != nil {
		return fmt.Errorf("journal operation %s: %w", e.Record.ID, err)
	}
	return nil
}

// link notes in an ended operation which one goes on from it.
func (j *Journal) link(id, followedBy string) error {
	e, err := j.get(id)
	if err != nil {
		return err
	}
	e.Record.FollowedBy = followedBy
	return j.put(e)
}

func (j *Journal) get(id string) (entry, error) {
	var e entry
	err := j.db.View(func(tx *bbolt.Tx) error {
		data := tx.Bucket(bucketOperations).Get([]byte(id))
		if data == nil {
			return ErrNotFound
		}
		return json.Unmarshal(data, &e)
	})
	if err != nil {
		return entry{}, fmt.Errorf("operation %s: %w", id, err)
	}
	return e, nil
}

// open returns the operations that have not ended, oldest first.
func (j *Journal) open() ([]entry, error) {
	var out []entry
	err := j.db.View(func(tx *bbolt.Tx) error {
		all := tx.Bucket(bucketOperations)
		return tx.Bucket(bucketOpen).ForEach(func(id, _ []byte) error {
			var e entry
			if err := json.Unmarshal(all.Get(id), &e); err != nil {
				return fmt.Errorf("operation %s: %w", id, err)
			}
			out = append(out, e)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read open operations: %w", err)
	}
	return out, nil
}

// A Filter selects operations, newest first.
type Filter struct {
	Kind  string
	State State
	Limit int    // 0: 50
	After string // the ID that the page before ended with
}

// list returns the records that f selects and, when more are left, the ID to
// go on after.
func (j *Journal) list(f Filter) (records []Record, next string, err error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	err = j.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketOperations).Cursor()
		k, v := c.Last()
		if f.After != "" {
			if k, v = c.Seek([]byte(f.After)); k == nil {
				k, v = c.Last()
			}
			for k != nil && string(k) >= f.After {
				k, v = c.Prev()
			}
		}
		for ; k != nil; k, v = c.Prev() {
			var e entry
			if err := json.Unmarshal(v, &e); err != nil {
				return fmt.Errorf("operation %s: %w", k, err)
			}
			if f.Kind != "" && e.Record.Kind != f.Kind || f.State != "" && e.Record.State != f.State {
				continue
			}
			if len(records) == limit {
				next = records[limit-1].ID
				return nil
			}
			records = append(records, e.Record)
		}
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("list operations: %w", err)
	}
	return records, next, nil
}

// keyRecord is what an idempotency key is bound to.
type keyRecord struct {
	Idempotency
	Operation string    `json:"operation"`
	At        time.Time `json:"at"`
}

// bindKey binds key to operation id, or returns the operation that it is bound
// to already. Another request under the same key is ErrKeyReused. Keys older
// than a day are forgotten on the way.
//
// A key whose operation left no trace binds to nothing: controld ended between
// the two, and the client that asks again is right to expect the work. known
// tells of operations that are not in the journal yet.
func (j *Journal) bindKey(key Idempotency, id string, now time.Time, known func(id string) bool) (bound string, err error) {
	name := []byte(key.Caller + "\x00" + key.Key)
	err = j.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketKeys)
		if err := forgetOldKeys(b, now); err != nil {
			return err
		}
		if data := b.Get(name); data != nil {
			var old keyRecord
			if err := json.Unmarshal(data, &old); err != nil {
				return err
			}
			if old.Method != key.Method || old.Path != key.Path || string(old.Body) != string(key.Body) {
				return ErrKeyReused
			}
			if known(old.Operation) || tx.Bucket(bucketOperations).Get([]byte(old.Operation)) != nil {
				bound = old.Operation
				return nil
			}
		}
		data, err := json.Marshal(keyRecord{Idempotency: key, Operation: id, At: now})
		if err != nil {
			return err
		}
		return b.Put(name, data)
	})
	if err != nil {
		return "", fmt.Errorf("idempotency key: %w", err)
	}
	return bound, nil
}

// unbindKey forgets a key whose operation was never begun.
func (j *Journal) unbindKey(key Idempotency) error {
	return j.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketKeys).Delete([]byte(key.Caller + "\x00" + key.Key))
	})
}

func forgetOldKeys(b *bbolt.Bucket, now time.Time) error {
	var old [][]byte
	err := b.ForEach(func(k, v []byte) error {
		var r keyRecord
		if json.Unmarshal(v, &r) != nil || now.Sub(r.At) > keptFor {
			old = append(old, append([]byte(nil), k...))
		}
		return nil
	})
	for _, k := range old {
		err = errors.Join(err, b.Delete(k))
	}
	return err
}

// PutFact makes one fact about the cluster durable.
func (j *Journal) PutFact(name string, value any) error {
	data, err := json.Marshal(value)
	if err == nil {
		err = j.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketFacts).Put([]byte(name), data) })
	}
	if err != nil {
		return fmt.Errorf("journal %s: %w", name, err)
	}
	return nil
}

// Fact reads into value what PutFact kept; false when there is nothing.
func (j *Journal) Fact(name string, value any) (bool, error) {
	found := false
	err := j.db.View(func(tx *bbolt.Tx) error {
		data := tx.Bucket(bucketFacts).Get([]byte(name))
		if data == nil {
			return nil
		}
		found = true
		return json.Unmarshal(data, value)
	})
	if err != nil {
		return false, fmt.Errorf("journal %s: %w", name, err)
	}
	return found, nil
}
