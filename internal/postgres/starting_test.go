package postgres

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestIsStarting(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{&pgconn.PgError{Code: "57P03", Message: "the database system is starting up"}, true},
		{&pgconn.PgError{Code: "57P03", Message: "the database system is not yet accepting connections"}, true},
		{&pgconn.PgError{Code: "57P03", Message: "the database system is in recovery mode"}, true},
		{&pgconn.PgError{Code: "57P03", Message: "the database system is shutting down"}, false},
		{&pgconn.PgError{Code: "28P01", Message: "password authentication failed"}, false},
		{errors.New("connection refused"), false},
		{nil, false},
	} {
		if got := isStarting(tt.err); got != tt.want {
			t.Errorf("isStarting(%v) = %v", tt.err, got)
		}
	}
}
