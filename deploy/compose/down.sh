#!/usr/bin/env bash
# Stops the cluster and keeps its data: controld first, so that it takes no
# stop for a failure, then the pooler, then the primary, which hands its last
# WAL to the standby, and the standby last.
. "$(dirname "$0")/lib.sh"

leader=$(primary) || leader=postgres_master
standbys=()
for node in "${nodes[@]}"; do
	[ "$node" = "$leader" ] || standbys+=("$node")
done

for service in controld pgbouncer "$leader" "${standbys[@]}" pgbackrest redis; do
	name=$prefix$service
	if is_ours container "$name" && is_running "$name"; then
		say "stopping $name"
		# The policy "always" would start it at the engine's next start.
		docker update --restart=no "$name" >/dev/null
		docker stop "$name" >/dev/null
	fi
done
