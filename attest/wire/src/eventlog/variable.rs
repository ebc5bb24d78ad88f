//! UEFI variables, and the GUIDs that name their owners.

use std::fmt;

use crate::codec::{Malformed, Reader};

/// An EFI_GUID as it stands in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// EFI_GLOBAL_VARIABLE: SecureBoot, PK, KEK, boot options.
    pub const GLOBAL: Self = Self::new(0x8be4_df61, 0x93ca, 0x11d2, 0xaa0d_00e0_9803_2b8c);
    /// EFI_IMAGE_SECURITY_DATABASE_GUID: db, dbx, dbt, dbr.
    pub const SECURITY_DATABASE: Self = Self::new(0xd719_b2cb, 0x3d3a, 0x4596, 0xa3bc_dad0_0e67_656f);
    /// shim's own variables.
    pub const SHIM: Self = Self::new(0x605d_ab50, 0xe046, 0x4300, 0xabb6_3dd8_10dd_8b23);
    /// EFI_CERT_X509_GUID: a list of certificates.
    pub const X509_LIST: Self = Self::new(0xa5c0_59a1, 0x94e4, 0x4aa7, 0x87b5_ab15_5c2b_f072);
    /// EFI_CERT_SHA256_GUID: a list of SHA-256 hashes.
    pub const SHA256_LIST: Self = Self::new(0xc1c4_1626, 0x504c, 0x4092, 0xaca9_41f9_3693_4328);
    /// EFI_CERT_SHA1_GUID: a list of SHA-1 hashes.
    pub const SHA1_LIST: Self = Self::new(0x826c_a512, 0xcf10, 0x4ac9, 0xb187_be01_4966_31bd);
    /// EFI_CERT_RSA2048_GUID: a list of RSA keys.
    pub const RSA2048_LIST: Self = Self::new(0x3c57_66e8, 0x269c, 0x4e34, 0xaa14_ed77_6e85_b3b6);

    /// From the four fields as they are written in text.
    #[must_use]
    pub const fn new(a: u32, b: u16, c: u16, d: u64) -> Self {
        let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        let [d0, d1, d2, d3, d4, d5, d6, d7] = d.to_be_bytes();
        Self([a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7])
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, rest @ ..] = self.0;
        let (a, b, c) =
            (u32::from_le_bytes([a0, a1, a2, a3]), u16::from_le_bytes([b0, b1]), u16::from_le_bytes([c0, c1]));
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{:04x}-{}", u16::from_be_bytes([d0, d1]), hex::encode(rest))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// UEFI_VARIABLE_DATA (PFP 10.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable<'a> {
    /// Vendor GUID.
    pub guid: Guid,
    /// Name, UTF-16LE, without a terminating NUL.
    name: &'a [u8],
    /// Contents.
    pub data: &'a [u8],
}

impl<'a> Variable<'a> {
    /// Reads the structure.
    ///
    /// # Errors
    /// [`Malformed`]: truncated, or bytes behind it.
    pub fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        Reader::all(data, "UEFI_VARIABLE_DATA", Self::read)
    }

    /// Reads the structure and how many bytes stand behind it: old versions of shim log some more.
    ///
    /// # Errors
    /// [`Malformed`]: truncated.
    pub fn parse_with_tail(data: &'a [u8]) -> Result<(Self, usize), Malformed> {
        let mut reader = Reader::new(data);
        let variable = Self::read(&mut reader)?;
        Ok((variable, reader.left()))
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let guid = Guid(reader.array("VariableName")?);
        let characters = reader.u64_le("UnicodeNameLength")?;
        let length = reader.u64_le("VariableDataLength")?;
        let bytes = characters.saturating_mul(2);
        let name = reader.take(usize::try_from(bytes).unwrap_or(usize::MAX), "UnicodeName")?;
        let data = reader.take(usize::try_from(length).unwrap_or(usize::MAX), "VariableData")?;
        Ok(Self { guid, name: name.strip_suffix(&[0, 0]).unwrap_or(name), data })
    }

    /// The name, if it is ASCII.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        ascii_utf16(self.name)
    }

    /// The name's bytes, UTF-16LE.
    #[must_use]
    pub const fn raw_name(&self) -> &'a [u8] {
        self.name
    }

    /// Whether this is the name.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.name.len() == name.len().saturating_mul(2)
            && name.bytes().zip(self.name.chunks_exact(2)).all(|(want, got)| got == [want, 0])
    }

    /// Whether this is the firmware's SecureBoot variable.
    #[must_use]
    pub fn is_secure_boot(&self) -> bool {
        self.guid == Guid::GLOBAL && self.is_named("SecureBoot")
    }
}

/// Text of printable ASCII characters in UTF-16LE.
pub(crate) fn ascii_utf16(bytes: &[u8]) -> Option<String> {
    let chunks = bytes.chunks_exact(2);
    if !chunks.remainder().is_empty() {
        return None;
    }
    let mut text = String::with_capacity(chunks.len());
    for pair in chunks {
        match pair {
            [c @ 0x20..=0x7e, 0] => text.push(char::from(*c)),
            _ => return None,
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_as_text() {
        assert_eq!(Guid::GLOBAL.to_string(), "8be4df61-93ca-11d2-aa0d-00e098032b8c");
        assert_eq!(Guid::SHIM.to_string(), "605dab50-e046-4300-abb6-3dd810dd8b23");
        assert_eq!(Guid::SECURITY_DATABASE.to_string(), "d719b2cb-3d3a-4596-a3bc-dad00e67656f");
        assert_eq!(Guid::GLOBAL.0[..4], [0x61, 0xdf, 0xe4, 0x8b]);
    }
}
