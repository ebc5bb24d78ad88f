package countersign.lib.secure_boot_test

import data.countersign.lib.secure_boot

test_on if secure_boot.passed == {"secure-boot"} with input as {"boot": {"secure_boot": true}}

test_off if {
	secure_boot.passed == set() with input as {"boot": {"secure_boot": false}}
	{e.got | some e in secure_boot.explanations} == {"off"} with input as {"boot": {"secure_boot": false}}
}

test_unknown if {
	every unknown in [{}, {"boot": {}}, {"boot": {"secure_boot": null}}, {"boot": {"secure_boot": "true"}}, {"boot": {"secure_boot": 1}}] {
		secure_boot.passed == set() with input as unknown
	}
}
