package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/api/apitest"
	"controld/internal/api/gen"
)

// In the container callers on this machine come from the bridge's gateway.
var inContainer = func(context.Context) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("10.1.2.1"), netip.MustParseAddr("fd00::1")}, nil
}

func anonymously(role Role, gateways func(context.Context) ([]netip.Addr, error)) func(*Options) {
	return func(o *Options) { o.Anonymous, o.Gateways = role, gateways }
}

// Who calls without a token gets the role of the setting, from this machine
// alone, and not as somebody else's page.
func TestAnonymous(t *testing.T) {
	const here = "127.0.0.1:40000"
	origin := func(values ...string) http.Header { return http.Header{"Origin": values} }
	auth := func(values ...string) http.Header { return http.Header{"Authorization": values} }
	bearer := func(token string, more http.Header) http.Header {
		h := http.Header{"Authorization": {"Bearer " + token}}
		for name, values := range more {
			h[name] = values
		}
		return h
	}
	for _, tt := range []struct {
		name   string
		role   Role   // of the setting
		from   string // the caller's address
		host   string // empty: 127.0.0.1:8088
		header http.Header
		read   int // GET /cluster
		run    int // POST /failover
	}{
		// The setting.
		{"none", "", here, "", nil, 401, 401},
		{"viewer", Viewer, here, "", nil, 200, 403},
		{"operator", Operator, here, "", nil, 200, 200},

		// The address.
		{"IPv6", Operator, "[::1]:40000", "[::1]:8088", nil, 200, 200},
		{"IPv4 in an IPv6 address", Operator, "[::ffff:127.0.0.1]:40000", "", nil, 200, 200},
		{"another loopback address", Operator, "127.9.9.9:40000", "", nil, 200, 200},
		{"the gateway", Operator, "10.1.2.1:40000", "", nil, 200, 200},
		{"the gateway, none", "", "10.1.2.1:40000", "", nil, 401, 401},
		{"the gateway, viewer", Viewer, "10.1.2.1:40000", "", nil, 200, 403},
		{"the gateway in an IPv6 address", Operator, "[::ffff:10.1.2.1]:40000", "", nil, 200, 200},
		{"the gateway by IPv6", Operator, "[fd00::1]:40000", "[::1]:8088", nil, 200, 200},
		{"the container next door", Operator, "10.1.2.5:40000", "", nil, 401, 401},
		{"the container next door in an IPv6 address", Operator, "[::ffff:10.1.2.5]:40000", "", nil, 401, 401},
		{"another bridge's gateway", Operator, "172.17.0.1:40000", "", nil, 401, 401},
		{"another machine", Operator, "192.0.2.7:40000", "", nil, 401, 401},
		{"a link's address", Operator, "[fe80::1%eth0]:40000", "", nil, 401, 401},
		{"no address", Operator, "@", "", nil, 401, 401},
		{"all addresses", Operator, "0.0.0.0:40000", "", nil, 401, 401},

		// What is said of the address is not believed, and names a proxy.
		{"said to be forwarded", Operator, "10.1.2.5:40000", "", http.Header{"X-Forwarded-For": {"127.0.0.1"}}, 401, 401},
		{"said to be real", Operator, "192.0.2.7:40000", "", http.Header{"X-Real-Ip": {"127.0.0.1"}}, 401, 401},
		{"said to be for", Operator, "192.0.2.7:40000", "", http.Header{"Forwarded": {"for=127.0.0.1"}}, 401, 401},
		{"a proxy on this machine", Operator, here, "", http.Header{"X-Forwarded-For": {"192.0.2.7"}}, 401, 401},
		{"a proxy that says little", Operator, here, "", http.Header{"Via": {"1.1 proxy"}}, 401, 401},

		// The token: one that is sent counts.
		{"wrong token", Operator, here, "", auth("Bearer guess"), 401, 401},
		{"empty token", Operator, here, "", auth("Bearer "), 401, 401},
		{"empty header", Operator, here, "", auth(""), 401, 401},
		{"a password", Operator, here, "", auth("Basic dXNlcjpwYXNz"), 401, 401},
		{"two tokens, the first one wrong", Operator, here, "", auth("Bearer guess", "Bearer "+operatorToken), 401, 401},
		{"the viewer's token is not more with it", Operator, here, "", bearer(viewerToken, nil), 200, 403},
		{"a token from elsewhere", Operator, "192.0.2.7:40000", "controld:8088", bearer(operatorToken, nil), 200, 200},
		{"a token with a foreign Origin", Operator, here, "", bearer(operatorToken, origin("http://evil.example")), 200, 200},
		{"a token with a foreign Host", Operator, here, "evil.example", bearer(operatorToken, nil), 200, 200},
		{"a token with a foreign Host, none", "", here, "evil.example", bearer(operatorToken, origin("null")), 200, 200},

		// The Host.
		{"by name", Operator, here, "localhost:8088", nil, 200, 200},
		{"by another port, as by a tunnel", Operator, here, "localhost:9999", nil, 200, 200},
		{"by no port", Operator, here, "localhost", nil, 200, 200},
		{"in capitals", Operator, here, "LOCALHOST:8088", nil, 200, 200},
		{"by IPv6", Operator, here, "[::1]:8088", nil, 200, 200},
		{"by IPv6 without a port", Operator, here, "[::1]", nil, 200, 200},
		{"a foreign name", Operator, here, "evil.example:8088", nil, 403, 403},
		{"a foreign name, viewer", Viewer, here, "evil.example:8088", nil, 403, 403},
		{"a foreign name from elsewhere is told of the token", Operator, "10.1.2.5:40000", "controld:8088", nil, 401, 401},
		{"the container's name", Operator, "10.1.2.1:40000", "controld:8088", nil, 403, 403},
		{"the container's address", Operator, "10.1.2.1:40000", "10.1.2.4:8088", nil, 403, 403},
		{"all addresses as a Host", Operator, here, "0.0.0.0:8088", nil, 403, 403},
		{"a dot at the end", Operator, here, "localhost.:8088", nil, 403, 403},
		{"a name below", Operator, here, "evil.localhost:8088", nil, 403, 403},
		{"a name above", Operator, here, "localhost.evil.example:8088", nil, 403, 403},
		{"an address above", Operator, here, "127.0.0.1.evil.example:8088", nil, 403, 403},
		{"a user", Operator, here, "127.0.0.1@evil.example", nil, 403, 403},
		{"a user before this machine", Operator, here, "evil@127.0.0.1:8088", nil, 403, 403},
		{"a short address", Operator, here, "127.1:8088", nil, 403, 403},
		{"an address as a number", Operator, here, "2130706433:8088", nil, 403, 403},
		{"an address in octal", Operator, here, "0177.0.0.1:8088", nil, 403, 403},
		{"two ports", Operator, here, "127.0.0.1:80:8088", nil, 403, 403},
		{"no digits in the port", Operator, here, "127.0.0.1:80a", nil, 403, 403},
		{"an empty port", Operator, here, "127.0.0.1:", nil, 403, 403},
		{"a port that is none", Operator, here, "127.0.0.1:65536", nil, 403, 403},
		{"port 0", Operator, here, "127.0.0.1:0", nil, 403, 403},
		{"a sign before the port", Operator, here, "127.0.0.1:+80", nil, 403, 403},
		{"IPv6 without brackets", Operator, here, "::1", nil, 403, 403},
		{"IPv6 with a zone", Operator, here, "[::1%eth0]:8088", nil, 403, 403},
		{"a bracket that stays open", Operator, here, "[::1", nil, 403, 403},
		{"a name in brackets", Operator, here, "[localhost]:8088", nil, 403, 403},
		{"something behind the brackets", Operator, here, "[::1]evil.example:8088", nil, 403, 403},
		{"another IPv6 address", Operator, here, "[2001:db8::1]:8088", nil, 403, 403},
		{"no Host", Operator, here, "-", nil, 403, 403},

		// The Origin.
		{"its own page", Operator, here, "", origin("http://127.0.0.1:8088"), 200, 200},
		{"its own page by another name", Operator, here, "", origin("http://localhost:8088"), 200, 200},
		{"its own page by IPv6", Operator, here, "", origin("http://[::1]:8088"), 200, 200},
		{"its own page at port 80", Operator, here, "localhost", origin("http://localhost"), 200, 200},
		{"its own page by a tunnel", Operator, here, "localhost:9999", origin("http://localhost:9999"), 200, 200},
		{"its own page, viewer", Viewer, here, "", origin("http://127.0.0.1:8088"), 200, 403},
		{"a foreign page", Operator, here, "", origin("http://evil.example"), 403, 403},
		{"a foreign page from elsewhere", Operator, "10.1.2.5:40000", "", origin("http://evil.example"), 401, 401},
		{"a foreign page with this port", Operator, here, "", origin("http://evil.example:8088"), 403, 403},
		{"another server on this machine", Operator, here, "", origin("http://localhost:3000"), 403, 403},
		{"by TLS", Operator, here, "", origin("https://127.0.0.1:8088"), 403, 403},
		{"a page without an origin", Operator, here, "", origin("null"), 403, 403},
		{"an empty Origin", Operator, here, "", origin(""), 403, 403},
		{"two Origins", Operator, here, "", origin("http://127.0.0.1:8088", "http://evil.example"), 403, 403},
		{"two Origins in one", Operator, here, "", origin("http://127.0.0.1:8088 http://evil.example"), 403, 403},
		{"an Origin with a user", Operator, here, "", origin("http://127.0.0.1:8088@evil.example"), 403, 403},
		{"an Origin with a path", Operator, here, "", origin("http://127.0.0.1:8088/"), 403, 403},
		{"no scheme", Operator, here, "", origin("127.0.0.1:8088"), 403, 403},
		{"an extension", Operator, here, "", origin("chrome-extension://abcdef"), 403, 403},
		{"the Host of a foreign page is not its own", Operator, here, "evil.example", origin("http://evil.example"), 403, 403},

		// Where a browser sends no Origin.
		{"typed in", Operator, here, "", http.Header{"Sec-Fetch-Site": {"none"}}, 200, 200},
		{"from its own page", Operator, here, "", http.Header{"Sec-Fetch-Site": {"same-origin"}}, 200, 200},
		{"from a foreign page", Operator, here, "", http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403, 403},
		{"from another server on this machine", Operator, here, "", http.Header{"Sec-Fetch-Site": {"same-site"}}, 403, 403},
		{"from two pages", Operator, here, "", http.Header{"Sec-Fetch-Site": {"none", "cross-site"}}, 403, 403},
		{"a foreign page of a browser that says both", Operator, here, "",
			http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {"http://evil.example"}}, 403, 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := start(t, anonymously(tt.role, inContainer))
			for _, c := range []struct {
				method, path string
				want         int
			}{{"GET", "/cluster", tt.read}, {"POST", "/failover", tt.run}, {"HEAD", "/operations", tt.read}, {"GET", "/metrics", tt.read}} {
				rec := b.from(tt.from, tt.host, tt.header, c.method, c.path)
				if rec.Code != c.want {
					t.Errorf("%s %s: %d, want %d: %s", c.method, c.path, rec.Code, c.want, rec.Body)
				}
				if rec.Code >= 400 && c.method != "HEAD" {
					b.actionable(rec)
				}
			}
			if calls := b.fake.Calls(); (len(calls) > 0) != (tt.run == 200) {
				t.Errorf("called %v", calls)
			}
			// What is open stays open, to every caller.
			if rec := b.from(tt.from, tt.host, tt.header, "GET", "/health"); rec.Code != 200 {
				t.Errorf("GET /health: %d %s", rec.Code, rec.Body)
			}
		})
	}
}

