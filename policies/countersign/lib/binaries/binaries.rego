# METADATA
# title: Our own programs
# description: |
#   `attest` and `supervisor` are appraised like any other executable, against the IMA reference sets. Settings:
#   `data.countersign.settings.binaries`, names of the sets that hold them.
# scope: package
package countersign.lib.binaries

import data.countersign.settings

# METADATA
# title: own-binaries
# description: |
#   The list was appraised with every set that the settings name; files were accepted, and none was unknown or denied: so no other program ran in
#   the place of ours. It does not prove that ours ran.
# custom:
#   check: own-binaries
passed contains "own-binaries" if {
	count(settings.binaries) > 0
	every name in settings.binaries {
		name in input.ima.appraisal.sets
	}
	input.ima.appraisal.unknown == 0
	input.ima.appraisal.denied == 0
	input.ima.appraisal.accepted + input.ima.appraisal.signed > 0
}

explanations contains {
	"id": "own-binaries",
	"message": "a program of ours may be another one: the reference sets were not used, or a file is unknown or denied",
	"got": sprintf("sets %s, %v accepted, %v unknown, %v denied", [concat(", ", appraisal.sets), appraisal.accepted, appraisal.unknown, appraisal.denied]),
	"want": sprintf("sets %s, nothing unknown or denied", [concat(", ", settings.binaries)]),
	"hint": "install the programs of this release on the host, and take them up in a reference set",
} if {
	appraisal := input.ima.appraisal
}

explanations contains {
	"id": "own-binaries",
	"message": "our programs were not appraised: there is no IMA list, or there are no reference sets",
	"want": "an IMA list that is appraised against the sets of settings.binaries",
} if {
	object.get(input, ["ima", "appraisal"], null) == null
}
