//! Attestation keys: the template, what is accepted, and the qualified Name that a quote must carry (TPM 2.0 Part 1, 16).

use crate::alg::HashAlg;
use crate::policy::RH_ENDORSEMENT;
use crate::public::{Curve, Key, Name, Public, Scheme, attributes};

/// TPMA_OBJECT of our AK: fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign.
pub const ATTRIBUTES: u32 = attributes::FIXED_TPM
    | attributes::FIXED_PARENT
    | attributes::SENSITIVE_DATA_ORIGIN
    | attributes::USER_WITH_AUTH
    | attributes::NO_DA
    | attributes::RESTRICTED
    | attributes::SIGN;

/// The default AK: ECDSA P-256 with SHA-256, as TPM2_Create takes it.
#[must_use]
pub fn template() -> Public {
    Public {
        name_alg: HashAlg::Sha256,
        attributes: ATTRIBUTES,
        auth_policy: Vec::new(),
        key: Key::Ecc {
            symmetric: None,
            scheme: Scheme::Ecdsa(HashAlg::Sha256),
            curve: Curve::P256,
            x: Vec::new(),
            y: Vec::new(),
        },
    }
}

/// Why a key is not accepted as an AK.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AkError {
    /// Attributes that an AK must have are missing.
    #[error("AK attributes {got:#010x}: {missing} must be set")]
    Missing {
        /// TPMA_OBJECT.
        got: u32,
        /// The name of the first missing attribute.
        missing: &'static str,
    },
    /// It also decrypts.
    #[error("AK attributes {0:#010x}: decrypt must be clear")]
    Decrypts(u32),
    /// Kind, size or scheme is not on the list.
    #[error(
        "AK {0} is not accepted (ECDSA P-256 or P-384, RSASSA or RSAPSS with 2048 to 4096 bits, SHA-256 or SHA-384)"
    )]
    Algorithm(&'static str),
}

/// Checks that a key is one whose quotes mean something.
///
/// # Errors
/// [`AkError`] names the attribute or algorithm.
pub fn check(public: &Public) -> Result<(), AkError> {
    let required = [
        (attributes::RESTRICTED, "restricted"),
        (attributes::SIGN, "sign"),
        (attributes::FIXED_TPM, "fixedTPM"),
        (attributes::FIXED_PARENT, "fixedParent"),
        (attributes::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
    ];
    for (bit, missing) in required {
        if !public.has(bit) {
            return Err(AkError::Missing { got: public.attributes, missing });
        }
    }
    if public.has(attributes::DECRYPT) {
        return Err(AkError::Decrypts(public.attributes));
    }
    let hash_ok = |hash: HashAlg| matches!(hash, HashAlg::Sha256 | HashAlg::Sha384);
    if !hash_ok(public.name_alg) {
        return Err(AkError::Algorithm("nameAlg"));
    }
    match (&public.key, public.scheme()) {
        (_, Scheme::Null) => Err(AkError::Algorithm("scheme NULL")),
        (Key::Ecc { curve: Curve::P256, .. }, Scheme::Ecdsa(HashAlg::Sha256))
        | (Key::Ecc { curve: Curve::P384, .. }, Scheme::Ecdsa(HashAlg::Sha384)) => Ok(()),
        (Key::Ecc { .. }, _) => Err(AkError::Algorithm("scheme")),
        (Key::Rsa { bits, modulus, exponent, .. }, Scheme::Rsassa(hash) | Scheme::Rsapss(hash)) => {
            if !hash_ok(hash) {
                return Err(AkError::Algorithm("scheme's hash"));
            }
            let length_ok = modulus.len().checked_mul(8) == Some(usize::from(*bits));
            if !(2048..=4096).contains(bits) || !length_ok || ![0, 65_537].contains(exponent) {
                return Err(AkError::Algorithm("RSA key size"));
            }
            Ok(())
        }
        (Key::Rsa { .. }, Scheme::Ecdsa(_)) | (Key::Sealed { .. }, _) => Err(AkError::Algorithm("type")),
    }
}

/// Qualified Name of an AK that is a child of an EK: H(QN(EK) || Name(AK)), QN(EK) = H(TPM_RH_ENDORSEMENT || Name(EK)).
///
/// Each hash is by the nameAlg of the object that it is for. `None` for a Name that is not one.
#[must_use]
pub fn qualified_name(ek: &Name, ak: &Name) -> Option<Name> {
    let alg = |name: &Name| {
        let id = name.as_bytes().first_chunk::<2>().map(|id| u16::from_be_bytes(*id))?;
        HashAlg::from_id(id)
    };
    let ek_qualified = Name::of(alg(ek)?, &[&RH_ENDORSEMENT.to_be_bytes(), ek.as_bytes()]);
    Some(Name::of(alg(ak)?, &[ek_qualified.as_bytes(), ak.as_bytes()]))
}
