package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"controld"
	"controld/internal/api/apitest"
	"controld/internal/api/gen"
	"controld/internal/cluster"
	"controld/internal/operation"
)

// streamPath is a command whose body is a stream. The contract of these tests is
// the product's with this one more.
const streamPath = `
  /stream:
    post:
      operationId: takeStream
      x-role: operator
      parameters:
        - $ref: "#/components/parameters/IdempotencyKey"
        - { name: into, in: query, schema: { type: string, enum: [here, there] } }
      requestBody:
        required: true
        x-max-bytes: %d
        content:
          application/octet-stream: {}
          text/csv: {}
      responses:
        default: { $ref: "#/components/responses/Problem" }
`

// A streamBench serves the API with /stream, behind all that guards the other
// commands. It has no network, so that time passes only when nobody has anything
// to do.
type streamBench struct {
	t      *testing.T
	fake   *apitest.Fake
	server *Server
	conns  pipes
}

// pipes is a listener for connections that are made in the process.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if conn, open := <-p; open {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error {
	close(p)
	return nil
}

func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

// withStreams runs test in a bubble of virtual time. command serves /stream.
func withStreams(t *testing.T, maxBytes int, command func(*streamBench) http.HandlerFunc, test func(*streamBench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		tokens, err := NewTokens(map[Role]string{Operator: operatorToken})
		if err != nil {
			t.Fatal(err)
		}
		fake := apitest.New()
		server, err := New(Options{
			Cluster: fake, Operations: fake, Tokens: tokens, Nodes: fake.Nodes(), Interval: apitest.Interval, Capabilities: served(fake),
			Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		b := &streamBench{t: t, fake: fake, server: server, conns: make(pipes)}
		spec, err := loadSpec(bytes.Replace(controld.OpenAPI, []byte("\npaths:\n"), fmt.Appendf(nil, "\npaths:"+streamPath, maxBytes), 1))
		if err != nil {
			t.Fatal(err)
		}
		routes := append(server.routes(http.NotFoundHandler()), server.capabilityRoutes(spec, served(fake))...)
		routes = append(routes, route{"POST", "/stream", Operator, command(b)})
		if server.handler, err = server.router(spec, routes); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- server.Serve(ctx, b.conns, time.Minute) }()
		test(b)
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// counted reads its stream to the end, and answers with how many bytes it had.
// What came to it stands in seen and in err.
type counted struct {
	calls int
	seen  chan int // the sum after each read; nil: nobody asks
	sum   int
	err   error
}

func (c *counted) command(b *streamBench) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.calls++
		c.err = c.read(r.Body)
		if c.err != nil {
			b.server.fail(w, r, fmt.Errorf("load the data: %w", c.err))
			return
		}
		writeJSON(w, http.StatusOK, c.sum)
	}
}

func (c *counted) read(body io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := body.Read(buf)
		c.sum += n
		if c.seen != nil && n > 0 {
			c.seen <- c.sum
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// A sender is a client's connection, and what it sends on it.
type sender struct {
	t      *testing.T
	conn   net.Conn
	out    *bufio.Writer
	answer *bufio.Reader
}

// send begins a request to /stream. Whatever head says comes first, then the
// usual of what it does not say.
func (b *streamBench) send(head ...string) *sender {
	b.t.Helper()
	client, server := net.Pipe()
	b.conns <- server
	s := &sender{t: b.t, conn: client, out: bufio.NewWriter(client), answer: bufio.NewReader(client)}
	all := strings.Join(head, "\r\n")
	if !strings.HasPrefix(all, "POST ") {
		head = append([]string{"POST /stream HTTP/1.1"}, head...)
	}
	for _, usual := range []string{
		"Host: x", "Authorization: Bearer " + operatorToken, "Content-Type: text/csv", "Transfer-Encoding: chunked",
	} {
		name, _, _ := strings.Cut(usual, ":")
		if strings.Contains(all, name+":") || name == "Transfer-Encoding" && strings.Contains(all, "Content-Length:") {
			continue
		}
		head = append(head, usual)
	}
	s.write(strings.Join(head, "\r\n") + "\r\n\r\n")
	return s
}

func (s *sender) write(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.conn, text); err != nil {
		s.t.Fatal(err)
	}
}

// chunk sends a piece of the body.
func (s *sender) chunk(data []byte) {
	s.t.Helper()
	_, err := httputil.NewChunkedWriter(s.out).Write(data)
	if err := errors.Join(err, s.out.Flush()); err != nil {
		s.t.Error(err)
	}
}

func (s *sender) end() { s.write("0\r\n\r\n") }

// response is the answer, and how long it took to come.
func (s *sender) response() (reply, []byte, time.Duration) {
	s.t.Helper()
	began := time.Now()
	resp, err := http.ReadResponse(s.answer, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	took := time.Since(began)
	s.conn.Close()
	return reply{resp.StatusCode, resp.Header}, body, took
}

// announce is the header that says which body comes.
func announce(body string) string {
	sum := sha256.Sum256([]byte(body))
	return announceSum(sum[:])
}

func announceSum(sum []byte) string {
	return "Content-Digest: sha-256=:" + base64.StdEncoding.EncodeToString(sum) + ":"
}

// refused reads an answer that is a problem.
func (s *sender) refused() (gen.Problem, time.Duration) {
	s.t.Helper()
	resp, body, took := s.response()
	return (&bench{t: s.t}).problem(resp, body), took
}

func TestBodyPolicy(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		streams    int // content types
		max        int64
		wrong      string
	}{
		{"no body", `{}`, 0, 1 << 20, ""},
		{"JSON", `{"requestBody":{"content":{"application/json":{}}}}`, 0, 1 << 20, ""},
		{"a stream", `{"requestBody":{"x-max-bytes":5000000000,"content":{"text/csv":{},"application/gzip":{}}}}`, 2, 5e9, ""},
		{"JSON with a bound", `{"requestBody":{"x-max-bytes":9,"content":{"application/json":{}}}}`, 0, 0, "x-max-bytes is for streams"},
		{"JSON or a stream", `{"requestBody":{"x-max-bytes":9,"content":{"application/json":{},"text/csv":{}}}}`, 0, 0,
			"application/json is no stream"},
		{"text", `{"requestBody":{"x-max-bytes":9,"content":{"text/plain":{}}}}`, 0, 0, "text/plain is no stream"},
		{"a stream without a bound", `{"requestBody":{"content":{"text/csv":{}}}}`, 0, 0, "(text/csv) needs x-max-bytes"},
		{"a bound of nothing", `{"requestBody":{"x-max-bytes":0,"content":{"text/csv":{}}}}`, 0, 0, "needs x-max-bytes"},
		{"a bound in words", `{"requestBody":{"x-max-bytes":"1GB","content":{"text/csv":{}}}}`, 0, 0, "needs x-max-bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var op openapi3.Operation
			if err := json.Unmarshal([]byte(tt.body), &op); err != nil {
				t.Fatal(err)
			}
			got, err := bodyPolicyOf(&op)
			if tt.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wrong) {
					t.Errorf("error %v, want one that says %q", err, tt.wrong)
				}
				return
			}
			if err != nil || len(got.streamTypes) != tt.streams || got.maxBytes != tt.max {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// What the header says of a stream is refused at once: not a byte of these is sent.
func TestStreamIsRefusedUnread(t *testing.T) {
	var got counted
	withStreams(t, 1000, got.command, func(b *streamBench) {
		for _, tt := range []struct {
			name   string
			head   []string
			status int
			typ    string
			field  string
			wants  []string
		}{
			{"wrong type", []string{"Content-Type: application/json"}, 415, "/problems/content-type", "Content-Type",
				[]string{"application/octet-stream, text/csv", "-T FILE"}},
			{"no type", []string{"Content-Type:"}, 415, "/problems/content-type", "Content-Type", []string{"text/csv"}},
			{"packed", []string{"Content-Encoding: gzip"}, 415, "/problems/content-type", "Content-Encoding", []string{"identity"}},
			{"too long", []string{"Content-Length: 1001"}, 413, "/problems/body-too-large", "", []string{"1000 bytes"}},
			{"a digest of another algorithm", []string{"Content-Digest: sha-512=:" + strings.Repeat("A", 86) + "==:"}, 400,
				"/problems/bad-request", "Content-Digest", []string{"sha-256=:BASE64:", "openssl"}},
			{"a key without a digest", []string{"Idempotency-Key: k1"}, 400,
				"/problems/bad-request", "Content-Digest", []string{"sha-256=:BASE64:", "openssl", "Idempotency-Key"}},
			{"a key of two words", []string{"Idempotency-Key: k 1", announce("x")}, 400,
				"/problems/bad-request", "Idempotency-Key", nil},
			{"unknown parameter", []string{"POST /stream?from=here HTTP/1.1"}, 400, "/problems/bad-request", "from", []string{"into"}},
			{"unknown value", []string{"POST /stream?into=space HTTP/1.1"}, 400, "/problems/bad-request", "into", []string{"here, there"}},
		} {
			p, took := b.send(tt.head...).refused()
			if p.Status != tt.status || p.Type != tt.typ || gen.Value(p.Field) != tt.field {
				t.Errorf("%s: %d %s, field %q", tt.name, p.Status, p.Type, gen.Value(p.Field))
			}
			for _, want := range tt.wants {
				if !strings.Contains(p.Detail+"\n"+gen.Value(p.Allowed), want) {
					t.Errorf("%s: nothing names %q: %s", tt.name, want, p.Detail)
				}
			}
			if took != 0 {
				t.Errorf("%s: answered after %s", tt.name, took)
			}
		}
		if got.calls != 0 {
			t.Errorf("the command was called %d times", got.calls)
		}
	})
}

// A stream that does not say how long it is is cut at its bound, while its
// sender is still at it.
func TestStreamOverItsBound(t *testing.T) {
	var got counted
	withStreams(t, 1000, got.command, func(b *streamBench) {
		exact := b.send()
		exact.chunk(make([]byte, 1000))
		exact.end()
		if resp, body, _ := exact.response(); resp.StatusCode != 200 {
			t.Errorf("at the bound: %d %s", resp.StatusCode, body)
		}
		got.sum = 0
		over := b.send()
		over.chunk(make([]byte, 600))
		over.chunk(make([]byte, 401))
		p, took := over.refused()
		if p.Status != 413 || p.Type != "/problems/body-too-large" || !strings.Contains(p.Detail, "1000 bytes") || took != 0 {
			t.Errorf("%d %s after %s: %s", p.Status, p.Type, took, p.Detail)
		}
		if got.sum != 1000 {
			t.Errorf("the command saw %d bytes", got.sum)
		}
	})
}

// The command has each piece before the next one is sent, and nothing keeps them.
func TestStreamIsNotHeld(t *testing.T) {
	const piece, pieces = 1 << 20, 64
	var got counted
	withStreams(t, piece*pieces, got.command, func(b *streamBench) {
		got.seen = make(chan int)
		data, sum := make([]byte, piece), sha256.New()
		for range pieces {
			sum.Write(data)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s, next := b.send(announceSum(sum.Sum(nil))), make(chan []byte)
		go func() {
			for data := range next {
				s.chunk(data)
			}
			s.end()
		}()
		for i := range pieces {
			next <- data
			for sum := 0; sum < (i+1)*piece; {
				select {
				case sum = <-got.seen:
				case <-time.After(time.Minute): // of virtual time: everybody waits for somebody
					t.Fatalf("the command waits for more than %d bytes", (i+1)*piece)
				}
			}
		}
		close(next)
		if resp, body, _ := s.response(); resp.StatusCode != 200 || strings.TrimSpace(string(body)) != fmt.Sprint(piece*pieces) {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
		runtime.ReadMemStats(&after)
		if allocated := after.TotalAlloc - before.TotalAlloc; allocated > piece*pieces/4 {
			t.Errorf("%d bytes were allocated for a stream of %d", allocated, piece*pieces)
		}
	})
}

// How long a stream takes does not matter, as long as something comes.
func TestStreamMayTakeLong(t *testing.T) {
	var left error
	busy := func(b *streamBench) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				b.server.fail(w, r, err)
				return
			}
			time.Sleep(b.server.waitLimit)
			left = r.Context().Err()
			// More than net/http holds back until the command has returned.
			writeJSON(w, http.StatusOK, fmt.Sprint(n)+strings.Repeat(" and more", 10_000))
		}
	}
	withStreams(t, 1000, busy, func(b *streamBench) {
		s := b.send()
		for range 100 {
			time.Sleep(bodyTimeout - time.Second)
			s.chunk([]byte("x"))
		}
		s.end()
		if resp, body, _ := s.response(); resp.StatusCode != 200 || len(body) < 90_000 || string(body[:5]) != `"100 ` {
			t.Errorf("%d, %d bytes: %.20s", resp.StatusCode, len(body), body)
		}
		if left != nil {
			t.Errorf("the client counts as gone: %v", left)
		}
	})
}

func TestStreamThatStalls(t *testing.T) {
	var got counted
	withStreams(t, 1000, got.command, func(b *streamBench) {
		s := b.send()
		s.chunk([]byte("something"))
		p, took := s.refused()
		if p.Status != 408 || p.Type != "/problems/slow-body" || took != bodyTimeout {
			t.Errorf("%d %s after %s: %s", p.Status, p.Type, took, p.Detail)
		}
	})
}

// A sender that leaves does not look like the end of its stream.
func TestStreamThatBreaksOff(t *testing.T) {
	var got counted
	withStreams(t, 1000, got.command, func(b *streamBench) {
		for _, head := range []string{"Transfer-Encoding: chunked", "Content-Length: 100"} {
			s := b.send(head)
			if strings.HasPrefix(head, "Content") {
				s.write("something")
			} else {
				s.chunk([]byte("something"))
			}
			s.conn.Close()
			synctest.Wait()
			if !errors.Is(got.err, errBadRequest) {
				t.Errorf("%s: the command was told %v", head, got.err)
			}
		}
	})
}

// A command that works on what it has, reads no more, and fails long after that
// is heard all the same.
func TestStreamThatIsLeftUnread(t *testing.T) {
	fails := func(b *streamBench) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadFull(r.Body, make([]byte, 4))
			time.Sleep(time.Hour)
			b.server.fail(w, r, &requestError{kind: errBadRequest, field: "body", detail: "no data of this kind"})
		}
	}
	withStreams(t, 1000, fails, func(b *streamBench) {
		s := b.send()
		s.chunk([]byte("data"))
		if p, took := s.refused(); p.Status != 400 || took != time.Hour {
			t.Errorf("%d after %s: %s", p.Status, took, p.Detail)
		}
	})
}

// Who does not take the answer does not hold the connection.
func TestStreamWhoseAnswerIsNotRead(t *testing.T) {
	var got counted
	withStreams(t, 1000, got.command, func(b *streamBench) {
		s := b.send()
		s.end()
		time.Sleep(b.server.answerLimit() + time.Second)
		if all, err := io.ReadAll(s.conn); len(all) != 0 || err != nil {
			t.Errorf("the answer waited for its reader: %q, %v", all, err)
		}
	})
}

// An operation is waited for as long as ever, with a body and without: the time
// for the body is over when it is there.
func TestWaitOutlastsTheBody(t *testing.T) {
	const body = `{"reason":"test"}`
	for _, tt := range []struct {
		head string
		send func(*sender)
	}{
		{"Transfer-Encoding: chunked", func(s *sender) { s.chunk([]byte(body)); s.end() }},
		{fmt.Sprint("Content-Length: ", len(body)), func(s *sender) { s.write(body) }},
		{"Content-Length: 0", func(*sender) {}},
	} {
		var got counted
		withStreams(t, 1000, got.command, func(b *streamBench) {
			b.fake.Gate = make(chan struct{})
			defer close(b.fake.Gate)
			s := b.send("POST /failover HTTP/1.1", "Content-Type: application/json", tt.head)
			tt.send(s)
			if resp, answer, took := s.response(); resp.StatusCode != 202 || took != b.server.waitLimit {
				t.Errorf("%s: %d after %s: %s", tt.head, resp.StatusCode, took, answer)
			}
		})
	}
}

// JSON is what it was, beside a stream too.
func TestJSONThatStalls(t *testing.T) {
	var got counted
	withStreams(t, 1000, got.command, func(b *streamBench) {
		s := b.send("POST /failover HTTP/1.1", "Content-Type: application/json")
		s.chunk([]byte(`{"reason":`))
		p, took := s.refused()
		if p.Status != 408 || p.Type != "/problems/slow-body" || took != bodyTimeout || len(b.fake.Calls()) != 0 {
			t.Errorf("%d %s after %s: %s", p.Status, p.Type, took, p.Detail)
		}
		// Nor is what comes after the bound waited for longer.
		large := b.send("POST /failover HTTP/1.1", "Content-Type: application/json")
		large.chunk(make([]byte, maxJSONBytes+1))
		if p, took := large.refused(); p.Status != 413 || took > bodyTimeout {
			t.Errorf("%d %s after %s: %s", p.Status, p.Type, took, p.Detail)
		}
		whole := b.send("POST /failover HTTP/1.1", "Content-Type: application/json")
		whole.chunk([]byte(`{"reason":"test"}`))
		whole.end()
		if resp, body, _ := whole.response(); resp.StatusCode != 200 || resp.Header.Get("Connection") != "" {
			t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
		}
	})
}

func TestContentDigest(t *testing.T) {
	const good, other = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:", "sha-512=:abcd:"
	for _, tt := range []struct {
		name  string
		lines []string
		want  string // "": none is sent; "!": refused
	}{
		{"none", nil, ""},
		{"alone", []string{good}, "hello"},
		{"among others", []string{other + " ,\t" + good + ",md5=:abcd:"}, "hello"},
		{"in two lines", []string{other, good}, "hello"},
		{"of another algorithm", []string{other}, "!"},
		{"empty", []string{""}, "!"},
		{"without colons", []string{strings.ReplaceAll(good, ":", "")}, "!"},
		{"not closed", []string{strings.TrimSuffix(good, ":")}, "!"},
		{"in hexadecimal", []string{"sha-256=:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824:"}, "!"},
	} {
		header := http.Header{}
		for _, line := range tt.lines {
			header.Add("Content-Digest", line)
		}
		got, err := contentDigest(&http.Request{Header: header})
		sum := sha256.Sum256([]byte(tt.want))
		switch tt.want {
		case "":
			if got != nil || err != nil {
				t.Errorf("%s: %x, %v", tt.name, got, err)
			}
		case "!":
			if !errors.Is(err, errBadRequest) {
				t.Errorf("%s: %x, %v", tt.name, got, err)
			}
		default:
			if !bytes.Equal(got, sum[:]) || err != nil {
				t.Errorf("%s: %x, %v", tt.name, got, err)
			}
		}
	}
}

// A stream that is not the announced one does not end in io.EOF, however often
// it is asked.
func TestStreamOfAnotherDigest(t *testing.T) {
	var had []byte
	var first, again error
	twice := func(b *streamBench) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			had, first = io.ReadAll(r.Body)
			_, again = r.Body.Read(make([]byte, 1))
			b.server.fail(w, r, again)
		}
	}
	withStreams(t, 1000, twice, func(b *streamBench) {
		s := b.send(announce("what was sent"))
		s.chunk([]byte("what arrived"))
		s.end()
		p, _ := s.refused()
		if p.Status != 400 || p.Type != "/problems/digest-mismatch" || gen.Value(p.Field) != "Content-Digest" {
			t.Errorf("%d %s: %s", p.Status, p.Type, p.Detail)
		}
		if _, arrived, _ := strings.Cut(announce("what arrived"), " "); !strings.Contains(p.Detail, arrived) {
			t.Errorf("nothing names what arrived: %s", p.Detail)
		}
		if string(had) != "what arrived" || !errors.Is(first, errWrongDigest) || !errors.Is(again, errWrongDigest) {
			t.Errorf("the command had %q, %v, then %v", had, first, again)
		}
	})
}

