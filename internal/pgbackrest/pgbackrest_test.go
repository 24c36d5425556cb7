package pgbackrest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"controld/internal/backup"
	"controld/internal/cluster"
	"controld/internal/job"
)

// What 2.55.1 and 2.45 said of a repository with a full, an incremental on another
// timeline with page errors, and an offline full, while a backup ran.
func TestInfo(t *testing.T) {
	text, err := os.ReadFile("testdata/info.json")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseInfo(text, "main")
	if err != nil {
		t.Fatal(err)
	}
	at := func(s int64) time.Time { return time.Unix(s, 0).UTC() }
	const system = 7714033747685457956
	want := backup.Repository{
		State: backup.RepositoryOK, SystemID: system, Busy: true, DoneBytes: 250, TotalBytes: 1000,
		Archive: []backup.ArchiveRange{{ID: "15-1", Min: "000000010000000000000002", Max: "000000020000000000000015"}},
		Copies: []backup.Copy{
			{
				Label: "20261130-183610F", Type: backup.Full, StartedAt: at(1796063770), EndedAt: at(1796063774), Mode: backup.Online,
				WALStart: "000000010000000000000015", WALStop: "000000010000000000000016", LSNStart: 0x54000D8, LSNStop: 0x5402190,
				Timeline: 1,
				Bytes:    41582206, CopiedBytes: 41582206, RepoBytes: 8660432, RepoOwnBytes: 8660432, SystemID: system, Version: "2.55.1",
				Annotations: map[string]string{
					backup.NoteOperation: "01954d0e-7b1a-7c3e-9f00-0a1b2c3d4e5f.0", backup.NotePrimary: "postgres_master",
				},
				DatabaseID: 1, DatabaseFormat: "15",
			},
			{
				Label: "20261130-183610F_20261130-183630I", Type: backup.Incremental, Prior: "20261130-183610F",
				Needs:     []string{"20261130-183610F"},
				StartedAt: at(1796063790), EndedAt: at(1796063792), Mode: backup.Online,
				WALStart: "000000020000000000000017", WALStop: "000000020000000000000017", LSNStart: 0x5C00028, LSNStop: 0x5C00100,
				Timeline: 2,
				Bytes:    41582206, CopiedBytes: 794882, RepoBytes: 8759978, RepoOwnBytes: 99546, PageErrors: true, SystemID: system,
				Version:    "2.45",
				DatabaseID: 1, DatabaseFormat: "15",
			},
			{
				Label: "20261130-183710F", Type: backup.Full, StartedAt: at(1796063830), EndedAt: at(1796063834), Mode: backup.Offline,
				Bytes: 41582206, CopiedBytes: 41582206, RepoBytes: 8660432, RepoOwnBytes: 8660432, SystemID: system, Version: "2.45",
				DatabaseID: 1, DatabaseFormat: "15",
			},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for i, consistent := range []bool{true, false, false} {
		if got.Copies[i].Consistent() != consistent {
			t.Errorf("%s: consistent is %v", got.Copies[i].Label, !consistent)
		}
	}
}

func TestStatesOfARepository(t *testing.T) {
	status := func(code int, message string) string {
		return fmt.Sprintf(`[{"name":"main","cipher":"none","status":{"code":%d,"message":"other"},
			"repo":[{"cipher":"none","key":1,"status":{"code":%[1]d,"message":%q}}],"db":[],"archive":[],"backup":[]}]`, code, message)
	}
	for _, tt := range []struct {
		name, text string
		state      backup.RepositoryState
		detail     string
	}{
		{"there is nothing", `[]`, backup.RepositoryNew, ""},
		{"there is another stanza", `[{"name":"other","status":{"code":0}}]`, backup.RepositoryNew, ""},
		{"no path", status(1, "missing stanza path"), backup.RepositoryNew, ""},
		{"no backups", status(2, "no valid backups"), backup.RepositoryOK, ""},
		{"no data", status(3, "missing stanza data"), backup.RepositoryNew, ""},
		{"another database", status(5, "database mismatch"), backup.RepositoryBroken, "database mismatch"},
		{"unreadable", status(99, "[CryptoError] unable to flush"), backup.RepositoryBroken, "CryptoError"},
	} {
		got, err := parseInfo([]byte(tt.text), "main")
		if err != nil || got.State != tt.state || !strings.Contains(got.Detail, tt.detail) {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
	}
	for _, text := range []string{"", "ERROR: [031]: option",
		`[{"name":"main","status":{"code":0},"backup":[{"label":"x","type":"block"}]}]`,
		`[{"name":"main","status":{"code":0},"backup":[{"label":"x","type":"full","lsn":{"start":"nonsense"}}]}]`} {
		if got, err := parseInfo([]byte(text), "main"); err == nil {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}

// What pgBackRest says is never shown as it comes, and nothing that it says ends controld.
func FuzzInfo(f *testing.F) {
	text, err := os.ReadFile("testdata/info.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseInfo(text, "main")
		if err == nil && r.State == "" {
			t.Errorf("a repository without a state: %+v", r)
		}
	})
}

func TestFailure(t *testing.T) {
	const (
		warned    = "WARN: something else\n       HINT: of it\nERROR: [082]: WAL segment X was not archived\n"
		unchanged = "ERROR: [055]: no files have changed since the last backup - this seems unlikely\n"
		full      = "ERROR: [039]: unable to write '/x': [28] No space left on device\n"
	)
	const locked = "ERROR: [050]: unable to acquire lock on file '/x/main-backup.lock': Resource temporarily unavailable\n" +
		"       HINT: is another pgBackRest process running?\n"
	for _, tt := range []struct {
		name   string
		status job.Status
		kind   backup.FailureKind
		says   string
	}{
		{"another one runs", job.Status{ExitCode: 50, Stderr: locked}, backup.FailureLocked,
			"Resource temporarily unavailable; HINT: is another"},
		{"a warning before it", job.Status{ExitCode: 82, Stderr: warned},
			backup.FailureNotReady, "[082]: WAL segment X was not archived"},
		{"two primaries", job.Status{ExitCode: 56, Stderr: "ERROR: [056]: more than one primary cluster found\n"},
			backup.FailureTwoPrimary, "more than one"},
		{"no primary", job.Status{ExitCode: 56, Stderr: "ERROR: [056]: unable to find primary cluster - cannot proceed\n"},
			backup.FailureNotReady, "unable to find"},
		{"nothing has changed", job.Status{ExitCode: 55, Stderr: unchanged},
			backup.FailureUnchanged, "no files"},
		{"a file is missing", job.Status{ExitCode: 55, Stderr: "ERROR: [055]: unable to load info file\n"}, backup.FailureSetup,
			"info file"},
		{"the disk is full", job.Status{ExitCode: 39, Stderr: full}, backup.FailureFull, "No space"},
		{"killed", job.Status{ExitCode: 137}, backup.FailureEnded, ""},
		{"ended by the init", job.Status{ExitCode: 137, Ended: "it took longer than 1s"}, backup.FailureEnded, "longer than 1s"},
		{"the clock", job.Status{ExitCode: 106, Stderr: "ERROR: [106]: new backup label is not later\n"}, backup.FailureLabel, "not later"},
		{"unheard of", job.Status{ExitCode: 99, Stderr: "what?\n"}, backup.FailureUnexplained, "what?"},
	} {
		var got *backup.Failure
		if !errors.As(failure(tt.status), &got) || got.Kind != tt.kind || !strings.Contains(got.Error(), tt.says) {
			t.Errorf("%s: %+v", tt.name, got)
		}
		if got != nil && strings.Contains(got.Said, "something else") {
			t.Errorf("%s: a warning is told as an error: %q", tt.name, got.Said)
		}
	}
	if err := failure(job.Status{}); err != nil {
		t.Errorf("success: %v", err)
	}
}

// What 2.55.1 said of an expire of a backup that is not there, with exit code 0, and of one whose
// files somebody had removed.
func TestExpireOfWhatIsNotThere(t *testing.T) {
	const unknown = "WARN: backup 20200101-000000F does not exist\n" +
		"      HINT: run the info command and confirm the backup is listed\n"
	const removed = "WARN: backup '20261201-030905F_20261201-030915I' missing manifest removed from backup.info\n" +
		"WARN: backup 20261201-030905F_20261201-030915I does not exist\n" +
		"      HINT: run the info command and confirm the backup is listed\n"
	const newest = "WARN: repo1: expiring latest backup 20261201-030905F - the ability to perform point-in-time-recovery (PITR) may " +
		"be affected\n      HINT: non-default settings for 'repo1-retention-archive'/'repo1-retention-archive-type' (even in prior " +
		"expires) can cause gaps in the WAL.\n"
	for _, tt := range []struct {
		label, stderr string
		missing       bool
	}{
		{"20200101-000000F", unknown, true},
		{"20261201-030905F_20261201-030915I", removed, true},
		{"20261201-030905F", removed, false}, // it was another one that is not there
		{"20261201-030905F", newest, false},
		{"20261201-030905F", "", false},
	} {
		var got *backup.Failure
		missing := errors.As(notThere(tt.label, job.Status{Stderr: tt.stderr}), &got)
		if missing != tt.missing || missing && got.Kind != backup.FailureMissing {
			t.Errorf("%s: %+v of %q", tt.label, got, tt.stderr)
		}
	}
	const last = "ERROR: [075]: repo1: full backup 20261201-030813F cannot be expired until another full backup has been created " +
		"on this repo\n" +
		"ERROR: [104]: expire command encountered 1 error(s), check the log file for details\n"
	var refused *backup.Failure
	if !errors.As(failure(job.Status{ExitCode: 104, Stderr: last}), &refused) || refused.Kind != backup.FailureSetup {
		t.Errorf("the last full: %+v", refused)
	}
}

func TestVersion(t *testing.T) {
	if got, err := parseVersion("pgBackRest 2.55.1\n"); err != nil || got != "2.55.1" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := parseVersion("sh: pgbackrest: not found"); err == nil {
		t.Errorf("taken for %q", got)
	}
}

// Nodes that do not answer are kept out of a command by options.
func TestServers(t *testing.T) {
	one := cluster.Node{Name: "one", Dir: "/pg/node1", Port: 5432}
	two := cluster.Node{Name: "two", Dir: "/pg/node2", Port: 5433}
	tool := New(Config{Socket: "/nowhere", Stanza: "main", Servers: []cluster.Node{one, two}})
	if got := tool.servers([]cluster.Node{two, one}); got != nil {
		t.Errorf("both answer: %q", got)
	}
	want := "--pg1-path=/pg/node2/data --pg1-socket-path=/pg/node2/run --pg1-port=5433 " +
		"--reset-pg2-path --reset-pg2-socket-path --reset-pg2-port --reset-pg2-user"
	if got := strings.Join(tool.servers([]cluster.Node{two}), " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
