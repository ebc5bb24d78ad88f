#!/usr/bin/env bash
# For `make test`: a real Open Policy Agent where one can be had, or the reason why the tests that need it are skipped. Never fails.
set -uo pipefail
cd "$(dirname "$0")"
opa=$(./opa.sh path)
if [ -n "$opa" ]; then
	echo "opa: $opa"
	exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "opa: skipped: building it needs root (sudo scripts/opa.sh build, with HOME or XDG_CACHE_HOME of this user)"
	exit 0
fi
command -v mmdebstrap >/dev/null || apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null 2>&1 || {
	echo "opa: skipped: mmdebstrap is not installed and cannot be"
	exit 0
}
echo "opa: building it once, about seven minutes"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if timeout 1800 ./opa.sh build >"$log" 2>&1; then
	echo "opa: $(tail -n 1 "$log")"
else
	echo "opa: skipped: it cannot be built here: $(tail -n 1 "$log")"
fi
