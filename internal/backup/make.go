package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"controld/internal/cluster"
	"controld/internal/operation"
	"controld/internal/wait"
)

// state is what the steps of a backup learn from each other.
type state struct {
	Types   []Type    `json:"types"` // those that are made, one after the other
	Asked   []Type    `json:"asked"` // those that were asked for
	Mode    Mode      `json:"mode"`
	Day     int       `json:"day,omitempty"`
	Moves   bool      `json:"moves,omitempty"` // see params
	Slot    time.Time `json:"slot,omitzero"`
	Reason  string    `json:"reason,omitempty"`
	Primary string    `json:"primary,omitempty"` // the node that was copied from last
	// Promoted is why a full was made instead of what was asked for.
	Promoted string `json:"promoted,omitempty"`
	Made     []made `json:"made,omitempty"`
	// NewRepository: in place of one that is lost, a new one is made before.
	NewRepository bool `json:"new_repository,omitempty"`
}

// made is a backup that this operation has made, or has found to be needless.
type made struct {
	Type      Type   `json:"type"` // as it came out
	Requested Type   `json:"requested"`
	Label     string `json:"label,omitempty"`
	Container string `json:"container"`
	Bytes     int64  `json:"bytes,omitempty"`
	Copied    int64  `json:"copied,omitempty"`
	RepoBytes int64  `json:"repo_bytes,omitempty"`
	Unchanged bool   `json:"unchanged,omitempty"` // offline: there was nothing to copy
}

// Bounds of a backup.
const (
	// longestBackup is what the init gives a backup. That it gets on is watched here.
	longestBackup = 7 * 24 * time.Hour
	progressEvery = 2 * time.Second
	endTimeout    = 30 * time.Second
	// spaceSpare: a disk that has less room than the last full took would fill up.
	spaceSpare = 64 << 20
)

// backupWork makes backups of the server that leads, one after the other.
func (b *Backups) backupWork(p params) operation.Runnable {
	return operation.Work[state]{
		Prepare: func(ctx context.Context, s *state) (operation.Prepared, error) {
			s.Types, s.Asked, s.Mode, s.Reason = p.Types, p.Types, p.Mode, p.Reason
			s.Day, s.Moves, s.Slot = p.Day, p.Moves, p.Slot
			s.NewRepository = p.NewRepository
			if s.Mode == "" {
				s.Mode = Online
			}
			return b.prepare(ctx, s)
		},
		Steps: func(s *state) []operation.Step[state] {
			var steps []operation.Step[state]
			if s.NewRepository {
				steps = []operation.Step[state]{
					{Name: "create repository", Do: withLive[state](b, b.Tool.Create), Entry: true},
					{Name: "check archiving", Do: withLive[state](b, b.Tool.Check)},
				}
			}
			for i, t := range s.Types {
				steps = append(steps, operation.Step[state]{
					Name: stepName(s.Types, i), Entry: true,
					Do:   func(ctx context.Context, s *state) error { return b.makeOne(ctx, s, i, t) },
					Undo: func(ctx context.Context, _ *state) error { return b.end(ctx, identity(operation.ID(ctx), i)) },
				})
			}
			return steps
		},
		Forward: true,
		Result:  result,
	}
}

// asked is the type that was asked for where t is made, which may be one that had to
// become a full.
func (s *state) asked(t Type) Type {
	if len(s.Asked) == 0 || slices.Contains(s.Asked, t) {
		return t
	}
	return s.Asked[0]
}

// stepName is unique in the operation: a day may make two of a type.
func stepName(types []Type, i int) string {
	if len(types) == 1 {
		return "back up " + string(types[i])
	}
	return fmt.Sprintf("back up %s (%d of %d)", types[i], i+1, len(types))
}

