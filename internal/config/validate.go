package config

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	prefixForm   = regexp.MustCompile(`^([a-z0-9][a-z0-9-]*)?$`)
	nameForm     = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
	databaseForm = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)
	sizeForm     = regexp.MustCompile(`^([1-9][0-9]{0,9})(kB|MB|GB|TB)$`)
)

// Bytes in the units of PostgreSQL's sizes.
var sizeUnits = map[string]float64{"kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}

// Validate names everything that is wrong: the key, its value, what is allowed.
func (c Config) Validate() error {
	v := &problems{}
	v.match("CONTROLD_PREFIX", c.Prefix, prefixForm, "lower-case letters, digits and hyphens, beginning with a letter or digit")
	v.address("listen", c.Listen)
	v.absolute("state_dir", c.StateDir)
	v.absolute("secrets_dir", c.SecretsDir)
	v.filled("network", c.Network)
	c.validateNodes(v)
	// Not admin: what deletes or gives data up asks for a token.
	v.oneOf("api.anonymous", c.API.Anonymous, "none", "viewer", "operator")
	c.Postgres.validate(v)
	v.oneOf("replication.mode", c.Replication.Mode, "async", "sync", "strict")
	v.duration("replication.sync_timeout", c.Replication.SyncTimeout, time.Second, time.Hour)
	v.number("failover.max_loss_bytes", c.Failover.MaxLossBytes, 0, 1<<50)
	// A pause is a lease that is renewed for 30 s at the most.
	v.duration("failover.pause_deadline", c.Failover.PauseDeadline, 100*time.Millisecond, 25*time.Second)
	v.number("failover.max_lag_bytes", c.Failover.MaxLagBytes, 0, 1<<50)
	// Below it a segment and a history file, which a promotion writes, find no room.
	v.number("failover.min_free_bytes", c.Failover.MinFreeBytes, 16<<20, 1<<50)
	v.duration("failover.strict_pause_limit", c.Failover.StrictPauseLimit, 30*time.Second, 10*time.Minute)
	v.number("audit.keep", int64(c.Audit.Keep), 100, 1_000_000)
	v.duration("audit.keep_for", c.Audit.KeepFor, 24*time.Hour, 100*365*24*time.Hour)
	v.duration("observe.interval", c.Observe.Interval, 100*time.Millisecond, time.Minute)
	c.Pooler.validate(v, c.Postgres.MaxConnections)
	v.address("redis.address", c.Redis.Address)
	c.Backup.validate(v)
	v.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	return errors.Join(v.errs...)
}

// compressLevels are the highest of each algorithm.
var compressLevels = map[string]int64{"none": 0, "gz": 9, "bz2": 9, "lz4": 12, "zst": 22}

func (b Backup) validate(v *problems) {
	v.absolute("backup.control_dir", b.ControlDir)
	v.absolute("backup.repository_dir", b.RepositoryDir)
	v.match("backup.stanza", b.Stanza, nameForm, "lower-case letters, digits and underscores")
	v.number("backup.processes", int64(b.Processes), 1, 99)
	v.oneOf("backup.compress_type", b.CompressType, "none", "gz", "bz2", "lz4", "zst")
	v.number("backup.compress_level", int64(b.CompressLevel), 0, compressLevels[b.CompressType])
	v.oneOf("backup.encryption", b.Encryption, "none", "aes-256-cbc")
	v.oneOf("backup.priority", b.Priority, "idle", "normal")
	v.duration("backup.stuck_after", b.StuckAfter, time.Minute, 24*time.Hour)
	v.number("backup.retain_fulls", int64(b.RetainFulls), 2, 1000)
	v.duration("backup.archive_timeout", b.ArchiveTimeout, time.Second, 24*time.Hour)
	// What they say is read by who plans by them.
	v.filled("backup.schedule", b.Schedule)
	v.filled("backup.zone", b.Zone)
	v.filled("backup.cycle", b.Cycle)
}

func (c Config) validateNodes(v *problems) {
	if len(c.Nodes) == 0 {
		v.add("nodes", "", "at least one node")
	}
	seen := map[string]string{}
	var names []string
	for i, n := range c.Nodes {
		at := fmt.Sprintf("nodes[%d].", i)
		v.match(at+"name", n.Name, nameForm, "lower-case letters, digits and underscores: it is a slot's name too")
		v.filled(at+"container", n.Container)
		v.absolute(at+"dir", n.Dir)
		v.absolute(at+"order_dir", n.OrderDir)
		v.number(at+"port", int64(n.Port), 1, 65535)
		for _, own := range []struct{ field, value string }{
			{"name", n.Name}, {"container", n.Container}, {"dir", n.Dir}, {"order_dir", n.OrderDir},
		} {
			key := own.field + "=" + own.value
			if first, taken := seen[key]; taken {
				v.add(at+own.field, own.value, "a value of its own; "+first+" has the same")
			}
			seen[key] = at + own.field
		}
		names = append(names, n.Name)
	}
	if c.PreferredPrimary != "" && !slices.Contains(names, c.PreferredPrimary) {
		v.add("preferred_primary", c.PreferredPrimary, "one of the nodes: "+strings.Join(names, ", "))
	}
}

func (p Postgres) validate(v *problems) {
	// Outside of what PostgreSQL takes a node would not start any more.
	v.size("postgres.shared_buffers", p.SharedBuffers, "1MB", "4TB")
	v.size("postgres.max_wal_size", p.MaxWALSize, "64MB", "1024TB")
	// Not less than wal_keep_size, which is kept anyway.
	v.size("postgres.max_slot_wal_keep_size", p.MaxSlotWALKeepSize, "64MB", "1024TB")
	// Below this, controld, replication and the pooler crowd the clients out.
	v.number("postgres.max_connections", int64(p.MaxConnections), 20, 10000)
	v.number("postgres.max_prepared_transactions", int64(p.MaxPreparedTransactions), 0, 10000)
}

func (p Pooler) validate(v *problems, maxConnections int) {
	v.address("pooler.address", p.Address)
	v.filled("pooler.container", p.Container)
	v.absolute("pooler.config_dir", p.ConfigDir)
	v.number("pooler.pool_size", int64(p.PoolSize), 1, int64(max(maxConnections-10, 1)))
	if len(p.Databases) == 0 {
		v.add("pooler.databases", "", "at least one database")
	}
	for i, name := range p.Databases {
		switch {
		case !databaseForm.MatchString(name):
			v.add("pooler.databases", name, "lower-case letters, digits and underscores")
		case strings.HasSuffix(name, "_ro") || strings.HasPrefix(name, "controld_"):
			v.add("pooler.databases", name, "no name that ends in _ro or begins with controld_: those entries are controld's own")
		case name == "pgbouncer":
			v.add("pooler.databases", name, "any name but pgbouncer, which is the console")
		case slices.Contains(p.Databases[:i], name):
			v.add("pooler.databases", name, "each database once")
		}
	}
}

// problems collects what is wrong.
type problems struct{ errs []error }

func (p *problems) add(key, value, allowed string) {
	p.errs = append(p.errs, fmt.Errorf("%s: %q is not allowed; allowed: %s", key, value, allowed))
}

func (p *problems) filled(key, value string) {
	if value == "" {
		p.add(key, value, "a name")
	}
}

func (p *problems) match(key, value string, form *regexp.Regexp, allowed string) {
	if !form.MatchString(value) {
		p.add(key, value, allowed)
	}
}

func (p *problems) size(key, value, least, most string) {
	n, ok := bytesOf(value)
	low, _ := bytesOf(least)
	high, _ := bytesOf(most)
	if !ok || n < low || n > high {
		p.add(key, value, fmt.Sprintf("a whole number and a unit as PostgreSQL writes it (512kB, 256MB, 4GB, 1TB), %s to %s", least, most))
	}
}

// bytesOf reads a size as PostgreSQL writes it.
func bytesOf(size string) (float64, bool) {
	m := sizeForm.FindStringSubmatch(size)
	if m == nil {
		return 0, false
	}
	n, err := strconv.ParseFloat(m[1], 64)
	return n * sizeUnits[m[2]], err == nil
}

func (p *problems) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		p.add(key, value, strings.Join(allowed, ", "))
	}
}

func (p *problems) absolute(key, value string) {
	if !filepath.IsAbs(value) {
		p.add(key, value, "an absolute path")
	}
}

func (p *problems) number(key string, value, least, most int64) {
	if value < least || value > most {
		p.add(key, strconv.FormatInt(value, 10), fmt.Sprintf("%d to %d", least, most))
	}
}

func (p *problems) duration(key string, value, least, most time.Duration) {
	if value < least || value > most {
		p.add(key, value.String(), fmt.Sprintf("%s to %s", least, most))
	}
}

func (p *problems) address(key, value string) {
	_, port, err := net.SplitHostPort(value)
	n, errPort := strconv.Atoi(port)
	if err != nil || errPort != nil || n < 0 || n > 65535 {
		p.add(key, value, "host:port")
	}
}
