//! What the verifier keeps of a host's IMA list between two attestations.

use countersign_tpm::alg::{Digest, HashAlg};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

/// Findings of each kind that are kept and shown; the counts go on.
pub(super) const FINDINGS: usize = 32;
/// Learned keys that are kept.
pub(super) const KEYS: usize = 16;
/// Characters of a path in a finding.
const PATH: usize = 512;

/// The state after the entries seen so far in this life of the PCRs. Kept with the host's baseline and replaced by every accepted attestation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ImaState {
    /// Life of the PCRs (the baseline's) that it belongs to.
    #[n(0)]
    pub life: u64,
    /// resetCount and restartCount of the quote.
    #[n(1)]
    pub boot: (u32, u32),
    /// Entries seen.
    #[n(2)]
    pub entries: u64,
    /// PCR 10 after them, in every quoted bank.
    #[n(3)]
    pub banks: Vec<SavedBank>,
    /// Identity of the reference sets that they were appraised against; zeros for none.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub reference: [u8; 32],
    /// How they were appraised.
    #[n(5)]
    pub tally: Tally,
    /// The first findings of each kind.
    #[n(6)]
    pub findings: Vec<Finding>,
    /// Certificates (DER) of keys that the list itself measured, and that the reference sets allow to be learned.
    #[n(7)]
    pub keys: Vec<ByteVec>,
    /// Whether entry 0 is the boot_aggregate of the quoted PCRs; none when its bank was not quoted.
    #[n(8)]
    pub boot_aggregate: Option<bool>,
}

/// PCR 10 of a bank.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct SavedBank {
    /// TPM_ALG_ID.
    #[n(0)]
    pub alg: u16,
    /// Value.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub value: Vec<u8>,
    /// It holds SHA-1 hashes with zeros behind them.
    #[n(2)]
    pub padded: bool,
}

impl SavedBank {
    /// The value as a digest; `None` when it is not one of its bank.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        Digest::new(HashAlg::from_id(self.alg)?, &self.value)
    }
}

/// Entries by how they were appraised. Each entry counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Tally {
    /// Violations: the kernel does not vouch for the file.
    #[n(0)]
    pub violations: u64,
    /// The digest is in a set, for this path or for any.
    #[n(1)]
    pub accepted: u64,
    /// The path is excluded.
    #[n(2)]
    pub excluded: u64,
    /// An accepted key signed the file.
    #[n(3)]
    pub signed: u64,
    /// Keys that were learned.
    #[n(4)]
    pub keys: u64,
    /// None of these.
    #[n(5)]
    pub unknown: u64,
    /// The digest is on the deny-list.
    #[n(6)]
    pub denied: u64,
    /// Entries named boot_aggregate behind the first: another kernel was started (kexec).
    #[n(7)]
    pub kexecs: u64,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum FindingKind {
    /// A violation.
    #[n(0)]
    Violation,
    /// Nothing accepts it.
    #[n(1)]
    Unknown,
    /// The deny-list names it.
    #[n(2)]
    Denied,
}

/// One entry that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Finding {
    /// What is wrong.
    #[n(0)]
    pub kind: FindingKind,
    /// Index in the host's list.
    #[n(1)]
    pub entry: u64,
    /// Path as logged, at most 512 characters; lossy for other than UTF-8.
    #[n(2)]
    pub path: String,
    /// `alg:hex`.
    #[n(3)]
    pub digest: String,
    /// Why.
    #[n(4)]
    pub reason: String,
}

impl ImaState {
    /// Notes a finding, if there is room for its kind.
    pub(super) fn note(&mut self, kind: FindingKind, finding: impl FnOnce() -> Finding) {
        if self.findings.iter().filter(|known| known.kind == kind).count() < FINDINGS {
            let mut finding = finding();
            if finding.path.chars().count() > PATH {
                finding.path = finding.path.chars().take(PATH).chain("...".chars()).collect();
            }
            self.findings.push(finding);
        }
    }

    /// Findings of a kind.
    pub fn of(&self, kind: FindingKind) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.kind == kind)
    }
}