func result(s *state) map[string]any {
	r := map[string]any{"mode": string(s.Mode), "types": s.Types}
	if s.Primary != "" {
		r["primary"] = s.Primary
	}
	if s.Day > 0 {
		r["cycle_day"], r["moves_cycle"] = s.Day, s.Moves
	}
	if s.Moves {
		r["cycle_slot"] = s.Slot
	}
	if s.Promoted != "" {
		r["promoted"] = s.Promoted
	}
	if s.NewRepository {
		r["new_repository"] = true
	}
	if len(s.Made) > 0 {
		last := s.Made[len(s.Made)-1]
		var labels []string
		for _, m := range s.Made {
			labels = append(labels, m.Label)
		}
		r["label"], r["type"], r["labels"] = last.Label, string(last.Type), labels
		r["bytes"], r["copied_bytes"], r["repository_bytes"] = last.Bytes, last.Copied, last.RepoBytes
		if last.Unchanged {
			r["unchanged"] = true
		}
	}
	return r
}

// identity is by what a backup is found again that was begun: in the tool's container
// while it runs, in the repository when it is made.
func identity(id string, i int) string { return id + "." + strconv.Itoa(i) }

// prepare checks what has to hold, and touches nothing.
func (b *Backups) prepare(ctx context.Context, s *state) (operation.Prepared, error) {
	if leader, problem := cluster.Leader(b.Cluster.View()); problem == nil && !leader.Init.Archives {
		return operation.Prepared{}, operation.Refuse("no-repository", nil,
			"%s cannot archive, for an earlier version made it: make down && make up renews it and brings backups; the data stays",
			leader.Node.Container)
	}
	seen := b.Look(ctx)
	if err := b.usable(seen, s.NewRepository); err != nil {
		return operation.Prepared{}, err
	}
	servers, err := b.detect(ctx)
	if err != nil {
		return operation.Prepared{}, err
	}
	s.Primary = servers.Primary.Name
	if len(s.Types) == 0 {
		s.Types = []Type{Incremental}
	}
	if s.Types[0] != Full && !hasFull(seen.Copies) {
		s.Promoted = fmt.Sprintf("%s is made a full, for there is none to build on", joinTypes(s.Types, " and "))
		s.Types = []Type{Full}
	}
	full := lastFull(seen.Copies)
	room := seen.DiskBytes == 0 || s.Types[len(s.Types)-1] != Full || seen.FreeBytes > full.RepoOwnBytes+spaceSpare
	checks := []operation.Check{
		operation.NewCheck("primary", true, "", nil, "%s leads (pg_is_in_recovery)", servers.Primary.Name),
		operation.NewCheck("space", room, "repository-full",
			map[string]any{"free_bytes": seen.FreeBytes, "last_full_bytes": full.RepoOwnBytes},
			"the repository's disk has %d bytes left, the last full took %d", seen.FreeBytes, full.RepoOwnBytes),
	}
	if s.Promoted != "" {
		checks = append(checks, operation.NewCheck("chain", true, "", nil, "%s", s.Promoted))
	}
	if len(servers.Silent) > 0 {
		checks = append(checks, operation.NewCheck("servers", true, "", nil, "left out of this run: %s",
			strings.Join(servers.Silent, "; ")))
	}
	return operation.Prepared{Mode: string(s.Types[0]), Checks: checks}, operation.Refusal(checks)
}

// usable refuses a repository in which nothing can be kept, and a new one beside one that is
// there.
func (b *Backups) usable(seen Seen, anew bool) error {
	switch {
	case seen.Missing != "":
		return operation.Refuse("no-repository", nil, "%s", seen.Missing)
	case anew && b.lost(seen):
		return nil
	case anew && seen.State != RepositoryUnknown:
		return operation.Refuse("repository-not-lost", nil,
			"a new repository is made only in place of one that is lost, and this one is %s", seen.State)
	case b.lost(seen):
		return operation.Refuse("repository-lost", nil, "%s. %s", lostDetail, lostDo)
	case seen.State == RepositoryNew:
		return operation.Refuse("no-repository", nil,
			"the repository is not made yet; controld makes it by itself when a node leads: GET /health says what is in the way")
	case seen.State == RepositoryBroken:
		return operation.Refuse("repository-broken", nil, "the repository cannot be used: %s", seen.Detail)
	case seen.State != RepositoryOK:
		return operation.Refuse("repository-away", nil, "nobody can look into the repository: %s", seen.Detail)
	}
	return nil
}

