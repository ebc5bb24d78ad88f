#!/usr/bin/env bash
# Fuzzes one parser after the other with cargo-fuzz, from seeds made of the fixtures. A finding is kept in tests/fuzz/regressions/TARGET, where
# `cargo test` runs it from then on, and ends the script with an error once all targets had their time.
#
#   FUZZ_SECONDS   time for each target (600)
#   FUZZ_TARGETS   targets, separated by spaces (all)
#
# No sanitizer: the code is safe Rust, so panics, overflows, time and memory are what there is to find. That also lets it build with the stable compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.13.1
cache="${XDG_CACHE_HOME:-$HOME/.cache}/countersign/tools-cargo-fuzz-$version"
if [ ! -x "$cache/bin/cargo-fuzz" ]; then
	echo "fuzz: building cargo-fuzz $version once, into $cache"
	mkdir -p "$cache"
	(
		flock 9
		[ -x "$cache/bin/cargo-fuzz" ] || cargo install --quiet --locked --root "$cache" --version "$version" cargo-fuzz
	) 9>"$cache/lock"
fi
export PATH="$cache/bin:$PATH" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/fuzz"
# cargo-fuzz passes flags that only exist in nightly compilers, or in stable ones that are told to have them.
toolchain=()
if rustup toolchain list 2>/dev/null | grep -q '^nightly'; then
	toolchain=(+nightly)
else
	export RUSTC_BOOTSTRAP=1
fi
seconds=${FUZZ_SECONDS:-600}
read -ra targets <<<"${FUZZ_TARGETS:-$(cd tests/fuzz/fuzz_targets && printf '%s ' *.rs | sed 's/\.rs//g')}"
scripts/fuzz-seeds.sh
# What is fuzzed is what is shipped: the crates of the workspace's own lock file, to which cargo adds the fuzzer's.
cp Cargo.lock tests/fuzz/Cargo.lock
fuzz() { cargo "${toolchain[@]}" fuzz "$@"; }
if ! fuzz build --sanitizer none --fuzz-dir tests/fuzz; then
	echo "fuzz: the targets cannot be built here; libFuzzer needs a C++ compiler (apt-get install g++)" >&2
	exit 1
fi
found=()
for target in "${targets[@]}"; do
	echo "fuzz: $target, $seconds s"
	log=$(mktemp)
	before=$(ls "tests/fuzz/artifacts/$target" 2>/dev/null || true)
	if fuzz run --sanitizer none --fuzz-dir tests/fuzz "$target" -- -max_total_time="$seconds" -timeout=10 \
		-rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 >"$log" 2>&1; then
		grep -E 'stat::number_of_executed_units|stat::peak_rss_mb' "$log"
	else
		tail -n 40 "$log" >&2
		found+=("$target")
		# A new artifact becomes a regression file under its own name (crash-SHA1, timeout-SHA1, oom-SHA1).
		for artifact in "tests/fuzz/artifacts/$target"/*; do
			[ -f "$artifact" ] || continue
			grep -qxF "$(basename "$artifact")" <<<"$before" || cp -v "$artifact" "tests/fuzz/regressions/$target/"
		done
	fi
	rm -f "$log"
done
if [ ${#found[@]} -gt 0 ]; then
	echo "fuzz: findings in: ${found[*]}; fix them and keep the files in tests/fuzz/regressions" >&2
	exit 1
fi
echo "fuzz: nothing found"
