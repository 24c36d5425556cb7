#!/usr/bin/env bash
# Prints what a shell needs to use the cluster, with its secrets, as lines to
# evaluate: eval "$(make -s env)"
. "$(dirname "$0")/lib.sh"

secret() { cat "$CONTROLD_SECRETS_DIR/$1"; }

# node_url prints the URL by which the application's role reaches a node.
node_url() { # node
	local port=$CONTROLD_PORT_NODE1
	[ "$1" = postgres_master ] || port=$CONTROLD_PORT_NODE2
	echo "postgresql://app:$(secret role_app)@127.0.0.1:$(published "$1" 5432 "$port")/imdb?sslmode=disable"
}

standby() {
	local node
	for node in "${nodes[@]}"; do
		if answers "/nodes/$node/replica"; then
			echo "$node"
			return
		fi
	done
	return 1
}

# print_role exports the URL of the node in a role. A shell must not keep the
# URL of a node that has left the role.
print_role() { # variable, node or nothing
	if [ -n "$2" ]; then
		echo "export $1=$(node_url "$2")"
	else
		echo "unset $1"
		say "$1: controld knows no such node now"
	fi
}

[ -r "$CONTROLD_SECRETS_DIR/token_admin" ] || die "$CONTROLD_SECRETS_DIR holds no secrets: run make up first"

# TLS is off. A client that only prefers it would dial twice.
pooler=127.0.0.1:$(published pgbouncer 6432 "$CONTROLD_PORT_POOLER")
echo "export CONTROLD_URL=$(api_url)"
echo "export CONTROLD_TOKEN=$(secret token_admin)"
echo "export DATABASE_URL=postgresql://app:$(secret role_app)@$pooler/imdb?sslmode=disable"
echo "export DATABASE_RO_URL=postgresql://app:$(secret role_app)@$pooler/imdb_ro?sslmode=disable"
print_role PRIMARY_URL "$(primary || true)"
print_role STANDBY_URL "$(standby || true)"
echo "export REDIS_URL=redis://:$(secret redis_password)@127.0.0.1:$(published redis 6379 "$CONTROLD_PORT_REDIS")/0"
