package pooler

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// What PgBouncer itself answers to the init, TestPoolerInit of package node shows.
// Here is what the init makes of answers, and how it minds its connection.

func TestWhatIsPaused(t *testing.T) {
	row := func(name, paused string) map[string]string { return map[string]string{"name": name, "paused": paused} }
	for _, tt := range []struct {
		name string
		rows []map[string]string
		want []string
		says string
	}{
		{"one of several", []map[string]string{row("pgbouncer", "0"), row("imdb", "1"), row("imdb_ro", "0")}, []string{"imdb"}, ""},
		{"none", []map[string]string{row("imdb", "0")}, nil, ""},
		{"an answer without a column paused", []map[string]string{{"name": "imdb"}}, nil, "no column name or paused"},
		{"an answer without a column name", []map[string]string{{"paused": "1"}}, nil, "no column name or paused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := pausedOf(tt.rows)
			if !slices.Equal(got, tt.want) {
				t.Errorf("paused %v, want %v", got, tt.want)
			}
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %q", err, tt.says)
			}
		})
	}
}

func TestWhoIsStuck(t *testing.T) {
	// A pool whose first client has waited for so many seconds.
	pool := func(database, waiting, seconds string, with ...string) map[string]string {
		row := map[string]string{
			"database": database, "cl_waiting": waiting, "maxwait": seconds,
			"sv_active": "0", "sv_idle": "0", "sv_used": "0", "sv_tested": "0",
		}
		for _, column := range with {
			row[column] = "1"
		}
		return row
	}
	for _, tt := range []struct {
		name  string
		pools []map[string]string
		want  []string
	}{
		{"nobody waits", []map[string]string{pool("imdb", "0", "7")}, nil},
		{"somebody waits, and no server is there", []map[string]string{pool("imdb", "1", "3")}, []string{"imdb"}},
		{"just as long as is borne", []map[string]string{pool("imdb", "1", "2")}, []string{"imdb"}},
		{"not as long", []map[string]string{pool("imdb", "1", "1")}, nil},
		{"another user of the entry is served", []map[string]string{pool("imdb", "1", "3"), pool("imdb", "0", "0", "sv_active")}, nil},
		{"another entry is served", []map[string]string{pool("imdb", "1", "3"), pool("imdb_ro", "0", "0", "sv_active")}, []string{"imdb"}},
		{"a server connection is idle", []map[string]string{pool("imdb", "1", "3", "sv_idle")}, nil},
		{"one was used", []map[string]string{pool("imdb", "1", "3", "sv_used")}, nil},
		{"one is tested", []map[string]string{pool("imdb", "1", "3", "sv_tested")}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := stuckOf(tt.pools, 2*time.Second)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("stuck %v, %v, want %v", got, err, tt.want)
			}
		})
	}
	got, err := stuckOf([]map[string]string{pool("imdb", "1", "")}, time.Second)
	if err == nil || !strings.Contains(err.Error(), "maxwait") {
		t.Errorf("an answer without a column maxwait: %v, %v", got, err)
	}
}

// A consoleServer speaks as PgBouncer's console does. It knows which of its entries
// are paused.
type consoleServer struct {
	port string

	mu     sync.Mutex
	paused map[string]bool
	logins []string // the network of each
	conns  []net.Conn
	wait   sync.WaitGroup
}

// listen makes a console on an address and, where there is a folder, on a socket in it.
func listen(t *testing.T, folder string) *consoleServer {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &consoleServer{paused: map[string]bool{"imdb": true, `a"b`: true, "other": false}}
	if _, s.port, err = net.SplitHostPort(tcp.Addr().String()); err != nil {
		t.Fatal(err)
	}
	listeners := []net.Listener{tcp}
	if folder != "" {
		unix, err := net.Listen("unix", filepath.Join(folder, ".s.PGSQL."+s.port))
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, unix)
	}
	for _, l := range listeners {
		s.wait.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				s.mu.Lock()
				s.conns = append(s.conns, conn)
				s.mu.Unlock()
				s.wait.Go(func() { s.talk(conn) })
			}
		})
	}
	t.Cleanup(func() {
		for _, l := range listeners {
			l.Close()
		}
		s.hangUp()
		s.wait.Wait()
	})
	return s
}

// hangUp ends all connections, as the end of PgBouncer does.
func (s *consoleServer) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		conn.Close()
	}
	s.conns = nil
}

func (s *consoleServer) talk(conn net.Conn) {
	defer conn.Close()
	b := pgproto3.NewBackend(conn, conn)
	start, err := b.ReceiveStartupMessage()
	login, ok := start.(*pgproto3.StartupMessage)
	if err != nil || !ok {
		return // a request to cancel
	}
	b.Send(&pgproto3.AuthenticationCleartextPassword{})
	if b.Flush() != nil || b.SetAuthType(pgproto3.AuthTypeCleartextPassword) != nil {
		return
	}
	answer, err := b.Receive()
	password, ok := answer.(*pgproto3.PasswordMessage)
	if err != nil || !ok {
		return
	}
	if login.Parameters["user"] != "controld" || login.Parameters["database"] != "pgbouncer" || password.Password != "secret" {
		b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"})
		_ = b.Flush()
		return
	}
	s.mu.Lock()
	s.logins = append(s.logins, conn.LocalAddr().Network())
	s.mu.Unlock()
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	for b.Flush() == nil {
		message, err := b.Receive()
		query, ok := message.(*pgproto3.Query)
		if err != nil || !ok {
			return
		}
		for _, m := range s.answer(query.String) {
			b.Send(m)
		}
		b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	}
}

