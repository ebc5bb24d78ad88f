#!/bin/bash
# Fills a folder (default: tests/fuzz/corpus) with seeds made from the fixtures: one folder for each target.
set -eu
cd "$(dirname "$0")/.."
corpus=${1:-tests/fuzz/corpus}
for target in tests/fuzz/fuzz_targets/*.rs; do
	name=$(basename "$target" .rs)
	mkdir -p "$corpus/$name"
	cp "tests/fuzz/regressions/$name"/* "$corpus/$name/"
done

for folder in fixtures/*/; do
	name=$(basename "$folder")
	seed() { # FILE TARGET
		if [ -f "$folder/$1" ]; then cp "$folder/$1" "$corpus/$2/$name-$1"; fi
	}
	seed binary_bios_measurements eventlog
	seed tpm2-measure.log systemd_log
	seed PCRS.json pcrs_json
	for key in ecc rsa; do
		seed "quote_$key.msg" attest
		seed "quote_$key.sig" signature
		seed "ak_$key.tpmt" public
	done
	seed ek.pub public
	for certificate in ek-rsa2048.crt ek-secp384r1.crt nv_0x1c00002.der nv_0x1c00016.der; do
		seed "$certificate" ek_certificate
	done
	if [ -f "$folder/binary_bios_measurements" ]; then
		# A TDX guest's log is padded with ones.
		{ cat "$folder/binary_bios_measurements"; head -c 64 /dev/zero | tr '\0' '\377'; } >"$corpus/ccel/$name-padded"
	fi
	if [ -f "$folder/ima_binary" ]; then
		head -c 4096 "$folder/ima_binary" >"$corpus/ima_binary/$name" # cut off in an entry
	fi
done

# Two boots behind the length of the first (16 bits, little-endian).
pair() {
	local size
	size=$(stat -c %s "$1")
	{ printf "\\x$(printf %02x $((size % 256)))\\x$(printf %02x $((size / 256)))"; cat "$1" "$2"; } >"$corpus/boot_diff/$3"
}
pair fixtures/nosb-shim-grub212/binary_bios_measurements fixtures/sb-ms-shim-grub212/binary_bios_measurements shim-grub
pair fixtures/nosb-systemdboot-uki/binary_bios_measurements fixtures/sb-snakeoil-systemdboot-uki/binary_bios_measurements uki

