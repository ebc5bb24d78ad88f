#!/usr/bin/env bash
# Installs the Debian/Ubuntu packages that are missing, and says which. Safe to repeat; does nothing when all are there.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

# Debian's own cargo, where it is installed, is too old to read this workspace, and does not say so.
needed=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' "$(dirname "$0")/../Cargo.toml")
found=$(${CARGO:-cargo} --version 2>/dev/null | awk '{ print $2 }') || found=
if [ -z "$found" ] || [ "$(printf '%s\n' "$needed" "$found" | sort -V | head -n 1)" != "$needed" ]; then
	echo "error: Rust $needed or later is needed; cargo is ${found:-not on the PATH}" >&2
	echo "hint: see https://rustup.rs; if it is installed: . \"\$HOME/.cargo/env\", or rustup update" >&2
	exit 1
fi

# package          why
packages=(
	gcc                # links the programs; builds SQLite
	libc6-dev          # what it links against: gcc only recommends it
	make               # this Makefile
	pkg-config         # finds the libraries below
	libssl-dev         # AES-XTS
	libtss2-dev        # the second TPM stack that checks the first
	openssl            # the demo's key pairs
	swtpm              # the TPM of developers
	swtpm-tools        # its local CA
	cryptsetup-bin     # LUKS2 headers
	gpgv               # PGP signatures of images to be protected
	gnupg              # makes them in tests
	squashfs-tools     # root file systems
	squashfuse         # mounts them without root
	fuse3              # FUSE
	bubblewrap         # the built-in runtime
	busybox-static     # the demo's workload
	siftool            # an independent reader of our images (tests)
	tpm2-tools         # an independent reader of our logs (tests)
	rpm                # packages to learn reference values from (tests)
	procps             # ps: the demo as an ordinary user leaves nothing running
)

missing=()
for package in "${packages[@]}"; do
	status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || echo missing)
	[ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
	echo "setup: installing ${missing[*]}"
	as_root=()
	if [ "$(id -u)" -ne 0 ]; then
		command -v sudo >/dev/null || {
			echo "error: ${missing[*]} are not installed, and installing them needs root" >&2
			echo "hint: as root, run: apt-get install ${missing[*]}" >&2
			exit 1
		}
		as_root=(sudo)
	fi
	"${as_root[@]}" apt-get update -qq
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
	echo "setup: all system packages are there"
fi

