//! Receipts: which ones a quote must, may and must not contain (DESIGN.md section 5).
//!
//! A quote contains every confirmed receipt of this life of the PCRs, may lack only the newest one (which is then void), and
//! contains no void one. What an accepted quote contained stays proven by the run log's hash chain: a log that goes on from there contains it too, and
//! receipts before the newest confirmed one need not be kept. A log of the same life that does not go on is another machine's. After a reset of the PCRs the same holds for the newest receipt that the statement names. So two machines
//! with one cloned TPM are found at the second attestation of either.

use countersign_wire::receipt::Receipt;

use super::clock::Continuity;
use super::runlog::Logged;
use super::snapshot::{HostSnapshot, ReceiptStatus, StoredReceipt};

/// What follows from receipts that are in order; stored by the transaction that accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptUpdate {
    /// New standing of every receipt of this baseline.
    pub receipts: Vec<StoredReceipt>,
    /// Life of the PCRs that this quote belongs to.
    pub life: u64,
    /// Genuine receipts unknown to the database were taken over.
    pub state_lost: bool,
}

/// Why receipts are not in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReceiptFault {
    /// Signed evidence contradicts what the verifier knows: the host is suspended.
    Contradiction {
        /// What was found.
        got: String,
        /// What was expected.
        want: String,
    },
    /// The evidence is refused, and nothing follows from that.
    Refused {
        /// What was found.
        got: String,
        /// What was expected.
        want: String,
    },
}

/// Judges the receipts of a run log that replays and the one that the statement names.
///
/// # Errors
/// [`ReceiptFault`] says whether it is a contradiction.
pub(crate) fn judge(
    host: &HostSnapshot,
    continuity: Continuity,
    logged: &Logged,
    named: Option<&Receipt>,
    vouched: &[Receipt],
    epoch: u64,
) -> Result<ReceiptUpdate, ReceiptFault> {
    let Logged { goes_on, receipts: logged, .. } = logged;
    let old_life = host.baseline.as_ref().map_or(0, |baseline| baseline.life);
    if continuity == Continuity::First {
        // A new baseline: the run PCR is taken as it is. Receipts of an earlier baseline that it holds stay in it for the rest of
        // this boot, so they are known from here on; those that it does not hold no longer count.
        let old_life = host.receipts.iter().map(|stored| stored.life).max().unwrap_or(0);
        let life = old_life.saturating_add(1);
        let taken = |receipt: &Receipt, life| StoredReceipt {
            receipt: receipt.clone(),
            status: ReceiptStatus::Confirmed,
            life,
        };
        // So is the one that the statement names, though it may be of an earlier boot: the host goes on naming it until it has extended
        // another.
        let earlier = named.filter(|named| !logged.contains(named)).map(|named| taken(named, old_life));
        let receipts = earlier.into_iter().chain(logged.iter().map(|receipt| taken(receipt, life))).collect();
        return Ok(ReceiptUpdate { receipts, life, state_lost: false });
    }
    // Genuine, and older than what is known: confirmed or void long ago, never lost.
    let past = |receipt: &&Receipt| host.is_past(receipt) && vouched.contains(receipt);
    let known_here = *goes_on == Some(true)
        || host.receipts.iter().any(|stored| stored.life == old_life && logged.contains(&stored.receipt))
        || logged.iter().any(|receipt| past(&receipt));
    let same_life = match continuity {
        Continuity::Same => true,
        // A Resume kept the PCRs, so the run log goes on through earlier receipts; a Restart zeroed them.
        Continuity::Restarted => known_here,
        Continuity::First | Continuity::Reset { .. } => false,
    };
    // PCRs that began anew cannot hold a receipt from before.
    let is_stored = |receipt: &&Receipt| host.receipts.iter().any(|stored| stored.receipt == **receipt);
    if !same_life && let Some(stale) = logged.iter().find(|receipt| is_stored(receipt) || past(receipt)) {
        return Err(ReceiptFault::Refused {
            got: format!("the run log holds receipt {} from before the reset", stale.number),
            want: "only receipts of this boot".into(),
        });
    }
    if !same_life && *goes_on == Some(true) {
        return Err(ReceiptFault::Refused {
            got: "the run log goes on from before the reset".into(),
            want: "a log of this boot".into(),
        });
    }
    if same_life && *goes_on == Some(false) {
        return Err(ReceiptFault::Contradiction {
            got: "the run log replays and does not go on from the log that an earlier quote contained".into(),
            want: "every confirmed receipt of this boot; another machine may run with a copy of this TPM".into(),
        });
    }
    let life = if same_life { old_life } else { old_life.saturating_add(1) };
    let mut receipts = host.receipts.clone();
    let mut state_lost = take_over_vouched(host, &mut receipts, life, logged.iter(), vouched, epoch)?;
    // The one that the statement names may be of an earlier boot; one of this boot stands in the log too.
    let newer = named.into_iter().filter(|named| !past(named));
    state_lost |= take_over_vouched(host, &mut receipts, old_life, newer, vouched, epoch)?;
    receipts.sort_by_key(|stored| stored.receipt.number);
    if same_life {
        judge_same_life(&mut receipts, old_life, logged, *goes_on == Some(true))?;
    } else {
        judge_named(&mut receipts, named.map(|receipt| receipt.number))?;
    }
    Ok(ReceiptUpdate { receipts, life, state_lost })
}

