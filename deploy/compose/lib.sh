# shellcheck shell=bash disable=SC2034 # its variables are used by those who source it
# What the scripts of this directory share: a cluster's settings and names, and
# compose. To be sourced; it ends the script when the settings are wrong.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

say() { echo "$*" >&2; }
die() {
	say "$*"
	exit 1
}

# The settings that up.sh and compose need a value for. Of all others controld
# knows the default itself.
needed_settings=(
	CONTROLD_PORT_NODE1 CONTROLD_PORT_NODE2 CONTROLD_PORT_POOLER CONTROLD_PORT_REDIS CONTROLD_PORT_API
	CONTROLD_TAG CONTROLD_DOCKER_SOCKET
)

check_prefix() {
	local prefix=$1
	[ -n "$prefix" ] || return 0
	[[ $prefix =~ ^[a-z0-9][a-z0-9-]{0,39}$ ]] ||
		die "CONTROLD_PREFIX=$prefix: use at most 40 small letters, digits and hyphens, no hyphen first"
	# The label of the cluster without a prefix.
	[ "$prefix" != default ] || die "CONTROLD_PREFIX=default is reserved: choose another"
}

# known_settings prints NAME=default, one a line.
known_settings() { sed -n 's/^#\(CONTROLD_[A-Z0-9_]*=.*\)/\1/p' "$here/settings.example.env"; }

# load_settings reads the settings file, lets the environment win over it, and
# leaves what is empty unset, so that an empty value means the default.
load_settings() {
	declare -A default=()
	local name value line number=0
	while IFS='=' read -r name value; do default[$name]=$value; done < <(known_settings)

	if [ -e "$settings_file" ]; then
		while IFS= read -r line || [ -n "$line" ]; do
			number=$((number + 1))
			[[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
			[[ $line =~ ^([A-Z0-9_]+)=([^\"\'[:space:]]*)[[:space:]]*$ ]] ||
				die "$settings_file line $number: write NAME=value, without quotes or spaces"
			name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
			[ -n "${default[$name]+known}" ] ||
				die "$settings_file line $number: there is no setting $name; deploy/compose/settings.example.env lists them"
			[ -n "${!name:-}" ] || export "$name=$value"
		done <"$settings_file"
	fi

	for name in "${!default[@]}"; do
		[ -n "${!name:-}" ] || unset "$name"
	done
	case ${DOCKER_HOST:-} in
	unix://*) default[CONTROLD_DOCKER_SOCKET]=${DOCKER_HOST#unix://} ;;
	esac
	for name in "${needed_settings[@]}"; do
		export "$name=${!name:-${default[$name]}}"
	done
}

compose() {
	local command
	if docker compose version >/dev/null 2>&1; then
		command=(docker compose)
	else
		command=(docker-compose)
	fi
	"${command[@]}" -p "$project" -f "$here/docker-compose.yml" --project-directory "$here" "$@"
}

# is_ours tells whether the engine's object carries this cluster's label.
is_ours() { # container|volume|network, name
	local labels=.Labels
	[ "$1" != container ] || labels=.Config.Labels
	[ "$(docker "$1" inspect --format "{{index $labels \"controld.cluster\"}}" "$2" 2>/dev/null)" = "$cluster" ]
}

is_running() { [ "$(docker container inspect --format '{{.State.Running}}' "$1" 2>/dev/null)" = true ]; }

# published prints the port of this machine at which a container's port is
# reached: the one in use where there is one, else the one that is set.
published() { # service, port, the one that is set
	local address
	address=$(docker port "$prefix$1" "$2/tcp" 2>/dev/null | head -n 1) || true
	address=${address:-$3}
	echo "${address##*:}"
}

api_url() { echo "http://127.0.0.1:$(published controld 8088 "$CONTROLD_PORT_API")"; }

# answers tells whether controld answers a GET with 200.
answers() { curl -fs -o /dev/null -m 5 "$(api_url)$1"; } # path

# primary prints the name (without prefix) of the node that leads, if controld
# knows one.
primary() {
	local node
	for node in "${nodes[@]}"; do
		if answers "/nodes/$node/primary"; then
			echo "$node"
			return
		fi
	done
	return 1
}

prefix=${CONTROLD_PREFIX:-}
check_prefix "$prefix"
export CONTROLD_PREFIX=$prefix

cluster=${prefix:-default} # the value of the label controld.cluster
project=${prefix}controld  # unlike any other prefix's: compose changes nothing in these letters
network=${prefix}controld
nodes=(postgres_master postgres_slave)
services=("${nodes[@]}" pgbouncer pgbackrest redis controld)
volumes=(node1-data node2-data node1-order node2-order pgbouncer-config pgbackrest-control pgbackrest-repo redis-data controld-state)

settings_file=${CONTROLD_SETTINGS:-$root/.controld/settings${prefix:+-$prefix}.env}
load_settings

CONTROLD_SECRETS_DIR=${CONTROLD_SECRETS_DIR:-$root/.controld/secrets${prefix:+-$prefix}}
case $CONTROLD_SECRETS_DIR in /*) ;; *) CONTROLD_SECRETS_DIR=$root/$CONTROLD_SECRETS_DIR ;; esac
export CONTROLD_SECRETS_DIR
secrets=(
	role_app role_controld role_replicator role_rewind role_pooler
	redis_password backup_passphrase
	token_viewer token_operator token_admin
)
