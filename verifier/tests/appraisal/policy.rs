//! Policies that come to no usable decision, and rules that hold whatever policy says.

use std::collections::BTreeMap;

use countersign_policy::PolicyBundle;
use countersign_policy::verdict::{Outcome, Source};
use countersign_wire::id::PolicyDigest;

use crate::support::case::{Case, accepted, reasons};

/// A policy bundle of one module.
pub(crate) fn bundle(role: &str, text: &str) -> Vec<u8> {
    let module = format!("package countersign.{role}\n{text}\n");
    PolicyBundle::build(BTreeMap::from([("p.rego".to_owned(), module.into_bytes())])).unwrap()
}

/// Registers the case's workload with another policy.
fn registered(case: &mut Case, policy: Vec<u8>) {
    case.context.workload.as_mut().unwrap().policy_digest = PolicyDigest::of(&policy);
    case.context.workload_policy = Some(policy);
}

#[test]
fn a_policy_that_is_not_the_registered_one_is_not_asked_alone() {
    let mut case = Case::release();
    case.context.workload_policy = Some(bundle("workload", "verdict := {\"allow\": true}"));
    assert_eq!(reasons(&case.judge()), ["workload-policy-digest"]);
}

const LOOP: &str = "xs := [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30]\n\
    verdict := {\"allow\": count([1 | some a in xs; some b in xs; some c in xs; some d in xs; some e in xs]) > 0}";

/// Policies that grant nothing, and the reason that is given.
const NO_DECISION: [(&str, &str); 8] = [
    ("verdict := {\"allow\": true} if input.nothing", "policy-undefined"),
    ("verdict := {\"allow\": \"true\"}", "policy-type"),
    ("verdict := {\"allow\": 1}", "policy-type"),
    ("verdict := true", "policy-type"),
    ("verdict := {\"allow\": false}", "policy-denied"),
    ("verdict := {\"allow\": true, \"obligations\": {\"teleport\": 1}}", "obligation-unknown"),
    ("f(x) := f(x + 1)\nverdict := {\"allow\": f(1)}", "policy-refused"),
    (LOOP, "policy-timeout"),
];

#[test]
fn host_policies_without_a_decision_deny() {
    for (text, id) in NO_DECISION {
        for mut case in [Case::attest(), Case::release()] {
            case.context.host_policy = bundle("host", text);
            let judged = case.judge();
            assert_eq!(reasons(&judged), [id], "{text}");
            assert_eq!(judged.verdict.reasons[0].source, Source::HostPolicy);
            assert_eq!(judged.verdict.obligations, Default::default());
            let check = judged.verdict.checks.iter().find(|check| check.id == "host-policy").unwrap();
            assert!(matches!(check.outcome, Outcome::Fail { .. }));
        }
    }
}

#[test]
fn workload_policies_without_a_decision_deny() {
    for (text, id) in NO_DECISION {
        let mut case = Case::release();
        registered(&mut case, bundle("workload", text));
        let judged = case.judge();
        assert_eq!(reasons(&judged), [id], "{text}");
        assert_eq!(judged.verdict.reasons[0].source, Source::WorkloadPolicy);
    }
}

#[test]
fn both_policies_must_allow() {
    let yes = "verdict := {\"allow\": true}";
    let no = "verdict := {\"allow\": false, \"reasons\": [{\"id\": \"no\", \"message\": \"no\"}]}";
    for (host, workload, allow) in [(yes, yes, true), (no, yes, false), (yes, no, false), (no, no, false)] {
        let mut case = Case::release();
        case.context.host_policy = bundle("host", host);
        registered(&mut case, bundle("workload", workload));
        let judged = case.judge();
        assert_eq!((judged.verdict.allow, judged.release.is_some()), (allow, allow));
    }
    // No policy, and a policy for something else.
    let mut case = Case::release();
    case.context.workload_policy = None;
    assert_eq!(reasons(&case.judge()), ["workload-unknown"]);
    registered(&mut case, bundle("host", yes));
    assert_eq!(reasons(&case.judge()), ["policy-refused"]);
    registered(&mut case, b"no bundle".to_vec());
    assert_eq!(reasons(&case.judge()), ["policy-refused"]);
    let mut case = Case::attest();
    case.context.host_policy = Vec::new();
    assert_eq!(reasons(&case.judge()), ["policy-refused"]);
}

#[test]
fn reference_values_that_cannot_be_read_deny() {
    let mut case = Case::attest();
    case.context.host_policy = bundle("host", "verdict := {\"allow\": count(data.countersign.reference.values) == 0}");
    case.context.reference = b"{\"revision\": 1".to_vec();
    assert_eq!(reasons(&case.judge()), ["reference-unreadable"]);
}

#[test]
fn a_simulated_host_gets_no_release() {
    let mut case = Case::release();
    case.context.host.simulated = true;
    let judged = case.judge();
    assert_eq!(reasons(&judged), ["simulated-host"]);
    assert!(judged.verdict.simulated);
    case.context.allow_simulated = true;
    let judged = case.judge();
    accepted(&judged);
    assert!(judged.verdict.simulated, "still marked");
    let mut case = Case::attest();
    case.context.host.simulated = true;
    accepted(&case.judge());
}

#[test]
fn an_approval_over_too_few_pcrs_is_a_reasoned_no() {
    // PCR 15 was not quoted, PCR 13 is the run PCR, PCR 10 is IMA's: none of them can be approved.
    for least in [vec![0, 15], vec![7, 13], vec![7, 10], vec![200]] {
        let mut case = Case::release();
        case.context.workload.as_mut().unwrap().least_selection = least;
        assert_eq!(reasons(&case.judge()), ["approval-selection"]);
    }
}
