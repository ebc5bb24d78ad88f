package countersign.lib.verdict_test

import data.countersign.lib.verdict

test_allows_what_is_proved if {
	got := verdict.of({"a", "b"}, {"a", "b", "c"}, set(), {"lease_s": 60})
	got == {"allow": true, "reasons": [], "obligations": {"lease_s": 60}}
}

test_denies_what_is_not_proved if {
	got := verdict.of({"a", "b"}, {"a"}, {{"id": "a", "message": "A"}, {"id": "b", "message": "B"}}, {})
	got == {"allow": false, "reasons": [{"id": "b", "message": "B"}], "obligations": {}}
}

test_explains_even_without_an_explanation if {
	got := verdict.of({"b"}, set(), set(), {})
	got.reasons == [{"id": "b", "message": "the check b was not proved"}]
}

test_requiring_nothing_denies if {
	got := verdict.of(set(), {"a"}, set(), {})
	got.allow == false
	got.reasons[0].id == "nothing-required"
}
