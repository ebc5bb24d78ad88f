//! A nonce is answered once, by evidence for it, in its time, at its endpoint.

use countersign_verifier::appraise::ChallengeRecord;
use countersign_wire::cbor;
use countersign_wire::evidence::Evidence;
use countersign_wire::id::Nonce;
use countersign_wire::statement::Purpose;

use crate::lab::{Lab, denied, problem};

#[test]
fn the_same_evidence_gets_the_stored_answer() {
    let (lab, mut machine) = Lab::enrolled();
    let workload = lab.register(Vec::new()).unwrap();
    let challenge = lab.challenge(&machine, Some(workload)).unwrap();
    let evidence = machine.evidence(&challenge, Some(workload));
    let first = lab.run(lab.service.answer(evidence.clone(), Purpose::Release)).unwrap();
    let known = lab.everything();
    for _ in 0..3 {
        let again = lab.run(lab.service.answer(evidence.clone(), Purpose::Release)).unwrap();
        assert_eq!(again, first, "byte for byte, signatures and receipt included");
    }
    assert_eq!((lab.everything(), lab.verdicts().len()), (known, 1), "nothing more was recorded");
    // Not at the other endpoint.
    assert_eq!(problem(lab.answer(evidence, Purpose::Attest)), "challenge-purpose");
}

#[test]
fn other_evidence_for_an_answered_nonce_changes_nothing() {
    let (lab, mut machine) = Lab::enrolled();
    let challenge = lab.challenge(&machine, None).unwrap();
    let first = machine.evidence(&challenge, None);
    lab.answer(first, Purpose::Attest).unwrap();
    let known = lab.everything();
    // A second quote for the same nonce, honest in itself; and one that would suspend the host.
    for clock in [200_000, 1] {
        machine.case.clock.clock = clock;
        let second = machine.evidence(&challenge, None);
        assert_eq!(problem(lab.answer(second, Purpose::Attest)), "challenge-closed");
    }
    assert_eq!((lab.everything(), lab.verdicts().len()), (known, 1));
}

#[test]
fn an_unknown_nonce() {
    let (lab, mut machine) = Lab::enrolled();
    let mut challenge = lab.challenge(&machine, None).unwrap();
    challenge.nonce = Nonce([0xab; 32]);
    let evidence = machine.evidence(&challenge, None);
    assert_eq!(problem(lab.answer(evidence, Purpose::Attest)), "challenge-unknown");
    assert_eq!(lab.verdicts().len(), 0);
}

#[test]
fn a_newer_challenge_closes_the_older() {
    let (lab, mut machine) = Lab::enrolled();
    let older = lab.challenge(&machine, None).unwrap();
    let newer = lab.challenge(&machine, None).unwrap();
    let known = lab.everything();
    let evidence = machine.evidence(&older, None);
    assert_eq!(problem(lab.answer(evidence, Purpose::Attest)), "challenge-closed");
    assert_eq!((lab.everything(), lab.verdicts().len()), (known, 0));
    let evidence = machine.evidence(&newer, None);
    assert!(lab.answer(evidence, Purpose::Attest).unwrap().allow);
}

#[test]
fn a_nonce_of_the_other_purpose() {
    let (lab, mut machine) = Lab::enrolled();
    let workload = lab.register(Vec::new()).unwrap();
    let challenge = lab.challenge(&machine, None).unwrap();
    let evidence = machine.evidence(&challenge, None);
    assert_eq!(problem(lab.answer(evidence.clone(), Purpose::Release)), "challenge-purpose");
    // An attestation's nonce, a statement that asks for a release.
    let sneaky = machine.evidence(&challenge, Some(workload));
    assert_eq!(denied(&lab.answer(sneaky, Purpose::Attest).unwrap()), ["statement"]);
    // Challenges for a release name a workload, and only they.
    let mut request = countersign_wire::challenge::ChallengeRequest {
        version: 1,
        host: machine.case.host(),
        purpose: Purpose::Attest,
        workload: Some(workload),
    };
    assert_eq!(problem(lab.run(lab.service.challenge(&request))), "malformed");
    (request.purpose, request.workload) = (Purpose::Release, None);
    assert_eq!(problem(lab.run(lab.service.challenge(&request))), "malformed");
}

#[test]
fn evidence_that_arrives_late_is_denied_and_suspends_nobody() {
    let (lab, mut machine) = Lab::enrolled();
    machine.attest(&lab);
    let challenge = lab.challenge(&machine, None).unwrap();
    let evidence = machine.evidence(&challenge, None);
    // The minute passes.
    lab.run(async {
        let pool = pool(&lab).await;
        let record: Vec<u8> = sqlx::query_scalar("SELECT record_cbor FROM challenges WHERE nonce = ?")
            .bind(challenge.nonce.0.as_slice())
            .fetch_one(&pool)
            .await
            .unwrap();
        let mut record: ChallengeRecord = minicbor::decode(&record).unwrap();
        record.issued_ms -= 61_000;
        record.expires_ms -= 61_000;
        sqlx::query("UPDATE challenges SET record_cbor = ? WHERE nonce = ?")
            .bind(minicbor::to_vec(&record).unwrap())
            .bind(challenge.nonce.0.as_slice())
            .execute(&pool)
            .await
            .unwrap();
    });
    let known = lab.everything();
    assert_eq!(denied(&lab.answer(evidence, Purpose::Attest).unwrap()), ["challenge"]);
    assert_eq!((lab.everything(), lab.state()), (known, "active".to_owned()));
    assert!(machine.attest(&lab).allow);
}

pub(crate) async fn pool(lab: &Lab) -> sqlx::SqlitePool {
    sqlx::SqlitePool::connect(&format!("sqlite:{}", lab.path().join("verifier.db").display())).await.unwrap()
}

