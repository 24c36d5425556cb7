package pgbackrest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"controld/internal/backup"
	"controld/internal/wal"
)

// What pgbackrest info --output=json says of a stanza (info.c of 2.45 to 2.55). Its exit
// code is 0 whatever it finds.
type stanza struct {
	Name   string `json:"name"`
	Cipher string `json:"cipher"`
	Status struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
		Lock    struct {
			Backup struct {
				Held bool  `json:"held"`
				Size int64 `json:"size"`
				Done int64 `json:"size-cplt"`
			} `json:"backup"`
		} `json:"lock"`
	} `json:"status"`
	Repo []struct {
		Cipher string `json:"cipher"`
		Status struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		} `json:"status"`
	} `json:"repo"`
	DB []struct {
		ID       int    `json:"id"`
		SystemID uint64 `json:"system-id"`
		Version  string `json:"version"`
	} `json:"db"`
	Archive []struct {
		ID  string `json:"id"`
		Min string `json:"min"`
		Max string `json:"max"`
	} `json:"archive"`
	Backup []entry `json:"backup"`
}

type entry struct {
	Label     string   `json:"label"`
	Type      string   `json:"type"`
	Prior     string   `json:"prior"`
	Reference []string `json:"reference"`
	Archive   struct {
		Start string `json:"start"`
		Stop  string `json:"stop"`
	} `json:"archive"`
	LSN struct {
		Start string `json:"start"`
		Stop  string `json:"stop"`
	} `json:"lsn"` // absent when offline
	BackRest struct {
		Version string `json:"version"`
	} `json:"backrest"`
	Database struct {
		ID int `json:"id"`
	} `json:"database"`
	Error bool `json:"error"`
	Info  struct {
		Size       int64 `json:"size"`
		Delta      int64 `json:"delta"`
		Repository struct {
			Size  int64 `json:"size"`
			Delta int64 `json:"delta"`
		} `json:"repository"`
	} `json:"info"`
	Timestamp struct {
		Start int64 `json:"start"`
		Stop  int64 `json:"stop"`
	} `json:"timestamp"`
	Annotation map[string]string `json:"annotation"`
}

// Codes of a stanza's status (infoStanzaStatus in info.c).
const (
	statusOK       = 0
	statusNoPath   = 1
	statusNoBackup = 2
	statusNoData   = 3
)

// parseInfo reads the output of info for one stanza. A stanza that is not there is a
// repository that is new.
func parseInfo(text []byte, name string) (backup.Repository, error) {
	var all []stanza
	if err := json.Unmarshal(text, &all); err != nil {
		return backup.Repository{}, fmt.Errorf("output of pgbackrest info: %w", err)
	}
	at := slices.IndexFunc(all, func(s stanza) bool { return s.Name == name })
	if at < 0 {
		return backup.Repository{State: backup.RepositoryNew}, nil
	}
	return all[at].repository()
}

func (s stanza) repository() (backup.Repository, error) {
	r := backup.Repository{
		Busy: s.Status.Lock.Backup.Held, DoneBytes: s.Status.Lock.Backup.Done, TotalBytes: s.Status.Lock.Backup.Size,
	}
	if s.Cipher != "none" {
		r.Cipher = s.Cipher
	}
	switch s.Status.Code {
	case statusOK, statusNoBackup:
		r.State = backup.RepositoryOK
	case statusNoPath, statusNoData:
		r.State = backup.RepositoryNew
		return r, nil
	default:
		r.State, r.Detail = backup.RepositoryBroken, s.Status.Message
		for _, repo := range s.Repo {
			if repo.Status.Code != statusOK {
				r.Detail = repo.Status.Message
			}
		}
		return r, nil
	}
	systems := map[int]uint64{}
	versions := map[int]string{}
	for _, db := range s.DB { // the last one is the present one
		systems[db.ID], versions[db.ID] = db.SystemID, db.Version
		r.SystemID = db.SystemID
	}
	for _, a := range s.Archive {
		r.Archive = append(r.Archive, backup.ArchiveRange{ID: a.ID, Min: a.Min, Max: a.Max})
	}
	for _, e := range s.Backup {
		c, err := e.copy()
		if err != nil {
			return backup.Repository{}, fmt.Errorf("output of pgbackrest info: backup %s: %w", e.Label, err)
		}
		c.DatabaseID = e.Database.ID
		c.SystemID, c.DatabaseFormat = systems[e.Database.ID], versions[e.Database.ID]
		r.Copies = append(r.Copies, c)
	}
	slices.SortStableFunc(r.Copies, func(a, b backup.Copy) int { return a.StartedAt.Compare(b.StartedAt) })
	return r, nil
}

func (e entry) copy() (backup.Copy, error) {
	c := backup.Copy{
		Label: e.Label, Type: backup.Type(e.Type), Prior: e.Prior, Needs: e.Reference,
		StartedAt: time.Unix(e.Timestamp.Start, 0).UTC(), EndedAt: time.Unix(e.Timestamp.Stop, 0).UTC(),
		Mode: backup.Offline, Bytes: e.Info.Size, CopiedBytes: e.Info.Delta,
		RepoBytes: e.Info.Repository.Size, RepoOwnBytes: e.Info.Repository.Delta,
		PageErrors: e.Error, Version: e.BackRest.Version, Annotations: e.Annotation,
	}
	if !slices.Contains(backup.Types, c.Type) {
		return c, fmt.Errorf("type %q is not known", e.Type)
	}
	if e.LSN.Start == "" {
		return c, nil
	}
	c.Mode, c.WALStart, c.WALStop = backup.Online, e.Archive.Start, e.Archive.Stop
	var err error
	if c.LSNStart, err = wal.ParseLSN(e.LSN.Start); err != nil {
		return c, err
	}
	if c.LSNStop, err = wal.ParseLSN(e.LSN.Stop); err != nil {
		return c, err
	}
	if len(c.WALStart) == 24 { // the first eight digits of a segment's name are its timeline
		timeline, err := strconv.ParseUint(c.WALStart[:8], 16, 32)
		if err != nil {
			return c, err
		}
		c.Timeline = wal.Timeline(timeline)
	}
	return c, nil
}
