//! Just enough DER (X.690) to find TPM facts in a subject alternative name.
//!
//! Off-spec: the order within a SET is not checked. STMicroelectronics and Nuvoton have it wrong in EK certificates, and a strict decoder
//! would then find nothing. The certificate as a whole was decoded and its signature checked before this runs.

use crate::codec::{Malformed, Reader, Reason};

/// SEQUENCE.
pub(crate) const SEQUENCE: u8 = 0x30;
/// SET.
pub(crate) const SET: u8 = 0x31;
/// OBJECT IDENTIFIER.
pub(crate) const OID: u8 = 0x06;
/// directoryName in GeneralName (RFC 5280, 4.2.1.6).
pub(crate) const DIRECTORY_NAME: u8 = 0xa4;

/// Reads one element: its tag and contents.
pub(crate) fn element<'a>(reader: &mut Reader<'a>, field: &'static str) -> Result<(u8, Reader<'a>), Malformed> {
    let tag = reader.u8(field)?;
    let at = reader.clone();
    let length = match reader.u8(field)? {
        short @ 0..=0x7f => usize::from(short),
        0x81 => usize::from(reader.u8(field)?),
        0x82 => usize::from(reader.u16_be(field)?),
        other => return Err(at.bad(field, Reason::Value(other.into()))),
    };
    Ok((tag, reader.sub(length, field)?))
}

/// Reads one element that must have this tag.
pub(crate) fn tagged<'a>(reader: &mut Reader<'a>, tag: u8, field: &'static str) -> Result<Reader<'a>, Malformed> {
    let at = reader.clone();
    match element(reader, field)? {
        (got, contents) if got == tag => Ok(contents),
        (got, _) => Err(at.bad(field, Reason::Value(got.into()))),
    }
}
