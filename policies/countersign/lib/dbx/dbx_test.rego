package countersign.lib.dbx_test

import data.countersign.lib.dbx

variable := {"index": 8, "pcr": 7, "type": "EV_EFI_VARIABLE_DRIVER_CONFIG", "digests": {"sha256": "aa"}, "authentic": true, "text": "dbx = 00... (76 bytes)"}

good := {"boot": {"events": [variable], "facts": {"dbx_entries": 371}}}

settings := {"dbx": {"digests": ["aa"], "min_entries": 371}}

test_good if dbx.passed == {"dbx-current", "dbx-entries"} with input as good with data.countersign.settings as settings

test_rolled_back if {
	bad := {"boot": {"events": [object.union(variable, {"digests": {"sha256": "bb"}})], "facts": {"dbx_entries": 77}}}
	dbx.passed == set() with input as bad with data.countersign.settings as settings
}

test_not_authentic_or_elsewhere if {
	every change in [{"authentic": false}, {"pcr": 1}, {"type": "EV_IPL"}, {"text": "db = 00"}] {
		bad := {"boot": {"events": [object.union(variable, change)]}}
		dbx.passed == set() with input as bad with data.countersign.settings as settings
	}
}

test_twice if {
	bad := {"boot": {"events": [variable, object.union(variable, {"index": 9})]}}
	dbx.passed == set() with input as bad with data.countersign.settings as settings
}

test_no_settings if dbx.passed == set() with input as good with data.countersign.settings as {}

test_no_input if dbx.passed == set() with input as {} with data.countersign.settings as settings
