//! Decisions of the shipped policies and of hostile ones.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;

use countersign_policy::input::{Boot, Event, Host, Input, Quote, Reference, ReferenceValue, Workload};
use countersign_policy::{
    Compiled, PolicyBundle, PolicyError, Role, reason, reference_document, shipped_host_policy, shipped_workload_policy,
};
use countersign_wire::facts::Facts;

fn event(index: u32, pcr: u8, kind: &str, digest: &str) -> Event {
    let digests = BTreeMap::from([("sha256".to_owned(), digest.to_owned())]);
    Event { index, pcr, kind: kind.to_owned(), digests, authentic: false, text: None }
}

fn input() -> Input {
    let events = vec![event(1, 4, "EV_EFI_BOOT_SERVICES_APPLICATION", "aa"), event(2, 5, "EV_EFI_ACTION", "bb")];
    Input {
        version: 1,
        purpose: "release".into(),
        time_ms: 1,
        time: "1970-01-01T00:00:00.001Z".into(),
        host: Host {
            id: "00".into(),
            name: "node".into(),
            simulated: true,
            ak_name: "000b".into(),
            ek_root: "CN=root".into(),
            tpm: BTreeMap::new(),
        },
        quote: Quote {
            firmware_version: "0".into(),
            reset_count: 1,
            restart_count: 0,
            clock_ms: 1,
            safe: true,
            skipped_resets: 0,
            first: true,
        },
        pcrs: BTreeMap::from([("sha256".to_owned(), BTreeMap::from([("0".to_owned(), "00".to_owned())]))]),
        boot: Some(Boot { secure_boot: Some(true), exit_boot_services: true, facts: Facts::default(), events }),
        ima: None,
        workload: Some(Workload {
            id: "11".into(),
            payload_root: "22".into(),
            policy: "33".into(),
            name: "app".into(),
        }),
        run: None,
    }
}

fn reference() -> serde_json::Value {
    let value = ReferenceValue {
        name: "golden".into(),
        bank: "sha256".into(),
        pcr: 4,
        kind: "EV_EFI_BOOT_SERVICES_APPLICATION".into(),
        digest: "aa".into(),
        content: None,
    };
    reference_document(&Reference { revision: 1, values: vec![value] })
}

/// Reference values of a fleet: many kernels, of which each host boots one.
fn fleet(sets: u32) -> serde_json::Value {
    let value = |set: u32, number: u32| ReferenceValue {
        name: format!("kernel-{set}"),
        bank: "sha256".into(),
        pcr: if number < 3 { 4 } else { 9 },
        kind: "EV_IPL".into(),
        digest: format!("{set:08x}{number:056x}"),
        content: None,
    };
    let mut values: Vec<ReferenceValue> = (0..sets)
        .flat_map(|set| (0..40).map(move |number| (set, number)))
        .map(|(set, number)| value(set, number))
        .collect();
    values.sort();
    reference_document(&Reference { revision: 1, values })
}

fn shipped(role: Role) -> Compiled {
    let bytes = match role {
        Role::Host => shipped_host_policy(),
        Role::Workload => shipped_workload_policy(),
    };
    Compiled::new(&PolicyBundle::parse(bytes).unwrap(), role).unwrap()
}

fn made(text: &str) -> Result<Compiled, PolicyError> {
    let files = BTreeMap::from([("p.rego".to_owned(), format!("package countersign.host\n{text}\n").into_bytes())]);
    Compiled::new(&PolicyBundle::parse(&PolicyBundle::build(files).unwrap()).unwrap(), Role::Host)
}

fn ids(policy: &Compiled, input: &Input, reference: &serde_json::Value) -> Vec<String> {
    let decision = policy.decide(input, reference);
    assert_eq!(decision.allow, decision.reasons.is_empty());
    decision.reasons.into_iter().map(|reason| reason.id).collect()
}

#[test]
fn shipped_policies_accept_the_good_host() {
    for role in [Role::Host, Role::Workload] {
        let decision = shipped(role).decide(&input(), &reference());
        assert!(decision.allow, "{decision:?}");
        assert_eq!(decision.obligations.lease_s, Some(3600));
    }
}

