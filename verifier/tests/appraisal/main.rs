//! Attacks on the appraisal: each is refused by the check that is meant for it, with the field in its words, and suspends the host or not
//! as DESIGN.md says. The TPM is software and does what no TPM would; its structures and the boot are real.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "tests"
)]

mod challenge;
mod clock;
mod logs;
mod policy;
mod quote;
mod receipts;
#[path = "../support/mod.rs"]
mod support;
mod sweeps;

use countersign_policy::verdict::Outcome;
use support::case::{Case, accepted};

#[test]
fn the_recorded_boot_is_accepted() {
    let judged = Case::attest().judge();
    accepted(&judged);
    let passed = |id: &str| judged.verdict.checks.iter().any(|c| c.id == id && c.outcome == Outcome::Pass);
    for id in countersign_verifier::appraise::ORDER {
        assert_eq!(passed(id), id != "workload-policy", "{id}");
    }
    assert!(judged.release.is_none());
}

#[test]
fn a_release_is_signed_from_the_quote_and_nothing_else() {
    let case = Case::release();
    let judged = case.judge();
    accepted(&judged);
    let basis = judged.release.unwrap();
    assert_eq!(basis.ak_name, case.tpm.ak().name().as_bytes());
    assert_eq!((basis.reset_count, basis.restart_count, basis.clock_ms), (5, 0, 100_000));
    let pcrs: Vec<u8> = basis.selection.0[0].pcrs().collect();
    assert_eq!(pcrs, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14], "all but the run PCR and IMA's");
    let want = case.statement.release.unwrap();
    assert_eq!((basis.workload, basis.object_name), (want.workload, want.object_name));
    assert_eq!(basis.nonce_tpm.as_slice(), want.nonce_tpm);
}
