// Command mutants reads what gremlins has found out about one package:
//
//	mutants [-least PERCENT] PACKAGE RESULT LIST
//
// It names the mutants that the tests did not notice, and fails where one of them
// is not in the list of those that cannot be noticed, or where fewer than PERCENT
// of all were noticed. It runs no test itself.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A mutant is one change of one operator, in words that hold while lines are
// added above it.
type mutant struct {
	File string
	Func string // or the constant or variable, where it is in none
	Kind string // as gremlins calls it
	Line string // of the source, with the operator in «»
}

func (m mutant) String() string {
	return fmt.Sprintf("%s %s %s\n\t%s\n", m.File, m.Func, m.Kind, m.Line)
}

// A finding is what became of a mutant.
type finding struct {
	mutant
	Number int // of the line
	Status string
}

// What gremlins says of a mutant. Of those that do not compile nothing is known.
const (
	killed    = "KILLED"
	timedOut  = "TIMED OUT" // a test hangs, which is noticed
	lived     = "LIVED"
	notViable = "NOT VIABLE"
)

func main() {
	least := flag.Float64("least", 0, "percent of the mutants that must be noticed")
	flag.Parse()
	if flag.NArg() != 3 {
		fmt.Fprintln(os.Stderr, "usage: mutants [-least PERCENT] PACKAGE RESULT LIST")
		os.Exit(2)
	}
	dir := filepath.Clean(flag.Arg(0))
	found, err := readResult(dir, flag.Arg(1))
	if err != nil {
		fail(err)
	}
	listed, err := readList(flag.Arg(2))
	if err != nil {
		fail(err)
	}
	if !report(os.Stdout, dir, found, listed, *least) {
		os.Exit(1)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "mutants:", err)
	os.Exit(2)
}

// report prints what is to be known of one package, and returns whether it is good.
func report(out io.Writer, dir string, found []finding, listed []mutant, least float64) bool {
	there := map[mutant]string{} // what became of it; of several in one line, that one lived
	var noticed, hung, all int
	var unknown []finding
	for _, f := range found {
		if f.Status == notViable {
			continue
		}
		all++
		switch f.Status {
		case killed:
			noticed++
		case timedOut:
			noticed++
			hung++
		default:
			if !slices.Contains(listed, f.mutant) {
				unknown = append(unknown, f)
			}
		}
		if there[f.mutant] != lived {
			there[f.mutant] = f.Status
		}
	}
	percent := 100 * float64(noticed) / float64(max(all, 1))
	fmt.Fprintf(out, "%s: %d of %d mutants noticed, %.1f %% (%d by a test that hangs)\n", dir, noticed, all, percent, hung)
	for _, m := range listed {
		if filepath.Dir(m.File) != dir {
			continue
		}
		switch there[m] {
		case "":
			fmt.Fprintf(out, "\nlisted, but there is no such mutant any more: %s", m)
		case killed, timedOut:
			fmt.Fprintf(out, "\nlisted, but noticed: %s", m)
		}
	}
	for _, f := range unknown {
		fmt.Fprintf(out, "\nlives, in line %d: %s", f.Number, f.mutant)
	}
	if percent < least {
		fmt.Fprintf(out, "\nfewer than %.0f %% were noticed\n", least)
	}
	return len(unknown) == 0 && percent >= least
}

// readResult reads what gremlins has written about the package in dir.
func readResult(dir, path string) ([]finding, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var result struct {
		Files []struct {
			Name      string `json:"file_name"`
			Mutations []struct {
				Type, Status string
				Line, Column int
			}
		}
	}
	if err := json.Unmarshal(data, &result); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var out []finding
	for _, file := range result.Files {
		s, err := readSource(filepath.Join(dir, file.Name))
		if err != nil {
			return nil, err
		}
		for _, m := range file.Mutations {
			name, line := s.at(m.Line, m.Column)
			out = append(out, finding{mutant{s.path, name, m.Type, line}, m.Line, m.Status})
		}
	}
	slices.SortFunc(out, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Number, b.Number), cmp.Compare(a.Line, b.Line))
	})
	return out, nil
}

// A source is one file of the package.
type source struct {
	path  string
	lines []string
	set   *token.FileSet
	decls []ast.Decl
}

func readSource(path string) (source, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return source{}, err
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, data, parser.SkipObjectResolution)
	if err != nil {
		return source{}, err
	}
	return source{path, strings.Split(string(data), "\n"), set, file.Decls}, nil
}

// at is what the operator at a place stands in: the name of the declaration, and
// the line with the operator marked.
func (s source) at(number, column int) (name, line string) {
	line = s.lines[number-1]
	rest := line[column-1:]
	operator := rest[:len(rest)-len(strings.TrimLeft(rest, "=!<>+-*/%&|^"))]
	line = strings.TrimSpace(line[:column-1] + "«" + operator + "»" + rest[len(operator):])
	for _, d := range s.decls {
		first, last := s.set.Position(d.Pos()).Line, s.set.Position(d.End()).Line
		if first <= number && number <= last {
			return s.nameAt(d, number), line
		}
	}
	return "-", line
}

// nameAt is the name of a declaration, or of that of its constants or variables
// which is in the line.
func (s source) nameAt(d ast.Decl, number int) string {
	if f, ok := d.(*ast.FuncDecl); ok {
		return f.Name.Name
	}
	for _, spec := range d.(*ast.GenDecl).Specs {
		if v, ok := spec.(*ast.ValueSpec); ok && s.set.Position(v.End()).Line >= number {
			return v.Names[0].Name
		}
	}
	return "-"
}

// readList reads the mutants that cannot be noticed. Each begins with a line FILE
// FUNC KIND; below it, each behind a tab, are the line of the source and why. Lines
// that begin with # are comments.
func readList(path string) ([]mutant, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var out []mutant
	why := true // that of the one before is there
	lines := bufio.NewScanner(file)
	for n := 1; lines.Scan(); n++ {
		text, indented := strings.CutPrefix(lines.Text(), "\t")
		head := strings.Fields(text)
		switch last := len(out) - 1; {
		case text == "" || strings.HasPrefix(text, "#"):
		case indented && last >= 0 && out[last].Line == "":
			out[last].Line = text
		case indented && last >= 0:
			why = true
		case len(head) == 3 && !indented && why:
			out, why = append(out, mutant{File: head[0], Func: head[1], Kind: head[2]}), false
		default:
			return nil, fmt.Errorf("%s:%d: want FILE FUNC KIND, and below it, behind tabs, the line and why", path, n)
		}
	}
	if !why {
		return nil, fmt.Errorf("%s: the last one lacks its line, or why", path)
	}
	return out, lines.Err()
}
