//! The firmware's event log: TCG PC Client Platform Firmware Profile 1.06, section 10, crypto-agile format.
//!
//! A parsed log is well-formed, nothing more. [`replay`](EventLog::replay) says which PCR values it leads to, [`lies`](EventLog::lies)
//! finds claims that a true log does not make. Event *types* are never measured, and event data only where it hashes to the
//! event's digest ([`Event::measured`]).

mod facts;
mod kind;
mod lies;
mod replay;

pub use facts::Variable;
pub use kind::EventType;
pub use lies::Lie;
pub use replay::{PcrBank, ReplayError};

use countersign_tpm::alg::HashAlg;

use crate::codec::{Malformed, Reader, Reason};
use crate::limits;

/// A PCR index that stands for "extends nothing".
pub const NO_PCR: u32 = 0xFFFF_FFFF;
/// PCRs that a PC client's TPM has.
pub const PCRS: usize = 24;

/// A log in the crypto-agile format. Borrows from the bytes that it was parsed from.
#[derive(Debug, Clone)]
pub struct EventLog<'a> {
    /// Banks that the specification-id event lists: TPM_ALG_ID and digest length in bytes.
    pub banks: Vec<(u16, u16)>,
    /// The events after the specification-id event.
    pub events: Vec<Event<'a>>,
}

/// One event (TCG_PCR_EVENT2).
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Index in the log; the specification-id event is 0.
    pub index: u32,
    /// Offset of the event in the log, in bytes.
    pub offset: usize,
    /// PCR, or [`NO_PCR`].
    pub pcr: u32,
    /// What kind the log says it is. Not measured.
    pub kind: EventType,
    /// TPML_DIGEST_VALUES behind its count; every entry was checked when the log was parsed.
    digests: &'a [u8],
    /// Event data. Measured only where it hashes to the digest.
    pub data: &'a [u8],
}

/// Why bytes are not a crypto-agile event log.
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
    /// The first event is no specification-id event: a log in the format of TPM 1.2.
    #[error(
        "the first event is not a specification-id event of version 3: a legacy SHA-1 log vouches for no other bank"
    )]
    NotCryptoAgile,
}

impl<'a> EventLog<'a> {
    /// Parses a whole log, as the kernel's `binary_bios_measurements` holds it.
    ///
    /// # Errors
    /// [`BadEventLog`] names event, field and offset. Two digests of one algorithm in one event, and an algorithm that the
    /// specification-id event does not list, break the format.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadEventLog> {
        let mut reader = Reader::new(bytes);
        let bad = |event| move |malformed| BadEventLog::Malformed { event, malformed };
        if bytes.len() > limits::EVENT_LOG {
            let got = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let max = u64::try_from(limits::EVENT_LOG).unwrap_or(u64::MAX);
            return Err(bad(0)(reader.bad("event log", Reason::TooLarge { got, max })));
        }
        let banks = spec_id(&mut reader)?;
        let mut events = Vec::with_capacity(bytes.len().checked_div(128).unwrap_or_default());
        let mut index: u32 = 0;
        while reader.left() > 0 {
            // Each event has at least 16 bytes, so the limit on bytes bounds the index.
            index = index.saturating_add(1);
            events.push(event(&mut reader, index, &banks).map_err(bad(index))?);
        }
        Ok(Self { banks, events })
    }

    /// Banks that this program can compute, in the log's order.
    pub fn known_banks(&self) -> impl Iterator<Item = HashAlg> + '_ {
        self.banks.iter().filter_map(|&(alg, _)| HashAlg::from_id(alg))
    }
}

