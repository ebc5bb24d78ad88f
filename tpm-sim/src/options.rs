//! How a TPM is manufactured.

use std::path::PathBuf;

use countersign_tpm::alg::HashAlg;

use crate::error::Error;

/// Who signs the EK certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    /// A CA of this TPM's own, in its folder.
    Own,
    /// A CA in this folder, shared by a fleet; made there by the first TPM.
    Shared(PathBuf),
    /// Nobody: the TPM has EKs but no certificates, like old or virtual ones.
    None,
}

/// How a TPM is manufactured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Name of the machine, which also stands in the certificates.
    pub name: String,
    /// Active PCR banks.
    pub banks: Vec<HashAlg>,
    /// Who signs the EK certificates.
    pub authority: Authority,
}

impl Options {
    /// A TPM with the SHA-1, SHA-256 and SHA-384 banks and a CA of its own.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            banks: vec![HashAlg::Sha1, HashAlg::Sha256, HashAlg::Sha384],
            authority: Authority::Own,
        }
    }

    /// With these PCR banks.
    #[must_use]
    pub fn banks(mut self, banks: &[HashAlg]) -> Self {
        self.banks = banks.to_vec();
        self
    }

    /// With a CA in `folder`, which other TPMs share.
    #[must_use]
    pub fn shared_ca(mut self, folder: impl Into<PathBuf>) -> Self {
        self.authority = Authority::Shared(folder.into());
        self
    }

    /// Without EK certificates.
    #[must_use]
    pub fn without_certificates(mut self) -> Self {
        self.authority = Authority::None;
        self
    }

    /// Checks the name and that there is a bank, as [`Sim::create`](crate::Sim::create) does.
    ///
    /// # Errors
    /// [`Error::Name`] or [`Error::NoBanks`].
    pub fn check(&self) -> Result<(), Error> {
        let first = self.name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        let rest = self.name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
        if !first || !rest || self.name.len() > 64 {
            return Err(Error::Name(self.name.clone()));
        }
        if self.banks.is_empty() {
            return Err(Error::NoBanks);
        }
        Ok(())
    }
}

impl Default for Options {
    /// A TPM named `tpm-sim`.
    fn default() -> Self {
        Self::named("tpm-sim")
    }
}
