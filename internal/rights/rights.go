// Package rights is what controld and its helpers are allowed in PostgreSQL: the roles,
// their rights, and the functions behind them. It is SQL for the superuser, each statement
// of which can be run again, so that a cluster which an earlier version made gets what this
// one needs.
package rights

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"controld/internal/node"
)

// Version counts the changes of this package. A cluster says which one it has: see Of.
const Version = 2

// A role that the cluster has.
type role struct {
	name       string
	attributes string
	member     string // of these roles
	peer       bool   // it has no password: it logs in over the socket alone, see pg_hba.conf
}

var roles = []role{
	{name: "app", attributes: "LOGIN"},
	{name: "controld", attributes: "LOGIN REPLICATION", member: "pg_monitor, pg_checkpoint, pg_signal_backend"},
	{name: "replicator", attributes: "LOGIN REPLICATION"},
	{name: "rewind", attributes: "LOGIN"},
	{name: "pooler", attributes: "LOGIN"},
	{name: "backup", attributes: "LOGIN", member: "pg_read_all_settings", peer: true},
}

// Secrets are the names of the secrets that Batches needs: the passwords of the roles.
func Secrets() (names []string) {
	for _, r := range roles {
		if !r.peer {
			names = append(names, "role_"+r.name)
		}
	}
	return names
}

// Batches are what a cluster with these databases needs, which are named beside postgres.
// secret gives the passwords by their names. A role that is there keeps the one that it has. They go in as
// SCRAM verifiers: no log and no statistics view sees one.
func Batches(secret func(name string) string, databases ...string) ([]node.Batch, error) {
	var first []string
	for _, r := range roles {
		password := "NULL"
		if !r.peer {
			verifier, err := scramVerifier(secret("role_" + r.name))
			if err != nil {
				return nil, fmt.Errorf("role %s: %w", r.name, err)
			}
			password = "'" + verifier + "'"
		}
		first = append(first, fmt.Sprintf(`DO $make$ BEGIN
			IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '%[1]s') THEN CREATE ROLE %[1]s PASSWORD %[2]s; END IF;
		END $make$`, r.name, password), fmt.Sprintf("ALTER ROLE %s %s", r.name, r.attributes))
		if r.member != "" {
			first = append(first, fmt.Sprintf("GRANT %s TO %s", r.member, r.name))
		}
	}
	batches := []node.Batch{{Database: "postgres", SQL: slices.Concat(first, perDatabase, forBackups)}}
	for _, db := range databases {
		if db != "postgres" {
			batches = append(batches, node.Batch{Database: db, SQL: perDatabase})
		}
	}
	mark := fmt.Sprintf("COMMENT ON SCHEMA controld IS '%s%d'", mark, Version)
	return append(batches, node.Batch{Database: "postgres", SQL: []string{mark}}), nil
}

// mark precedes the version in the comment on the schema controld of database postgres.
const mark = "what controld needs, version "

// Of is the version that such a comment tells; 0: it is of one that told none, or is
// not there.
func Of(comment string) int {
	number, found := strings.CutPrefix(comment, mark)
	if !found {
		return 0
	}
	version, err := strconv.Atoi(number)
	if err != nil {
		return 0
	}
	return version
}

// perDatabase is what each database needs, since rights on functions are its own. What
// template1 holds, every database made later has too.
var perDatabase = []string{
	`GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_reload_conf() TO controld`,
	`GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
		pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO rewind`,
	`CREATE SCHEMA IF NOT EXISTS controld`,
	`CREATE OR REPLACE FUNCTION controld.pooler_lookup(INOUT usename text, OUT passwd text)
		RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
		AS $$
			SELECT a.rolname::text, a.rolpassword FROM pg_catalog.pg_authid a
			WHERE a.rolname = $1 AND a.rolcanlogin AND NOT a.rolsuper AND NOT a.rolreplication
			AND a.rolname NOT IN ('controld', 'pooler', 'replicator', 'rewind', 'backup')
			AND (a.rolvaliduntil IS NULL OR a.rolvaliduntil > now())
		$$`,
	`REVOKE ALL ON FUNCTION controld.pooler_lookup(text) FROM PUBLIC`,
	`GRANT USAGE ON SCHEMA controld TO pooler`,
	`GRANT EXECUTE ON FUNCTION controld.pooler_lookup(text) TO pooler`,
}

// forBackups is what pgBackRest needs, which logs in to database postgres alone.
var forBackups = []string{
	`GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean), pg_switch_wal(),
		pg_create_restore_point(text) TO backup`,
}
