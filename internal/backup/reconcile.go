package backup

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Catalogue is where others than controld look for the backups: a record of named fields
// for each, by its key, and an index of the keys. What it says is never believed: it is a
// view of the repository.
type Catalogue interface {
	// Read is all that is there, whoever wrote it.
	Read(ctx context.Context) (Held, error)
	// Count is how many keys are in the index: a cheap look at whether all is still there.
	Count(ctx context.Context) (int, error)
	// Apply makes changes, each of them whole or not at all.
	Apply(ctx context.Context, changes []Change) error
}

// Held is what a catalogue holds.
type Held struct {
	// Entries are the fields of each record, by its key. nil: what has this key is no record.
	Entries map[string]map[string]string
	Index   map[string]time.Time // when what is in the index began, by its key
	Version string               // of the server that holds it
	Durable bool                 // it writes what it is told to its disk
}

// A Change is what becomes of one record, and of its place in the index.
type Change struct {
	Key    string
	Set    map[string]string // fields to write
	Unset  []string          // fields to remove
	At     time.Time         // when its backup began: what the index is sorted by
	Remove bool              // the record, and its place in the index
	Unlist bool              // its place in the index alone
}

// metodo is what makes every backup here.
const metodo = "pgBackRest"

// Names of fields by which a record is known as one of controld's.
const (
	fieldLabel    = "label"
	fieldStanza   = "stanza"
	fieldSystemID = "system_id"
)

// fieldNames are all that controld writes. Others may add more to a record.
var fieldNames = []string{
	"fecha", "hora", "tipo_backup", "direccion_almacenamiento", "maestro_usado", "metodo", fieldStanza,
	fieldLabel, "type", "requested_type", "mode", "consistent", "page_errors", "lsn_start", "lsn_stop", "wal_start", "wal_stop",
	"timeline", "database_bytes", "copied_bytes", "own_bytes", "repository_bytes", "started_at", "ended_at", "duration_ms",
	"prior", "needs", "cycle_day", "reason", "operation", fieldSystemID,
}

// A Source is the repository that a catalogue tells of.
type Source struct {
	SystemID uint64
	Stanza   string
	Copies   []Copy // the oldest first
	Dir      func(label string) string
}

// fields are those of a record. The first seven are always there, others where they say something.
func (s Source) fields(r Record) map[string]string {
	f := map[string]string{
		"fecha": r.At.Format("2006-01-02"), "hora": r.At.Format("15:04:05"), "tipo_backup": r.Type.Tipo(),
		"direccion_almacenamiento": r.Dir, "maestro_usado": r.Primary, "metodo": metodo, fieldStanza: s.Stanza,
	}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	own := map[string]string{
		fieldLabel: r.Label, "type": string(r.Type), "requested_type": string(r.Requested), "mode": string(r.Mode),
		"consistent": strconv.FormatBool(r.Consistent()), "page_errors": strconv.FormatBool(r.PageErrors),
		"wal_start": r.WALStart, "wal_stop": r.WALStop,
		"database_bytes": number(r.Bytes), "copied_bytes": number(r.CopiedBytes),
		"own_bytes": number(r.RepoOwnBytes), "repository_bytes": number(r.RepoBytes),
		"started_at": r.StartedAt.UTC().Format(time.RFC3339), "ended_at": r.EndedAt.UTC().Format(time.RFC3339),
		"duration_ms": number(r.EndedAt.Sub(r.StartedAt).Milliseconds()),
		"prior":       r.Prior, "needs": strings.Join(r.Needs, ","), "cycle_day": r.CycleDay, "reason": r.Reason,
		"operation": r.Operation, fieldSystemID: strconv.FormatUint(s.SystemID, 10),
	}
	if r.Mode == Online {
		own["lsn_start"], own["lsn_stop"], own["timeline"] = r.LSNStart.String(), r.LSNStop.String(), number(int64(r.Timeline))
	}
	for name, value := range own {
		if value != "" {
			f[name] = value
		}
	}
	return f
}

// owns reports whether a record is of this repository.
func (s Source) owns(entry map[string]string) bool {
	return entry[fieldLabel] != "" && entry[fieldStanza] == s.Stanza && entry[fieldSystemID] == strconv.FormatUint(s.SystemID, 10)
}

// longestMove bounds by how much a key may be later than its backup. Beyond it somebody has
// copied a record.
const longestMove = 24 * time.Hour

