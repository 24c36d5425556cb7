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
		return nil, errors.New("there is no token, and no mode without one")
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

const howToAuthenticate = "Send the header Authorization: Bearer TOKEN. make env prints a line with the token: eval \"$(make -s env)\""

// requireRole lets through whoever may do what needs the role.
func (s *Server) requireRole(needed Role, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		token = strings.TrimSpace(token)
		if !strings.EqualFold(scheme, "Bearer") || token == "" {
			s.fail(w, r, &requestError{kind: errUnauthorized, field: "Authorization", detail: howToAuthenticate})
			return
		}
		role, ok := s.tokens.Role(token)
		if !ok {
			s.fail(w, r, &requestError{kind: errUnauthorized, field: "Authorization", detail: "This token is not known here. " + howToAuthenticate})
			return
		}
		infoOf(r.Context()).caller = string(role)
		if !role.May(needed) {
			s.fail(w, r, &requestError{kind: errForbidden, field: "Authorization",
				detail: fmt.Sprintf("%s %s needs a token of the role %s; this one is of the role %s", r.Method, r.URL.Path, needed, role)})
			return
		}
		next.ServeHTTP(w, r)
	})
}
