//! The run log, in whole or from where the last accepted attestation read it, on top of what the boot log leaves in its PCR.

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::eventlog::PcrBank;
use countersign_wire::evidence::Evidence;
use countersign_wire::receipt::Receipt;
use countersign_wire::runlog::{BadRunLog, Position, RunLog};

use super::authentic::Authentic;
use super::checks::Failure;
use super::clock::Continuity;
use super::replayed::REBOOT;
use super::snapshot::{Context, HostSnapshot, RunState};
use crate::ima::SavedBank;

/// A run log that was read. Whether the PCR agrees is another question.
#[derive(Debug)]
pub(crate) struct Logged {
    /// The log, or the part that was sent.
    pub(crate) log: RunLog,
    /// Whether it goes on from what an earlier quote proved; none when none did.
    pub(crate) goes_on: Option<bool>,
    /// Receipts behind that; all of them when it does not go on.
    pub(crate) receipts: Vec<Receipt>,
}

impl Logged {
    /// Reads what the evidence holds.
    ///
    /// # Errors
    /// [`BadRunLog`]; also for a part that begins elsewhere than the challenge asks.
    pub(crate) fn read(evidence: &Evidence, host: &HostSnapshot) -> Result<Self, BadRunLog> {
        let bytes = evidence.run_log.as_deref().unwrap_or_default();
        let state = host.baseline.as_ref().and_then(|baseline| baseline.run.as_ref());
        let position = state.map(|state| Position { entries: state.entries, last: state.last });
        if let Some(from) = evidence.run_from {
            let Some(position) = position.filter(|position| position.entries == from) else {
                let reason =
                    position.map_or_else(String::new, |position| format!(" or from entry {}", position.entries));
                return Err(BadRunLog { index: from, offset: 0, reason: format!("expected the whole log{reason}") });
            };
            let log = RunLog::parse_after(bytes, &position)?;
            let receipts = log.receipts();
            return Ok(Self { log, goes_on: Some(true), receipts });
        }
        let log = RunLog::parse(bytes)?;
        let known = position.map(|position| RunLog::offset_of(bytes, &position).map(|_| position.entries));
        let skip = known.flatten().and_then(|entries| usize::try_from(entries).ok()).unwrap_or(0);
        let receipts = log.entries.iter().skip(skip).filter_map(|entry| entry.event.as_receipt()).collect();
        Ok(Self { log, goes_on: known.map(|through| through.is_some()), receipts })
    }
}

/// Replays the log to the run PCR in every quoted bank; what it leaves for the next attestation.
pub(super) fn replay(
    authentic: &Authentic,
    context: &Context,
    banks: &mut [PcrBank],
) -> Result<(Logged, Option<RunState>), Failure> {
    let pcr = context.host.run_pcr;
    let evidence = &authentic.evidence;
    let logged = Logged::read(evidence, &context.host)
        .map_err(|e| Failure::new(e.to_string(), "an unbroken run log").about("run log").hint(REBOOT))?;
    let log = &logged.log;
    if log.pcr.is_some_and(|logged| logged != pcr) {
        return Err(Failure::new(format!("{:?}", log.pcr), format!("PCR {pcr}")).about("run log"));
    }
    let part = evidence.run_from.and(context.host.baseline.as_ref()).and_then(|baseline| baseline.run.as_ref());
    if part.is_some() && authentic.continuity != Continuity::Same {
        return Err(Failure::new(
            "a part of the run log",
            "the whole log: the host was restarted since the last accepted attestation",
        )
        .about("run log")
        .hint("attest again"));
    }
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for bank in banks.iter_mut() {
        let alg = bank.alg();
        let about = format!("run log, PCR {pcr}, {alg}");
        let (Some(initial), Some(quoted)) = (bank.value(pcr), authentic.pcr(alg, pcr)) else {
            return Err(Failure::new(format!("PCR {pcr} is not quoted"), "the run PCR").about("run log"));
        };
        let start = match part {
            None => initial,
            Some(state) => {
                // The boot log is the one that the log's beginning was replayed on.
                if saved(&state.before, alg) != Some(initial) {
                    let want =
                        saved(&state.before, alg).map_or_else(|| "the whole log".into(), |value| value.to_string());
                    return Err(Failure::new(format!("the boot log leaves {initial}"), want).about(about).hint(REBOOT));
                }
                saved(&state.banks, alg).ok_or_else(|| {
                    Failure::new("a part of the run log", format!("the whole log: {alg} was not quoted before"))
                        .about("run log")
                })?
            }
        };
        match log.replay(start).and_then(|values| values.last().copied()) {
            Some(value) if value == quoted => bank.set(pcr, value),
            other => {
                let got = other.map_or_else(|| format!("an entry without a {alg} digest"), |v| v.to_string());
                return Err(Failure::new(format!("the run log leads to {got}"), format!("the quoted {quoted}"))
                    .about(about)
                    .hint(REBOOT));
            }
        }
        before.push(save(initial));
        after.push(save(quoted));
    }
    let Position { entries, last } = log.position();
    let state = (entries > 0).then_some(RunState { entries, last, before, banks: after });
    Ok((logged, state))
}

fn saved(banks: &[SavedBank], alg: HashAlg) -> Option<Digest> {
    banks.iter().find(|bank| bank.alg == alg.id()).and_then(SavedBank::digest)
}

fn save(value: Digest) -> SavedBank {
    SavedBank { alg: value.alg().id(), value: value.as_bytes().to_vec(), padded: false }
}
