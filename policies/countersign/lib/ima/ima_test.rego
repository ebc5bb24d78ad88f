package countersign.lib.ima_test

import data.countersign.lib.ima

good := {"ima": {
	"entries": 2, "violations": 0, "boot_aggregate": true, "kexecs": 0, "strong": true,
	"appraisal": {"sets": ["os"], "accepted": 1, "signed": 0, "unknown": 0, "denied": 0, "unknown_files": [], "denied_files": []},
}}

all := {"ima-aggregate", "ima-files", "ima-kexec", "ima-list", "ima-strong-hash", "ima-violations"}

file := {"entry": 1, "path": "/tmp/x", "digest": "sha256:ff", "reason": "in no set"}

test_good if ima.passed == all with input as good

test_unknown_file if {
	bad := object.union(good, {"ima": {"appraisal": {"unknown": 1, "unknown_files": [file]}}})
	ima.passed == all - {"ima-files"} with input as bad
	some reason in ima.explanations with input as bad
	reason.id == "ima-files"
	reason.subject == "/tmp/x"
	reason.got == "sha256:ff: in no set"
}

test_denied_file if {
	bad := object.union(good, {"ima": {"appraisal": {"denied": 1, "denied_files": [file]}}})
	ima.passed == all - {"ima-files"} with input as bad
	some reason in ima.explanations with input as bad
	reason.subject == "/tmp/x"
}

test_a_count_without_files if {
	every key in ["unknown", "denied"] {
		ima.passed == all - {"ima-files"} with input as object.union(good, {"ima": {"appraisal": {key: 33}}})
	}
}

test_no_reference_sets if {
	bad := {"ima": object.remove(good.ima, ["appraisal"])}
	ima.passed == all - {"ima-files"} with input as bad
	some reason in ima.explanations with input as bad
	reason.message == "the measured files were not appraised: there are no IMA reference sets"
	ima.passed == all - {"ima-files"} with input as object.union(good, {"ima": {"appraisal": {"sets": []}}})
}

test_violation if ima.passed == all - {"ima-violations"} with input as object.union(good, {"ima": {"violations": 1}})

test_kexec if ima.passed == all - {"ima-kexec"} with input as object.union(good, {"ima": {"kexecs": 1}})

test_another_boot if {
	ima.passed == all - {"ima-aggregate"} with input as object.union(good, {"ima": {"boot_aggregate": false}})
	ima.passed == all - {"ima-aggregate"} with input as {"ima": object.remove(good.ima, ["boot_aggregate"])}
}

test_weak_hash if ima.passed == all - {"ima-strong-hash"} with input as object.union(good, {"ima": {"strong": false}})

test_empty_list if ima.passed == {"ima-aggregate"} with input as object.union(good, {"ima": {"entries": 0}})

test_no_input if ima.passed == set() with input as {}
