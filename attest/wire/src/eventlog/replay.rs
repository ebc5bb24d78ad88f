//! Replay: which PCR values a log leads to.

use countersign_tpm::alg::{Digest, HashAlg};

use super::examine::Registers;
use super::{Event, EventLog, EventType, NO_PCR, PCRS, PcrSet};

/// The PCRs of one bank after a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrBank {
    alg: HashAlg,
    values: [Digest; PCRS],
    extended: [bool; PCRS],
    covers: PcrSet,
}

/// Why a log leads to no PCR values in a bank.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The specification-id event does not list the bank.
    #[error("the log has no {0} bank")]
    NoBank(HashAlg),
    /// An event extends PCRs but has no digest for this bank: another bank must not vouch for it.
    #[error("{event} has no {alg} digest")]
    NoDigest {
        /// The event.
        event: String,
        /// The bank.
        alg: HashAlg,
    },
    /// A PCR that no TPM has; or no PCR, for an event of a type that always extends one.
    #[error("{event}: PCR index {pcr} is not below 24")]
    PcrIndex {
        /// The event.
        event: String,
        /// What it says.
        pcr: u32,
    },
}

impl PcrBank {
    /// The PCRs right after a TPM reset: zeros, and ones in 17 to 22 (PC Client Platform TPM Profile 1.05, 4.6).
    #[must_use]
    pub fn initial(alg: HashAlg) -> Self {
        Self::starting(alg, PcrSet::ALL, Registers::Tpm)
    }

    /// The bank's algorithm.
    #[must_use]
    pub const fn alg(&self) -> HashAlg {
        self.alg
    }

    /// The PCRs that were replayed; the others hold nothing of meaning.
    #[must_use]
    pub const fn covers(&self) -> PcrSet {
        self.covers
    }

    /// The registers at reset, of which only some are going to be replayed.
    pub(super) fn starting(alg: HashAlg, covers: PcrSet, registers: Registers) -> Self {
        let mut bank = Self { alg, values: [Digest::filled(alg, 0); PCRS], extended: [false; PCRS], covers };
        if registers == Registers::Tpm {
            for value in bank.values.iter_mut().take(23).skip(17) {
                *value = Digest::filled(alg, 0xff);
            }
        }
        bank
    }

    /// Value of a PCR; `None` for an index that no TPM has.
    #[must_use]
    pub fn value(&self, pcr: u8) -> Option<Digest> {
        self.values.get(usize::from(pcr)).copied()
    }

    /// Whether any event extended the PCR.
    #[must_use]
    pub fn extended(&self, pcr: u8) -> bool {
        self.extended.get(usize::from(pcr)).copied().unwrap_or(false)
    }

    /// Extends a PCR; an index that no TPM has changes nothing.
    ///
    /// PCRs 17 to 22 hold ones until a dynamic launch sets them to zero, and nothing can extend them before (TPM 2.0 Part 1, 34.3).
    pub fn extend(&mut self, pcr: u8, digest: &[u8]) {
        let launched = (17..=22).contains(&pcr) && !self.extended(pcr);
        if let Some(value) = self.values.get_mut(usize::from(pcr)) {
            if launched {
                *value = Digest::filled(self.alg, 0);
            }
            value.extend_by(digest);
        }
        self.touch(pcr);
    }

    /// Puts a value that was replayed elsewhere (an IMA list, a run log).
    pub fn set(&mut self, pcr: u8, digest: Digest) {
        if let Some(value) = self.values.get_mut(usize::from(pcr)) {
            *value = digest;
        }
        self.touch(pcr);
    }

    fn touch(&mut self, pcr: u8) {
        if let Some(extended) = self.extended.get_mut(usize::from(pcr)) {
            *extended = true;
        }
    }

    /// Locality of the first extend of PCR 0 (PFP 10.4.5.3): its initial last byte.
    pub(super) fn start_at_locality(&mut self, locality: u8) {
        let mut initial = vec![0; self.alg.size()];
        if let Some(last) = initial.last_mut() {
            *last = locality;
        }
        if let (Some(value), Some(digest)) = (self.values.first_mut(), Digest::new(self.alg, &initial)) {
            *value = digest;
        }
    }
}

