//! Key derivation and HMAC (TPM 2.0 Part 1, 11.4.10).

use hmac::{Hmac, KeyInit as _, Mac as _};
use zeroize::Zeroizing;

use crate::alg::{Digest, HashAlg};

/// HMAC of the parts, one after the other. SHA-1 is never used for a MAC here and gives that of SHA-256's length class: `None`.
#[must_use]
pub fn hmac(alg: HashAlg, key: &[u8], parts: &[&[u8]]) -> Option<Digest> {
    macro_rules! with {
        ($hash:ty) => {{
            let mut mac = Hmac::<$hash>::new_from_slice(key).ok()?;
            for part in parts {
                mac.update(part);
            }
            Digest::new(alg, &mac.finalize().into_bytes())
        }};
    }
    match alg {
        HashAlg::Sha1 => None,
        HashAlg::Sha256 => with!(sha2::Sha256),
        HashAlg::Sha384 => with!(sha2::Sha384),
        HashAlg::Sha512 => with!(sha2::Sha512),
    }
}

/// KDFa: `bits` (a multiple of 8) from a key, a label and two contexts (Part 1, 11.4.10.2). `None` for SHA-1.
#[must_use]
pub fn kdfa(
    alg: HashAlg,
    key: &[u8],
    label: &str,
    context_u: &[u8],
    context_v: &[u8],
    bits: u16,
) -> Option<Zeroizing<Vec<u8>>> {
    derive(alg, bits, |counter| {
        let bits = u32::from(bits).to_be_bytes();
        hmac(alg, key, &[&counter, label.as_bytes(), &[0], context_u, context_v, &bits])
    })
}

/// KDFe: `bits` (a multiple of 8) from the x-coordinate of a shared point (Part 1, 11.4.10.3).
#[must_use]
pub fn kdfe(
    alg: HashAlg,
    z: &[u8],
    label: &str,
    party_u: &[u8],
    party_v: &[u8],
    bits: u16,
) -> Option<Zeroizing<Vec<u8>>> {
    derive(alg, bits, |counter| Some(alg.digest(&[&counter, z, label.as_bytes(), &[0], party_u, party_v])))
}

fn derive(alg: HashAlg, bits: u16, block: impl Fn([u8; 4]) -> Option<Digest>) -> Option<Zeroizing<Vec<u8>>> {
    let wanted = usize::from(bits).checked_div(8)?;
    let mut out = Zeroizing::new(Vec::with_capacity(wanted.checked_add(alg.size())?));
    let mut counter: u32 = 0;
    while out.len() < wanted {
        counter = counter.checked_add(1)?;
        out.extend_from_slice(block(counter.to_be_bytes())?.as_bytes());
    }
    out.truncate(wanted);
    Some(out)
}
