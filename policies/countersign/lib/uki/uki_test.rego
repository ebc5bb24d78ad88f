package countersign.lib.uki_test

import data.countersign.lib.uki

zero := "0000000000000000000000000000000000000000000000000000000000000000"

section := {"index": 1, "pcr": 11, "type": "EV_IPL", "digests": {}, "authentic": true, "text": ".linux"}

good := {"pcrs": {"sha256": {"8": zero}}, "boot": {"events": [section]}}

test_good if uki.passed == {"uki", "no-boot-menu"} with input as good

test_no_section if {
	every change in [{"pcr": 12}, {"authentic": false}, {"text": ".osrel"}, {"type": "EV_ACTION"}] {
		bad := object.union(good, {"boot": {"events": [object.union(section, change)]}})
		uki.passed == {"no-boot-menu"} with input as bad
	}
}

test_boot_menu if uki.passed == {"uki"} with input as object.union(good, {"pcrs": {"sha256": {"8": "11"}}})

test_no_input if uki.passed == set() with input as {}
