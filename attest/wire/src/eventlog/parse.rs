//! From bytes to events: the crypto-agile format (PFP 10.2.2), the format of TPM 1.2 (PFP 10.2.1), and padding behind the last event.

use countersign_tpm::alg::{HashAlg, MAX_DIGEST};

use super::digests::{Digests, Places};
use super::{BadEventLog, Event, EventLog, EventType, Format};
use crate::codec::{Malformed, Reader, Reason};
use crate::limits;

/// Signature of the event that says "crypto-agile from here on".
const SPEC_ID_03: &[u8; 16] = b"Spec ID Event03\0";
/// Fewest bytes that are taken for padding: a header of 16 zero bytes has no type that any firmware logs, and the shortest event that
/// starts with ones (PCR index FFFFFFFF) has another byte behind four of them.
const ZERO_PADDING: usize = 16;
const ONES_PADDING: usize = 8;

/// Parses a whole log.
pub(super) fn log(bytes: &[u8]) -> Result<EventLog<'_>, BadEventLog> {
    let mut reader = Reader::new(bytes);
    if bytes.len() > limits::EVENT_LOG {
        let got = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let max = u64::try_from(limits::EVENT_LOG).unwrap_or(u64::MAX);
        return Err(malformed(0)(reader.bad("event log", Reason::TooLarge { got, max })));
    }
    let mut events = Vec::with_capacity(bytes.len().checked_div(128).unwrap_or_default());
    let first = legacy_event(&mut reader, 0).map_err(malformed(0))?;
    let (format, banks, spec_id) = match spec_id(&first)? {
        Some(banks) => (Format::CryptoAgile, banks, Some(first.data)),
        None => {
            events.push(first);
            (Format::Sha1, vec![(HashAlg::Sha1.id(), 20)], None)
        }
    };
    let usual = Usual::of(&banks);
    let mut index: u32 = 0;
    while reader.left() > 0 {
        if let Some(padding) = padding(&reader) {
            return Ok(EventLog { format, banks, events, padding, spec_id });
        }
        // Each event has at least 16 bytes, so the limit on bytes bounds the index.
        index = index.saturating_add(1);
        let event = match format {
            Format::CryptoAgile => agile_event(&mut reader, index, &banks, &usual),
            Format::Sha1 => legacy_event(&mut reader, index),
        };
        let event = event.map_err(malformed(index))?;
        if event.kind == EventType::NO_ACTION && event.data.starts_with(SPEC_ID_03) {
            let second = Reason::Other("a specification id that is not the first event");
            return Err(malformed(index)(reader.bad("event", second)));
        }
        events.push(event);
    }
    Ok(EventLog { format, banks, events, padding: 0, spec_id })
}

fn malformed(event: u32) -> impl Fn(Malformed) -> BadEventLog {
    move |malformed| BadEventLog::Malformed { event, malformed }
}

/// The area that firmware reserves for a log is longer than the log: ones behind it in a TDX guest (CCEL), zeros where the whole area of
/// a TPM 1.2 or ACPI log was read.
fn padding(reader: &Reader<'_>) -> Option<usize> {
    let rest = reader.clone().rest();
    let least = match rest.first()? {
        0 => ZERO_PADDING,
        0xff => ONES_PADDING,
        _ => return None,
    };
    let same = rest.first();
    (rest.len() >= least && rest.iter().all(|byte| Some(byte) == same)).then_some(rest.len())
}

/// TCG_PCR_EVENT (PFP 10.2.1).
fn legacy_event<'a>(reader: &mut Reader<'a>, index: u32) -> Result<Event<'a>, Malformed> {
    let offset = reader.offset();
    let pcr = reader.u32_le("pcrIndex")?;
    let kind = EventType(reader.u32_le("eventType")?);
    let digest = reader.take(20, "digest")?;
    let size = reader.u32_le("eventDataSize")?;
    let data = reader.take(usize::try_from(size).unwrap_or(usize::MAX), "event")?;
    Ok(Event { index, offset, pcr, kind, digests: Digests::sha1(digest), data })
}

