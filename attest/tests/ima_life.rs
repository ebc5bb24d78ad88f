//! An IMA list that grows: increments, restarts, reference sets that change, and what an auditor sees of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_attest::HostError;
use countersign_verifier::admin::Request;
use countersign_verifier::appraise::{Context, appraise};
use countersign_verifier::check::check_bundle;
use countersign_wire::evidence::Evidence;
use countersign_wire::ima::synthetic::Synthetic;
use countersign_wire::record::{Bundle, Record};
use countersign_wire::refset::{Origin, ReferenceSet};
use countersign_wire::{artefact, cbor};
use minicbor::bytes::ByteVec;
use support::stage::{IMA, Stage, denied};

const POLICY: &str = r#"package countersign.host

default verdict := {"allow": false, "reasons": [{"id": "ima", "message": "not proved"}], "obligations": {}}

verdict := {"allow": true, "reasons": [], "obligations": {"lease_s": 60}} if {
	input.ima.appraisal.unknown == 0
	input.ima.appraisal.denied == 0
	input.ima.boot_aggregate == true
	input.ima.kexecs == 0
	input.ima.strong == true
}
"#;

/// Adds a set that accepts files (by path and SHA-256).
fn accept(stage: &Stage, name: &str, files: &[(&str, [u8; 32])]) {
    let mut origin = Origin::new("manual", name);
    origin.files = files.iter().map(|(path, digest)| format!("sha256:{} {path}", hex::encode(digest))).collect();
    let set = ReferenceSet { origins: vec![origin], ..ReferenceSet::default() };
    let set = STANDARD.encode(zstd::encode_all(set.to_json().unwrap().as_slice(), 3).unwrap());
    stage.verifier.ask(Request::ReferenceAddSet { name: name.into(), set, signer: String::new() });
}

/// The kernel measures: the list grows, and the TPM is extended.
fn measure(stage: &mut Stage, more: impl FnOnce(&mut Synthetic)) {
    let mut list = Synthetic::default();
    more(&mut list);
    stage.sim.replay(b"", &list.bytes).unwrap();
    let path = stage.path("ima");
    let before = std::fs::read(&path).unwrap();
    std::fs::write(path, [before, list.bytes].concat()).unwrap();
}

/// Attests; the bundle of the verdict.
fn attest(stage: &Stage) -> (Bundle, Record, Context, Evidence) {
    let mut host = stage.host();
    let attested = host.attest().unwrap();
    let file = host.bundle(attested.verdict_id).unwrap();
    assert!(check_bundle(&file, None).unwrap().allow, "recomputed by an auditor");
    let bundle: Bundle = artefact::from_file(&file).unwrap();
    let record: Record = cbor::decode(&bundle.record).unwrap();
    let context: Context = minicbor::decode(&record.context).unwrap();
    let evidence: Evidence = cbor::decode(&record.evidence).unwrap();
    (bundle, record, context, evidence)
}

/// First entry sent, and the number of bytes.
fn sent(evidence: &Evidence) -> (u64, usize) {
    let part = evidence.ima.as_ref().unwrap();
    (part.from, part.bytes.len())
}

