package backup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// A catalogueFake behaves as Redis does: it can be away, refuse to write, and lose everything.
type catalogueFake struct {
	mu      sync.Mutex
	entries map[string]map[string]string
	index   map[string]time.Time
	away    bool
	refuses error
	reads   int
	writes  int
}

func newCatalogueFake() *catalogueFake {
	f := &catalogueFake{}
	f.Flush()
	return f
}

// Flush is FLUSHALL.
func (f *catalogueFake) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entries, f.index = map[string]map[string]string{}, map[string]time.Time{}
}

// Put is HSET. Without fields it is SET: what has this key is no record then.
func (f *catalogueFake) Put(key string, fields map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fields == nil {
		f.entries[key] = nil
		return
	}
	if f.entries[key] == nil {
		f.entries[key] = map[string]string{}
	}
	maps.Copy(f.entries[key], fields)
}

// Away stops it, and starts it again.
func (f *catalogueFake) Away(yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = yes
}

func (f *catalogueFake) answer() error {
	if f.away {
		return fmt.Errorf("%w: connection refused", ErrAway)
	}
	return nil
}

func (f *catalogueFake) Read(context.Context) (Held, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.answer(); err != nil {
		return Held{}, err
	}
	f.reads++
	held := Held{Entries: map[string]map[string]string{}, Index: maps.Clone(f.index), Version: "7.0.15", Durable: true}
	for key, entry := range f.entries {
		if _, is := KeyTime(key); is {
			held.Entries[key] = maps.Clone(entry)
		}
	}
	return held, nil
}

func (f *catalogueFake) Count(context.Context) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.index), f.answer()
}

var errNoRecord = errors.New("WRONGTYPE")

// Apply behaves: what is no record cannot be written as one.
func (f *catalogueFake) Apply(_ context.Context, changes []Change) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.answer(); err != nil {
		return err
	}
	if f.refuses != nil {
		return f.refuses
	}
	f.writes++
	for _, c := range changes {
		if c.Remove {
			delete(f.entries, c.Key)
		}
		if c.Remove || c.Unlist {
			delete(f.index, c.Key)
			continue
		}
		entry, there := f.entries[c.Key]
		if there && entry == nil && len(c.Set) > 0 {
			return errNoRecord
		}
		if entry == nil {
			entry = map[string]string{}
		}
		maps.Copy(entry, c.Set)
		maps.DeleteFunc(entry, func(name, _ string) bool { return slices.Contains(c.Unset, name) })
		if len(entry) > 0 {
			f.entries[c.Key] = entry
		}
		f.index[c.Key] = c.At
	}
	return nil
}

// asked is how often it was read and written.
func (f *catalogueFake) asked() (reads, writes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads, f.writes
}

// held is what it holds, whether it is away or not.
func (f *catalogueFake) held() (entries map[string]map[string]string, index []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	entries = map[string]map[string]string{}
	for key, entry := range f.entries {
		entries[key] = maps.Clone(entry)
	}
	return entries, slices.Sorted(maps.Keys(f.index))
}
