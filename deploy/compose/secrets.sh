#!/usr/bin/env bash
# Makes the secrets that are missing, one file each, and changes none that is
# there: the database keeps the passwords that it was made with.
. "$(dirname "$0")/lib.sh"
umask 077

# random prints 32 letters and digits: 190 bits, and nothing that a URL, a
# configuration file or a shell would have to quote.
random() {
	local text=
	while [ ${#text} -lt 32 ]; do
		text+=$(head -c 64 /dev/urandom | LC_ALL=C tr -dc 'A-Za-z0-9')
	done
	printf %s "${text:0:32}"
}

# lost tells whether the cluster has data but no secret at all. New ones would
# not open it.
lost() {
	local secret
	for secret in "${secrets[@]}"; do
		[ ! -e "$CONTROLD_SECRETS_DIR/$secret" ] || return 1
	done
	is_ours volume "${prefix}node1-data" && is_ours volume "${prefix}controld-state"
}

if lost; then
	die "The volumes of this cluster exist, but $CONTROLD_SECRETS_DIR holds none of their secrets.
Put the directory back, name it with CONTROLD_SECRETS_DIR, or remove the cluster with its data: make destroy"
fi

mkdir -p "$CONTROLD_SECRETS_DIR"
chmod 0700 "$CONTROLD_SECRETS_DIR"
for secret in "${secrets[@]}"; do
	file=$CONTROLD_SECRETS_DIR/$secret
	[ ! -s "$file" ] || continue
	temp=$(mktemp "$CONTROLD_SECRETS_DIR/.new.XXXXXX")
	random >"$temp"
	ln "$temp" "$file" 2>/dev/null || true # never over one that another run has made meanwhile
	rm -f "$temp"
	[ -s "$file" ] || die "$file is empty or cannot be written: remove it and try again"
done
