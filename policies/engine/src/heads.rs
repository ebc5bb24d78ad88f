//! Rule heads that mean something else in the embedded engine than in Rego.
//!
//! `owners[k] contains v` is an object of sets; regorus makes it the one set `owners` of all `v`. After `owners.a := 1` there is no
//! `owners` to look at as a whole, so `not owners` is true. A policy with such a head would decide on other values than in OPA: it is refused.

use regorus::unstable::{Expr, Rule, RuleHead};

/// Why a head is refused.
pub(crate) const WHY: &str = "the embedded engine would take this head for something else";
/// What to write instead.
pub(crate) const HINT: &str = "a head is a name, or name[key] := value: owners[k] := {v | ...}, owners := {\"a\": 1}";

/// Line, from 1, and text of a rule's head that both engines do not share.
pub(crate) fn misread(rule: &Rule) -> Option<(u32, &str)> {
    let (head, with_key) = match rule {
        Rule::Spec { head: RuleHead::Compr { refr, .. }, .. } => (refr, true),
        Rule::Spec { head: RuleHead::Set { refr, .. } | RuleHead::Func { refr, .. }, .. }
        | Rule::Default { refr, .. } => (refr, false),
    };
    let name: &Expr = if let (Expr::RefBrack { refr, .. }, true) = (&**head, with_key) { refr } else { head };
    if matches!(name, Expr::Var { .. }) { None } else { Some((head.span().line, head.span().text())) }
}
