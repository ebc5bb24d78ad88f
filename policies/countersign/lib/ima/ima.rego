# METADATA
# title: IMA
# description: |
#   What the kernel measured while the host ran, against the verifier's IMA reference sets (`verifier reference add NAME --file SET`). The counts are over every entry
#   of this boot, also over those that came with earlier evidence.
# scope: package
package countersign.lib.ima

# METADATA
# title: ima-list
# description: The host sent its IMA list, and it replays to PCR 10.
# custom:
#   check: ima-list
passed contains "ima-list" if input.ima.entries > 0

# METADATA
# title: ima-violations
# description: No file changed while it was measured.
# custom:
#   check: ima-violations
passed contains "ima-violations" if {
	input.ima.entries > 0
	input.ima.violations == 0
}

# METADATA
# title: ima-aggregate
# description: IMA's first entry is the hash of the quoted boot PCRs, so list and boot belong together.
# custom:
#   check: ima-aggregate
passed contains "ima-aggregate" if input.ima.boot_aggregate == true

# METADATA
# title: ima-kexec
# description: No other kernel was started by kexec, which no boot log shows.
# custom:
#   check: ima-kexec
passed contains "ima-kexec" if {
	input.ima.entries > 0
	input.ima.kexecs == 0
}

# METADATA
# title: ima-files
# description: There are reference sets, and they accept every measured file; no denied digest was measured.
# custom:
#   check: ima-files
passed contains "ima-files" if {
	input.ima.entries > 0
	count(input.ima.appraisal.sets) > 0
	input.ima.appraisal.unknown == 0
	input.ima.appraisal.denied == 0
}

# METADATA
# title: ima-strong-hash
# description: At least one quoted bank holds hashes of its own, SHA-256 or longer, over the list.
# custom:
#   check: ima-strong-hash
passed contains "ima-strong-hash" if {
	input.ima.entries > 0
	input.ima.strong == true
}

explanations contains {
	"id": "ima-list",
	"message": "the host sent no IMA list",
	"want": "the kernel's list of measured files",
	"hint": "check ima_log in the host's attest.toml, and boot with ima_policy=tcb",
}

explanations contains {
	"id": "ima-violations",
	"message": "a file changed while it was being measured",
	"got": sprintf("%v violations", [input.ima.violations]),
	"want": "none",
	"hint": "find the writer of the file, then reboot",
}

explanations contains {
	"id": "ima-aggregate",
	"message": "the IMA list is not known to belong to this boot",
	"subject": "boot_aggregate (entry 0)",
	"want": "the hash of the quoted PCRs 0 to 9",
}

explanations contains {
	"id": "ima-kexec",
	"message": "another kernel was started without a reboot",
	"got": sprintf("%v kexecs", [input.ima.kexecs]),
	"want": "none",
	"hint": "reboot the host",
}

explanations contains {
	"id": "ima-files",
	"message": "the measured files were not appraised: there are no IMA reference sets",
	"want": "at least one IMA reference set",
	"hint": "verifier reference add NAME --file SET",
} if {
	object.get(input, ["ima", "appraisal"], null) == null
}

explanations contains {
	"id": "ima-files",
	"message": "a file was measured that the reference sets do not accept",
	"subject": file.path,
	"got": sprintf("%s: %s", [file.digest, file.reason]),
	"want": "a file of the reference sets",
} if {
	some file in rejected
}

rejected contains file if some file in input.ima.appraisal.unknown_files

rejected contains file if some file in input.ima.appraisal.denied_files

explanations contains {
	"id": "ima-strong-hash",
	"message": "the list is measured with SHA-1 only",
	"want": "a quoted bank with SHA-256 hashes or longer of its own",
	"hint": "quote the SHA-256 bank, and run a kernel that extends it (Linux 5.8 or later)",
}