func hasFull(copies []Copy) bool { return lastFull(copies).Label != "" }

// lastFull is the newest full that was made online; the zero Copy where there is none.
func lastFull(copies []Copy) (last Copy) {
	for _, c := range copies {
		if c.Type == Full && c.Mode == Online {
			last = c
		}
	}
	return last
}

// makeOne makes one backup, or goes on with the one that an earlier controld has begun.
func (b *Backups) makeOne(ctx context.Context, s *state, i int, t Type) error {
	if len(s.Made) > i {
		return nil
	}
	id := identity(operation.ID(ctx), i)
	err := b.await(ctx, id) // one that an earlier controld has begun
	if errors.Is(err, ErrNotRunning) {
		err = nil
		if _, ended := b.Look(ctx).Made(NoteOperation, id); !ended {
			err = b.begin(ctx, s, id, t)
		}
	}
	if isFailure(err, FailureLabel) && t != Full {
		s.Promoted = fmt.Sprintf("%s is made a full, for pgbackrest cannot build on what is there: %v", t, err)
		b.Log.Warn("a backup is made a full", "why", s.Promoted)
		err = b.begin(ctx, s, id, Full)
	}
	switch {
	case isFailure(err, FailureUnchanged):
		s.Made = append(s.Made, made{Type: t, Requested: t, Container: s.Primary, Unchanged: true})
	case isFailure(err, FailureLabel):
		return fmt.Errorf("%w; the clock is behind the newest backup: was it set back? Backups are made again when it has passed that", err)
	case err != nil:
		return err
	default:
		if err := b.judge(ctx, s, id, t); err != nil {
			return err
		}
	}
	if s.Moves && i == len(s.Types)-1 {
		return b.serve(ctx, s)
	}
	return nil
}

func isFailure(err error, kind FailureKind) bool {
	var failure *Failure
	return errors.As(err, &failure) && failure.Kind == kind
}

// begin makes a backup of who leads now.
func (b *Backups) begin(ctx context.Context, s *state, id string, t Type) error {
	servers, err := b.detect(ctx)
	if err != nil {
		return err
	}
	s.Primary = servers.Primary.Name
	order := Order{Type: t, Mode: s.Mode, Servers: servers.Live, Limit: longestBackup, Annotations: map[string]string{
		NoteOperation: id, NotePrimary: servers.Primary.Container, NoteRequested: string(s.asked(t)),
	}}
	if s.Reason != "" {
		order.Annotations[NoteReason] = s.Reason
	}
	if s.Day > 0 {
		order.Annotations[NoteCycleDay] = strconv.Itoa(s.Day)
	}
	if err := b.Tool.Begin(ctx, id, order); err != nil {
		return err
	}
	err = b.await(ctx, id)
	if errors.Is(err, ErrNotRunning) {
		return errors.New("the container that made the backup ended meanwhile; what a full had copied is used by the next one")
	}
	return err
}

// await waits for the end of a backup, tells how far it is, and ends it where it gets no
// further.
func (b *Backups) await(ctx context.Context, id string) error {
	waiting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go b.follow(waiting, cancel)
	err := b.Tool.Await(waiting, id)
	var stuck *stuckError
	if errors.As(context.Cause(waiting), &stuck) {
		return errors.Join(stuck, b.end(ctx, id))
	}
	return err
}

// stuckError is the cause of the end of a backup that got no further.
type stuckError struct{ after time.Duration }

func (e *stuckError) Error() string {
	return fmt.Sprintf("the backup made no progress for %s and was ended, with its workers", e.after)
}

