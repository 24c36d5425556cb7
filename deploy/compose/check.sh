#!/usr/bin/env bash
# Checks what `make up` needs and names, for all that is missing, the command
# that installs it or the setting that changes it.
. "$(dirname "$0")/lib.sh"

missing=0
report() {
	missing=1
	say "- $1"
	shift
	local line
	for line in "$@"; do say "      $line"; done
}

check_command() { # command, package
	command -v "$1" >/dev/null || report "$1 is not installed:" "sudo apt-get install -y $2"
}

check_go() {
	local wanted
	wanted=$(sed -n 's/^go //p' "$root/go.mod")
	if ! command -v go >/dev/null; then
		report "go is not installed (wanted: $wanted or newer):" \
			"curl -fsSLO https://go.dev/dl/go$wanted.linux-$(dpkg --print-architecture 2>/dev/null || echo amd64).tar.gz" \
			"sudo tar -C /usr/local -xzf go$wanted.linux-*.tar.gz && export PATH=\$PATH:/usr/local/go/bin"
	elif ! (cd "$root" && go list -m >/dev/null 2>&1); then
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

check_compose() {
	docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null ||
		report "neither docker compose nor docker-compose is installed:" "sudo apt-get install -y docker-compose"
}

# check_base only warns: a registry may answer.
check_base() {
	local suite
	for suite in bookworm trixie; do
		docker image inspect "controld/base:$suite" >/dev/null 2>&1 && continue
		command -v debootstrap >/dev/null ||
			say "note: the base image of $suite is not there yet, and debootstrap, which makes it where no registry answers, is not installed:
      sudo apt-get install -y debootstrap debian-archive-keyring"
		return
	done
}

# check_name finds a container, volume or network of somebody else's that has
# one of this cluster's names.
check_name() { # container|volume|network, name
	if ! exists "$1" "$2" || is_ours "$1" "$2"; then return; fi
	report "there is a $1 named $2 that is not part of this cluster:" \
		"docker $1 rm $2       # if nobody needs it" \
		"make up CONTROLD_PREFIX=mine-   # puts a prefix before every name of this cluster"
}

# holder prints who listens on a port of 127.0.0.1, or nothing.
holder() { # port
	local port=$1 name listening
	name=$(docker ps --filter "publish=$port" --format '{{.Names}}' | head -n 1)
	if [ -n "$name" ]; then
		echo "the container $name"
		return
	fi
	if command -v ss >/dev/null; then
		listening=$(ss -Hltnp "sport = :$port" | awk '$4 ~ /^(127\.|0\.0\.0\.0|\*|\[::\]|\[::ffff:127\.)/' | head -n 1)
		[ -n "$listening" ] || return 0
		name=$(sed -n 's/.*users:(("\([^"]*\)",pid=\([0-9]*\).*/\1 (pid \2)/p' <<<"$listening")
		echo "${name:-a process of another user}"
	elif (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
		echo "another process"
	fi
}

check_port() { # service, setting
	local setting=$2 port=${!2} taken
	if ! [[ $port =~ ^[1-9][0-9]{0,4}$ ]] || [ "$port" -gt 65535 ]; then
		report "$setting=$port is not a port"
		return
	fi
	is_ours container "$prefix$1" && is_running "$prefix$1" && return
	taken=$(holder "$port")
	[ -z "$taken" ] || report "port $port, wanted for $prefix$1, is taken by $taken; choose another:" \
		"make up $setting=$((port > 55535 ? port - 10000 : port + 10000))   # or set it in ${settings_file#"$root"/}"
}

check_go
check_command curl curl
if check_engine; then
	check_compose
	check_base
	for service in "${services[@]}"; do check_name container "$prefix$service"; done
	for volume in "${volumes[@]}"; do check_name volume "$prefix$volume"; done
	check_name network "$network"
	check_port postgres_master CONTROLD_PORT_NODE1
	check_port postgres_slave CONTROLD_PORT_NODE2
	check_port pgbouncer CONTROLD_PORT_POOLER
	check_port redis CONTROLD_PORT_REDIS
	check_port controld CONTROLD_PORT_API
fi
[ "$missing" = 0 ] || die "make up cannot start before this is mended."
