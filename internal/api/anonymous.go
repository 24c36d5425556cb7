package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// anonymousCaller is what the audit and the log call a caller without a token.
const anonymousCaller = "anonymous"

// anonymous returns the role of a request without a token: that of the setting,
// where the caller is on this machine and no foreign page in a browser of it.
func (s *Server) anonymous(r *http.Request) (Role, error) {
	if s.anonymousRole == "" {
		return "", unauthorized("No token was sent. " + s.howToAuthenticate())
	}
	if err := s.machine.sends(r); err != nil {
		return "", unauthorized(fmt.Sprintf("No token was sent, and %v. %s", err, s.howToAuthenticate()))
	}
	if err := foreign(r); err != nil {
		return "", err
	}
	return s.anonymousRole, nil
}

// A machine tells callers on the machine that controld runs on from all others.
type machine struct {
	// gateways are what such callers come from where controld runs in a
	// container, or why that is not certain; nil where it runs in none.
	gateways func(context.Context) ([]netip.Addr, error)
	log      *slog.Logger

	mu    sync.Mutex
	known []netip.Addr
	err   error // what the last question came to
	asked time.Time
}

const (
	gatewaysTimeout = 2 * time.Second
	gatewaysAgain   = 5 * time.Second // after an answer that proves nothing
)

// proxied are headers that a proxy adds. What they say is never believed; that
// they are there says that the caller is not the one who is connected.
var proxied = []string{"Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip"}

// sends reports why it is not certain that the request's caller is on this machine.
func (m *machine) sends(r *http.Request) error {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return errors.New("the caller's address is not known")
	}
	for _, name := range proxied {
		if _, sent := r.Header[name]; sent {
			return fmt.Errorf("the request came through a proxy (header %s), whose callers may be anywhere", name)
		}
	}
	// An IPv4 address may come in the form of an IPv6 one.
	caller := at.Addr().Unmap()
	if caller.IsLoopback() {
		return nil
	}
	if m.gateways == nil {
		return fmt.Errorf("the call came from %s and not from this machine", caller)
	}
	gateways, err := m.learn(r.Context())
	if err != nil {
		return fmt.Errorf("it is not certain that only this machine can call by %s: %w", caller, err)
	}
	if !slices.Contains(gateways, caller) {
		return fmt.Errorf("the call came from %s and not from this machine", caller)
	}
	return nil
}

// learn returns the gateways. They are those of this container, which does not
// change while it lives: one answer is kept. After an error it asks again, not
// with every request.
func (m *machine) learn(ctx context.Context) ([]netip.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known != nil || m.err != nil && time.Since(m.asked) < gatewaysAgain {
		return m.known, m.err
	}
	// The answer is for all callers, also when this one leaves.
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), gatewaysTimeout)
	defer cancel()
	known, err := m.gateways(bounded)
	if err != nil && (m.err == nil || m.err.Error() != err.Error()) {
		m.log.WarnContext(ctx, "callers without a token are let in from this container alone", "err", err)
	}
	m.asked, m.err = time.Now(), err
	if err == nil {
		m.known = append([]netip.Addr{}, known...) // never nil: it is known
		m.log.InfoContext(ctx, "callers without a token are let in from this machine", "gateways", m.known)
	}
	return m.known, m.err
}

// foreign refuses what a page of somebody else makes a browser on this machine
// send: by a form or a script (Origin, or Sec-Fetch-Site where there is none),
// or under a name of its own that leads here (Host). A token needs none of
// this: a browser does not add it by itself.
func foreign(r *http.Request) error {
	port, ok := loopbackPort(r.Host)
	if !ok || r.URL.Host != "" { // the latter: a request to a proxy, whose Host is not to be seen
		return &requestError{kind: errForeign, field: "Host", allowed: "localhost, 127.0.0.1 or [::1]",
			detail: fmt.Sprintf("Without a token this API is called by an address of this machine: http://127.0.0.1:PORT, "+
				"and not by the Host %q. Use that, or send a token: %s", r.Host, tokenHint)}
	}
	if origins, sent := r.Header["Origin"]; sent {
		for _, origin := range origins {
			rest, isHTTP := strings.CutPrefix(origin, "http://")
			if from, ok := loopbackPort(rest); !isHTTP || !ok || from != port {
				return foreignPage("Origin", origin, "http://"+r.Host)
			}
		}
		return nil
	}
	for _, site := range r.Header["Sec-Fetch-Site"] {
		if site != "same-origin" && site != "none" {
			return foreignPage("Sec-Fetch-Site", site, "same-origin, none")
		}
	}
	return nil
}

func foreignPage(header, value, allowed string) error {
	return &requestError{kind: errForeign, field: header, allowed: allowed,
		detail: fmt.Sprintf("A page of another origin sent this request without a token (%s: %s). "+
			"Open this API's own pages, call it by curl or controld, or send a token: %s", header, value, tokenHint)}
}

// loopbackPort returns the port of a Host that names this machine to itself and
// cannot be made to name another: localhost, or a loopback address.
func loopbackPort(host string) (port string, ok bool) {
	name, port := host, ""
	if inner, bracketed := strings.CutPrefix(host, "["); bracketed {
		name, port, ok = strings.Cut(inner, "]")
		if !ok || !strings.Contains(name, ":") {
			return "", false
		}
	} else if i := strings.IndexByte(host, ':'); i >= 0 {
		name, port = host[:i], host[i:]
	}
	if port == "" {
		port = ":80"
	}
	number, err := strconv.ParseUint(strings.TrimPrefix(port, ":"), 10, 16)
	if err != nil || port[0] != ':' || number == 0 {
		return "", false
	}
	at, err := netip.ParseAddr(name)
	loopback := err == nil && at.Zone() == "" && at.Unmap().IsLoopback()
	return strconv.FormatUint(number, 10), loopback || strings.EqualFold(name, "localhost")
}