// A repeated stream gets the first one's answer, and is not read: nothing of it
// is sent.
func TestReplayOfAStream(t *testing.T) {
	const data = "a set of data"
	began, read := "", int64(0)
	upload := func(b *streamBench) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			key := r.Header.Get("Idempotency-Key")
			a, err := b.server.run(r.Context(), nil, &key, func(ctx context.Context, by operation.Caller) (operation.Record, error) {
				rec, err := b.fake.StartNode(ctx, cluster.NodeRequest{Node: "postgres_slave"}, by)
				if err != nil || rec.ID == began {
					return rec, err // it has joined
				}
				began = rec.ID
				n, err := io.Copy(io.Discard, r.Body)
				read += n
				return rec, err
			})
			if err != nil {
				b.server.fail(w, r, err)
				return
			}
			_ = a.write(w)
		}
	}
	withStreams(t, 1000, upload, func(b *streamBench) {
		s := b.send("Idempotency-Key: k1", announce(data))
		s.chunk([]byte(data))
		s.end()
		resp, first, _ := s.response()
		if resp.StatusCode != 200 || read != int64(len(data)) {
			t.Fatalf("%d, %d bytes read: %s", resp.StatusCode, read, first)
		}
		for _, length := range []string{"Transfer-Encoding: chunked", fmt.Sprint("Content-Length: ", len(data))} {
			resp, again, took := b.send("Idempotency-Key: k1", announce(data), length).response()
			if resp.StatusCode != 200 || !bytes.Equal(first, again) || took != 0 || read != int64(len(data)) {
				t.Errorf("%s: %d after %s, %d bytes read: %s", length, resp.StatusCode, took, read, again)
			}
		}
		for name, other := range map[string]*sender{
			"other data":      b.send("Idempotency-Key: k1", announce("other data")),
			"another purpose": b.send("POST /stream?into=there HTTP/1.1", "Idempotency-Key: k1", announce(data)),
		} {
			p, took := other.refused()
			if p.Status != 422 || p.Type != "/problems/idempotency-key-reused" || took != 0 {
				t.Errorf("%s: %d %s after %s: %s", name, p.Status, p.Type, took, p.Detail)
			}
		}
	})
}

// Who announces a body, has no token and sends nothing holds a connection for as
// long as anybody else's body may take, and no longer.
func TestBodyThatNobodyReads(t *testing.T) {
	var got counted
	withStreams(t, 1000, got.command, func(b *streamBench) {
		for _, tt := range []struct {
			path   string
			status int
		}{{"/failover", 401}, {"/no/such/path", 404}} {
			s := b.send("POST "+tt.path+" HTTP/1.1", "Authorization: Bearer guess", "Content-Length: 10")
			if p, took := s.refused(); p.Status != tt.status || took > bodyTimeout {
				t.Errorf("%s: %d after %s", tt.path, p.Status, took)
			}
		}
	})
}
