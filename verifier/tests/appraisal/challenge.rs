//! The nonce, whom it was for, and what for.

use countersign_wire::cbor;
use countersign_wire::enrol::HostState;
use countersign_wire::id::{HostId, Nonce, RunId, WorkloadId};
use countersign_wire::statement::{Purpose, ReleaseRequest};

use crate::support::case::{Case, accepted, reasons, refused};

#[test]
fn another_nonce() {
    refused(&Case::attest().tampered(|evidence| evidence.nonce = Nonce([9; 32])), "challenge", "nonce");
    // The TPM quoted for a challenge that this appraisal is not about.
    let mut case = Case::attest();
    let mut other = case.clone();
    other.context.challenge.nonce = Nonce([9; 32]);
    refused(&case.appraise(&other.evidence()), "challenge", "nonce");
    // The nonce outside was changed to fit; the signed one was not.
    let mut evidence = other.evidence();
    evidence.nonce = case.context.challenge.nonce;
    refused(&case.appraise(&evidence), "qualifying-data", "extraData");
    case.context.challenge.nonce = Nonce([9; 32]);
    accepted(&case.appraise(&other.evidence()));
}

#[test]
fn a_nonce_of_another_host() {
    let mut case = Case::attest();
    refused(&case.tampered(|evidence| evidence.host = HostId([7; 32])), "challenge", "host");
    case.context.challenge.host = HostId([7; 32]);
    refused(&case.judge(), "challenge", "host");
}

#[test]
fn an_expired_nonce_and_one_from_the_future() {
    let mut case = Case::attest();
    case.context.now_ms = case.context.challenge.expires_ms - 1;
    accepted(&case.judge());
    for now in [case.context.challenge.expires_ms, i64::MAX, case.context.challenge.issued_ms - 1, i64::MIN] {
        case.context.now_ms = now;
        let no = refused(&case.judge(), "challenge", "challenge");
        assert_eq!(no.want, "within 60000 ms", "{now}");
    }
}

#[test]
fn the_purpose_is_signed() {
    let mut case = Case::release();
    case.context.challenge.purpose = Purpose::Attest;
    case.context.challenge.workload = None;
    let no = refused(&case.judge(), "statement", "purpose");
    assert_eq!((no.got.as_str(), no.want.as_str()), ("Release", "Attest"));
    let mut case = Case::attest();
    case.context.challenge.purpose = Purpose::Release;
    refused(&case.judge(), "statement", "purpose");
}

#[test]
fn a_release_asks_for_the_workload_of_its_challenge() {
    let mut case = Case::release();
    case.statement.release.as_mut().unwrap().workload = WorkloadId([9; 32]);
    refused(&case.judge(), "statement", "workload");
    let mut case = Case::release();
    case.statement.release = None;
    let no = refused(&case.judge(), "statement", "workload");
    assert_eq!(no.got, "none");
    // An attestation that slips a release in.
    let mut case = Case::attest();
    let (workload, run) = (WorkloadId([9; 32]), RunId([1; 16]));
    case.statement.release = Some(ReleaseRequest {
        workload,
        run,
        object_name: [&[0, 0x0B][..], &[1; 32]].concat(),
        nonce_tpm: vec![1; 32],
    });
    refused(&case.judge(), "statement", "workload");
}

#[test]
fn a_release_is_for_one_session_and_one_object() {
    for nonce in [Vec::new(), vec![7; 16], vec![7; 31], vec![7; 33]] {
        let mut case = Case::release();
        case.statement.release.as_mut().unwrap().nonce_tpm = nonce;
        refused(&case.judge(), "statement", "nonceTPM");
    }
    let sha384 = [&[0x00, 0x0C][..], &[5; 48]].concat();
    let sha1_as_long = [&[0x00, 0x04][..], &[5; 32]].concat();
    for name in [Vec::new(), vec![0x00, 0x0B], sha384, sha1_as_long, vec![0x40, 0, 0, 1]] {
        let mut case = Case::release();
        case.statement.release.as_mut().unwrap().object_name = name;
        refused(&case.judge(), "statement", "object Name");
    }
}

#[test]
fn the_statement_is_signed_and_has_one_form() {
    let case = Case::attest();
    // Another statement than the one that was hashed into the quote.
    let mut other = case.statement.clone();
    other.tls_key = Some(vec![1; 8]);
    refused(&case.tampered(|evidence| evidence.statement = cbor::encode(&other)), "qualifying-data", "extraData");
    refused(&case.tampered(|evidence| evidence.statement.push(0)), "qualifying-data", "extraData");
    // Signed, but not the deterministic encoding: an array of indefinite length.
    let mut loose = cbor::encode(&case.statement);
    assert_eq!(loose[0] & 0xe0, 0x80, "an array");
    loose[0] = 0x9f;
    loose.push(0xff);
    for statement in [loose, Vec::new(), vec![0xff], vec![0; 70_000]] {
        let judged = case.tampered(|evidence| {
            evidence.quote = case.quote(&statement);
            evidence.signature = case.tpm.sign(&evidence.quote);
            evidence.statement = statement;
        });
        refused(&judged, "statement", "statement");
    }
    let mut future = case.clone();
    future.statement.version = 2;
    refused(&future.judge(), "statement", "statement");
}

#[test]
fn revoked_and_pending_hosts_are_not_appraised() {
    for state in [HostState::Revoked, HostState::Pending] {
        let mut case = Case::attest();
        case.context.host.state = state;
        refused(&case.judge(), "host-state", "host state");
    }
}

#[test]
fn a_suspended_host_is_appraised_and_gets_nothing() {
    for mut case in [Case::attest(), Case::release()] {
        case.context.host.state = HostState::Suspended;
        assert_eq!(reasons(&case.judge()), ["host-suspended"]);
        // What else is wrong is found too.
        case.ima = None;
        refused(&case.judge(), "pcr-values", "PCR 10, sha256");
    }
}
