//! Hash algorithms and digests of the TPM (TPM 2.0 Part 2, 6.3).

use std::fmt;

use crate::sha256;

/// Length of the longest digest, in bytes (SHA-512).
pub const MAX_DIGEST: usize = 64;

/// A hash algorithm that this crate computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HashAlg {
    /// TPM_ALG_SHA1. Read from logs and replayed; never trusted for a signature or a verdict.
    Sha1,
    /// TPM_ALG_SHA256.
    Sha256,
    /// TPM_ALG_SHA384.
    Sha384,
    /// TPM_ALG_SHA512.
    Sha512,
}

impl HashAlg {
    /// All of them, in the order of their identifiers.
    pub const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// TPM_ALG_ID.
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::Sha1 => 0x0004,
            Self::Sha256 => 0x000B,
            Self::Sha384 => 0x000C,
            Self::Sha512 => 0x000D,
        }
    }

    /// The algorithm of a TPM_ALG_ID, if it is one of these.
    #[must_use]
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|alg| alg.id() == id)
    }

    /// Length of a digest, in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Name in documents: `sha256`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The algorithm with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|alg| alg.name() == name)
    }

    /// Whether a digest is that of these bytes.
    #[must_use]
    pub fn is_digest(self, bytes: &[u8], digest: &[u8]) -> bool {
        fn is<H: sha2::Digest>(bytes: &[u8], digest: &[u8]) -> bool {
            H::digest(bytes).as_slice() == digest
        }
        match self {
            Self::Sha1 => is::<sha1::Sha1>(bytes, digest),
            Self::Sha256 => sha256::digest(bytes) == digest,
            Self::Sha384 => is::<sha2::Sha384>(bytes, digest),
            Self::Sha512 => is::<sha2::Sha512>(bytes, digest),
        }
    }

    /// Digest of the parts, one after the other.
    #[must_use]
    pub fn digest(self, parts: &[&[u8]]) -> Digest {
        fn hash<H: sha2::Digest>(alg: HashAlg, parts: &[&[u8]]) -> Digest {
            let mut hasher = H::new();
            for part in parts {
                hasher.update(part);
            }
            Digest::from_slice(alg, &hasher.finalize())
        }
        match self {
            Self::Sha1 => hash::<sha1::Sha1>(self, parts),
            Self::Sha256 => hash::<sha2::Sha256>(self, parts),
            Self::Sha384 => hash::<sha2::Sha384>(self, parts),
            Self::Sha512 => hash::<sha2::Sha512>(self, parts),
        }
    }
}

impl fmt::Display for HashAlg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A digest and its algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    alg: HashAlg,
    bytes: [u8; MAX_DIGEST],
}

impl Digest {
    /// A digest of `alg` that holds `fill` in every byte: the initial value of a PCR.
    #[must_use]
    pub fn filled(alg: HashAlg, fill: u8) -> Self {
        let mut bytes = [0; MAX_DIGEST];
        if let Some(used) = bytes.get_mut(..alg.size()) {
            used.fill(fill);
        }
        Self { alg, bytes }
    }

    /// A digest of `alg` with these bytes; `None` if their number is another than the algorithm's.
    #[must_use]
    pub fn new(alg: HashAlg, value: &[u8]) -> Option<Self> {
        (value.len() == alg.size()).then(|| Self::from_slice(alg, value))
    }

    /// `value` has the algorithm's length.
    fn from_slice(alg: HashAlg, value: &[u8]) -> Self {
        let mut bytes = [0; MAX_DIGEST];
        if let Some(used) = bytes.get_mut(..value.len()) {
            used.copy_from_slice(value);
        }
        Self { alg, bytes }
    }

    /// The algorithm.
    #[must_use]
    pub const fn alg(&self) -> HashAlg {
        self.alg
    }

    /// The bytes, as many as the algorithm has.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.alg.size()).unwrap_or_default()
    }

    /// This PCR value extended by a digest: H(old || event) (TPM 2.0 Part 1, 17.2).
    #[must_use]
    pub fn extend(&self, event: &[u8]) -> Self {
        let mut value = *self;
        value.extend_by(event);
        value
    }

    /// As [`Digest::extend`], in place: copies of values, and a message in two parts, would cost half as much as the hashing.
    #[inline]
    pub fn extend_by(&mut self, event: &[u8]) {
        match (self.alg, self.bytes.first_chunk_mut::<32>(), <&[u8; 32]>::try_from(event)) {
            (HashAlg::Sha256, Some(old), Ok(event)) => {
                *old = sha256::extend(old, event);
            }
            _ => *self = self.alg.digest(&[self.as_bytes(), event]),
        }
    }
}

impl zeroize::Zeroize for Digest {
    /// Wipes a digest that is key material; it then holds zeros.
    fn zeroize(&mut self) {
        self.bytes.zeroize();
    }
}

impl AsRef<[u8]> for Digest {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.alg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_abc() {
        // FIPS 180-4 examples.
        let cases = [
            (HashAlg::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (HashAlg::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                HashAlg::Sha384,
                "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
            ),
            (
                HashAlg::Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
        ];
        for (alg, expected) in cases {
            let digest = alg.digest(&[b"a", b"", b"bc"]);
            assert_eq!(digest.to_string(), expected);
            assert_eq!(digest.as_bytes().len(), alg.size());
            assert_eq!(Digest::new(alg, digest.as_bytes()), Some(digest));
            assert_eq!(Digest::new(alg, &digest.as_bytes()[1..]), None);
            assert!(alg.is_digest(b"abc", digest.as_bytes()) && !alg.is_digest(b"abd", digest.as_bytes()));
            assert!(!alg.is_digest(b"abc", &digest.as_bytes()[1..]) && !alg.is_digest(b"abc", b""));
            assert_eq!((HashAlg::from_id(alg.id()), HashAlg::from_name(alg.name())), (Some(alg), Some(alg)));
            let zero = Digest::filled(alg, 0);
            for event in [digest.as_bytes(), &[7; 32], b"", &[7; 200]] {
                assert_eq!(zero.extend(event), alg.digest(&[zero.as_bytes(), event]));
            }
        }
        assert_eq!(HashAlg::from_id(0x0012), None, "SM3 is not computed");
    }

    #[test]
    fn wiped() {
        use zeroize::Zeroize as _;
        let mut digest = HashAlg::Sha512.digest(&[b"key"]);
        digest.zeroize();
        assert_eq!(digest, Digest::filled(HashAlg::Sha512, 0));
    }
}