/// Receipts that the host shows and the database does not know: forged, or lost with the database's newest state.
fn take_over_vouched<'a>(
    host: &HostSnapshot,
    receipts: &mut Vec<StoredReceipt>,
    life: u64,
    claimed: impl Iterator<Item = &'a Receipt>,
    vouched: &[Receipt],
    epoch: u64,
) -> Result<bool, ReceiptFault> {
    let mut lost = false;
    for receipt in claimed {
        if receipts.iter().any(|stored| stored.receipt == *receipt) {
            continue;
        }
        if !vouched.contains(receipt) {
            return Err(ReceiptFault::Refused {
                got: format!("a receipt numbered {} that this verifier never issued", receipt.number),
                want: "only receipts of this verifier".into(),
            });
        }
        if host.is_past(receipt) {
            return Err(ReceiptFault::Refused {
                got: format!("receipt {} is genuine, and older than the newest one known", receipt.number),
                want: "receipts in the order in which they were issued".into(),
            });
        }
        if host.lost_epoch.is_some_and(|used| used >= epoch) {
            return Err(ReceiptFault::Refused {
                got: format!("receipt {} is genuine but unknown, for the second time in epoch {epoch}", receipt.number),
                want: "a receipt in the database; `verifier host admit` starts a new baseline".into(),
            });
        }
        if receipts.iter().any(|stored| stored.receipt.number == receipt.number) {
            return Err(ReceiptFault::Refused {
                got: format!("receipt {} is genuine, and this verifier issued another of that number", receipt.number),
                want: "one receipt of a number; `verifier restored`, then `verifier host admit`".into(),
            });
        }
        lost = true;
        receipts.push(StoredReceipt { receipt: receipt.clone(), status: ReceiptStatus::Confirmed, life });
    }
    Ok(lost)
}

/// `proven`: the log goes on from one that holds every confirmed receipt, and no void one.
fn judge_same_life(
    receipts: &mut [StoredReceipt],
    life: u64,
    logged: &[Receipt],
    proven: bool,
) -> Result<(), ReceiptFault> {
    for stored in receipts.iter_mut().filter(|stored| stored.life == life) {
        let number = stored.receipt.number;
        let present = logged.contains(&stored.receipt);
        match (stored.status, present) {
            (ReceiptStatus::Confirmed, true) | (ReceiptStatus::Void, false) => {}
            (ReceiptStatus::Confirmed, false) if proven => {}
            (ReceiptStatus::Issued, true) => stored.status = ReceiptStatus::Confirmed,
            (ReceiptStatus::Issued, false) => stored.status = ReceiptStatus::Void,
            (ReceiptStatus::Confirmed, false) => {
                return Err(ReceiptFault::Contradiction {
                    got: format!("the run log replays and lacks receipt {number}, which an earlier quote contained"),
                    want: "every confirmed receipt of this boot; another machine may run with a copy of this TPM"
                        .into(),
                });
            }
            (ReceiptStatus::Void, true) => {
                return Err(ReceiptFault::Contradiction {
                    got: format!("the run log replays and holds receipt {number}, which a later quote lacked"),
                    want: "no void receipt; another machine runs with a copy of this TPM".into(),
                });
            }
        }
    }
    Ok(())
}

/// After a reset: the statement names the newest receipt that the host extended in an earlier boot.
fn judge_named(receipts: &mut [StoredReceipt], named: Option<u64>) -> Result<(), ReceiptFault> {
    let newest = |status| receipts.iter().filter(|s| s.status == status).map(|s| s.receipt.number).max();
    let confirmed = newest(ReceiptStatus::Confirmed);
    let issued = newest(ReceiptStatus::Issued);
    if named == confirmed || (named.is_some() && named == issued) {
        for stored in receipts.iter_mut().filter(|stored| stored.status == ReceiptStatus::Issued) {
            let extended = Some(stored.receipt.number) == named;
            stored.status = if extended { ReceiptStatus::Confirmed } else { ReceiptStatus::Void };
        }
        return Ok(());
    }
    let show = |number: Option<u64>| number.map_or_else(|| "none".to_owned(), |n| n.to_string());
    Err(ReceiptFault::Contradiction {
        got: format!("the signed statement names receipt {} as the newest one extended", show(named)),
        want: format!(
            "receipt {}{}; another machine may run with a copy of this TPM",
            show(confirmed),
            issued.map_or_else(String::new, |n| format!(" or {n}"))
        ),
    })
}

