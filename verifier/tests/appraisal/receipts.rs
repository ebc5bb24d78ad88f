//! Receipts: a host holds every confirmed one, no void one, and none that this verifier did not issue.

use countersign_verifier::appraise::ReceiptStatus::{self, Confirmed, Issued, Void};
use countersign_verifier::appraise::StoredReceipt;
use countersign_wire::runlog::Event;

use crate::support::case::{Case, accepted, receipt, refused, suspended};

fn standing(case: &Case) -> Vec<(u64, ReceiptStatus)> {
    let judged = case.judge();
    accepted(&judged);
    judged.update.unwrap().receipts.receipts.iter().map(|s| (s.receipt.number, s.status)).collect()
}

#[test]
fn honest_sequences_do_not_suspend() {
    let case = || Case::attest();
    // Extended; its answer lost; lost twice in a row.
    assert_eq!(standing(&case().later(&[(1, Issued)]).logged(&[1]).named(1)), [(1, Confirmed)]);
    assert_eq!(standing(&case().later(&[(1, Issued)])), [(1, Void)]);
    let lost = case().later(&[(1, Confirmed), (2, Void), (3, Issued)]).logged(&[1]).named(1);
    assert_eq!(standing(&lost), [(1, Confirmed), (2, Void), (3, Void)]);
    // TPM Resume: the same PCRs, a new pair.
    let mut resumed = case().later(&[(1, Confirmed), (2, Issued)]).logged(&[1]);
    resumed.log(&[Event::Resume {}]);
    let mut resumed = resumed.logged(&[2]).named(2);
    resumed.clock.restart_count += 1;
    assert_eq!(standing(&resumed), [(1, Confirmed), (2, Confirmed)]);
    assert_eq!(resumed.judge().update.unwrap().baseline.life, 1);
    // Reset: a new log; the statement names what was extended last.
    let reset = case().later(&[(1, Confirmed), (2, Issued)]).reset();
    assert_eq!(standing(&reset.clone().named(1)), [(1, Confirmed), (2, Void)]);
    assert_eq!(standing(&reset.clone().named(2)), [(1, Confirmed), (2, Confirmed)]);
    assert_eq!(reset.named(2).judge().update.unwrap().baseline.life, 2);
}

#[test]
fn a_missing_receipt_suspends() {
    let case = Case::attest().later(&[(1, Confirmed), (2, Confirmed)]).logged(&[1]).named(1);
    let no = suspended(&case.judge(), "receipts", "receipts");
    assert!(no.got.contains("lacks receipt 2"), "{no:?}");
    suspended(&Case::attest().later(&[(1, Confirmed)]).judge(), "receipts", "receipts");
    // After a reset the statement must name it.
    let reset = Case::attest().later(&[(1, Confirmed), (2, Confirmed)]).reset();
    suspended(&reset.clone().named(1).judge(), "receipts", "receipts");
    suspended(&reset.judge(), "receipts", "receipts");
}

#[test]
fn a_void_receipt_suspends() {
    let case = Case::attest().later(&[(1, Confirmed), (2, Void), (3, Issued)]).logged(&[1, 2]).named(2);
    let no = suspended(&case.judge(), "receipts", "receipts");
    assert!(no.got.contains("holds receipt 2"), "{no:?}");
    let reset = Case::attest().later(&[(1, Confirmed), (2, Void)]).reset().named(2);
    suspended(&reset.judge(), "receipts", "receipts");
}

#[test]
fn a_foreign_receipt_is_refused() {
    for logged in [&[1, 2][..], &[2]] {
        let case = Case::attest().later(&[(1, Issued)]).logged(logged);
        let no = refused(&case.judge(), "receipts", "receipts");
        assert!(no.got.contains("never issued"), "{no:?}");
    }
    refused(&Case::attest().later(&[(1, Confirmed)]).logged(&[1]).named(9).judge(), "receipts", "receipts");
    // Genuine and lost, but the database gave its number to another one since.
    let mut case = Case::attest().later(&[(1, Confirmed), (2, Issued)]).logged(&[1, 2]).named(2);
    case.context.host.receipts[1].receipt.mac = [1; 32];
    case.context.vouched = vec![receipt(2)];
    let no = refused(&case.judge(), "receipts", "receipts");
    assert!(no.got.contains("another of that number"), "{no:?}");
    // The right number, other bytes.
    let mut case = Case::attest().later(&[(1, Issued)]);
    case.context.host.receipts[0].receipt.mac = [1; 32];
    refused(&case.logged(&[1]).judge(), "receipts", "receipts");
}

