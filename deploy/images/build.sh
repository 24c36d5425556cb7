#!/usr/bin/env bash
# Builds the images controld/*:TAG from the binaries in a directory. An image
# whose inputs have not changed comes out of the engine's layer cache.
#
# usage: deploy/images/build.sh BINARIES TAG
set -euo pipefail

binaries=$(cd "$1" && pwd)
tag=$2
here=$(cd "$(dirname "$0")" && pwd)
log=$(mktemp)
trap 'rm -f "$log"' EXIT

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

id() { docker image inspect --format '{{.Id}}' "$1" 2>/dev/null || true; }

# build makes one image. Its context is made of the named files alone, with
# fixed owners and modes, so that nothing else can invalidate the cache or end
# up in an image.
build() { # image, suite, folder, files...
	local image=controld/$1:$tag dockerfile=$here/$1 suite=$2 folder=$3 old
	shift 3
	old=$(id "$image")
	tar -c --owner=0 --group=0 --mode=u=rwX,go=rX -C "$dockerfile" Dockerfile -C "$folder" "$@" |
		docker build -t "$image" --build-arg "BASE=controld/base:$suite" "${proxy_args[@]}" - >"$log" 2>&1 || {
		cat "$log" >&2
		echo "$image could not be built" >&2
		exit 1
	}
	[ "$old" != "$(id "$image")" ] || return 0
	echo "built $image" >&2
	# What the tag pointed to goes, unless another tag or a container needs it.
	# (docker rmi would take an image's last tag with it, whoever that belongs to.)
	if [ "$(docker image inspect --format '{{len .RepoTags}}' "$old" 2>/dev/null)" = 0 ]; then
		docker rmi "$old" >/dev/null 2>&1 || true
	fi
}

docker version >/dev/null 2>&1 || {
	echo "The Docker engine does not answer; make check says more." >&2
	exit 1
}
"$here/base.sh" bookworm
"$here/base.sh" trixie
build postgres bookworm "$binaries" controld-node
build pgbouncer trixie "$binaries" controld-node
build redis bookworm "$here/redis" entrypoint.sh
build controld bookworm "$binaries" controld
