//! Key derivation and HMAC (TPM 2.0 Part 1, 11.4.10).

use hmac::{Hmac, KeyInit as _, Mac as _};
use zeroize::{Zeroize as _, Zeroizing};

use crate::alg::{Digest, HashAlg};

/// HMAC of the parts, one after the other; `None` for SHA-1, which is no key's nameAlg here.
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

/// KDFe: `bits` (a multiple of 8) from the x-coordinate of a shared point (Part 1, 11.4.10.3). `party_u` and `party_v` are the
/// x-coordinates of the sender's ephemeral and of the receiver's key, padded to the curve's size.
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
        let mut next = block(counter.to_be_bytes())?;
        out.extend_from_slice(next.as_bytes());
        next.zeroize();
    }
    out.truncate(wanted);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmacs() {
        // RFC 4231, test case 2.
        let mac = hmac(HashAlg::Sha256, b"Jefe", &[b"what do ya want ", b"for nothing?"]).unwrap();
        assert_eq!(mac.to_string(), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert!(hmac(HashAlg::Sha1, b"key", &[]).is_none());
    }

    #[test]
    fn blocks_are_counted_and_cut() {
        // KDFa as a loop of HMACs (SP 800-108, counter mode, 32-bit counter in front, length in bits behind).
        let key = kdfa(HashAlg::Sha256, b"key", "LABEL", b"u", b"v", 400).unwrap();
        let block = |counter: u8| {
            hmac(HashAlg::Sha256, b"key", &[&[0, 0, 0, counter], b"LABEL\0", b"uv", &400u32.to_be_bytes()]).unwrap()
        };
        assert_eq!(*key, [block(1).as_bytes(), &block(2).as_bytes()[..18]].concat());
        // KDFe (SP 800-56A, one-step).
        let key = kdfe(HashAlg::Sha256, b"z", "SECRET", b"u", b"v", 256).unwrap();
        assert_eq!(*key, HashAlg::Sha256.digest(&[&[0, 0, 0, 1], b"z", b"SECRET\0", b"uv"]).as_bytes());
        assert_eq!(kdfa(HashAlg::Sha384, b"", "", b"", b"", 0).unwrap().len(), 0);
        assert!(kdfa(HashAlg::Sha1, b"key", "LABEL", b"u", b"v", 128).is_none());
    }
}
