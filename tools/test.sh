#!/usr/bin/env bash
# Runs go vet and every test with the race detector. The clusters of package e2e
# come last, after the processors' own work: first those tests, one after the other,
# that hold a time against a limit, then two at a time, which mostly wait. With PKG
# only the packages that it names are tested, with RUN only what it matches in them.
. "$(dirname "$0")/../deploy/lib.sh"
cd "$(dirname "$0")/.."

# The images under test: make test builds them with a tag of their own.
tag=${CONTROLD_TAG:-dev}
export CONTROLD_TAG=$tag
export CONTROLD_TEST_POSTGRES_IMAGE=controld/postgres:$tag CONTROLD_TEST_PGBOUNCER_IMAGE=controld/pgbouncer:$tag

e2e=internal/e2e
CGO_ENABLED=0 go test -C tools "${go_flags[@]}" ./testreport
CGO_ENABLED=0 go build -C tools "${go_flags[@]}" -o ../build/testreport ./testreport
CGO_ENABLED=0 go vet "${go_flags[@]}" ./...

run_tests() {
	local status=0
	if [ -n "${PKG:-}" ]; then
		# shellcheck disable=SC2086 # one or several
		go test -json -race -timeout 60m -parallel 2 -run "${RUN:-.}" $PKG
		return
	fi
	mapfile -t packages < <(go list ./... | grep -v "/$e2e\$")
	go test -json -race -timeout 30m "${packages[@]}" || status=$?
	# The race detector is slow: beside it only each sixth call of an operation
	# is cut. Here is every one.
	CGO_ENABLED=0 go test "${go_flags[@]}" -json -timeout 30m ./internal/cluster || status=$?
	if [ -d "$e2e" ]; then
		go test -json -race -count=1 -timeout 60m -parallel 2 "./$e2e" || status=$?
	fi
	return "$status"
}

run_tests | build/testreport
