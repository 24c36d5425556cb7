package backup

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// The repository of the tests has a full at 02:00 and an incremental an hour later.
func source(copies ...Copy) Source {
	return Source{SystemID: system, Stanza: "main", Copies: copies, Dir: func(label string) string { return "/repo/" + label }}
}

// written are the records of s in a catalogue that was empty, at the index's keys.
func written(s Source) Held {
	held := Held{Entries: map[string]map[string]string{}, Index: map[string]time.Time{}}
	apply(&held, Reconcile(held, s, s.keys(held, nil)))
	return held
}

func apply(held *Held, changes []Change) {
	f := newCatalogueFake()
	f.entries, f.index = held.Entries, held.Index
	for _, c := range changes {
		if err := f.Apply(nil, []Change{c}); err != nil { //nolint:staticcheck // the fake asks nothing of a context
			panic(err)
		}
	}
}

const (
	firstKey  = "backup:2026-03-01_02-00-00"
	secondKey = "backup:2026-03-01_03-00-00"
	oldKey    = "backup:2024-01-01_01-00-00"
)

func TestFields(t *testing.T) {
	c := copied("B", Incremental, time.Hour, "A")
	c.Prior, c.WALStart, c.WALStop, c.LSNStart, c.LSNStop, c.Timeline = "A", "W1", "W2", 0x1000028, 0x1000100, 3
	c.Bytes, c.CopiedBytes, c.RepoBytes, c.RepoOwnBytes = 100, 40, 30, 10
	c.Annotations = map[string]string{
		NoteOperation: "op.1", NotePrimary: "postgres_slave", NoteRequested: "incr", NoteCycleDay: "2", NoteReason: "night",
	}
	s := source(copied("A", Full, 0), c)
	want := map[string]string{
		"fecha": "2026-03-01", "hora": "03:00:00", "tipo_backup": "incremental", "direccion_almacenamiento": "/repo/B",
		"maestro_usado": "postgres_slave", "metodo": "pgBackRest", "stanza": "main",
		"label": "B", "type": "incr", "requested_type": "incr", "mode": "online", "consistent": "true", "page_errors": "false",
		"lsn_start": "0/1000028", "lsn_stop": "0/1000100", "wal_start": "W1", "wal_stop": "W2", "timeline": "3",
		"database_bytes": "100", "copied_bytes": "40", "own_bytes": "10", "repository_bytes": "30",
		"started_at": "2026-03-01T03:00:00Z", "ended_at": "2026-03-01T03:01:00Z", "duration_ms": "60000",
		"prior": "A", "needs": "A", "cycle_day": "2", "reason": "night", "operation": "op", "system_id": "4711",
	}
	held := written(s)
	if got := held.Entries[secondKey]; !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	for name := range want {
		if !slices.Contains(fieldNames, name) {
			t.Errorf("%s is not among the names of the fields", name)
		}
	}
	// One that was made by hand, offline, says what is known of it.
	offline := copied("A", Full, 0)
	offline.Mode = Offline
	got := written(source(offline)).Entries[firstKey]
	for _, name := range []string{"lsn_start", "timeline", "operation", "reason", "cycle_day", "prior"} {
		if value, has := got[name]; has {
			t.Errorf("%s: %q", name, value)
		}
	}
	if primary, has := got["maestro_usado"]; !has || primary != "" || got["consistent"] != "false" {
		t.Errorf("%v", got)
	}
}

