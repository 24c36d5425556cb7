#!/usr/bin/env bash
# Runs the long tests, which make test does not: every function TestLong… in a
# file with the build tag long. A further series is such a file, nothing else.
# With LONG only those run whose name it matches. What they log is shown: it has
# the figures.
. "$(dirname "$0")/../deploy/lib.sh"
cd "$(dirname "$0")/.."

tag=${CONTROLD_TAG:-dev}
export CONTROLD_TEST_POSTGRES_IMAGE=controld/postgres:$tag CONTROLD_TEST_PGBOUNCER_IMAGE=controld/pgbouncer:$tag

CGO_ENABLED=0 go build -C tools "${go_flags[@]}" -o ../build/testreport ./testreport
mapfile -t packages < <(grep -rl --include='*_test.go' '^//go:build long$' bench cmd deploy internal |
	xargs dirname | sort -u | sed 's,^,./,')
go test -json -tags long -p 1 -count=1 -timeout 180m -run "^TestLong.*${LONG:-}" "${packages[@]}" | build/testreport -v
