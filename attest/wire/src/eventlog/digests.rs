//! The digests of one event.

use countersign_tpm::alg::HashAlg;

/// Digests that this program can compute; those of other banks are passed over. Their lengths were checked when the log was parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Digests<'a> {
    sha1: Option<&'a [u8; 20]>,
    sha256: Option<&'a [u8; 32]>,
    sha384: Option<&'a [u8; 48]>,
    sha512: Option<&'a [u8; 64]>,
}

impl<'a> Digests<'a> {
    /// The one digest of an event in the format of TPM 1.2.
    pub(super) fn sha1(digest: &'a [u8]) -> Self {
        Self { sha1: digest.try_into().ok(), ..Self::default() }
    }

    /// Keeps a digest of a bank that this program knows.
    pub(super) fn put(&mut self, alg: u16, digest: &'a [u8]) {
        match HashAlg::from_id(alg) {
            Some(HashAlg::Sha1) => self.sha1 = digest.try_into().ok(),
            Some(HashAlg::Sha256) => self.sha256 = digest.try_into().ok(),
            Some(HashAlg::Sha384) => self.sha384 = digest.try_into().ok(),
            Some(HashAlg::Sha512) => self.sha512 = digest.try_into().ok(),
            None => {}
        }
    }

    pub(super) fn get(&self, alg: HashAlg) -> Option<&'a [u8]> {
        match alg {
            HashAlg::Sha1 => self.sha1.map(<[u8; 20]>::as_slice),
            HashAlg::Sha256 => self.sha256.map(<[u8; 32]>::as_slice),
            HashAlg::Sha384 => self.sha384.map(<[u8; 48]>::as_slice),
            HashAlg::Sha512 => self.sha512.map(<[u8; 64]>::as_slice),
        }
    }
}
