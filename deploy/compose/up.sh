#!/usr/bin/env bash
# Starts the cluster and waits until it is healthy. It never recreates or restarts
# a running node or pooler. When an image or a definition has changed, it makes
# anew only what does not run, and controld itself: nobody but the callers of
# controld's API notices that.
. "$(dirname "$0")/lib.sh"

wait_seconds=180

# read_engine asks once for what this cluster has: each call of the engine's client
# takes a tenth of a second of a processor.
declare -A state_of=() # a container's, by service: running, exited, ...
have_volumes='' have_networks='' # names, one a line
read_engine() {
	local name state
	while read -r name state; do state_of[${name#"$prefix"}]=$state; done < <(
		docker ps -a --filter "label=controld.cluster=$cluster" --format '{{.Names}} {{.State}}'
	)
	have_volumes=$(docker volume ls --format '{{.Name}}')
	have_networks=$(docker network ls --format '{{.Name}}')
}

is_up() { [[ ${state_of[$1]-} =~ ^(running|paused|restarting)$ ]]; } # service

make_resources() {
	local volume
	grep -qxF -- "$network" <<<"$have_networks" ||
		docker network create --label "controld.cluster=$cluster" \
			${CONTROLD_SUBNET:+--subnet "$CONTROLD_SUBNET"} "$network" >/dev/null
	for volume in "${volumes[@]}"; do
		grep -qxF -- "$prefix$volume" <<<"$have_volumes" ||
			docker volume create --label "controld.cluster=$cluster" "$prefix$volume" >/dev/null
	done
}

# read_hashes asks compose, in one slow call for all, what each service's
# definition comes to.
declare -A hash=() # by service
read_hashes() {
	local service value found
	found=$(compose config --hash '*')
	while read -r service value; do hash[$service]=$value; done <<<"$found"
}

# changed tells whether a container differs from what compose would make now.
changed() { # service
	local service=$1 image has
	image=$(docker image inspect --format '{{.Id}}' "controld/$(image_of "$service"):$CONTROLD_TAG") ||
		die "The image is missing: make images"
	has=$(docker container inspect --format '{{.Image}} {{index .Config.Labels "com.docker.compose.config-hash"}}' "$prefix$service")
	[ "$has" != "$image ${hash[$service]}" ]
}

image_of() {
	case $1 in
	postgres_*) echo postgres ;;
	*) echo "$1" ;;
	esac
}

# check_settings lets controld itself judge the settings, before the one that
# runs is stopped for them. A run by compose would take four times as long.
check_settings() {
	local found name settings=()
	if is_up controld && ! changed controld; then return; fi # it runs with them
	while read -r name; do settings+=(-e "$name"); done < <(
		sed -n 's/^ *- \(CONTROLD_[A-Z0-9_]*\)$/\1/p' "$here/docker-compose.yml"
	)
	found=$(
		docker run --rm --network none --label "controld.cluster=$cluster" "${settings[@]}" \
			-v "$CONTROLD_DOCKER_SOCKET:/var/run/docker.sock" -v "$CONTROLD_SECRETS_DIR:/secrets:ro" \
			-v "${prefix}controld-state:/var/lib/controld" "controld/controld:$CONTROLD_TAG" check --daemon 2>&1
	) || die "$found"$'\n'"controld would not start like this. Nothing was started or stopped."
}

# retire removes the containers that compose has to make anew.
retire() {
	local service name old
	for service in "${services[@]}"; do
		name=$prefix$service
		if [ -z "${state_of[$service]-}" ] || ! changed "$service"; then continue; fi
		if is_up "$service" && [ "$service" != controld ]; then
			say "note: $name was made with another image or other settings and keeps running as it is; make down && make up renews it"
			continue
		fi
		old=$(docker container inspect --format '{{.Image}}' "$name")
		docker stop "$name" >/dev/null # within its grace period, in which it ends or undoes an operation
		docker rm "$name" >/dev/null
		unset "state_of[$service]"
		# An image that no tag names any more has had its last use here.
		if [ "$(docker image inspect --format '{{len .RepoTags}}' "$old" 2>/dev/null)" = 0 ]; then
			docker rmi "$old" >/dev/null 2>&1 || true
		fi
	done
}

