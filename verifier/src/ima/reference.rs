//! Compiled reference sets.

use countersign_wire::ima::{Entry, KernelHash};
use countersign_wire::refset::{BadSet, FileDigest, ReferenceSet};
use regex::bytes::{RegexSet, RegexSetBuilder};
use sha2::{Digest as _, Sha256};

use super::keyring::{Key, Keyring, NoKey};
use super::table::{Builder, Found, Table};

/// Bytes of a compiled set of regular expressions.
const PATTERNS: usize = 4 * 1024 * 1024;
/// Regular expressions in all sets.
const MAX_PATTERNS: usize = 1000;

/// Reference sets, compiled for look-up. Immutable: made once and shared.
#[derive(Debug)]
pub struct Reference {
    identity: [u8; 32],
    allow: Table,
    deny: Table,
    /// Reasons of the deny-list, by digest, sorted.
    reasons: Vec<(Vec<u8>, String)>,
    exclude: Option<RegexSet>,
    keyring: Keyring,
    learn: Vec<Vec<u8>>,
}

/// Why sets cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadReference {
    /// A set.
    #[error(transparent)]
    Set(#[from] BadSet),
    /// A regular expression.
    #[error("exclude: {0}")]
    Pattern(String),
    /// A certificate.
    #[error("certificate {index}: {reason}")]
    Certificate {
        /// Its place in the set.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// More paths than 32 bits can count.
    #[error("too many files")]
    TooMany,
}

/// Identity of a list of sets: SHA-256 over "countersign/ima-reference/v1" and the SHA-256 of each.
#[must_use]
pub fn identity(sets: &[[u8; 32]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"countersign/ima-reference/v1");
    for set in sets {
        hash.update(set);
    }
    hash.finalize().into()
}

/// The path as the kernel logs it: `_` for a space (Linux ima_template_lib.c).
fn as_logged(mut path: Vec<u8>) -> Vec<u8> {
    path.iter_mut().filter(|byte| **byte == b' ').for_each(|byte| *byte = b'_');
    path
}

impl Reference {
    /// Compiles sets, given as the JSON documents that they are stored as.
    ///
    /// # Errors
    /// [`BadReference`].
    pub fn compile<'a>(sets: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, BadReference> {
        let (mut allow, mut deny) = (Builder::default(), Builder::default());
        let (mut patterns, mut learn, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
        let mut keyring = Keyring::default();
        let mut digests = Vec::new();
        let file_error = |origin: String| move |bad| BadSet::File { origin, bad };
        for json in sets {
            digests.push(Sha256::digest(json).into());
            let set = ReferenceSet::parse(json)?;
            for origin in &set.origins {
                for file in &origin.files {
                    let file = FileDigest::parse(file).map_err(file_error(origin.describe()))?;
                    allow.add(file.alg, &file.digest, &as_logged(file.path.unwrap_or_default()));
                }
            }
            for denied in set.deny {
                let file = FileDigest::parse(&denied.digest).map_err(file_error("deny".into()))?;
                reasons.push((file.digest.clone(), denied.reason));
                deny.add(file.alg, &file.digest, b"");
            }
            for (index, text) in set.certificates.iter().enumerate() {
                keyring.add(certificate(text).map_err(|reason| BadReference::Certificate { index, reason })?);
            }
            patterns.extend(set.exclude);
            learn.extend(set.learn_keys_from.into_iter().map(String::into_bytes));
        }
        reasons.sort_unstable();
        Ok(Self {
            identity: identity(&digests),
            allow: allow.build().ok_or(BadReference::TooMany)?,
            deny: deny.build().ok_or(BadReference::TooMany)?,
            reasons,
            exclude: compile_patterns(&patterns)?,
            keyring,
            learn,
        })
    }

    /// Which sets it was made from.
    #[must_use]
    pub const fn identity(&self) -> &[u8; 32] {
        &self.identity
    }

    /// Digests that it accepts.
    #[must_use]
    pub fn digests(&self) -> usize {
        self.allow.len()
    }

    /// Bytes that its tables take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.allow.bytes().saturating_add(self.deny.bytes())
    }

    /// The keys that sign files.
    #[must_use]
    pub const fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Whether keys of this keyring may be learned.
    #[must_use]
    pub fn learns_from(&self, keyring: &[u8]) -> bool {
        self.learn.iter().any(|name| name == keyring)
    }

    /// Why a file is denied.
    #[must_use]
    pub fn denied(&self, entry: &Entry<'_>) -> Option<&str> {
        if self.deny.len() == 0 {
            return None;
        }
        let alg = KernelHash::from_name(entry.digest_alg)?;
        if self.deny.find(alg, entry.digest, b"") == Found::No {
            return None;
        }
        let at = self.reasons.partition_point(|(digest, _)| digest.as_slice() < entry.digest);
        Some(self.reasons.get(at).map_or("", |(_, reason)| reason))
    }

    /// Whether a SHA-256 digest is denied.
    pub(super) fn denies(&self, digest: &[u8; 32]) -> bool {
        self.deny.len() > 0 && self.deny.find(KernelHash::SHA256, digest, b"") != Found::No
    }

    /// The accepted files.
    pub(super) const fn allow(&self) -> &Table {
        &self.allow
    }

    /// Whether the file's digest is good at its path.
    #[must_use]
    pub fn find(&self, entry: &Entry<'_>) -> Found<'_> {
        let alg = KernelHash::from_name(entry.digest_alg);
        alg.map_or(Found::No, |alg| self.allow.find(alg, entry.digest, entry.path))
    }

    /// Whether the path is excluded.
    #[must_use]
    pub fn excludes(&self, path: &[u8]) -> bool {
        self.exclude.as_ref().is_some_and(|patterns| patterns.is_match(path))
    }
}

fn certificate(text: &str) -> Result<Key, String> {
    use base64::Engine as _;
    let der = base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| "it is not base64".to_owned())?;
    Key::from_certificate(&der).map_err(|e: NoKey| e.to_string())
}

/// Each pattern is over the whole path; matching takes time linear in the path whatever the pattern is.
fn compile_patterns(patterns: &[String]) -> Result<Option<RegexSet>, BadReference> {
    if patterns.is_empty() {
        return Ok(None);
    }
    if patterns.len() > MAX_PATTERNS {
        return Err(BadReference::Pattern(format!("{} patterns, at most {MAX_PATTERNS}", patterns.len())));
    }
    let build = |patterns: &[String]| {
        // A pattern that is only well-formed inside of other brackets must not close ours.
        let anchored = patterns.iter().map(|pattern| format!(r"\A(?:{pattern})\z"));
        RegexSetBuilder::new(anchored).unicode(false).dot_matches_new_line(true).size_limit(PATTERNS).build()
    };
    for pattern in patterns {
        RegexSetBuilder::new([pattern])
            .unicode(false)
            .size_limit(PATTERNS)
            .build()
            .map_err(|e| BadReference::Pattern(format!("{pattern:?}: {e}")))?;
    }
    build(patterns).map(Some).map_err(|e| BadReference::Pattern(e.to_string()))
}
