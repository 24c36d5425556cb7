package pooler

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/node"
)

// fakeConsole is a PgBouncer that can be paused. It notes when it was asked.
type fakeConsole struct {
	mu      sync.Mutex
	paused  []string
	broken  bool
	stuck   int // how many RESUMEs have no effect
	asked   int
	resumed []string
	waiting []string // clients of these wait and no server answers
	killed  []string
}

func (c *fakeConsole) Stuck(context.Context, time.Duration) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.waiting), nil
}

// Kill drops the clients and leaves the entry paused, as PgBouncer does.
func (c *fakeConsole) Kill(_ context.Context, database string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = append(c.killed, database)
	c.waiting = slices.DeleteFunc(c.waiting, func(s string) bool { return s == database })
	c.paused = append(c.paused, database)
	return nil
}

func (c *fakeConsole) Paused(context.Context) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if c.broken {
		return nil, errors.New("connection refused")
	}
	return slices.Clone(c.paused), nil
}

func (c *fakeConsole) Resume(_ context.Context, database string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stuck > 0 {
		c.stuck--
		return errors.New("not now")
	}
	c.resumed = append(c.resumed, database)
	c.paused = slices.DeleteFunc(c.paused, func(s string) bool { return s == database })
	return nil
}

func (c *fakeConsole) pause(databases ...string) { c.change(func() { c.paused = databases }) }

func (c *fakeConsole) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func (c *fakeConsole) state() (paused, resumed []string, asked int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.paused), slices.Clone(c.resumed), c.asked
}

// withKeeper runs f beside a keeper, in time that passes at once.
func withKeeper(t *testing.T, f func(t *testing.T, c *fakeConsole, dir string)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConsole{}
		k := Keeper{Dir: dir, Console: c, Log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			k.Run(ctx)
			close(done)
		}()
		time.Sleep(keeperPeriod / 2) // between two looks
		f(t, c, dir)
		cancel()
		<-done
	})
}

func lease(t *testing.T, dir string, renewed time.Time) {
	t.Helper()
	if err := node.WriteLease(dir, node.Lease{Databases: []string{"imdb"}, RenewedAt: renewed, Holder: "op"}); err != nil {
		t.Fatal(err)
	}
}

func TestAPauseWithALeaseIsLeftAlone(t *testing.T) {
	withKeeper(t, func(t *testing.T, c *fakeConsole, dir string) {
		lease(t, dir, time.Now())
		c.pause("imdb")
		_, _, before := c.state()
		for range 6 { // 30 s, renewed every 5
			time.Sleep(5 * time.Second)
			lease(t, dir, time.Now())
		}
		if paused, resumed, asked := c.state(); len(paused) != 1 || len(resumed) != 0 || asked != before {
			t.Errorf("paused %v, resumed %v; the console was asked %d times inside the pause", paused, resumed, asked-before)
		}
		if err := node.RemoveLease(dir); err != nil {
			t.Error(err)
		}
	})
}

func TestAPauseWhoseLeaseRunsOutIsResumed(t *testing.T) {
	withKeeper(t, func(t *testing.T, c *fakeConsole, dir string) {
		lease(t, dir, time.Now())
		c.pause("imdb", "imdb_ro")
		c.change(func() { c.stuck = 1 })
		time.Sleep(node.LeaseDuration)
		if _, resumed, _ := c.state(); len(resumed) != 0 {
			t.Errorf("resumed %v too early", resumed)
		}
		time.Sleep(2 * keeperPeriod) // the second look takes what the first could not
		if paused, resumed, _ := c.state(); len(paused) != 0 || len(resumed) != 2 {
			t.Errorf("paused %v, resumed %v", paused, resumed)
		}
	})
}

func TestAPauseWithoutALease(t *testing.T) {
	withKeeper(t, func(t *testing.T, c *fakeConsole, dir string) {
		c.pause("imdb")
		time.Sleep(node.LeaseDuration)
		if _, resumed, _ := c.state(); len(resumed) != 0 {
			t.Errorf("resumed %v too early", resumed)
		}
		time.Sleep(2 * keeperPeriod)
		if paused, _, _ := c.state(); len(paused) != 0 {
			t.Errorf("still paused: %v", paused)
		}
		// A second pause has its own ten seconds.
		time.Sleep(3 * keeperPeriod)
		c.pause("imdb")
		time.Sleep(node.LeaseDuration / 2)
		if paused, _, _ := c.state(); len(paused) != 1 {
			t.Error("the second pause was given no time")
		}
	})
}

// A lease that cannot be true is none that holds.
func TestALeaseThatCannotBeTrue(t *testing.T) {
	for name, put := range map[string]func(*testing.T, string){
		"future": func(t *testing.T, dir string) { lease(t, dir, time.Now().Add(time.Hour)) },
		"broken": func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, node.LeaseFile), []byte(`{"renewed`), 0o644); err != nil {
				t.Fatal(err)
			}
		},
		"without a time": func(t *testing.T, dir string) { lease(t, dir, time.Time{}) },
	} {
		t.Run(name, func(t *testing.T) {
			withKeeper(t, func(t *testing.T, c *fakeConsole, dir string) {
				put(t, dir)
				c.pause("imdb")
				time.Sleep(keeperPeriod)
				if paused, _, _ := c.state(); len(paused) != 0 {
					t.Errorf("still paused: %v", paused)
				}
			})
		})
	}
}

func TestAConsoleThatDoesNotAnswerIsTriedAgain(t *testing.T) {
	withKeeper(t, func(t *testing.T, c *fakeConsole, dir string) {
		lease(t, dir, time.Now().Add(-time.Minute))
		c.pause("imdb")
		c.change(func() { c.broken = true })
		time.Sleep(5 * keeperPeriod)
		c.change(func() { c.broken = false })
		time.Sleep(keeperPeriod)
		if paused, _, _ := c.state(); len(paused) != 0 {
			t.Errorf("still paused: %v", paused)
		}
	})
}

// Clients that still wait after a pause ran out get an answer: its holder is
// gone, and so is the server. Those of an entry that nobody had paused wait on,
// and so does everyone while there is no lease that ran out.
func TestClientsOfAServerThatIsGoneGetAnAnswer(t *testing.T) {
	withKeeper(t, func(t *testing.T, c *fakeConsole, dir string) {
		c.change(func() { c.waiting = []string{"imdb", "other"} })
		time.Sleep(3 * keeperPeriod)
		if len(c.killed) != 0 {
			t.Errorf("killed %v without a lease", c.killed)
		}
		lease(t, dir, time.Now())
		c.pause("imdb")
		time.Sleep(node.LeaseDuration + 3*keeperPeriod)
		c.change(func() {
			if !slices.Equal(c.killed, []string{"imdb"}) || len(c.paused) != 0 {
				t.Errorf("killed %v, paused %v; want imdb killed and resumed", c.killed, c.paused)
			}
		})
	})
}