#[test]
fn shipped_host_policy_says_why_not() {
    let policy = shipped(Role::Host);
    let mut off = input();
    off.boot.as_mut().unwrap().secure_boot = Some(false);
    assert_eq!(ids(&policy, &off, &reference()), ["secure-boot"]);
    let mut unknown = input();
    unknown.boot.as_mut().unwrap().secure_boot = None;
    assert_eq!(ids(&policy, &unknown, &reference()), ["secure-boot"]);
    let mut other = input();
    other.boot.as_mut().unwrap().events[0] = event(1, 4, "EV_EFI_BOOT_SERVICES_APPLICATION", "cc");
    let decision = policy.decide(&other, &reference());
    assert!(!decision.allow);
    assert_eq!(decision.reasons[0].id, "boot-chain");
    assert_eq!(decision.reasons[0].subject.as_deref(), Some("event 1 (PCR 4, EV_EFI_BOOT_SERVICES_APPLICATION)"));
    assert_eq!(decision.reasons[0].got.as_deref(), Some("cc"));
    assert_eq!(decision.reasons[0].want.as_deref(), Some("one of 1 accepted: aa"));
    let empty = reference_document(&Reference::default());
    assert!(ids(&policy, &input(), &empty).contains(&"reference-missing".to_owned()));
    let mut nothing_measured = input();
    nothing_measured.boot.as_mut().unwrap().events.remove(0);
    assert!(!policy.decide(&nothing_measured, &reference()).allow);
}

#[test]
fn no_missing_field_turns_a_deny_into_an_allow() {
    for role in [Role::Host, Role::Workload] {
        let policy = shipped(role);
        let mut without_boot = input();
        without_boot.boot = None;
        assert!(!policy.decide(&without_boot, &reference()).allow);
        let mut no_events = input();
        no_events.boot.as_mut().unwrap().events.clear();
        if role == Role::Host {
            assert!(!policy.decide(&no_events, &reference()).allow);
        }
        let mut no_digest = input();
        no_digest.boot.as_mut().unwrap().events[0].digests.clear();
        if role == Role::Host {
            assert!(!policy.decide(&no_digest, &reference()).allow);
        }
        let mut no_workload = input();
        no_workload.workload = None;
        if role == Role::Workload {
            assert!(!policy.decide(&no_workload, &reference()).allow);
        }
    }
}

#[test]
fn only_a_literal_true_of_the_documented_shape_grants() {
    let cases = [
        ("verdict := {\"allow\": \"true\"}", reason::TYPE),
        ("verdict := {\"allow\": 1}", reason::TYPE),
        ("verdict := true", reason::TYPE),
        ("verdict := {\"allow\": true, \"extra\": 1}", reason::TYPE),
        ("verdict := {\"allow\": true} if input.nothing", reason::UNDEFINED),
        ("verdict := {\"allow\": true, \"obligations\": {\"teleport\": 1}}", reason::OBLIGATION),
        ("verdict := {\"allow\": true, \"obligations\": {\"lease_s\": 0}}", reason::OBLIGATION),
        ("verdict := {\"allow\": true, \"obligations\": {\"cap\": 1001}}", reason::OBLIGATION),
        ("verdict := {\"allow\": true, \"obligations\": {\"reattest_s\": 1.5}}", reason::OBLIGATION),
        ("verdict := {\"allow\": true, \"obligations\": {\"on_violation\": \"wait\"}}", reason::OBLIGATION),
        ("verdict := {\"allow\": true, \"obligations\": [1]}", reason::OBLIGATION),
        ("verdict := {\"allow\": false}", reason::UNEXPLAINED),
        ("verdict := {\"allow\": true, \"reasons\": 3}", reason::TYPE),
        ("verdict := {\"allow\": to_number(\"x\") == 1}", reason::UNDEFINED),
    ];
    for (text, id) in cases {
        assert_eq!(ids(&made(text).unwrap(), &input(), &reference()), [id], "{text}");
    }
    assert!(made("verdict := {\"allow\": true}").unwrap().decide(&input(), &reference()).allow);
}

