package archive

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What is pushed is a whole copy of what the name says.
func TestCopyWhole(t *testing.T) {
	const size = 1 << 20
	segment := func(number uint64) []byte {
		b := make([]byte, size)
		binary.LittleEndian.PutUint64(b[8:], number*size)
		return b
	}
	for _, tt := range []struct {
		name, file string
		content    []byte
		want       error
	}{
		{"a segment", "000000010000000000000005", segment(5), nil},
		{"one that was recycled", "000000010000000000000005", segment(2), errReplaced},
		{"a history", "00000002.history", []byte("1\t0/5000000\twhy\n"), nil},
		{"nothing", "000000010000000000000006", nil, os.ErrNotExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			from, to := filepath.Join(t.TempDir(), tt.file), filepath.Join(t.TempDir(), tt.file)
			if tt.content != nil {
				if err := os.WriteFile(from, tt.content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := copyWhole(from, to); !errors.Is(err, tt.want) {
				t.Fatalf("%v, want %v", err, tt.want)
			}
			if got, err := os.ReadFile(to); tt.want == nil && (err != nil || string(got) != string(tt.content)) {
				t.Errorf("the copy differs: %v", err)
			}
		})
	}
}
