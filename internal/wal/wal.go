// Package wal is the arithmetic of PostgreSQL's write-ahead log: positions,
// timelines and segment names. It reads no file and asks no server.
package wal

import (
	"fmt"
	"strconv"
	"strings"
)

// An LSN is a byte position in the write-ahead log. The zero LSN is invalid,
// as in PostgreSQL.
type LSN uint64

// ParseLSN reads the form that PostgreSQL prints, such as 16/B374D848.
func ParseLSN(s string) (LSN, error) {
	high, low, ok := strings.Cut(s, "/")
	if !ok {
		return 0, fmt.Errorf("LSN %q: want two hexadecimal numbers with a slash between", s)
	}
	h, err := strconv.ParseUint(high, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("LSN %q: %w", s, err)
	}
	l, err := strconv.ParseUint(low, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("LSN %q: %w", s, err)
	}
	return LSN(h<<32 | l), nil
}

func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// MarshalText makes JSON carry an LSN as PostgreSQL prints it.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (l *LSN) UnmarshalText(text []byte) error {
	parsed, err := ParseLSN(string(text))
	if err != nil {
		return err
	}
	*l = parsed
	return nil
}

// Behind is how many bytes l is behind other; 0 when it is not.
func (l LSN) Behind(other LSN) int64 {
	if l >= other {
		return 0
	}
	return int64(other - l)
}

// A Timeline is one line of the history of a cluster: every promotion begins a
// new one. Timelines start at 1; 0 is unknown.
type Timeline uint32

// HistoryName is the name of the file that says where t branched off.
func (t Timeline) HistoryName() string { return fmt.Sprintf("%08X.history", uint32(t)) }

// ParseHistoryName is the inverse of HistoryName. ok is false for every other name.
func ParseHistoryName(name string) (t Timeline, ok bool) {
	digits, isHistory := strings.CutSuffix(name, ".history")
	if !isHistory || len(digits) != 8 || strings.ToUpper(digits) != digits {
		return 0, false
	}
	v, err := strconv.ParseUint(digits, 16, 32)
	return Timeline(v), err == nil && v > 0
}

// A SegmentNumber counts the files of the log from its beginning.
type SegmentNumber uint64

// Segment returns the number of the segment that holds the byte at l, where
// segments are of sizeBytes each.
func (l LSN) Segment(sizeBytes int64) SegmentNumber {
	return SegmentNumber(uint64(l) / uint64(sizeBytes))
}

// Start is the position of the segment's first byte.
func (n SegmentNumber) Start(sizeBytes int64) LSN { return LSN(uint64(n) * uint64(sizeBytes)) }

// SegmentName is the file name of segment n on timeline t, 24 hexadecimal
// digits as XLogFileName in PostgreSQL's xlog_internal.h.
func SegmentName(t Timeline, n SegmentNumber, sizeBytes int64) string {
	perID := uint64(0x100000000) / uint64(sizeBytes)
	return fmt.Sprintf("%08X%08X%08X", uint32(t), uint64(n)/perID, uint64(n)%perID)
}

// ParseSegmentName is the inverse of SegmentName. ok is false for a name that
// is not one of a whole segment (history, backup label, partial).
func ParseSegmentName(name string, sizeBytes int64) (t Timeline, n SegmentNumber, ok bool) {
	if len(name) != 24 || strings.ToUpper(name) != name {
		return 0, 0, false
	}
	var parts [3]uint64
	for i := range parts {
		v, err := strconv.ParseUint(name[i*8:i*8+8], 16, 32)
		if err != nil {
			return 0, 0, false
		}
		parts[i] = v
	}
	perID := uint64(0x100000000) / uint64(sizeBytes)
	if parts[2] >= perID {
		return 0, 0, false
	}
	return Timeline(parts[0]), SegmentNumber(parts[1]*perID + parts[2]), true
}
