# METADATA
# title: Our own programs
# description: |
#   `attest` and `supervisor` are appraised like any other executable. Settings: `data.countersign.settings.binaries`, an object from path to
#   accepted digests (`alg:hex`).
# scope: package
package countersign.lib.binaries

import data.countersign.settings

# METADATA
# title: own-binaries
# description: Every path of the settings was measured, and only ever with an accepted digest.
# custom:
#   check: own-binaries
passed contains "own-binaries" if {
	count(settings.binaries) > 0
	every path, digests in settings.binaries {
		good(path, digests)
	}
}

good(path, digests) if {
	seen := {file.digest | some file in input.ima.files; file.path == path}
	count(seen) > 0
	every digest in seen {
		digest in digests
	}
}

explanations contains {
	"id": "own-binaries",
	"message": "a program of ours was not measured, or has an unknown digest",
	"subject": path,
	"got": seen,
	"want": concat(", ", digests),
	"hint": "install the programs of this release on the host",
} if {
	some path, digests in settings.binaries
	not good(path, digests)
	seen := concat(", ", {file.digest | some file in input.ima.files; file.path == path})
}
