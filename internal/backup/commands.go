package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"controld/internal/api/command"
	"controld/internal/api/gen"
	"controld/internal/cluster"
	"controld/internal/operation"
)

// Commands are those of the API that this package serves.
func (b *Backups) Commands(kit command.Kit) []command.Route {
	c := commands{b, kit}
	return []command.Route{
		{Method: http.MethodGet, Path: "/backups", Handler: c.list},
		{Method: http.MethodPost, Path: "/backups", Handler: c.start},
		{Method: http.MethodGet, Path: "/backups/cycle", Handler: c.cycle},
		{Method: http.MethodPost, Path: "/backups/cycle/{day}", Handler: c.startDay},
		{Method: http.MethodPost, Path: "/backups/orphans", Handler: c.orphans},
		{Method: http.MethodGet, Path: "/backups/{key}", Handler: c.show},
		{Method: http.MethodDelete, Path: "/backups/{key}", Handler: c.remove},
		{Method: http.MethodPost, Path: "/backups/retention", Handler: c.retain},
		{Method: http.MethodGet, Path: "/backups/usage", Handler: c.usage},
	}
}

type commands struct {
	b   *Backups
	kit command.Kit
}

// A Request asks for a backup.
type Request struct {
	Type               Type // empty: what is due
	Mode               Mode // empty: Online
	Reason             string
	AcceptInconsistent bool
	CancelRunning      bool
	// NewRepository has a new one made before, in place of one that is lost. Type is Full then.
	NewRepository bool
}

// Backup starts a backup.
func (b *Backups) Backup(ctx context.Context, r Request, by operation.Caller) (operation.Record, error) {
	if r.Mode == Offline && !r.AcceptInconsistent {
		return operation.Record{}, operation.Refuse("inconsistent", nil,
			"an offline backup copies the files of the running server behind its back, and does not restore where it writes meanwhile: "+
				"make an online one (leave mode out), or accept that with accept_inconsistent")
	}
	if r.NewRepository && r.Type != Full {
		return operation.Record{}, &cluster.InvalidField{Field: "new_repository", Value: true,
			Allowed: "type full, for nothing builds on what is lost"}
	}
	p := params{Mode: r.Mode, NewRepository: r.NewRepository}
	if r.Type != "" {
		p.Types = []Type{r.Type}
	}
	return b.start(ctx, operation.Spec{
		Kind: KindBackup, Mode: string(r.Type), Reason: r.Reason, Caller: by, CancelRunning: r.CancelRunning,
	}, p)
}

func (c commands) start(w http.ResponseWriter, r *http.Request) {
	var body gen.BackupRequest
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil && !errors.Is(err, io.EOF) {
		c.kit.Fail(w, r, err)
		return
	}
	request := Request{
		Type: Type(gen.Value(body.Type)), Mode: Mode(gen.Value(body.Mode)), Reason: gen.Value(body.Reason),
		AcceptInconsistent: gen.Value(body.AcceptInconsistent), CancelRunning: gen.Value(body.CancelRunning),
		NewRepository: gen.Value(body.NewRepository),
	}
	c.kit.Run(w, r, func(ctx context.Context, by operation.Caller) (operation.Record, error) {
		return c.b.Backup(ctx, request, by)
	})
}

func (c commands) startDay(w http.ResponseWriter, r *http.Request) {
	var body gen.DayRequest
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil && !errors.Is(err, io.EOF) {
		c.kit.Fail(w, r, err)
		return
	}
	day, _ := strconv.Atoi(r.PathValue("day")) // the contract has checked it
	if days := len(c.b.cfg.Timetable.Cycle); day > days {
		c.kit.Fail(w, r, &command.Unknown{Type: "/problems/unknown-day",
			Detail: fmt.Sprintf("the cycle has no day %d: its days are 1 to %d; GET /backups/cycle lists them", day, days)})
		return
	}
	request := DayRequest{
		Day: day, Reason: gen.Value(body.Reason), Keep: gen.Value(body.KeepCycle), CancelRunning: gen.Value(body.CancelRunning),
	}
	c.kit.Run(w, r, func(ctx context.Context, by operation.Caller) (operation.Record, error) {
		return c.b.Day(ctx, request, by)
	})
}

