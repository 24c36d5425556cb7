package render_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"controld/internal/docker/dockertest"
	"controld/internal/render"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s (-update rewrites it):\n%s", path, cmp.Diff(string(want), string(got)))
	}
}

func standby() render.Role {
	return render.Role{
		Upstream: &render.Upstream{
			Host:        "postgres_master",
			Address:     "10.0.0.5",
			Port:        5432,
			PassFile:    "/run/secrets-own/pgpass",
			Application: "postgres_slave",
		},
		PrimarySlotName: "postgres_slave",
		ArchiveCommand:  "/bin/true",
		Switching:       true,
	}
}

func primary() render.Role {
	return render.Role{
		RestoreCommand:          `restore 'it' \ %f "%p"`,
		ArchiveCommand:          "/bin/true",
		SynchronousStandbyNames: `FIRST 1 ("postgres_slave")`,
	}
}

func TestGolden(t *testing.T) {
	golden(t, "postgresql.conf", render.PostgreSQL(render.Postgres{
		DataDir: "/pg/node1/data", SocketDir: "/pg/node1/run", ConfigDir: "/order", Port: 5432, Sizes: render.DefaultSizes(),
	}))
	golden(t, "pg_hba.conf", render.HBA())
	golden(t, "pg_ident.conf", render.Ident())
	golden(t, "role-none.conf", render.RoleConf(render.Role{}))
	golden(t, "role-primary.conf", render.RoleConf(primary()))
	golden(t, "role-standby.conf", render.RoleConf(standby()))
	golden(t, "pgbouncer.ini", render.PgBouncerINI(render.PgBouncer{
		Entries: []render.Entry{
			{Name: "imdb", Host: "10.0.0.2", Port: 5432, Database: "imdb", PoolSize: 20},
			{Name: "imdb_ro", Host: "10.0.0.3", Port: 5432, Database: "imdb", PoolSize: 20},
			{Name: "controld_probe", Host: "10.0.0.2", Port: 5432, Database: "imdb", PoolSize: 1},
		},
		ListenPort: 6432, SocketDir: "/run/secrets-own", AuthFile: "/run/secrets-own/userlist.txt",
		AuthUser: "pooler", AdminUser: "controld", PoolSize: 20,
	}))
}

func TestPrimaryConninfo(t *testing.T) {
	for _, tt := range []struct {
		upstream *render.Upstream
		want     string
	}{
		{nil, ""},
		{&render.Upstream{Host: "h", Port: 1, PassFile: "/p", Application: "a"},
			"host=h port=1 user=replicator passfile=/p application_name=a connect_timeout=2 sslmode=disable gssencmode=disable"},
		{&render.Upstream{Host: "it's", Port: 1, PassFile: `\`, Application: "two words"},
			`host='it\'s' port=1 user=replicator passfile='\\' application_name='two words'` +
				` connect_timeout=2 sslmode=disable gssencmode=disable`},
	} {
		if got := (render.Role{Upstream: tt.upstream}).PrimaryConninfo(); got != tt.want {
			t.Errorf("PrimaryConninfo(%+v) = %s, want %s", tt.upstream, got, tt.want)
		}
	}
}

// TestServerLoads: a real server takes each file without a complaint, and
// reads back what was meant, also where it is quoted.
func TestServerLoads(t *testing.T) {
	p := dockertest.StartPrimary(t, dockertest.Network(t))
	for _, role := range []render.Role{{}, primary(), standby()} {
		p.SetRole(t, func(r *render.Role) { *r = role })
		got := p.SQL(t, "postgres", `SELECT name || ': ' || error FROM pg_file_settings
			WHERE error IS NOT NULL OR name NOT IN (SELECT name FROM pg_file_settings WHERE applied)`)
		if got != "" {
			t.Errorf("settings that the server does not take: %s", got)
		}
		p.SQL(t, "postgres", "SELECT pg_reload_conf()")
		for name, want := range map[string]string{
			"primary_conninfo": role.PrimaryConninfo(), "restore_command": role.RestoreCommand,
			"archive_command": role.ArchiveCommand, "synchronous_standby_names": role.SynchronousStandbyNames,
		} {
			if got := strings.TrimSuffix(p.SQL(t, "postgres", "SELECT current_setting('"+name+"')"), "\n"); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	}
	if got := p.SQL(t, "postgres", "SELECT * FROM pg_hba_file_rules WHERE error IS NOT NULL"); got != "" {
		t.Errorf("lines of pg_hba.conf that the server does not take: %s", got)
	}
	for line := range strings.Lines(p.Logs(t)) {
		for _, bad := range []string{"WARNING", "FATAL", "unrecognized", "syntax error", "could not"} {
			if strings.Contains(line, bad) && !strings.Contains(line, "starting up") {
				t.Errorf("the server complains: %s", line)
			}
		}
	}
}