#[test]
fn a_list_that_grows_is_sent_once() {
    let Some(mut stage) = Stage::with_policy(Some(POLICY)) else { return };
    accept(&stage, "base", &[("/bin/a", [1; 32])]);
    stage.host().enroll(&stage.verifier.token(None), "node-1").unwrap();
    let (_, _, context, evidence) = attest(&stage);
    assert_eq!(sent(&evidence), (0, IMA.len()));
    assert_eq!(context.ima.unwrap().state, None);

    // Two entries more: only they are sent. The violation is remembered.
    measure(&mut stage, |list| {
        list.push_file("/bin/a", &[1; 32]);
        list.push_violation("/var/log/wtmp");
    });
    let increment = std::fs::read(stage.path("ima")).unwrap().len() - IMA.len();
    let (bundle, record, context, evidence) = attest(&stage);
    assert_eq!(sent(&evidence), (1, increment));
    assert_eq!(context.ima.as_ref().unwrap().state.as_ref().unwrap().entries, 1);
    only_from_the_saved_state(&record, &context);
    without_its_reference_sets_a_bundle_is_nothing(&bundle);

    // Idle: nothing is sent, and what was seen before still counts.
    let (_, _, context, evidence) = attest(&stage);
    assert_eq!(sent(&evidence), (3, 0));
    let state = context.ima.unwrap().state.unwrap();
    assert_eq!((state.entries, state.tally.accepted, state.tally.violations), (3, 1, 1));

    // An unknown file denies, again and again; a denial changes nothing.
    measure(&mut stage, |list| list.push_file("/bin/b", &[2; 32]));
    for _ in 0..2 {
        assert_eq!(denied(stage.host().attest().unwrap_err()), ["ima"]);
    }
    // Other sets: everything is appraised again, from the first entry on.
    accept(&stage, "more", &[("/bin/b", [2; 32])]);
    let (_, _, context, evidence) = attest(&stage);
    assert_eq!((sent(&evidence).0, context.challenge.ima_from), (0, 0));
    let (_, _, context, evidence) = attest(&stage);
    assert_eq!(sent(&evidence), (4, 0));
    assert_eq!(context.ima.unwrap().state.unwrap().tally.accepted, 2);
    // A set that goes takes its acceptance with it.
    stage.verifier.ask(Request::ReferenceRevoke { name: "more".into() });
    assert_eq!(denied(stage.host().attest().unwrap_err()), ["ima"]);
    assert_eq!(stage.verifier.state(), "active");
}

/// An increment counts only from the state that the last accepted attestation left, in the same life of the PCRs and for the same sets.
fn only_from_the_saved_state(record: &Record, context: &Context) {
    let outcome = |context: &Context| {
        let verdict = appraise(&record.evidence, context).verdict;
        let reasons =
            verdict.reasons.into_iter().map(|reason| format!("{}: {}", reason.id, reason.got.unwrap_or_default()));
        (verdict.allow, reasons.collect::<Vec<_>>().join(", "))
    };
    assert_eq!(outcome(context), (true, String::new()));
    type Change = fn(&mut Context);
    let changes: [Change; 8] = [
        |context| context.ima = None,
        |context| context.ima.as_mut().unwrap().state = None,
        |context| context.ima.as_mut().unwrap().state.as_mut().unwrap().entries += 1,
        |context| context.ima.as_mut().unwrap().state.as_mut().unwrap().life += 1,
        |context| context.ima.as_mut().unwrap().state.as_mut().unwrap().reference[0] ^= 1,
        |context| context.ima.as_mut().unwrap().state.as_mut().unwrap().banks[0].value[0] ^= 1,
        |context| context.ima.as_mut().unwrap().state.as_mut().unwrap().banks.clear(),
        |context| context.challenge.ima_from = 0,
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let mut changed = context.clone();
        change(&mut changed);
        let (allow, reasons) = outcome(&changed);
        assert!(!allow && reasons.starts_with("ima-list: "), "change {n}: {reasons}");
    }
    // Sets that are not at hand are not appraised against.
    let mut absent = context.clone();
    let ima = absent.ima.as_mut().unwrap();
    ima.sets[0].digest[0] ^= 1;
    ima.state.as_mut().unwrap().reference = ima.reference();
    assert_eq!(outcome(&absent), (false, "ima-list: not at hand".into()));
}

fn without_its_reference_sets_a_bundle_is_nothing(bundle: &Bundle) {
    let checked = |sets: Option<Vec<ByteVec>>| {
        let bundle = Bundle { sets, ..bundle.clone() };
        check_bundle(&artefact::to_file(&bundle), None).map(|checked| checked.allow).map_err(|e| e.check)
    };
    assert_eq!(checked(bundle.sets.clone()), Ok(true));
    let refused = Err("ima-reference".to_owned());
    assert_eq!(checked(None), refused);
    let mut changed = bundle.sets.clone().unwrap();
    *changed[0].last_mut().unwrap() = b' ';
    assert_eq!(checked(Some(changed)), refused);
}

