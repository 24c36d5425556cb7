// Package pgcontrol reads a PostgreSQL 15 server's control file, global/pg_control,
// without the server: its state, its last checkpoint and its timeline.
// What follows from them is decided elsewhere.
package pgcontrol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"controld/internal/wal"
)

// A State is DBState of PostgreSQL's catalog/pg_control.h.
type State uint32

// The states of a cluster, with PostgreSQL 15's numbers.
const (
	StateStartup State = iota
	StateShutDown
	StateShutDownInRecovery
	StateShuttingDown
	StateInCrashRecovery
	StateInArchiveRecovery
	StateInProduction
)

// String names the state as pg_controldata does.
func (s State) String() string {
	switch s {
	case StateStartup:
		return "starting up"
	case StateShutDown:
		return "shut down"
	case StateShutDownInRecovery:
		return "shut down in recovery"
	case StateShuttingDown:
		return "shutting down"
	case StateInCrashRecovery:
		return "in crash recovery"
	case StateInArchiveRecovery:
		return "in archive recovery"
	case StateInProduction:
		return "in production"
	}
	return fmt.Sprintf("unknown state %d", uint32(s))
}

// Stopped reports whether the server wrote its last checkpoint in an orderly
// stop. Its last processes may still be ending.
func (s State) Stopped() bool { return s == StateShutDown || s == StateShutDownInRecovery }

// Recovering reports whether the server was, or is, a standby.
func (s State) Recovering() bool {
	return s == StateInArchiveRecovery || s == StateShutDownInRecovery
}

// Data is what controld needs of a control file.
type Data struct {
	SystemID            uint64
	State               State
	ModifiedAt          time.Time
	Checkpoint          wal.LSN      // of the last checkpoint record
	Redo                wal.LSN      // its redo point
	CheckpointTimeline  wal.Timeline // its timeline
	MinRecovery         wal.LSN      // minRecoveryPoint
	MinRecoveryTimeline wal.Timeline
	SegmentBytes        int64 // wal_segment_size
	ChecksumVersion     uint32
}

// Timeline is the larger of the checkpoint's and minRecoveryPoint's: a fast
// promotion updates only the latter until its first checkpoint.
func (d Data) Timeline() wal.Timeline { return max(d.CheckpointTimeline, d.MinRecoveryTimeline) }

// Errors of Read. ErrNoCluster: no data directory, or an empty one.
var (
	ErrNoCluster = errors.New("no database cluster there")
	ErrBroken    = errors.New("control file is broken")
)

// version is PG_CONTROL_VERSION of PostgreSQL 13 to 15.
const version = 1300

// Offsets of ControlFileData's fields where integers of 8 bytes are aligned to
// 8 and the byte order is little endian (x86-64, aarch64), as PostgreSQL 15
// lays them out. The CRC covers all before itself.
const (
	offSystemID            = 0
	offVersion             = 8
	offState               = 16
	offTime                = 24
	offCheckpoint          = 32
	offRedo                = 40
	offTimeline            = 48
	offMinRecovery         = 136
	offMinRecoveryTimeline = 144
	offSegmentBytes        = 228
	offChecksumVersion     = 252
	offCRC                 = 288
	sizeBytes              = 292
)

// A server rewrites the file in place, so a reader can meet half of two
// versions; the next try finds it whole.
const (
	readTries = 5
	readPause = 4 * time.Millisecond
)

// Read returns what the control file in the data directory dataDir says.
func Read(dataDir string) (Data, error) {
	path := filepath.Join(dataDir, "global", "pg_control")
	for try := 1; ; try++ {
		d, err := readOnce(path)
		if !errors.Is(err, ErrBroken) || try == readTries {
			return d, err
		}
		time.Sleep(readPause)
	}
}

func readOnce(path string) (Data, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Data{}, fmt.Errorf("%w: %w", ErrNoCluster, err)
	}
	if err != nil {
		return Data{}, fmt.Errorf("read control file: %w", err)
	}
	defer f.Close()
	var buf [sizeBytes]byte
	if _, err := io.ReadFull(f, buf[:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return Data{}, fmt.Errorf("%w: shorter than %d bytes", ErrBroken, sizeBytes)
	} else if err != nil {
		return Data{}, fmt.Errorf("read control file: %w", err)
	}
	return parse(buf[:])
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func parse(b []byte) (Data, error) {
	if len(b) < sizeBytes {
		return Data{}, fmt.Errorf("%w: %d bytes, shorter than %d", ErrBroken, len(b), sizeBytes)
	}
	le := binary.LittleEndian
	if got, want := crc32.Checksum(b[:offCRC], castagnoli), le.Uint32(b[offCRC:]); got != want {
		return Data{}, fmt.Errorf("%w: checksum is %08x, stored %08x", ErrBroken, got, want)
	}
	if v := le.Uint32(b[offVersion:]); v != version {
		return Data{}, fmt.Errorf("%w: version %d, want PostgreSQL 15's %d", ErrBroken, v, version)
	}
	return Data{
		SystemID:            le.Uint64(b[offSystemID:]),
		State:               State(le.Uint32(b[offState:])),
		ModifiedAt:          time.Unix(int64(le.Uint64(b[offTime:])), 0),
		Checkpoint:          wal.LSN(le.Uint64(b[offCheckpoint:])),
		Redo:                wal.LSN(le.Uint64(b[offRedo:])),
		CheckpointTimeline:  wal.Timeline(le.Uint32(b[offTimeline:])),
		MinRecovery:         wal.LSN(le.Uint64(b[offMinRecovery:])),
		MinRecoveryTimeline: wal.Timeline(le.Uint32(b[offMinRecoveryTimeline:])),
		SegmentBytes:        int64(le.Uint32(b[offSegmentBytes:])),
		ChecksumVersion:     le.Uint32(b[offChecksumVersion:]),
	}, nil
}
