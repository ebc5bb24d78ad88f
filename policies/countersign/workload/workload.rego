# METADATA
# title: Workload policy
# description: |
#   An example of the policy that travels in an image: it runs on hosts with Secure Boot, for as long as they attest every five minutes.
# scope: package
package countersign.workload

# METADATA
# title: Verdict
# entrypoint: true
default verdict := {"allow": false, "reasons": [{"id": "policy-undefined", "message": "the workload policy came to no verdict"}], "obligations": {}}

verdict := {
	"allow": count(failed) == 0,
	"reasons": [reason | some reason in reasons],
	"obligations": {"lease_s": 3600, "reattest_s": 300, "on_violation": "kill"},
}

required := {"release", "workload-secure-boot"}

failed := required - passed

passed contains "release" if {
	input.purpose == "release"
	is_string(input.workload.id)
}

passed contains "workload-secure-boot" if input.boot.secure_boot == true

reasons contains {"id": "release", "message": "this policy decides about releases only"} if "release" in failed

reasons contains {
	"id": "workload-secure-boot",
	"message": "this workload runs on hosts with Secure Boot only",
	"want": "on",
} if {
	"workload-secure-boot" in failed
}
