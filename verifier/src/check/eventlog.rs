//! `verifier check eventlog`: does a log lead to these PCRs, in every bank, without lying?

use std::collections::BTreeMap;

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::eventlog::{BadEventLog, EventLog, PcrBank, PcrSet, Refusal, Registers, ReplayError, ccel};
use countersign_wire::facts::Facts;
use countersign_wire::{cel, ima, systemd_log};
use serde::Serialize;

use super::{CheckError, Pcrs, code};

/// A log that leads to the PCRs given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedLog {
    /// Replayed values of the PCRs asked for: bank, index, hex.
    pub pcrs: BTreeMap<String, BTreeMap<String, String>>,
    /// Events, the specification-id event included.
    pub events: usize,
    /// From an authenticated event of exactly one byte 00 or 01, in a PCR that was asked for; null otherwise.
    pub secure_boot: Option<bool>,
    /// What the events mean, as far as the PCRs asked for vouch for it.
    pub facts: Facts,
}

/// The files of one check.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogFiles<'a> {
    /// The event log: TCG's binary formats, a TDX guest's, or a canonical event log in JSON.
    pub log: &'a [u8],
    /// PCRS.json.
    pub pcrs: &'a [u8],
    /// The kernel's IMA list, binary.
    pub ima: Option<&'a [u8]>,
    /// systemd's userspace log.
    pub userspace: Option<&'a [u8]>,
    /// The ACPI table CCEL: the log is a TDX guest's, and no longer than the table says.
    pub ccel: Option<&'a [u8]>,
}

/// Checks a log against PCR values. Every listed bank must replay to every listed PCR. Only listed PCRs count: an event of another PCR is
/// vouched for by nobody, so nothing of it is believed, and nothing that it claims makes the log a lie; but the log's format and all
/// PCR indices are checked in any case.
///
/// # Errors
/// [`CheckError`].
pub fn check_eventlog(files: LogFiles<'_>) -> Result<CheckedLog, CheckError> {
    let pcrs = Pcrs::parse(files.pcrs)?;
    let canonical = if cel::looks_like(files.log) {
        let logs = cel::parse(files.log).map_err(|e| {
            CheckError::new(code::FORMAT, "format", e.to_string(), "a canonical event log (CEL-JSON)")
                .about(format!("record {}", e.index))
        })?;
        Some(logs)
    } else {
        None
    };
    let bytes = canonical.as_ref().map_or(files.log, |logs| logs.firmware.as_slice());
    let log = EventLog::parse(bytes).map_err(|BadEventLog::Malformed { event, malformed }| {
        let want = "an event log (PFP 10.2)";
        CheckError::new(code::FORMAT, "format", malformed.to_string(), want).about(format!("event {event}"))
    })?;
    let registers = registers(&log, &pcrs, files)?;
    let pcrs = if registers == Registers::Cc { pcrs.numbered_as_logged() } else { pcrs };
    let mut records = canonical.as_ref().map_or_else(Vec::new, |logs| logs.userspace.clone());
    if let Some(bytes) = files.userspace {
        records.extend(systemd_log::parse(bytes).map_err(|e| {
            CheckError::new(code::FORMAT, "userspace", e.to_string(), "systemd's userspace log")
                .about(format!("userspace record {}", e.index))
        })?);
    }
    let wanted: Vec<(HashAlg, PcrSet)> =
        pcrs.banks.iter().map(|(alg, values)| (*alg, values.keys().copied().collect())).collect();
    let mut examined = log.examine(&wanted, registers).map_err(refused)?;
    for bank in &mut examined.banks {
        let alg = bank.alg();
        systemd_log::replay(&records, bank)
            .map_err(|e| CheckError::new(code::REPLAY, "userspace", e.to_string(), format!("a {alg} digest")))?;
    }
    if let Some(list) = files.ima {
        replay_ima(list, &pcrs, &mut examined.banks)?;
    }
    examined.compare(|alg, pcr| pcrs.get(alg, pcr)).map_err(|mismatch| {
        let what = if mismatch.extended { "replayed" } else { "initial value, no event extends it" };
        CheckError::new(code::REPLAY, "pcr", format!("{} ({what})", mismatch.got), mismatch.want.to_string())
            .about(format!("PCR {}, {}", mismatch.pcr, mismatch.alg))
    })?;
    let hex = |values: &BTreeMap<u8, Digest>| {
        values.iter().map(|(pcr, value)| (pcrs.given(*pcr).to_string(), value.to_string())).collect()
    };
    Ok(CheckedLog {
        pcrs: pcrs.banks.iter().map(|(alg, values)| (alg.name().to_owned(), hex(values))).collect(),
        events: log.count(),
        secure_boot: examined.secure_boot(),
        facts: Facts::of(&examined, &records),
    })
}

fn refused(refusal: Refusal) -> CheckError {
    match refusal {
        Refusal::Lie(lie) => CheckError::new(code::LIE, lie.check, lie.got, lie.want).about(lie.event),
        Refusal::Replay(error) => {
            let text = error.to_string();
            let (check, event, want) = match error {
                ReplayError::NoBank(alg) => ("bank", None, format!("a log with a {alg} bank")),
                ReplayError::NoDigest { event, alg } => {
                    ("bank", Some(event), format!("a digest of every event in {alg}"))
                }
                ReplayError::PcrIndex { event, .. } => {
                    ("pcr-index", Some(event), "a PCR below 24, or 0xffffffff".into())
                }
            };
            CheckError { event, ..CheckError::new(code::REPLAY, check, text, want) }
        }
    }
}

/// What the log's indices mean. A TDX guest's log is one by its ACPI table, by registers that are asked for as `rtmrN`, or by its looks: then
/// only if every other register that is asked for holds zeros, as PCR 0 of a TPM never does, or the numbers are those of RTMRs.
fn registers(log: &EventLog<'_>, pcrs: &Pcrs, files: LogFiles<'_>) -> Result<Registers, CheckError> {
    if let Some(bytes) = files.ccel {
        let bad = |got: String, want: &str| CheckError::new(code::FORMAT, "ccel", got, want).about("CCEL table");
        let table = ccel::Table::parse(bytes).map_err(|e| bad(e.to_string(), "an ACPI table CCEL"))?;
        if table.cc_type != ccel::TDX {
            return Err(bad(format!("type {}", table.cc_type), "2: Intel TDX"));
        }
        let length = u64::try_from(files.log.len()).unwrap_or(u64::MAX);
        if length > table.length {
            return Err(bad(format!("a log of {length} bytes"), &format!("at most {} bytes", table.length)));
        }
        return Ok(Registers::Cc);
    }
    let zero = Digest::filled(HashAlg::Sha384, 0);
    let fits = pcrs.banks.iter().all(|(alg, values)| {
        *alg == HashAlg::Sha384 && values.iter().all(|(index, value)| (1..=4).contains(index) || *value == zero)
    });
    if pcrs.rtmrs || ((fits || pcrs.are_rtmrs()) && ccel::looks_like(log)) {
        Ok(Registers::Cc)
    } else {
        Ok(Registers::Tpm)
    }
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

#[cfg(test)]
mod tests;
