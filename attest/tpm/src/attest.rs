//! TPMS_ATTEST of a quote (TPM 2.0 Part 2, 10.12.8).

use crate::alg::{Digest, HashAlg};
use crate::codec::{Malformed, Reader, Reason, Writer};
use crate::limits;
use crate::pcr::PcrSelection;

/// TPM_GENERATED_VALUE: no external data starts with it that a restricted key would sign.
pub const MAGIC: u32 = 0xFF54_4347;
/// TPM_ST_ATTEST_QUOTE.
pub const ST_QUOTE: u16 = 0x8018;

/// TPMS_CLOCK_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockInfo {
    /// Milliseconds under power.
    pub clock: u64,
    /// TPM Resets since the last TPM2_Clear.
    pub reset_count: u32,
    /// TPM Restarts and Resumes since the last reset or clear.
    pub restart_count: u32,
    /// False when clock may repeat a value that was reported before.
    pub safe: bool,
}

/// A quote. Nothing in it is authentic before its signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote<'a> {
    /// Qualified Name of the signing key.
    pub qualified_signer: &'a [u8],
    /// qualifyingData of the command.
    pub extra_data: &'a [u8],
    /// Clock and counters.
    pub clock: ClockInfo,
    /// Vendor's firmware version.
    pub firmware_version: u64,
    /// What was quoted.
    pub selection: PcrSelection,
    /// Hash of the selected PCRs; its algorithm is that of the signing scheme.
    pub pcr_digest: &'a [u8],
}

impl<'a> Quote<'a> {
    /// Reads a TPMS_ATTEST, which must be a quote.
    ///
    /// # Errors
    /// Wrong magic or type, or not the structure; [`Malformed`] names field and offset.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() > limits::ATTEST {
            let got = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let max = u64::try_from(limits::ATTEST).unwrap_or(u64::MAX);
            return Err(Reader::new(bytes).bad("TPMS_ATTEST", Reason::TooLarge { got, max }));
        }
        Reader::all(bytes, "TPMS_ATTEST", |reader| {
            let at = reader.clone();
            let magic = reader.u32_be("magic")?;
            if magic != MAGIC {
                return Err(at.bad("magic", Reason::Value(magic.into())));
            }
            let at = reader.clone();
            let kind = reader.u16_be("type")?;
            if kind != ST_QUOTE {
                return Err(at.bad("type", Reason::Value(kind.into())));
            }
            let qualified_signer = reader.tpm2b(limits::NAME, "qualifiedSigner")?;
            let extra_data = reader.tpm2b(limits::EXTRA_DATA, "extraData")?;
            let clock = reader.u64_be("clockInfo.clock")?;
            let reset_count = reader.u32_be("clockInfo.resetCount")?;
            let restart_count = reader.u32_be("clockInfo.restartCount")?;
            let at = reader.clone();
            let safe = match reader.u8("clockInfo.safe")? {
                0 => false,
                1 => true,
                other => return Err(at.bad("clockInfo.safe", Reason::Value(other.into()))),
            };
            let firmware_version = reader.u64_be("firmwareVersion")?;
            let selection = PcrSelection::read(reader)?;
            let pcr_digest = reader.tpm2b(limits::DIGEST, "pcrDigest")?;
            let clock = ClockInfo { clock, reset_count, restart_count, safe };
            Ok(Self { qualified_signer, extra_data, clock, firmware_version, selection, pcr_digest })
        })
    }

    /// The structure as bytes: what a TPM would have signed. For tests and simulators.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let writer = Writer::new()
            .u32_be(MAGIC)
            .u16_be(ST_QUOTE)
            .tpm2b(self.qualified_signer)
            .tpm2b(self.extra_data)
            .u64_be(self.clock.clock)
            .u32_be(self.clock.reset_count)
            .u32_be(self.clock.restart_count)
            .u8(self.clock.safe.into())
            .u64_be(self.firmware_version);
        self.selection.write(writer).tpm2b(self.pcr_digest).done()
    }

    /// The quoted digest, if it is one of `alg`.
    #[must_use]
    pub fn digest(&self, alg: HashAlg) -> Option<Digest> {
        Digest::new(alg, self.pcr_digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTE: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/quote_ecc.msg");

    #[test]
    fn recorded_quote() {
        let quote = Quote::parse(QUOTE).unwrap();
        assert_eq!(quote.to_bytes(), QUOTE);
        assert_eq!((quote.clock.reset_count, quote.clock.restart_count, quote.clock.safe), (3, 0, true));
        assert_eq!(quote.selection, PcrSelection::single(HashAlg::Sha256, &(0..15).collect::<Vec<_>>()));
        assert_eq!(hex::encode(quote.extra_data), "00112233445566778899aabbccddeeff00112233");
    }

    #[test]
    fn truncations_and_trailing_bytes() {
        for end in 0..QUOTE.len() {
            assert!(Quote::parse(&QUOTE[..end]).is_err(), "{end}");
        }
        let longer = [QUOTE, &[0]].concat();
        assert!(matches!(Quote::parse(&longer), Err(Malformed { reason: Reason::Trailing(1), .. })));
        assert!(matches!(Quote::parse(&[0; 3000]), Err(Malformed { reason: Reason::TooLarge { .. }, .. })));
    }

    #[test]
    fn inner_lengths() {
        // Any one byte changed: another value or an error with an offset inside, never a panic.
        for at in 0..QUOTE.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = QUOTE.to_vec();
                changed[at] = value;
                match Quote::parse(&changed) {
                    Ok(quote) => assert_eq!(quote.to_bytes(), changed),
                    Err(e) => assert!(e.offset <= changed.len()),
                }
            }
        }
    }

    #[test]
    fn magic_and_type() {
        let mut wrong = QUOTE.to_vec();
        wrong[0] = 0;
        assert_eq!(Quote::parse(&wrong).unwrap_err().field, "magic");
        let mut wrong = QUOTE.to_vec();
        wrong[5] = 0x17; // TPM_ST_ATTEST_CERTIFY
        assert_eq!(Quote::parse(&wrong).unwrap_err().field, "type");
    }
}
