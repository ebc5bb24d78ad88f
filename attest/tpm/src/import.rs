//! An import blob in software (TPM 2.0 Part 3, 13.3): a sealed object that only one EK can load and only its policy can open.

use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::alg::HashAlg;
use crate::codec::Writer;
use crate::limits;
use crate::public::{ALG_KEYEDHASH, Key, Public, attributes};
use crate::wrap::{Use, WrapError, outer, seed};

/// Attributes of a sealed object: only its policy opens it, and failures do not count against the TPM.
pub const SEALED_ATTRIBUTES: u32 = attributes::ADMIN_WITH_POLICY | attributes::NO_DA;

/// Input of TPM2_Import with an outer wrap only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The object's public area.
    pub public: Public,
    /// Contents of TPM2B_PRIVATE.
    pub duplicate: Vec<u8>,
    /// Contents of TPM2B_ENCRYPTED_SECRET.
    pub seed: Vec<u8>,
}

/// Wraps `secret` for the EK as a sealed object with this authPolicy (SHA-256).
///
/// # Errors
/// The secret is longer than 128 bytes, or the EK is no storage key.
pub fn wrap_sealed(
    ek: &Public,
    policy: &[u8; 32],
    secret: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<Import, WrapError> {
    if secret.len() > limits::SEALED {
        return Err(WrapError::TooLong { got: secret.len(), max: limits::SEALED });
    }
    // Part 1, 27.5.3: seedValue obfuscates the public unique field.
    let mut obfuscation = Zeroizing::new([0; 32]);
    rng.fill_bytes(obfuscation.as_mut_slice());
    let unique = HashAlg::Sha256.digest(&[obfuscation.as_slice(), secret]);
    let public = Public {
        name_alg: HashAlg::Sha256,
        attributes: SEALED_ATTRIBUTES,
        auth_policy: policy.to_vec(),
        key: Key::Sealed { unique: unique.as_bytes().to_vec() },
    };
    // TPMT_SENSITIVE (Part 2, 12.3.2.4): type, empty authValue, seedValue, data.
    let sensitive = Zeroizing::new(
        Writer::with_capacity(256).u16_be(ALG_KEYEDHASH).tpm2b(&[]).tpm2b(obfuscation.as_slice()).tpm2b(secret).done(),
    );
    let (key_seed, encrypted) = seed(ek, Use::Duplicate, rng)?;
    let duplicate = outer(ek, &key_seed, &public.name(), &sensitive)?;
    Ok(Import { public, duplicate, seed: encrypted })
}
