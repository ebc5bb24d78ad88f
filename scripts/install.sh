#!/bin/bash
# Installs programs that were built before (make build) below DESTDIR: scripts/install.sh FOLDER-WITH-PROGRAMS
# PREFIX (/usr/local), SYSCONFDIR (/etc) and UNITDIR (PREFIX/lib/systemd/system) say where. Nothing is enabled, no configuration is replaced.
set -euo pipefail

from=${1:?the folder with the programs}
here=$(cd "$(dirname "$0")/.." && pwd)
prefix=${PREFIX:-/usr/local}
bin=$prefix/bin
share=$prefix/share
units=${UNITDIR:-$prefix/lib/systemd/system}
sysconf=${SYSCONFDIR:-/etc}
root=${DESTDIR:-}

for program in attest verifier supervisor; do
    if [ ! -x "$from/$program" ]; then
        echo "error: $from/$program is missing" >&2
        echo "hint: make build" >&2
        exit 1
    fi
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

mkdir "$scratch/man"
for program in attest verifier supervisor; do
    install -D -m 0755 "$from/$program" "$root$bin/$program"
    "$from/$program" man "$scratch/man"
    "$from/$program" completions bash > "$scratch/bash"
    "$from/$program" completions zsh > "$scratch/zsh"
    "$from/$program" completions fish > "$scratch/fish"
    install -D -m 0644 "$scratch/bash" "$root$share/bash-completion/completions/$program"
    install -D -m 0644 "$scratch/zsh" "$root$share/zsh/site-functions/_$program"
    install -D -m 0644 "$scratch/fish" "$root$share/fish/vendor_completions.d/$program.fish"
done
for page in "$scratch"/man/*.1; do
    install -D -m 0644 "$page" "$root$share/man/man1/$(basename "$page")"
done

for unit in "$here"/packaging/systemd/*.service "$here"/packaging/systemd/*.socket; do
    sed "s|@BINDIR@|$bin|" "$unit" > "$scratch/unit"
    install -D -m 0644 "$scratch/unit" "$root$units/$(basename "$unit")"
done
install -D -m 0644 "$here/packaging/systemd/countersign-verifier.sysusers" "$root$prefix/lib/sysusers.d/countersign-verifier.conf"

for config in attest verifier; do
    "$from/$config" config > "$scratch/$config.toml"
    install -D -m 0644 "$scratch/$config.toml" "$root$share/doc/countersign/$config.toml.example"
done
"$from/supervisor" daemon --example > "$scratch/supervisor.toml"
install -D -m 0644 "$scratch/supervisor.toml" "$root$share/doc/countersign/supervisor.toml.example"
# The host's programs read this one; it holds no secret. The verifier's lies in its state folder (verifier init).
if [ ! -e "$root$sysconf/countersign/attest.toml" ]; then
    install -D -m 0644 "$scratch/attest.toml" "$root$sysconf/countersign/attest.toml"
fi
echo "installed into ${root}$prefix; next: attest enroll --token FILE, then systemctl enable --now countersign-attest"