// from sends a request as one that came from an address. The host "-" is none.
func (b *bench) from(address, host string, header http.Header, method, path string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, path, nil)
	req.RemoteAddr = address
	switch host {
	case "":
		req.Host = "127.0.0.1:8088"
	case "-":
		req.Host = ""
	default:
		req.Host = host
	}
	for name, values := range header {
		req.Header[name] = values
	}
	rec := httptest.NewRecorder()
	b.server.Handler().ServeHTTP(rec, req)
	return rec
}

// actionable checks that a refusal says what to do, and nobody is let in by it.
func (b *bench) actionable(rec *httptest.ResponseRecorder) {
	b.t.Helper()
	p := b.problem(reply{rec.Code, rec.Result().Header}, rec.Body.Bytes())
	wants := []string{"make env"}
	if rec.Code == 401 {
		wants = append(wants, "CONTROLD_API_ANONYMOUS=", "Authorization: Bearer")
		if rec.Header().Get("WWW-Authenticate") == "" {
			b.t.Error("no WWW-Authenticate")
		}
	}
	for _, want := range wants {
		if !strings.Contains(p.Detail, want) && p.Type != "/problems/forbidden" {
			b.t.Errorf("the detail does not name %q: %s", want, p.Detail)
		}
	}
}

func TestAnonymousIsNamedInTheAudit(t *testing.T) {
	b := start(t, anonymously(Operator, nil))
	resp, body := b.do(call{method: "POST", path: "/failover", header: http.Header{"Idempotency-Key": {"k1"}}})
	var op gen.Operation
	if err := json.Unmarshal(body, &op); err != nil || resp.StatusCode != 200 || op.RequestedBy != "anonymous" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	// A key is bound to its caller: the operator's own is another one.
	if i := b.fake.Caller.Idempotency; i == nil || i.Caller != "anonymous" {
		t.Errorf("passed on %+v", i)
	}
	b.http.Close()
	if log := b.log.String(); !strings.Contains(log, "caller=anonymous") {
		t.Errorf("the log does not name the caller:\n%s", log)
	}
}