impl<'a> Event<'a> {
    /// The event's digest in a bank.
    #[must_use]
    pub fn digest(&self, alg: HashAlg) -> Option<&'a [u8]> {
        self.digests().find(|(id, _)| *id == alg.id()).map(|(_, digest)| digest)
    }

    /// All digests with their TPM_ALG_IDs.
    pub fn digests(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let mut reader = Reader::new(self.digests);
        std::iter::from_fn(move || {
            // Digests of unknown banks are stored with the length from the specification-id event in front.
            let alg = reader.u16_le("alg").ok()?;
            let size = match HashAlg::from_id(alg) {
                Some(known) => known.size(),
                None => reader.left(),
            };
            Some((alg, reader.take(size, "digest").ok()?))
        })
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

/// The first event: TCG_PCR_EVENT with TCG_EfiSpecIDEvent (PFP 10.4.5.1).
fn spec_id(reader: &mut Reader<'_>) -> Result<Vec<(u16, u16)>, BadEventLog> {
    let bad = |malformed| BadEventLog::Malformed { event: 0, malformed };
    let pcr = reader.u32_le("pcrIndex").map_err(bad)?;
    let kind = reader.u32_le("eventType").map_err(bad)?;
    reader.take(20, "digest").map_err(bad)?;
    let size = reader.u32_le("eventDataSize").map_err(bad)?;
    let mut data = reader.sub(usize::try_from(size).unwrap_or(usize::MAX), "specIdEvent").map_err(bad)?;
    if pcr != 0 || EventType(kind) != EventType::NO_ACTION || data.left() < 16 {
        return Err(BadEventLog::NotCryptoAgile);
    }
    if data.take(16, "signature").map_err(bad)? != b"Spec ID Event03\0" {
        return Err(BadEventLog::NotCryptoAgile);
    }
    data.take(8, "platformClass, versions, uintnSize").map_err(bad)?;
    let at = data.clone();
    let count = data.u32_le("numberOfAlgorithms").map_err(bad)?;
    if count == 0 || count > limits::LOG_BANKS {
        return Err(bad(at.bad("numberOfAlgorithms", Reason::Value(count.into()))));
    }
    let mut banks: Vec<(u16, u16)> = Vec::new();
    for _ in 0..count {
        let at = data.clone();
        let alg = data.u16_le("algorithmId").map_err(bad)?;
        if banks.iter().any(|(other, _)| *other == alg) {
            return Err(bad(at.bad("algorithmId", Reason::Other("one bank listed twice"))));
        }
        let at = data.clone();
        let size = data.u16_le("digestSize").map_err(bad)?;
        let fits = HashAlg::from_id(alg).is_none_or(|known| known.size() == usize::from(size));
        if !fits || usize::from(size) > countersign_tpm::alg::MAX_DIGEST {
            return Err(bad(at.bad("digestSize", Reason::Value(size.into()))));
        }
        banks.push((alg, size));
    }
    let vendor = data.u8("vendorInfoSize").map_err(bad)?;
    data.take(usize::from(vendor), "vendorInfo").map_err(bad)?;
    data.end("specIdEvent").map_err(bad)?;
    Ok(banks)
}

fn event<'a>(reader: &mut Reader<'a>, index: u32, banks: &[(u16, u16)]) -> Result<Event<'a>, Malformed> {
    let offset = reader.offset();
    let pcr = reader.u32_le("pcrIndex")?;
    let kind = EventType(reader.u32_le("eventType")?);
    let at = reader.clone();
    let count = reader.u32_le("digests.count")?;
    if count > limits::LOG_BANKS {
        return Err(at.bad("digests.count", Reason::TooLarge { got: count.into(), max: limits::LOG_BANKS.into() }));
    }
    let start = reader.clone();
    let mut seen: u32 = 0;
    for _ in 0..count {
        let at = reader.clone();
        let alg = reader.u16_le("digests.hashAlg")?;
        let Some((position, (_, size))) = banks.iter().enumerate().find(|(_, (id, _))| *id == alg) else {
            return Err(at.bad("digests.hashAlg", Reason::Value(alg.into())));
        };
        let bit = 1u32.checked_shl(u32::try_from(position).unwrap_or(31)).unwrap_or_default();
        if seen & bit != 0 {
            return Err(at.bad("digests.hashAlg", Reason::Other("two digests of one algorithm")));
        }
        seen |= bit;
        reader.take(usize::from(*size), "digests.digest")?;
    }
    let length = start.left().saturating_sub(reader.left());
    let digests = start.clone().take(length, "digests")?;
    let size = reader.u32_le("eventSize")?;
    let data = reader.take(usize::try_from(size).unwrap_or(usize::MAX), "event")?;
    Ok(Event { index, offset, pcr, kind, digests, data })
}

#[cfg(test)]
mod tests;