func (c commands) cycle(w http.ResponseWriter, _ *http.Request) {
	plan, now := c.b.cfg.Timetable, c.b.Clock()
	served, failing := c.b.progress.get()
	g := gen.Cycle{Schedule: "off", Zone: plan.Zone, Days: []gen.CycleDay{}, Day: served.Day}
	for i, types := range plan.Cycle {
		g.Days = append(g.Days, gen.CycleDay{Day: i + 1, Types: typesOf(types)})
	}
	if served.Day > 0 {
		g.Last = &gen.CycleLast{Day: served.Day, EndedAt: gen.Optional(served.EndedAt), Operation: gen.Optional(served.Operation)}
	}
	for _, open := range c.b.Operations.Open() {
		if dayOf(open) > 0 {
			g.Running = &open.ID
		}
	}
	if failing != nil {
		g.Failing = &gen.CycleFailure{Day: failing.Day, Attempts: failing.Attempts, Since: failing.Since.UTC(), Detail: failing.Detail}
	}
	if plan.Next != nil {
		g.Schedule = plan.Expression
		if run, due := c.b.due(); due {
			g.Due = cycleRun(run)
		}
		if run, is := plan.Cycle.NextRun(plan.Next, served, now); is {
			g.Next = cycleRun(run)
		}
	}
	c.kit.JSON(w, http.StatusOK, g)
}

func cycleRun(r Run) *gen.CycleRun {
	return &gen.CycleRun{Day: r.Day, Types: typesOf(r.Types), At: r.Slot.UTC(), Missed: gen.Optional(r.Missed)}
}

func typesOf(types []Type) []gen.BackupType {
	out := make([]gen.BackupType, len(types))
	for i, t := range types {
		out[i] = gen.BackupType(t)
	}
	return out
}

// records are those of the catalogue, as of the last look.
func (b *Backups) records() ([]Record, Seen) {
	seen := b.Seen()
	return b.recordsOf(seen), seen
}

func (b *Backups) recordsOf(seen Seen) []Record {
	id := b.Cluster.Identity().SystemID
	return Records(seen.Copies, func(label string) string { return b.Files.Dir(id, label) }, *b.keys.Load())
}

const defaultPage = 100

func (c commands) list(w http.ResponseWriter, r *http.Request) {
	records, seen := c.b.records()
	query := r.URL.Query()
	if name := query.Get("chain"); name != "" {
		found, ok := Find(records, name)
		if !ok {
			c.kit.Fail(w, r, unknownBackup(name))
			return
		}
		records = Chain(records, found)
	}
	limit := defaultPage
	if text := query.Get("limit"); text != "" {
		limit, _ = strconv.Atoi(text) // the contract has checked it
	}
	answer := gen.BackupList{
		Backups: []gen.Backup{}, Repository: c.repository(seen), Archive: archive(c.b.Continuity()), Recoverable: c.recoverable(seen),
		Catalogue: catalogue(c.b.Recorded()),
	}
	skip := query.Get("after") != ""
	for _, record := range records {
		if skip {
			skip = record.Key != query.Get("after")
			continue
		}
		if t := query.Get("type"); t != "" && t != string(record.Type) {
			continue
		}
		if p := query.Get("primary"); p != "" && p != record.Primary {
			continue
		}
		if len(answer.Backups) == limit {
			answer.Next = &answer.Backups[limit-1].Key
			break
		}
		answer.Backups = append(answer.Backups, c.backup(record))
	}
	c.kit.JSON(w, http.StatusOK, answer)
}

func (c commands) show(w http.ResponseWriter, r *http.Request) {
	records, _ := c.b.records()
	name := r.PathValue("key")
	found, ok := Find(records, name)
	if !ok {
		c.kit.Fail(w, r, unknownBackup(name))
		return
	}
	c.kit.JSON(w, http.StatusOK, c.backup(found))
}

func unknownBackup(name string) error {
	return &command.Unknown{Type: "/problems/unknown-backup",
		Detail: fmt.Sprintf("there is no backup %q in the repository; GET /backups lists them", name)}
}

