#!/usr/bin/env bash
# Removes the cluster with its data and its secrets. Asks first, unless YES=1.
. "$(dirname "$0")/lib.sh"

labelled() { docker "$@" --filter "label=controld.cluster=$cluster"; }

mapfile -t containers < <(labelled ps -a --format '{{.Names}}')
mapfile -t volumes < <(labelled volume ls --format '{{.Name}}')
mapfile -t networks < <(labelled network ls --format '{{.Name}}')

if [ "${YES:-}" != 1 ]; then
	say "This removes, with all data:"
	say "  containers: ${containers[*]}"
	say "  volumes:    ${volumes[*]}"
	say "  network:    ${networks[*]}"
	say "  secrets:    $CONTROLD_SECRETS_DIR"
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
for secret in "${secrets[@]}"; do rm -f "$CONTROLD_SECRETS_DIR/$secret"; done
[ ! -d "$CONTROLD_SECRETS_DIR" ] || rmdir --ignore-fail-on-non-empty "$CONTROLD_SECRETS_DIR"
