package countersign.lib.binaries_test

import data.countersign.lib.binaries

good := {"ima": {"appraisal": {"sets": ["os", "countersign"], "accepted": 7, "signed": 0, "unknown": 0, "denied": 0}}}

settings := {"binaries": ["countersign"]}

test_good if {
	binaries.passed == {"own-binaries"} with input as good with data.countersign.settings as settings
	signed := object.union(good, {"ima": {"appraisal": {"accepted": 0, "signed": 2}}})
	binaries.passed == {"own-binaries"} with input as signed with data.countersign.settings as settings
}

test_replaced if {
	every change in [{"unknown": 1}, {"denied": 1}, {"accepted": 0}, {"sets": ["os"]}, {"sets": []}] {
		bad := object.union(good, {"ima": {"appraisal": change}})
		binaries.passed == set() with input as bad with data.countersign.settings as settings
		some reason in binaries.explanations with input as bad with data.countersign.settings as settings
		startswith(reason.got, "sets ")
	}
}

test_not_appraised if {
	binaries.passed == set() with input as {"ima": {"entries": 3}} with data.countersign.settings as settings
	some reason in binaries.explanations with input as {"ima": {"entries": 3}} with data.countersign.settings as settings
	startswith(reason.message, "our programs were not appraised")
}

test_no_settings if {
	binaries.passed == set() with input as good with data.countersign.settings as {}
	binaries.passed == set() with input as good with data.countersign.settings as {"binaries": []}
}

test_no_input if binaries.passed == set() with input as {} with data.countersign.settings as settings
