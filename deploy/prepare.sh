#!/usr/bin/env bash
# Finds what this machine lacks for a target of the Makefile, and installs
# Debian's packages for it. What it cannot install it names, with what to do.
#
#     deploy/prepare.sh check TARGET       prints the packages to install, on one line
#     deploy/prepare.sh install TARGET PACKAGE...
#
# It installs as root, or with sudo where that asks for no password. With
# INSTALL=no it only names the command.
. "$(dirname "$0")/lib.sh"

root=$(cd "$(dirname "$0")/.." && pwd)
lock_seconds=${APT_LOCK_SECONDS:-120} # for another apt-get to end
certificates=/etc/ssl/certs/ca-certificates.crt

# needs prints what a target needs, a command or a file, each with the package
# that brings it.
needs() { # target
	echo "$certificates ca-certificates" # for go's downloads
	case $1 in
	lint) echo shellcheck shellcheck ;;
	verify) echo git git ;;
	images) needs_base ;;
	up)
		needs_base
		needs_cluster
		;;
	test)
		needs_base
		needs_cluster
		echo gcc gcc # for the race detector
		echo /usr/include/stdlib.h libc6-dev
		echo ip iproute2
		;;
	esac
}

needs_cluster() {
	echo curl curl
	docker compose version >/dev/null 2>&1 || echo docker-compose docker-compose
}

# needs_base: mmdebstrap makes the images' bases where no registry answers.
needs_base() {
	[ "$bases" = unmade ] || return 0
	echo mmdebstrap mmdebstrap
	echo "$keyring" debian-archive-keyring
}

# find_bases tells in $bases whether the images' bases are made, would be pulled
# from a registry, or are unmade. No registry is asked where mmdebstrap is there and
# may be used. It gets more time where nothing else helps.
bases=unmade
find_bases() {
	local suite patience=2
	for suite in "${suites[@]}"; do
		docker image inspect "$base:$suite" >/dev/null 2>&1 || break
		[ "$suite" != "${suites[-1]}" ] || bases=made
	done
	[ "$bases" = unmade ] || return 0
	if become_root && has mmdebstrap && has "$keyring"; then return 0; fi
	[ "${INSTALL:-}" != no ] && become_root || patience=20
	if "$root/deploy/images/base.sh" ask "$patience"; then bases=pulled; fi
}

