//! What was measured, as far as event data hashes to the event's digest.

use countersign_tpm::alg::HashAlg;

use super::{Event, EventLog, EventType};
use crate::codec::{Malformed, Reader};

/// EFI_GLOBAL_VARIABLE, 8be4df61-93ca-11d2-aa0d-00e098032b8c, as it stands in memory.
const EFI_GLOBAL_VARIABLE: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];

/// UEFI_VARIABLE_DATA (PFP 10.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable<'a> {
    /// Vendor GUID as it stands in memory.
    pub guid: [u8; 16],
    /// Name, UTF-16LE.
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
        Reader::all(data, "UEFI_VARIABLE_DATA", |reader| {
            let guid = reader.array("VariableName")?;
            let characters = reader.u64_le("UnicodeNameLength")?;
            let length = reader.u64_le("VariableDataLength")?;
            let bytes = characters.saturating_mul(2);
            let name = reader.take(usize::try_from(bytes).unwrap_or(usize::MAX), "UnicodeName")?;
            let data = reader.take(usize::try_from(length).unwrap_or(usize::MAX), "VariableData")?;
            Ok(Self { guid, name, data })
        })
    }

    /// The name, if it is ASCII.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        ascii_utf16(self.name)
    }

    /// Whether this is the firmware's SecureBoot variable.
    #[must_use]
    pub fn is_secure_boot(&self) -> bool {
        self.guid == EFI_GLOBAL_VARIABLE && self.name().as_deref() == Some("SecureBoot")
    }
}

fn ascii_utf16(bytes: &[u8]) -> Option<String> {
    let mut chunks = bytes.chunks_exact(2);
    let text: Option<String> = chunks
        .by_ref()
        .map(|pair| match pair {
            [c @ 0x20..=0x7e, 0] => Some(char::from(*c)),
            _ => None,
        })
        .collect();
    text.filter(|_| chunks.remainder().is_empty())
}

impl<'a> Event<'a> {
    /// The part of the event's data that hashes to its digest in this bank: what was really measured.
    ///
    /// Seen on real machines: the whole data; of a boot variable its contents alone; of an authority all but a surplus last byte; of a
    /// boot loader's text what follows the prefix, with or without its terminating NUL.
    #[must_use]
    pub fn measured(&self, alg: HashAlg) -> Option<&'a [u8]> {
        let digest = self.digest(alg)?;
        let hashes = |part: &[u8]| alg.digest(&[part]).as_bytes() == digest;
        if hashes(self.data) {
            return Some(self.data);
        }
        let part = match self.kind {
            EventType::EFI_VARIABLE_BOOT => Variable::parse(self.data).ok()?.data,
            EventType::EFI_VARIABLE_AUTHORITY => self.data.split_last()?.1,
            EventType::IPL => {
                let text = self.data.strip_suffix(&[0]).unwrap_or(self.data);
                if hashes(text) {
                    return Some(text);
                }
                let colon = text.windows(2).position(|pair| pair == b": ")?.checked_add(2)?;
                let with_nul = self.data.get(colon..)?;
                if hashes(with_nul) {
                    return Some(with_nul);
                }
                text.get(colon..)?
            }
            _ => return None,
        };
        hashes(part).then_some(part)
    }

    /// What was measured as text, where it is text.
    #[must_use]
    pub fn text(&self, alg: HashAlg) -> Option<String> {
        let measured = self.measured(alg)?;
        if let Ok(variable) = Variable::parse(measured) {
            return variable.name().map(|name| {
                let shown: String = variable.data.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
                let more = if variable.data.len() > 16 { "..." } else { "" };
                format!("{name} = {shown}{more} ({} bytes)", variable.data.len())
            });
        }
        let text = measured.strip_suffix(&[0]).unwrap_or(measured);
        let printable =
            |text: &str| !text.is_empty() && !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t');
        match std::str::from_utf8(text) {
            Ok(text) if printable(text) => Some(text.to_owned()),
            _ => ascii_utf16(measured.strip_suffix(&[0, 0]).unwrap_or(measured)).filter(|text| printable(text)),
        }
    }
}

impl EventLog<'_> {
    /// Secure Boot: true or false from an event whose data hashes to its digest in every one of these banks, and whose variable is of
    /// exactly one byte 00 or 01; otherwise `None`.
    #[must_use]
    pub fn secure_boot(&self, banks: &[HashAlg]) -> Option<bool> {
        if banks.is_empty() {
            return None;
        }
        self.events
            .iter()
            .filter(|event| event.pcr == 7 && event.kind == EventType::EFI_VARIABLE_DRIVER_CONFIG)
            .filter(|event| banks.iter().all(|alg| event.measured(*alg) == Some(event.data)))
            .filter_map(|event| Variable::parse(event.data).ok())
            .find(Variable::is_secure_boot)
            .and_then(|variable| match variable.data {
                [0] => Some(false),
                [1] => Some(true),
                _ => None,
            })
    }

    /// Whether ExitBootServices was reached, by an event in PCR 5 that is measured in every one of these banks.
    #[must_use]
    pub fn exit_boot_services(&self, banks: &[HashAlg]) -> bool {
        const TEXT: &[u8] = b"Exit Boot Services Returned with Success";
        !banks.is_empty()
            && self
                .events
                .iter()
                .any(|event| event.pcr == 5 && banks.iter().all(|alg| event.measured(*alg) == Some(TEXT)))
    }
}
