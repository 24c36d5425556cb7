package wal

import (
	"encoding/json"
	"testing"
)

func TestLSN(t *testing.T) {
	for _, tt := range []struct {
		text string
		want LSN
		ok   bool
	}{
		{"0/0", 0, true},
		{"16/B374D848", 0x16_B374D848, true},
		{"ffffffff/ffffffff", 0xFFFFFFFF_FFFFFFFF, true},
		{"", 0, false},
		{"16", 0, false},
		{"16/", 0, false},
		{"16/B374D848/1", 0, false},
		{"1FFFFFFFF/0", 0, false},
		{"-1/0", 0, false},
	} {
		got, err := ParseLSN(tt.text)
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("ParseLSN(%q) = %v, %v; want %v, ok %v", tt.text, got, err, tt.want, tt.ok)
		}
	}
	if got := LSN(0x16_00000028).String(); got != "16/28" {
		t.Errorf("String() = %q, as PostgreSQL prints it: 16/28", got)
	}
}

func TestLSNInJSON(t *testing.T) {
	out, err := json.Marshal(map[string]LSN{"lsn": 0x1_00000010})
	if err != nil || string(out) != `{"lsn":"1/10"}` {
		t.Fatalf("Marshal = %s, %v", out, err)
	}
	var back map[string]LSN
	if err := json.Unmarshal(out, &back); err != nil || back["lsn"] != 0x1_00000010 {
		t.Fatalf("Unmarshal = %v, %v", back, err)
	}
}

func TestSegmentNames(t *testing.T) {
	const mb = 1 << 20
	for _, tt := range []struct {
		timeline  Timeline
		lsn       LSN
		sizeBytes int64
		want      string
	}{
		{1, 0x01000028, 16 * mb, "000000010000000000000001"},
		{0xA, 0x01000028, 4 * mb, "0000000A0000000000000004"},
		{2, 0x1_FFFFFFFF, 4 * mb, "0000000200000001000003FF"},
		{2, 0x2_00000000, 4 * mb, "000000020000000200000000"},
	} {
		n := tt.lsn.Segment(tt.sizeBytes)
		name := SegmentName(tt.timeline, n, tt.sizeBytes)
		if name != tt.want {
			t.Errorf("SegmentName(%d, %v) = %s, want %s", tt.timeline, tt.lsn, name, tt.want)
		}
		timeline, back, ok := ParseSegmentName(name, tt.sizeBytes)
		if !ok || timeline != tt.timeline || back != n {
			t.Errorf("ParseSegmentName(%s) = %d, %d, %v", name, timeline, back, ok)
		}
	}
	for _, name := range []string{
		"",
		"00000002.history",
		"0000000100000000000000010",
		"00000001000000000000040",
		"000000010000000000000400",
		"00000001000000000000000g",
		"0000000a0000000000000001",
	} {
		if _, _, ok := ParseSegmentName(name, 4*mb); ok {
			t.Errorf("ParseSegmentName(%q) took it for a segment", name)
		}
	}
}

func TestHistoryNames(t *testing.T) {
	for name, want := range map[string]Timeline{
		"00000002.history": 2, "0000000A.history": 10, "FFFFFFFF.history": 0xFFFFFFFF,
		"00000000.history": 0, "0000000a.history": 0, "2.history": 0, "000000020.history": 0, "+0000002.history": 0,
		"00000002.history.ready": 0, "00000002": 0, "": 0,
	} {
		got, ok := ParseHistoryName(name)
		if got != want && ok || ok != (want > 0) {
			t.Errorf("ParseHistoryName(%q) = %d, %v; want %d", name, got, ok, want)
		}
		if ok && got.HistoryName() != name {
			t.Errorf("%q is %d, whose file is %s", name, got, got.HistoryName())
		}
	}
}

func FuzzParseLSN(f *testing.F) {
	f.Add("16/B374D848")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLSN(s)
		if err != nil {
			return
		}
		if back, err := ParseLSN(l.String()); err != nil || back != l {
			t.Errorf("%q: %v does not read back: %v, %v", s, l, back, err)
		}
	})
}
