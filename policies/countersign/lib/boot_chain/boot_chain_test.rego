package countersign.lib.boot_chain_test

import data.countersign.lib.boot_chain

empty := [{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}]

reference := {"revision": 1, "values": [], "accepted": {"sha256": [
	{}, {}, {}, {}, {"EV_EFI_BOOT_SERVICES_APPLICATION": {"aa": ["golden"]}}, {}, {}, {"EV_SEPARATOR": {"bb": ["golden"]}}, {}, {}, {}, {},
	{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {},
]}}

loader := {"index": 1, "pcr": 4, "type": "EV_EFI_BOOT_SERVICES_APPLICATION", "digests": {"sha256": "aa"}, "authentic": false}

separator := {"index": 2, "pcr": 7, "type": "EV_SEPARATOR", "digests": {"sha256": "bb"}, "authentic": true, "text": "words"}

action := {"index": 3, "pcr": 5, "type": "EV_EFI_ACTION", "digests": {"sha256": "cc"}, "authentic": true}

good := {
	"pcrs": {"sha256": {"0": "00"}},
	"boot": {"secure_boot": true, "exit_boot_services": true, "events": [loader, separator, action]},
}

all := {"boot-chain", "boot-log", "exit-boot-services", "pcr-complete", "reference-missing", "sha256-bank"}

booted(events) := object.union(good, {"boot": {"events": events}})

test_good if boot_chain.passed == all with input as good with data.countersign.reference as reference

test_unknown_loader if {
	bad := booted([object.union(loader, {"digests": {"sha256": "ff"}}), separator])
	boot_chain.passed == all - {"boot-chain", "pcr-complete"} with input as bad with data.countersign.reference as reference
	some reason in boot_chain.explanations with input as bad with data.countersign.reference as reference
	reason.id == "boot-chain"
	reason.want == "one of 1 accepted: aa"
	reason.subject == "event 1 (PCR 4, EV_EFI_BOOT_SERVICES_APPLICATION)"
}

test_right_digest_under_another_type_or_pcr if {
	every change in [{"type": "EV_IPL"}, {"pcr": 7}, {"pcr": "4"}] {
		bad := booted([object.union(loader, change), separator, loader])
		not "boot-chain" in boot_chain.passed with input as bad with data.countersign.reference as reference
	}
}

test_nothing_measured_into_a_referenced_pcr if {
	bad := booted([loader])
	boot_chain.passed == all - {"boot-chain", "pcr-complete"} with input as bad with data.countersign.reference as reference
}

test_no_reference_values if {
	every none in [{}, {"accepted": {}}, {"accepted": {"sha256": empty}}] {
		boot_chain.passed == all - {"boot-chain", "pcr-complete", "reference-missing"} with input as good with data.countersign.reference as none
	}
}

test_no_sha256 if {
	bad := booted([object.remove(loader, ["digests"]), separator])
	boot_chain.passed == {"boot-log", "exit-boot-services", "reference-missing"} with input as bad with data.countersign.reference as reference
	boot_chain.passed == all - {"sha256-bank"} with input as object.remove(good, ["pcrs"]) with data.countersign.reference as reference
}

test_no_input if boot_chain.passed == {"reference-missing"} with input as {} with data.countersign.reference as reference

values := [
	{"name": "golden", "bank": "sha256", "pcr": 4, "type": "EV_EFI_BOOT_SERVICES_APPLICATION", "digest": "aa"},
	{"name": "golden", "bank": "sha256", "pcr": 7, "type": "EV_SEPARATOR", "digest": "bb"},
	{"name": "other", "bank": "sha256", "pcr": 4, "type": "EV_EFI_BOOT_SERVICES_APPLICATION", "digest": "ff"},
	{"name": "golden", "bank": "sha1", "pcr": 4, "type": "EV_EFI_BOOT_SERVICES_APPLICATION", "digest": "00"},
]

whole := {"revision": 1, "values": values, "accepted": reference.accepted}

test_complete if boot_chain.passed == all | {"boot-complete"} with input as good with data.countersign.reference as whole

test_not_complete if {
	bad := booted([separator, action])
	not "boot-complete" in boot_chain.passed with input as bad with data.countersign.reference as whole
	not "boot-complete" in boot_chain.passed with input as {} with data.countersign.reference as whole
}

test_parts_of_two_sets_are_not_complete if {
	bad := booted([object.union(loader, {"digests": {"sha256": "fe"}}), separator])
	not "boot-complete" in boot_chain.passed with input as bad with data.countersign.reference as whole
}

# Firmware of one set, loader of another: complete in each PCR, though no set is complete.
mixed := {"revision": 1, "values": [], "accepted": {"sha256": [
	{"EV_POST_CODE": {"01": ["old", "older"], "02": ["new"]}}, {}, {}, {}, {"EV_EFI_BOOT_SERVICES_APPLICATION": {"aa": ["old"], "a2": ["new"]}}, {}, {},
	{"EV_SEPARATOR": {"bb": ["new", "old"]}}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {},
]}}

firmware := {"index": 0, "pcr": 0, "type": "EV_POST_CODE", "digests": {"sha256": "02"}, "authentic": false}

test_each_pcr_may_be_of_another_set if {
	"pcr-complete" in boot_chain.passed with input as booted([firmware, loader, separator]) with data.countersign.reference as mixed
}

of_two(names) := {"revision": 1, "values": [], "accepted": {"sha256": [
	{"EV_POST_CODE": {"01": ["old"], "02": names}}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {},
	{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {},
]}}

test_what_was_left_out_of_a_pcr_is_named if {
	"pcr-complete" in boot_chain.passed with input as booted([firmware]) with data.countersign.reference as of_two(["new", "old"])
	not "pcr-complete" in boot_chain.passed with input as booted([firmware]) with data.countersign.reference as of_two(["old"])
	some reason in boot_chain.explanations with input as booted([firmware]) with data.countersign.reference as of_two(["old"])
	reason.id == "pcr-complete"
	reason.subject == "PCR 0"
}
