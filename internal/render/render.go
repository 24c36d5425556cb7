// Package render writes the configuration files of PostgreSQL and PgBouncer
// from the templates beside it, which a person can read. It only turns
// settings into bytes, always the same for the same settings: where the files
// go, and who reloads what, belongs to packages volume and pgbouncer.
package render

import (
	"bytes"
	"embed"
	"fmt"
	"strings"
	"text/template"
	"time"
)

//go:embed templates
var files embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"quote":  quote,
	"value":  value,
	"number": func(i int) int { return i + 1 },
}).ParseFS(files, "templates/*"))

// A Postgres is what postgresql.conf needs to know of a node.
type Postgres struct {
	DataDir   string // PGDATA
	SocketDir string // of the unix socket
	ConfigDir string // where the files of this package lie, as the node sees it
	Port      int
	Sizes
}

// Sizes are the settings of PostgreSQL that depend on the machine and its
// load. Sizes with units as PostgreSQL reads them: 256MB.
type Sizes struct {
	SharedBuffers           string
	MaxConnections          int
	MaxWALSize              string
	MaxSlotWALKeepSize      string
	MaxPreparedTransactions int
	ArchiveTimeout          time.Duration
}

// DefaultSizes are the sizes of a small machine.
func DefaultSizes() Sizes {
	return Sizes{SharedBuffers: "256MB", MaxConnections: 100, MaxWALSize: "2GB", MaxSlotWALKeepSize: "4GB", ArchiveTimeout: time.Minute}
}

// Names of the files in a node's order volume.
const (
	PostgresFile = "postgresql.conf"
	HBAFile      = "pg_hba.conf"
	IdentFile    = "pg_ident.conf"
	RoleFile     = "role.conf"
	BackRestFile = "pgbackrest.conf"
)

// HBAFile, IdentFile and RoleFile are the paths that postgresql.conf names.
func (p Postgres) HBAFile() string   { return p.ConfigDir + "/" + HBAFile }
func (p Postgres) IdentFile() string { return p.ConfigDir + "/" + IdentFile }
func (p Postgres) RoleFile() string  { return p.ConfigDir + "/" + RoleFile }

// PostgreSQL renders postgresql.conf.
func PostgreSQL(p Postgres) []byte { return execute(PostgresFile, p) }

// HBA renders pg_hba.conf.
func HBA() []byte { return execute(HBAFile, nil) }

// Ident renders pg_ident.conf.
func Ident() []byte { return execute(IdentFile, nil) }

// A Role is what role.conf says: the settings that change with a node's role.
// The zero Role leads nobody and follows nobody.
type Role struct {
	Upstream                *Upstream // nil: no primary_conninfo
	PrimarySlotName         string
	RestoreCommand          string
	ArchiveCommand          string
	SynchronousStandbyNames string // as PostgreSQL reads it: FIRST 1 (...)
	Switching               bool   // around a planned switch
}

// An Upstream is the server that a standby streams from.
type Upstream struct {
	Host        string
	Address     string // of Host; empty: it is looked up
	Port        int
	PassFile    string // holds the password of the replication role
	Application string // the standby's name, as synchronous_standby_names has it
}

// RoleConf renders role.conf.
func RoleConf(r Role) []byte { return execute(RoleFile, r) }

// PrimaryConninfo is the value of primary_conninfo. A dead upstream must not
// hold the walreceiver longer than connect_timeout; without one a standby once
// took 13 s to notice that its primary was back.
func (r Role) PrimaryConninfo() string {
	u := r.Upstream
	if u == nil {
		return ""
	}
	host := "host=" + conninfo(u.Host)
	if u.Address != "" {
		host += " hostaddr=" + conninfo(u.Address)
	}
	return fmt.Sprintf("%s port=%d user=replicator passfile=%s application_name=%s connect_timeout=2 sslmode=disable gssencmode=disable",
		host, u.Port, conninfo(u.PassFile), conninfo(u.Application))
}

// A PgBouncer is what pgbouncer.ini needs to know.
type PgBouncer struct {
	Entries    []Entry // in the order of the file
	ListenPort int
	SocketDir  string
	AuthFile   string
	AuthUser   string // looks up the other roles
	AdminUser  string // of the console
	PoolSize   int    // of a database and user, where the entry has none
}

// An Entry is one line of the section [databases].
type Entry struct {
	Name     string // letters, digits and _ . - alone: the file knows no quoting of names
	Host     string // an address
	Port     int
	Database string // on the server
	PoolSize int
}

// PgBouncerINI renders pgbouncer.ini.
func PgBouncerINI(p PgBouncer) []byte { return execute("pgbouncer.ini", p) }

// A Repository is what pgbackrest.conf says.
type Repository struct {
	Path          string // repo1-path
	LockDir       string
	Cipher        string // empty: not encrypted
	Stanza        string
	CompressType  string
	CompressLevel int
	// Host: for the container that makes backups, and not for a node.
	Host       bool
	ProcessMax int
	StartFast  bool
	User       string   // by which the host logs in to the servers
	Servers    []Server // pg1, pg2, ...; a node's own alone
}

// A Server is one that pgBackRest reaches over its unix socket.
type Server struct {
	DataDir   string
	SocketDir string
	Port      int
}

// BackRest renders pgbackrest.conf.
func BackRest(r Repository) []byte { return execute(BackRestFile, r) }

// execute renders one of the embedded templates. They are parsed at the start
// and read only fields of the types above: a failure is a mistake in this package.
func execute(name string, data any) []byte {
	var out bytes.Buffer
	if err := templates.ExecuteTemplate(&out, name, data); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// quote writes a string as postgresql.conf reads it, where a backslash escapes.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `''`, "\n", `\n`, "\r", `\r`).Replace(s) + "'"
}

// value writes a value of PgBouncer's connection strings. A plain one stays
// without quotes.
func value(s string) string {
	if plain(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

// conninfo writes a value of libpq's connection strings.
func conninfo(s string) string {
	if plain(s) {
		return s
	}
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

func plain(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:", r))
	})
}