/// The banks of a specification-id event (PFP 10.4.5.1), or `None` if the first event is none of version 3.
fn spec_id(first: &Event<'_>) -> Result<Option<Vec<(u16, u16)>>, BadEventLog> {
    if first.kind != EventType::NO_ACTION || !first.data.starts_with(SPEC_ID_03) {
        return Ok(None);
    }
    // The data stands behind a header of 32 bytes.
    let bad = |error: Malformed| {
        malformed(0)(Malformed { offset: error.offset.saturating_add(first.offset).saturating_add(32), ..error })
    };
    let mut data = Reader::new(first.data);
    if first.pcr != 0 {
        return Err(malformed(0)(Reader::new(&[]).bad("pcrIndex", Reason::Value(first.pcr.into()))));
    }
    if first.digest(HashAlg::Sha1).is_some_and(|digest| digest.iter().any(|byte| *byte != 0)) {
        return Err(malformed(0)(Reader::new(&[]).bad("digest", Reason::Other("not zeros"))));
    }
    data.take(16, "signature").map_err(bad)?;
    data.take(5, "platformClass, specVersionMinor").map_err(bad)?;
    let at = data.clone();
    let major = data.u8("specVersionMajor").map_err(bad)?;
    if major != 2 {
        return Err(bad(at.bad("specVersionMajor", Reason::Value(major.into()))));
    }
    data.take(1, "specErrata").map_err(bad)?;
    let at = data.clone();
    let uintn = data.u8("uintnSize").map_err(bad)?;
    if !matches!(uintn, 1 | 2) {
        return Err(bad(at.bad("uintnSize", Reason::Value(uintn.into()))));
    }
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
        let fits = digest_size(alg).is_none_or(|known| known == usize::from(size));
        if !fits || usize::from(size) > MAX_DIGEST {
            return Err(bad(at.bad("digestSize", Reason::Value(size.into()))));
        }
        banks.push((alg, size));
    }
    let vendor = data.u8("vendorInfoSize").map_err(bad)?;
    data.take(usize::from(vendor), "vendorInfo").map_err(bad)?;
    // SeaBIOS has a vendorInfoSize of four bytes, which is 0.
    if vendor == 0 && data.clone().rest() == [0; 3] {
        let _ = data.rest();
    }
    data.end("specIdEvent").map_err(bad)?;
    Ok(Some(banks))
}

/// Bytes of an algorithm's digest (TCG Algorithm Registry 1.34, 6.10), also of those that this program cannot compute.
fn digest_size(alg: u16) -> Option<usize> {
    const SM3_256: u16 = 0x0012;
    const SHA3_256: u16 = 0x0027;
    const SHA3_384: u16 = 0x0028;
    const SHA3_512: u16 = 0x0029;
    match alg {
        SM3_256 | SHA3_256 => Some(32),
        SHA3_384 => Some(48),
        SHA3_512 => Some(64),
        _ => HashAlg::from_id(alg).map(HashAlg::size),
    }
}

/// How nearly all events store their digests: one for each bank, in the order of the specification-id event.
struct Usual {
    /// Offset and value of each hashAlg.
    algs: Vec<(usize, [u8; 2])>,
    places: Places,
    length: usize,
}

impl Usual {
    fn of(banks: &[(u16, u16)]) -> Self {
        let (mut algs, mut places, mut length) = (Vec::with_capacity(banks.len()), Places::default(), 0_usize);
        for (alg, size) in banks {
            algs.push((length, alg.to_le_bytes()));
            places.put(*alg, length.saturating_add(2));
            length = length.saturating_add(2).saturating_add(usize::from(*size));
        }
        Self { algs, places, length }
    }

    /// The digests of an event that stores so many, if it stores them so.
    fn read<'a>(&self, reader: &mut Reader<'a>, count: u32) -> Option<Digests<'a>> {
        let mut ahead = reader.clone();
        let area = ahead.take(self.length, "digests").ok()?;
        let is = |(at, alg): &(usize, [u8; 2])| area.get(*at..).is_some_and(|rest| rest.starts_with(alg));
        if usize::try_from(count) != Ok(self.algs.len()) || !self.algs.iter().all(is) {
            return None;
        }
        *reader = ahead;
        Some(Digests::new(area, self.places))
    }
}

/// TCG_PCR_EVENT2 (PFP 10.2.2).
fn agile_event<'a>(
    reader: &mut Reader<'a>,
    index: u32,
    banks: &[(u16, u16)],
    usual: &Usual,
) -> Result<Event<'a>, Malformed> {
    let offset = reader.offset();
    let pcr = reader.u32_le("pcrIndex")?;
    let kind = EventType(reader.u32_le("eventType")?);
    let at = reader.clone();
    let count = reader.u32_le("digests.count")?;
    if count > limits::LOG_BANKS {
        return Err(at.bad("digests.count", Reason::TooLarge { got: count.into(), max: limits::LOG_BANKS.into() }));
    }
    let digests = match usual.read(reader, count) {
        Some(digests) => digests,
        None => digests(reader, count, banks)?,
    };
    let size = reader.u32_le("eventSize")?;
    let data = reader.take(usize::try_from(size).unwrap_or(usize::MAX), "event")?;
    Ok(Event { index, offset, pcr, kind, digests, data })
}

/// Digests in any order, as many as there are.
fn digests<'a>(reader: &mut Reader<'a>, count: u32, banks: &[(u16, u16)]) -> Result<Digests<'a>, Malformed> {
    let begin = reader.clone();
    let passed = |reader: &Reader<'a>| reader.offset().saturating_sub(begin.offset());
    let (mut places, mut seen) = (Places::default(), 0_u32);
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
        places.put(alg, passed(reader));
        reader.take(usize::from(*size), "digests.digest")?;
    }
    let area = begin.clone().take(passed(reader), "digests")?;
    Ok(Digests::new(area, places))
}
