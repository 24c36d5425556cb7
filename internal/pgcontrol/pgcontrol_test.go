package pgcontrol

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"controld/internal/wal"
)

// golden are control files of one PostgreSQL 15.18 pair, each with what
// pg_controldata said of it.
var golden = []string{"shutdown", "production", "standby", "standby-shutdown", "promoted", "crashed"}

// controldata reads a field of pg_controldata's output.
func controldata(t *testing.T, text, label string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(label) + `: *(.*)$`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("pg_controldata says nothing of %q", label)
	}
	return m[1]
}

func TestReadAgreesWithPgControldata(t *testing.T) {
	for _, name := range golden {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
			if err != nil {
				t.Fatal(err)
			}
			d, err := Read(dataDirWith(t, readGolden(t, name)))
			if err != nil {
				t.Fatal(err)
			}
			for label, got := range map[string]string{
				"Database system identifier":         fmt.Sprint(d.SystemID),
				"Database cluster state":             d.State.String(),
				"pg_control last modified":           d.ModifiedAt.UTC().Format("Mon Jan _2 15:04:05 2006"),
				"Latest checkpoint location":         d.Checkpoint.String(),
				"Latest checkpoint's REDO location":  d.Redo.String(),
				"Latest checkpoint's TimeLineID":     fmt.Sprint(d.CheckpointTimeline),
				"Minimum recovery ending location":   d.MinRecovery.String(),
				"Min recovery ending loc's timeline": fmt.Sprint(d.MinRecoveryTimeline),
				"Bytes per WAL segment":              fmt.Sprint(d.SegmentBytes),
				"Data page checksum version":         fmt.Sprint(d.ChecksumVersion),
				"Latest checkpoint's REDO WAL file":  wal.SegmentName(d.CheckpointTimeline, d.Redo.Segment(d.SegmentBytes), d.SegmentBytes),
				"pg_control version number":          fmt.Sprint(version),
			} {
				if want := controldata(t, string(text), label); got != want {
					t.Errorf("%s = %q, pg_controldata says %q", label, got, want)
				}
			}
		})
	}
}

// A fast promotion writes its timeline to minRecoveryPoint alone until its
// first checkpoint has ended.
func TestTimelineOfAPromotedServerBeforeItsCheckpoint(t *testing.T) {
	d, err := Read(dataDirWith(t, readGolden(t, "promoted")))
	if err != nil {
		t.Fatal(err)
	}
	if d.CheckpointTimeline != 1 || d.Timeline() != 2 {
		t.Errorf("checkpoint's timeline %d, timeline %d; want 1, 2", d.CheckpointTimeline, d.Timeline())
	}
}

func TestReadErrors(t *testing.T) {
	if _, err := Read(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, ErrNoCluster) {
		t.Errorf("no data directory: %v, want ErrNoCluster", err)
	}
	if _, err := Read(t.TempDir()); !errors.Is(err, ErrNoCluster) {
		t.Errorf("empty data directory: %v, want ErrNoCluster", err)
	}
	whole := readGolden(t, "production")
	otherVersion := append([]byte(nil), whole...)
	otherVersion[offVersion]++
	sealed(otherVersion)
	for name, content := range map[string][]byte{
		"empty": {}, "cut off": whole[:200], "torn": torn(whole), "other version": otherVersion,
	} {
		start := time.Now()
		_, err := Read(dataDirWith(t, content))
		if !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %v, want ErrBroken", name, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s: %v until it gave up", name, took)
		}
	}
}

// A torn read is one of a moment: the writer is in the middle of the file.
func TestReadTriesATornFileAgain(t *testing.T) {
	whole := readGolden(t, "production")
	dir := dataDirWith(t, torn(whole))
	go func() {
		time.Sleep(readPause)
		// In place, as the server does.
		f, err := os.OpenFile(filepath.Join(dir, "global", "pg_control"), os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		if _, err := f.WriteAt(whole, 0); err != nil {
			t.Error(err)
		}
	}()
	if _, err := Read(dir); err != nil {
		t.Errorf("Read = %v after the file was whole again", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range golden {
		b, err := os.ReadFile(filepath.Join("testdata", name+".pg_control"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parse(b)
		if err != nil {
			if !errors.Is(err, ErrBroken) {
				t.Errorf("parse = %v, want ErrBroken", err)
			}
			return
		}
		if b[offVersion] != version&0xff || strings.Contains(d.Checkpoint.String(), " ") {
			t.Errorf("parse took %v", d)
		}
	})
}

func readGolden(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".pg_control"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func dataDirWith(t *testing.T, control []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "global"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "global", "pg_control"), control, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func torn(b []byte) []byte {
	b = append([]byte(nil), b...)
	b[offState]++
	return b
}

func sealed(b []byte) {
	crc := crc32.Checksum(b[:offCRC], castagnoli)
	for i := range 4 {
		b[offCRC+i] = byte(crc >> (8 * i))
	}
}
