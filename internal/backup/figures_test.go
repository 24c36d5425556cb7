package backup

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"controld/internal/metrics/sample"
)

// figures are those of a world that has made a few days.
func figures(t *testing.T) (families map[string]sample.Family) {
	t.Helper()
	families = map[string]sample.Family{}
	synctest.Test(t, func(t *testing.T) {
		w := nightlyWorld(t)
		b, _, stop := w.watched(t.TempDir())
		defer stop()
		time.Sleep(27 * time.Hour) // a full, an incremental, an incremental and a differential an hour ago
		for _, f := range b.Samples(time.Now()) {
			families[f.Name] = f
		}
	})
	return families
}

// docs/api.md has every figure with its labels, and none that is not there.
func TestEveryFigureIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	documented, served, before := map[string]string{}, map[string]string{}, ""
	row := regexp.MustCompile("(?m)^\\| `((?:pgbackrest|controld_backup)_[a-z_]+)` \\|([^|]*)\\|")
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		labels := strings.TrimSpace(strings.ReplaceAll(m[2], "`", ""))
		if labels == "the same" {
			labels = before
		}
		documented[m[1]], before = labels, labels
	}
	for name, f := range figures(t) {
		served[name] = strings.Join(f.Labels, ", ")
		for _, x := range f.Samples {
			if len(x.Labels) != len(f.Labels) {
				t.Errorf("%s: %d values for %d labels", name, len(x.Labels), len(f.Labels))
			}
		}
	}
	if diff := cmp.Diff(served, documented); diff != "" {
		t.Errorf("served (-), in docs/api.md (+):\n%s", diff)
	}
}

// A differential is no full, and one that is newer stands for an incremental.
func TestSinceTheLastBackup(t *testing.T) {
	got := map[string]int{}
	families := figures(t)
	for _, s := range families["pgbackrest_backup_since_last_completion_seconds"].Samples {
		got[s.Labels[0]] = int(s.Value)
	}
	if got["full"] < 26*3600 || got["diff"] > 3600 || got["diff"] != got["incr"] {
		t.Errorf("%v", got)
	}
	if n := len(families["controld_backup_consistent"].Samples); n != 4 {
		t.Errorf("%d backups", n)
	}
	if day := families["controld_backup_cycle_day"].Samples[0].Value; day != 3 {
		t.Errorf("day %v", day)
	}
}
