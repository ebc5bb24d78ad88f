//! `verifier check eventlog`: does a log lead to these PCRs, in every bank, without lying?

use std::collections::BTreeMap;

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::eventlog::{BadEventLog, EventLog, PcrBank};
use countersign_wire::{ima, systemd_log};
use serde::Serialize;

use super::{CheckError, Pcrs, code};

/// A log that leads to the PCRs given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedLog {
    /// Replayed values of the PCRs asked for: bank, index, hex.
    pub pcrs: BTreeMap<String, BTreeMap<String, String>>,
    /// Events, the specification-id event included.
    pub events: usize,
    /// From an authenticated event of exactly one byte 00 or 01; null otherwise.
    pub secure_boot: Option<bool>,
}

/// Checks a log against PCR values. Every listed bank must replay to every listed PCR.
///
/// # Errors
/// [`CheckError`].
pub fn check_eventlog(
    log: &[u8],
    pcrs: &[u8],
    ima_list: Option<&[u8]>,
    userspace: Option<&[u8]>,
) -> Result<CheckedLog, CheckError> {
    let pcrs = Pcrs::parse(pcrs)?;
    let log = EventLog::parse(log).map_err(|e| match e {
        BadEventLog::Malformed { event, malformed } => {
            let want = "a crypto-agile event log (PFP 10.2)";
            CheckError::new(code::FORMAT, "format", malformed.to_string(), want).about(format!("event {event}"))
        }
        BadEventLog::NotCryptoAgile => {
            CheckError::new(code::FORMAT, "format", e.to_string(), "Spec ID Event03").about("event 0")
        }
    })?;
    let records = match userspace {
        Some(bytes) => systemd_log::parse(bytes).map_err(|e| {
            CheckError::new(code::FORMAT, "userspace", e.to_string(), "systemd's userspace log")
                .about(format!("userspace record {}", e.index))
        })?,
        None => Vec::new(),
    };
    let algs: Vec<HashAlg> = pcrs.0.keys().copied().collect();
    let mut banks = Vec::new();
    for alg in &algs {
        let mut bank = log.replay(*alg).map_err(|e| {
            CheckError::new(code::REPLAY, "bank", e.to_string(), format!("a digest of every event in {alg}"))
        })?;
        systemd_log::replay(&records, &mut bank)
            .map_err(|e| CheckError::new(code::REPLAY, "userspace", e.to_string(), format!("a {alg} digest")))?;
        if let Some(lie) = log.lies(*alg) {
            return Err(CheckError::new(code::LIE, lie.check, lie.got, lie.want).about(lie.event));
        }
        banks.push(bank);
    }
    if let Some(list) = ima_list {
        replay_ima(list, &pcrs, &mut banks)?;
    }
    let mut replayed = BTreeMap::new();
    for bank in &banks {
        let mut values = BTreeMap::new();
        for (pcr, want) in pcrs.0.get(&bank.alg()).into_iter().flatten() {
            let got = bank.value(*pcr);
            if got != Some(*want) {
                let got = got.map_or_else(String::new, |digest| digest.to_string());
                let what = if bank.extended(*pcr) { "replayed" } else { "initial value, no event extends it" };
                return Err(CheckError::new(code::REPLAY, "pcr", format!("{got} ({what})"), want.to_string())
                    .about(format!("PCR {pcr}, {}", bank.alg())));
            }
            values.insert(pcr.to_string(), want.to_string());
        }
        replayed.insert(bank.alg().name().to_owned(), values);
    }
    Ok(CheckedLog { pcrs: replayed, events: log.events.len().saturating_add(1), secure_boot: log.secure_boot(&algs) })
}

/// One prefix of the list leads to PCR 10 in every bank that lists it.
fn replay_ima(list: &[u8], pcrs: &Pcrs, banks: &mut [PcrBank]) -> Result<(), CheckError> {
    let wanted: Vec<(Digest, Digest)> =
        banks.iter().filter_map(|bank| Some((bank.value(ima::PCR)?, pcrs.get(bank.alg(), ima::PCR)?))).collect();
    let (start, quoted): (Vec<Digest>, Vec<Digest>) = wanted.into_iter().unzip();
    if quoted.is_empty() {
        return Ok(());
    }
    ima::replay_to(list, &start, &quoted).map_err(|e| {
        CheckError::new(code::REPLAY, "ima", e.to_string(), "a prefix that leads to PCR 10 in every bank")
            .about("IMA list")
    })?;
    for bank in banks {
        if let Some(value) = pcrs.get(bank.alg(), ima::PCR) {
            bank.set(ima::PCR, value);
        }
    }
    Ok(())
}
