package server

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"controld/internal/node"
	"controld/internal/wal"
)

const testSegment = 1 << 20 // the smallest that PostgreSQL has

// segment is a file of WAL that is filled up to some byte.
func segment(number wal.SegmentNumber, filled int) []byte {
	b := make([]byte, testSegment)
	for i := range filled {
		b[i] = byte(i%251) + byte(number)
	}
	binary.LittleEndian.PutUint64(b[8:], uint64(number.Start(testSegment)))
	return b
}

func walName(t wal.Timeline, n wal.SegmentNumber) string { return wal.SegmentName(t, n, testSegment) }

type volumes struct{ dead, own string } // the pg_wal of both

func newVolumes(t *testing.T) volumes {
	t.Helper()
	v := volumes{filepath.Join(t.TempDir(), "data", "pg_wal"), filepath.Join(t.TempDir(), "data", "pg_wal")}
	for _, dir := range []string{v.dead, v.own} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

func (v volumes) salvage(t *testing.T, from wal.LSN, timeline wal.Timeline) (*salvager, error) {
	t.Helper()
	s := &salvager{
		from: &node.Salvage{DataDir: filepath.Dir(v.dead), FromLSN: from, FromTimeline: timeline, SegmentBytes: testSegment},
		to:   v.own, uid: os.Geteuid(), gid: os.Getegid(),
	}
	return s, s.run(t.Context())
}

func write(t *testing.T, dir, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSalvageFetchesWhatIsMissing(t *testing.T) {
	v := newVolumes(t)
	from := wal.SegmentNumber(7).Start(testSegment) + 1000
	write(t, v.dead, walName(2, 6), segment(6, testSegment))         // before the position
	write(t, v.dead, walName(1, 7), segment(7, testSegment))         // an older timeline's
	write(t, v.dead, walName(2, 7), segment(7, testSegment))         // the own one is partly filled
	write(t, v.dead, walName(2, 8), segment(8, testSegment))         // missing here
	write(t, v.dead, walName(2, 9), segment(9, 5000))                // the last, partly filled; a recycled one here
	write(t, v.dead, walName(2, 10), segment(4, testSegment))        // recycled: its pages say 4
	write(t, v.dead, "00000002.history", []byte("1\t0/700000\tx\n")) // missing here
	write(t, v.dead, "00000001.history", []byte("theirs"))           // not missing here
	write(t, v.dead, walName(2, 8)+".partial", segment(8, 10))
	write(t, v.own, walName(2, 7), segment(7, 2000))
	write(t, v.own, walName(2, 9), segment(3, testSegment))
	write(t, v.own, "00000001.history", []byte("ours"))

	s, err := v.salvage(t, from, 2)
	if err != nil {
		t.Fatal(err)
	}
	if s.files.Load() != 4 || s.bytes.Load() < 3*testSegment {
		t.Errorf("%d files, %d bytes", s.files.Load(), s.bytes.Load())
	}
	for name, want := range map[string][]byte{
		walName(2, 7): segment(7, testSegment), walName(2, 8): segment(8, testSegment), walName(2, 9): segment(9, 5000),
		"00000002.history": []byte("1\t0/700000\tx\n"), "00000001.history": []byte("ours"),
	} {
		if got, err := os.ReadFile(filepath.Join(v.own, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what it should be: %v", name, err)
		}
	}
	entries, err := os.ReadDir(v.own)
	if err != nil || len(entries) != 5 {
		t.Errorf("%v, %v", entries, err)
	}

	again, err := v.salvage(t, from, 2)
	if err != nil || again.files.Load() != 0 {
		t.Errorf("again: %d files, %v", again.files.Load(), err)
	}
}

// Where the dead node has removed WAL that the standby lacks, what comes after
// it is of no use, and nobody may be told that nothing is lost.
func TestSalvageRefusesAGap(t *testing.T) {
	for _, gap := range []wal.SegmentNumber{7, 8} {
		v := newVolumes(t)
		for n := wal.SegmentNumber(7); n <= 9; n++ {
			if n != gap {
				write(t, v.dead, walName(1, n), segment(n, testSegment))
			}
		}
		write(t, v.own, walName(1, 7), segment(7, 1000))
		s, err := v.salvage(t, wal.SegmentNumber(7).Start(testSegment)+1000, 1)
		if err == nil || !strings.Contains(err.Error(), "was removed") || s.files.Load() != 0 {
			t.Errorf("without segment %d: %d files, %v", gap, s.files.Load(), err)
		}
	}
}

// What the standby has replayed and the dead node does not have is another
// history; the standby's files stay as they are.
func TestSalvageRefusesAnotherHistory(t *testing.T) {
	v := newVolumes(t)
	from := wal.SegmentNumber(7).Start(testSegment) + 3000
	ours := segment(7, 3000)
	theirs := segment(7, testSegment)
	theirs[2500]++
	write(t, v.own, walName(1, 7), ours)
	write(t, v.dead, walName(1, 7), theirs)
	if _, err := v.salvage(t, from, 1); err == nil || !strings.Contains(err.Error(), "byte 2500") {
		t.Errorf("salvage: %v", err)
	}
	if got, _ := os.ReadFile(filepath.Join(v.own, walName(1, 7))); !bytes.Equal(got, ours) {
		t.Error("the own file was replaced")
	}
}

// A promotion of the dead node that was undone may have left files of a
// timeline that its control file does not know.
func TestSalvageLeavesAHalfMadeTimeline(t *testing.T) {
	v := newVolumes(t)
	t.Setenv("FAKE_GOLDEN_DIR", "../../pgcontrol/testdata")
	if err := os.Mkdir(filepath.Join(filepath.Dir(v.dead), "global"), 0o700); err != nil {
		t.Fatal(err)
	}
	setControl(filepath.Dir(v.dead), "promoted") // timeline 2, by minRecoveryPoint
	for timeline := wal.Timeline(1); timeline <= 3; timeline++ {
		write(t, v.dead, walName(timeline, 7), segment(7, testSegment))
		write(t, v.dead, timeline.HistoryName(), []byte("x"))
	}
	if _, err := v.salvage(t, wal.SegmentNumber(7).Start(testSegment), 1); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{walName(1, 7), walName(2, 7), "00000002.history"} {
		if !exists(filepath.Join(v.own, name)) {
			t.Errorf("%s was not fetched", name)
		}
	}
	for _, name := range []string{walName(3, 7), "00000003.history"} {
		if exists(filepath.Join(v.own, name)) {
			t.Errorf("%s was fetched", name)
		}
	}
}

func TestSalvageOfATruncatedSegment(t *testing.T) {
	v := newVolumes(t)
	write(t, v.dead, walName(1, 7), segment(7, 1000)[:5000])
	if _, err := v.salvage(t, 0, 1); err == nil || exists(filepath.Join(v.own, walName(1, 7))) {
		t.Errorf("salvage: %v", err)
	}
}

func TestSalvageLeavesALivingServerAlone(t *testing.T) {
	v := newVolumes(t)
	write(t, v.dead, walName(1, 7), segment(7, testSegment))
	lock, err := node.OpenLock(filepath.Dir(filepath.Dir(v.dead)))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if ok, err := node.TryLock(lock); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if s, err := v.salvage(t, 0, 1); err == nil || s.files.Load() != 0 {
		t.Errorf("salvage: %d files, %v", s.files.Load(), err)
	}
}

func TestSalvageOfAnUnreadableVolume(t *testing.T) {
	v := newVolumes(t)
	if err := os.RemoveAll(filepath.Dir(v.dead)); err != nil {
		t.Fatal(err)
	}
	if _, err := v.salvage(t, 0, 1); err == nil {
		t.Error("nothing was there, and nothing was said")
	}
}