func (s *consoleServer) answer(command string) []pgproto3.BackendMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := &pgproto3.CommandComplete{CommandTag: []byte("SHOW")}
	switch command {
	case "SHOW DATABASES":
		out := []pgproto3.BackendMessage{row("name", "host", "paused")}
		for name, paused := range s.paused {
			out = append(out, values(name, "", map[bool]string{true: "1", false: "0"}[paused]))
		}
		return append(out, done)
	case "SHOW POOLS":
		return []pgproto3.BackendMessage{
			row("database", "user", "cl_waiting", "sv_active", "sv_idle", "sv_used", "sv_tested", "maxwait"),
			values("imdb", "app", "1", "0", "0", "0", "0", "9"), values("other", "app", "0", "1", "0", "0", "0", "0"), done,
		}
	}
	verb, quoted, _ := strings.Cut(command, " ")
	name := strings.ReplaceAll(strings.Trim(quoted, `"`), `""`, `"`)
	pauses := verb == "KILL"
	if s.paused[name] == pauses || verb != "KILL" && verb != "RESUME" {
		text := "database " + name + " is in no state for " + verb
		return []pgproto3.BackendMessage{&pgproto3.ErrorResponse{Severity: "ERROR", Code: "08P01", Message: text}}
	}
	s.paused[name] = pauses
	return []pgproto3.BackendMessage{&pgproto3.CommandComplete{CommandTag: []byte(verb)}}
}

func row(columns ...string) pgproto3.BackendMessage {
	var out pgproto3.RowDescription
	for _, name := range columns {
		out.Fields = append(out.Fields, pgproto3.FieldDescription{Name: []byte(name)})
	}
	return &out
}

func values(texts ...string) pgproto3.BackendMessage {
	var out pgproto3.DataRow
	for _, text := range texts {
		out.Values = append(out.Values, []byte(text))
	}
	return &out
}

func (s *consoleServer) came() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.logins)
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Over the socket if there is one, since an address may not be there yet, or any more.
func TestWhereTheConsoleIsReached(t *testing.T) {
	with, without := t.TempDir(), t.TempDir()
	for _, tt := range []struct {
		name    string
		folders []string // the server's, the client's
		network string
	}{
		{"a socket", []string{with, with}, "unix"},
		{"none", []string{"", without}, "tcp"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := listen(t, tt.folders[0])
			c := &console{hosts: []string{tt.folders[1], "127.0.0.1"}, port: s.port, password: "secret"}
			paused, err := c.Paused(bounded(t))
			if slices.Sort(paused); err != nil || !slices.Equal(paused, []string{`a"b`, "imdb"}) {
				t.Errorf("paused %v, %v", paused, err)
			}
			if !slices.Equal(s.came(), []string{tt.network}) {
				t.Errorf("logins by %v, want one by %s", s.came(), tt.network)
			}
		})
	}
	t.Run("nobody is there", func(t *testing.T) {
		c := &console{hosts: []string{without, "127.0.0.1"}, port: "1", password: "secret"}
		_, err := c.Stuck(bounded(t), 0)
		for _, host := range c.hosts {
			if err == nil || !strings.Contains(err.Error(), host) {
				t.Errorf("%v, want what became of the attempt at %s", err, host)
			}
		}
	})
	t.Run("another password", func(t *testing.T) {
		s := listen(t, "")
		c := &console{hosts: []string{"127.0.0.1"}, port: s.port, password: "wrong"}
		if err := c.Resume(bounded(t), "imdb"); err == nil || !strings.Contains(err.Error(), "password authentication failed") {
			t.Errorf("%v", err)
		}
	})
}

// One login is enough while the connection lasts; what PgBouncer refuses does not
// end it. After PgBouncer's end the next command but one finds its successor.
func TestTheConsoleIsKeptOpen(t *testing.T) {
	s := listen(t, "")
	c := &console{hosts: []string{"127.0.0.1"}, port: s.port, password: "secret"}
	ctx := bounded(t)
	for _, name := range []string{"imdb", `a"b`} {
		if err := c.Resume(ctx, name); err != nil {
			t.Errorf("resume %s: %v", name, err)
		}
	}
	if err := c.Resume(ctx, "imdb"); err == nil {
		t.Error("resumed what is not paused")
	}
	if stuck, err := c.Stuck(ctx, time.Second); err != nil || !slices.Equal(stuck, []string{"imdb"}) {
		t.Errorf("stuck %v, %v", stuck, err)
	}
	if err := c.Kill(ctx, "imdb"); err != nil {
		t.Errorf("kill: %v", err)
	}
	if paused, err := c.Paused(ctx); err != nil || !slices.Equal(paused, []string{"imdb"}) {
		t.Errorf("paused %v, %v", paused, err)
	}
	if n := len(s.came()); n != 1 {
		t.Errorf("%d logins for six commands", n)
	}
	s.hangUp()
	if paused, err := c.Paused(ctx); err == nil {
		t.Errorf("paused %v over a connection that has ended", paused)
	}
	if paused, err := c.Paused(ctx); err != nil || len(paused) != 1 {
		t.Errorf("paused %v, %v after a new login", paused, err)
	}
}
