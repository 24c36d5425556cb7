package pooler

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	hangs   bool // it does not answer before the caller gives up
	stuck   int  // how many RESUMEs have no effect
	asked   int
	resumed []string
	waiting map[string]time.Time // since when clients of these wait and no server answers
	killed  []string
	told    *logbook
}

func (c *fakeConsole) Stuck(_ context.Context, patience time.Duration) (out []string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, since := range c.waiting {
		if time.Since(since) >= patience {
			out = append(out, name)
		}
	}
	return out, nil
}

// Kill drops the clients and leaves the entry paused, as PgBouncer does.
func (c *fakeConsole) Kill(_ context.Context, database string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = append(c.killed, database)
	delete(c.waiting, database)
	c.paused = append(c.paused, database)
	return nil
}

func (c *fakeConsole) Paused(ctx context.Context) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if c.hangs {
		c.mu.Unlock()
		<-ctx.Done()
		c.mu.Lock()
		return nil, ctx.Err()
	}
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

func (c *fakeConsole) dropped() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.killed)
}

func (c *fakeConsole) state() (paused, resumed []string, asked int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.paused), slices.Clone(c.resumed), c.asked
}

// A logbook is what the keeper has told the operator.
type logbook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logbook) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// count is how often it says what.
func (l *logbook) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// withKeeper runs f beside a keeper, in time that passes at once.
func withKeeper(t *testing.T, f func(t *testing.T, c *fakeConsole, dir string)) *logbook {
	dir, told := t.TempDir(), &logbook{}
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConsole{told: told}
		k := Keeper{Dir: dir, Console: c, Log: slog.New(slog.NewTextHandler(told, nil))}
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
	return told
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
		if failed, done := c.told.count("pause not resumed"), c.told.count("nobody keeps it up"); failed != 1 || done != 2 {
			t.Errorf("told of %d that failed and %d that were resumed, want 1 and 2", failed, done)
		}
	})
}

func TestAPauseWithoutALease(t *testing.T) {
	withKeeper(t, func(t *testing.T, c *fakeConsole, dir string) {
		c.pause("imdb")
		time.Sleep(node.LeaseDuration + keeperPeriod) // it was seen at the first look, and is just as old at this one
		if _, resumed, _ := c.state(); len(resumed) != 0 {
			t.Errorf("resumed %v too early", resumed)
		}
		time.Sleep(keeperPeriod)
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
		if n := c.told.count("does not answer"); n != 5 {
			t.Errorf("told of it %d times in 5 looks", n)
		}
	})
}

// One that hangs is given up soon, told of, and asked again. The end of the init, too,
// breaks a question off; that is no fault of the console's.
func TestAConsoleThatHangs(t *testing.T) {
	var before int
	told := withKeeper(t, func(t *testing.T, c *fakeConsole, _ string) {
		c.change(func() { c.hangs = true })
		time.Sleep(time.Minute)
		_, _, asked := c.state()
		if before = c.told.count("does not answer"); asked < 15 || asked > 31 || before != asked-1 {
			t.Errorf("asked %d times in a minute, and told of it %d times", asked, before)
		}
	})
	if after := told.count("does not answer"); after != before {
		t.Error("told of the question that the end broke off")
	}
}

// Clients that still wait after a pause has run out get an answer: its holder is gone, and
// so is the server. Clients of an entry that nobody had paused go on waiting, and so do all
// clients while there is no lease that has run out.
func TestClientsOfAServerThatIsGoneGetAnAnswer(t *testing.T) {
	withKeeper(t, func(t *testing.T, c *fakeConsole, dir string) {
		c.change(func() { c.waiting = map[string]time.Time{"imdb": time.Now(), "other": time.Now()} })
		time.Sleep(3 * keeperPeriod)
		if killed := c.dropped(); len(killed) != 0 {
			t.Errorf("killed %v without a lease", killed)
		}
		lease(t, dir, time.Now())
		c.pause("imdb")
		time.Sleep(node.LeaseDuration + 3*keeperPeriod)
		if paused, _, _ := c.state(); !slices.Equal(c.dropped(), []string{"imdb"}) || len(paused) != 0 {
			t.Errorf("killed %v, paused %v; want imdb killed and resumed", c.dropped(), paused)
		}
	})
}

// A client that comes after the pause has run out waits a moment: a server may be
// about to answer.
func TestAClientOfAServerThatIsGoneWaitsAMoment(t *testing.T) {
	withKeeper(t, func(t *testing.T, c *fakeConsole, dir string) {
		lease(t, dir, time.Now().Add(-time.Minute))
		c.change(func() { c.waiting = map[string]time.Time{"imdb": time.Now()} })
		time.Sleep(1900 * time.Millisecond)
		if killed := c.dropped(); len(killed) != 0 {
			t.Error("dropped within two seconds")
		}
		time.Sleep(time.Second)
		if killed := c.dropped(); !slices.Equal(killed, []string{"imdb"}) {
			t.Errorf("dropped %v after three seconds", killed)
		}
	})
}
