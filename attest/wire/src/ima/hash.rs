//! Hash algorithms as the kernel names them.

/// A hash algorithm of the kernel (Linux `include/uapi/linux/hash_info.h`, `crypto/hash_info.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelHash(u8);

/// Name and digest length in bytes, in the order of `enum hash_algo`.
const KNOWN: [(&str, usize); 23] = [
    ("md4", 16),
    ("md5", 16),
    ("sha1", 20),
    ("rmd160", 20),
    ("sha256", 32),
    ("sha384", 48),
    ("sha512", 64),
    ("sha224", 28),
    ("rmd128", 16),
    ("rmd256", 32),
    ("rmd320", 40),
    ("wp256", 32),
    ("wp384", 48),
    ("wp512", 64),
    ("tgr128", 16),
    ("tgr160", 20),
    ("tgr192", 24),
    ("sm3", 32),
    ("streebog256", 32),
    ("streebog512", 64),
    ("sha3-256", 32),
    ("sha3-384", 48),
    ("sha3-512", 64),
];

impl KernelHash {
    /// SHA-1.
    pub const SHA1: Self = Self(2);
    /// SHA-256.
    pub const SHA256: Self = Self(4);
    /// SHA-384.
    pub const SHA384: Self = Self(5);
    /// SHA-512.
    pub const SHA512: Self = Self(6);

    /// All of them, by number.
    pub fn all() -> impl Iterator<Item = Self> {
        (0u8..).take(KNOWN.len()).map(Self)
    }

    /// The algorithm with this number in `enum hash_algo`.
    #[must_use]
    pub fn from_id(id: u8) -> Option<Self> {
        KNOWN.get(usize::from(id)).map(|_| Self(id))
    }

    /// The algorithm with this name. Kernels before 5.18 call SM3 `sm3-256`.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            // By far the most entries.
            b"sha256" => Some(Self::SHA256),
            b"sm3-256" => Some(Self(17)),
            _ => Self::all().find(|hash| hash.name().as_bytes() == name),
        }
    }

    /// Its number in `enum hash_algo`.
    #[must_use]
    pub const fn id(self) -> u8 {
        self.0
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        KNOWN.get(usize::from(self.0)).map_or("", |(name, _)| name)
    }

    /// Length of its digests, in bytes.
    #[must_use]
    pub fn size(self) -> usize {
        KNOWN.get(usize::from(self.0)).map_or(0, |(_, size)| *size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_names_and_sizes() {
        assert_eq!(KernelHash::all().count(), 23);
        for hash in KernelHash::all() {
            assert_eq!(KernelHash::from_id(hash.id()), Some(hash));
            assert_eq!(KernelHash::from_name(hash.name().as_bytes()), Some(hash));
            assert!((16..=64).contains(&hash.size()));
        }
        assert_eq!(KernelHash::from_name(b"sm3-256").unwrap().name(), "sm3");
        assert_eq!((KernelHash::SHA1.name(), KernelHash::SHA512.size()), ("sha1", 64));
        assert_eq!((KernelHash::SHA256.id(), KernelHash::SHA384.name()), (4, "sha384"));
        assert_eq!(KernelHash::from_id(23), None);
        assert_eq!(KernelHash::from_name(b""), None);
    }
}