#[cfg(test)]
mod tests {
    use countersign_wire::enrol::HostState;
    use countersign_wire::id::HostId;
    use countersign_wire::runlog::RunLog;

    use super::super::snapshot::Baseline;
    use super::*;

    fn receipt(number: u64) -> Receipt {
        Receipt { number, random: [u8::try_from(number).unwrap(); 16], mac: [7; 32] }
    }

    fn host(receipts: &[(u64, ReceiptStatus)]) -> HostSnapshot {
        HostSnapshot {
            host: HostId([1; 32]),
            name: String::new(),
            state: HostState::Active,
            simulated: false,
            ek_root: String::new(),
            tpm: Vec::new(),
            ak_public: Vec::new(),
            ek_name: Vec::new(),
            run_pcr: 13,
            baseline: Some(Baseline { reset_count: 1, restart_count: 0, clock_ms: 1, safe: true, life: 1, run: None }),
            receipts: receipts
                .iter()
                .map(|&(number, status)| StoredReceipt { receipt: receipt(number), status, life: 1 })
                .collect(),
            lost_epoch: None,
            version: 0,
        }
    }

    fn standing(update: &ReceiptUpdate) -> Vec<(u64, ReceiptStatus)> {
        update.receipts.iter().map(|s| (s.receipt.number, s.status)).collect()
    }

    use ReceiptStatus::{Confirmed, Issued, Void};

    /// A log of which nothing was proved before.
    fn whole(receipts: &[Receipt]) -> Logged {
        Logged { log: RunLog::empty(), goes_on: None, receipts: receipts.to_vec() }
    }

    fn judged(
        host: &HostSnapshot,
        how: Continuity,
        logged: &[u64],
        named: Option<u64>,
    ) -> Result<ReceiptUpdate, ReceiptFault> {
        let logged: Vec<Receipt> = logged.iter().map(|&n| receipt(n)).collect();
        judge(host, how, &whole(&logged), named.map(receipt).as_ref(), &[], 0)
    }

    #[test]
    fn answer_lost_twice_in_a_row() {
        let update = judged(&host(&[(1, Confirmed), (2, Issued)]), Continuity::Same, &[1], Some(1)).unwrap();
        assert_eq!(standing(&update), [(1, Confirmed), (2, Void)]);
        let update = judged(&host(&[(1, Confirmed), (2, Void), (3, Issued)]), Continuity::Same, &[1], Some(1)).unwrap();
        assert_eq!(standing(&update), [(1, Confirmed), (2, Void), (3, Void)]);
    }

    #[test]
    fn extended_receipt_is_confirmed() {
        let update = judged(&host(&[(1, Confirmed), (2, Issued)]), Continuity::Same, &[1, 2], Some(2)).unwrap();
        assert_eq!(standing(&update), [(1, Confirmed), (2, Confirmed)]);
        assert_eq!(update.life, 1);
    }

    #[test]
    fn clone_holds_a_void_receipt() {
        let fault = judged(&host(&[(1, Confirmed), (2, Void), (3, Issued)]), Continuity::Same, &[1, 2], Some(2));
        assert!(matches!(fault, Err(ReceiptFault::Contradiction { .. })));
    }

    #[test]
    fn clone_lacks_a_confirmed_receipt() {
        let fault = judged(&host(&[(1, Confirmed), (2, Confirmed)]), Continuity::Same, &[1], Some(1));
        assert!(matches!(fault, Err(ReceiptFault::Contradiction { .. })));
    }

    #[test]
    fn reset_names_the_newest_extended_one() {
        let how = Continuity::Reset { skipped: 0 };
        let known = host(&[(1, Confirmed), (2, Issued)]);
        assert_eq!(standing(&judged(&known, how, &[], Some(2)).unwrap()), [(1, Confirmed), (2, Confirmed)]);
        assert_eq!(standing(&judged(&known, how, &[], Some(1)).unwrap()), [(1, Confirmed), (2, Void)]);
        assert_eq!(judged(&known, how, &[], Some(1)).unwrap().life, 2);
        assert!(matches!(judged(&known, how, &[], None), Err(ReceiptFault::Contradiction { .. })));
        let after = host(&[(1, Confirmed), (2, Void)]);
        assert!(matches!(judged(&after, how, &[], Some(2)), Err(ReceiptFault::Contradiction { .. })));
        let first_answer_lost = host(&[(1, Issued)]);
        assert_eq!(standing(&judged(&first_answer_lost, how, &[], None).unwrap()), [(1, Void)]);
    }

