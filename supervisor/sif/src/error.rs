//! What can be wrong with an image, and what can go wrong on the way.

use countersign_wire::codec::Malformed;

/// Why an image is not accepted or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SifError {
    /// Reading or writing.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A field breaks the format.
    #[error("SIF: {0}")]
    Malformed(#[from] Malformed),
    /// The container's structure.
    #[error("SIF: {0}")]
    Structure(String),
    /// The signature is missing, foreign, or not over this content.
    #[error("signature: {0}")]
    Signature(String),
    /// Objects do not belong together.
    #[error("binding: {0}")]
    Binding(String),
    /// A block of the payload was changed.
    #[error("block {block} of the image was changed (level {level} of the hash tree does not match)")]
    Integrity {
        /// 4096-byte block of the partition.
        block: u64,
        /// 0 for the data, higher for the tree.
        level: usize,
    },
    /// A key is not usable.
    #[error("key: {0}")]
    Key(String),
    /// A program that is needed is not there.
    #[error("{program} cannot be started: {source} (package {package})")]
    Missing {
        /// Its name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// A program that is needed failed.
    #[error("{program}: {reason}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it said.
        reason: String,
    },
    /// A cipher or a random generator failed.
    #[error("cryptography: {0}")]
    Crypto(String),
}

impl From<openssl::error::ErrorStack> for SifError {
    fn from(error: openssl::error::ErrorStack) -> Self {
        Self::Crypto(error.to_string())
    }
}
