# METADATA
# title: Boot chain
# description: What the host booted, against the verifier's reference values (data.countersign.reference).
# scope: package
package countersign.lib.boot_chain

import data.countersign.reference

# PCRs of which reference values exist.
referenced contains pcr if {
	some pcr, types in reference.accepted.sha256
	count(types) > 0
}

# METADATA
# title: reference-missing
# description: There are reference values at all.
# custom:
#   check: reference-missing
passed contains "reference-missing" if count(referenced) > 0

# METADATA
# title: boot-log
# description: The host sent the firmware's event log, and it replays to the quoted PCRs.
# custom:
#   check: boot-log
passed contains "boot-log" if count(input.boot.events) > 0

# METADATA
# title: sha256-bank
# description: PCRs of the SHA-256 bank were quoted, and every event has a SHA-256 digest.
# custom:
#   check: sha256-bank
passed contains "sha256-bank" if {
	count(input.pcrs.sha256) > 0
	count(input.boot.events) > 0
	every event in input.boot.events {
		is_string(event.digests.sha256)
	}
}

# METADATA
# title: exit-boot-services
# description: The operating system took over from the firmware (ExitBootServices returned with success, PCR 5).
# custom:
#   check: exit-boot-services
passed contains "exit-boot-services" if input.boot.exit_boot_services == true

# METADATA
# title: boot-chain
# description: |
#   Every event of a PCR that has reference values is among them (same PCR, event type and SHA-256 digest), and every such PCR was measured into.
# custom:
#   check: boot-chain
passed contains "boot-chain" if {
	count(referenced) > 0
	count(input.boot.events) > 0
	every event in input.boot.events {
		acceptable(event)
	}
	every pcr in referenced {
		covered(pcr)
	}
}

# METADATA
# title: pcr-complete
# description: |
#   In every PCR that has reference values, everything was measured that one set has there: nothing was left out. Other than boot-complete it may be
#   another set for each PCR, so firmware and kernel may be updated one by one.
# custom:
#   check: pcr-complete
passed contains "pcr-complete" if {
	count(referenced) > 0
	every pcr in referenced {
		pcr in complete
	}
}

# PCRs that hold everything that one set has there. One pass over the values, however many sets there are.
complete contains pair[0] if some pair in (owned - lacking)

# PCRs, each with a set that has something there.
owned contains [pcr, name] if {
	some pcr, types in reference.accepted.sha256
	some digests in types
	some names in digests
	some name in names
}

# Those of them of which something was not measured.
lacking contains [pcr, name] if {
	some pcr, types in reference.accepted.sha256
	some type, digests in types
	some digest, names in digests
	key := [pcr, type, digest]
	not key in measured
	some name in names
}

# METADATA
# title: boot-complete
# description: |
#   Everything of at least one set of reference values was measured: nothing that belongs to that boot was left out.
# custom:
#   check: boot-complete
passed contains "boot-complete" if count(sets - incomplete) > 0

sets contains value.name if {
	some value in reference.values
	value.bank == "sha256"
}

# Sets of which something was not measured.
incomplete contains value.name if {
	some value in reference.values
	value.bank == "sha256"
	key := [value.pcr, value.type, value.digest]
	not key in measured
}

measured contains key if {
	some event in input.boot.events
	digest := event.digests.sha256
	key := [event.pcr, event.type, digest]
}

covered(pcr) if {
	some event in input.boot.events
	event.pcr == pcr
}

acceptable(event) if {
	is_number(event.pcr)
	not_referenced(event.pcr)
}

acceptable(event) if count(reference.accepted.sha256[event.pcr][event.type][event.digests.sha256]) > 0

not_referenced(pcr) if count(referenced & {pcr}) == 0

explanations contains {
	"id": "reference-missing",
	"message": "there are no reference values: nothing that a host boots can be accepted",
	"want": "at least one set of reference values",
	"hint": "verifier reference add NAME --eventlog FILE",
}

explanations contains {
	"id": "boot-log",
	"message": "the host sent no boot log",
	"want": "the firmware's event log",
	"hint": "check event_log in the host's attest.toml",
}

explanations contains {
	"id": "sha256-bank",
	"message": "the boot is not measured into the SHA-256 bank",
	"want": "SHA-256 PCRs, and a SHA-256 digest in every event",
	"hint": "switch the SHA-256 bank on in the firmware's set-up",
}

explanations contains {
	"id": "exit-boot-services",
	"message": "the log does not show that the operating system took over from the firmware",
	"want": "event \"Exit Boot Services Returned with Success\" in PCR 5",
	"hint": "check that the log is the whole log of this boot",
}

explanations contains {
	"id": "pcr-complete",
	"message": "something that belongs to this boot was not measured",
	"subject": sprintf("PCR %d", [pcr]),
	"want": "everything that one set of reference values has in this PCR",
	"hint": "verifier reference add NAME --eventlog FILE, if this boot is meant to be accepted",
} if {
	some pcr in (referenced - complete)
}

explanations contains {
	"id": "boot-complete",
	"message": "something that belongs to this boot was not measured",
	"want": "every value of one set of reference values",
	"hint": "verifier reference add NAME --eventlog FILE, if this boot is meant to be accepted",
}

explanations contains {
	"id": "boot-chain",
	"message": "something was measured that is not among the reference values",
	"subject": sprintf("event %d (PCR %d, %s)%s", [event.index, event.pcr, event.type, words(event)]),
	"got": event.digests.sha256,
	"want": nearest(event),
	"hint": "verifier reference add NAME --eventlog FILE, if this boot is meant to be accepted",
} if {
	some event in unknown
}

unknown contains event if {
	some event in input.boot.events
	event.pcr in referenced
	count(known(event)) == 0
}

known(event) := [name |
	some name in reference.accepted.sha256[event.pcr][event.type][event.digests.sha256]
]

words(event) := sprintf(": %s", [event.text])

words(event) := "" if object.get(event, "text", null) == null

nearest(event) := sprintf("one of %d accepted: %s", [count(accepted(event)), concat(", ", array.slice(accepted(event), 0, 3))]) if {
	count(accepted(event)) > 0
}

nearest(event) := sprintf("no %s is accepted in PCR %d", [event.type, event.pcr]) if count(accepted(event)) == 0

accepted(event) := sort(object.keys(reference.accepted.sha256[event.pcr][event.type]))