func TestAnonymousViewerIsToldWhatItLacks(t *testing.T) {
	b := start(t, anonymously(Viewer, nil))
	resp, body := b.do(call{method: "POST", path: "/failover"})
	p := b.problem(resp, body)
	for _, want := range []string{"role operator", "role viewer", "CONTROLD_API_ANONYMOUS", "make env"} {
		if resp.StatusCode != 403 || p.Type != "/problems/forbidden" || !strings.Contains(p.Detail, want) {
			t.Errorf("%d without %q: %s", resp.StatusCode, want, body)
		}
	}
}

// Bytes that no client of Go's sends.
func TestAnonymousByHand(t *testing.T) {
	const own = "Host: 127.0.0.1:8088\r\n"
	for _, tt := range []struct {
		name, request string
		status        int
	}{
		{"as curl sends it", "POST /failover HTTP/1.1\r\n" + own + "\r\n", 200},
		{"a form without fields", "POST /failover HTTP/1.1\r\n" + own +
			"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n\r\n", 200},
		{"a foreign form without fields", "POST /failover HTTP/1.1\r\n" + own +
			"Origin: http://evil.example\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n", 403},
		{"a foreign form with JSON as plain text", "POST /failover HTTP/1.1\r\n" + own +
			"Origin: http://evil.example\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 403},
		{"JSON as plain text", "POST /failover HTTP/1.1\r\n" + own + "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415},
		{"HTTP/1.0 with a Host", "POST /failover HTTP/1.0\r\n" + own + "\r\n", 200},
		{"HTTP/1.0 without a Host", "POST /failover HTTP/1.0\r\n\r\n", 403},
		{"HTTP/1.0 with a foreign Host", "POST /failover HTTP/1.0\r\nHost: evil.example\r\n\r\n", 403},
		{"HTTP/1.1 without a Host", "POST /failover HTTP/1.1\r\n\r\n", 400},
		{"an empty Host", "POST /failover HTTP/1.1\r\nHost:\r\n\r\n", 403},
		{"two Hosts", "POST /failover HTTP/1.1\r\n" + own + "Host: evil.example\r\n\r\n", 400},
		{"a foreign Host behind the path's", "POST http://127.0.0.1:8088/failover HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403},
		{"a foreign path's before the Host", "POST http://evil.example/failover HTTP/1.1\r\n" + own + "\r\n", 403},
		{"a user in the path", "POST http://evil@127.0.0.1:8088/failover HTTP/1.1\r\n" + own + "\r\n", 403},
		{"two Origins", "POST /failover HTTP/1.1\r\n" + own + "Origin: http://127.0.0.1:8088\r\norigin: http://evil.example\r\n\r\n", 403},
		{"an Origin in small letters", "POST /failover HTTP/1.1\r\n" + own + "origin: http://evil.example\r\n\r\n", 403},
		{"an empty Origin", "POST /failover HTTP/1.1\r\n" + own + "Origin:\r\n\r\n", 403},
		{"a folded Origin", "POST /failover HTTP/1.1\r\n" + own + "Origin: http://127.0.0.1:8088\r\n .evil.example\r\n\r\n", 403},
		{"an empty token", "POST /failover HTTP/1.1\r\n" + own + "Authorization:\r\n\r\n", 401},
		{"a token in small letters", "POST /failover HTTP/1.1\r\n" + own + "authorization: bearer guess\r\n\r\n", 401},
		{"a preflight", "OPTIONS /failover HTTP/1.1\r\n" + own +
			"Origin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\n\r\n", 405},
		{"a proxy's CONNECT", "CONNECT 127.0.0.1:8088 HTTP/1.1\r\n" + own + "\r\n", 405},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := start(t, anonymously(Operator, nil))
			conn, err := net.Dial("tcp", b.http.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := io.WriteString(conn, tt.request); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if body, _ := io.ReadAll(resp.Body); resp.StatusCode != tt.status {
				t.Errorf("%d, want %d: %s", resp.StatusCode, tt.status, body)
			}
			if allow := resp.Header.Get("Access-Control-Allow-Origin"); allow != "" {
				t.Errorf("Access-Control-Allow-Origin: %s", allow)
			}
			if calls := b.fake.Calls(); (len(calls) > 0) != (tt.status == 200) {
				t.Errorf("called %v", calls)
			}
		})
	}
}

// A click on /docs must not be led by a page that shows it in a frame.
func TestNoPageCanBeFramed(t *testing.T) {
	b := start(t)
	for _, path := range []string{"/", "/docs", "/docs/swagger-ui.css", "/openapi.yaml"} {
		if resp, _ := b.do(call{method: "GET", path: path}); resp.Header.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s may be shown in a frame", path)
		}
	}
}

// Outside of a container only loopback is this machine.
func TestAnonymousOutsideOfAContainer(t *testing.T) {
	b := start(t, anonymously(Operator, nil))
	for from, want := range map[string]int{"127.0.0.1:1": 200, "[::1]:1": 200, "10.1.2.1:1": 401, "172.17.0.1:1": 401} {
		if rec := b.from(from, "", nil, "GET", "/cluster"); rec.Code != want {
			t.Errorf("from %s: %d, want %d", from, rec.Code, want)
		}
	}
}

// An engine that does not answer neither gives the role nor denies it for ever,
// and is not asked with every call.
func TestAnonymousWhileTheEngineIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down, asked := errors.New("the engine is down"), 0
		s, err := New(serverOptions(anonymously(Operator, func(ctx context.Context) ([]netip.Addr, error) {
			asked++
			if down != nil {
				return nil, down
			}
			return inContainer(ctx)
		})))
		if err != nil {
			t.Fatal(err)
		}
		b := &bench{t: t, server: s}
		s.LearnGateways(t.Context())
		ask := func(from string, status, questions int) *httptest.ResponseRecorder {
			t.Helper()
			rec := b.from(from, "", nil, "GET", "/cluster")
			if rec.Code != status || asked != questions {
				t.Errorf("from %s: %d after %d questions, want %d after %d: %s", from, rec.Code, asked, status, questions, rec.Body)
			}
			return rec
		}
		if rec := ask("10.1.2.1:1", 401, 1); !strings.Contains(rec.Body.String(), "the engine is down") {
			t.Errorf("it does not say why: %s", rec.Body)
		}
		ask("127.0.0.1:1", 200, 1) // in the container itself nothing has to be asked
		ask("10.1.2.5:1", 401, 1)
		time.Sleep(gatewaysAgain)
		ask("10.1.2.1:1", 401, 2)
		down = nil
		ask("10.1.2.1:1", 401, 2)
		time.Sleep(gatewaysAgain)
		ask("10.1.2.1:1", 200, 3)
		ask("10.1.2.5:1", 401, 3)
		down = errors.New("down again")
		time.Sleep(time.Hour)
		ask("10.1.2.1:1", 200, 3) // what is known stays true: the container is the same
	})
}

