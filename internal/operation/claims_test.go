package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestExclusion(t *testing.T) {
	apart := map[string][]string{
		"rejoin": {"protect"}, "align": {"protect"}, "provision": {"protect"}, "protect": {"rejoin", "align", "provision"},
	}
	ofCluster := func(r Row) bool { return slices.Contains(r.Exclusive, Cluster) || slices.Contains(r.Exclusive, Commit) }
	for _, a := range Claims {
		for _, b := range Claims {
			if !ofCluster(a) || !ofCluster(b) {
				continue
			}
			if got, want := a.excludes(b), !slices.Contains(apart[a.Kind], b.Kind); got != want {
				t.Errorf("%s beside %s: excluded %v, want %v", a.Kind, b.Kind, got, want)
			}
		}
	}
	for _, row := range Claims {
		if !row.excludes(Claims.row("unheard of", "")) {
			t.Errorf("a kind that the table does not know runs beside %s", row.Kind)
		}
	}
}

func TestKindsWithoutARow(t *testing.T) {
	onSorts(t, func(b *bench) {
		b.loud = true
		if err := b.m.Register("unheard of", nil); err == nil || !strings.Contains(err.Error(), "no row") {
			t.Errorf("registered: %v", err)
		}
		if err := b.m.Register("failover", b.build); err == nil {
			t.Error("registered twice")
		}
		if _, err := b.start("unheard of", &script{}); err == nil {
			t.Error("started")
		}
		// Of another version, in the journal: it holds everything until it is cancelled.
		if err := b.j.put(entry{Record: Record{ID: "x", Kind: "unheard of", State: Running}, State: json.RawMessage(`{}`)}); err != nil {
			t.Fatal(err)
		}
		b.crash(func() {})
		if err := b.m.Resume(context.Background()); err == nil || !strings.Contains(err.Error(), "not known to this version") {
			t.Errorf("resumed: %v", err)
		}
		for _, kind := range []string{"protect", kindTidy, kindHeavy, "failover"} {
			if _, err := b.start(kind, &script{}); !errors.As(err, new(*Busy)) {
				t.Errorf("%s beside it: %v", kind, err)
			}
		}
		rec, err := b.m.Cancel(context.Background(), "x", Caller{Name: "t"})
		if err != nil || rec.State != Incomplete || rec.Open() {
			t.Errorf("%+v, %v", rec, err)
		}
		if rec := b.run(&script{}); rec.State != Succeeded {
			t.Errorf("after it: %s", rec.State)
		}
	})
}

func TestWhatATableMustNotSay(t *testing.T) {
	in := func(modes ...string) Row { return Row{Kind: "a", Modes: modes} }
	loose := Row{Kind: "a", Loose: true, Exclusive: []Resource{dataset}, Shared: []Resource{Primary}}
	cleanup := func(exclusive, shared []Resource) Row {
		return Row{Kind: KindCleanup, Modes: []string{"a"}, Exclusive: exclusive, Shared: shared}
	}
	for _, tt := range []struct {
		name  string
		table Table
		says  string
	}{
		{"a row for each mode", Table{in("x"), in("y"), {Kind: "b"}}, ""},
		{"two rows for all modes", Table{in(), in()}, "two rows"},
		{"a row for all modes and one for some", Table{in(), in("x")}, "two rows"},
		{"a row for some modes and one for all", Table{in("x"), in()}, "two rows"},
		{"a clean-up of what was claimed", Table{loose, cleanup([]Resource{dataset}, []Resource{Primary})}, ""},
		{"the clean-up is the first row", Table{cleanup(nil, []Resource{dataset}), loose}, ""},
		{"no clean-up", Table{loose}, "no row says what its cleanup claims"},
		{"the clean-up of another kind", Table{loose, {Kind: KindCleanup, Modes: []string{"b"}}}, "no row says what its cleanup claims"},
		{"a clean-up of what was not claimed", Table{loose, cleanup(nil, []Resource{Commit})}, "claims commit, which"},
		{"a clean-up takes for itself what was shared", Table{loose, cleanup([]Resource{Primary}, nil)}, "claims primary, which"},
		{"it gives way to a kind", Table{{Kind: "a", Yields: []Yield{{To: "b"}}}, {Kind: "b"}}, ""},
		{"it gives way to everything", Table{{Kind: "a", Yields: []Yield{{From: Person}}}}, ""},
		{"it gives way to none", Table{{Kind: "a", Yields: []Yield{{To: "b"}}}}, "which is no kind"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.table.Check()
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %q", err, tt.says)
			}
		})
	}
	if _, err := NewManager(nil, Table{in(), in()}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a manager takes a table that must not be")
	}
}

// How each operation answers what it excludes, by the one table.
func TestWhoGivesWayToWhom(t *testing.T) {
	asks := func(kind, mode string, by CallerKind, facts ...Fact) request {
		return request{kind: kind, mode: mode, by: by, facts: facts}
	}
	for _, tt := range []struct {
		name    string
		running string
		of      CallerKind
		asked   request
		want    Answer
		within  time.Duration
	}{
		{"to an emergency", "rejoin", Daemon, asks("failover", "emergency", Person), AnswerCancel, 0},
		{"to an emergency of its own", "rejoin", Daemon, asks("failover", "emergency", Daemon), AnswerCancel, 0},
		{"to a person", "rejoin", Daemon, asks("failover", "planned", Person), AnswerWait, 5 * time.Second},
		{"to the scheduler", "rejoin", Daemon, asks("failover", "planned", Scheduler), AnswerRefuse, 0},
		{"to a planned failover", "rejoin", Person, asks("failover", "planned", Person, PrimaryGone), AnswerRefuse, 0},
		{"to an emergency that is to kill", "rejoin", Person, asks("failover", "emergency", Person), AnswerRefuse, 0},
		{"to one after the primary's end", "rejoin", Person, asks("failover", "emergency", Person, PrimaryGone), AnswerCancel, 0},
		{"to another kind", "rejoin", Person, asks("start", "emergency", Person, PrimaryGone), AnswerRefuse, 0},
		{"to a person", "start", Daemon, asks("rejoin", "", Person), AnswerWait, 5 * time.Second},
		{"to anybody", "failover", Daemon, asks("failover", "emergency", Person, PrimaryGone), AnswerRefuse, 0},
	} {
		t.Run(fmt.Sprintf("a %s of %s %s", tt.running, tt.of, tt.name), func(t *testing.T) {
			row, running := Claims.row(tt.running, ""), Record{Kind: tt.running, CallerKind: tt.of}
			answer, within := row.answers(tt.asked, running)
			if answer != tt.want || within != tt.within {
				t.Errorf("%s within %s, want %s within %s", answer, within, tt.want, tt.within)
			}
			if answer != AnswerRefuse && !row.mayAnswer(tt.asked, running) {
				t.Error("and is refused before its mode is known")
			}
		})
	}
	never := Row{Yields: []Yield{{To: "failover", How: AnswerRefuse}}}
	if never.mayAnswer(request{kind: "failover"}, Record{}) {
		t.Error("a row that says refuse may give way")
	}
}
