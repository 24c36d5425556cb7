package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var codeSpan = regexp.MustCompile("`([^`\n]+)`")

// Whoever comes from the scripts finds every command of theirs on one page, and
// there only commands that exist.
func TestComingFromTheScripts(t *testing.T) {
	doc := document(t, "coming-from-the-scripts.md")
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	tried := map[string]int{}
	for _, m := range codeSpan.FindAllStringSubmatch(doc, -1) {
		words := shellWords(m[1])
		switch {
		case len(words) > 1 && words[0] == "controld":
			tried["controld"]++
			c := &cli{env: env{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}}
			cmd, args, err := c.root().Find(words[1:])
			if err == nil {
				err = cmd.ParseFlags(args)
			}
			if err == nil {
				err = cmd.ValidateArgs(cmd.Flags().Args())
			}
			if err != nil || !cmd.Runnable() {
				t.Errorf("`%s` is no command: %v", m[1], err)
			}
		case len(words) > 1 && words[0] == "make":
			tried["make"]++
			if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(words[1]) + `:`).Match(makefile) {
				t.Errorf("`%s`: the Makefile has no such target", m[1])
			}
		}
	}
	if tried["controld"] < 10 || tried["make"] < 5 {
		t.Errorf("found only %v: the test looks for the wrong thing", tried)
	}
	settings, err := os.ReadFile("../../deploy/compose/settings.example.env")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`CONTROLD_[A-Z0-9_]+`).FindAllString(doc, -1) {
		known := []string{"CONTROLD_PREFIX", "CONTROLD_URL", "CONTROLD_TOKEN"}
		if !slices.Contains(known, name) && !bytes.Contains(settings, []byte("\n#"+name+"=")) {
			t.Errorf("there is no setting %s", name)
		}
	}
	for _, m := range regexp.MustCompile(`\]\(([^)#]*)(#[^)]*)?\)`).FindAllStringSubmatch(doc, -1) {
		linked := doc
		if m[1] != "" {
			content, err := os.ReadFile(filepath.Join("../../docs", m[1]))
			if err != nil {
				t.Errorf("a link leads nowhere: %v", err)
				continue
			}
			linked = string(content)
		}
		if m[2] != "" && !slices.Contains(anchors(linked), m[2]) {
			t.Errorf("%s has no heading %s", m[1], m[2])
		}
	}
	for _, of := range theScripts {
		if !strings.Contains(doc, of) {
			t.Errorf("nothing is said of %q", of)
		}
	}
}

// shellWords splits a command at its spaces, but for those between quotes.
func shellWords(command string) []string {
	words := regexp.MustCompile(`(?:[^\s"]|"[^"]*")+`).FindAllString(command, -1)
	for i, w := range words {
		words[i] = strings.ReplaceAll(w, `"`, "")
	}
	return words
}

// anchors are the headings of a document as links name them.
func anchors(doc string) []string {
	var found []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(doc, -1) {
		plain := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		found = append(found, "#"+strings.ReplaceAll(plain, " ", "-"))
	}
	return found
}

// theScripts are the scripts and commands of the system that controld replaces,
// as its users have them in their fingers, and words of its advice.
var theScripts = []string{
	"failover.sh", "failback.sh", "api_control", "uvicorn", "venv_api",
	"curl -X POST http://127.0.0.1:8088/failover", "curl -X POST http://127.0.0.1:8088/failback",
	"dia1.sh", "dia2.sh", "dia4.sh", "dia6.sh", "ver_backups.sh", "listar_backups.sh", "peso_backups.sh",
	"limpiar_backups.sh", "check_redis.sh",
	"docker exec postgres_master psql -U root -d imdb -c", "docker exec postgres_master psql -U root -d postgres -tAc", "pg_is_in_recovery",
	"touch /tmp/promote_trigger", "pg_stat_replication", "pg_stat_wal_receiver", "docker logs postgres_slave",
	"docker ps \\| grep redis", "docker compose up -d redis", "docker compose logs",
	"netstat -tulpn \\| grep 5432", "netstat -tulpn \\| grep 5433",
	"no files have changed since the last backup", "backup:YYYY-MM-DD_HH-MM-SS", "--no-online --force",
	"etl.py", "loader.py", "indices_postgres.py", "BaseIMDb.sql", "ProcedimientosAlmacenados.sql", "MongoDB",
	"wal_level", "wal_keep_size", "hot_standby", "max_wal_senders", "primary_conninfo", "restore_command", "synchronous_commit",
	"GUIA_COMANDOS.md", //nolint:misspell // a Spanish word
	"ManualTecnico.md", "Manual de usuario.md",
}
