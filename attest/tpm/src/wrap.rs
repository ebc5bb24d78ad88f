//! Protecting something for a storage key from outside the TPM: the seed, and the outer wrap that both credentials and
//! duplicates have (TPM 2.0 Part 1, 22.3, 23.3, 24; annexes B.10 and C.6).

use aes::cipher::KeyIvInit as _;
use p256::elliptic_curve::Generate as _;
use rand_core::CryptoRng;
use zeroize::{Zeroize as _, Zeroizing};

use crate::alg::HashAlg;
use crate::codec::Writer;
use crate::ek::STORAGE;
use crate::kdf::{hmac, kdfa, kdfe};
use crate::public::{Curve, Key, Name, Public};

/// Why something could not be protected for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// Not a storage key (restricted, decrypt, AES-CFB) of a kind that this crate knows.
    #[error("the parent is not a storage key: {0}")]
    Parent(&'static str),
    /// The secret is longer than the TPM takes.
    #[error("{got} bytes to protect, at most {max} are possible")]
    TooLong {
        /// Bytes given.
        got: usize,
        /// Bytes possible.
        max: usize,
    },
}

/// What a seed is for: the label of its derivation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// TPM2_MakeCredential.
    Identity,
    /// TPM2_Import.
    Duplicate,
    /// Salt of TPM2_StartAuthSession.
    Secret,
}

impl Use {
    const fn label(self) -> &'static str {
        match self {
            Self::Identity => "IDENTITY",
            Self::Duplicate => "DUPLICATE",
            Self::Secret => "SECRET",
        }
    }
}

/// A fresh seed of the key's nameAlg length, and the TPM2B_ENCRYPTED_SECRET contents that bring it to the key.
///
/// # Errors
/// [`WrapError::Parent`] for a key that cannot receive one.
pub fn seed(key: &Public, purpose: Use, rng: &mut impl CryptoRng) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), WrapError> {
    if !key.has(STORAGE) {
        return Err(WrapError::Parent("not restricted and decrypting"));
    }
    let size = key.name_alg.size();
    match &key.key {
        Key::Rsa { modulus, exponent, .. } => {
            let mut seed = Zeroizing::new(vec![0; size]);
            rng.fill_bytes(&mut seed);
            let exponent = if *exponent == 0 { 65_537 } else { *exponent };
            let public = rsa::PublicKey::new(
                rsa::BoxedUint::from_be_slice_vartime(modulus),
                rsa::BoxedUint::from(u64::from(exponent)),
            )
            .map_err(|_| WrapError::Parent("not a usable RSA key"))?;
            // Part 1, B.4: the label is the use with its terminating zero, the hash is the key's nameAlg.
            let label = [purpose.label().as_bytes(), &[0]].concat();
            let sealed = match key.name_alg {
                HashAlg::Sha256 => public.encrypt(rng, rsa::Oaep::<sha2::Sha256>::new_with_label(label), &seed),
                HashAlg::Sha384 => public.encrypt(rng, rsa::Oaep::<sha2::Sha384>::new_with_label(label), &seed),
                HashAlg::Sha1 | HashAlg::Sha512 => return Err(WrapError::Parent("its nameAlg is not accepted")),
            };
            let sealed = sealed.map_err(|_| WrapError::Parent("RSA-OAEP failed"))?;
            Ok((seed, sealed))
        }
        Key::Ecc { curve, .. } => {
            let point = key.ecc_point().ok_or(WrapError::Parent("overlong coordinates"))?;
            let (z, ours) = match curve {
                Curve::P256 => {
                    let theirs = p256::PublicKey::from_sec1_bytes(&point)
                        .map_err(|_| WrapError::Parent("not a point on P-256"))?;
                    let secret = p256::ecdh::EphemeralSecret::generate_from_rng(rng);
                    let mut z = secret.diffie_hellman(&theirs).raw_secret_bytes().to_vec();
                    (Zeroizing::new(std::mem::take(&mut z)), secret.public_key().to_sec1_bytes())
                }
                Curve::P384 => {
                    let theirs = p384::PublicKey::from_sec1_bytes(&point)
                        .map_err(|_| WrapError::Parent("not a point on P-384"))?;
                    let secret = p384::ecdh::EphemeralSecret::generate_from_rng(rng);
                    let mut z = secret.diffie_hellman(&theirs).raw_secret_bytes().to_vec();
                    (Zeroizing::new(std::mem::take(&mut z)), secret.public_key().to_sec1_bytes())
                }
            };
            let ours = uncompressed(*curve, &ours).ok_or(WrapError::Parent("the ephemeral point has another form"))?;
            let their_x = point.get(1..).and_then(|xy| xy.get(..curve.size())).unwrap_or_default();
            let bits = u16::try_from(size.saturating_mul(8)).unwrap_or(u16::MAX);
            let seed = kdfe(key.name_alg, &z, purpose.label(), &ours.0, their_x, bits)
                .ok_or(WrapError::Parent("its nameAlg is not accepted"))?;
            Ok((seed, Writer::new().tpm2b(&ours.0).tpm2b(&ours.1).done()))
        }
        Key::Sealed { .. } => Err(WrapError::Parent("a sealed object")),
    }
}

