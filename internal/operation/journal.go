package operation

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// A Journal is the daemon's own durable memory: open operations and how far
// they came, the audit of ended ones, the idempotency keys, and a few facts
// about the cluster. It is one bbolt file; every Put is on the disk when it
// returns. A restart reads it but trusts only what it then observes.
type Journal struct {
	db          *bbolt.DB
	checkpoints *bbolt.DB
	// setAside says why the checkpoints begin anew; nil: they do not.
	setAside error
}

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
	db, err := openFile(path)
	if err != nil {
		return nil, err
	}
	j := &Journal{db: db}
	if err := j.openCheckpoints(filepath.Join(dir, CheckpointFile)); err != nil {
		return nil, errors.Join(err, db.Close())
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
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", path, err), j.Close())
	}
	return j, nil
}

// openCheckpoints begins them anew where their file is broken: they are hints, and
// their loss must not keep controld from starting.
func (j *Journal) openCheckpoints(path string) (err error) {
	if j.checkpoints, err = openFile(path); err == nil || errors.Is(err, errTakenFile) {
		return err
	}
	j.setAside = err
	if err := os.Rename(path, path+".broken"); err != nil {
		return errors.Join(j.setAside, err)
	}
	j.checkpoints, err = openFile(path)
	return err
}

// errTakenFile: another process has the file open.
var errTakenFile = errors.New("another controld has it open")

func openFile(path string) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open journal %s: %w", path, errTakenFile)
	}
	if err != nil {
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	return db, nil
}

// Close closes the files.
func (j *Journal) Close() error { return errors.Join(j.db.Close(), j.checkpoints.Close()) }

// entry is what the journal keeps of one operation.
type entry struct {
	Record  Record          `json:"record"`
	Params  json.RawMessage `json:"params,omitempty"`
	Reached int             `json:"reached"` // index of the step that the last durable entry announced
	State   json.RawMessage `json:"state,omitempty"`
	// Undoing is why the operation is being undone; empty while it goes forward.
	Undoing string `json:"undoing,omitempty"`
	// Waiting: it holds nothing and has begun nothing.
	Waiting bool `json:"waiting,omitempty"`
	// Key and CancelRunning are of the request, for one that goes on waiting.
	Key           *Idempotency `json:"key,omitempty"`
	CancelRunning bool         `json:"cancel_running,omitempty"`
}

// put makes the entries durable, all or none. Open operations are indexed, so that a
// start need not read the whole audit.
func (j *Journal) put(entries ...entry) error {
	err := j.db.Update(func(tx *bbolt.Tx) error {
		for _, e := range entries {
			if err := putIn(tx, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("journal operation %s: %w", entries[0].Record.ID, err)
	}
	return nil
}

func putIn(tx *bbolt.Tx, e entry) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	id, open := []byte(e.Record.ID), tx.Bucket(bucketOpen)
	if e.Record.EndedAt.IsZero() {
		err = open.Put(id, nil)
	} else {
		err = open.Delete(id)
	}
	if err != nil {
		return err
	}
	return tx.Bucket(bucketOperations).Put(id, data)
}

// decode reads an entry. One of an earlier version does not say what kind of caller
// asked.
func decode(data []byte) (e entry, err error) {
	if err := json.Unmarshal(data, &e); err != nil {
		return entry{}, err
	}
	if e.Record.CallerKind == "" {
		e.Record.CallerKind = Person
		if e.Record.RequestedBy == string(Daemon) {
			e.Record.CallerKind = Daemon
		}
	}
	return e, nil
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

func (j *Journal) get(id string) (e entry, err error) {
	err = j.db.View(func(tx *bbolt.Tx) (err error) {
		data := tx.Bucket(bucketOperations).Get([]byte(id))
		if data == nil {
			return ErrNotFound
		}
		e, err = decode(data)
		return err
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
			e, err := decode(all.Get(id))
			if err != nil {
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
			e, err := decode(v)
			if err != nil {
				e.Record = unreadable(string(k), err)
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

// KindUnreadable is the kind of a record that the disk or another version has made
// unreadable: the audit tells that there is one.
const KindUnreadable = "unreadable"

func unreadable(id string, err error) Record {
	r := Record{ID: id, Kind: KindUnreadable, State: Incomplete, Steps: []StepRecord{}, CallerKind: Person}
	r.StartedAt = startOf(id)
	r.EndedAt = r.StartedAt
	r.Problem = &Problem{
		Type:   "/problems/incomplete",
		Detail: fmt.Sprintf("the journal's record of this operation cannot be read: %v", err),
	}
	return r
}

// startOf is the time in an ID: the first 48 bits of a UUIDv7 are Unix milliseconds
// (RFC 9562, section 5.7).
func startOf(id string) time.Time {
	u, err := uuid.Parse(id)
	if err != nil {
		return time.Unix(0, 0).UTC()
	}
	seconds, nanoseconds := u.Time().UnixTime()
	return time.Unix(seconds, nanoseconds).UTC()
}

// A Retention says which ended operations the audit keeps: the newest Count of those
// that are no older than For. 0 keeps all.
type Retention struct {
	Count int
	For   time.Duration
}

// dispensable are the ended operations that are not to be kept. Nothing is decoded.
// What is younger than an idempotency key binds is kept: a key whose operation left no
// trace binds to nothing.
func (j *Journal) dispensable(keep Retention, now time.Time) (ids [][]byte, err error) {
	err = j.db.View(func(tx *bbolt.Tx) error {
		open := tx.Bucket(bucketOpen).Cursor()
		kept := 0
		c := tx.Bucket(bucketOperations).Cursor()
		for k, _ := c.Last(); k != nil; k, _ = c.Prev() {
			isOpen, _ := open.Seek(k)
			age := now.Sub(startOf(string(k)))
			switch {
			case string(isOpen) == string(k):
			case age > keptFor && (keep.Count > 0 && kept >= keep.Count || keep.For > 0 && age > keep.For):
				ids = append(ids, append([]byte(nil), k...))
			default:
				kept++
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("prune the audit: %w", err)
	}
	return ids, nil
}

// forget removes ended operations.
func (j *Journal) forget(ids [][]byte) error {
	err := j.db.Update(func(tx *bbolt.Tx) error {
		for _, id := range ids {
			if err := tx.Bucket(bucketOperations).Delete(id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("prune the audit: %w", err)
	}
	return nil
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
