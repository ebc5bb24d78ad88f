//! What the verifier keeps of a policy's obligations: how often it releases, and how long it stores evidence.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_policy::PolicyBundle;
use countersign_verifier::admin::Request;
use countersign_wire::answer::Answer;
use countersign_wire::id::{PayloadRoot, PolicyDigest, RunId, VerdictId, WorkloadId};
use countersign_wire::obligations::Obligations;
use countersign_wire::statement::Purpose;
use serde_json::Value;
use sqlx::Connection as _;

use crate::lab::{Lab, Machine, denied, problem};

/// A workload whose policy allows everything, with these obligations.
fn workload(lab: &Lab, obligations: &str) -> WorkloadId {
    let text = format!(
        "package countersign.workload\nverdict := {{\"allow\": input.version == 1, \"obligations\": {obligations}}}\n"
    );
    let policy = PolicyBundle::build(BTreeMap::from([("w.rego".to_owned(), text.into_bytes())])).unwrap();
    let payload_root = PayloadRoot([7; 32]);
    let workload = WorkloadId::of(&payload_root, &PolicyDigest::of(&policy), &[9; 16]);
    lab.ask(Request::WorkloadRegister {
        name: "app".into(),
        workload,
        payload_root,
        sif_uuid: hex::encode([9; 16]),
        policy: STANDARD.encode(&policy),
        volume_key: STANDARD.encode([0x5a; 64]).into(),
        least_selection: Vec::new(),
    })
    .unwrap();
    workload
}

fn released(lab: &Lab, machine: &mut Machine, workload: WorkloadId) -> Answer {
    let answer = machine.release(lab, workload);
    assert!(answer.allow, "{}", String::from_utf8_lossy(&answer.verdict));
    machine.accept(&answer);
    answer
}

fn releases(lab: &Lab) -> Vec<Value> {
    let answer = lab.ask(Request::ReleaseList { host: None, limit: 100 }).unwrap();
    answer["releases"].as_array().unwrap().clone()
}

#[test]
fn once_per_boot_is_once_until_the_host_boots_again() {
    let (lab, mut machine) = Lab::enrolled();
    let once = workload(&lab, "{\"lease_s\": 60, \"cap\": 1}");
    let first = released(&lab, &mut machine, once);
    assert_eq!(Obligations::of_verdict(&first.verdict).unwrap().cap, Some(1), "the host is told");
    assert_eq!(denied(&machine.release(&lab, once)), ["cap-reached"]);
    // Another workload has a count of its own, and an attestation costs nothing.
    let other = workload(&lab, "{\"lease_s\": 60, \"cap\": 2}");
    assert!(machine.attest(&lab).allow);
    released(&lab, &mut machine, other);
    released(&lab, &mut machine, other);
    assert_eq!(denied(&machine.release(&lab, other)), ["cap-reached"]);
    machine.reboot();
    released(&lab, &mut machine, once);
    assert_eq!(denied(&machine.release(&lab, once)), ["cap-reached"]);
    assert_eq!(releases(&lab).len(), 4, "denials are no releases");
}

#[test]
fn a_tpm_resume_and_a_new_baseline_are_no_new_boot() {
    let (lab, mut machine) = Lab::enrolled();
    let once = workload(&lab, "{\"cap\": 1}");
    released(&lab, &mut machine, once);
    machine.case.clock.restart_count += 1;
    assert_eq!(denied(&machine.release(&lab, once)), ["cap-reached"], "the PCRs went on");
    machine.case.clock.restart_count -= 1;
    lab.set(&machine, "suspended");
    lab.set(&machine, "active");
    assert_eq!(denied(&machine.release(&lab, once)), ["cap-reached"], "the same counters");
}

