#!/usr/bin/env bash
# Mutation tests of the packages that decide: gremlins changes one operator or
# constant at a time, and the package's tests must fail. They run without
# containers. With PKG only that package is tried, with WORKERS so many mutants at a
# time. tools/mutants.txt lists those that no test can notice.
. "$(dirname "$0")/../deploy/lib.sh"
cd "$(dirname "$0")/.."

packages=(./internal/operation ./internal/monitor ./internal/node/pooler ./internal/cluster)
[ -z "${PKG:-}" ] || packages=("$PKG")
least=92 # percent of a package's mutants must be noticed

export CGO_ENABLED=0
go build -C tools "${go_flags[@]}" -o ../build/mutants ./mutants
go build -C tools "${go_flags[@]}" -o ../build/gremlins github.com/go-gremlins/gremlins/cmd/gremlins

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
REAL_GO=$(command -v go)
ln -s "$PWD/tools/mutants/go.sh" "$work/go"
GOFLAGS="$(go env GOFLAGS) ${go_flags[*]} -short -vet=off"
export REAL_GO GOFLAGS

status=0
for package in "${packages[@]}"; do
	# A mutant that makes the tests hang is noticed. The limit is ten times what
	# they take without one, so that a slow machine is not taken for that. Packages
	# in folders below, which have a / in their names here, are not tried with it.
	rm -f "$work/found.json"
	PATH=$work:$PATH TMPDIR=$work build/gremlins unleash "$package" \
		--exclude-files / --workers "${WORKERS:-2}" --timeout-coefficient 10 --output-statuses l --output "$work/found.json"
	build/mutants -least "$least" "$package" "$work/found.json" tools/mutants.txt || status=1
done
exit "$status"