// An engine that hangs holds one question up, for a bounded time.
func TestAnonymousWhileTheEngineHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(serverOptions(anonymously(Operator, func(ctx context.Context) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, fmt.Errorf("no answer: %w", ctx.Err())
		})))
		if err != nil {
			t.Fatal(err)
		}
		b := &bench{t: t, server: s}
		began := time.Now()
		for range 20 {
			if rec := b.from("10.1.2.1:1", "", nil, "GET", "/cluster"); rec.Code != 401 {
				t.Errorf("%d", rec.Code)
			}
		}
		if took := time.Since(began); took != gatewaysTimeout {
			t.Errorf("20 calls took %s", took)
		}
	})
}

// Without the setting nothing is asked.
func TestNobodyIsAnonymousByDefault(t *testing.T) {
	b := start(t, anonymously("", func(context.Context) ([]netip.Addr, error) {
		t.Error("asked for the gateways")
		return nil, nil
	}))
	b.server.LearnGateways(t.Context())
	if rec := b.from("10.1.2.1:1", "", nil, "POST", "/failover"); rec.Code != 401 {
		t.Errorf("%d", rec.Code)
	}
}

func serverOptions(change func(*Options)) Options {
	fake := apitest.New()
	o := Options{Cluster: fake, Operations: fake, Nodes: fake.Nodes(), Interval: apitest.Interval, Capabilities: served(fake),
		Log: slog.New(slog.DiscardHandler)}
	change(&o)
	return o
}
