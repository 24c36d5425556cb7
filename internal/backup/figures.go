package backup

import (
	"strconv"
	"strings"
	"time"

	"controld/internal/metrics/sample"
)

// The labels of pgbackrest_exporter. It has one repository here, and no block incremental.
const (
	repoKey   = "1"
	blockIncr = "n"
)

// Codes of a stanza's status, as pgBackRest has them (infoStanzaStatus in info.c).
const (
	stanzaOK       = 0
	stanzaMissing  = 1
	stanzaNoBackup = 2
	stanzaOther    = 99
)

// Samples are the figures of /metrics, of what was last seen. Where pgbackrest_exporter has
// the same figure they bear its name and its labels.
func (b *Backups) Samples(now time.Time) []sample.Family {
	seen, stanza := b.Seen(), b.cfg.Stanza
	one := func(value float64, labels ...string) []sample.Sample {
		return []sample.Sample{{Value: value, Labels: labels}}
	}
	served, failing := b.progress.get()
	attempts := 0
	if failing != nil {
		attempts = failing.Attempts
	}
	out := []sample.Family{
		{Name: "controld_backup_cycle_day", Help: "The day of the cycle that was made last; 0: none yet.",
			Samples: one(float64(served.Day))},
		{Name: "controld_backup_cycle_failed_attempts", Help: "Attempts at a day of the cycle that have failed since one succeeded.",
			Samples: one(float64(attempts))},
		{Name: "controld_backup_repository_seen", Help: "Whether the repository could be looked into.",
			Samples: one(oneIf64(seen.State != RepositoryUnknown))},
	}
	if seen.State == RepositoryUnknown {
		return out
	}
	status, cipher := float64(statusOf(seen)), seen.Cipher
	if cipher == "" {
		cipher = "none"
	}
	out = append(out,
		sample.Family{Name: "pgbackrest_stanza_status", Help: "Status of the stanza: 0 ok, 1 missing, 2 no valid backups, 99 other.",
			Labels: []string{"stanza"}, Samples: one(status, stanza)},
		sample.Family{Name: "pgbackrest_repo_status", Help: "Status of the repository, as that of the stanza.",
			Labels: []string{"cipher", "repo_key", "stanza"}, Samples: one(status, cipher, repoKey, stanza)},
		sample.Family{Name: "pgbackrest_stanza_lock_status", Help: "Whether a backup, or another command that needs it for itself, runs.",
			Labels: []string{"stanza"}, Samples: one(oneIf64(seen.Busy), stanza)},
		sample.Family{Name: "controld_backup_repository_free_bytes", Help: "What is left on the repository's disk.",
			Samples: one(float64(seen.FreeBytes))},
		sample.Family{Name: "controld_backup_repository_size_bytes", Help: "The size of the repository's disk.",
			Samples: one(float64(seen.DiskBytes))},
	)
	if from, ok := RecoverableFrom(seen.Copies, b.Continuity().Reaches); ok {
		out = append(out, sample.Family{Name: "controld_backup_recoverable_from_timestamp_seconds",
			Help: "The first moment to which the database can be recovered.", Samples: one(float64(from.Unix()))})
	}
	return append(append(out, archiveFigures(seen, stanza)...), copyFigures(seen.Copies, stanza, now)...)
}

func oneIf64(yes bool) float64 { return float64(oneIf(yes)) }

func statusOf(s Seen) int {
	switch {
	case s.State == RepositoryNew:
		return stanzaMissing
	case s.State != RepositoryOK:
		return stanzaOther
	case len(s.Copies) == 0:
		return stanzaNoBackup
	}
	return stanzaOK
}

func archiveFigures(s Seen, stanza string) []sample.Family {
	f := sample.Family{Name: "pgbackrest_wal_archive_status", Help: "Whether WAL is in the archive.",
		Labels: []string{"database_id", "pg_version", "repo_key", "stanza"}}
	for _, a := range s.Archive {
		version, id, _ := strings.Cut(a.ID, "-")
		f.Samples = append(f.Samples, sample.Sample{
			Value: oneIf64(a.Min != "" && a.Max != ""), Labels: []string{id, version, repoKey, stanza},
		})
	}
	return []sample.Family{f}
}

// copyFigures are those of each backup, and of the last of each type: for an incremental a
// differential or full that is newer counts, for a differential a full.
func copyFigures(copies []Copy, stanza string, now time.Time) []sample.Family {
	each := func(name, help string, value func(Copy) float64) sample.Family {
		f := sample.Family{Name: name, Help: help,
			Labels: []string{"backup_name", "backup_type", "block_incr", "database_id", "repo_key", "stanza"}}
		for _, c := range copies {
			f.Samples = append(f.Samples, sample.Sample{
				Value: value(c), Labels: []string{c.Label, string(c.Type), blockIncr, strconv.Itoa(c.DatabaseID), repoKey, stanza},
			})
		}
		return f
	}
	since := sample.Family{Name: "pgbackrest_backup_since_last_completion_seconds",
		Help:   "Seconds since the last backup of this type, or of a stronger one, ended.",
		Labels: []string{"backup_type", "block_incr", "stanza"}}
	last := map[Type]time.Time{}
	for _, c := range copies {
		for i := len(Types) - 1; i >= 0; i-- {
			last[Types[i]] = latest(last[Types[i]], c.EndedAt)
			if Types[i] == c.Type {
				break
			}
		}
	}
	for _, t := range Types {
		if at := last[t]; !at.IsZero() {
			since.Samples = append(since.Samples, sample.Sample{
				Value: now.Sub(at).Seconds(), Labels: []string{string(t), blockIncr, stanza},
			})
		}
	}
	return []sample.Family{
		since,
		each("pgbackrest_backup_size_bytes", "The size of the database.", func(c Copy) float64 { return float64(c.Bytes) }),
		each("pgbackrest_backup_delta_bytes", "What the backup copied of it.", func(c Copy) float64 { return float64(c.CopiedBytes) }),
		each("pgbackrest_backup_repo_size_bytes", "What it takes in the repository, with all that it needs.",
			func(c Copy) float64 { return float64(c.RepoBytes) }),
		each("pgbackrest_backup_repo_delta_bytes", "What it takes there by itself.",
			func(c Copy) float64 { return float64(c.RepoOwnBytes) }),
		each("pgbackrest_backup_error_status", "Whether pages of the database did not match their checksums.",
			func(c Copy) float64 { return oneIf64(c.PageErrors) }),
		each("controld_backup_consistent", "Whether it restores to a state that the database was in.",
			func(c Copy) float64 { return oneIf64(c.Consistent()) }),
	}
}
