//! TPMT_SIGNATURE (TPM 2.0 Part 2, 11.3.4).

use crate::alg::HashAlg;
use crate::codec::{Malformed, Reader, Reason, Writer};
use crate::limits;

/// TPM_ALG_RSASSA.
pub const ALG_RSASSA: u16 = 0x0014;
/// TPM_ALG_RSAPSS.
pub const ALG_RSAPSS: u16 = 0x0016;
/// TPM_ALG_ECDSA.
pub const ALG_ECDSA: u16 = 0x0018;

/// A signature by one of the accepted schemes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature<'a> {
    /// RSASSA-PKCS1-v1_5.
    Rsassa {
        /// Hash of the message.
        hash: HashAlg,
        /// As long as the modulus.
        signature: &'a [u8],
    },
    /// RSASSA-PSS.
    Rsapss {
        /// Hash of the message.
        hash: HashAlg,
        /// As long as the modulus.
        signature: &'a [u8],
    },
    /// ECDSA.
    Ecdsa {
        /// Hash of the message.
        hash: HashAlg,
        /// Big-endian; a TPM may cut leading zeros.
        r: &'a [u8],
        /// Big-endian; a TPM may cut leading zeros.
        s: &'a [u8],
    },
}

impl<'a> Signature<'a> {
    /// Reads a TPMT_SIGNATURE.
    ///
    /// # Errors
    /// Another scheme or hash than the accepted ones, or not the structure.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() > limits::SIGNATURE {
            let got = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let max = u64::try_from(limits::SIGNATURE).unwrap_or(u64::MAX);
            return Err(Reader::new(bytes).bad("TPMT_SIGNATURE", Reason::TooLarge { got, max }));
        }
        Reader::all(bytes, "TPMT_SIGNATURE", Self::read)
    }

    /// Reads a TPMT_SIGNATURE that other fields follow.
    ///
    /// # Errors
    /// As [`Signature::parse`].
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let at = reader.clone();
        let scheme = reader.u16_be("sigAlg")?;
        if ![ALG_RSASSA, ALG_RSAPSS, ALG_ECDSA].contains(&scheme) {
            return Err(at.bad("sigAlg", Reason::Value(scheme.into())));
        }
        let at = reader.clone();
        let id = reader.u16_be("signature.hash")?;
        let hash = HashAlg::from_id(id).ok_or_else(|| at.bad("signature.hash", Reason::Value(id.into())))?;
        Ok(match scheme {
            ALG_RSASSA => Self::Rsassa { hash, signature: reader.tpm2b(limits::RSA, "signature.sig")? },
            ALG_RSAPSS => Self::Rsapss { hash, signature: reader.tpm2b(limits::RSA, "signature.sig")? },
            _ => {
                let r = reader.tpm2b(limits::ECC, "signature.signatureR")?;
                Self::Ecdsa { hash, r, s: reader.tpm2b(limits::ECC, "signature.signatureS")? }
            }
        })
    }

    /// The hash of the message.
    #[must_use]
    pub const fn hash(&self) -> HashAlg {
        match self {
            Self::Rsassa { hash, .. } | Self::Rsapss { hash, .. } | Self::Ecdsa { hash, .. } => *hash,
        }
    }

    /// The structure as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Rsassa { hash, signature } => Writer::new().u16_be(ALG_RSASSA).u16_be(hash.id()).tpm2b(signature),
            Self::Rsapss { hash, signature } => Writer::new().u16_be(ALG_RSAPSS).u16_be(hash.id()).tpm2b(signature),
            Self::Ecdsa { hash, r, s } => Writer::new().u16_be(ALG_ECDSA).u16_be(hash.id()).tpm2b(r).tpm2b(s),
        }
        .done()
    }

    /// r || s, each padded to `size` bytes, as most libraries take ECDSA signatures; `None` for RSA, or when a number is longer.
    #[must_use]
    pub fn to_fixed(&self, size: usize) -> Option<Vec<u8>> {
        let Self::Ecdsa { r, s, .. } = self else { return None };
        let mut out = Vec::with_capacity(size.saturating_mul(2));
        for number in [r, s] {
            let significant =
                number.iter().position(|&byte| byte != 0).and_then(|at| number.get(at..)).unwrap_or_default();
            out.resize(out.len().checked_add(size.checked_sub(significant.len())?)?, 0);
            out.extend_from_slice(significant);
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECC: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/quote_ecc.sig");
    const RSA: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/quote_rsa.sig");

    #[test]
    fn recorded_signatures() {
        for bytes in [ECC, RSA] {
            assert_eq!(Signature::parse(bytes).unwrap().to_bytes(), bytes);
            for end in 0..bytes.len() {
                assert!(Signature::parse(&bytes[..end]).is_err());
            }
            assert!(Signature::parse(&[bytes, &[0]].concat()).is_err());
            for at in 0..bytes.len() {
                let mut changed = bytes.to_vec();
                changed[at] ^= 0xff;
                if let Ok(other) = Signature::parse(&changed) {
                    assert_eq!(other.to_bytes(), changed);
                }
            }
        }
        assert_eq!(Signature::parse(ECC).unwrap().to_fixed(32).unwrap().len(), 64);
        assert!(Signature::parse(RSA).unwrap().to_fixed(32).is_none());
    }

    #[test]
    fn short_numbers_are_padded() {
        let signature = Signature::Ecdsa { hash: HashAlg::Sha256, r: &[1], s: &[0, 0, 2, 3] };
        let fixed = signature.to_fixed(4).unwrap();
        assert_eq!(fixed, [0, 0, 0, 1, 0, 0, 2, 3]);
        let long = Signature::Ecdsa { hash: HashAlg::Sha256, r: &[1; 5], s: &[1] };
        assert!(long.to_fixed(4).is_none());
    }
}