has() { # command or file
	case $1 in
	/*) [ -e "$1" ] ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

# missing prints the packages that a target lacks, one a line.
missing() { # target
	local thing package
	while read -r thing package; do
		has "$thing" || echo "$package"
	done < <(needs "$1")
}

mended=yes
report() {
	mended=no
	say "- $1"
	shift
	local line
	for line in "$@"; do say "      $line"; done
}

check_go() {
	local wanted
	wanted=$(sed -n 's/^go //p' "$root/go.mod")
	if ! command -v go >/dev/null; then
		report "go is not installed (wanted: $wanted or newer):" \
			"curl -fsSLO https://go.dev/dl/go$wanted.linux-$(dpkg --print-architecture 2>/dev/null || echo amd64).tar.gz" \
			"sudo tar -C /usr/local -xzf go$wanted.linux-*.tar.gz && export PATH=\$PATH:/usr/local/go/bin"
	elif ! (cd "$root" && timeout 60 go list -m >/dev/null 2>&1); then
		report "$(go version) cannot build this module (wanted: $wanted or newer): https://go.dev/doc/install"
	fi
}

check_engine() {
	local answer
	if ! command -v docker >/dev/null; then
		report "docker is not installed:" "sudo apt-get install -y docker.io"
		return 1
	fi
	answer=$(timeout 20 docker version --format '{{.Server.Version}}' 2>&1) && return
	case $answer in
	*'permission denied'*)
		report "the Docker engine refuses this user:" "sudo usermod -aG docker $(id -un) && newgrp docker"
		;;
	*)
		report "the Docker engine does not answer (${answer##*$'\n'}):" "sudo systemctl start docker"
		;;
	esac
	return 1
}

# check_packages prints what is to be installed, or reports why that cannot be.
check_packages() { # target
	local packages sudo=sudo
	mapfile -t packages < <(missing "$1")
	[ ${#packages[@]} -gt 0 ] || return 0
	[ "$(id -u)" != 0 ] || sudo=
	local command="${sudo:+sudo }apt-get update && ${sudo:+sudo }apt-get install -y --no-install-recommends ${packages[*]}"
	if ! command -v apt-get >/dev/null; then
		report "this machine lacks what Debian has in ${packages[*]}, and has no apt-get: install it the way this system does"
	elif [ "${INSTALL:-}" = no ]; then
		report "missing, and not installed because of INSTALL=no:" "$command"
	elif ! become_root; then
		report "missing, and only root can install it (sudo asks for a password):" "$command"
	else
		echo "${packages[*]}"
	fi
}

# check_base reports bases that only root could make.
check_base() {
	local suite commands=()
	if [ "$bases" != unmade ] || become_root; then return 0; fi
	for suite in "${suites[@]}"; do commands+=("sudo deploy/images/base.sh $suite"); done
	report "no image registry answers, and without one only root can make the images' bases; once, after what is above:" "${commands[@]}"
}

check() { # target
	check_go
	case $1 in
	lint | verify) check_packages "$1" ;;
	*)
		if check_engine; then
			find_bases
			check_packages "$1"
			check_base
			[ "$1" != up ] || "$root/deploy/compose/check.sh" >&2 || mended=no
		fi
		;;
	esac
	[ "$mended" = yes ] || die "make $1 cannot start before this is mended."
}

# apt runs apt-get, and waits for another one that holds the locks. A signal to
# this script does not cut it in the middle: its packages would be left half
# installed.
apt() {
	local deadline=$((SECONDS + lock_seconds)) waits=
	while ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C timeout 900 \
		apt-get -q -y -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 "$@" >"$log" 2>&1 </dev/null; do
		grep -q 'Could not get lock\|Unable to lock' "$log" || return 1
		[ $SECONDS -lt $deadline ] || {
			cat "$log" >&2
			die "Another process has held apt's lock for $lock_seconds s. Run this again when it has ended."
		}
		[ -n "$waits" ] ||
			say "another process installs packages; waiting up to $lock_seconds s for it:" \
				"$(grep 'Could not get lock\|Unable to lock' "$log" | head -n 1)"
		waits=yes
		sleep 1
	done
}

# install installs packages in one call. Only where that fails it fetches the lists
# and tries again: the lists may lack a package, or name one that is gone.
install() { # target, packages...
	local target=$1 started=$SECONDS package left=()
	shift
	[ $# -gt 0 ] || return 0
	become_root || die "Only root can install $*."
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	trap 'exit 143' TERM HUP
	say "installing Debian's packages: $* (INSTALL=no would only name the command)"
	apt install --no-install-recommends "$@" || {
		apt update || say "apt-get update failed; trying with the lists that are there"
		apt install --no-install-recommends "$@"
	} || {
		cat "$log" >&2
		die "apt-get could not install $*; its output is above."
	}
	while read -r package; do
		if [[ " $* " == *" $package "* ]]; then left+=("$package"); fi
	done < <(missing "$target")
	[ ${#left[@]} = 0 ] || die "apt-get has installed ${left[*]}, but what is in there is still not found: is its folder in PATH?"
	say "installed in $((SECONDS - started)) s: $*"
}

usage="usage: $0 check|install images|up|test|lint|verify [PACKAGE...]"
case ${2:-} in
images | up | test | lint | verify) ;;
*) die "$usage" ;;
esac
case ${1:-} in
check) check "$2" ;;
install) install "${@:2}" ;;
*) die "$usage" ;;
esac
