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
base := {"boot-chain", "boot-log", "exit-boot-services", "reference-missing", "secure-boot", "sha256-bank"}

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
