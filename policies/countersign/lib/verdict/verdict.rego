# METADATA
# title: Verdicts
# description: |
#   Makes the verdict document of a policy from what it requires and what was proved. Positive evidence only: each check must be proved by
#   a rule that adds its name to a set `passed`; what is not proved has failed, so input that is missing can only remove permissions.
# scope: package
package countersign.lib.verdict

# METADATA
# title: The verdict document
# description: |
#   `of(required, passed, explanations, obligations)` allows when something is required and all of it passed. `explanations` is a set of
#   reasons ({id, message} and optionally subject, got, want, hint); those of failed checks are shown.
of(required, passed, explanations, obligations) := {
	"allow": count(failed(required, passed)) == 0,
	"reasons": [reason | some reason in reasons(failed(required, passed), explanations)],
	"obligations": obligations,
}

failed(required, passed) := required - passed if count(required) > 0

failed(required, _) := {"nothing-required"} if count(required) == 0

reasons(ids, explanations) := given | {generic(id) | some id in (ids - explained)} if {
	given := {reason | some reason in explanations; reason.id in ids}
	explained := {reason.id | some reason in given}
}

generic(id) := {"id": id, "message": sprintf("the check %s was not proved", [id])}
