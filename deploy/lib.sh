# shellcheck shell=bash disable=SC2034 # its variables are used by those who source it
# What the scripts that prepare a machine and build images share. To be sourced.
set -euo pipefail

base=${CONTROLD_BASE:-controld/base} # of the images; a test of the building has a name of its own
suites=(bookworm trixie)
# How Go compiles what needs no race detector. Everybody uses the same flags, so that
# the compiled packages are shared. The linker leaves out of a binary what is for
# debuggers, so the compiler need not write it.
go_flags=(-trimpath -buildvcs=false -gcflags=all=-dwarf=false)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

say() { echo "$*" >&2; }
die() {
	say "$*"
	exit 1
}

# become_root sets in as_root what has to stand before a command that root must run.
# It fails where root cannot be had without a question.
become_root() {
	as_root=()
	[ "$(id -u)" != 0 ] || return 0
	[ "${INSTALL:-}" != no ] && command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
	as_root=(sudo -n)
}

# await runs a command so that a signal to this script ends the command at once, and
# its children with it. By itself bash would wait for the command's end first. Nothing
# of it survives this script, even where nobody can catch the signal.
await() {
	local status=0
	setpriv --pdeathsig KILL setsid "$@" <&0 &
	child=$!
	wait "$child" || status=$?
	child=
	return "$status"
}
child=

# finally has the script's function clean called at the end, whatever ends the script,
# and only after the child has ended.
finally() {
	trap 'end_child; clean' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
}
end_child() {
	[ -n "$child" ] || return 0
	kill -TERM -- "-$child" "$child" 2>/dev/null || true
	timeout 5 tail --pid="$child" -f /dev/null || true
	kill -KILL -- "-$child" 2>/dev/null || true
	wait "$child" 2>/dev/null || true
}
