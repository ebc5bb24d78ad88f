//! Time goes forward, and what does not is a contradiction only when the TPM vouches for it.

use crate::support::case::{Case, accepted, suspended};

#[test]
fn counters_and_clock_that_go_back_suspend() {
    let subject = "clock and counters";
    type Change = fn(&mut Case);
    let changes: [(&str, Change); 6] = [
        ("resetCount", |case| case.clock.reset_count -= 1),
        ("resetCount, as after a Clear", |case| {
            (case.clock.reset_count, case.clock.restart_count, case.clock.clock, case.clock.safe) = (0, 0, 0, false);
        }),
        ("restartCount", |case| case.clock.restart_count = 2),
        ("clock in one pair", |case| case.clock.clock = 99_999),
        ("clock in one pair, safe = NO", |case| (case.clock.clock, case.clock.safe) = (99_999, false)),
        ("clock in a new pair, safe = YES", |case| {
            (case.clock.clock, case.clock.reset_count, case.clock.restart_count) = (99_999, 6, 0);
        }),
    ];
    for (what, change) in changes {
        let mut case = Case::attest();
        case.clock.restart_count = 3;
        let mut case = case.later(&[]);
        change(&mut case);
        let no = suspended(&case.judge(), "clock", subject);
        assert!(!no.want.is_empty(), "{what}");
    }
}

#[test]
fn a_clock_that_falls_after_a_power_cut_does_not_suspend() {
    let mut case = Case::attest().later(&[]).reset();
    (case.clock.clock, case.clock.safe) = (50_000, false);
    let judged = case.judge();
    accepted(&judged);
    assert_eq!(judged.update.unwrap().baseline.clock_ms, 50_000);
}

#[test]
fn skipped_resets_are_a_fact_and_no_contradiction() {
    let mut case = Case::attest().later(&[]).reset();
    case.clock.reset_count += 7;
    accepted(&case.judge());
}

#[test]
fn a_first_quote_after_admission_is_taken_as_it_is() {
    // A Clear zeroed everything; the operator re-admitted the host.
    let mut case = Case::attest();
    (case.clock.reset_count, case.clock.clock, case.clock.safe) = (0, 1, false);
    let judged = case.judge();
    accepted(&judged);
    let baseline = judged.update.unwrap().baseline;
    assert_eq!((baseline.reset_count, baseline.clock_ms, baseline.life), (0, 1, 1));
}

#[test]
fn what_is_not_authentic_contradicts_nothing() {
    // Anybody may write a quote with lower counters; only the AK's signature makes it a contradiction.
    let case = Case::attest().later(&[]);
    let mut old = case.clone();
    old.clock.reset_count = 0;
    let mut forged = old.evidence();
    forged.signature = case.evidence().signature;
    crate::support::case::refused(&case.appraise(&forged), "quote-signature", "signature");
    // A true old quote is for an old nonce.
    let mut replayed = old;
    replayed.context.challenge.nonce = countersign_wire::id::Nonce([9; 32]);
    crate::support::case::refused(&case.appraise(&replayed.evidence()), "challenge", "nonce");
}
