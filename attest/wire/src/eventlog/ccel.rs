//! A TDX guest's event log: where the ACPI table CCEL says that it lies (UEFI 2.10, 38.4.1; ACPI 6.5, 5.2.34).
//!
//! The log itself has the crypto-agile format with a SHA-384 bank, padded with ones to the length that the table gives. Index k in it stands
//! for RTMR[k-1] ([`Registers::Cc`](super::Registers::Cc)).

use crate::codec::{Malformed, Reader, Reason};
use crate::eventlog::EventLog;

/// The ACPI table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Kind of confidential computing: 1 AMD SEV, 2 Intel TDX.
    pub cc_type: u8,
    /// Its subtype.
    pub cc_subtype: u8,
    /// Bytes of the log's area (LAML).
    pub length: u64,
    /// Physical address of the log's area (LASA).
    pub address: u64,
}

/// Kind of confidential computing in [`Table::cc_type`]: Intel TDX.
pub const TDX: u8 = 2;

impl Table {
    /// Reads `/sys/firmware/acpi/tables/CCEL`.
    ///
    /// # Errors
    /// [`Malformed`]: another signature, a wrong length or checksum.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        Reader::all(bytes, "CCEL", |reader| {
            let at = reader.clone();
            if reader.take(4, "signature")? != b"CCEL" {
                return Err(at.bad("signature", Reason::Other("not CCEL")));
            }
            let at = reader.clone();
            let length = reader.u32_le("length")?;
            if usize::try_from(length).ok() != Some(bytes.len()) {
                return Err(at.bad("length", Reason::Value(length.into())));
            }
            let at = reader.clone();
            reader.take(28, "revision to creatorRevision")?;
            if bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) != 0 {
                return Err(at.bad("checksum", Reason::Other("the bytes do not add up to zero")));
            }
            let cc_type = reader.u8("ccType")?;
            let cc_subtype = reader.u8("ccSubtype")?;
            reader.take(2, "reserved")?;
            let length = reader.u64_le("LAML")?;
            let address = reader.u64_le("LASA")?;
            Ok(Self { cc_type, cc_subtype, length, address })
        })
    }
}

/// Whether a log looks like a TDX guest's: a SHA-384 bank and no other, and indices 1 to 4 only, where a TPM's log begins with PCR 0. Nothing
/// more than a look: whoever knows where the log comes from says so instead.
#[must_use]
pub fn looks_like(log: &EventLog<'_>) -> bool {
    let sha384 = countersign_tpm::alg::HashAlg::Sha384.id();
    let mut extending = log.events.iter().filter(|event| event.extends()).peekable();
    log.banks.iter().all(|(alg, _)| *alg == sha384)
        && extending.peek().is_some()
        && extending.all(|event| (1..=4).contains(&event.pcr))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Vec<u8> {
        let mut bytes = b"CCEL\x38\0\0\0\x01\0INTEL EDK2    ".to_vec();
        bytes.resize(36, 0);
        bytes.extend([TDX, 0, 0, 0]);
        bytes.extend(0x1_0000u64.to_le_bytes());
        bytes.extend(0x7fbe_8000u64.to_le_bytes());
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[9] = 0u8.wrapping_sub(sum);
        bytes
    }

    #[test]
    fn acpi_table() {
        let good = table();
        let read = Table::parse(&good).unwrap();
        assert_eq!(read, Table { cc_type: TDX, cc_subtype: 0, length: 0x1_0000, address: 0x7fbe_8000 });
        for end in 0..good.len() {
            assert!(Table::parse(&good[..end]).is_err(), "cut at {end}");
        }
        for at in 0..good.len() {
            let mut changed = good.clone();
            changed[at] ^= 0x55;
            assert!(Table::parse(&changed).is_err(), "byte {at}: the checksum covers it");
        }
        assert!(Table::parse(&[good.as_slice(), &[0]].concat()).is_err());
    }
}
