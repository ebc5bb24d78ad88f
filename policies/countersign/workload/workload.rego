# METADATA
# title: Workload policy
# description: |
#   An example of the policy that travels in an image: it runs on hosts with Secure Boot, for as long as they attest every five minutes and the
#   supervisor finds nothing (`countersign.lib.findings` says what is to be done about what it finds).
# scope: package
package countersign.workload

import data.countersign.lib.findings
import data.countersign.lib.identity
import data.countersign.lib.secure_boot
import data.countersign.lib.verdict as document

required := {"release", "run-findings", "workload-secure-boot"}

# METADATA
# title: Verdict
# description: The one document that the verifier and, while the workload runs, the supervisor ask for.
# entrypoint: true
default verdict := {"allow": false, "reasons": [{"id": "policy-undefined", "message": "the workload policy came to no verdict"}], "obligations": {}}

verdict := document.of(required, passed, explanations, obligations)

# METADATA
# title: Obligations
# description: Those of every run, and the reaction that the findings ask for.
obligations := object.union({"lease_s": 3600, "reattest_s": 300, "on_violation": "kill"}, findings.obligations)

# METADATA
# title: release
# description: The decision is about a release, or a run of one.
# custom:
#   check: release
passed contains "release" if "release" in identity.passed

# METADATA
# title: workload-secure-boot
# description: |
#   The host booted with Secure Boot. For a run the verifier judges that at each attestation; the supervisor, which asks about its findings, has
#   no appraised facts of the host.
# custom:
#   check: workload-secure-boot
passed contains "workload-secure-boot" if secure_boot_judged

secure_boot_judged if "secure-boot" in secure_boot.passed

secure_boot_judged if input.purpose == "run"

# METADATA
# title: run-findings
# description: |
#   Nothing runs yet (a release), or every finding of the run is listed and has the reaction `ignore` or `alert`.
# custom:
#   check: run-findings
passed contains "run-findings" if "run-findings" in findings.passed

explanations contains reason if some reason in identity.explanations

explanations contains reason if some reason in findings.explanations

explanations contains {
	"id": "workload-secure-boot",
	"message": "this workload runs on hosts with Secure Boot only",
	"want": "on",
}