impl EventLog<'_> {
    /// The PCR values of a bank that this log leads to.
    ///
    /// # Errors
    /// The bank is not listed, an extending event lacks its digest, or a PCR index is not below 24.
    pub fn replay(&self, alg: HashAlg) -> Result<PcrBank, ReplayError> {
        self.has_bank(alg)?;
        let mut bank = PcrBank::initial(alg);
        for event in &self.events {
            let Some(pcr) = pcr_of(event)? else { continue };
            bank.note_locality(event, pcr);
            if event.kind != EventType::NO_ACTION {
                bank.extend(pcr, digest_of(event, alg)?);
            }
        }
        Ok(bank)
    }

    pub(super) fn has_bank(&self, alg: HashAlg) -> Result<(), ReplayError> {
        if self.banks.iter().any(|(id, _)| *id == alg.id()) { Ok(()) } else { Err(ReplayError::NoBank(alg)) }
    }
}

impl PcrBank {
    /// What an event says about where PCR 0 began: StartupLocality, or a measurement by a hardware root of trust (locality 4). Once PCR 0
    /// was extended it says nothing any more.
    pub(super) fn note_locality(&mut self, event: &Event<'_>, pcr: u8) {
        if pcr != 0 || self.extended(0) {
            return;
        }
        if event.kind == EventType::EFI_HCRTM_EVENT {
            self.start_at_locality(4);
        } else if let Some(locality) = event.startup_locality() {
            self.start_at_locality(locality);
        }
    }
}

/// An event's digest in a bank: another bank must not vouch for it.
pub(super) fn digest_of<'a>(event: &Event<'a>, alg: HashAlg) -> Result<&'a [u8], ReplayError> {
    event.digest(alg).ok_or_else(|| ReplayError::NoDigest { event: event.describe(), alg })
}

/// What firmware extends PCR 5 with when the operating system takes over, in the orders in which it happens (PFP 10.4.4): the call can
/// fail and be repeated. Only whole sequences: a log that has the call and lacks its end was cut.
const EXIT_BOOT_SERVICES: [&[&str]; 4] = [
    &["Exit Boot Services Invocation", "Exit Boot Services Returned with Success"],
    &["Exit Boot Services Invocation", "Exit Boot Services Returned with Failure"],
    &[
        "Exit Boot Services Invocation",
        "Exit Boot Services Returned with Failure",
        "Exit Boot Services Returned with Success",
    ],
    &[
        "Exit Boot Services Invocation",
        "Exit Boot Services Returned with Failure",
        "Exit Boot Services Invocation",
        "Exit Boot Services Returned with Success",
    ],
];

/// Completes PCR 5, where some firmware extends the events of ExitBootServices and does not log them.
///
/// `banks` are those that cover PCR 5, `wanted` its vouched values. If one and the same known sequence leads from the replayed to the
/// vouched value in every bank, the banks take it and it is returned: the vouched values alone prove that it was extended.
pub(super) fn complete_exit_boot_services(
    banks: &mut [&mut PcrBank],
    wanted: &[Digest],
) -> Option<&'static [&'static str]> {
    if banks.is_empty() || banks.len() != wanted.len() {
        return None;
    }
    let sequence = EXIT_BOOT_SERVICES.into_iter().find(|sequence| {
        banks.iter().zip(wanted).all(|(bank, wanted)| {
            let alg = bank.alg();
            let value = bank.value(5).map(|start| {
                sequence.iter().fold(start, |value, text| value.extend(alg.digest(&[text.as_bytes()]).as_bytes()))
            });
            value == Some(*wanted)
        })
    })?;
    for (bank, wanted) in banks.iter_mut().zip(wanted) {
        bank.set(5, *wanted);
    }
    Some(sequence)
}

/// The PCR that an event is for; `None` for the index that extends nothing. UEFI's own types always extend: Windows puts an event of
/// another type there.
pub(super) fn pcr_of(event: &Event<'_>) -> Result<Option<u8>, ReplayError> {
    if event.pcr == NO_PCR && event.kind.0 < EventType::EFI_EVENT_BASE {
        return Ok(None);
    }
    match u8::try_from(event.pcr) {
        Ok(pcr) if usize::from(pcr) < PCRS => Ok(Some(pcr)),
        _ => Err(ReplayError::PcrIndex { event: event.describe(), pcr: event.pcr }),
    }
}

impl Event<'_> {
    /// The locality that a StartupLocality event names (PFP 10.4.5.3).
    #[must_use]
    pub fn startup_locality(&self) -> Option<u8> {
        match self.about_locality() {
            Some([locality]) if self.pcr == 0 => Some(*locality),
            _ => None,
        }
    }

    /// What a StartupLocality event says, in whichever PCR and of whichever length.
    pub(super) fn about_locality(&self) -> Option<&[u8]> {
        if self.kind == EventType::NO_ACTION { self.data.strip_prefix(b"StartupLocality\0") } else { None }
    }
}
