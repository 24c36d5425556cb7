package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"controld/internal/api/gen"
)

func (c *cli) checkRedis() *cobra.Command {
	return &cobra.Command{
		Use:   "redis",
		Short: "Check Redis, and whether its records tell of the backups that there are",
		Long: `Ask the daemon how Redis is: whether it answers, which version it is, whether it
keeps what it is told, and whether it has a record of each backup in the repository.

` + exitCodeHelp,
		Example: `  controld check redis
  controld check redis -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			part, page, err := c.componentAndBackups(cmd.Context(), "redis")
			if err != nil {
				return err
			}
			return c.report(redisFindings(part, page))
		},
	}
}

func (c *cli) checkPgbackrest() *cobra.Command {
	return &cobra.Command{
		Use:   "pgbackrest",
		Short: "Check the repository, the last backup, the archive and the disk",
		Long: `Ask the daemon how the backups are: the repository with its stanza and encryption, the
last backup, the archived WAL, and the disk that all of it is on.

` + exitCodeHelp,
		Example: `  controld check pgbackrest
  controld check pgbackrest -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			part, page, err := c.componentAndBackups(cmd.Context(), "backups")
			if err != nil {
				return err
			}
			return c.report(c.repositoryFindings(part, page))
		},
	}
}

// componentAndBackups is a component of /health, and the newest backup with all that is said
// beside it.
func (c *cli) componentAndBackups(ctx context.Context, name string) (part gen.ComponentHealth, page gen.BackupList, err error) {
	api, err := c.client()
	if err != nil {
		return part, page, err
	}
	health, err := api.Health(ctx)
	if err != nil {
		return part, page, err
	}
	part = gen.ComponentHealth{Name: name, Status: "unknown"}
	for _, x := range health.Components {
		if x.Name == name {
			part = x
		}
	}
	newest := 1
	page, err = api.Backups(ctx, gen.ListBackupsParams{Limit: &newest})
	return part, page, err
}

// healthFinding is what /health says of a component.
func healthFinding(part gen.ComponentHealth) finding {
	if part.Status == "ok" {
		return ok("health", "%s is ok", part.Name)
	}
	return failed("health", fmt.Errorf("%s is %s: %s: %s\n%s", part.Name, part.Status, text(part.Reason), text(part.Detail),
		gen.Value(part.Do)))
}

func redisFindings(part gen.ComponentHealth, page gen.BackupList) []finding {
	found := []finding{healthFinding(part)}
	x := page.Catalogue
	switch {
	case x.Version == nil:
		found = append(found, skipped("server", "not known: nothing was read since controld began"))
	case gen.Value(x.AppendOnly):
		found = append(found, ok("server", "Redis %s, with an append-only file", *x.Version))
	default:
		found = append(found, failed("server", fmt.Errorf("version %s has no append-only file: a restart loses it all", *x.Version)))
	}
	backups := gen.Value(page.Repository.Backups)
	switch {
	case x.State != gen.CatalogueStateOk:
		return append(found, failed("records", fmt.Errorf("%s: %s", x.State, text(x.Detail))))
	case x.Records != backups:
		return append(found, failed("records", fmt.Errorf("%d in Redis, %d backups in the repository", x.Records, backups)))
	}
	return append(found, ok("records", "%d, as many as backups in the repository; compared %s", x.Records, stamp(x.WrittenAt)))
}

func stamp(at *time.Time) string {
	if at == nil {
		return "-"
	}
	return at.UTC().Format(time.RFC3339)
}

func (c *cli) repositoryFindings(part gen.ComponentHealth, page gen.BackupList) []finding {
	found := []finding{healthFinding(part)}
	r := page.Repository
	if r.State == gen.RepositoryStateOk {
		cipher := "not encrypted"
		if r.Cipher != nil {
			cipher = *r.Cipher
		}
		found = append(found, ok("repository", "stanza %s, %s, backups: %d", text(r.Stanza), cipher, gen.Value(r.Backups)))
	} else {
		found = append(found, failed("repository", fmt.Errorf("%s: %s", r.State, text(r.Detail))))
	}
	if others := gen.Value(r.Others); len(others) > 0 {
		found = append(found, ok("other clusters", "their repositories are kept beside it: %s", strings.Join(others, ", ")))
	}
	if len(page.Backups) == 0 {
		found = append(found, failed("last backup", errors.New("there is none")))
	} else {
		b := page.Backups[0]
		found = append(found, ok("last backup", "%s, %s, of %s, %s", shortKey(b), b.Type, b.MaestroUsado, c.ago(b.EndedAt)))
	}
	found = append(found, archiveFinding(page.Archive))
	if r.FreeBytes == nil || r.TotalBytes == nil {
		return append(found, skipped("disk", "not known"))
	}
	return append(found, ok("disk", "%s free of %s", size(*r.FreeBytes), size(*r.TotalBytes)))
}

func archiveFinding(a gen.ArchivedWAL) finding {
	gap := strings.TrimSpace(archiveGap(a))
	switch a.State {
	case gen.ArchivedWALStateUnknown:
		return failed("archive", errors.New("not known: "+text(a.Detail)))
	case gen.ArchivedWALStateHole:
		return failed("archive", errors.New(gap))
	case gen.ArchivedWALStateIncomplete, gen.ArchivedWALStateWaiting:
		return ok("archive", "%s", gap)
	case gen.ArchivedWALStateContinuous:
	}
	return ok("archive", "continuous up to %s", text(a.Reaches))
}