#[test]
fn answers_lost_twice_in_a_row_suspend_nobody() {
    let (lab, mut machine) = Lab::enrolled();
    machine.attest(&lab);
    machine.attest_and_lose(&lab);
    machine.attest_and_lose(&lab);
    assert!(machine.attest(&lab).allow);
    assert!(machine.attest(&lab).allow);
    assert_eq!(lab.state(), "active");
}

#[test]
fn a_nonce_does_not_outlive_a_change_of_the_hosts_state() {
    let (lab, mut machine) = Lab::enrolled();
    let challenge = lab.challenge(&machine, None).unwrap();
    let evidence = machine.evidence(&challenge, None);
    lab.set(&machine, "suspended");
    assert_eq!(problem(lab.answer(evidence, Purpose::Attest)), "challenge-closed");
    assert_eq!(denied(&machine.attest(&lab)), ["host-suspended"]);
    lab.set(&machine, "revoked");
    assert_eq!(problem(lab.challenge(&machine, None)), "host-revoked");
}

#[test]
fn what_nobodys_tpm_signed_fills_no_disk() {
    let (lab, mut machine) = Lab::enrolled();
    for _ in 0..110 {
        let challenge = lab.challenge(&machine, None).unwrap();
        let mut evidence: Evidence = cbor::decode(&machine.evidence(&challenge, None)).unwrap();
        evidence.signature[20] ^= 1;
        evidence.event_log = Some(vec![0; 100_000]);
        let answer = lab.answer(cbor::encode(&evidence), Purpose::Attest).unwrap();
        assert_eq!(denied(&answer), ["quote-signature"]);
        assert_eq!(problem(lab.run(lab.service.bundle(&answer.verdict_id, None))), "not-found");
    }
    assert_eq!(lab.verdicts().len(), 100, "the newest are kept, without what was sent");
    let denied_by_policy = {
        machine.case.event_log = None;
        machine.case.ima = None;
        machine.attest(&lab)
    };
    assert!(!denied_by_policy.allow);
    assert!(lab.run(lab.service.bundle(&denied_by_policy.verdict_id, None)).is_ok(), "what the TPM signed is kept");
}

#[test]
fn challenges_that_anybody_may_ask_for_fill_no_disk() {
    let (lab, mut machine) = Lab::enrolled();
    // However often a host has attested in this boot: the snapshot of a challenge holds the newest receipts only.
    for _ in 0..20 {
        assert!(machine.attest(&lab).allow);
    }
    let stored = || {
        lab.run(async {
            let sum = "SELECT coalesce(sum(length(snapshot_cbor)), 0) FROM challenges";
            sqlx::query_scalar::<_, i64>(sum).fetch_one(&pool(&lab).await).await.unwrap()
        })
    };
    assert_eq!(stored(), 0, "an answered challenge needs its answer only");
    let challenge = lab.challenge(&machine, None).unwrap();
    let one = stored();
    assert!((1..1000).contains(&one), "{one} bytes");
    for _ in 0..50 {
        lab.challenge(&machine, None).unwrap();
    }
    assert_eq!(stored(), one, "of the open one alone");
    assert_eq!(problem(lab.answer(machine.evidence(&challenge, None), Purpose::Attest)), "challenge-closed");
    assert!(machine.attest(&lab).allow);
}

#[test]
fn a_copied_machine_is_found_at_its_second_attestation() {
    for resets in [0, 1, 3] {
        let (lab, mut machine) = Lab::enrolled();
        machine.attest(&lab);
        let mut copy = machine.copy();
        let mut suspended_at = None;
        for round in 0..3 {
            for one in [&mut machine, &mut copy] {
                for _ in 0..resets {
                    one.reboot();
                }
                let answer = one.attest(&lab);
                if !answer.allow && suspended_at.is_none() {
                    suspended_at = Some(round);
                }
            }
        }
        assert!(suspended_at.is_some_and(|round| round <= 1), "{resets} resets: {suspended_at:?}");
        assert_eq!(lab.state(), "suspended", "{resets} resets");
    }
}

#[test]
fn two_quotes_for_one_nonce_at_once() {
    let (lab, mut machine) = Lab::enrolled();
    for round in 1..=8 {
        let challenge = lab.challenge(&machine, None).unwrap();
        let both = [machine.evidence(&challenge, None), machine.evidence(&challenge, None)];
        assert_ne!(both[0], both[1]);
        let [one, two] = both.map(|evidence| {
            let service = lab.service.clone();
            async move { service.answer(evidence, Purpose::Attest).await }
        });
        let (one, two) = lab.run(async { tokio::join!(tokio::spawn(one), tokio::spawn(two)) });
        let (good, bad): (Vec<_>, Vec<_>) = [one.unwrap(), two.unwrap()].into_iter().partition(Result::is_ok);
        assert_eq!((good.len(), lab.verdicts().len()), (1, round), "one is answered, one is refused");
        assert_eq!(problem(bad.into_iter().next().unwrap()), "challenge-closed");
        machine.accept(&cbor::decode(good[0].as_ref().unwrap()).unwrap());
    }
    assert_eq!(lab.state(), "active");
}

#[test]
fn a_nonce_does_not_outlive_the_ak_that_it_was_for() {
    let (lab, mut machine) = Lab::enrolled();
    machine.attest(&lab);
    let challenge = lab.challenge(&machine, None).unwrap();
    let evidence = machine.evidence(&challenge, None);
    machine.clear();
    machine.enrol(&lab, Some(&lab.token(Some(&machine)))).unwrap();
    let known = lab.everything();
    assert_eq!(problem(lab.answer(evidence, Purpose::Attest)), "challenge-closed");
    assert_eq!(lab.everything(), known);
    assert!(machine.attest(&lab).allow);
}
