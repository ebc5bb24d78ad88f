package countersign.lib.binaries_test

import data.countersign.lib.binaries

good := {"ima": {"files": [
	{"path": "/usr/bin/attest", "digest": "sha256:01"},
	{"path": "/usr/bin/supervisor", "digest": "sha256:02"},
]}}

settings := {"binaries": {"/usr/bin/attest": ["sha256:01"], "/usr/bin/supervisor": ["sha256:02", "sha256:03"]}}

test_good if binaries.passed == {"own-binaries"} with input as good with data.countersign.settings as settings

test_replaced if {
	bad := {"ima": {"files": [
		{"path": "/usr/bin/attest", "digest": "sha256:01"},
		{"path": "/usr/bin/attest", "digest": "sha256:ff"},
		{"path": "/usr/bin/supervisor", "digest": "sha256:02"},
	]}}
	binaries.passed == set() with input as bad with data.countersign.settings as settings
	some reason in binaries.explanations with input as bad with data.countersign.settings as settings
	reason.subject == "/usr/bin/attest"
}

test_not_measured if binaries.passed == set() with input as {"ima": {"files": []}} with data.countersign.settings as settings

test_no_settings if {
	binaries.passed == set() with input as good with data.countersign.settings as {}
	binaries.passed == set() with input as good with data.countersign.settings as {"binaries": {}}
}

test_no_input if binaries.passed == set() with input as {} with data.countersign.settings as settings
