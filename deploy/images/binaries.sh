#!/usr/bin/env bash
# Builds one static binary into a directory.
#
# usage: [GO_TAGS=tag] deploy/images/binaries.sh DIRECTORY controld|node
. "$(dirname "$0")/../lib.sh"

directory=$1
version=$(git describe --always --dirty --tags 2>/dev/null || echo unknown)
work=$(mktemp -d)
clean() { rm -rf "$work"; }
finally

case ${2:-} in
controld) binary=controld package=./cmd/controld link="-s -w -X main.version=$version" ;;
node) binary=controld-node package=./cmd/node link="-s -w" ;;
*) die "usage: $0 DIRECTORY controld|node" ;;
esac

# One of two builds at once writes a binary that the other puts into an image.
mkdir -p "$directory"
exec 9>"$directory/.lock"
flock 9
before=$(sha256sum "$directory/$binary" 2>/dev/null || true)
CGO_ENABLED=0 await go build "${go_flags[@]}" -tags="${GO_TAGS:-}" -ldflags="$link" -o "$directory/$binary" "$package" 2>"$work/log" || {
	cat "$work/log" >&2
	die "$directory/$binary could not be built."
}
# On a busy machine it takes a while to see that there is nothing to build.
if [ $SECONDS -ge 5 ] && [ "$before" != "$(sha256sum "$directory/$binary")" ]; then
	say "built $directory/$binary in $SECONDS s"
fi
