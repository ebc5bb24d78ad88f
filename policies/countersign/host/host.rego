# METADATA
# title: Host policy
# description: |
#   Accepts a host that booted with Secure Boot, reached its operating system, and measured nothing into the referenced PCRs that is not
#   among the reference values. Positive evidence only: each check must be proved by a rule that adds its name to `passed`; whatever is
#   not proved ends up in `failed`, so missing input can only remove permissions.
# scope: package
package countersign.host

import data.countersign.reference

required := {"boot-chain", "boot-log", "exit-boot-services", "reference-missing", "secure-boot"}

# METADATA
# title: Verdict
# description: The one document that the verifier asks for.
# entrypoint: true
default verdict := {"allow": false, "reasons": [{"id": "policy-undefined", "message": "the host policy came to no verdict"}], "obligations": {}}

verdict := {
	"allow": count(failed) == 0,
	"reasons": [reason | some reason in reasons],
	"obligations": {"lease_s": 3600, "reattest_s": 300, "on_violation": "stop"},
}

failed := required - passed

# PCRs of which reference values exist.
referenced contains pcr if {
	some pcr, types in reference.accepted.sha256
	count(types) > 0
}

passed contains "reference-missing" if count(referenced) > 0

passed contains "boot-log" if count(input.boot.events) > 0

passed contains "secure-boot" if input.boot.secure_boot == true

passed contains "exit-boot-services" if input.boot.exit_boot_services == true

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

# Every referenced PCR was measured into at all.
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

# What is shown for each check that failed.
reasons contains {
	"id": "reference-missing",
	"message": "there are no reference values: nothing that a host boots can be accepted",
	"want": "at least one set of reference values",
	"hint": "verifier reference add NAME --eventlog FILE",
} if {
	"reference-missing" in failed
}

reasons contains {
	"id": "boot-log",
	"message": "the host sent no boot log",
	"want": "the firmware's event log",
	"hint": "check event_log in the host's attest.toml",
} if {
	"boot-log" in failed
}

reasons contains {
	"id": "secure-boot",
	"message": "the host did not prove that Secure Boot is on",
	"subject": "variable SecureBoot (PCR 7)",
	"got": secure_boot_state,
	"want": "on",
	"hint": "switch Secure Boot on in the firmware's set-up and reboot",
} if {
	"secure-boot" in failed
}

default secure_boot_state := "unknown"

secure_boot_state := "off" if input.boot.secure_boot == false

reasons contains {
	"id": "exit-boot-services",
	"message": "the log does not show that the operating system took over from the firmware",
	"want": "event \"Exit Boot Services Returned with Success\" in PCR 5",
	"hint": "check that the log is the whole log of this boot",
} if {
	"exit-boot-services" in failed
}

reasons contains {
	"id": "boot-chain",
	"message": "something was measured that is not among the reference values",
	"subject": sprintf("event %d (PCR %d, %s)%s", [event.index, event.pcr, event.type, words(event)]),
	"got": event.digests.sha256,
	"want": nearest(event),
	"hint": "verifier reference add NAME --eventlog FILE, if this boot is meant to be accepted",
} if {
	"boot-chain" in failed
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

accepted(event) := sort([digest | some digest, _ in reference.accepted.sha256[event.pcr][event.type]])
