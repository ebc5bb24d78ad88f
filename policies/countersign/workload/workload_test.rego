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
	{reason.id | some reason in verdict.reasons} == {"release", "run-findings"}
}

test_no_input if {
	verdict := workload.verdict with input as {}
	verdict.allow == false
	{reason.id | some reason in verdict.reasons} == {"release", "run-findings", "workload-secure-boot"}
}

test_a_run_goes_on if {
	quiet := object.union(good, {"purpose": "run", "run": {"total": 0, "findings": []}})
	verdict := workload.verdict with input as quiet
	verdict.allow == true
}

test_a_run_with_a_finding if {
	mount := {"kind": "new-mount", "what": "tmpfs", "where": "/mnt"}
	verdict := workload.verdict with input as object.union(good, {"purpose": "run", "run": {"total": 1, "findings": [mount]}})
	verdict.allow == false
	[reason.id | some reason in verdict.reasons] == ["run-findings"]
	verdict.obligations.on_violation == "stop"
}