cp fixtures/modsig/*.p7s "$corpus/ima_modsig/"
cp fixtures/modsig/*.crt "$corpus/ima_certificate/"

# A canonical event log of one event, in each of its three forms.
digest=$(printf %064d 0)
record='{"recnum":0,"pcr":4,"digests":[{"hashAlg":"sha256","digest":"'$digest'"}],"content_type":"pcclient_std","content":{"event_type":"EV_SEPARATOR","event_data":"00000000"}}'
printf '[%s]' "$record" >"$corpus/cel/array"
printf '%s\n%s\n' "$record" "$record" >"$corpus/cel/lines"
printf '\x1e%s\n' "$record" >"$corpus/cel/sequence"

# The ACPI table CCEL, with a checksum that fits: a fuzzer would have to guess it.
printf 'CCEL\x38\0\0\0\x01\xceINTEL EDK2    \0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\x01\0\0\0\0\0\0\x80\xbe\x7f\0\0\0\0' >"$corpus/ccel/table"

# Secure Boot is on, as a variable.
guid='\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c'
printf "$guid"'\x0a\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0S\0e\0c\0u\0r\0e\0B\0o\0o\0t\0\x01' >"$corpus/variable/secure-boot"

# SHA-256, PCRs 0 to 7.
printf '\0\0\0\x01\0\x0b\x03\xff\0\0' >"$corpus/pcr_selection/sha256"

# One entry of each form.
printf '10 %040d ima-ng sha256:%064d /usr/bin/true\n10 %040d ima-sig sha256:%064d /usr/bin/false \n' 1 2 0 3 >"$corpus/ima_ascii/lines"
printf '\x03\x02\x04\x01\x02\x03\x04\0\x08\x30\x06\x02\x01\x01\x02\x01\x01' >"$corpus/ima_signature/v2"

cat >"$corpus/reference_set/small" <<END
{"type":"countersign.reference/v1","origins":[{"kind":"deb","name":"bash","version":"5","arch":"amd64",
"files":["sha256:$digest /usr/bin/bash","sha256:$digest"]}],"deny":[{"digest":"sha256:$digest","reason":"r"}],"exclude":["/var/.*"]}
END
printf 'sha256:%s /usr/bin/a\\x0a\\\\b' "$digest" >"$corpus/reference_set/line"
printf '{"payload":"e30=","payloadType":"application/vnd.countersign.reference+json","signatures":[{"keyid":"k","sig":"AA=="}]}' >"$corpus/dsse/envelope"

# A run log of one entry is made by the program; here is its shape.
printf '{"recnum":0,"pcr":13,"digests":[{"hashAlg":"sha256","digest":"%s"}],"content_type":"countersign","content":{}}\n' "$digest" >"$corpus/run_log/shape"

printf ': here\n\nid: 7\ndata: {"kind":"attest","reason":"x"}\n\n' >"$corpus/event_stream/stream"

cat >"$corpus/sif_binding/shape" <<END
{"version":1,"workload":"$digest","payload_root":"$digest","policy":"$digest","payload":{"salt":"$digest","data_block_size":4096,"hash_block_size":4096,
"data_block_count":2,"partition_length":8192,"cipher":"aes-xts-plain64","sector_size":512,"payload_offset":4096,"tree_root":"$digest"}}
END

# A challenge request (array of its fields) behind the number of its kind; evidence as far as its first fields.
printf '\x03\x84\x01\x50aaaaaaaaaaaaaaaa\0\xf6' >"$corpus/messages/challenge-request"
printf '\x8b\x01\x50aaaaaaaaaaaaaaaa\x58\x20aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x40\x40\x80\x40\xf6\xf6\xf6\xf6' >"$corpus/evidence/empty"
printf '\xed\xab\xee\xdb\x03\0' >"$corpus/learn_rpm/lead"
printf 'csjoin1.hQFraHR0cHM6Ly92OjE' >"$corpus/join_token/cut"

# Files in their own formats, where the programs that make them are at hand.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/usr/bin" "$work/bundle"
echo data >"$work/root/usr/bin/file"
printf '{"roots":["countersign"],"rego_version":1}' >"$work/bundle/.manifest"
printf 'package countersign\n\nallow := false\n' >"$work/bundle/a.rego"
(cd "$work/bundle" && tar --owner=0 --group=0 --mtime=@0 -cf "$work/bundle.tar" .manifest a.rego && gzip -kn "$work/bundle.tar")
cp "$work/bundle.tar" "$work/bundle.tar.gz" "$corpus/policy_bundle/"
(cd "$work/root" && tar --owner=0 --group=0 --mtime=@0 -czf "$work/data.tar.gz" ./usr)
printf 'Package: a\nVersion: 1\nArchitecture: amd64\n' >"$work/control"
(cd "$work" && tar --owner=0 --group=0 --mtime=@0 -czf control.tar.gz ./control && printf '2.0\n' >debian-binary)
if command -v ar >/dev/null; then (cd "$work" && ar rcD small.deb debian-binary control.tar.gz data.tar.gz) && cp "$work/small.deb" "$corpus/learn_deb/"; fi
entry() { # NAME MODE CONTENTS, as cpio -H newc writes it
	local name=$1 header
	header=$(printf '070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x' 1 "$2" 0 0 1 0 ${#3} 0 0 0 0 $((${#name} + 1)) 0)
	printf '%s%s\0' "$header" "$name"
	head -c $(((4 - (111 + ${#name}) % 4) % 4)) /dev/zero
	printf '%s' "$3"
	head -c $(((4 - ${#3} % 4) % 4)) /dev/zero
}
{ entry usr/bin/file 0x81a4 data; entry TRAILER!!! 0 ''; } >"$corpus/learn_initrd/newc"
if command -v siftool >/dev/null; then
	siftool new "$work/small.sif" >/dev/null
	siftool add --datatype 4 --parttype 2 --partfs 1 --partarch 2 --groupid 1 "$work/small.sif" "$work/bundle.tar" >/dev/null
	cp "$work/small.sif" "$corpus/sif/"
	cp "$work/small.sif" "$corpus/learn_sif/"
fi
