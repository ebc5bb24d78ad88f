//! Digests that give an event's true nature away, whatever its type says.

use std::sync::LazyLock;

use countersign_tpm::alg::{Digest, HashAlg};

/// A separator's data (PFP 10.4.1).
pub(super) const NORMAL: [u8; 4] = [0; 4];
/// The other value that a separator can have; firmware for TPM 2.0 reports an error by it.
pub(super) const ONES: [u8; 4] = [0xff; 4];
/// What is hashed when a firmware reports an error by a separator (PFP 10.4.1).
const ERROR: [u8; 4] = [1, 0, 0, 0];

/// Actions that facts are read from (PFP 10.4.4).
const ACTIONS: [&str; 7] = [
    "Calling EFI Application from Boot Option",
    "Returning from EFI Application from Boot Option",
    "Exit Boot Services Invocation",
    "Exit Boot Services Returned with Success",
    "Exit Boot Services Returned with Failure",
    "UEFI Debug Mode",
    "DMA Protection Disabled",
];

/// Digests that give an event's true nature away, whatever its type says.
pub(super) struct Known {
    normal: Digest,
    failed: [Digest; 2],
    ones_sha1: Digest,
    actions: [Digest; 7],
    /// The first bytes of all of them: nearly every digest is none of them, and is found out by one look here.
    starts: [u64; 10],
}

impl Known {
    fn of(alg: HashAlg) -> Self {
        let normal = alg.digest(&[&NORMAL]);
        let failed = [alg.digest(&[&ONES]), alg.digest(&[&ERROR])];
        let actions = ACTIONS.map(|text| alg.digest(&[text.as_bytes()]));
        let mut starts = [0; 10];
        let all = [&[normal][..], &failed, &actions];
        for (slot, digest) in starts.iter_mut().zip(all.into_iter().flatten()) {
            *slot = start(digest.as_bytes());
        }
        Self { normal, failed, ones_sha1: HashAlg::Sha1.digest(&[&ONES]), actions, starts }
    }

    /// Whether a digest is of FFFFFFFF: in this bank's algorithm, or SHA-1 with zeros behind it.
    pub(super) fn is_ones(&self, digest: &[u8]) -> bool {
        let [ones, _] = &self.failed;
        let padded = || {
            let rest = digest.strip_prefix(self.ones_sha1.as_bytes());
            rest.is_some_and(|zeros| zeros.iter().all(|byte| *byte == 0))
        };
        ones.as_bytes() == digest || padded()
    }

    /// The digest of a separator's or action's data, if it is one of those that all boots have.
    pub(super) fn of_data(&self, data: &[u8]) -> Option<&Digest> {
        if data == NORMAL {
            return Some(&self.normal);
        }
        ACTIONS.iter().zip(&self.actions).find(|(text, _)| text.as_bytes() == data).map(|(_, digest)| digest)
    }

    /// Which of them a digest is.
    pub(super) fn find(&self, digest: &[u8]) -> Nature {
        if !self.starts.contains(&start(digest)) {
            return Nature::Other;
        }
        let is = |known: &Digest| known.as_bytes() == digest;
        match () {
            () if is(&self.normal) => Nature::Separator,
            () if self.failed.iter().any(is) => Nature::Failed,
            () if self.actions.iter().any(is) => Nature::Action,
            () => Nature::Other,
        }
    }
}

/// What a digest is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nature {
    /// 00000000.
    Separator,
    /// FFFFFFFF or 00000001.
    Failed,
    /// One of [`ACTIONS`].
    Action,
    /// Anything else.
    Other,
}

fn start(digest: &[u8]) -> u64 {
    digest.first_chunk().map_or(0, |start| u64::from_le_bytes(*start))
}

static KNOWN: LazyLock<[Known; 4]> = LazyLock::new(|| HashAlg::ALL.map(Known::of));

/// What is known of a bank.
pub(super) fn known(alg: HashAlg) -> &'static Known {
    let [sha1, sha256, sha384, sha512] = &*KNOWN;
    match alg {
        HashAlg::Sha1 => sha1,
        HashAlg::Sha256 => sha256,
        HashAlg::Sha384 => sha384,
        HashAlg::Sha512 => sha512,
    }
}