    #[test]
    fn resume_keeps_the_life_and_restart_ends_it() {
        let known = host(&[(1, Confirmed), (2, Issued)]);
        let update = judged(&known, Continuity::Restarted, &[1, 2], Some(2)).unwrap();
        assert_eq!((update.life, standing(&update)), (1, vec![(1, Confirmed), (2, Confirmed)]));
        let update = judged(&known, Continuity::Restarted, &[], Some(2)).unwrap();
        assert_eq!((update.life, standing(&update)), (2, vec![(1, Confirmed), (2, Confirmed)]));
    }

    #[test]
    fn unknown_receipts_are_refused_or_taken_over_once() {
        let mut known = host(&[(1, Confirmed)]);
        assert!(matches!(judged(&known, Continuity::Same, &[1, 2], Some(2)), Err(ReceiptFault::Refused { .. })));
        let logged = [receipt(1), receipt(2)];
        let update = judge(&known, Continuity::Same, &whole(&logged), Some(&logged[1]), &logged[1..], 1).unwrap();
        assert!(update.state_lost);
        let how = Continuity::Reset { skipped: 0 };
        let update = judge(&known, how, &whole(&[]), Some(&logged[1]), &logged[1..], 1).unwrap();
        assert_eq!(standing(&update), [(1, Confirmed), (2, Confirmed)]);
        known.lost_epoch = Some(1);
        assert!(judge(&known, Continuity::Same, &whole(&logged), Some(&logged[1]), &logged[1..], 1).is_err());
    }

    #[test]
    fn first_of_a_baseline_is_taken_as_it_is() {
        let mut fresh = host(&[(1, Void)]);
        fresh.baseline = None;
        let update = judged(&fresh, Continuity::First, &[9], Some(9)).unwrap();
        assert_eq!(standing(&update), [(9, Confirmed)]);
        assert_eq!(update.receipts[0].life, 2);
    }

    /// 1 to 8 were confirmed and are no longer stored: the log stands for them.
    fn long(how: Continuity, goes_on: bool, logged: &[u64], named: u64) -> Result<ReceiptUpdate, ReceiptFault> {
        let known = host(&[(9, Confirmed), (10, Void), (11, Issued)]);
        let logged = logged.iter().map(|&n| receipt(n)).collect();
        let logged = Logged { log: RunLog::empty(), goes_on: Some(goes_on), receipts: logged };
        let vouched: Vec<Receipt> = (1..9).map(receipt).collect();
        judge(&known, how, &logged, Some(&receipt(named)), &vouched, 1)
    }

    #[test]
    fn a_log_that_goes_on_holds_what_was_confirmed() {
        let update = long(Continuity::Same, true, &[], 9).unwrap();
        assert_eq!(standing(&update), [(9, Confirmed), (10, Void), (11, Void)]);
        for how in [Continuity::Same, Continuity::Restarted] {
            let update = long(how, true, &[11], 11).unwrap();
            assert_eq!((update.life, standing(&update)), (1, vec![(9, Confirmed), (10, Void), (11, Confirmed)]));
            assert!(!update.state_lost);
            assert!(matches!(long(how, true, &[10], 10), Err(ReceiptFault::Contradiction { .. })), "void");
        }
        // Extended a second time.
        assert!(matches!(long(Continuity::Same, true, &[5], 9), Err(ReceiptFault::Refused { .. })));
    }

    #[test]
    fn a_clone_whose_log_goes_on_from_elsewhere() {
        let all: Vec<u64> = (1..10).collect();
        for logged in [&[1, 2][..], &all, &[11], &[]] {
            let found = long(Continuity::Same, false, logged, 2);
            assert!(matches!(found, Err(ReceiptFault::Contradiction { .. })), "{logged:?}: {found:?}");
        }
        // It kept its PCRs over a Resume: old receipts that are no longer stored tell.
        assert!(matches!(long(Continuity::Restarted, false, &[1, 2], 2), Err(ReceiptFault::Contradiction { .. })));
        assert_eq!(long(Continuity::Restarted, false, &[], 9).unwrap().life, 2);
        // A reset: nothing of before is in the log, and the newest is named.
        let reset = Continuity::Reset { skipped: 0 };
        assert_eq!(long(reset, false, &[], 9).unwrap().life, 2);
        assert!(matches!(long(reset, false, &[], 2), Err(ReceiptFault::Contradiction { .. })));
        assert!(matches!(long(reset, false, &[1], 9), Err(ReceiptFault::Refused { .. })));
        assert!(matches!(long(reset, true, &[], 9), Err(ReceiptFault::Refused { .. })));
    }
}
