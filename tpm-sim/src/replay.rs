//! Replaying a recorded boot: what firmware, kernel and systemd extended then is extended again.
//!
//! The PCRs are then those of the recorded machine. Only trust in the EK tells such a TPM from that machine's.

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::eventlog::{EventLog, EventType};
use countersign_wire::{ima, systemd_log};

use crate::error::Error;

/// The logs of one boot, each as the kernel or systemd shows it; an empty one is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recording<'a> {
    /// `binary_bios_measurements`.
    pub boot: &'a [u8],
    /// `binary_runtime_measurements`.
    pub ima: &'a [u8],
    /// `tpm2-measure.log`.
    pub systemd: &'a [u8],
    /// How that kernel extended banks other than SHA-1 and SHA-256 for IMA.
    pub ima_banks: ImaBanks,
}

/// What a kernel extends into PCR 10 of a bank whose hash IMA did not load (seen: SHA-384 with kernel 6.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ImaBanks {
    /// The bank's own hash of the template.
    #[default]
    Own,
    /// The SHA-1 hash of the template with zeros behind it.
    PaddedSha1,
}

/// What was replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Replayed {
    /// Events of the boot log that were extended.
    pub events: usize,
    /// Entries of the IMA list that were extended.
    pub ima: usize,
    /// Records of systemd's log that were extended.
    pub systemd: usize,
    /// Locality of TPM2_Startup.
    pub locality: u8,
}

/// One TPM2_PCR_Extend.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Extend {
    pub(crate) pcr: u32,
    pub(crate) digests: Vec<Digest>,
}

/// A recording as extensions, all read before the first is made.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) extends: Vec<Extend>,
    pub(crate) summary: Replayed,
}

/// For `map_err` after reading a log.
fn bad<E: ToString>(log: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::Log { log, why: error.to_string() }
}

/// Reads a recording.
pub(crate) fn plan(recording: &Recording<'_>) -> Result<Plan, Error> {
    let (mut extends, locality) = boot(recording.boot)?;
    let events = extends.len();
    let ima = list(recording.ima, recording.ima_banks)?;
    let systemd = userspace(recording.systemd)?;
    let summary = Replayed { events, ima: ima.len(), systemd: systemd.len(), locality };
    extends.extend(ima.into_iter().chain(systemd));
    Ok(Plan { extends, summary })
}

/// The boot log's extensions and the locality of TPM2_Startup.
fn boot(log: &[u8]) -> Result<(Vec<Extend>, u8), Error> {
    if log.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let log = EventLog::parse(log).map_err(bad("boot log"))?;
    let mut locality = 0;
    let mut extends = Vec::new();
    for event in &log.events {
        // What comes after the first extend of PCR 0 no longer says where it began (PFP 10.4.5.3).
        if !extends.iter().any(|extend: &Extend| extend.pcr == 0) {
            if event.kind == EventType::EFI_HCRTM_EVENT {
                locality = 4;
            }
            locality = event.startup_locality().unwrap_or(locality);
        }
        if event.extends() {
            let digest = |(id, value): (u16, &[u8])| HashAlg::from_id(id).and_then(|alg| Digest::new(alg, value));
            extends.push(Extend { pcr: event.pcr, digests: event.digests().filter_map(digest).collect() });
        }
    }
    Ok((extends, locality))
}

fn list(list: &[u8], banks: ImaBanks) -> Result<Vec<Extend>, Error> {
    let entries = ima::entries(list).map_err(bad("IMA list"))?;
    let extend = |entry: Result<ima::Entry<'_>, ima::BadIma>| {
        let entry = entry.map_err(bad("IMA list"))?;
        let digest = |alg| match (banks, alg) {
            (ImaBanks::PaddedSha1, HashAlg::Sha384 | HashAlg::Sha512) => entry.extends_padded(alg),
            (ImaBanks::PaddedSha1, HashAlg::Sha1 | HashAlg::Sha256) | (ImaBanks::Own, _) => entry.extends(alg),
        };
        Ok(Extend { pcr: entry.pcr, digests: HashAlg::ALL.map(digest).to_vec() })
    };
    entries.map(extend).collect()
}

fn userspace(log: &[u8]) -> Result<Vec<Extend>, Error> {
    let records = systemd_log::parse(log).map_err(bad("systemd log"))?;
    let extend = |record: systemd_log::Record| Extend {
        pcr: record.pcr.into(),
        digests: record.digests.iter().filter_map(|(alg, value)| Digest::new(*alg, value)).collect(),
    };
    Ok(records.into_iter().map(extend).collect())
}
