#!/usr/bin/env bash
# A session with nodes on this machine: commands that run now, and one for a
# node that is away. Everything is in a temporary folder and gone at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
muster=$PWD/bin/muster
folder=$(mktemp -d)
export HOME=$folder XDG_CONFIG_HOME=$folder/config XDG_STATE_HOME=$folder/state XDG_RUNTIME_DIR=$folder/run NO_COLOR=1
mkdir -m 700 -p "$XDG_RUNTIME_DIR"

"$muster" dev >"$folder/dev.log" 2>&1 &
dev=$!
finish() {
	kill "$dev" 2>/dev/null || true
	wait "$dev" 2>/dev/null || true
	rm -rf "$folder"
}
trap finish EXIT

# show prints a command as it would be typed, and what it says. Some of the
# commands below end with another status than 0, which is part of the session.
show() {
	printf '$ muster'
	printf ' %s' "$@"
	printf '\n'
	"$muster" "$@" </dev/null || printf '(exit status %d)\n' "$?"
	printf '\n'
}

for _ in $(seq 100); do
	[ "$("$muster" node ls -o jsonl 2>/dev/null | grep -c '"online":true')" -ge 2 ] && break
	kill -0 "$dev" 2>/dev/null || { cat "$folder/dev.log"; exit 1; }
	sleep 0.2
done

show node ls
show run -t all -- uptime
