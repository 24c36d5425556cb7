package backup

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"controld/internal/operation"
)

// ErrAway means that the catalogue does not answer.
var ErrAway = errors.New("the catalogue does not answer")

// A CatalogueState says how a catalogue is.
type CatalogueState string

// The states of a catalogue.
const (
	CatalogueOK     CatalogueState = "ok"     // it has what the repository has
	CatalogueBehind CatalogueState = "behind" // it answers, and need not have it
	CatalogueAway   CatalogueState = "away"   // it does not answer
)

// Recorded is what is known of the catalogue.
type Recorded struct {
	At      time.Time // when it was last seen, or made, to tell of the repository; zero: never
	Records int       // how many it had then of this repository's
	Version string    // of the server that holds it
	Durable bool      // it writes what it is told to its disk
	Away    bool      // it does not answer
	Detail  string    // why it is away or behind
	// Failing is since when it answers and cannot be written; zero: it can.
	Failing time.Time
}

// State is how it is.
func (r Recorded) State() CatalogueState {
	switch {
	case r.Away:
		return CatalogueAway
	case r.Detail != "":
		return CatalogueBehind
	}
	return CatalogueOK
}

// Recorded is what was last known of the catalogue. It never blocks.
func (b *Backups) Recorded() Recorded { return *b.recorded.Load() }

// Times of the catalogue.
const (
	// countEvery: a catalogue that was emptied, or lost what it was told last, has too few keys.
	countEvery = 10 * time.Second
	// recordAnew: it is compared whole, also where nothing seems to have changed.
	recordAnew = time.Hour
	// recordTimeout bounds one comparison.
	recordTimeout = time.Minute
	// recordRetry is the longest pause after attempts that failed.
	recordRetry = 30 * time.Second
)

// told is what the catalogue was last told, and how many keys its index had then.
type told struct {
	at     time.Time
	labels []string
	index  int
}

// keepCatalogue has the catalogue tell of the repository, until ctx ends. Nobody waits for it.
func (b *Backups) keepCatalogue(ctx context.Context) {
	var last told
	for failures := 0; ctx.Err() == nil; {
		pause := countEvery
		if err := b.tell(ctx, &last); err != nil && ctx.Err() == nil {
			b.notTold(err)
			last = told{} // what it holds when it is back nobody knows
			pause = min(time.Second<<min(failures, 10), recordRetry)
			failures++
		} else {
			failures = 0
		}
		due := time.After(pause)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				waiting = false
			case <-due:
				waiting = false
			case <-b.looked:
				waiting = failures > 0 || slices.Equal(labels(b.Seen().Copies), last.labels)
			}
		}
	}
}

func labels(copies []Copy) []string {
	all := make([]string, len(copies))
	for i, c := range copies {
		all[i] = c.Label
	}
	return all
}

// tell looks whether the catalogue is there and whole, and has it told what it does not have.
func (b *Backups) tell(ctx context.Context, last *told) error {
	count, err := b.Catalogue.Count(ctx)
	if err != nil {
		return err
	}
	seen := b.Seen()
	source, good := b.source(seen)
	if !good {
		b.answers()
		return nil
	}
	if count == last.index && time.Since(last.at) < recordAnew && slices.Equal(labels(seen.Copies), last.labels) {
		return nil
	}
	*last, err = b.record(ctx, source)
	return err
}

// source is the repository as the catalogue tells of it. false: it was not seen well enough
// for that. One that is away, broken, not there, or another cluster's says nothing.
func (b *Backups) source(seen Seen) (Source, bool) {
	id := b.Cluster.Identity().SystemID
	s := Source{
		SystemID: id, Stanza: b.cfg.Stanza, Copies: seen.Copies,
		Dir: func(label string) string { return b.Files.Dir(id, label) },
	}
	return s, id != 0 && seen.State == RepositoryOK && seen.SystemID == id
}