func TestReconcile(t *testing.T) {
	a, b := copied("A", Full, 0), copied("B", Incremental, time.Hour, "A")
	both := source(a, b)
	for _, tt := range []struct {
		name   string
		source Source
		before func(Held) // what becomes of a catalogue that tells of both
		want   string     // the changes
	}{
		{"nothing differs", both, func(Held) {}, ""},
		{"it was emptied", both, func(h Held) { clear(h.Entries); clear(h.Index) }, "set " + firstKey + ", set " + secondKey},
		{"one record is missing", both, func(h Held) { delete(h.Entries, firstKey) }, "set " + firstKey},
		{"one is missing in the index", both, func(h Held) { delete(h.Index, firstKey) }, "list " + firstKey},
		{"one is at another place in the index", both, func(h Held) { h.Index[firstKey] = epoch.Add(time.Minute) }, "list " + firstKey},
		{"the index names what is not there", both, func(h Held) { h.Index[oldKey] = epoch }, "unlist " + oldKey},
		{"what others have in the index stays", both, func(h Held) { h.Index["latest"] = epoch }, ""},
		{"a field is wrong", both, func(h Held) { h.Entries[firstKey]["maestro_usado"] = "x" }, "set " + firstKey + " maestro_usado"},
		{"a field is no longer wanted", both, func(h Held) { h.Entries[firstKey]["cycle_day"] = "1" }, "unset " + firstKey + " cycle_day"},
		{"a field of others stays", both, func(h Held) { h.Entries[firstKey]["nota"] = "x" }, ""},
		{"a backup is gone", source(a), func(Held) {}, "remove " + secondKey},
		{"the repository has none at all", source(), func(Held) {}, ""},
		{"another cluster's repository", Source{SystemID: otherSystem, Stanza: "main", Copies: []Copy{copied("C", Full, 2*time.Hour)},
			Dir: both.Dir}, func(Held) {}, "set backup:2026-03-01_04-00-00"},
		{"another stanza", Source{SystemID: system, Stanza: "other", Copies: []Copy{copied("C", Full, 2*time.Hour)}, Dir: both.Dir},
			func(Held) {}, "set backup:2026-03-01_04-00-00"},
		{"what others wrote stays", both, func(h Held) { h.Entries[oldKey] = map[string]string{"fecha": "2024-01-01"} }, ""},
		{"its second is another's", both, func(h Held) {
			h.Entries[firstKey] = map[string]string{"fecha": "2026-03-01"}
			delete(h.Index, firstKey)
		}, "set backup:2026-03-01_02-00-01"},
		{"its second is no record", both, func(h Held) { h.Entries[firstKey] = nil; delete(h.Index, firstKey) },
			"set backup:2026-03-01_02-00-01"},
		{"a key that has moved is kept", both, func(h Held) {
			h.Entries["backup:2026-03-01_02-00-02"], h.Index["backup:2026-03-01_02-00-02"] = h.Entries[firstKey], epoch.Add(2*time.Second)
			h.Entries["backup:2026-03-01_02-00-02"]["hora"] = "02:00:02"
			delete(h.Entries, firstKey)
			delete(h.Index, firstKey)
		}, ""},
		{"one that somebody has copied stays, and is not the backup's", both, func(h Held) {
			h.Entries["backup:2026-03-02_02-00-01"] = maps.Clone(h.Entries[firstKey])
			h.Entries["backup:2025-03-02_02-00-01"] = maps.Clone(h.Entries[firstKey])
		}, ""},
		{"a key goes from one that is gone to one that is there", source(a, copied("B2", Full, time.Hour)), func(Held) {},
			"set " + secondKey},
	} {
		held := written(both)
		tt.before(held)
		changes := Reconcile(held, tt.source, tt.source.keys(held, nil))
		begins := func(got, want string) bool { return strings.HasPrefix(got, want) && (got == "") == (want == "") }
		if got, want := said(changes), strings.Split(tt.want, ", "); !slices.EqualFunc(got, want, begins) {
			t.Errorf("%s: %q, want %q", tt.name, got, want)
		}
		apply(&held, changes)
		if again := Reconcile(held, tt.source, tt.source.keys(held, nil)); len(again) > 0 {
			t.Errorf("%s: a second time: %q", tt.name, said(again))
		}
	}
}

// said are changes as lines.
func said(changes []Change) []string {
	if len(changes) == 0 {
		return []string{""}
	}
	var all []string
	for _, c := range changes {
		what, names := "list", ""
		switch {
		case c.Remove:
			what = "remove"
		case c.Unlist:
			what = "unlist"
		case len(c.Set) > 0:
			what, names = "set", " "+strings.Join(slices.Sorted(maps.Keys(c.Set)), " ")
		case len(c.Unset) > 0:
			what, names = "unset", " "+strings.Join(c.Unset, " ")
		}
		all = append(all, what+" "+c.Key+names)
	}
	return all
}

// What was known before is kept while the catalogue has nothing, but not against others.
func TestKeysAreKept(t *testing.T) {
	s := source(copied("A", Full, 0))
	before := map[string]string{"A": "backup:2026-03-01_02-00-05", "gone": oldKey}
	k := s.keys(Held{}, before)
	if len(k.Of) != 1 || k.Of["A"] != before["A"] {
		t.Errorf("%v", k.Of)
	}
	held := Held{Entries: map[string]map[string]string{before["A"]: {"fecha": "x"}}}
	if k = s.keys(held, before); k.Of["A"] != "" {
		t.Errorf("the key of others: %v", k.Of)
	}
}

func TestOrphans(t *testing.T) {
	s := source(copied("A", Full, 0), copied("B", Incremental, time.Hour, "A"))
	held := written(s)
	held.Entries["backup:2024-01-01_01-00-00"] = map[string]string{"fecha": "2024-01-01", "maestro_usado": "postgres_master"}
	held.Entries["backup:2024-01-01_02-00-00"] = nil
	for key, change := range map[string]map[string]string{
		"backup:2024-01-01_03-00-00": {"system_id": "4712"}, "backup:2024-01-01_04-00-00": {"system_id": "4713"},
		"backup:2024-01-01_05-00-00": {"stanza": "old"}, "backup:2024-01-01_06-00-00": {"label": "C"},
		"backup:2024-01-01_07-00-00": {"nota": "a copy"},
	} {
		held.Entries[key] = maps.Clone(held.Entries[firstKey])
		maps.Copy(held.Entries[key], change)
	}
	want := []string{
		"01 controld did not write it", "03 it is of another cluster, 4712, whose repository is kept beside this one",
		"04 it is of another cluster, 4713", "05 it is of another stanza, old", "06 its backup is not in the repository",
		"07 its backup has another key, " + firstKey,
	}
	orphans := Orphans(held, s, s.keys(held, nil), []uint64{otherSystem})
	if len(orphans) != len(want) {
		t.Fatalf("%d: %+v", len(orphans), orphans)
	}
	for i, o := range orphans {
		if got := o.Key[len("backup:2024-01-01_"):][:2] + " " + o.Why; got != want[i] {
			t.Errorf("%q, want %q", got, want[i])
		}
	}
}
