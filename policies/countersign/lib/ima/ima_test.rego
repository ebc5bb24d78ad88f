package countersign.lib.ima_test

import data.countersign.lib.ima

good := {"ima": {"entries": 2, "violations": 0, "boot_aggregate": true, "files": [
	{"path": "boot_aggregate", "digest": "sha256:00"},
	{"path": "/usr/bin/attest", "digest": "sha256:01"},
]}}

settings := {"ima": {"digests": {"sha256:00": ["boot"], "sha256:01": ["attest"]}}}

all := {"ima-aggregate", "ima-files", "ima-list", "ima-strong-hash", "ima-violations", "ima-whole"}

test_good if ima.passed == all with input as good with data.countersign.settings as settings

test_unknown_file if {
	bad := {"ima": {"entries": 1, "violations": 0, "boot_aggregate": true, "files": [{"path": "/tmp/x", "digest": "sha256:ff"}]}}
	ima.passed == all - {"ima-files"} with input as bad with data.countersign.settings as settings
	some reason in ima.explanations with input as bad with data.countersign.settings as settings
	reason.id == "ima-files"
	reason.subject == "/tmp/x"
}

test_violation if ima.passed == all - {"ima-violations"} with input as object.union(good, {"ima": {"violations": 1}}) with data.countersign.settings as settings

test_part_of_the_list if ima.passed == all - {"ima-whole"} with input as object.union(good, {"ima": {"entries": 3}}) with data.countersign.settings as settings

test_another_boot if {
	bad := object.union(good, {"ima": {"boot_aggregate": false}})
	ima.passed == all - {"ima-aggregate"} with input as bad with data.countersign.settings as settings
}

test_weak_hash if {
	bad := {"ima": {"entries": 1, "violations": 0, "boot_aggregate": true, "files": [{"path": "/usr/bin/attest", "digest": "sha1:01"}]}}
	ima.passed == all - {"ima-files", "ima-strong-hash"} with input as bad with data.countersign.settings as settings
}

test_no_settings if ima.passed == all - {"ima-files"} with input as good with data.countersign.settings as {}

test_no_input if {
	ima.passed == set() with input as {} with data.countersign.settings as settings
	ima.passed == set() with input as {"ima": {"entries": 0, "violations": 0, "files": []}} with data.countersign.settings as settings
}
