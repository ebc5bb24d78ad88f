#!/bin/bash
# Fills tests/fuzz/corpus with seeds made from the fixtures: one folder for each target.
set -eu
cd "$(dirname "$0")/.."
corpus=tests/fuzz/corpus
mkdir -p "$corpus"/{eventlog,cel,systemd_log,ccel,boot_diff}

for folder in fixtures/*/; do
    name=$(basename "$folder")
    if [ -f "$folder/binary_bios_measurements" ]; then
        cp "$folder/binary_bios_measurements" "$corpus/eventlog/$name"
        # A TDX guest's log is padded with ones.
        { cat "$folder/binary_bios_measurements"; head -c 64 /dev/zero | tr '\0' '\377'; } > "$corpus/ccel/$name-padded"
    fi
    if [ -f "$folder/tpm2-measure.log" ]; then
        cp "$folder/tpm2-measure.log" "$corpus/systemd_log/$name"
    fi
done

# Two boots behind the length of the first (16 bits, little-endian).
pair() {
    local size
    size=$(stat -c %s "$1")
    { printf "\\x$(printf %02x $((size % 256)))\\x$(printf %02x $((size / 256)))"; cat "$1" "$2"; } > "$corpus/boot_diff/$3"
}
pair fixtures/nosb-shim-grub212/binary_bios_measurements fixtures/sb-ms-shim-grub212/binary_bios_measurements shim-grub
pair fixtures/nosb-systemdboot-uki/binary_bios_measurements fixtures/sb-snakeoil-systemdboot-uki/binary_bios_measurements uki

# A canonical event log of one event, in each of its three forms.
digest=$(printf %064d 0)
record='{"recnum":0,"pcr":4,"digests":[{"hashAlg":"sha256","digest":"'$digest'"}],"content_type":"pcclient_std","content":{"event_type":"EV_SEPARATOR","event_data":"00000000"}}'
printf '[%s]' "$record" > "$corpus/cel/array"
printf '%s\n%s\n' "$record" "$record" > "$corpus/cel/lines"
printf '\x1e%s\n' "$record" > "$corpus/cel/sequence"

# The ACPI table CCEL, with a checksum that fits: a fuzzer would have to guess it.
printf 'CCEL\x38\0\0\0\x01\xceINTEL EDK2    \0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\x01\0\0\0\0\0\0\x80\xbe\x7f\0\0\0\0' > "$corpus/ccel/table"
