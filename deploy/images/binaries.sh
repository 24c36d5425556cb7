#!/usr/bin/env bash
# Builds the static binaries into a directory.
#
# usage: [GO_TAGS=tag] deploy/images/binaries.sh DIRECTORY
. "$(dirname "$0")/../lib.sh"

directory=$1
version=$(git describe --always --dirty --tags 2>/dev/null || echo unknown)
work=$(mktemp -d)
clean() { rm -rf "$work"; }
finally

build() { # binary, package, flags of the linker
	CGO_ENABLED=0 await go build -trimpath -buildvcs=false -tags="${GO_TAGS:-}" -ldflags="-s -w $3" \
		-o "$directory/$1" "$2" 2>"$work/log" || {
		cat "$work/log" >&2
		die "$directory/$1 could not be built."
	}
}

# One of two builds at once writes a binary that the other puts into an image.
mkdir -p "$directory"
exec 9>"$directory/.lock"
flock 9
build controld ./cmd/controld "-X main.version=$version"
build controld-node ./cmd/node ''
[ $SECONDS -lt 5 ] || say "built the binaries in $SECONDS s"
