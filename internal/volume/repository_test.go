package volume

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Other clusters' repositories are told by their names; what else lies there is none.
func TestOthers(t *testing.T) {
	r := &Repository{Root: t.TempDir()}
	for _, name := range []string{"lock", "lost+found", "7311", "7312", "7312.away"} {
		if err := os.Mkdir(filepath.Join(r.Root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(r.Root, "7313"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if others, err := r.Others(7311); err != nil || !slices.Equal(others, []uint64{7312}) {
		t.Errorf("%v, %v", others, err)
	}
	r.Root = filepath.Join(r.Root, "none")
	if _, err := r.Others(7311); err == nil {
		t.Error("a folder that is not there has no others")
	}
}
