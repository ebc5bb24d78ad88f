//! Quotes: signature, structure, selection and PCR digest. Shared by the appraisal and `verifier check quote`.

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::Quote;
use countersign_tpm::pcr::{PcrSelection, pcr_digest};
use countersign_tpm::public::{Curve, Key, Public, Scheme};
use countersign_tpm::signature::Signature;
use countersign_wire::evidence::BankValues;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};

/// An AK, ready to verify.
#[derive(Debug, Clone)]
pub struct QuoteKey {
    scheme: Scheme,
    key: Prepared,
}

#[derive(Debug, Clone)]
enum Prepared {
    Ecc { curve: Curve, point: Vec<u8> },
    Rsa { modulus: Vec<u8>, exponent: [u8; 3] },
}

/// Why a quote is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// The AK is of no accepted kind.
    #[error("algorithm: got {got}, want {want}")]
    Algorithm {
        /// What was found.
        got: String,
        /// What is accepted.
        want: String,
    },
    /// The signature is not by this AK over these bytes.
    #[error("signature: not by this AK over this quote")]
    Signature,
    /// Not a TPMS_ATTEST of type quote.
    #[error("structure: {0}")]
    Structure(String),
}

impl QuoteKey {
    /// Prepares an AK's public area.
    ///
    /// # Errors
    /// [`QuoteError::Algorithm`].
    pub fn new(public: &Public) -> Result<Self, QuoteError> {
        let refuse = |got: String| QuoteError::Algorithm {
            got,
            want: "ECDSA P-256/SHA-256, ECDSA P-384/SHA-384, RSASSA or RSAPSS with SHA-256 or SHA-384".into(),
        };
        let scheme = public.scheme();
        let key = match (&public.key, scheme) {
            (Key::Ecc { curve: curve @ Curve::P256, .. }, Scheme::Ecdsa(HashAlg::Sha256))
            | (Key::Ecc { curve: curve @ Curve::P384, .. }, Scheme::Ecdsa(HashAlg::Sha384)) => {
                let point = public.ecc_point().ok_or_else(|| refuse("overlong coordinates".into()))?;
                Prepared::Ecc { curve: *curve, point }
            }
            (
                Key::Rsa { modulus, exponent: 0 | 65_537, .. },
                Scheme::Rsassa(HashAlg::Sha256 | HashAlg::Sha384) | Scheme::Rsapss(HashAlg::Sha256 | HashAlg::Sha384),
            ) => Prepared::Rsa { modulus: modulus.clone(), exponent: [1, 0, 1] },
            (Key::Ecc { .. } | Key::Rsa { .. } | Key::Sealed { .. }, _) => return Err(refuse(format!("{scheme:?}"))),
        };
        Ok(Self { scheme, key })
    }

    /// Verifies a quote's signature and reads the quote.
    ///
    /// # Errors
    /// [`QuoteError`].
    pub fn verify<'a>(&self, quote: &'a [u8], signature: &[u8]) -> Result<Quote<'a>, QuoteError> {
        let parsed = Signature::parse(signature).map_err(|e| QuoteError::Structure(e.to_string()))?;
        let mismatch = || QuoteError::Algorithm {
            got: format!("a signature of another scheme or hash ({})", parsed.hash()),
            want: format!("{:?}", self.scheme),
        };
        match (&self.key, parsed, self.scheme) {
            (Prepared::Ecc { curve, point }, Signature::Ecdsa { hash, .. }, Scheme::Ecdsa(want)) if hash == want => {
                let fixed = parsed.to_fixed(curve.size()).ok_or(QuoteError::Signature)?;
                let algorithm: &dyn ring::signature::VerificationAlgorithm = match curve {
                    Curve::P256 => &ECDSA_P256_SHA256_FIXED,
                    Curve::P384 => &ECDSA_P384_SHA384_FIXED,
                };
                let key = UnparsedPublicKey::new(algorithm, point);
                key.verify(quote, &fixed).map_err(|_| QuoteError::Signature)?;
            }
            (Prepared::Rsa { modulus, exponent }, Signature::Rsassa { hash, signature }, Scheme::Rsassa(want))
                if hash == want =>
            {
                let parameters: &RsaParameters =
                    if hash == HashAlg::Sha384 { &RSA_PKCS1_2048_8192_SHA384 } else { &RSA_PKCS1_2048_8192_SHA256 };
                let key = RsaPublicKeyComponents { n: modulus.as_slice(), e: exponent.as_slice() };
                key.verify(parameters, quote, signature).map_err(|_| QuoteError::Signature)?;
            }
            (Prepared::Rsa { modulus, exponent }, Signature::Rsapss { hash, signature }, Scheme::Rsapss(want))
                if hash == want =>
            {
                let parameters: &RsaParameters =
                    if hash == HashAlg::Sha384 { &RSA_PSS_2048_8192_SHA384 } else { &RSA_PSS_2048_8192_SHA256 };
                let key = RsaPublicKeyComponents { n: modulus.as_slice(), e: exponent.as_slice() };
                key.verify(parameters, quote, signature).map_err(|_| QuoteError::Signature)?;
            }
            (Prepared::Ecc { .. } | Prepared::Rsa { .. }, _, _) => return Err(mismatch()),
        }
        Quote::parse(quote).map_err(|e| QuoteError::Structure(e.to_string()))
    }

    /// The hash of the quote's pcrDigest: that of the signing scheme.
    #[must_use]
    pub const fn hash(&self) -> HashAlg {
        match self.scheme {
            Scheme::Ecdsa(hash) | Scheme::Rsassa(hash) | Scheme::Rsapss(hash) => hash,
            Scheme::Null => HashAlg::Sha256,
        }
    }
}

/// Looks up the selected PCRs and hashes them; which one is missing otherwise.
///
/// # Errors
/// Bank and index of a PCR that is selected but not given, or a bank of unknown hash.
pub fn digest_of(
    hash: HashAlg,
    selection: &PcrSelection,
    value: impl Fn(HashAlg, u8) -> Option<Digest>,
) -> Result<Digest, String> {
    let mut values = Vec::with_capacity(24);
    for bank in &selection.0 {
        let alg = HashAlg::from_id(bank.alg).ok_or_else(|| format!("bank {:#06x}", bank.alg))?;
        for pcr in bank.pcrs() {
            values.push(value(alg, pcr).ok_or_else(|| format!("{alg}:{pcr}"))?);
        }
    }
    Ok(pcr_digest(hash, &values))
}

/// A PCR value as evidence gives it; `None` when it is not given, or not as long as the bank's digests.
#[must_use]
pub fn value_of(banks: &[BankValues], alg: HashAlg, index: u8) -> Option<Digest> {
    let bank = banks.iter().find(|bank| bank.alg == alg.id())?;
    let pcr = bank.pcrs.iter().find(|pcr| pcr.index == index)?;
    Digest::new(alg, &pcr.value)
}