#[test]
fn a_lost_answer_counts_until_an_operator_gives_it_back() {
    let (mut lab, mut machine) = Lab::enrolled();
    let once = workload(&lab, "{\"cap\": 1}");
    // It is asked for, signed, and never arrives; asked again with the same evidence it is the same answer, counted once.
    let challenge = lab.challenge(&machine, Some(once)).unwrap();
    let evidence = machine.evidence(&challenge, Some(once));
    let lost = lab.answer(evidence.clone(), Purpose::Release).unwrap();
    assert_eq!(lab.answer(evidence, Purpose::Release).unwrap(), lost);
    assert_eq!(releases(&lab).len(), 1);
    lab.reopen();
    assert_eq!(denied(&machine.release(&lab, once)), ["cap-reached"], "the record is the database's");
    let run = RunId([6; 16]);
    assert_eq!(problem(lab.ask(Request::ReleaseRefund { run: RunId([0; 16]), host: None })), "not-found");
    lab.ask(Request::ReleaseRefund { run, host: None }).unwrap();
    assert_eq!(problem(lab.ask(Request::ReleaseRefund { run, host: None })), "not-found", "once");
    assert!(releases(&lab)[0]["refunded_ms"].is_i64());
    let audited: String = lab.run(async {
        sqlx::query_scalar("SELECT detail FROM audit WHERE action = 'release-refund' AND actor = 'test'")
            .fetch_one(&mut database(&lab).await)
            .await
            .unwrap()
    });
    assert_eq!(audited, run.to_string());
    assert!(machine.release(&lab, once).allow);
    assert_eq!(denied(&machine.release(&lab, once)), ["cap-reached"]);
    // Another host chose the same id.
    let mut other = lab.vendor.machine();
    other.enrol(&lab, Some(&lab.token(None))).unwrap();
    assert!(other.release(&lab, once).allow);
    assert_eq!(problem(lab.ask(Request::ReleaseRefund { run, host: None })), "malformed");
    lab.ask(Request::ReleaseRefund { run, host: Some(machine.case.host().to_string()) }).unwrap();
    assert!(machine.release(&lab, once).allow);
    assert_eq!(denied(&other.release(&lab, once)), ["cap-reached"]);
}

async fn database(lab: &Lab) -> sqlx::SqliteConnection {
    sqlx::SqliteConnection::connect(&format!("sqlite://{}", lab.path().join("verifier.db").display())).await.unwrap()
}

fn with_days(lab: &mut Lab, days: u32) {
    let file = lab.path().join("verifier.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("evidence_days = {days}\n{text}")).unwrap();
    lab.reopen();
}

fn age(lab: &Lab, days: i64) {
    lab.run(async {
        sqlx::query("UPDATE verdicts SET time_ms = time_ms - ?1, retain_until_ms = retain_until_ms - ?1")
            .bind(days * 86_400_000)
            .execute(&mut database(lab).await)
            .await
            .unwrap()
    });
}

#[test]
fn evidence_is_kept_as_long_as_it_was_promised_and_no_longer_than_configured() {
    let (mut lab, mut machine) = Lab::enrolled();
    let promised = workload(&lab, "{\"retain_evidence_s\": 864000}");
    let attested = machine.attest(&lab).verdict_id;
    let kept = released(&lab, &mut machine, promised).verdict_id;
    // Without a limit nothing is ever deleted.
    age(&lab, 4);
    assert_eq!(lab.run(lab.service.delete_old_evidence()).unwrap(), (0, false));
    // With one that was lowered below the promise, the promise holds.
    with_days(&mut lab, 3);
    assert_eq!(lab.run(lab.service.delete_old_evidence()).unwrap(), (1, false));
    let bundle = |lab: &Lab, id: VerdictId| lab.run(lab.service.bundle(&id, None));
    assert_eq!(problem(bundle(&lab, attested).map(|_| ())), "not-found");
    assert!(bundle(&lab, attested).unwrap_err().to_string().contains("evidence_days"));
    bundle(&lab, kept).unwrap();
    age(&lab, 7);
    assert_eq!(lab.run(lab.service.delete_old_evidence()).unwrap(), (1, false));
    assert_eq!(problem(bundle(&lab, kept).map(|_| ())), "not-found");
    assert_eq!(lab.verdicts().len(), 2, "verdicts stay");
    // What reads stored evidence goes on.
    let preview =
        countersign_verifier::policy::preview::preview(&lab.service, countersign_policy::shipped_host_policy(), 10);
    assert_eq!(lab.run(preview).unwrap().looked_at, 0);
    assert!(machine.attest(&lab).allow, "and the host too");
}

#[test]
fn a_policy_that_wants_more_than_is_kept_denies() {
    let (mut lab, mut machine) = Lab::enrolled();
    with_days(&mut lab, 3);
    let too_long = workload(&lab, "{\"retain_evidence_s\": 259201}");
    let answer = machine.release(&lab, too_long);
    assert_eq!(denied(&answer), ["evidence-retention"]);
    let verdict: Value = serde_json::from_slice(&answer.verdict).unwrap();
    assert!(verdict["reasons"][0]["hint"].as_str().unwrap().contains("evidence_days"));
    let enough = workload(&lab, "{\"retain_evidence_s\": 259200}");
    assert!(machine.release(&lab, enough).allow);
}
