//! Replay: which prefix of a list leads to quoted values.

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::sha256;

use super::PCR;
use super::list::{BadIma, Frame, frames};

/// The part of a list that a quote covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// Entries covered.
    pub entries: u64,
    /// Bytes of the list that they take.
    pub bytes: usize,
    /// Violations among them.
    pub violations: u64,
    /// Entries among them that extend another PCR than 10: nothing here vouches for them.
    pub elsewhere: u64,
    /// Banks that hold SHA-1 hashes with zeros behind them: no stronger than SHA-1.
    pub padded: Vec<HashAlg>,
}

/// Why a list does not lead to the quoted values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImaReplayError {
    /// An entry within the list breaks the format before the quoted values were reached.
    #[error(transparent)]
    Malformed(#[from] BadIma),
    /// No prefix leads to the values of all banks at once.
    #[error("no prefix of the list's {entries} entries leads to PCR 10 in all of {banks}")]
    NoPrefix {
        /// Entries tried.
        entries: u64,
        /// The banks.
        banks: String,
    },
}

/// One bank on its way to the quoted value.
struct Bank {
    own: Value,
    /// The value if the kernel extends padded SHA-1; only followed when the banks' own hashes lead nowhere.
    padded: Option<Digest>,
    quoted: Digest,
}

/// The value of PCR 10.
enum Value {
    /// Of the bank that nearly every quote is over.
    Sha256([u8; 32]),
    /// Of any other.
    Other(Digest),
}

impl Value {
    fn new(digest: &Digest) -> Self {
        match (digest.alg(), digest.as_bytes().try_into()) {
            (HashAlg::Sha256, Ok(value)) => Self::Sha256(value),
            _ => Self::Other(*digest),
        }
    }

    fn extend(&mut self, frame: &Frame<'_>) {
        match self {
            Self::Sha256(value) => *value = sha256::extend(value, &frame.extends_sha256()),
            Self::Other(value) => *value = value.extend(frame.extends(value.alg()).as_bytes()),
        }
    }

    fn is(&self, quoted: &Digest) -> bool {
        match self {
            Self::Sha256(value) => quoted.as_bytes() == value,
            Self::Other(value) => value == quoted,
        }
    }
}

impl Bank {
    fn arrived(&self) -> bool {
        self.own.is(&self.quoted) || self.padded.is_some_and(|padded| padded == self.quoted)
    }
}

/// Finds the one prefix that leads from `start` to `quoted` in every bank. What lies beyond is not read.
///
/// A kernel extends either its own hash of each entry into a bank, or SHA-1 with zeros behind it (before 5.8 into every bank, later where it
/// lacks the bank's hash); which one is the same for all entries. Nearly always it is the own one: padding is tried in a second pass.
///
/// # Errors
/// [`ImaReplayError`].
pub fn replay_to(bytes: &[u8], start: &[Digest], quoted: &[Digest]) -> Result<Prefix, ImaReplayError> {
    replay_each(bytes, start, quoted, |_| {})
}

/// As [`replay_to`], and shows each entry to `visit` on the way: from the first one on, and from the first one again in a second pass. None of
/// them is authentic before this function says so; what lies beyond the prefix is not shown.
///
/// # Errors
/// [`ImaReplayError`]: then everything that `visit` saw is to be forgotten.
pub fn replay_each<'a>(
    bytes: &'a [u8],
    start: &[Digest],
    quoted: &[Digest],
    mut visit: impl FnMut(&Frame<'a>),
) -> Result<Prefix, ImaReplayError> {
    let first = walk(bytes, start, quoted, false, &mut visit);
    if first.is_ok() || start.iter().all(|value| value.alg() == HashAlg::Sha1) {
        return first;
    }
    walk(bytes, start, quoted, true, &mut visit).or(first)
}

fn walk<'a>(
    bytes: &'a [u8],
    start: &[Digest],
    quoted: &[Digest],
    pad: bool,
    visit: &mut impl FnMut(&Frame<'a>),
) -> Result<Prefix, ImaReplayError> {
    let bank = |(start, quoted): (&Digest, &Digest)| {
        let padded = (pad && start.alg() != HashAlg::Sha1).then_some(*start);
        Bank { own: Value::new(start), padded, quoted: *quoted }
    };
    let mut banks: Vec<Bank> = start.iter().zip(quoted).map(bank).collect();
    let mut list = frames(bytes)?;
    let mut prefix = Prefix { entries: 0, bytes: 0, violations: 0, elsewhere: 0, padded: Vec::new() };
    if banks.iter().all(Bank::arrived) {
        return Ok(prefix);
    }
    while let Some(frame) = list.next() {
        let frame = frame?;
        visit(&frame);
        prefix.entries = prefix.entries.saturating_add(1);
        prefix.violations = prefix.violations.saturating_add(frame.is_violation().into());
        // An entry for another PCR leaves PCR 10 as it is.
        if frame.pcr != u32::from(PCR) {
            prefix.elsewhere = prefix.elsewhere.saturating_add(1);
            continue;
        }
        for bank in &mut banks {
            bank.own.extend(&frame);
            let alg = bank.quoted.alg();
            bank.padded = bank.padded.map(|padded| padded.extend(frame.extends_padded(alg).as_bytes()));
        }
        if banks.iter().all(Bank::arrived) {
            prefix.bytes = list.offset();
            let padded = banks.iter().filter(|bank| !bank.own.is(&bank.quoted));
            prefix.padded = padded.map(|bank| bank.quoted.alg()).collect();
            return Ok(prefix);
        }
    }
    let names: Vec<&str> = start.iter().map(|digest| digest.alg().name()).collect();
    Err(ImaReplayError::NoPrefix { entries: prefix.entries, banks: names.join(", ") })
}
