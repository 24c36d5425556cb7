package pgwal

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"os"

	"controld/internal/wal"
)

// A span is a piece of the log that lies in one segment.
type span struct{ from, to wal.LSN }

// Layout of pages and records as PostgreSQL 15 writes them on little-endian
// machines: XLogPageHeaderData and XLogLongPageHeaderData in xlog_internal.h,
// XLogRecord in xlogrecord.h.
const (
	pageBytes        = 8192
	shortHeaderBytes = 24
	longHeaderBytes  = 40 // of the first page of a segment
	recordHeader     = 24
	offRecordPrev    = 8
	offRecordInfo    = 16
	offRecordManager = 17
	offRecordCRC     = 20
	recordAlign      = 8

	flagContinued = 0x01 // the page begins with the rest of a record
	flagLong      = 0x02
	// flagOverwritten: this page should go on with a record that a crash has cut off. A
	// new record stands there instead.
	flagOverwritten = 0x08

	managerXLOG = 0
	infoSwitch  = 0x40 // XLOG_SWITCH: the rest of the segment is empty
	infoMask    = 0xF0

	// largestRecord is above what PostgreSQL writes (XLogRecordMaxSize).
	largestRecord = 1 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A chain follows the records of one node's log.
type chain struct {
	dir      Dir
	segments map[wal.SegmentNumber]wal.Timeline
	number   wal.SegmentNumber // of the segment in content
	content  []byte
	magic    uint16 // of the first page that was read
	record   []byte // the record that is being put together
}

// page returns the page at position at. ok is false where its header says that it is
// another one, or none.
func (c *chain) page(at wal.LSN) (page []byte, flags uint16, ok bool) {
	n := at.Segment(c.dir.SegmentBytes)
	if c.content == nil || n != c.number {
		t, has := c.segments[n]
		if !has {
			return nil, 0, false
		}
		content, err := os.ReadFile(c.dir.path(t, n))
		if err != nil || int64(len(content)) != c.dir.SegmentBytes {
			return nil, 0, false
		}
		c.number, c.content = n, content
	}
	offset := int64(at - n.Start(c.dir.SegmentBytes))
	page = c.content[offset : offset+pageBytes]
	magic, flags := binary.LittleEndian.Uint16(page), binary.LittleEndian.Uint16(page[2:])
	if c.magic == 0 {
		c.magic = magic
	}
	ok = magic == c.magic && magic != 0 && wal.LSN(binary.LittleEndian.Uint64(page[8:])) == at &&
		(offset == 0) == (flags&flagLong != 0)
	return page, flags, ok
}

func headerBytes(flags uint16) wal.LSN {
	if flags&flagLong != 0 {
		return longHeaderBytes
	}
	return shortHeaderBytes
}

// follow reads the records from position from on, up to the first that is not whole. It
// returns what they cover, and the end of the last whole one; from where there is none.
// from is where a record begins, or the first byte of a segment.
func (c *chain) follow(ctx context.Context, from wal.LSN) (spans []span, end wal.LSN, err error) {
	end = from
	var prev wal.LSN // 0: not known
	for at := from; ; {
		if at.Segment(c.dir.SegmentBytes) != c.number {
			if err := ctx.Err(); err != nil {
				return nil, 0, err
			}
		}
		begin := at
		if at%pageBytes == 0 {
			var ok bool
			if at, ok = c.firstRecord(at, prev == 0); !ok {
				return spans, end, nil
			}
		}
		next, kind := c.next(at, prev)
		switch kind {
		case broken:
			return spans, end, nil
		case cutOff: // as far as it goes it is in both
			spans = c.cover(spans, begin, next)
			at = next
			continue
		}
		spans, prev, end = c.cover(spans, begin, next), at, next
		at = next
		if kind == switching {
			at = (next + wal.LSN(c.dir.SegmentBytes) - 1).Segment(c.dir.SegmentBytes).Start(c.dir.SegmentBytes)
		}
	}
}

// firstRecord is where the first record of the page at position at begins. A page can
// begin with the rest of a record from the page before. passOver skips that rest: it is
// set where the chain begins, for later on the rest has been read already.
func (c *chain) firstRecord(at wal.LSN, passOver bool) (wal.LSN, bool) {
	page, flags, ok := c.page(at)
	if !ok || flags&flagContinued != 0 && !passOver {
		return 0, false
	}
	if flags&flagContinued == 0 {
		return at + headerBytes(flags), true
	}
	for left := wal.LSN(binary.LittleEndian.Uint32(page[16:])); ; {
		room := pageBytes - headerBytes(flags)
		if left < room {
			return align(at + headerBytes(flags) + left), true
		}
		left -= room
		at += pageBytes
		if _, flags, ok = c.page(at); !ok || left > 0 && flags&flagContinued == 0 {
			return 0, false
		}
		if left == 0 {
			return at + headerBytes(flags), true
		}
	}
}

func align(l wal.LSN) wal.LSN { return (l + recordAlign - 1) &^ (recordAlign - 1) }

// What next found.
type recordKind int

const (
	broken    recordKind = iota // no whole record
	whole                       // one
	switching                   // one that ends its segment
	cutOff                      // the part of one that a crash has left
)

// next reads the record at position at and returns where it ends. Of a record that was
// cut off it returns the page that goes on with something else.
func (c *chain) next(at, prev wal.LSN) (end wal.LSN, kind recordKind) {
	pageAt := at &^ (pageBytes - 1)
	page, _, ok := c.page(pageAt)
	if !ok {
		return 0, broken
	}
	rest := page[at-pageAt:]
	total := int(binary.LittleEndian.Uint32(rest))
	if total < recordHeader || total > largestRecord {
		return 0, broken
	}
	n := min(total, len(rest))
	c.record = append(c.record[:0], rest[:n]...)
	end = at + wal.LSN(n)
	for left := total - n; left > 0; {
		pageAt += pageBytes
		page, flags, ok := c.page(pageAt)
		switch {
		case ok && flags&flagOverwritten != 0:
			return pageAt, cutOff
		case !ok || flags&flagContinued == 0 || int(binary.LittleEndian.Uint32(page[16:])) != left:
			return 0, broken
		}
		header := headerBytes(flags)
		n := min(left, pageBytes-int(header))
		c.record = append(c.record, page[header:int(header)+n]...)
		left -= n
		end = pageAt + header + wal.LSN(n)
	}
	if !validRecord(c.record, prev) {
		return 0, broken
	}
	if c.record[offRecordManager] == managerXLOG && c.record[offRecordInfo]&infoMask == infoSwitch {
		return align(end), switching
	}
	return align(end), whole
}

// validRecord checks a record's sum, and that it comes after the record at prev (0: not
// known).
func validRecord(record []byte, prev wal.LSN) bool {
	if prev != 0 && wal.LSN(binary.LittleEndian.Uint64(record[offRecordPrev:])) != prev {
		return false
	}
	sum := crc32.Update(crc32.Checksum(record[recordHeader:], castagnoli), castagnoli, record[:offRecordCRC])
	return sum == binary.LittleEndian.Uint32(record[offRecordCRC:])
}

// cover adds what lies between two positions, split by segments, and joined to
// the span before where that goes on.
func (c *chain) cover(spans []span, from, to wal.LSN) []span {
	for from < to {
		next := min(to, (from.Segment(c.dir.SegmentBytes) + 1).Start(c.dir.SegmentBytes))
		last := len(spans) - 1
		if last >= 0 && spans[last].to == from && from%wal.LSN(c.dir.SegmentBytes) != 0 {
			spans[last].to = next
		} else {
			spans = append(spans, span{from, next})
		}
		from = next
	}
	return spans
}
