#!/usr/bin/env bash
# Checks licences, sources and duplicate crates with cargo-deny. The advisory database is not fetched: that needs the
# network at every run. cargo-deny itself is built once, outside the checkout.
set -euo pipefail
version=0.20.2
cache="${XDG_CACHE_HOME:-$HOME/.cache}/countersign/tools-cargo-deny-$version"
if [ ! -x "$cache/bin/cargo-deny" ]; then
	echo "deny: building cargo-deny $version once, into $cache"
	mkdir -p "$cache"
	(
		flock 9
		[ -x "$cache/bin/cargo-deny" ] || cargo install --quiet --locked --root "$cache" --version "$version" cargo-deny
	) 9>"$cache/lock"
fi
cargo fetch --quiet --locked # every target's crates, so that the check itself needs no network
exec "$cache/bin/cargo-deny" --offline --log-level error check --hide-inclusion-graph bans licenses sources
