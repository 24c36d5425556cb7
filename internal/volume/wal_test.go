package volume

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/node"
	"controld/internal/pgwal"
	"controld/internal/render"
	"controld/internal/wal"
)

const testSegment = 1 << 20

func newRepository(t *testing.T) *Repository {
	t.Helper()
	r := &Repository{Root: t.TempDir(), Settings: render.Repository{Stanza: "main"}}
	for _, name := range []string{"one", "two"} {
		r.Nodes = append(r.Nodes, cluster.Node{Name: name, Dir: t.TempDir()})
	}
	return r
}

func TestArchived(t *testing.T) {
	r := newRepository(t)
	if _, err := r.Archived(7, ""); err == nil {
		t.Error("an archive that is not there was read")
	}
	dir := filepath.Join(r.Root, "7", "archive", "main")
	for _, path := range []string{
		"archive.info", "15-1/00000002.history",
		"15-1/0000000100000000/000000010000000000000003-aa.zst", "15-1/0000000100000001/000000010000000100000004-bb.zst",
		"15-1/0000000200000001/000000020000000100000005-cc.zst",
	} {
		write(t, filepath.Join(dir, path), "")
	}
	const history, first, second, third = "00000002.history", "000000010000000000000003-aa.zst", "000000010000000100000004-bb.zst",
		"000000020000000100000005-cc.zst"
	for since, want := range map[string][]string{
		"":                         {history, first, second, third},
		"000000010000000000000003": {history, first, second, third},
		"000000010000000100000000": {history, second, third},
		"000000020000000000000001": {history, third},
		"00000003.history":         {history},
	} {
		got, err := r.Archived(7, since)
		slices.Sort(got)
		slices.Sort(want)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("since %q: %v, %v; want %v", since, got, err, want)
		}
	}
}

// putSegment makes a file of the log that has the pages of a segment.
func putSegment(t *testing.T, path string, pages wal.SegmentNumber) {
	t.Helper()
	b := make([]byte, 8192)
	binary.LittleEndian.PutUint64(b[8:], uint64(pages.Start(testSegment)))
	write(t, path, string(b))
}

func TestWhole(t *testing.T) {
	r := newRepository(t)
	leader, other := r.Nodes[0], r.Nodes[1]
	in := func(n cluster.Node, number wal.SegmentNumber) string {
		return filepath.Join(n.DataDir(), pgwal.DirName, wal.SegmentName(1, number, testSegment))
	}
	file := func(number wal.SegmentNumber) string { return wal.SegmentName(1, number, testSegment) }
	putSegment(t, in(leader, 1), 1) // and the other has it, too
	putSegment(t, in(other, 1), 1)
	putSegment(t, in(leader, 2), 9) // recycled
	putSegment(t, in(other, 2), 2)
	write(t, pgwal.DoneFile(other.DataDir(), file(2)), "")
	putSegment(t, in(other, 3), 3) // it may have received a part of it
	putSegment(t, in(leader, 4), 4)
	write(t, pgwal.ReadyFile(leader.DataDir(), file(4)), "")
	aside := filepath.Join(other.Dir, node.AsideDir, file(5))
	putSegment(t, aside, 5)
	putSegment(t, in(other, 6), 6)
	write(t, pgwal.ReadyFile(other.DataDir(), file(6)), "")
	history := filepath.Join(leader.DataDir(), pgwal.DirName, "00000002.history")
	write(t, history, "1\t0/0\twhy\n")
	for _, tt := range []struct {
		what, file, path string
		waits            bool
	}{
		{"the leader has it", file(1), in(leader, 1), false},
		{"the leader has recycled it", file(2), in(other, 2), false},
		{"another has a part of it", file(3), "", false},
		{"it is on the leader's list", file(4), "", true},
		{"it was set aside", file(5), aside, false},
		{"it was on the list of one that led", file(6), in(other, 6), false},
		{"nobody has it", file(7), "", false},
		{"a history", "00000002.history", history, false},
		{"a history that nobody has", "00000003.history", "", false},
	} {
		path, waits, err := r.Whole(leader, tt.file, testSegment)
		if path != tt.path || waits != tt.waits || err != nil {
			t.Errorf("%s: %q, %v, %v; want %q, %v", tt.what, path, waits, err, tt.path, tt.waits)
		}
	}
	// A volume that cannot be looked at is not one that has nothing.
	if err := os.Remove(aside); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(aside, aside); err != nil {
		t.Fatal(err)
	}
	if path, _, err := r.Whole(leader, file(5), testSegment); err == nil {
		t.Errorf("%q, and no error", path)
	}
}

// It is the one that pgBackRest has in its names.
func TestChecksum(t *testing.T) {
	r := newRepository(t)
	write(t, filepath.Join(r.Nodes[0].DataDir(), pgwal.DirName, "00000002.history"), "abc")
	const want = "a9993e364706816aba3e25717850c26c9cd0d89d" // FIPS 180-4's example
	if got, err := r.Checksum(r.Nodes[0], "00000002.history"); err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if _, err := r.Checksum(r.Nodes[0], "00000003.history"); err == nil {
		t.Error("a file that is not there has one")
	}
}

func TestArchiveSize(t *testing.T) {
	r := newRepository(t)
	if _, _, err := r.ArchiveSize(7, time.Time{}); err == nil {
		t.Error("an archive that is not there was measured")
	}
	dir := filepath.Join(r.Root, "7", "archive", "main")
	now := time.Now()
	for path, age := range map[string]time.Duration{
		"archive.info": 48 * time.Hour, "15-1/0000000100000000/000000010000000000000003-aa.zst": 48 * time.Hour,
		"15-1/0000000100000001/000000010000000100000004-bb.zst": time.Hour,
	} {
		write(t, filepath.Join(dir, path), "0123456789")
		if err := os.Chtimes(filepath.Join(dir, path), now, now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	if all, recent, err := r.ArchiveSize(7, now.Add(-24*time.Hour)); err != nil || all != 30 || recent != 10 {
		t.Errorf("%d bytes, %d of them recent, %v", all, recent, err)
	}
}
