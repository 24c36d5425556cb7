#!/usr/bin/env bash
# Stands before go, which is $REAL_GO, while gremlins runs. gremlins v0.6.0 believes
# two things of go that are not so:
#   - What the coverage does not name, no test reaches, and it need not be tried. But
#     the coverage names blocks of statements. The conditions of a case and the
#     constants are outside of all of them, and many decisions are just these. So
#     everything is called covered here; what no test reaches lives.
#   - go test ends with 1 when a test fails. It does so, too, when the mutant does not
#     compile, which says nothing about the tests. gremlins is told 2 for it.
set -euo pipefail

case "$1 ${2:-}" in
"test -cover") # -coverprofile FILE PACKAGES; how long it takes is the measure for the limit
	package=${5%/...}
	"$REAL_GO" test -count=1 "$package"
	format='{{range .GoFiles}}{{$.ImportPath}}/{{.}}:0.1,1000000.1 1 1{{"\n"}}{{end}}'
	{
		echo "mode: set"
		"$REAL_GO" list -f "$format" "$package" | sed '/^$/d'
	} >"$4"
	;;
"test "*)
	status=0
	output=$("$REAL_GO" "$@" 2>&1) || status=$?
	[[ $output != *"[build failed]"* ]] || status=2
	exit "$status"
	;;
*)
	exec "$REAL_GO" "$@"
	;;
esac
