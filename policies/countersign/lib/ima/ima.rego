# METADATA
# title: IMA
# description: |
#   What the kernel measured while the host ran. Settings: `data.countersign.settings.ima.digests`, an object from `alg:hex` to names.
# scope: package
package countersign.lib.ima

import data.countersign.settings

# METADATA
# title: ima-list
# description: The host sent its IMA list, and it replays to PCR 10.
# custom:
#   check: ima-list
passed contains "ima-list" if {
	input.ima.entries > 0
	count(input.ima.files) > 0
}

# METADATA
# title: ima-whole
# description: The list starts at the first entry of this boot, so every entry was looked at.
# custom:
#   check: ima-whole
passed contains "ima-whole" if {
	input.ima.entries > 0
	input.ima.entries == count(input.ima.files)
}

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
# title: ima-files
# description: Every measured file has an accepted digest.
# custom:
#   check: ima-files
passed contains "ima-files" if {
	count(input.ima.files) > 0
	every file in input.ima.files {
		count(settings.ima.digests[file.digest]) > 0
	}
}

# METADATA
# title: ima-strong-hash
# description: Every entry holds a SHA-256 or stronger digest.
# custom:
#   check: ima-strong-hash
passed contains "ima-strong-hash" if {
	count(input.ima.files) > 0
	every file in input.ima.files {
		some prefix in ["sha256:", "sha384:", "sha512:"]
		startswith(file.digest, prefix)
	}
}

explanations contains {
	"id": "ima-list",
	"message": "the host sent no IMA list",
	"want": "the kernel's list of measured files",
	"hint": "check ima_log in the host's attest.toml, and boot with ima_policy=tcb",
}

explanations contains {
	"id": "ima-whole",
	"message": "the IMA list is not whole",
	"want": "every entry of this boot",
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
	"id": "ima-files",
	"message": "a file was measured whose digest is not accepted",
	"subject": file.path,
	"got": file.digest,
	"want": "a digest of settings.ima.digests",
} if {
	some file in input.ima.files
	count(names(file)) == 0
}

explanations contains {
	"id": "ima-strong-hash",
	"message": "a file was measured with a weak hash",
	"want": "SHA-256 or stronger",
	"hint": "boot with ima_hash=sha256",
}

names(file) := [name | some name in settings.ima.digests[file.digest]]
