#!/usr/bin/env bash
# Builds one image, controld/IMAGE:TAG, from the binaries in a directory. Where
# its inputs have not changed it comes out of the engine's layer cache.
#
# usage: deploy/images/build.sh postgres|pgbouncer|pgbackrest|redis|controld BINARIES TAG
#        deploy/images/build.sh packages postgres|pgbouncer|pgbackrest
#            only the layers that need no binary: they can be made beside the binaries
. "$(dirname "$0")/../lib.sh"

usage="usage: $0 postgres|pgbouncer|pgbackrest|redis|controld BINARIES TAG, or packages postgres|pgbouncer|pgbackrest"
here=$(cd "$(dirname "$0")" && pwd)
if [ "${1:-}" = packages ]; then
	name=${2:-} binaries=
else
	[ $# = 3 ] || die "$usage"
	name=$1 binaries=$(cd "$2" && pwd)
fi
image=controld/$name:${3:-}

# What an image is made of: its base and, beside its Dockerfile, its context.
case $name in
postgres) suite=bookworm folder=$binaries files=(controld-node) ;;
pgbouncer | pgbackrest) suite=trixie folder=$binaries files=(controld-node) ;;
redis) suite=bookworm folder=$here/redis files=(entrypoint.sh) ;;
controld) suite=bookworm folder=$binaries files=(controld) ;;
*) die "$usage" ;;
esac

work=$(mktemp -d)
clean() { rm -rf "$work"; }
finally

# apt inside a build takes the way out that the host's own apt takes.
proxy_args=()
if command -v apt-config >/dev/null; then
	for scheme in http https; do
		proxy=$(apt-config dump --format '%v%n' "Acquire::$scheme::Proxy" | head -n 1)
		case $proxy in
		'' | DIRECT) continue ;;
		*//localhost[:/]* | *//127.*) proxy_args+=(--network host) ;;
		esac
		proxy_args+=(--build-arg "${scheme}_proxy=$proxy")
	done
fi

build() { # further arguments of docker build
	await docker build --build-arg "BASE=$base:$suite" "${proxy_args[@]}" "$@" - <"$work/context" >"$work/log" 2>&1 || {
		cat "$work/log" >&2
		die "controld/$name could not be built; the output of its build is above."
	}
}

# The context is made of the named files alone, with fixed owners and modes, so
# that nothing else can invalidate the cache or end up in an image.
context() { # what tar puts in beside the Dockerfile
	tar -cf "$work/context" --owner=0 --group=0 --mode=u=rwX,go=rX -C "$here/$name" Dockerfile "$@"
}

id() { docker image inspect --format '{{.Id}}' "$1" 2>/dev/null || true; }

if [ -z "$binaries" ]; then
	context
	build --target packages
	[ $SECONDS -lt 5 ] || say "built the packages of controld/$name in $SECONDS s"
	exit
fi

old=$(id "$image")
context -C "$folder" "${files[@]}"
build -t "$image"
[ "$old" != "$(id "$image")" ] || exit 0
say "built $image in $SECONDS s"
# The image that the tag pointed to goes, unless another tag or a container needs it.
# (docker rmi would remove an image's last tag too, whoever that belongs to.)
if [ "$(docker image inspect --format '{{len .RepoTags}}' "$old" 2>/dev/null)" = 0 ]; then
	docker rmi "$old" >/dev/null 2>&1 || true
fi