#[test]
fn a_receipt_from_before_a_reset_in_the_log_after_it() {
    let case = Case::attest().later(&[(1, Confirmed)]).reset().logged(&[1]).named(1);
    let no = refused(&case.judge(), "receipts", "receipts");
    assert!(no.got.contains("from before the reset"), "{no:?}");
}

/// A host whose verifier lost everything after `known`.
fn after_a_restore(known: &[(u64, ReceiptStatus)], logged: &[u64], named: u64) -> Case {
    let mut case = Case::attest().later(known).logged(logged).named(named);
    let shown = logged.iter().copied().chain([named]);
    case.context.vouched = shown.filter(|n| !known.iter().any(|(number, _)| number == n)).map(receipt).collect();
    case.context.epoch = 2;
    case
}

#[test]
fn a_restored_database_is_noticed_once_and_suspends_nobody() {
    let case = after_a_restore(&[(1, Issued)], &[1, 2, 3], 3);
    assert_eq!(standing(&case), [(1, Confirmed), (2, Confirmed), (3, Confirmed)]);
    let judged = case.judge();
    assert!(judged.update.unwrap().receipts.state_lost);
    assert!(judged.verdict.checks.iter().any(|check| check.id == "verifier-state-lost"), "the verdict is marked");
    // Not a second time in this epoch.
    let mut again = case;
    again.context.host.lost_epoch = Some(2);
    refused(&again.judge(), "receipts", "receipts");
    again.context.epoch = 3;
    accepted(&again.judge());
    // Nothing lost: no mark.
    let usual = Case::attest().later(&[(1, Issued)]).logged(&[1]).named(1).judge();
    assert!(!usual.verdict.checks.iter().any(|check| check.id == "verifier-state-lost"));
}

#[test]
fn a_restored_database_from_before_a_reset_or_a_restart() {
    // The host was reset and attested twice since the backup.
    let mut reset = after_a_restore(&[(1, Confirmed), (2, Issued)], &[3, 4], 4);
    reset.clock.reset_count += 1;
    assert_eq!(standing(&reset), [(1, Confirmed), (2, Void), (3, Confirmed), (4, Confirmed)]);
    let update = reset.judge().update.unwrap();
    let lives = |life: u64| {
        let of = |stored: &&StoredReceipt| stored.life == life;
        update.receipts.receipts.iter().filter(of).map(|s| s.receipt.number).collect::<Vec<_>>()
    };
    assert_eq!((update.baseline.life, lives(1), lives(2)), (2, vec![1, 2], vec![3, 4]));
    // The same after a TPM Restart, which raises restartCount only.
    let mut restarted = after_a_restore(&[(1, Confirmed), (2, Confirmed)], &[3, 4], 4);
    restarted.clock.restart_count += 1;
    assert_eq!(standing(&restarted).len(), 4);
    assert_eq!(restarted.judge().update.unwrap().baseline.life, 2);
    // Not an excuse: within one life every receipt that is known must be there.
    suspended(&after_a_restore(&[(1, Confirmed)], &[2], 2).judge(), "receipts", "receipts");
}

#[test]
fn a_new_baseline_forgets_what_was_before() {
    // Re-admitted: void receipts that this boot's log holds no longer count against it.
    let mut case = Case::attest().later(&[(1, Confirmed), (2, Void)]).logged(&[1, 2]).named(2);
    case.context.host.baseline = None;
    assert_eq!(standing(&case), [(1, Confirmed), (2, Confirmed)]);
    // Re-admitted and rebooted: the statement still names the receipt of an earlier boot. The answer to that is lost, once and again.
    let mut first = Case::attest().later(&[(1, Confirmed)]).reset().named(1);
    first.context.host.baseline = None;
    let update = first.judge().update.unwrap();
    let mut next = first.clone().later(&[]);
    let life = update.baseline.life;
    next.context.host.baseline = Some(update.baseline);
    next.context.host.receipts = update.receipts.receipts;
    next.context.host.receipts.push(StoredReceipt { receipt: receipt(2), status: Issued, life });
    next.context.vouched = Vec::new();
    assert_eq!(standing(&next), [(1, Confirmed), (2, Void)]);
    assert_eq!(standing(&next.clone().reset()), [(1, Confirmed), (2, Void)]);
}
