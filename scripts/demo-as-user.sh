#!/usr/bin/env bash
# Runs the demo as an ordinary user who exists only for that. Usage: demo-as-user.sh BIN-DIR DEMO-DIR
# Root makes the user and removes it again; anybody else is an ordinary user already.
set -euo pipefail
bin=$1
if [ "$(id -u)" -ne 0 ]; then
	exec "$bin/demo" --bin-dir "$bin" --dir "$2"
fi
user=countersign-demo-$$
# The programs are copied to where that user may run them.
place=/tmp
if findmnt --noheadings --output OPTIONS --target "$place" | grep -qw noexec; then place=/var/tmp; fi
home=$(mktemp -d "$place/countersign-demo.XXXXXX")
cleanup() {
	pkill -KILL -u "$user" 2>/dev/null || : # nothing should be left; never keep it if something is
	userdel "$user" 2>/dev/null || :
	rm -rf "$home"
}
trap cleanup EXIT
useradd --system --no-create-home --home-dir "$home" --shell /bin/bash "$user"
mkdir "$home/bin"
install -m 0755 "$bin"/{attest,verifier,supervisor,tpm-sim,demo} "$home/bin/"
chown -R "$user" "$home"
cd "$home"
echo "demo as $user (uid $(id -u "$user"))"
setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups --no-new-privs \
	env -i HOME="$home" PATH="$PATH" XDG_RUNTIME_DIR="$home" "$home/bin/demo" --bin-dir "$home/bin" --dir "$home/demo"
# Ended ones that nobody has waited for yet (state Z) run no more.
left=$(ps -u "$user" -o pid=,stat=,args= | awk '$2 !~ /^Z/' || :)
if [ -n "$left" ]; then
	echo "error: the demo left processes running:" >&2
	echo "$left" >&2
	exit 1
fi
