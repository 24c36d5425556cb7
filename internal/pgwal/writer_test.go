package pgwal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"controld/internal/wal"
)

const testSegment = 1 << 20 // the smallest that PostgreSQL has

// A logWriter writes WAL as PostgreSQL does, page by page.
type logWriter struct {
	t        *testing.T
	dir      string // PGDATA
	timeline wal.Timeline
	at, prev wal.LSN
	content  map[wal.SegmentNumber][]byte
}

func newLog(t *testing.T, at wal.LSN) *logWriter {
	t.Helper()
	w := &logWriter{t: t, dir: t.TempDir(), timeline: 1, at: at, content: map[wal.SegmentNumber][]byte{}}
	for _, name := range []string{"pg_wal", "global"} {
		if err := os.MkdirAll(filepath.Join(w.dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// clone is another node with the same WAL so far.
func (w *logWriter) clone() *logWriter {
	c := newLog(w.t, w.at)
	c.prev, c.timeline = w.prev, w.timeline
	for n, b := range w.content {
		c.content[n] = append([]byte(nil), b...)
	}
	return c
}

func (w *logWriter) segment(n wal.SegmentNumber) []byte {
	if w.content[n] == nil {
		w.content[n] = make([]byte, testSegment)
	}
	return w.content[n]
}

// put writes bytes, with the header of each page that begins; rest is how much
// of the record is left from there.
func (w *logWriter) put(b []byte, flags uint16) {
	for len(b) > 0 {
		n := w.at.Segment(testSegment)
		seg := w.segment(n)
		offset := int(w.at - n.Start(testSegment))
		if offset%pageBytes == 0 {
			offset += w.pageHeader(seg[offset:], n, flags, len(b))
			w.at = n.Start(testSegment) + wal.LSN(offset)
		}
		k := copy(seg[offset:offset+pageBytes-offset%pageBytes], b)
		b, w.at, flags = b[k:], w.at+wal.LSN(k), flagContinued
	}
}

func (w *logWriter) pageHeader(page []byte, n wal.SegmentNumber, flags uint16, rest int) int {
	size := shortHeaderBytes
	if w.at == n.Start(testSegment) {
		size, flags = longHeaderBytes, flags|flagLong
	}
	le := binary.LittleEndian
	le.PutUint16(page, 0xD110)
	le.PutUint16(page[2:], flags)
	le.PutUint32(page[4:], uint32(w.timeline))
	le.PutUint64(page[8:], uint64(w.at))
	if flags&flagContinued != 0 {
		le.PutUint32(page[16:], uint32(rest))
	}
	return size
}

func bytesOf(payload int, fill byte, prev wal.LSN, manager, info byte) []byte {
	b := make([]byte, recordHeader+payload)
	for i := range payload {
		b[recordHeader+i] = fill + byte(i)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	binary.LittleEndian.PutUint64(b[offRecordPrev:], uint64(prev))
	b[offRecordInfo], b[offRecordManager] = info, manager
	sum := crc32.Update(crc32.Checksum(b[recordHeader:], castagnoli), castagnoli, b[:offRecordCRC])
	binary.LittleEndian.PutUint32(b[offRecordCRC:], sum)
	return b
}

// record writes one and returns where it begins.
func (w *logWriter) record(payload int, fill byte) wal.LSN { return w.typed(payload, fill, 10, 0) }

func (w *logWriter) typed(payload int, fill, manager, info byte) wal.LSN {
	start := w.begin()
	w.put(bytesOf(payload, fill, w.prev, manager, info), 0)
	w.at, w.prev = align(w.at), start
	return start
}

// begin is where the next record begins: behind the page's header.
func (w *logWriter) begin() wal.LSN {
	switch {
	case w.at%testSegment == 0:
		return w.at + longHeaderBytes
	case w.at%pageBytes == 0:
		return w.at + shortHeaderBytes
	}
	return w.at
}

// switchSegment writes XLOG_SWITCH.
func (w *logWriter) switchSegment() {
	w.typed(0, 0, managerXLOG, infoSwitch)
	w.at = (w.at + testSegment - 1).Segment(testSegment).Start(testSegment)
}

// fill writes records until less than left bytes of the segment are left.
func (w *logWriter) fill(left wal.LSN) {
	n := w.at.Segment(testSegment)
	for (n+1).Start(testSegment)-w.at > left {
		w.record(100, byte(w.at))
	}
}

// fork goes on with another timeline from here: its first segment holds a copy
// of the old one's.
func (w *logWriter) fork(t wal.Timeline) {
	w.history(t, fmt.Sprintf("%d\t%s\tno recovery target specified\n", w.timeline, w.at))
	w.timeline = t
}

func (w *logWriter) history(t wal.Timeline, text string) {
	w.write(t.HistoryName(), []byte(text))
}

func (w *logWriter) write(name string, content []byte) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, DirName, name), content, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// save writes the segments, named by the timeline of their last page, and a
// control file with this redo point.
func (w *logWriter) save(redo wal.LSN) {
	w.t.Helper()
	for n, b := range w.content {
		t := wal.Timeline(1)
		for p := 0; p < testSegment; p += pageBytes {
			t = max(t, wal.Timeline(binary.LittleEndian.Uint32(b[p+4:])))
		}
		if n == w.at.Segment(testSegment) {
			t = w.timeline
		}
		w.write(wal.SegmentName(t, n, testSegment), b)
	}
	w.control(redo, w.timeline)
}

// control writes a pg_control of PostgreSQL 15 in production.
func (w *logWriter) control(redo wal.LSN, t wal.Timeline) {
	w.t.Helper()
	b := make([]byte, 8192)
	le := binary.LittleEndian
	le.PutUint64(b, 4711)
	le.PutUint32(b[8:], 1300)
	le.PutUint32(b[16:], 6)
	le.PutUint64(b[32:], uint64(redo))
	le.PutUint64(b[40:], uint64(redo))
	le.PutUint32(b[48:], uint32(t))
	le.PutUint32(b[228:], testSegment)
	le.PutUint32(b[288:], crc32.Checksum(b[:288], castagnoli))
	if err := os.WriteFile(filepath.Join(w.dir, "global", "pg_control"), b, 0o600); err != nil {
		w.t.Fatal(err)
	}
}