// record compares the catalogue with the repository, and has it tell the same.
func (b *Backups) record(ctx context.Context, s Source) (told, error) {
	b.recording.Lock()
	defer b.recording.Unlock()
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	held, err := b.Catalogue.Read(ctx)
	if err != nil {
		return told{}, err
	}
	keys := s.keys(held, b.keys.Load().Of)
	changes := Reconcile(held, s, keys)
	if len(changes) > 0 {
		if err := b.Catalogue.Apply(ctx, changes); err != nil {
			return told{}, err
		}
		b.Log.Info("the catalogue is written", "changes", len(changes), "backups", len(s.Copies))
	}
	for _, r := range Records(s.Copies, s.Dir, keys) {
		keys.Of[r.Label] = r.Key
	}
	b.keys.Store(&keys)
	r := Recorded{At: time.Now(), Records: len(s.Copies), Version: held.Version, Durable: held.Durable}
	if r.Records == 0 {
		if r.Records = s.count(held); r.Records > 0 {
			r.Detail = "it tells of backups, and the repository has none: what it tells stays"
		}
	}
	if old := b.recorded.Swap(&r); old.Away || !old.Failing.IsZero() {
		b.Log.Info("the catalogue tells of the repository again")
	}
	return told{at: r.At, labels: labels(s.Copies), index: indexed(held, changes)}, nil
}

// count is how many records are of this repository.
func (s Source) count(held Held) (n int) {
	for _, entry := range held.Entries {
		if s.owns(entry) {
			n++
		}
	}
	return n
}

// indexed is how many keys are in the index after these changes.
func indexed(held Held, changes []Change) int {
	keys := maps.Clone(held.Index)
	if keys == nil {
		keys = map[string]time.Time{}
	}
	for _, c := range changes {
		if c.Remove || c.Unlist {
			delete(keys, c.Key)
		} else {
			keys[c.Key] = c.At
		}
	}
	return len(keys)
}

// notTold shows why the catalogue was not told, and says it once.
func (b *Backups) notTold(err error) {
	old := b.Recorded()
	r := old
	r.Away, r.Detail = errors.Is(err, ErrAway), err.Error()
	switch {
	case r.Away:
		r.Failing = time.Time{}
	case r.Failing.IsZero():
		r.Failing = time.Now()
	}
	b.recorded.Store(&r)
	if !old.Away && old.Failing.IsZero() {
		b.Log.Warn("the catalogue is not told of the backups; it is tried again until it is", "err", err)
	}
}

// answers shows that the catalogue is there again, while the repository is not seen.
func (b *Backups) answers() {
	r := b.Recorded()
	if r.Away || !r.Failing.IsZero() {
		r.Away, r.Failing, r.Detail = false, time.Time{}, "it answers again, and the repository was not seen since"
		b.recorded.Store(&r)
	}
}

// Orphans are the records that tell of no backup of the repository, and that only a person
// removes. With apply those of them that only names are removed, all of them where it names
// none. It refuses where the repository is not seen: what tells of nothing is not known then.
func (b *Backups) Orphans(ctx context.Context, apply bool, only []string) ([]Orphan, error) {
	seen := b.Look(ctx)
	if err := b.usable(seen, false); err != nil {
		return nil, err
	}
	s, good := b.source(seen)
	if !good {
		return nil, operation.Refuse("repository-broken", nil, "the repository is of another cluster, %d", seen.SystemID)
	}
	b.recording.Lock()
	defer b.recording.Unlock()
	held, err := b.Catalogue.Read(ctx)
	if err != nil {
		return nil, awayRefusal(err)
	}
	orphans := Orphans(held, s, s.keys(held, b.keys.Load().Of), seen.Others)
	if len(only) > 0 {
		orphans = slices.DeleteFunc(orphans, func(o Orphan) bool { return !slices.Contains(only, o.Key) })
	}
	if !apply || len(orphans) == 0 {
		return orphans, nil
	}
	changes := make([]Change, len(orphans))
	for i, o := range orphans {
		changes[i] = Change{Key: o.Key, Remove: true}
		b.Log.Info("a record of the catalogue is removed", "key", o.Key, "why", o.Why)
	}
	if err := b.Catalogue.Apply(ctx, changes); err != nil {
		return nil, awayRefusal(err)
	}
	return orphans, nil
}

// awayRefusal is what a person is told who asks for what the catalogue holds.
func awayRefusal(err error) error {
	return operation.Refuse("catalogue-away", nil, "the catalogue in Redis cannot be read or written: %v", err)
}
