package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// A Role is what a token may do. Each includes those before it.
type Role string

// The roles.
const (
	Viewer   Role = "viewer"   // reads
	Operator Role = "operator" // runs operations
	Admin    Role = "admin"    // deletes, restores
)

func (r Role) rank() int {
	switch r {
	case Viewer:
		return 1
	case Operator:
		return 2
	case Admin:
		return 3
	}
	return 0
}

// May reports whether a token of role r may do what needs the role needed.
func (r Role) May(needed Role) bool { return r.rank() >= needed.rank() }

// tokens holds digests: they have one length, so that comparing them tells
// nothing about the tokens.
type tokens map[[sha256.Size]byte]Role

// NewTokens makes the Tokens of one secret per role.
func NewTokens(secrets map[Role]string) (Tokens, error) {
	t := tokens{}
	for role, secret := range secrets {
		if secret == "" || role.rank() == 0 {
			return nil, fmt.Errorf("token of role %q: an empty token or an unknown role", role)
		}
		digest := sha256.Sum256([]byte(secret))
		if _, twice := t[digest]; twice {
			return nil, errors.New("two roles have the same token")
		}
		t[digest] = role
	}
	if len(t) == 0 {
		return nil, errors.New("there is no token")
	}
	return t, nil
}

// Role compares the token with all of them, however early one matches.
func (t tokens) Role(token string) (Role, bool) {
	given := sha256.Sum256([]byte(token))
	var found Role
	for digest, role := range t {
		if subtle.ConstantTimeCompare(given[:], digest[:]) == 1 {
			found = role
		}
	}
	return found, found != ""
}

const tokenHint = `make env prints a line with it: eval "$(make -s env)"`

// howToAuthenticate names both ways in.
func (s *Server) howToAuthenticate() string {
	how := "Send the header Authorization: Bearer TOKEN; " + tokenHint + ". "
	if s.anonymousRole == "" {
		return how + "Or let callers on this machine in without a token: " +
			"CONTROLD_API_ANONYMOUS=operator in .controld/settings.env (viewer: only to read), then make up"
	}
	return how + fmt.Sprintf("Or call from this machine itself, as http://127.0.0.1:PORT, without that header: "+
		"CONTROLD_API_ANONYMOUS=%s is set", s.anonymousRole)
}

func unauthorized(detail string) error {
	return &requestError{kind: errUnauthorized, field: "Authorization", detail: detail}
}

// requireRole lets through whoever may do what needs the role.
func (s *Server) requireRole(needed Role, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		role, name, err := s.callerOf(r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		infoOf(r.Context()).caller = name
		if !role.May(needed) {
			s.fail(w, r, &requestError{kind: errForbidden, field: "Authorization", detail: tooLittle(r, role, name, needed)})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// callerOf returns what the caller may do, and what it is called. A token that
// was sent counts, also where it is wrong or empty: whoever sends one is told.
func (s *Server) callerOf(r *http.Request) (role Role, name string, err error) {
	if _, sent := r.Header["Authorization"]; !sent {
		role, err := s.anonymous(r)
		return role, anonymousCaller, err
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", "", unauthorized("The header Authorization holds no token. " + s.howToAuthenticate())
	}
	role, ok := s.tokens.Role(token)
	if !ok {
		return "", "", unauthorized("This token is not known here. " + s.howToAuthenticate())
	}
	return role, string(role), nil
}

// tooLittle says what the caller lacks, and where to get it.
func tooLittle(r *http.Request, role Role, name string, needed Role) string {
	if name == anonymousCaller {
		return fmt.Sprintf("%s %s needs the role %s; callers without a token have the role %s (CONTROLD_API_ANONYMOUS). Send a token: %s",
			r.Method, r.URL.Path, needed, role, tokenHint)
	}
	return fmt.Sprintf("%s %s needs a token of the role %s; this one is of the role %s", r.Method, r.URL.Path, needed, role)
}
