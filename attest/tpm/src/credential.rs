//! TPM2_MakeCredential in software (TPM 2.0 Part 1, 24): a secret that only the TPM with this EK *and* this object can open.

use rand_core::CryptoRng;

use crate::public::{Name, Public};
use crate::wrap::{Use, WrapError, outer, seed};

/// A credential: what TPM2_ActivateCredential takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Contents of TPM2B_ID_OBJECT.
    pub blob: Vec<u8>,
    /// Contents of TPM2B_ENCRYPTED_SECRET.
    pub secret: Vec<u8>,
}

/// Wraps `secret` for the EK and an object's Name.
///
/// # Errors
/// The secret is longer than the EK's nameAlg digest, or the EK is no storage key.
pub fn make_credential(
    ek: &Public,
    object: &Name,
    secret: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<Credential, WrapError> {
    let max = ek.name_alg.size();
    if secret.len() > max {
        return Err(WrapError::TooLong { got: secret.len(), max });
    }
    let (seed, encrypted) = seed(ek, Use::Identity, rng)?;
    Ok(Credential { blob: outer(ek, &seed, object, secret)?, secret: encrypted })
}
