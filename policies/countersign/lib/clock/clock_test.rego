package countersign.lib.clock_test

import data.countersign.lib.clock

good := {"time_ms": 1500, "time": "1970-01-01T00:00:01.5Z", "quote": {"skipped_resets": 0, "safe": true}}

settings := {"clock": {"max_skipped_resets": 0, "not_before_ms": 1000, "not_after_ms": 2000}}

all := {"clock-safe", "resets-seen", "time-window"}

test_good if clock.passed == all with input as good with data.countersign.settings as settings

test_skipped if {
	bad := object.union(good, {"quote": {"skipped_resets": 1}})
	clock.passed == all - {"resets-seen"} with input as bad with data.countersign.settings as settings
}

test_unsafe if {
	bad := object.union(good, {"quote": {"safe": false}})
	clock.passed == all - {"clock-safe"} with input as bad with data.countersign.settings as settings
}

test_outside_the_window if {
	every time in [999, 2000, 0] {
		bad := object.union(good, {"time_ms": time})
		clock.passed == all - {"time-window"} with input as bad with data.countersign.settings as settings
	}
}

test_no_settings if clock.passed == {"clock-safe"} with input as good with data.countersign.settings as {}

test_no_input if clock.passed == set() with input as {} with data.countersign.settings as settings
