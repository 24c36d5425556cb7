package archtest

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "controld"

// root is the module's own path: its root package has no name below it.
const root = "."

// may lists what each package may import of this module's. A package that is missing here
// fails the test: it gets its place before it gets its code. app is the one package that
// knows all others.
var may = map[string][]string{
	root: nil, // openapi.yaml, embedded

	"cmd/controld": {"internal/app", "internal/client", "internal/api/gen", "internal/config"},
	"cmd/node": {
		"internal/node", "internal/node/child", "internal/node/pooler", "internal/node/server",
		"internal/node/archive", "internal/node/runner", "internal/wal",
	},

	"internal/app": {"*"},

	// What everybody may use.
	"internal/wait":       nil,
	"internal/health":     nil,
	"internal/wal":        nil,
	"internal/pgcontrol":  {"internal/wal"},
	"internal/pgwal":      {"internal/wal", "internal/pgcontrol"},
	"internal/operation":  nil,
	"internal/node":       {"internal/wal", "internal/pgcontrol", "internal/pgwal"},
	"internal/node/rules": {"internal/node", "internal/pgcontrol"},
	"internal/rights":     {"internal/node"},
	"internal/render":     nil,
	"internal/schedule":   nil,
	"internal/config":     nil,

	// The model: what a cluster is, and what is decided. Capabilities, wrappers, the
	// API and the metrics know it, and nothing of what follows.
	"internal/cluster": {
		"internal/health", "internal/operation", "internal/node", "internal/rights", "internal/wal",
		"internal/pgcontrol", "internal/pgwal",
	},

	// Who looks, who acts, and the operations that are made of both.
	"internal/observer": {"internal/cluster", "internal/node", "internal/pgwal", "internal/wal"},
	"internal/actuator": {
		"internal/cluster", "internal/node", "internal/observer", "internal/operation", "internal/pgwal",
		"internal/rights", "internal/wait", "internal/wal",
	},
	"internal/rejoin": {
		"internal/actuator", "internal/cluster", "internal/node", "internal/operation", "internal/pgwal",
		"internal/wait",
	},
	"internal/failover": {
		"internal/actuator", "internal/cluster", "internal/node", "internal/observer", "internal/operation",
		"internal/pgcontrol", "internal/pgwal", "internal/rejoin", "internal/wait", "internal/wal",
	},
	"internal/bootstrap": {
		"internal/actuator", "internal/cluster", "internal/node", "internal/operation", "internal/pgcontrol",
		"internal/pgwal", "internal/rejoin", "internal/wait", "internal/wal",
	},
	// The capabilities beside the cluster's own operations.
	"internal/backup": {
		"internal/api/command", "internal/api/gen", "internal/cluster", "internal/health", "internal/metrics/sample", "internal/operation",
		"internal/pgwal", "internal/wait", "internal/wal",
	},

	"internal/upkeep": {"internal/actuator", "internal/cluster", "internal/operation"},
	"internal/manager": {
		"internal/actuator", "internal/bootstrap", "internal/cluster", "internal/failover",
		"internal/health", "internal/observer", "internal/operation", "internal/rejoin", "internal/upkeep",
	},
	"internal/monitor": {"internal/cluster", "internal/operation"},

	// The init of the database containers.
	"internal/node/child":  nil,
	"internal/node/pooler": {"internal/node", "internal/node/child"},
	"internal/node/server": {
		"internal/node", "internal/node/archive", "internal/node/child", "internal/node/rules", "internal/rights",
		"internal/pgcontrol", "internal/pgwal", "internal/wal",
	},
	"internal/node/archive": {"internal/node", "internal/pgwal", "internal/wal"},

	// Commands that controld has run in a container, and that container's init.
	"internal/job":         nil,
	"internal/node/runner": {"internal/job", "internal/node", "internal/node/archive", "internal/node/child"},

	// One outside system each; never each other.
	"internal/docker":    {"internal/cluster", "internal/node", "internal/wal", "internal/pgcontrol"},
	"internal/postgres":  {"internal/cluster", "internal/node", "internal/rights", "internal/wal", "internal/pgcontrol"},
	"internal/pgbouncer": {"internal/cluster", "internal/node", "internal/wal", "internal/pgcontrol", "internal/render"},
	"internal/redis":     {"internal/backup", "internal/health", "internal/wait"},
	"internal/pgbackrest": {
		"internal/backup", "internal/cluster", "internal/job", "internal/node", "internal/node/archive", "internal/wait", "internal/wal",
	},
	"internal/volume": {"internal/cluster", "internal/node", "internal/wal", "internal/pgcontrol", "internal/pgwal", "internal/render"},

	// The API and who calls it.
	"internal/api/command": {"internal/operation"}, // a capability may import it
	"internal/api": {
		root, "internal/api/command", "internal/api/gen", "internal/cluster", "internal/health", "internal/operation",
	},
	"internal/api/gen":        nil,
	"internal/client":         {"internal/api/gen"},
	"internal/metrics":        {"internal/cluster", "internal/health", "internal/metrics/sample", "internal/operation"},
	"internal/metrics/sample": nil, // a capability may import it

	// Measuring and testing.
	"internal/probe": nil,
	"bench/failover": {"internal/probe", "internal/testcluster"},
	"internal/api/apitest": {
		"internal/api/command", "internal/api/gen", "internal/cluster", "internal/health", "internal/rights", "internal/node",
		"internal/operation",
		"internal/wal",
	},
	"internal/cluster/clustertest": {
		"internal/cluster", "internal/node", "internal/node/rules", "internal/rights",
		"internal/operation", "internal/wal", "internal/pgcontrol", "internal/pgwal",
	},
	"internal/docker/dockertest": {"internal/render"},
	"internal/testcluster":       nil,
	"internal/e2e":               {"*"},
	"internal/failpoint":         {"internal/cluster", "internal/node", "internal/wal", "internal/pgcontrol", "internal/pgwal"},
	"internal/archtest":          nil,
}