// follow reports how far a backup is, and cancels when it makes no progress.
func (b *Backups) follow(ctx context.Context, cancel context.CancelCauseFunc) {
	last, moved := int64(-1), time.Now()
	for wait.Sleep(ctx, progressEvery) == nil {
		s := b.Look(ctx)
		if s.State == RepositoryOK && s.DoneBytes != last {
			last, moved = s.DoneBytes, time.Now()
		}
		operation.Report(ctx, operation.Progress{Phase: "copy", Done: s.DoneBytes, Total: s.Repository.TotalBytes, Unit: "bytes"})
		if time.Since(moved) > b.cfg.StuckAfter {
			cancel(&stuckError{b.cfg.StuckAfter})
			return
		}
	}
}

// end ends a backup that was begun.
func (b *Backups) end(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	return b.Tool.End(ctx, id)
}

// judge finds what a backup that ended well has come to. The exit code alone says nothing.
func (b *Backups) judge(ctx context.Context, s *state, id string, t Type) error {
	seen := b.Look(ctx)
	if seen.State != RepositoryOK {
		return fmt.Errorf("the backup was made, and the repository does not show it: %s", seen.Detail)
	}
	c, found := seen.Made(NoteOperation, id)
	if !found {
		return fmt.Errorf("pgbackrest reported success, and no backup in the repository is that of operation %s", id)
	}
	after, err := b.detect(ctx)
	if err == nil && after.Primary.Name != s.Primary {
		b.Log.Warn("another node leads than when the backup began", "label", c.Label, "before", s.Primary, "now", after.Primary.Name)
	}
	if c.PageErrors {
		b.Log.Error("pages of the database do not match their checksums", "label", c.Label)
	}
	s.Made = append(s.Made, made{
		Type: c.Type, Requested: t, Label: c.Label, Container: s.Primary,
		Bytes: c.Bytes, Copied: c.CopiedBytes, RepoBytes: c.RepoOwnBytes,
	})
	return nil
}

// repositoryState is what the steps of making a repository learn from each other.
type repositoryState struct {
	SystemID uint64 `json:"system_id"`
	Primary  string `json:"primary"`
}

// archivingDeadline bounds the time until the server has the command.
const archivingDeadline = 30 * time.Second

// withLive is a step that does something with the servers that answer.
func withLive[S any](b *Backups, do func(context.Context, []cluster.Node) error) func(context.Context, *S) error {
	return func(ctx context.Context, _ *S) error {
		servers, err := b.detect(ctx)
		if err != nil {
			return err
		}
		return do(ctx, servers.Live)
	}
}

// repositoryWork makes the repository, has WAL archived, and proves that it arrives.
func (b *Backups) repositoryWork() operation.Runnable {
	return operation.Work[repositoryState]{
		Prepare: func(ctx context.Context, s *repositoryState) (operation.Prepared, error) {
			servers, err := b.detect(ctx)
			if err != nil {
				return operation.Prepared{}, err
			}
			s.SystemID, s.Primary = b.Cluster.Identity().SystemID, servers.Primary.Name
			return operation.Prepared{}, nil
		},
		Steps: func(*repositoryState) []operation.Step[repositoryState] {
			return []operation.Step[repositoryState]{
				{Name: "create repository", Do: withLive[repositoryState](b, b.Tool.Create), Entry: true},
				{Name: "turn archiving on", Do: operation.Within(archivingDeadline, b.turnArchivingOn)},
				{Name: "check archiving", Do: withLive[repositoryState](b, b.Tool.Check)},
			}
		},
		Forward: true,
		Result:  func(s *repositoryState) map[string]any { return map[string]any{"primary": s.Primary} },
	}
}

// turnArchivingOn decides it, and waits until supervision has told the server.
func (b *Backups) turnArchivingOn(ctx context.Context, s *repositoryState) error {
	if err := b.Archiving.turnOn(s.SystemID); err != nil {
		return err
	}
	return wait.Poll(ctx, 100*time.Millisecond, func() (bool, error) {
		leader, problem := cluster.Leader(b.Cluster.View())
		return problem == nil && leader.Server.Settings[cluster.ArchiveSetting] == b.Archiving.Command(leader.Node), nil
	})
}
