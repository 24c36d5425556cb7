#!/usr/bin/env bash
# Checks that this cluster's names and ports are free and names, for each that
# is not, the command or the setting that changes it.
. "$(dirname "$0")/lib.sh"

refused=0
report() {
	refused=1
	say "- $1"
	shift
	local line
	for line in "$@"; do say "      $line"; done
}

# What the engine has, asked for once: each call of its client takes a while.
declare -A owner=() # by kind and name: the label, empty where it has none
declare -A publisher=() # by port of this machine
running=' '
read_engine() {
	local name label state ports port
	while IFS='|' read -r name label state ports; do
		owner[container $name]=$label
		[ "$state" != running ] || running+="$name "
		for port in $(grep -o ':[0-9]*->' <<<"$ports" | tr -d ':>-'); do publisher[$port]=$name; done
	done < <(docker ps -a --format '{{.Names}}|{{.Label "controld.cluster"}}|{{.State}}|{{.Ports}}')
	while IFS='|' read -r name label; do
		owner[volume $name]=$label
	done < <(docker volume ls --format '{{.Name}}|{{.Label "controld.cluster"}}')
	while IFS='|' read -r name label; do
		owner[network $name]=$label
	done < <(docker network ls --format '{{.Name}}|{{.Label "controld.cluster"}}')
}

# check_name finds a container, volume or network of somebody else's that has
# one of this cluster's names.
check_name() { # container|volume|network, name
	[ "${owner[$1 $2]-$cluster}" != "$cluster" ] || return 0
	report "there is a $1 named $2 that is not part of this cluster:" \
		"docker $1 rm $2       # if nobody needs it" \
		"make up CONTROLD_PREFIX=mine-   # puts a prefix before every name of this cluster"
}

# holder prints who listens on a port of 127.0.0.1, or nothing.
holder() { # port
	local port=$1 name listening
	if [ -n "${publisher[$port]-}" ]; then
		echo "the container ${publisher[$port]}"
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
	[[ $running != *" $prefix$1 "* ]] || return 0 # its own, or check_name has told
	taken=$(holder "$port")
	[ -z "$taken" ] || report "port $port, wanted for $prefix$1, is taken by $taken; choose another:" \
		"make up $setting=$((port > 55535 ? port - 10000 : port + 10000))   # or set it in ${settings_file#"$root"/}"
}

read_engine
for service in "${services[@]}"; do check_name container "$prefix$service"; done
for volume in "${volumes[@]}"; do check_name volume "$prefix$volume"; done
check_name network "$network"
check_port postgres_master CONTROLD_PORT_NODE1
check_port postgres_slave CONTROLD_PORT_NODE2
check_port pgbouncer CONTROLD_PORT_POOLER
check_port redis CONTROLD_PORT_REDIS
check_port controld CONTROLD_PORT_API
exit "$refused"
