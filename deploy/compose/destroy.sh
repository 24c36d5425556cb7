#!/usr/bin/env bash
# Removes the cluster with its data and its secrets. Asks first, unless YES=1. The
# backups, and what reading them needs, stay unless BACKUPS=yes.
. "$(dirname "$0")/lib.sh"

labelled() { docker "$@" --filter "label=controld.cluster=$cluster"; }

mapfile -t containers < <(labelled ps -a --format '{{.Names}}')
kept=${prefix}pgbackrest-repo # the volume that stays
[ "${BACKUPS:-}" != yes ] || kept=
mapfile -t volumes < <(labelled volume ls --format '{{.Name}}' | grep -vxF -- "$kept")
mapfile -t networks < <(labelled network ls --format '{{.Name}}')

# recoverable prints from when to when the backups reach, if controld can say so.
recoverable() {
	local answer
	answer=$(printf 'Authorization: Bearer %s' "$(cat "$CONTROLD_SECRETS_DIR/token_viewer" 2>/dev/null)" |
		curl -s -m 5 -H @- "$(api_url)/backups?limit=1") || return 0
	sed -n 's/^ *"from": "\([^"]*\)".*/the database could be recovered from \1/p' <<<"$answer" | head -n 1
}

if [ "${YES:-}" != 1 ]; then
	say "This removes, with all data:"
	say "  containers: ${containers[*]}"
	say "  volumes:    ${volumes[*]}"
	say "  network:    ${networks[*]}"
	say "  secrets:    $CONTROLD_SECRETS_DIR"
	if [ -n "$kept" ]; then
		say "The backups stay: volume $kept and the secret backup_passphrase. (BACKUPS=yes removes them too.)"
	else
		window=$(recoverable)
		say "The backups go with it: ${window:-from when to when they reach is not known, for controld does not answer}."
	fi
	answer=
	read -r -p "Type yes to go on: " answer || true
	[ "$answer" = yes ] || die "Nothing was removed. (make destroy YES=1 does not ask.)"
fi

# controld first: it would act on the loss of the others.
docker rm -f "${prefix}controld" >/dev/null 2>&1 || true
for name in "${containers[@]}"; do
	[ "$name" = "${prefix}controld" ] || docker rm -f "$name" >/dev/null
done
[ ${#networks[@]} = 0 ] || docker network rm "${networks[@]}" >/dev/null
[ ${#volumes[@]} = 0 ] || docker volume rm "${volumes[@]}" >/dev/null

# Only what secrets.sh has made: the directory may be one of the user's own.
for secret in "${secrets[@]}"; do
	[ "$secret" != backup_passphrase ] || [ -z "$kept" ] || continue
	rm -f "$CONTROLD_SECRETS_DIR/$secret"
done
[ ! -d "$CONTROLD_SECRETS_DIR" ] || rmdir --ignore-fail-on-non-empty "$CONTROLD_SECRETS_DIR"