// keys are those that backups of the repository have in what a catalogue holds, and those of
// others. before has keys that are kept where the catalogue has none.
func (s Source) keys(held Held, before map[string]string) Keys {
	k := Keys{Of: map[string]string{}, Taken: map[string]bool{}}
	began := map[string]time.Time{}
	for _, c := range s.Copies {
		began[c.Label] = c.StartedAt.UTC().Truncate(time.Second)
	}
	for _, key := range slices.Sorted(maps.Keys(held.Entries)) {
		entry := held.Entries[key]
		label := entry[fieldLabel]
		start, there := began[label]
		at, _ := KeyTime(key)
		switch {
		case !s.owns(entry):
			k.Taken[key] = true
		case !there: // it is removed, or overwritten by whom its key belongs to
		case k.Of[label] == "" && !at.Before(start) && at.Sub(start) < longestMove:
			k.Of[label] = key
		default: // the record of another one, copied
			k.Taken[key] = true
		}
	}
	for label, key := range before {
		if _, there := began[label]; there && k.Of[label] == "" && held.Entries[key] == nil && !k.Taken[key] {
			k.Of[label] = key
		}
	}
	return k
}

// Reconcile is what has to change in a catalogue for it to tell of the backups in the
// repository: those that it lacks, those that it tells wrongly, and those that are gone.
// What others wrote stays. Where the repository has no backup at all none is gone:
// something else may be.
func Reconcile(held Held, s Source, keys Keys) []Change {
	var changes []Change
	wanted := map[string]bool{}
	for _, r := range slices.Backward(Records(s.Copies, s.Dir, keys)) {
		wanted[r.Key] = true
		have, want := held.Entries[r.Key], s.fields(r)
		c := Change{Key: r.Key, At: r.At, Set: map[string]string{}}
		for name, value := range want {
			if old, has := have[name]; !has || old != value {
				c.Set[name] = value
			}
		}
		for _, name := range fieldNames {
			_, has := have[name]
			if _, keep := want[name]; has && !keep {
				c.Unset = append(c.Unset, name)
			}
		}
		if at, listed := held.Index[r.Key]; len(c.Set)+len(c.Unset) > 0 || !listed || !at.Equal(r.At) {
			changes = append(changes, c)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(held.Entries)) {
		if s.gone(held.Entries[key]) && !wanted[key] && len(s.Copies) > 0 {
			changes = append(changes, Change{Key: key, Remove: true})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(held.Index)) {
		if _, isKey := KeyTime(key); isKey && held.Entries[key] == nil && !wanted[key] {
			changes = append(changes, Change{Key: key, Unlist: true})
		}
	}
	return changes
}

// gone reports whether a record is of a backup that the repository does not have any more.
func (s Source) gone(entry map[string]string) bool {
	return s.owns(entry) && !slices.ContainsFunc(s.Copies, func(c Copy) bool { return c.Label == entry[fieldLabel] })
}

// An Orphan is a record that reconciling leaves alone, and that tells of no backup of the
// repository.
type Orphan struct {
	Key   string
	Entry map[string]string
	Why   string
}

// Orphans are the records that only a person removes. others are further clusters whose
// repositories lie beside this one.
func Orphans(held Held, s Source, keys Keys, others []uint64) []Orphan {
	var orphans []Orphan
	for _, key := range slices.Sorted(maps.Keys(held.Entries)) {
		entry := held.Entries[key]
		if entry == nil {
			continue
		}
		o := Orphan{Key: key, Entry: entry}
		id, err := strconv.ParseUint(entry[fieldSystemID], 10, 64)
		switch {
		case entry[fieldLabel] == "" || err != nil:
			o.Why = "controld did not write it"
		case id != s.SystemID && slices.Contains(others, id):
			o.Why = fmt.Sprintf("it is of another cluster, %d, whose repository is kept beside this one", id)
		case id != s.SystemID:
			o.Why = fmt.Sprintf("it is of another cluster, %d", id)
		case entry[fieldStanza] != s.Stanza:
			o.Why = "it is of another stanza, " + entry[fieldStanza]
		case s.gone(entry):
			o.Why = "its backup is not in the repository"
		case keys.Of[entry[fieldLabel]] != key:
			o.Why = "its backup has another key, " + keys.Of[entry[fieldLabel]]
		default:
			continue
		}
		orphans = append(orphans, o)
	}
	return orphans
}
