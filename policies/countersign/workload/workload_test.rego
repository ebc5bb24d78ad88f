package countersign.workload_test

import data.countersign.workload

good := {"purpose": "release", "boot": {"secure_boot": true}, "workload": {"id": "11"}}

test_good if {
	verdict := workload.verdict with input as good
	verdict == {"allow": true, "reasons": [], "obligations": {"lease_s": 3600, "reattest_s": 300, "on_violation": "kill"}}
}

test_without_secure_boot if {
	verdict := workload.verdict with input as object.union(good, {"boot": {"secure_boot": false}})
	[reason.id | some reason in verdict.reasons] == ["workload-secure-boot"]
}

test_attest if {
	verdict := workload.verdict with input as object.union(good, {"purpose": "attest"})
	[reason.id | some reason in verdict.reasons] == ["release"]
}

test_no_input if {
	verdict := workload.verdict with input as {}
	verdict.allow == false
	{reason.id | some reason in verdict.reasons} == {"release", "workload-secure-boot"}
}
