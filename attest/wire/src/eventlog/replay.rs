//! Replay: which PCR values a log leads to.

use countersign_tpm::alg::{Digest, HashAlg};

use super::{Event, EventLog, EventType, NO_PCR, PCRS};

/// The PCRs of one bank after a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrBank {
    alg: HashAlg,
    values: [Digest; PCRS],
    extended: [bool; PCRS],
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
    /// A PCR that no TPM has.
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
        let mut values = [Digest::filled(alg, 0); PCRS];
        for value in values.iter_mut().take(23).skip(17) {
            *value = Digest::filled(alg, 0xff);
        }
        Self { alg, values, extended: [false; PCRS] }
    }

    /// The bank's algorithm.
    #[must_use]
    pub const fn alg(&self) -> HashAlg {
        self.alg
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
    pub fn extend(&mut self, pcr: u8, digest: &[u8]) {
        if let Some(value) = self.values.get_mut(usize::from(pcr)) {
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
    fn start_at_locality(&mut self, locality: u8) {
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
        if !self.banks.iter().any(|(id, _)| *id == alg.id()) {
            return Err(ReplayError::NoBank(alg));
        }
        let mut bank = PcrBank::initial(alg);
        for event in &self.events {
            let Some(pcr) = pcr_of(event)? else { continue };
            if event.kind == EventType::NO_ACTION {
                // Later ones, and those for other PCRs, change nothing.
                if let Some(locality) = event.startup_locality()
                    && !bank.extended(0)
                {
                    bank.start_at_locality(locality);
                }
                continue;
            }
            if event.kind == EventType::EFI_HCRTM_EVENT && pcr == 0 && !bank.extended(0) {
                bank.start_at_locality(4);
            }
            let digest = event.digest(alg).ok_or_else(|| ReplayError::NoDigest { event: event.describe(), alg })?;
            bank.extend(pcr, digest);
        }
        Ok(bank)
    }
}

/// The PCR that an event is for; `None` for the index that extends nothing.
fn pcr_of(event: &Event<'_>) -> Result<Option<u8>, ReplayError> {
    if event.pcr == NO_PCR {
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
        if self.kind != EventType::NO_ACTION || self.pcr != 0 {
            return None;
        }
        match self.data.strip_prefix(b"StartupLocality\0") {
            Some([locality]) => Some(*locality),
            _ => None,
        }
    }
}
