package backup

import (
	"testing"
	"time"
)

var epoch = time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC)

// copied is a backup that began a while after the epoch and took a minute.
func copied(label string, t Type, after time.Duration, needs ...string) Copy {
	return Copy{Label: label, Type: t, Mode: Online, StartedAt: epoch.Add(after), EndedAt: epoch.Add(after + time.Minute), Needs: needs}
}

func TestRecords(t *testing.T) {
	noted := copied("C", Incremental, time.Hour, "A")
	noted.Annotations = map[string]string{NoteOperation: "op.1", NotePrimary: "postgres_slave", NoteRequested: "incr", NoteCycleDay: "2"}
	records := Records([]Copy{copied("A", Full, 0), copied("B", Full, 0), copied("B2", Full, time.Second), noted},
		func(label string) string { return "/repo/" + label }, Keys{})
	want := []struct{ key, label string }{ // a taken second moves to the next, and takes that from whom it belongs to
		{"backup:2026-03-01_03-00-00", "C"}, {"backup:2026-03-01_02-00-02", "B2"},
		{"backup:2026-03-01_02-00-01", "B"}, {"backup:2026-03-01_02-00-00", "A"},
	}
	if len(records) != len(want) {
		t.Fatalf("%d records", len(records))
	}
	for i, w := range want {
		if r := records[i]; r.Key != w.key || r.Label != w.label || r.Dir != "/repo/"+w.label {
			t.Errorf("record %d: %s %s in %s, want %v", i, r.Key, r.Label, r.Dir, w)
		}
	}
	if r := records[0]; r.Operation != "op" || r.Primary != "postgres_slave" || r.Requested != Incremental || r.CycleDay != "2" {
		t.Errorf("%+v", r)
	}
	for _, name := range []string{"backup:2026-03-01_03-00-00", "2026-03-01_03-00-00", "C"} {
		if r, found := Find(records, name); !found || r.Label != "C" {
			t.Errorf("%s is not found: %+v", name, r)
		}
	}
	if r, found := Find(records, "2026-03-01"); found {
		t.Errorf("half a key found %s", r.Key)
	}
	if chain := Chain(records, records[0]); len(chain) != 2 || chain[0].Label != "C" || chain[1].Label != "A" {
		t.Errorf("chain: %+v", chain)
	}
}

func TestRecoverableFrom(t *testing.T) {
	offline := copied("A", Full, 0)
	offline.Mode = Offline
	broken := copied("A", Full, 0)
	broken.PageErrors = true
	minute := func(n int) time.Time { return epoch.Add(time.Duration(n) * time.Minute) }
	for _, tt := range []struct {
		name   string
		copies []Copy
		want   time.Time
	}{
		{"there is none", nil, time.Time{}},
		{"the oldest", []Copy{copied("A", Full, 0), copied("B", Incremental, time.Hour, "A")}, minute(1)},
		{"offline does not count", []Copy{offline, copied("B", Full, time.Hour)}, minute(61)},
		{"page errors do not count", []Copy{broken}, time.Time{}},
		{"what it needs is gone", []Copy{copied("B", Incremental, time.Hour, "A"), copied("C", Full, 2*time.Hour)}, minute(121)},
	} {
		got, ok := RecoverableFrom(tt.copies, Continuity{}.Reaches)
		if !got.Equal(tt.want) || ok == tt.want.IsZero() {
			t.Errorf("%s: %s, %v", tt.name, got, ok)
		}
	}
}
