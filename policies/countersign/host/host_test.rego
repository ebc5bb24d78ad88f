package countersign.host_test

import data.countersign.host
import data.countersign.lib.boot_chain_test

good := boot_chain_test.good

reference := boot_chain_test.reference

test_good if {
	verdict := host.verdict with input as good with data.countersign.reference as reference
	verdict == {"allow": true, "reasons": [], "obligations": {"lease_s": 3600, "reattest_s": 300, "on_violation": "stop"}}
}

test_says_why_not if {
	bad := object.union(good, {"boot": {"secure_boot": false}})
	verdict := host.verdict with input as bad with data.countersign.reference as reference
	verdict.allow == false
	[reason.id | some reason in verdict.reasons] == ["secure-boot"]
}

test_no_input if {
	verdict := host.verdict with input as {} with data.countersign.reference as reference
	verdict.allow == false
	{reason.id | some reason in verdict.reasons} == {"boot-chain", "boot-log", "exit-boot-services", "pcr-complete", "secure-boot", "sha256-bank"}
}

test_settings_add if {
	settings := {"required": ["clock-safe"], "obligations": {"lease_s": 60}}
	verdict := host.verdict with input as good with data.countersign.reference as reference with data.countersign.settings as settings
	verdict.allow == false
	[reason.id | some reason in verdict.reasons] == ["clock-safe"]
	verdict.obligations.lease_s == 60
	verdict.obligations.on_violation == "stop"
}

test_unknown_requirement_denies if {
	settings := {"required": ["secure-bot"]}
	verdict := host.verdict with input as good with data.countersign.reference as reference with data.countersign.settings as settings
	verdict.reasons == [{"id": "secure-bot", "message": "the check secure-bot was not proved"}]
}

test_what_is_not_claimed_is_said if {
	count(host.not_claimed) > 0 with data.countersign.settings as {}
	every why in host.not_claimed {
		count(why.why) > 0
		count(why.add) > 0
	}
	host.not_claimed["ima-files"]
	not host.not_claimed["ima-files"] with data.countersign.settings as {"required": ["ima-files"]}
	not host.not_claimed["boot-chain"]
}
