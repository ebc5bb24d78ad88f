//! The firmware's event log: TCG PC Client Platform Firmware Profile (PFP) 1.06, section 10, in the crypto-agile format, in the SHA-1
//! format of TPM 1.2, and as a TDX guest's CC event log (UEFI 2.10, section 38).
//!
//! A parsed log is well-formed, nothing more. [`replay`](EventLog::replay) says which PCR values it leads to, [`lies`](EventLog::lies)
//! finds claims that a true log does not make, and [`examine`](EventLog::examine) does both for the PCRs that somebody vouches for: facts
//! are derived from what it returns. Event *types* are never measured, and event data only where it hashes to the event's digest
//! ([`Event::measured`]).

pub mod ccel;
mod digests;
mod examine;
mod kind;
mod known;
mod measured;
mod parse;
mod pcrs;
mod policy;
mod replay;
mod rules;
mod shape;
mod variable;
mod whole;

pub use examine::{Examined, Mismatch, Refusal, Registers, Vouched};
pub use kind::EventType;
pub(crate) use measured::{grub_prefix, plain_text, utf16};
pub use pcrs::PcrSet;
pub use replay::{PcrBank, ReplayError};
pub use rules::Lie;
pub use variable::{Guid, Variable};

use countersign_tpm::alg::HashAlg;

use crate::codec::Malformed;
use digests::Digests;

/// A PCR index that stands for "extends nothing".
pub const NO_PCR: u32 = 0xFFFF_FFFF;
/// PCRs that a PC client's TPM has.
pub const PCRS: usize = 24;

/// How the events are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// TCG_PCR_EVENT2 behind a specification-id event of version 3.
    CryptoAgile,
    /// TCG_PCR_EVENT throughout: TPM 1.2, and firmware that gives a TPM 2.0 system no other log. Vouches for the SHA-1 bank only.
    Sha1,
}

/// A log. Borrows from the bytes that it was parsed from.
#[derive(Debug, Clone)]
pub struct EventLog<'a> {
    /// How its events are stored.
    pub format: Format,
    /// Banks that the specification-id event lists: TPM_ALG_ID and digest length in bytes. Unknown ones are kept.
    pub banks: Vec<(u16, u16)>,
    /// The events; without the specification-id event, which extends nothing.
    pub events: Vec<Event<'a>>,
    /// Bytes of padding (all zeros or all ones) behind the last event.
    pub padding: usize,
    /// Data of the specification-id event.
    pub spec_id: Option<&'a [u8]>,
}

/// One event (TCG_PCR_EVENT2, or TCG_PCR_EVENT).
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Index in the log; a specification-id event is 0.
    pub index: u32,
    /// Offset of the event in the log, in bytes.
    pub offset: usize,
    /// PCR, or [`NO_PCR`].
    pub pcr: u32,
    /// What kind the log says it is. Not measured.
    pub kind: EventType,
    digests: Digests<'a>,
    /// Event data. Measured only where it hashes to the digest.
    pub data: &'a [u8],
}

/// Why bytes are not an event log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEventLog {
    /// A field breaks the format.
    #[error("event {event}: {malformed}")]
    Malformed {
        /// Index of the event.
        event: u32,
        /// The field, its offset in the log and what is wrong.
        malformed: Malformed,
    },
}

impl<'a> EventLog<'a> {
    /// Parses a whole log, as the kernel's `binary_bios_measurements` holds it. Padding behind the last event is passed over.
    ///
    /// # Errors
    /// [`BadEventLog`] names event, field and offset. Two digests of one algorithm in one event, and an algorithm that the
    /// specification-id event does not list, break the format.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadEventLog> {
        parse::log(bytes)
    }

    /// Banks that this program can compute, in the log's order.
    pub fn known_banks(&self) -> impl Iterator<Item = HashAlg> + '_ {
        self.banks.iter().filter_map(|&(alg, _)| HashAlg::from_id(alg))
    }

    /// Whether it has an event of UEFI's. Else a conventional BIOS wrote it.
    #[must_use]
    pub fn is_uefi(&self) -> bool {
        self.events.iter().any(|event| event.kind.0 >= EventType::EFI_EVENT_BASE)
    }

    /// Events, the specification-id event included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.events.len().saturating_add(usize::from(self.spec_id.is_some()))
    }
}

impl<'a> Event<'a> {
    /// The event's digest in a bank.
    #[must_use]
    pub fn digest(&self, alg: HashAlg) -> Option<&'a [u8]> {
        self.digests.get(alg)
    }

    /// All digests that this program can compute, with their TPM_ALG_IDs.
    pub fn digests(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let digests = self.digests;
        HashAlg::ALL.into_iter().filter_map(move |alg| Some((alg.id(), digests.get(alg)?)))
    }

    /// Whether the event extends a PCR at all.
    #[must_use]
    pub fn extends(&self) -> bool {
        self.kind != EventType::NO_ACTION && self.pcr != NO_PCR
    }

    /// How messages name it.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("event {} (PCR {}, {})", self.index, self.pcr, self.kind)
    }
}

#[cfg(test)]
mod tests;