#[test]
fn a_new_life_of_the_pcrs_starts_at_the_first_entry() {
    let Some(mut stage) = Stage::with_policy(Some(POLICY)) else { return };
    accept(&stage, "base", &[("/bin/a", [1; 32])]);
    stage.host().enroll(&stage.verifier.token(None), "node-1").unwrap();
    let grow = |stage: &mut Stage| measure(stage, |list| list.push_file("/bin/a", &[1; 32]));
    grow(&mut stage);
    attest(&stage);
    // A resume keeps PCRs and list; the whole list leads to the quoted value as well.
    stage.sim.suspend_resume().unwrap();
    let (_, _, _, evidence) = attest(&stage);
    assert_eq!(sent(&evidence).0, 0);
    assert_eq!(sent(&attest(&stage).3), (2, 0));
    // A reset: the list is shorter.
    std::fs::write(stage.path("ima"), IMA).unwrap();
    stage.reboot();
    assert_eq!(sent(&attest(&stage).3), (0, IMA.len()));
    // And one after which it is longer than the one before.
    std::fs::write(stage.path("ima"), IMA).unwrap();
    stage.reboot();
    grow(&mut stage);
    grow(&mut stage);
    let (_, _, context, evidence) = attest(&stage);
    assert_eq!((context.challenge.ima_from, sent(&evidence).0), (1, 0));
    // A list that lost its beginning, and one that lost its end.
    let whole = std::fs::read(stage.path("ima")).unwrap();
    std::fs::write(stage.path("ima"), &whole[IMA.len()..]).unwrap();
    assert_eq!(denied(stage.host().attest().unwrap_err()), ["ima-list"]);
    std::fs::write(stage.path("ima"), &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(stage.host().attest(), Err(HostError::Log { .. })));
    std::fs::write(stage.path("ima"), &whole).unwrap();
    attest(&stage);
    // A new baseline knows nothing of earlier lists.
    let host = stage.host().card().unwrap().host.to_string();
    for state in [countersign_wire::enrol::HostState::Suspended, countersign_wire::enrol::HostState::Active] {
        stage.verifier.ask(Request::HostState { host: host.clone(), state, reason: "test".into() });
    }
    attest(&stage);
    assert_eq!(stage.verifier.state(), "active");
}

#[test]
fn a_list_of_another_boot_is_not_tied_to_its_pcrs() {
    let Some(mut stage) = Stage::with_policy(Some(POLICY)) else { return };
    accept(&stage, "base", &[]);
    stage.host().enroll(&stage.verifier.token(None), "node-1").unwrap();
    // Its first entry says another boot_aggregate.
    stage.sim.reset().unwrap();
    stage.sim.replay(support::stage::BOOT, b"").unwrap();
    std::fs::write(stage.path("ima"), b"").unwrap();
    measure(&mut stage, |list| list.push_file("boot_aggregate", &[7; 32]));
    assert_eq!(denied(stage.host().attest().unwrap_err()), ["ima"]);
}

#[test]
fn sets_that_are_no_sets_are_refused() {
    let Some(stage) = Stage::new() else { return };
    let add = |json: &[u8]| {
        let set = STANDARD.encode(zstd::encode_all(json, 3).unwrap());
        stage.verifier.try_ask(Request::ReferenceAddSet { name: "x".into(), set, signer: String::new() })
    };
    assert!(add(b"{}").unwrap_err().to_string().contains("missing field `type`"));
    assert!(
        add(br#"{"type": "countersign.reference/v1", "exclude": ["("]}"#).unwrap_err().to_string().contains("exclude")
    );
    // 65 MiB of spaces in a few kilobytes.
    assert!(add(&vec![b' '; 65 << 20]).unwrap_err().to_string().contains("at most"));
    assert!(add(br#"{"type": "countersign.reference/v1"}"#).is_ok());
    let listed = stage.verifier.ask(Request::ReferenceList {});
    assert_eq!(
        listed["sets"].as_array().unwrap().iter().filter(|set| set["name"] == "x" && set["files"] == 0).count(),
        1
    );
}
