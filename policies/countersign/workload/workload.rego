# METADATA
# title: Workload policy
# description: |
#   An example of the policy that travels in an image: it runs on hosts with Secure Boot, for as long as they attest every five minutes.
# scope: package
package countersign.workload

import data.countersign.lib.identity
import data.countersign.lib.secure_boot
import data.countersign.lib.verdict as document

required := {"release", "workload-secure-boot"}

# METADATA
# title: Verdict
# description: The one document that the verifier asks for.
# entrypoint: true
default verdict := {"allow": false, "reasons": [{"id": "policy-undefined", "message": "the workload policy came to no verdict"}], "obligations": {}}

verdict := document.of(required, passed, explanations, {"lease_s": 3600, "reattest_s": 300, "on_violation": "kill"})

# METADATA
# title: release
# description: The decision is about a release.
# custom:
#   check: release
passed contains "release" if "release" in identity.passed

# METADATA
# title: workload-secure-boot
# description: The host booted with Secure Boot.
# custom:
#   check: workload-secure-boot
passed contains "workload-secure-boot" if "secure-boot" in secure_boot.passed

explanations contains reason if some reason in identity.explanations

explanations contains {
	"id": "workload-secure-boot",
	"message": "this workload runs on hosts with Secure Boot only",
	"want": "on",
}
