#!/usr/bin/env bash
# Makes sure that the image controld/base:SUITE exists: what Debian calls
# SUITE-slim, pulled where a registry answers, else made with mmdebstrap from
# the mirror that this machine's own apt uses.
#
# It is made once. For the newest security updates remove it and build again:
#     docker rmi controld/base:bookworm controld/base:trixie; make images
#
# usage: deploy/images/base.sh bookworm|trixie
#        deploy/images/base.sh ask SECONDS     succeeds if a registry answers in that time
. "$(dirname "$0")/../lib.sh"

answer_seconds=2 # how long a registry may say nothing before mmdebstrap is begun
pull_seconds=120 # how long one that answers may take for an image of 30 MB
lock_seconds=900
default_mirror=http://deb.debian.org/debian
default_security=http://deb.debian.org/debian-security
apt_helper=/usr/lib/apt/apt-helper

suite=${1:-}

# apt_uris prints every repository that apt is configured for, once, without a
# slash at the end. apt itself reads its configuration, in both formats.
apt_uris() {
	command -v apt-get >/dev/null || return 0
	# shellcheck disable=SC2016 # apt's own placeholder
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
		while read -r uri; do
			case $uri in
			mirror+file:*) sed -n 's/[[:space:]].*//; /^http/p' "${uri#mirror+file:}" 2>/dev/null || true ;;
			http://* | https://*) echo "$uri" ;;
			esac
		done | sed 's,/*$,,' | awk '!seen[$0]++'
}

# fetch copies a URL to a file the way apt would, through apt's proxy.
fetch() {
	if [ -x "$apt_helper" ]; then
		"$apt_helper" -o Acquire::Retries=0 -o Acquire::http::Timeout=10 download-file "$1" "$2" >/dev/null 2>&1
	elif command -v wget >/dev/null; then
		wget -q -T 10 -t 1 -O "$2" "$1"
	else
		curl -fsSL -m 20 -o "$2" "$1"
	fi
}

# first_mirror prints the first of the repositories that carries a distribution
# with that label. The label matters: others publish a "bookworm" of their own.
first_mirror() { # distribution, label, uris...
	local dist=$1 label=$2 uri
	shift 2
	for uri in "$@"; do
		if fetch "$uri/dists/$dist/InRelease" "$work/InRelease" &&
			grep -qx "Label: $label" "$work/InRelease"; then
			echo "$uri"
			return 0
		fi
	done
	return 1
}

# apt_proxy prints the proxy that apt uses for a URL's scheme.
apt_proxy() {
	command -v apt-config >/dev/null || return 0
	local proxy
	proxy=$(apt-config dump --format '%v%n' "Acquire::${1%%:*}::Proxy" | head -n 1)
	[ "$proxy" = DIRECT ] || echo "$proxy"
}

# answers begins to pull Debian's image. The engine says so at once when it has
# found it; a registry that is silent for longer is not waited for.
answers() { # suite, seconds
	local started=$SECONDS
	: >"$work/pull" # it is read before what is begun here has opened it
	timeout "$pull_seconds" docker pull "debian:$1-slim" >"$work/pull" 2>&1 &
	child=$!
	until grep -q 'Pulling from' "$work/pull"; do
		if ! kill -0 "$child" 2>/dev/null || [ $((SECONDS - started)) -ge "$2" ]; then
			end_child
			return 1
		fi
		sleep 0.1
	done
}

pulled() {
	answers "$suite" "$answer_seconds" || return 1
	local status=0
	wait "$child" || status=$?
	child=
	if [ "$status" = 0 ]; then
		docker tag "debian:$suite-slim" "$image"
	else
		say "the registry answered, but the image could not be pulled: $(tail -n 1 "$work/pull")"
		return 1
	fi
}

need_mmdebstrap() {
	if command -v mmdebstrap >/dev/null && [ -e "$keyring" ]; then return 0; fi
	say "no registry answers, and mmdebstrap, which makes the base instead, is missing. Install it:"
	say "    sudo apt-get install -y --no-install-recommends mmdebstrap debian-archive-keyring"
	exit 1
}

# sources prints apt's sources of the image: the mirror found here, with updates
# and security where they can be had.
sources() { # mirror
	local mirror=$1 security
	echo "deb $mirror $suite main"
	if first_mirror "$suite-updates" Debian "$mirror" >/dev/null; then
		echo "deb $mirror $suite-updates main"
	fi
	if security=$(first_mirror "$suite-security" Debian-Security "${uris[@]}" "$default_security"); then
		echo "deb $security $suite-security main"
	else
		say "no mirror of $suite-security answers: the images go without security updates"
	fi
}

# apt_settings prints apt's settings of the image.
apt_settings() {
	echo 'Acquire::Languages "none";'
	echo 'Acquire::GzipIndexes "true";'
	# A mirror frozen at a date needs these in the image as on the host.
	if command -v apt-config >/dev/null; then
		apt-config dump --format '%F "%v";%n' Acquire::Check-Valid-Until Acquire::Check-Date | grep -v '""' || true
	fi
}

