package cluster

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"controld/internal/node"
)

// Every reason of /health stands in docs/operating.md with what to do, and none
// that there is not. The reasons are read off the source, so that a new one
// cannot be forgotten.
func TestEveryReasonIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(doc), "| reason in `/health` |")
	if !found {
		t.Fatal("docs/operating.md has no table of the reasons")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	documented := map[string]bool{}
	for _, row := range strings.Split(table, "\n")[2:] {
		cell, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " | ")
		for _, m := range regexp.MustCompile("`([a-z-]+)`").FindAllStringSubmatch(cell, -1) {
			documented[m[1]] = true
		}
	}
	given := reasons(t)
	for _, reason := range slices.Sorted(maps.Keys(given)) {
		if !documented[reason] {
			t.Errorf("docs/operating.md does not explain the reason %s, which %s gives", reason, given[reason])
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(documented)) {
		if given[reason] == "" {
			t.Errorf("docs/operating.md explains the reason %s, which nothing gives", reason)
		}
	}
}

// reasons are those that any package gives, with the file that does.
func reasons(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "../health/") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			arg := reasonIn(n)
			switch x := arg.(type) {
			case nil, *ast.Ident: // health.Bad in down and in degraded passes on what they were given
			case *ast.BasicLit:
				found[strings.Trim(x.Value, `"`)] = name
			case *ast.BinaryExpr: // "order-" and the state of the init
				if literal, ok := x.X.(*ast.BasicLit); ok && literal.Value == `"order-"` {
					found["order-"+string(node.StateFailed)], found["order-"+string(node.StateRefused)] = name, name
					break
				}
				t.Errorf("%s: a reason that this test cannot read", name)
			default:
				t.Errorf("%s: a reason that this test cannot read: %T", name, arg)
			}
			return true
		})
	}
	if len(found) < 20 {
		t.Errorf("found %d reasons: the test looks for the wrong calls", len(found))
	}
	return found
}

// reasonIn finds the reason in health.Bad(name, status, "reason", ...) and in
// down("reason", ...) or degraded("reason", ...); nil in anything else.
func reasonIn(n ast.Node) ast.Expr {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return nil
	}
	name := ""
	switch f := call.Fun.(type) {
	case *ast.Ident:
		name = f.Name
	case *ast.SelectorExpr:
		if x, ok := f.X.(*ast.Ident); ok {
			name = x.Name + "." + f.Sel.Name
		}
	}
	at, known := map[string]int{"health.Bad": 2, "down": 0, "degraded": 0}[name]
	if !known || len(call.Args) <= at {
		return nil
	}
	return call.Args[at]
}
