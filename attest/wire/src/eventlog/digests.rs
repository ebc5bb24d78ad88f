//! The digests of one event.

use countersign_tpm::alg::HashAlg;

/// Digests that this program can compute; those of other banks are passed over. Their lengths were checked when the log was parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Digests<'a> {
    sha1: Option<&'a [u8]>,
    sha256: Option<&'a [u8]>,
    sha384: Option<&'a [u8]>,
    sha512: Option<&'a [u8]>,
}

impl<'a> Digests<'a> {
    /// The one digest of an event in the format of TPM 1.2.
    pub(super) fn sha1(digest: &'a [u8]) -> Self {
        Self { sha1: Some(digest), ..Self::default() }
    }

    /// Keeps a digest of a bank that this program knows.
    pub(super) fn put(&mut self, alg: u16, digest: &'a [u8]) {
        match HashAlg::from_id(alg) {
            Some(HashAlg::Sha1) => self.sha1 = Some(digest),
            Some(HashAlg::Sha256) => self.sha256 = Some(digest),
            Some(HashAlg::Sha384) => self.sha384 = Some(digest),
            Some(HashAlg::Sha512) => self.sha512 = Some(digest),
            None => {}
        }
    }

    pub(super) const fn get(&self, alg: HashAlg) -> Option<&'a [u8]> {
        match alg {
            HashAlg::Sha1 => self.sha1,
            HashAlg::Sha256 => self.sha256,
            HashAlg::Sha384 => self.sha384,
            HashAlg::Sha512 => self.sha512,
        }
    }
}
