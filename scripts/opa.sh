#!/usr/bin/env bash
# A real Open Policy Agent for the tests, built from Debian's own source packages (about seven minutes, 1.5 GB while it builds).
#
#   scripts/opa.sh path    prints the program's path when it was built before; status 1 otherwise
#   scripts/opa.sh build   builds it if it is not there, and prints its path
#
# It lies in the cache folder, keyed by the hash of what builds it below. For tests only: Debian's version is older than 1.21.3, which production needs.
set -euo pipefail
key=$(sed -n '/^mirror=/,$p' "$0" | sha256sum | cut -c1-16)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/countersign/opa/$key"
opa="$cache/opa"

case "${1:-}" in
path)
	[ -x "$opa" ] || exit 1
	echo "$opa"
	exit
	;;
build) ;;
*)
	echo "usage: scripts/opa.sh path|build" >&2
	exit 2
	;;
esac

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ -x "$opa" ]; then
	echo "$opa"
	exit
fi
command -v mmdebstrap >/dev/null || {
	echo "error: mmdebstrap is not installed" >&2
	echo "hint: apt-get install mmdebstrap" >&2
	exit 1
}

# The machine's own Debian mirror, as apt knows it.
mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -E '/debian/?$' | sort -u | head -n 1)
root="$cache/root"
rm -rf "$root"
trap 'rm -rf "$root"' EXIT

# trixie, with sid for OPA and what it is built from. Sid's mirror may be a dated snapshot: its dates are not checked, its signatures are.
mmdebstrap --variant=apt --mode=root --components=main --include=ca-certificates \
	--aptopt='Acquire::Check-Valid-Until "false"' \
	--setup-hook='mkdir -p "$1/etc/apt/preferences.d"; printf "Package: *\nPin: release n=sid\nPin-Priority: 100\n" > "$1/etc/apt/preferences.d/sid"' \
	trixie "$root" "deb $mirror trixie main" "deb $mirror sid main" >&2

cat >"$root/build.sh" <<'INNER'
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive HOME=/root
apt-get update -qq -o Acquire::Check-Valid-Until=false
apt-get install -y -qq --no-install-recommends golang-go/sid golang-github-open-policy-agent-opa-dev/sid || \
	apt-get install -y -qq --no-install-recommends -t sid golang-go golang-github-open-policy-agent-opa-dev
# Sid's tablewriter 1.x broke the interface that this OPA uses: trixie's goes in front of it.
mkdir -p /build/overlay /build/cache && cd /build
chmod 777 /build
apt-get download -qq golang-github-olekukonko-tablewriter-dev/trixie
dpkg-deb -x golang-github-olekukonko-tablewriter-dev_*.deb overlay
export GO111MODULE=off GOFLAGS= GOCACHE=/build/cache GOTOOLCHAIN=local CGO_ENABLED=0
export GOPATH=/build/overlay/usr/share/gocode:/usr/share/gocode
go build -p 2 -o /build/opa github.com/open-policy-agent/opa
INNER
cp --dereference /etc/resolv.conf "$root/etc/resolv.conf"
unshare --mount --propagation private bash -c '
	mount -t proc proc "$0/proc"
	mount --rbind /dev "$0/dev"
	exec chroot "$0" /bin/bash /build.sh' "$root" >&2
install -m 0755 "$root/build/opa" "$opa.new"
mv "$opa.new" "$opa"
echo "$opa"
