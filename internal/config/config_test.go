package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLoad(t *testing.T) {
	for _, tt := range []struct {
		name    string
		file    string
		environ []string
		change  func(*Config) // from the defaults
		wants   []string      // in the error
	}{
		{name: "nothing set"},
		{name: "empty file", file: "# nothing\n"},
		{name: "empty section", file: "postgres:\n"},
		{name: "file", file: "postgres:\n  shared_buffers: 1GB\nfailover:\n  pause_deadline: 2s\n",
			change: func(c *Config) {
				c.Postgres.SharedBuffers = "1GB"
				c.Failover.PauseDeadline = 2 * time.Second
			}},
		{name: "environment wins", file: "postgres:\n  shared_buffers: 1GB\n",
			environ: []string{"CONTROLD_POSTGRES_SHARED_BUFFERS=2GB", "CONTROLD_POSTGRES_MAX_CONNECTIONS=50"},
			change: func(c *Config) {
				c.Postgres.SharedBuffers = "2GB"
				c.Postgres.MaxConnections = 50
			}},
		{name: "an empty variable sets nothing", environ: []string{"CONTROLD_POSTGRES_SHARED_BUFFERS=", "CONTROLD_REPLICATION_MODE="}},
		{name: "several databases", environ: []string{"CONTROLD_POOLER_DATABASES=imdb, shop app2"},
			change: func(c *Config) { c.Pooler.Databases = []string{"imdb", "shop", "app2"} }},
		{name: "one database instead of the default", file: "pooler:\n  databases: [shop]\n",
			change: func(c *Config) { c.Pooler.Databases = []string{"shop"} }},
		{name: "top level",
			environ: []string{"CONTROLD_LISTEN=127.0.0.1:9000", "CONTROLD_STATE_DIR=/state", "CONTROLD_PREFERRED_PRIMARY=postgres_slave"},
			change: func(c *Config) {
				c.Listen, c.StateDir, c.PreferredPrimary = "127.0.0.1:9000", "/state", "postgres_slave"
			}},
		{name: "variables of the compose file are left alone", environ: []string{
			"CONTROLD_PORT_API=1", "CONTROLD_TAG=x", "CONTROLD_SUBNET=x", "CONTROLD_URL=x", "CONTROLD_TOKEN=x",
			"CONTROLD_SECRETS_DIR=relative", "CONTROLD_FAILPOINT_X=1", "CONTROLD_FAILPOINTS=1", "PATH=/bin"}},
		{name: "nodes replace the default ones", file: "nodes:\n- {name: a, container: ca, dir: /pg/a, order_dir: /orders/a, port: 5432}\n",
			change: func(c *Config) {
				c.Nodes = []Node{{"a", "ca", "/pg/a", "/orders/a", 5432}}
				c.PreferredPrimary = "a"
			}},

		{name: "unknown key", file: "postgres:\n  shared_bufers: 1GB\n",
			wants: []string{`"postgres.shared_bufers"`, "postgres.shared_buffers"}},
		{name: "unknown section", file: "postgre:\n  shared_buffers: 1GB\n", wants: []string{`"postgre.shared_buffers"`}},
		{name: "unknown top level", file: "listn: x\n", wants: []string{`"listn"`, "listen"}},
		{name: "unknown key of a node", file: "nodes:\n- {name: a, containr: ca}\n", wants: []string{"containr"}},
		{name: "unknown variable", environ: []string{"CONTROLD_POSTGRES_SHARED_BUFERS=1GB"},
			wants: []string{"CONTROLD_POSTGRES_SHARED_BUFERS", "CONTROLD_POSTGRES_SHARED_BUFFERS"}},
		{name: "no number", environ: []string{"CONTROLD_POSTGRES_MAX_CONNECTIONS=many"},
			wants: []string{"CONTROLD_POSTGRES_MAX_CONNECTIONS=many"}},
		{name: "a duration without a unit", file: "observe:\n  interval: 5\n", wants: []string{"interval", "no unit", "5s"}},
		{name: "a duration without a unit in the environment", environ: []string{"CONTROLD_OBSERVE_INTERVAL=5"},
			wants: []string{"CONTROLD_OBSERVE_INTERVAL=5", "unit"}},
		{name: "callers without a token", environ: []string{"CONTROLD_API_ANONYMOUS=operator"},
			change: func(c *Config) { c.API.Anonymous = "operator" }},
		{name: "nobody is admin without a token", environ: []string{"CONTROLD_API_ANONYMOUS=admin"},
			wants: []string{`api.anonymous: "admin"`, "none, viewer, operator"}},
		{name: "no role", environ: []string{"CONTROLD_API_ANONYMOUS=yes"},
			wants: []string{`api.anonymous: "yes"`, "none, viewer, operator"}},
		{name: "a misspelt variable of the API", environ: []string{"CONTROLD_API_ANONYMUS=viewer"},
			wants: []string{"CONTROLD_API_ANONYMUS", "CONTROLD_API_ANONYMOUS"}},
		{name: "wrong mode", environ: []string{"CONTROLD_REPLICATION_MODE=semi"},
			wants: []string{`replication.mode: "semi"`, "async, sync, strict"}},
		{name: "size without a unit", file: "postgres:\n  shared_buffers: 256\n",
			wants: []string{"postgres.shared_buffers", `"256"`, "256MB"}},
		{name: "more memory than PostgreSQL takes", environ: []string{"CONTROLD_POSTGRES_SHARED_BUFFERS=9999999999TB"},
			wants: []string{"postgres.shared_buffers", "1MB to 4TB"}},
		{name: "less WAL than PostgreSQL takes", environ: []string{"CONTROLD_POSTGRES_MAX_WAL_SIZE=65535kB"},
			wants: []string{"postgres.max_wal_size", "64MB to 1024TB"}},
		{name: "all that is wrong is named", environ: []string{"CONTROLD_LOG_LEVEL=loud", "CONTROLD_LISTEN=8088"},
			wants: []string{"log.level", "listen", "host:port"}},
		{name: "preferred primary is no node", environ: []string{"CONTROLD_PREFERRED_PRIMARY=pg9"},
			wants: []string{"preferred_primary", "postgres_master, postgres_slave"}},
		{name: "database that clashes", environ: []string{"CONTROLD_POOLER_DATABASES=imdb,imdb_ro"},
			wants: []string{"imdb_ro", "controld's own"}},
		{name: "database named twice", environ: []string{"CONTROLD_POOLER_DATABASES=imdb,imdb"}, wants: []string{"each database once"}},
		{name: "database that would break the pooler's file", environ: []string{"CONTROLD_POOLER_DATABASES=a=b"}, wants: []string{`"a=b"`}},
		{name: "pool larger than the server", environ: []string{"CONTROLD_POOLER_POOL_SIZE=500"},
			wants: []string{"pooler.pool_size", "1 to 90"}},
		{name: "prefix", environ: []string{"CONTROLD_PREFIX=Bad_"}, wants: []string{"CONTROLD_PREFIX", `"Bad_"`}},
		{name: "two nodes with one volume", file: "nodes:\n- {name: a, container: ca, dir: /pg/a, order_dir: /o/a, port: 1}\n" +
			"- {name: b, container: cb, dir: /pg/a, order_dir: /o/b, port: 1}\n",
			wants: []string{"nodes[1].dir", "nodes[0].dir has the same"}},
		{name: "broken YAML", file: "postgres: [\n", wants: []string{"controld.yaml"}},
		{name: "not a mapping", file: "- a\n- b\n", wants: []string{"controld.yaml"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := ""
			if tt.file != "" {
				name = filepath.Join(t.TempDir(), "controld.yaml")
				if err := os.WriteFile(name, []byte(tt.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := Load(name, tt.environ)
			if len(tt.wants) > 0 {
				for _, want := range tt.wants {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("error %v does not name %q", err, want)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := Default("")
			want.PreferredPrimary = "postgres_master"
			if tt.change != nil {
				tt.change(&want)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("wanted (-), got (+):\n%s", diff)
			}
		})
	}
}

func TestPrefixNamesContainersAndNotNodes(t *testing.T) {
	c, err := Load("", []string{"CONTROLD_PREFIX=t1-"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Nodes[0].Name != "postgres_master" || c.Nodes[0].Container != "t1-postgres_master" {
		t.Errorf("node %+v: the API's name stays, the container's takes the prefix", c.Nodes[0])
	}
	for _, s := range []string{c.Pooler.Address, c.Pooler.Container, c.Redis.Address, c.Network} {
		if !strings.HasPrefix(s, "t1-") {
			t.Errorf("%q lacks the prefix", s)
		}
	}
}

func TestMissingFileIsNamed(t *testing.T) {
	if _, err := Load("/nowhere/controld.yaml", nil); err == nil || !strings.Contains(err.Error(), "/nowhere/controld.yaml") {
		t.Errorf("Load = %v", err)
	}
}

func TestSecretNeverPrints(t *testing.T) {
	const plain = "hunter22"
	s := Secret(plain)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "struct", struct{ S Secret }{s})
	asJSON, err := json.Marshal(map[string]any{"s": s, "p": &s})
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		for _, out := range []string{fmt.Sprintf(verb, s), fmt.Sprintf(verb, struct{ S Secret }{s}), fmt.Sprintf(verb, []Secret{s})} {
			if strings.Contains(out, plain) || strings.Contains(strings.ToLower(out), "68756e746572") {
				t.Errorf("%s prints %s", verb, out)
			}
		}
	}
	if strings.Contains(log.String()+string(asJSON), plain) {
		t.Errorf("printed: %s %s", log.String(), asJSON)
	}
	if s.Reveal() != plain {
		t.Error("Reveal does not")
	}
}

func TestReadSecrets(t *testing.T) {
	dir := t.TempDir()
	for _, name := range SecretNames[1:] {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("value-of-"+name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := ReadSecrets(dir)
	if err == nil || !strings.Contains(err.Error(), SecretNames[0]) || !strings.Contains(err.Error(), "make up") {
		t.Errorf("a missing secret: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, SecretNames[0]), []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSecrets(dir); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("an empty secret: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, SecretNames[0]), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSecrets(dir)
	if err != nil || got["token_admin"].Reveal() != "value-of-token_admin" {
		t.Errorf("ReadSecrets = %v, %v", got["token_admin"].Reveal(), err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte("postgres:\n  shared_buffers: 1GB\n"), "CONTROLD_POSTGRES_MAX_CONNECTIONS=50")
	f.Add([]byte("nodes:\n- {name: a, container: ca, dir: /pg/a, order_dir: /o/a, port: 1}\n"), "CONTROLD_POOLER_DATABASES=a,b")
	f.Add([]byte("pooler: {databases: [a, {b: c}]}\n"), "CONTROLD_=")
	f.Add([]byte("? [a]\n: b\n1: 2\nobserve: 5\n"), "CONTROLD_OBSERVE=5")
	f.Fuzz(func(t *testing.T, data []byte, variable string) {
		name := filepath.Join(t.TempDir(), "controld.yaml")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := Load(name, []string{variable})
		if err != nil {
			return
		}
		if err := cfg.Validate(); err != nil {
			t.Errorf("loaded, and not valid: %v", err)
		}
	})
}
