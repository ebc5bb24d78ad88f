package countersign.lib.findings_test

import data.countersign.lib.findings

finding(kind) := {"kind": kind, "what": "1.2.3.4:22", "where": "pid 7", "executable": "/usr/bin/x"}

run(kinds) := {"purpose": "run", "run": {"total": count(kinds), "findings": [finding(kind) | some kind in kinds]}}

test_nothing_found if {
	findings.passed == {"run-findings"} with input as run([])
	findings.obligations == {} with input as run([])
}

test_nothing_runs_yet if findings.passed == {"run-findings"} with input as {"purpose": "release"}

test_alerts_let_it_run if {
	kinds := ["listening-socket", "new-namespace", "time-jump"]
	findings.passed == {"run-findings"} with input as run(kinds)
	findings.obligations == {} with input as run(kinds)
}

test_each_kind_has_a_reaction if {
	every kind, reaction in findings.usual {
		findings.reaction(kind) == reaction
		reaction in {"alert", "freeze", "stop", "kill"}
	}
	count(findings.usual) == 13
}

test_the_hardest_reaction_counts if {
	findings.obligations == {"on_violation": "stop"} with input as run(["listening-socket", "new-mount"])
	findings.obligations == {"on_violation": "kill"} with input as run(["new-mount", "ptrace", "time-jump"])
	findings.passed == set() with input as run(["listening-socket", "new-mount"])
}

test_settings_choose if {
	freeze := {"findings": {"new-mount": "freeze", "ptrace": "ignore"}}
	findings.obligations == {"on_violation": "freeze"} with input as run(["new-mount", "ptrace"]) with data.countersign.settings as freeze
	findings.passed == {"run-findings"} with input as run(["ptrace"]) with data.countersign.settings as freeze
	findings.obligations == {"on_violation": "kill"} with input as run(["capability-gained"]) with data.countersign.settings as freeze
}

test_unknown_kinds_and_reactions_stop if {
	findings.obligations == {"on_violation": "stop"} with input as run(["teleport"])
	findings.passed == set() with input as run(["teleport"])
	findings.obligations == {"on_violation": "stop"} with input as run(["ptrace"]) with data.countersign.settings as {"findings": {"ptrace": "wait"}}
	findings.obligations == {"on_violation": "stop"} with input as {"purpose": "run", "run": {"total": 1, "findings": [{}]}}
	findings.passed == set() with input as {"purpose": "run", "run": {"total": 1, "findings": [{}]}}
}

test_more_than_is_listed if {
	findings.passed == set() with input as {"purpose": "run", "run": {"total": 2, "findings": [finding("time-jump")]}}
	some reason in findings.explanations with input as {"purpose": "run", "run": {"total": 2, "findings": [finding("time-jump")]}}
	reason.message == "the findings of this run are not known in full"
}

test_says_what_was_found if {
	some reason in findings.explanations with input as run(["ptrace"])
	reason.subject == "pid 7 (/usr/bin/x)"
	reason.got == "1.2.3.4:22"
}

test_no_input if {
	findings.passed == set() with input as {}
	findings.passed == set() with input as {"purpose": "run"}
	findings.obligations == {} with input as {}
}
