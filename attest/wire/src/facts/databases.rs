//! Signature databases and authorities.

use super::{Authority, Certificate, KeyDatabase, Tagged};
use crate::codec::{Malformed, Reader};
use crate::eventlog::{Guid, Variable};

/// One entry of an EFI_SIGNATURE_LIST.
enum Entry<'a> {
    Certificate(&'a [u8]),
    Hash,
    Other,
}

/// The database in a variable; `None` if its contents are no signature lists.
pub(super) fn database(name: String, contents: &[u8], digest: Tagged) -> Option<KeyDatabase> {
    let mut found = KeyDatabase { name, certificates: Vec::new(), hashes: 0, other: 0, digest };
    let mut count = |entry: Entry<'_>| match entry {
        Entry::Certificate(der) => found.certificates.push(Certificate::new(der)),
        Entry::Hash => found.hashes = found.hashes.saturating_add(1),
        Entry::Other => found.other = found.other.saturating_add(1),
    };
    let mut reader = Reader::new(contents);
    while reader.left() > 0 {
        list(&mut reader, &mut count).ok()?;
    }
    Some(found)
}

/// The entries of a variable's signature lists, each with the kind of its list: what a difference is made of.
pub(super) fn entries(contents: &[u8]) -> Vec<(Guid, &[u8])> {
    let mut all = Vec::new();
    let mut reader = Reader::new(contents);
    while reader.left() > 0 {
        let Ok((kind, mut entries, size)) = header(&mut reader) else { break };
        while let Ok(entry) = entries.take(size, "SignatureData") {
            if let Some((_, value)) = entry.split_at_checked(16) {
                all.push((kind, value));
            }
        }
    }
    all
}

/// EFI_SIGNATURE_LIST: its kind, its entries, and the size of each.
fn header<'a>(reader: &mut Reader<'a>) -> Result<(Guid, Reader<'a>, usize), Malformed> {
    use crate::codec::Reason;
    let kind = Guid(reader.array("SignatureType")?);
    let at = reader.clone();
    let list_size = reader.u32_le("SignatureListSize")?;
    let header_size = reader.u32_le("SignatureHeaderSize")?;
    let size = reader.u32_le("SignatureSize")?;
    let too_small = || at.bad("SignatureListSize", Reason::Value(list_size.into()));
    // An entry begins with its owner's GUID.
    if size < 16 {
        return Err(at.bad("SignatureSize", Reason::Value(size.into())));
    }
    let rest = list_size.checked_sub(28).ok_or_else(too_small)?;
    let mut entries = reader.sub(usize::try_from(rest).unwrap_or(usize::MAX), "SignatureList")?;
    entries.take(usize::try_from(header_size).unwrap_or(usize::MAX), "SignatureHeader")?;
    Ok((kind, entries, usize::try_from(size).unwrap_or(usize::MAX)))
}

fn list<'a>(reader: &mut Reader<'a>, count: &mut impl FnMut(Entry<'a>)) -> Result<(), Malformed> {
    let (kind, mut entries, size) = header(reader)?;
    while entries.left() > 0 {
        let entry = entries.take(size, "SignatureData")?;
        let (_, value) = entry.split_at_checked(16).unwrap_or_default();
        count(match kind {
            Guid::X509_LIST => Entry::Certificate(value),
            Guid::SHA256_LIST | Guid::SHA1_LIST => Entry::Hash,
            _ if matches!(value.len(), 20 | 28 | 32 | 48 | 64) => Entry::Hash,
            _ => Entry::Other,
        });
    }
    Ok(())
}

/// What an authority event holds: an entry of a database (owner and certificate or hash), or, of shim's own key, a certificate alone.
pub(super) fn authority(variable: &Variable<'_>, source: String) -> Authority {
    let data = variable.data;
    let is_certificate = |bytes: &[u8]| bytes.starts_with(&[0x30, 0x82]);
    let entry = data.split_at_checked(16).map(|(_, value)| value);
    let (mut found, mut hash) = (None, None);
    if is_certificate(data) {
        found = Some(Certificate::new(data));
    } else if let Some(value) = entry {
        if is_certificate(value) {
            found = Some(Certificate::new(value));
        } else if matches!(value.len(), 20 | 32 | 48 | 64) {
            hash = Some(hex::encode(value));
        }
    }
    Authority { source, certificate: found, hash }
}
