#!/usr/bin/env bash
# Makes sure that the image controld/base:SUITE exists: what Debian calls
# SUITE-slim, pulled where a registry answers, else made with debootstrap from
# the mirror that this machine's own apt uses.
#
# It is made once. For the newest security updates remove it and build again:
#     docker rmi controld/base:bookworm controld/base:trixie; make images
#
# usage: deploy/images/base.sh bookworm|trixie
set -euo pipefail

pull_seconds=20
default_mirror=http://deb.debian.org/debian
default_security=http://deb.debian.org/debian-security
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
apt_helper=/usr/lib/apt/apt-helper

suite=${1:-}
case $suite in
bookworm | trixie) ;;
*)
	echo "usage: $0 bookworm|trixie" >&2
	exit 2
	;;
esac
image=controld/base:$suite

say() { echo "base $suite: $*" >&2; }

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

pulled() {
	timeout "$pull_seconds" docker pull -q "debian:$suite-slim" >/dev/null 2>&1 &&
		docker tag "debian:$suite-slim" "$image"
}

need_debootstrap() {
	if command -v debootstrap >/dev/null && [ -e "$keyring" ]; then
		return
	fi
	local install="apt-get install -y --no-install-recommends debootstrap debian-archive-keyring"
	if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ]; then
		say "installing debootstrap"
		apt-get update -q >&2 && $install >&2
		return
	fi
	say "no registry answered within $pull_seconds s, and debootstrap, which makes the base instead, is missing. Install it:"
	say "    sudo $install"
	exit 1
}

# slim leaves out what Debian's own slim images leave out, now and in every
# later package.
slim() { # root
	local root=$1
	cat >"$root/etc/dpkg/dpkg.cfg.d/slim" <<-'END'
		path-exclude /usr/share/doc/*
		path-include /usr/share/doc/*/copyright
		path-exclude /usr/share/man/*
		path-exclude /usr/share/info/*
		path-exclude /usr/share/locale/*
		path-exclude /usr/share/lintian/*
		path-exclude /usr/share/linda/*
	END
	find "$root/usr/share/doc" -mindepth 2 ! -name copyright ! -type d -delete
	find "$root/usr/share/doc" -mindepth 1 -type d -empty -delete
	rm -rf "$root"/usr/share/{man,info,locale,lintian,linda}/*
	rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old
	find "$root/var/log" -type f -delete
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # no service starts while a package is installed
	chmod 755 "$root/usr/sbin/policy-rc.d"
}

# sources writes apt's configuration of the image: the mirror found here, with
# updates and security where they can be had.
sources() { # root, mirror
	local root=$1 mirror=$2 security
	{
		echo "deb $mirror $suite main"
		if first_mirror "$suite-updates" Debian "$mirror" >/dev/null; then
			echo "deb $mirror $suite-updates main"
		fi
		if security=$(first_mirror "$suite-security" Debian-Security "${uris[@]}" "$default_security"); then
			echo "deb $security $suite-security main"
		else
			say "no mirror of $suite-security answers: the images go without security updates"
		fi
	} >"$root/etc/apt/sources.list"
	{
		echo 'Acquire::Languages "none";'
		echo 'Acquire::GzipIndexes "true";'
		# A mirror frozen at a date needs these in the image as on the host.
		if command -v apt-config >/dev/null; then
			apt-config dump --format '%F "%v";%n' Acquire::Check-Valid-Until Acquire::Check-Date | grep -v '""' || true
		fi
	} >"$root/etc/apt/apt.conf.d/90controld"
}

clean() {
	# An interrupted debootstrap can leave these mounted.
	umount "$work/root/proc" "$work/root/sys" 2>/dev/null || true
	rm -rf --one-file-system "$work"
}

bootstrapped() {
	need_debootstrap
	if [ "$(id -u)" != 0 ]; then
		say "no registry answered within $pull_seconds s, and debootstrap, which makes the base instead, has to be root. Run it once:"
		say "    sudo $0 $suite"
		exit 1
	fi
	work=$(mktemp -d /var/tmp/controld-base.XXXXXX) # /tmp may be mounted nodev
	trap clean EXIT
	mapfile -t uris < <(apt_uris)

	local mirror proxy include=()
	mirror=$(first_mirror "$suite" Debian "${uris[@]}" "$default_mirror") || {
		say "no Debian mirror has $suite; tried: ${uris[*]} $default_mirror"
		exit 1
	}
	case $mirror in https:*) include=(--include=ca-certificates) ;; esac
	proxy=$(apt_proxy "$mirror")
	[ -z "$proxy" ] || export http_proxy=$proxy https_proxy=$proxy

	say "no registry answered: debootstrap from $mirror"
	debootstrap --variant=minbase --keyring="$keyring" "${include[@]}" \
		"$suite" "$work/root" "$mirror" >"$work/log" 2>&1 || {
		tail -n 20 "$work/log" "$work/root/debootstrap/debootstrap.log" >&2 2>/dev/null
		say "debootstrap failed"
		exit 1
	}
	slim "$work/root"
	sources "$work/root" "$mirror"
	tar -C "$work/root" --numeric-owner --sort=name -c . |
		docker import --change 'CMD ["bash"]' - "$image" >/dev/null
}

if docker image inspect "$image" >/dev/null 2>&1; then
	exit 0
fi
started=$SECONDS
pulled || bootstrapped
say "made in $((SECONDS - started)) s"