#[test]
fn obligations_come_with_an_allow() {
    for kept in [
        "{\"cap\": 1}",
        "{\"retain_evidence_s\": 86400}",
        "{\"on_violation\": \"freeze\", \"freeze_hold_s\": 600}",
        "{\"lease_s\": 60, \"runtime_flags\": [\"net-none\", \"pid\", \"containall\", \"no-privs\"]}",
    ] {
        let text = format!("verdict := {{\"allow\": true, \"obligations\": {kept}}}");
        let decision = made(&text).unwrap().decide(&input(), &reference());
        assert!(
            decision.allow
                && serde_json::to_value(&decision.obligations).unwrap()
                    == serde_json::from_str::<serde_json::Value>(kept).unwrap(),
            "{kept}"
        );
    }
}

#[test]
fn hostile_policies_neither_hang_nor_crash() {
    assert!(made("f(x) := f(x + 1)\nverdict := {\"allow\": f(1)}").is_err(), "recursion");
    assert!(made("a := b\nb := a\nverdict := {\"allow\": a}").is_err(), "recursion between rules");
    let asks = made("verdict := {\"allow\": count(numbers.range(1, 1000000000)) > 0}");
    assert!(matches!(asks, Err(PolicyError::Builtin { .. })));
    assert!(made("verdict := {\"allow\": http.send({\"url\": \"x\"}).ok}").is_err());
    assert!(made("verdict := {\"allow\": time.now_ns() > 0}").is_err());
    assert!(made("nothing := 1").is_err(), "no verdict");
    let looping = "xs := [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30]\n\
        verdict := {\"allow\": count([1 | some a in xs; some b in xs; some c in xs; some d in xs; some e in xs]) > 0}";
    assert_eq!(ids(&made(looping).unwrap(), &input(), &reference()), [reason::TIMEOUT]);
    let other = BTreeMap::from([("p.rego".to_owned(), b"package other\nverdict := 1\n".to_vec())]);
    let other = PolicyBundle::parse(&PolicyBundle::build(other).unwrap()).unwrap();
    assert!(matches!(Compiled::new(&other, Role::Host), Err(PolicyError::Role { .. })));
}

#[test]
fn bundles_are_bounded() {
    let bytes = shipped_host_policy();
    for end in 0..bytes.len() {
        assert!(PolicyBundle::parse(&bytes[..end]).is_err());
    }
    assert!(PolicyBundle::parse(&[bytes, &[0]].concat()).is_err());
    assert!(PolicyBundle::parse(&vec![0; 2 << 20]).is_err());
}

#[test]
fn policies_do_not_see_what_a_reference_value_is_called() {
    let json = r#"{"revision":1,"values":[{"name":"golden","bank":"sha256","pcr":7,"type":"EV_SEPARATOR","digest":"aa",
        "content":{"name":"SecureBoot","text":"on","strength":"authenticated"}}]}"#;
    let reference: Reference = serde_json::from_str(json).unwrap();
    assert_eq!(reference.values[0].content.as_ref().unwrap().name, "SecureBoot");
    let document = reference_document(&reference);
    assert_eq!(document["accepted"]["sha256"][7]["EV_SEPARATOR"]["aa"], serde_json::json!(["golden"]));
    assert!(document["values"][0].get("content").is_none(), "{document}");
}

#[test]
fn a_fleet_of_many_kernels_fits_into_the_budget() {
    const SETS: u32 = 300;
    let (host, reference) = (shipped(Role::Host), fleet(SETS));
    let mut input = input();
    let measured = |set: u32, number: u32| {
        event(number, if number < 3 { 4 } else { 9 }, "EV_IPL", &format!("{set:08x}{number:056x}"))
    };
    let booted = |set, numbers: std::ops::Range<u32>| numbers.map(|number| measured(set, number)).collect();
    for (numbers, want) in [(0..40, &[][..]), (0..39, &["pcr-complete"]), (0..41, &["boot-chain"])] {
        for set in [0, SETS / 2, SETS - 1] {
            input.boot.as_mut().unwrap().events = booted(set, numbers.clone());
            assert_eq!(ids(&host, &input, &reference), want, "{set} {numbers:?}");
        }
    }
}