func (c commands) backup(r Record) gen.Backup {
	g := gen.Backup{
		Key: r.Key, Fecha: r.At.Format("2006-01-02"), Hora: r.At.Format("15:04:05"), TipoBackup: gen.BackupTipoBackup(r.Type.Tipo()),
		DireccionAlmacenamiento: r.Dir, MaestroUsado: r.Primary, Metodo: metodo, Stanza: c.b.cfg.Stanza,
		Label: r.Label, Type: gen.BackupType(r.Type), Mode: gen.BackupMode(r.Mode), Consistent: r.Consistent(),
		RequestedType: gen.Optional(string(r.Requested)), PageErrors: gen.Optional(r.PageErrors), Prior: gen.Optional(r.Prior),
		Needs:     append([]string{}, r.Needs...),
		StartedAt: r.StartedAt, EndedAt: r.EndedAt, DurationMs: float64(r.EndedAt.Sub(r.StartedAt)) / float64(time.Millisecond),
		WalStart: gen.Optional(r.WALStart), WalStop: gen.Optional(r.WALStop),
		DatabaseBytes: r.Bytes, CopiedBytes: r.CopiedBytes, RepositoryBytes: r.RepoBytes, OwnBytes: r.RepoOwnBytes,
		Reason: gen.Optional(r.Reason), Operation: gen.Optional(r.Operation), NearlyFull: gen.Optional(r.NearlyFull()),
	}
	if r.Mode == Online {
		start, stop, timeline := r.LSNStart.String(), r.LSNStop.String(), int(r.Timeline)
		g.LsnStart, g.LsnStop, g.Timeline = &start, &stop, &timeline
	}
	if day, err := strconv.Atoi(r.CycleDay); err == nil {
		g.CycleDay = &day
	}
	return g
}

func (c commands) repository(s Seen) gen.Repository {
	g := gen.Repository{
		State: gen.RepositoryState(s.State), Detail: gen.Optional(s.Detail), Cipher: gen.Optional(s.Cipher),
		FreeBytes: gen.Optional(s.FreeBytes), TotalBytes: gen.Optional(s.DiskBytes), ObservedAt: gen.Optional(s.At),
	}
	if s.SystemID != 0 {
		id := strconv.FormatUint(s.SystemID, 10)
		g.SystemID = &id
	}
	stanza, backups := c.b.cfg.Stanza, len(s.Copies)
	g.Stanza, g.Backups = &stanza, &backups
	if len(s.Others) > 0 {
		g.Others = &[]string{}
		for _, other := range s.Others {
			*g.Others = append(*g.Others, strconv.FormatUint(other, 10))
		}
	}
	return g
}

func archive(x Continuity) gen.ArchivedWAL {
	g := gen.ArchivedWAL{
		State: gen.ArchivedWALState(x.State()), Detail: gen.Optional(x.Unread), WaitingSegments: x.Waiting, LeftFiles: len(x.Left),
		Holes: []gen.Hole{}, ObservedAt: gen.Optional(x.At),
	}
	if x.SegmentBytes > 0 {
		reaches, timeline := x.Next.Number.Start(x.SegmentBytes).String(), int64(x.Next.Timeline)
		g.Reaches, g.Timeline = &reaches, &timeline
	}
	for _, h := range x.Holes() {
		g.Holes = append(g.Holes, gen.Hole{Timeline: int64(h.Timeline), From: h.From.String(), To: h.To.String()})
	}
	return g
}

// recoverable is from when to when the database can be recovered; nil: it cannot.
func (c commands) recoverable(s Seen) *gen.Recoverable {
	from, ok := RecoverableFrom(s.Copies, c.b.Continuity().Reaches)
	if !ok {
		return nil
	}
	g := gen.Recoverable{From: from, Note: gen.Optional(c.b.window(s, time.Now()).note())}
	// What comes after WAL that is still to be pushed is archived, and cannot be reached yet.
	if leader, problem := cluster.Leader(c.b.Cluster.View()); problem == nil && len(c.b.Continuity().Left) == 0 {
		g.To = gen.Optional(leader.Server.ArchiveLastAt)
	}
	return &g
}