# configure_dpkg leaves out what Debian's own slim images leave out, in every
# package, and does not wait for the disk: an image that a crash cut off is made
# anew. It and slim are hooks of mmdebstrap, which run in sh.
configure_dpkg() { # root
	mkdir -p "$1/etc/dpkg/dpkg.cfg.d"
	cat >"$1/etc/dpkg/dpkg.cfg.d/slim" <<-'END'
		force-unsafe-io
		path-exclude /usr/share/doc/*
		path-include /usr/share/doc/*/copyright
		path-exclude /usr/share/man/*
		path-exclude /usr/share/info/*
		path-exclude /usr/share/locale/*
		path-exclude /usr/share/lintian/*
		path-exclude /usr/share/linda/*
	END
}

# slim removes documentation that mmdebstrap has unpacked by itself, without dpkg, and
# the files that it took from this machine.
slim() { # root
	local root=${1:?} part
	find "$root/usr/share/doc" -mindepth 2 ! -name copyright ! -type d -delete
	find "$root/usr/share/doc" -mindepth 1 -type d -empty -delete
	for part in man info locale lintian linda; do rm -rf "$root/usr/share/${part:?}"/*; done
	rm -rf "$root"/var/cache/debconf/*-old "$root/etc/hostname" "$root/etc/resolv.conf"
	find "$root/var/log" -type f -delete
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # no service starts while a package is installed
	chmod 755 "$root/usr/sbin/policy-rc.d"
}

# hook prints a function of this script as a hook of mmdebstrap.
hook() { # function
	# shellcheck disable=SC2016 # for the hook's shell
	printf 'set -eu\n%s\n%s "$1"\n' "$(declare -f "$1")" "$1"
}

clean() {
	[ -n "$work" ] || return 0
	# An interrupted mmdebstrap can leave something mounted, without namespaces.
	awk -v "work=$work/" 'index($2, work) == 1 { print $2 }' /proc/mounts | tac | xargs -r umount 2>/dev/null || true
	rm -rf --one-file-system "$work"
}

# apart runs a command in namespaces of its own, whose mounts and processes end
# with it. Not every container may make some.
apart() {
	local namespaces=(unshare --mount --pid --fork --kill-child)
	"${namespaces[@]}" true 2>/dev/null || namespaces=()
	await "${namespaces[@]}" "$@"
}

bootstrapped() {
	need_mmdebstrap
	mapfile -t uris < <(apt_uris)

	local mirror proxy options=()
	mirror=$(first_mirror "$suite" Debian "${uris[@]}" "$default_mirror") || {
		say "no Debian mirror has $suite; tried: ${uris[*]} $default_mirror"
		exit 1
	}
	case $mirror in https:*) options+=(--include=ca-certificates) ;; esac
	# Without it bookworm's apt would merge /usr with a program, and all of Perl.
	case $suite in bookworm) options+=(--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr) ;; esac
	proxy=$(apt_proxy "$mirror")
	[ -z "$proxy" ] || export http_proxy=$proxy https_proxy=$proxy

	say "no registry answers: mmdebstrap from $mirror"
	sources "$mirror" >"$work/sources"
	apt_settings >"$work/apt"
	# The archive goes by way of a file: the engine takes the end of a pipe for
	# the end of the archive, also where the pipe's writer was killed. Two steps of
	# mmdebstrap are skipped: the engine makes /dev itself, and mmdebstrap would
	# remove the policy-rc.d that slim has made.
	TMPDIR=$work apart mmdebstrap --mode=root --variant=minbase --format=tar --keyring="$keyring" \
		--aptopt="$work/apt" --setup-hook="$(hook configure_dpkg)" --customize-hook="$(hook slim)" \
		--skip=output/dev,chroot/policy-rc.d "${options[@]}" "$suite" "$work/root.tar" "$work/sources" >"$work/log" 2>&1 || {
		cat "$work/log" >&2
		say "mmdebstrap failed; its output is above"
		exit 1
	}
	await docker import --change 'CMD ["bash"]' "$work/root.tar" "$image" >/dev/null
}

# lock lets one of several that make the same base go first. The base's name is one
# for the whole engine, so the lock is the machine's and not the checkout's.
lock() {
	exec 9>>"/run/controld-base-$suite.lock"
	flock -n 9 || {
		say "another process makes it; waiting for that"
		flock -w "$lock_seconds" 9 || {
			say "another process has made it for $lock_seconds s: end that one"
			exit 1
		}
	}
}

work=
finally
case $suite in
ask)
	work=$(mktemp -d)
	answers "${suites[0]}" "$2"
	exit
	;;
bookworm | trixie) ;;
*)
	echo "usage: $0 bookworm|trixie" >&2
	exit 2
	;;
esac

image=$base:$suite
say() { echo "base $suite: $*" >&2; }
is_made() { docker image inspect "$image" >/dev/null 2>&1; }

if is_made; then exit; fi
started=$SECONDS
work=$(mktemp -d)
if ! pulled; then
	become_root || {
		say "no registry answers, and mmdebstrap, which makes the base instead, has to be root. Run it once:"
		say "    sudo $0 $suite"
		exit 1
	}
	if [ ${#as_root[@]} -gt 0 ]; then
		engine=${DOCKER_HOST:-$(docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null)}
		clean
		# In this session: sudo may know the password from here alone. It hands signals on.
		exec "${as_root[@]}" env "CONTROLD_BASE=$base" "DOCKER_HOST=$engine" "$0" "$suite"
	fi
	lock
	if is_made; then exit; fi
	rm -rf --one-file-system "$work" /var/tmp/controld-base-"$suite".* # of one that was killed; nobody else is here
	work=$(mktemp -d "/var/tmp/controld-base-$suite.XXXXXX")          # /tmp may be mounted nodev
	bootstrapped
fi
say "made in $((SECONDS - started)) s"
