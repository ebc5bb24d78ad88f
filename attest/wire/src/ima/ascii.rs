//! The ASCII form of a list, as `ascii_runtime_measurements` shows it, turned into the binary one.
//!
//! One line an entry: PCR, SHA-1 template hash, template, then each field behind one space. Nothing is lost on the way: the kernel writes `_`
//! for a space in a name, and an empty field leaves its space. (A name with a newline breaks its line, and is refused.)

use super::hash::KernelHash;
use super::list::BadIma;
use super::template::{Field, Layout, MAX_NAME, OLD};
use crate::codec::{Malformed, Reason};
use crate::limits;

/// Whether bytes look like an ASCII list rather than a binary one, whose first bytes are a PCR below 24 and its zeros.
#[must_use]
pub fn looks_ascii(bytes: &[u8]) -> bool {
    let mut digits = bytes.iter().skip_while(|byte| **byte == b' ');
    digits.next().is_some_and(u8::is_ascii_digit)
}

/// The binary form of an ASCII list.
///
/// # Errors
/// [`BadIma`] names the line (from 0), the field and the offset of the line.
pub fn to_binary(text: &[u8]) -> Result<Vec<u8>, BadIma> {
    let mut out = Vec::new();
    let mut offset: usize = 0;
    for (index, line) in (0u64..).zip(text.split_inclusive(|byte| *byte == b'\n')) {
        let bad = |(field, reason)| BadIma { index, malformed: Malformed { field, offset, reason } };
        let entry = line.strip_suffix(b"\n").unwrap_or(line);
        append(entry, &mut out).map_err(bad)?;
        if out.len() > limits::IMA_LIST {
            let got = u64::try_from(out.len()).unwrap_or(u64::MAX);
            let max = u64::try_from(limits::IMA_LIST).unwrap_or(u64::MAX);
            return Err(bad(("IMA list", Reason::TooLarge { got, max })));
        }
        offset = offset.saturating_add(line.len());
    }
    Ok(out)
}

type Bad = (&'static str, Reason);

fn other(field: &'static str, what: &'static str) -> Bad {
    (field, Reason::Other(what))
}

fn append(line: &[u8], out: &mut Vec<u8>) -> Result<(), Bad> {
    let line = line.trim_ascii_start();
    let mut words = line.split(|byte| *byte == b' ');
    let mut word = |field| words.next().ok_or_else(|| other(field, "the line ends before it"));
    let pcr: u32 = number(word("pcr")?, "pcr")?;
    if pcr >= 24 {
        return Err(("pcr", Reason::Value(pcr.into())));
    }
    let template_hash = hex_of(word("template hash")?, "template hash")?;
    if template_hash.len() != 20 {
        return Err(other("template hash", "not 20 bytes"));
    }
    let template = word("template name")?;
    let layout = Layout::of(template).map_err(|reason| ("template name", reason))?;
    out.extend(pcr.to_le_bytes());
    out.extend(template_hash);
    let length = u32::try_from(template.len()).unwrap_or(u32::MAX);
    if length > MAX_NAME {
        return Err(("template name", Reason::TooLarge { got: length.into(), max: MAX_NAME.into() }));
    }
    sized(template, out);
    if template == OLD {
        let digest = hex_of(word("d")?, "d")?;
        if digest.len() != 20 {
            return Err(other("d", "not 20 bytes"));
        }
        out.extend(digest);
        let name = word("n")?;
        if name.len() > 255 {
            return Err(other("n", "longer than 255 bytes"));
        }
        sized(name, out);
    } else {
        let mut data = Vec::new();
        for field in layout.fields() {
            sized(&contents(*field, word(field.id())?)?, &mut data);
        }
        sized(&data, out);
    }
    match words.next() {
        None => Ok(()),
        Some(_) => Err(other("line", "more fields than its template has")),
    }
}

fn sized(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend(bytes);
}

/// A field's bytes from its text.
fn contents(field: Field, text: &[u8]) -> Result<Vec<u8>, Bad> {
    let id = field.id();
    match field {
        Field::DNg | Field::DNgV2 | Field::DModsig => {
            if text.is_empty() && field == Field::DModsig {
                return Ok(Vec::new());
            }
            let colon = text.iter().rposition(|byte| *byte == b':').ok_or_else(|| other(id, "no algorithm"))?;
            let (alg, digest) = text.split_at_checked(colon).unwrap_or_default();
            let digest = hex_of(digest.get(1..).unwrap_or_default(), id)?;
            let name = alg.rsplit(|byte| *byte == b':').next().unwrap_or_default();
            if KernelHash::from_name(name).is_some_and(|hash| hash.size() != digest.len()) {
                return Err(other(id, "a digest of another length than its algorithm's"));
            }
            Ok([alg, b":\0", &digest].concat())
        }
        Field::N | Field::NNg | Field::XattrNames => Ok([text, &[0]].concat()),
        Field::D
        | Field::Sig
        | Field::Modsig
        | Field::Buf
        | Field::XattrLengths
        | Field::XattrValues
        | Field::EvmSig => hex_of(text, id),
        // uid_t and gid_t have 32 bits, umode_t has 16.
        Field::Iuid | Field::Igid => Ok(number(text, id)?.to_le_bytes().to_vec()),
        Field::Imode => {
            let mode = u16::try_from(number(text, id)?).map_err(|_| other(id, "more than 16 bits"))?;
            Ok(mode.to_le_bytes().to_vec())
        }
    }
}

fn hex_of(text: &[u8], field: &'static str) -> Result<Vec<u8>, Bad> {
    hex::decode(text).map_err(|_| other(field, "not hex"))
}

fn number(text: &[u8], field: &'static str) -> Result<u32, Bad> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| other(field, "not a decimal number"))
}
