# METADATA
# title: Findings of a run
# description: |
#   What the supervisor found while a workload runs (`input.run.findings`), and what is to be done about it. Settings:
#   `data.countersign.settings.findings`, an object from a finding's kind to `ignore`, `alert`, `freeze`, `stop` or `kill`; a kind that is not
#   named there has the reaction of `usual`, and one that is unknown here stops the workload.
# scope: package
package countersign.lib.findings

import data.countersign.settings

usual := {
	"attestation-denied": "stop",
	"capability-gained": "kill",
	"integrity": "kill",
	"kernel-module-loaded": "stop",
	"lease-expired": "stop",
	"listening-socket": "alert",
	"monitor-blind": "stop",
	"new-mount": "stop",
	"new-namespace": "alert",
	"process-not-in-image": "stop",
	"ptrace": "kill",
	"revoked": "kill",
	"time-jump": "alert",
}

# Mildest first. The first two let the workload run.
order := ["ignore", "alert", "freeze", "stop", "kill"]

default own := {}

own := settings.findings

chosen := object.union(usual, own)

# METADATA
# title: What is to be done about a finding of this kind
# description: A reaction that is none is `stop`, as is that to an unknown kind.
reaction(kind) := chosen[kind] if chosen[kind] in order

else := "stop"

# METADATA
# title: run-findings
# description: |
#   Nothing runs yet (a release), or every finding of the run is listed and has the reaction `ignore` or `alert`.
# custom:
#   check: run-findings
passed contains "run-findings" if quiet

quiet if input.purpose == "release"

quiet if {
	is_array(input.run.findings)
	input.run.total == count(input.run.findings)
	every finding in input.run.findings {
		reaction(finding.kind) in {"alert", "ignore"}
	}
}

# METADATA
# title: Obligations
# description: |
#   `{"on_violation": R}` with the hardest reaction that the findings ask for; empty when they let the workload run. Merge it into the policy's own:
#   with a no, the supervisor does what it says.
obligations := {"on_violation": order[max(asked)]} if count(asked) > 0

else := {}

asked contains place if {
	some finding in input.run.findings
	some place, name in order
	place > 1
	name == reaction(object.get(finding, "kind", ""))
}

explanations contains {
	"id": "run-findings",
	"message": sprintf("the supervisor found: %s", [finding.kind]),
	"subject": sprintf("%v (%v)", [finding.where, object.get(finding, "executable", "no program")]),
	"got": finding.what,
	"want": "no such finding, or settings.findings that let it pass",
} if {
	some finding in input.run.findings
	kind := finding.kind
	not reaction(kind) in {"alert", "ignore"}
}

explanations contains {
	"id": "run-findings",
	"message": "the findings of this run are not known in full",
	"want": "input.run with all of its findings",
} if {
	not listed
}

listed if input.run.total == count(input.run.findings)
