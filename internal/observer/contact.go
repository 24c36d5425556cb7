package observer

import (
	"context"
	"errors"
	"sync"
	"time"

	"controld/internal/cluster"
)

// Times of a contact. What takes longer is given up, and tried anew over another
// connection.
const (
	askTimeout   = 5 * time.Second
	enterTimeout = 15 * time.Second // a login with its first question
	// loginEvery: an open connection does not tell whether the server takes new
	// ones. To log in costs a server as much as forty questions.
	loginEvery = 30 * time.Second
)

// A contact is the standing connection to one node's server, and what the server
// said last. One question is under way at a time: a look that comes before its
// answer waits for the same one, and one that cannot wait so long leaves it
// under way. So a server that is busy is not asked more for being slow.
type contact struct {
	node    cluster.Node
	servers cluster.Servers
	ctx     context.Context // of the daemon: what is under way ends with it
	running sync.WaitGroup

	mu       sync.Mutex
	address  string
	session  cluster.Session // nil: none, or a question is under way over it
	hold     int             // counts the releases: a session from before one is not kept
	question *question
	word     lastWord
	logins   logins
}

// A lastWord is what a server said last.
type lastWord struct {
	server *cluster.Server // nil: nothing that still counts
	at     time.Time       // when it said that
	alive  time.Time       // when it last said anything, or was seen at work for clients
	err    error           // of the last question; nil: it was answered
	full   bool            // it has no connection left for controld
}

// A question is one that is under way.
type question struct {
	began time.Time
	hold  int // of the contact, then
	done  chan struct{}
}

// logins is how the server takes new connections while an open one answers.
type logins struct {
	trying       bool
	triedAt      time.Time
	failingSince time.Time // zero: the last one succeeded
	err          error
	full         bool
}

// look returns the server's last word, once a question that was not asked before
// since has been answered. Where ctx ends first, the word is late.
func (c *contact) look(ctx context.Context, since time.Time) (w lastWord, late bool) {
	for {
		q := c.ask()
		select {
		case <-q.done:
			if !q.began.Before(since) {
				return c.last(), false
			}
		case <-ctx.Done():
			return c.last(), true
		}
	}
}

func (c *contact) last() lastWord {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.word
	w.full = w.full || c.logins.full
	return w
}

// ask returns the question that is under way, or puts one.
func (c *contact) ask() *question {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.question == nil {
		c.question = &question{began: time.Now(), hold: c.hold, done: make(chan struct{})}
		q := c.question
		c.running.Go(func() { c.put(q) })
	}
	return c.question
}

func (c *contact) put(q *question) {
	server, err := c.answer(q.hold)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.word.err, c.word.full = err, false
	switch {
	case c.hold != q.hold: // a fact may contradict it
	case err == nil:
		c.word.server, c.word.at, c.word.alive = &server, time.Now(), time.Now()
	case errors.Is(err, cluster.ErrFull): // a frozen one does not say so
		c.word.alive, c.word.full = time.Now(), true
	case saysNo(err):
		c.word.server = nil
	}
	c.question = nil
	close(q.done)
}

// saysNo: the server, or its host, says itself that it does not serve.
func saysNo(err error) bool {
	return errors.Is(err, cluster.ErrStarting) || errors.Is(err, cluster.ErrRefused)
}

// answer asks over the open session, or over a new one where it is broken.
func (c *contact) answer(hold int) (cluster.Server, error) {
	session := c.take()
	if session != nil {
		ctx, cancel := context.WithTimeout(c.ctx, askTimeout)
		defer cancel()
		server, err := session.Observe(ctx)
		if err == nil {
			c.keep(session, hold)
			c.checkLogin()
			return server, nil
		}
		session.Close()
		if ctx.Err() != nil {
			return cluster.Server{}, err
		}
	}
	ctx, cancel := context.WithTimeout(c.ctx, enterTimeout)
	defer cancel()
	session, err := c.servers.Connect(ctx, c.node)
	if err != nil {
		return cluster.Server{}, err
	}
	c.loggedIn(nil)
	server, err := session.Observe(ctx)
	if err != nil {
		session.Close()
		return cluster.Server{}, err
	}
	c.keep(session, hold)
	return server, nil
}

func (c *contact) take() cluster.Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	session := c.session
	c.session = nil
	return session
}

// keep keeps a session for the next question, unless it was to be released since
// hold, or another one was opened while this one was in use.
func (c *contact) keep(session cluster.Session, hold int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hold != hold || c.session != nil {
		session.Close()
		return
	}
	c.session = session
}

// release closes the session: it is one more process that a shutdown has to end.
func (c *contact) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold++
	if c.session != nil {
		c.session.Close()
		c.session = nil
	}
}

// follow takes the address at which the server is now; empty: it is not known.
// Nothing comes any more over a connection to another one.
func (c *contact) follow(address string) {
	c.mu.Lock()
	moved := address != "" && c.address != "" && c.address != address
	if address != "" {
		c.address = address
	}
	c.mu.Unlock()
	if moved {
		c.release()
	}
}

// contradict is called when a fact says that the server does not serve: its last
// word counts no more.
func (c *contact) contradict() {
	c.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.word, c.logins = lastWord{}, logins{}
}

// seenAtWork notes that the server has served clients just now.
func (c *contact) seenAtWork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.word.alive = time.Now()
}

// write commits a small record over the open session. It waits for the question
// that is under way; without a session it fails.
func (c *contact) write(ctx context.Context) error {
	c.mu.Lock()
	q, hold := c.question, c.hold
	c.mu.Unlock()
	if q != nil {
		select {
		case <-q.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	session := c.take()
	if session == nil {
		return errors.New("no connection is open")
	}
	err := session.WriteProbe(ctx)
	if err != nil {
		session.Close()
		return err
	}
	c.keep(session, hold)
	return nil
}

// checkLogin logs in beside the open session, now and then.
func (c *contact) checkLogin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	every := loginEvery
	if c.logins.err != nil {
		every = askTimeout
	}
	if c.logins.trying || time.Since(c.logins.triedAt) < every {
		return
	}
	c.logins.trying = true
	c.running.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, enterTimeout)
		defer cancel()
		session, err := c.servers.Connect(ctx, c.node)
		if err == nil {
			session.Close()
		}
		c.loggedIn(err)
	})
}

func (c *contact) loggedIn(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logins.trying, c.logins.err, c.logins.full = false, err, errors.Is(err, cluster.ErrFull)
	switch {
	case err == nil || c.logins.full:
		c.logins.failingSince = time.Time{}
	case c.logins.failingSince.IsZero():
		c.logins.failingSince = time.Now()
	}
	c.logins.triedAt = time.Now()
}

// takesNone says since when, and how, the server has taken no new connection;
// zero: it takes them.
func (c *contact) takesNone() (since time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.logins.failingSince, c.logins.err
}