// only lists who may import the library of an outside system: everybody else
// goes through an interface of the domain.
var only = map[string][]string{
	"github.com/docker/": {"internal/docker", "internal/docker/dockertest", "internal/e2e"},
	"github.com/jackc/pgx/": {
		"internal/postgres", "internal/pgbouncer",
		"internal/node/server", "internal/node/pooler",
		"internal/probe", "bench/failover", "internal/docker/dockertest", "internal/testcluster", "internal/e2e",
	},
	"github.com/redis/":                          {"internal/redis", "internal/e2e"},
	"go.etcd.io/bbolt":                           {"internal/operation"},
	"github.com/go-chi/":                         {"internal/api", "internal/api/gen"},
	"github.com/getkin/kin-openapi":              {"internal/api"},
	"github.com/prometheus/":                     {"internal/metrics"},
	"github.com/spf13/":                          {"cmd/controld"},
	"github.com/knadh/":                          {"internal/config"},
	"github.com/robfig/cron/":                    {"internal/schedule"},
	"github.com/oapi-codegen/nethttp-middleware": {"internal/api"},
}

// TestImports reads the files itself instead of calling go list: go test caches a result
// by the files that a test opens, not by what it executes.
func TestImports(t *testing.T) {
	found, err := violations(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range found {
		t.Error(v)
	}
}

// The rules are only worth something if breaking them is seen.
func TestViolationsAreSeen(t *testing.T) {
	file := func(imports ...string) *fstest.MapFile {
		src := "package p\n"
		for _, i := range imports {
			src += fmt.Sprintf("import _ %q\n", i)
		}
		return &fstest.MapFile{Data: []byte(src)}
	}
	for _, tt := range []struct {
		name string
		path string
		file *fstest.MapFile
		want string // empty: allowed
	}{
		{"as it should be", "internal/cluster/a.go", file("controld/internal/operation", "context"), ""},
		{"the domain imports a wrapper", "internal/cluster/a.go", file("controld/internal/postgres"),
			"internal/cluster/a.go may not import controld/internal/postgres"},
		{"wrappers import each other", "internal/postgres/a.go", file("controld/internal/docker"),
			"may not import controld/internal/docker"},
		{"configuration imports ours", "internal/config/a.go", file("controld/internal/cluster"), "may not import"},
		{"the client imports the server", "internal/client/a.go", file("controld/internal/api"), "may not import"},
		{"the domain imports an SDK", "internal/cluster/a.go", file("github.com/jackc/pgx/v5"), "may not import github.com/jackc/pgx/v5"},
		{"a package without a place", "internal/utils/a.go", file("fmt"), "internal/utils has no entry"},
		{"a test may import what it tests with", "internal/cluster/a_test.go", file("controld/internal/postgres"), ""},
		{"a folder of data is no package", "internal/config/testdata/a.go", file("controld/internal/cluster"), ""},
		{"app knows all", "internal/app/a.go", file("controld/internal/docker", "controld/internal/api"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found, err := violations(fstest.MapFS{tt.path: tt.file})
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(found, "\n")
			if (tt.want == "") != (all == "") || !strings.Contains(all, tt.want) {
				t.Errorf("found %q, want %q", all, tt.want)
			}
		})
	}
}

// violations lists every import that the rules forbid, and every package that
// has no place in them.
func violations(tree fs.FS) ([]string, error) {
	var found []string
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && passedOver(name):
			return fs.SkipDir
		case d.IsDir(), path.Ext(name) != ".go", strings.HasSuffix(name, "_test.go"):
			return nil
		}
		imports, err := importsOf(tree, name)
		if err != nil {
			return err
		}
		from := path.Dir(name)
		if _, known := may[from]; !known {
			found = append(found, from+" has no entry in the import rules")
			return nil
		}
		for _, imported := range imports {
			if !allowed(from, imported) {
				found = append(found, name+" may not import "+imported)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the module: %w", err)
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

// passedOver are folders that hold no packages of this module.
func passedOver(dir string) bool {
	base := path.Base(dir)
	return dir != "." && strings.HasPrefix(base, ".") || base == "testdata" || dir == "build" || dir == "tools"
}

func importsOf(tree fs.FS, name string) ([]string, error) {
	src, err := fs.ReadFile(tree, name)
	if err != nil {
		return nil, err
	}
	f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	var imports []string
	for _, spec := range f.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		imports = append(imports, imported)
	}
	return imports, nil
}

func allowed(from, imported string) bool {
	for library, users := range only {
		if strings.HasPrefix(imported, library) && !slices.Contains(users, from) {
			return false
		}
	}
	to, ours := strings.CutPrefix(imported, module+"/")
	if imported == module {
		to, ours = root, true
	}
	return !ours || slices.Contains(may[from], to) || slices.Contains(may[from], "*")
}
