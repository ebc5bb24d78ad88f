# METADATA
# title: Host policy
# description: |
#   Accepts a host that booted with Secure Boot, reached its operating system, and measured nothing into the referenced PCRs that is not
#   among the reference values. `data.countersign.settings.required` names further checks of the library; it can add, never take away.
# scope: package
package countersign.host

import data.countersign.lib.binaries
import data.countersign.lib.boot_chain
import data.countersign.lib.clock
import data.countersign.lib.dbx
import data.countersign.lib.identity
import data.countersign.lib.ima
import data.countersign.lib.kernel
import data.countersign.lib.runtime
import data.countersign.lib.secure_boot
import data.countersign.lib.tpm
import data.countersign.lib.uki
import data.countersign.lib.verdict as document
import data.countersign.settings

# METADATA
# title: What every host must prove
base := {"boot-chain", "boot-log", "exit-boot-services", "pcr-complete", "reference-missing", "secure-boot", "sha256-bank"}

# METADATA
# title: What is required
# description: The base, and what the settings add. A name that no rule proves denies.
required := base | {name | some name in settings.required}

# METADATA
# title: Verdict
# description: The one document that the verifier asks for.
# entrypoint: true
default verdict := {"allow": false, "reasons": [{"id": "policy-undefined", "message": "the host policy came to no verdict"}], "obligations": {}}

verdict := document.of(required, passed, explanations, obligations)

# METADATA
# title: What this policy does not claim
# description: |
#   Checks that are not required here, each with the reason and with what adds it. `verifier policy mutate` counts an attack that only such a check
#   stops as not claimed. Settings that require the check take it off this list.
not_claimed[check] := why if {
	some check, why in unclaimed
	not check in required
}

ima_add := "boot the hosts with ima_policy=tcb; verifier reference add NAME --file SET; then settings.required: ima-aggregate, ima-files, ima-kexec, ima-list, ima-strong-hash, ima-violations"

learn_add := "verifier policy settings --evidence GOOD.bundle, of a host that is known to be good"

unclaimed := {
	"ek-root": {"why": "every CA of `verifier ek-root list` vouches for a TPM", "add": learn_add},
	"hardware-tpm": {"why": "a software TPM may attest: its verdicts say so, and the verifier releases nothing to it", "add": "settings.required: hardware-tpm"},
	"host-known": {"why": "every host that was admitted is one of ours", "add": learn_add},
	"ima-aggregate": {"why": "not every host has IMA", "add": ima_add},
	"ima-files": {"why": "what runs is known by reference sets only, and a new verifier has none", "add": ima_add},
	"ima-kexec": {"why": "a kexec shows in IMA's list only, and not every host has IMA", "add": ima_add},
	"ima-list": {"why": "not every host has IMA", "add": ima_add},
	"ima-violations": {"why": "not every host has IMA, and some write to files that are being read", "add": ima_add},
	"own-binaries": {"why": "our own programs are known by a reference set only, and a new verifier has none", "add": "attest learn, verifier reference add NAME --file SET, settings.binaries: [NAME], settings.required: own-binaries"},
	"resets-seen": {"why": "a host may be restarted several times before it attests again", "add": "settings.clock.max_skipped_resets and settings.required: resets-seen"},
	"tpm-firmware": {"why": "which versions are current is known to the TPM's vendor only", "add": "settings.tpm.firmware and settings.required: tpm-firmware"},
	"workload-known": {"why": "every workload that was registered is one of ours", "add": learn_add},
}

default obligations := {"lease_s": 3600, "reattest_s": 300, "on_violation": "stop"}

# METADATA
# title: Obligations
# description: An hour's lease, attestation every five minutes, stop on a violation; the settings may say otherwise.
obligations := object.union({"lease_s": 3600, "reattest_s": 300, "on_violation": "stop"}, settings.obligations)

passed := union({
	binaries.passed,
	boot_chain.passed,
	clock.passed,
	dbx.passed,
	identity.passed,
	ima.passed,
	kernel.passed,
	runtime.passed,
	secure_boot.passed,
	tpm.passed,
	uki.passed,
})

explanations := union({
	binaries.explanations,
	boot_chain.explanations,
	clock.explanations,
	dbx.explanations,
	identity.explanations,
	ima.explanations,
	kernel.explanations,
	runtime.explanations,
	secure_boot.explanations,
	tpm.explanations,
	uki.explanations,
})
