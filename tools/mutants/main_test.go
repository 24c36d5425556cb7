package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const code = `package p

const day = 24 * hour

func grown(a, b int) bool {
	return a >= b+1
}
`

const result = `{"files": [{"file_name": "p.go", "mutations": [
	{"type": "ARITHMETIC_BASE", "status": "TIMED OUT", "line": 3, "column": 16},
	{"type": "CONDITIONALS_BOUNDARY", "status": "LIVED", "line": 6, "column": 11},
	{"type": "CONDITIONALS_NEGATION", "status": "KILLED", "line": 6, "column": 11},
	{"type": "ARITHMETIC_BASE", "status": "NOT VIABLE", "line": 6, "column": 15}
]}]}`

// write puts text into a new file of the current folder.
func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestReport(t *testing.T) {
	live := "in/p.go grown CONDITIONALS_BOUNDARY\n\treturn a «>=» b+1\n"
	listed := live + "\tfor a reason,\n"
	for _, tt := range []struct {
		name, list string
		least      float64
		good       bool
		says       string
	}{
		{"not listed", "", 50, false, "lives, in line 6: " + live},
		{"listed", "# why\n\n" + listed + "\tand another\n", 50, true, "in: 2 of 3 mutants noticed, 66.7 % (1 by a test that hangs)"},
		{"too few", listed, 70, false, "fewer than 70 %"},
		{"listed and noticed", listed + "in/p.go day ARITHMETIC_BASE\n\tconst day = 24 «*» hour\n\tb", 50, true,
			"listed, but noticed: in/p.go day"},
		{"listed and gone", listed + "in/p.go shrunk ARITHMETIC_BASE\n\ta «-» b\n\tb", 50, true,
			"no such mutant any more: in/p.go shrunk"},
		{"another package's", listed + "other/p.go shrunk ARITHMETIC_BASE\n\ta «-» b\n\tb", 50, true, "in: 2 of 3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			write(t, "in/p.go", code)
			write(t, "result", result)
			write(t, "list", tt.list)
			found, err := readResult("in", "result")
			if err != nil {
				t.Fatal(err)
			}
			listed, err := readList("list")
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			if good := report(&out, "in", found, listed, tt.least); good != tt.good || !strings.Contains(out.String(), tt.says) {
				t.Errorf("good %v, and says:\n%s\nwant %v, and %q", good, out.String(), tt.good, tt.says)
			}
			if strings.Contains(out.String(), "other/") {
				t.Errorf("speaks of another package:\n%s", out.String())
			}
		})
	}
}

func TestABrokenList(t *testing.T) {
	for _, text := range []string{"one two\n", "\tindented\n", "f.go F KIND\n\tline\n", "f.go F KIND\ng.go G KIND\n\tline\n\twhy\n"} {
		path := filepath.Join(t.TempDir(), "list")
		write(t, path, text)
		if got, err := readList(path); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}
