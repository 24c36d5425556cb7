package backup

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// A Record is a backup as the catalogue has it: what is in the repository, by the names
// that its users know.
type Record struct {
	Key string // backup:YYYY-MM-DD_HH-MM-SS, when it began in UTC
	At  time.Time
	Copy
	Dir       string // where its files lie
	Primary   string // the container that led; empty: not known
	Requested Type
	CycleDay  string
	Reason    string
	Operation string
}

// KeyPrefix is what every key of the catalogue begins with.
const KeyPrefix = "backup:"

// keyTime is the time in a key.
const keyTime = "2006-01-02_15-04-05"

// KeyTime is the time in a key, and false where that is no key of the catalogue.
func KeyTime(key string) (time.Time, bool) {
	text, prefixed := strings.CutPrefix(key, KeyPrefix)
	at, err := time.Parse(keyTime, text)
	return at, prefixed && err == nil
}

// Keys are those of a catalogue that are given away.
type Keys struct {
	Of    map[string]string // the key that a backup has, by its label
	Taken map[string]bool   // those that others have
}

// Records are the copies, the oldest of which is first, as the catalogue has them, the
// newest first. dir says where the files of one lie. A backup keeps the key that it has; a
// second that is taken moves to the next.
func Records(copies []Copy, dir func(label string) string, keys Keys) []Record {
	var records []Record
	taken := maps.Clone(keys.Taken)
	if taken == nil {
		taken = map[string]bool{}
	}
	for _, c := range copies {
		if key := keys.Of[c.Label]; key != "" {
			taken[key] = true
		}
	}
	for _, c := range copies {
		at, has := KeyTime(keys.Of[c.Label])
		if !has {
			at = c.StartedAt.UTC().Truncate(time.Second)
			for taken[KeyPrefix+at.Format(keyTime)] {
				at = at.Add(time.Second)
			}
			taken[KeyPrefix+at.Format(keyTime)] = true
		}
		operation, _, _ := strings.Cut(c.Annotations[NoteOperation], ".")
		records = append(records, Record{
			Key: KeyPrefix + at.Format(keyTime), At: at, Copy: c, Dir: dir(c.Label),
			Primary: c.Annotations[NotePrimary], Requested: Type(c.Annotations[NoteRequested]),
			CycleDay: c.Annotations[NoteCycleDay], Reason: c.Annotations[NoteReason], Operation: operation,
		})
	}
	slices.Reverse(records)
	return records
}

// NearlyFull reports whether a backup that is no full has copied nearly everything, as the
// first one after a failover does: the files of two nodes differ by hints that say nothing.
func (c Copy) NearlyFull() bool { return c.Type != Full && c.CopiedBytes*5 >= c.Bytes*4 && c.Bytes > 0 }

// Find returns the record with this key, with or without its prefix, or label.
func Find(records []Record, name string) (Record, bool) {
	at := slices.IndexFunc(records, func(r Record) bool {
		return r.Key == name || r.Key == KeyPrefix+name || r.Label == name
	})
	if at < 0 {
		return Record{}, false
	}
	return records[at], true
}

// Chain is the record and those that it needs, the newest first.
func Chain(records []Record, r Record) []Record {
	var chain []Record
	for _, x := range records {
		if x.Label == r.Label || slices.Contains(r.Needs, x.Label) {
			chain = append(chain, x)
		}
	}
	return chain
}

// Tipo is the type in the catalogue's own words.
func (t Type) Tipo() string {
	switch t {
	case Full:
		return "completo"
	case Differential:
		return "diferencial"
	case Incremental:
		return "incremental"
	}
	return ""
}

// RecoverableFrom is the end of the oldest backup that is consistent, has all that it
// needs, and from which WAL reaches the present; false where there is none. The copies are
// the oldest first.
func RecoverableFrom(copies []Copy, reaches func(Copy) bool) (time.Time, bool) {
	there := map[string]bool{}
	for _, c := range copies {
		lacks := slices.ContainsFunc(c.Needs, func(label string) bool { return !there[label] })
		if c.Consistent() && !lacks && reaches(c) {
			return c.EndedAt, true
		}
		there[c.Label] = true
	}
	return time.Time{}, false
}

// recoverableFrom is that of the repository, as of the last looks.
func (b *Backups) recoverableFrom() (time.Time, bool) {
	return RecoverableFrom(b.Seen().Copies, b.Continuity().Reaches)
}
