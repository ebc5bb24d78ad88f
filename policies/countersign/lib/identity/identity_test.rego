package countersign.lib.identity_test

import data.countersign.lib.identity

good := {"purpose": "release", "host": {"id": "aa"}, "workload": {"id": "11", "payload_root": "22", "policy": "33", "name": "app"}}

settings := {"hosts": ["aa"], "workloads": {"11": {"payload_root": "22", "policy": "33"}}}

all := {"host-known", "release", "workload-known"}

test_good if identity.passed == all with input as good with data.countersign.settings as settings

test_swapped_workload if {
	every change in [{"id": "12"}, {"payload_root": "23"}, {"policy": "34"}] {
		bad := object.union(good, {"workload": change})
		identity.passed == all - {"workload-known"} with input as bad with data.countersign.settings as settings
	}
}

test_other_host if {
	bad := object.union(good, {"host": {"id": "bb"}})
	identity.passed == all - {"host-known"} with input as bad with data.countersign.settings as settings
}

test_attest if {
	bad := object.union(good, {"purpose": "attest"})
	identity.passed == all - {"release"} with input as bad with data.countersign.settings as settings
}

test_the_name_is_only_a_label if {
	same := object.union(good, {"workload": {"name": "other"}})
	identity.passed == all with input as same with data.countersign.settings as settings
}

test_no_settings if identity.passed == {"release"} with input as good with data.countersign.settings as {}

test_no_input if identity.passed == set() with input as {} with data.countersign.settings as settings