/// x and y of a point, whether its encoding is compressed or not.
fn uncompressed(curve: Curve, sec1: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    use p256::elliptic_curve::sec1::ToSec1Point as _;
    let point = match curve {
        Curve::P256 => p256::PublicKey::from_sec1_bytes(sec1).ok()?.to_sec1_point(false).as_bytes().to_vec(),
        Curve::P384 => p384::PublicKey::from_sec1_bytes(sec1).ok()?.to_sec1_point(false).as_bytes().to_vec(),
    };
    let (x, y) = point.get(1..)?.split_at_checked(curve.size())?;
    Some((x.to_vec(), y.to_vec()))
}

/// The outer wrap: TPM2B(HMAC) || AES-CFB(TPM2B(secret)), keys derived from the seed and bound to a Name.
///
/// # Errors
/// [`WrapError::Parent`] when the key is no storage key.
pub(crate) fn outer(key: &Public, seed: &[u8], name: &Name, secret: &[u8]) -> Result<Vec<u8>, WrapError> {
    let symmetric = match &key.key {
        Key::Rsa { symmetric, .. } | Key::Ecc { symmetric, .. } => *symmetric,
        Key::Sealed { .. } => None,
    };
    let bits = symmetric.ok_or(WrapError::Parent("no symmetric algorithm"))?;
    let alg = key.name_alg;
    let sym_key = kdfa(alg, seed, "STORAGE", name.as_bytes(), &[], bits).ok_or(WrapError::Parent("its nameAlg"))?;
    let mut data = Writer::with_capacity(secret.len().saturating_add(2)).tpm2b(secret).done();
    let encrypted = cfb_encrypt(&sym_key, &[0; 16], &mut data);
    if !encrypted {
        data.zeroize();
        return Err(WrapError::Parent("its symmetric key length is not accepted"));
    }
    let hash_bits = u16::try_from(alg.size().saturating_mul(8)).unwrap_or(u16::MAX);
    let mac_key = kdfa(alg, seed, "INTEGRITY", &[], &[], hash_bits).ok_or(WrapError::Parent("its nameAlg"))?;
    let mac = hmac(alg, &mac_key, &[&data, name.as_bytes()]).ok_or(WrapError::Parent("its nameAlg"))?;
    Ok(Writer::new().tpm2b(mac.as_bytes()).raw(&data).done())
}

/// AES-CFB in place, as the TPM uses it for parameters and wraps; false for a key or IV of another length.
#[must_use]
pub fn cfb_encrypt(key: &[u8], iv: &[u8; 16], data: &mut [u8]) -> bool {
    match key.len() {
        16 => cfb_mode::Encryptor::<aes::Aes128>::new_from_slices(key, iv).map(|c| c.encrypt(data)).is_ok(),
        32 => cfb_mode::Encryptor::<aes::Aes256>::new_from_slices(key, iv).map(|c| c.encrypt(data)).is_ok(),
        _ => false,
    }
}

/// The inverse of [`cfb_encrypt`].
#[must_use]
pub fn cfb_decrypt(key: &[u8], iv: &[u8; 16], data: &mut [u8]) -> bool {
    match key.len() {
        16 => cfb_mode::Decryptor::<aes::Aes128>::new_from_slices(key, iv).map(|c| c.decrypt(data)).is_ok(),
        32 => cfb_mode::Decryptor::<aes::Aes256>::new_from_slices(key, iv).map(|c| c.decrypt(data)).is_ok(),
        _ => false,
    }
}