health= # what /health said last
state=  # ok, degraded, down, or nothing
ask_health() { # URL of the API
	health=$(curl -s -m 5 "$1/health") || health=
	state=$(sed -n 's/^  "status": "\([a-z]*\)".*/\1/p' <<<"$health")
}

# wait_until_healthy returns when all is well, or when clients can write and
# nothing is on the way that would mend the rest, such as a first standby's copy or
# the first backup, which controld tries again where it fails.
wait_until_healthy() {
	local deadline=$((SECONDS + wait_seconds)) patience=0 url
	url=$(api_url)
	say "waiting until the cluster is healthy"
	while [ $SECONDS -lt $deadline ]; do
		ask_health "$url"
		case $state in
		ok) return 0 ;;
		degraded)
			grep -qE '^  "operation": "|"reason": "no-(repository|backup)"' <<<"$health" && patience=0
			patience=$((patience + 1))
			[ $patience -le 10 ] || return 0
			;;
		esac
		sleep 1
	done
	[ "$state" = degraded ] # an operation that takes longer goes on by itself
}

explain_failure() {
	local service
	say "The cluster is not healthy after $wait_seconds s. GET /health said last:"
	say "${health:-(no answer)}"
	for service in "${services[@]}"; do
		say "--- docker logs $prefix$service, the last lines ---"
		docker logs --tail 20 "$prefix$service" >&2 2>&1 || true
	done
	exit 1
}

print_endpoints() {
	local more=${prefix:+CONTROLD_PREFIX=$prefix } degraded=
	[ "$state" = ok ] || degraded=", but something needs a person: build/controld status says what"
	cat <<END

The cluster is up${degraded:-}.

  API                 $(api_url)   (its pages: $(api_url)/docs)
  PgBouncer           127.0.0.1:$(published pgbouncer 6432 "$CONTROLD_PORT_POOLER")   databases imdb (primary) and imdb_ro (standby)
  ${prefix}postgres_master     127.0.0.1:$(published postgres_master 5432 "$CONTROLD_PORT_NODE1")
  ${prefix}postgres_slave      127.0.0.1:$(published postgres_slave 5432 "$CONTROLD_PORT_NODE2")
  Redis               127.0.0.1:$(published redis 6379 "$CONTROLD_PORT_REDIS")

Three commands to try:

  eval "\$(${more}make -s env)"      # addresses and passwords, for this shell
  build/controld status
  curl -X POST -H "Authorization: Bearer \$CONTROLD_TOKEN" \$CONTROLD_URL/failover
END
}

# keep_running gives back the restart policy that down.sh takes from the containers
# that the engine starts by itself. The nodes have none: only controld knows which
# of them may run.
keep_running() {
	local name policy
	while read -r name policy; do
		[ "$policy" = always ] || docker update --restart=always "${name#/}" >/dev/null
	done < <(docker container inspect --format '{{.Name}} {{.HostConfig.RestartPolicy.Name}}' "$prefix"{pgbouncer,pgbackrest,redis,controld})
}

# start has compose make and start what does not run.
start() {
	local service
	for service in "${services[@]}"; do
		is_up "$service" && continue
		compose up -d --no-recreate
		return
	done
}

# lock lets one of two that start the same cluster at once go first.
lock() {
	exec 9<"$CONTROLD_SECRETS_DIR" # which needs no file that somebody would have to remove
	flock -w 600 9 || die "Another make up of this cluster has run for 600 s: end that one."
}

"$here/secrets.sh"
lock
read_engine
make_resources
[ ${#state_of[@]} = 0 ] || read_hashes # there is nothing yet that could differ
check_settings
retire
start
keep_running
wait_until_healthy || explain_failure
print_endpoints
