#!/usr/bin/env bash
# Runs go vet and every test, those that need no cluster with the race detector. With
# PKG only the packages that it names are tested, with RUN only what it matches in them.
#
# The clusters of package e2e come last, when nothing else needs the processors, two at
# a time: one waits while the other works.
. "$(dirname "$0")/../deploy/lib.sh"
cd "$(dirname "$0")/.."

# The images under test: make test builds them with a tag of their own.
tag=${CONTROLD_TAG:-dev}
export CONTROLD_TAG=$tag
export CONTROLD_TEST_POSTGRES_IMAGE=controld/postgres:$tag CONTROLD_TEST_PGBOUNCER_IMAGE=controld/pgbouncer:$tag
export CONTROLD_TEST_REDIS_IMAGE=controld/redis:$tag

CGO_ENABLED=0 go test -C tools "${go_flags[@]}" ./mutants ./testreport
CGO_ENABLED=0 go build -C tools "${go_flags[@]}" -o ../build/testreport ./testreport
CGO_ENABLED=0 go vet "${go_flags[@]}" ./...

# race_test runs the tests of packages with the race detector. What go test is told
# comes before -- and the packages after it.
#
# Timers of testing/synctest that come due at once crash the detector when two
# processors run them (golang.org/issue/78156). On one it sees the same races: it
# reasons about what is ordered, not about what happened at the same time.
race_test() {
	local status=0 flags=() uses='{{join .TestImports " "}} {{join .XTestImports " "}}' simulated others
	while [ "$1" != -- ]; do flags+=("$1") && shift; done
	shift
	mapfile -t simulated < <(go list -f "{{.ImportPath}} $uses" "$@" | awk '/ testing\/synctest/ {print $1}')
	mapfile -t others < <(go list "$@" | grep -vxF -f <(printf '%s\n' "${simulated[@]}"))
	if [ ${#simulated[@]} -gt 0 ]; then
		go test -json -race -cpu 1 "${flags[@]}" "${simulated[@]}" || status=$?
	fi
	if [ ${#others[@]} -gt 0 ]; then
		go test -json -race "${flags[@]}" "${others[@]}" || status=$?
	fi
	return "$status"
}

run_tests() {
	local status=0
	if [ -n "${PKG:-}" ]; then
		# shellcheck disable=SC2086 # one or several
		race_test -timeout 60m -parallel 2 -run "${RUN:-.}" -- $PKG
		return
	fi
	mapfile -t packages < <(go list ./... | grep -v "/internal/e2e\$")
	race_test -timeout 30m -- "${packages[@]}" || status=$?
	# The race detector is slow: with it one in seventeen calls of an operation is cut.
	# Without it every call is.
	CGO_ENABLED=0 go test "${go_flags[@]}" -json -timeout 30m ./internal/manager || status=$?
	# What is under test here runs in containers, where the detector does not see it.
	CGO_ENABLED=0 go test "${go_flags[@]}" -json -count=1 -timeout 60m -parallel 2 ./internal/e2e || status=$?
	return "$status"
}

run_tests | build/testreport
