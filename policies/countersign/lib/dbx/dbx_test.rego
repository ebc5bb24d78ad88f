package countersign.lib.dbx_test

import data.countersign.lib.dbx

variable := {"index": 8, "pcr": 7, "type": "EV_EFI_VARIABLE_DRIVER_CONFIG", "digests": {"sha256": "aa"}, "authentic": true, "text": "dbx = 00... (76 bytes)"}

list(hashes, strength) := {
	"value": {"name": "dbx", "certificates": [{"subject": "CN=old", "sha256": "cc"}], "hashes": hashes, "other": 0, "digest": "sha256:aa"},
	"strength": strength, "log": "firmware", "events": [8],
}

facts(lists) := {"databases": array.concat([object.union(list(1, "authenticated"), {"value": {"name": "db"}})], lists)}

good := {"boot": {"events": [variable], "facts": facts([list(370, "authenticated")])}}

settings := {"dbx": {"digests": ["aa"], "min_entries": 371}}

test_good if dbx.passed == {"dbx-current", "dbx-entries"} with input as good with data.countersign.settings as settings

test_rolled_back if {
	bad := {"boot": {"events": [object.union(variable, {"digests": {"sha256": "bb"}})], "facts": facts([list(76, "authenticated")])}}
	dbx.passed == set() with input as bad with data.countersign.settings as settings
}

test_not_authentic_or_elsewhere if {
	every change in [{"authentic": false}, {"pcr": 1}, {"type": "EV_IPL"}, {"text": "db = 00"}] {
		bad := {"boot": {"events": [object.union(variable, change)]}}
		dbx.passed == set() with input as bad with data.countersign.settings as settings
	}
}

test_entries_that_are_only_named if {
	bad := {"boot": {"events": [variable], "facts": facts([list(370, "named")])}}
	dbx.passed == {"dbx-current"} with input as bad with data.countersign.settings as settings
}

test_twice if {
	two := facts([list(370, "authenticated"), list(400, "authenticated")])
	bad := {"boot": {"events": [variable, object.union(variable, {"index": 9})], "facts": two}}
	dbx.passed == set() with input as bad with data.countersign.settings as settings
}

test_no_settings if dbx.passed == set() with input as good with data.countersign.settings as {}

test_no_input if dbx.passed == set() with input as {} with data.countersign.settings as settings
