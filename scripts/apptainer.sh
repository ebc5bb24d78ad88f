#!/usr/bin/env bash
# A real Apptainer for the tests: Debian sid's, in a small Debian root of its own (a few minutes, 400 MB).
#
#   scripts/apptainer.sh path    prints the path of a program that runs it when it was built before; status 1 otherwise
#   scripts/apptainer.sh build   builds it if it is not there, and prints the path
#
# It lies in the cache folder, keyed by this script's hash. The program printed is a wrapper: it gives Apptainer its own /usr and /etc and the
# machine's other folders, in a user namespace, and takes Apptainer's arguments. With COUNTERSIGN_ROOT_PROGRAM it runs another program there.
set -euo pipefail
key=$(sha256sum "$0" | cut -c1-16)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/countersign/apptainer/$key"
program="$cache/apptainer"

case "${1:-}" in
path) [ -x "$program" ] && echo "$program" ;;
build) ;;
*)
	echo "usage: scripts/apptainer.sh path|build" >&2
	exit 2
	;;
esac
[ "$1" = build ] || exit $?

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ -x "$program" ]; then
	echo "$program"
	exit
fi
for tool in mmdebstrap bwrap; do
	command -v "$tool" >/dev/null || {
		echo "error: $tool is not installed" >&2
		echo "hint: apt-get install mmdebstrap bubblewrap" >&2
		exit 1
	}
done

# The machine's own Debian mirror, as apt knows it.
mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -E '/debian/?$' | sort -u | head -n 1)
root="$cache/root"
rm -rf "$root"

# trixie, with sid for Apptainer alone. Sid's mirror may be a dated snapshot: its dates are not checked, its signatures are.
mmdebstrap --variant=apt --mode=root --components=main \
	--include=apptainer,gocryptfs,squashfs-tools,squashfuse,fuse3,fuse-overlayfs,ca-certificates,openssl \
	--aptopt='Acquire::Check-Valid-Until "false"' \
	--aptopt='APT::Install-Recommends "false"' \
	--setup-hook='mkdir -p "$1/etc/apt/preferences.d"
printf "Package: *\nPin: release n=sid\nPin-Priority: 100\n\nPackage: apptainer\nPin: release n=sid\nPin-Priority: 990\n" \
	> "$1/etc/apt/preferences.d/sid"' \
	--customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/usr/share/doc "$1"/usr/share/man' \
	trixie "$root" "deb $mirror trixie main" "deb $mirror sid main" >&2

# Places for the machine's own folders.
for folder in /*/; do
	mkdir -p "$root$folder"
done

cat >"$program.new" <<'WRAPPER'
#!/bin/bash
# The root is one mount: Apptainer finds its parts by its program's path, which the kernel tells from the mount's own root.
root="$(dirname "$(readlink -f "$0")")/root"
options=(--unshare-user --bind "$root" /)
for folder in /*; do
	case "$folder" in
	/usr | /etc | /var | /bin | /sbin | /lib* | /dev | /boot) ;;
	*) [ -L "$folder" ] || [ ! -d "$folder" ] || [ ! -d "$root$folder" ] || options+=(--bind "$folder" "$folder") ;;
	esac
done
options+=(--dev-bind /dev /dev --bind /var/tmp /var/tmp)
for file in passwd group hosts resolv.conf; do
	[ ! -f "/etc/$file" ] || options+=(--ro-bind "/etc/$file" "/etc/$file")
done
exec bwrap "${options[@]}" -- "${COUNTERSIGN_ROOT_PROGRAM:-/usr/bin/apptainer}" "$@"
WRAPPER
touch "$root/etc/hosts" "$root/etc/resolv.conf" "$root/etc/localtime"
chmod 0755 "$program.new"
mv "$program.new" "$program"
echo "$program"
