//! Why a policy is not accepted.

/// A bundle or policy that is refused. Every case is the policy's fault unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Larger than a limit of [`crate::limits`].
    #[error("policy bundle: {what} is {got}, more than the limit of {limit}")]
    TooLarge {
        /// What was measured.
        what: &'static str,
        /// Its size, or as much of it as was read.
        got: u64,
        /// The limit.
        limit: u64,
    },
    /// Not a gzip stream of exactly one member.
    #[error("policy bundle: not gzip: {0}")]
    Gzip(String),
    /// Not a tar archive of the accepted form.
    #[error("policy bundle: tar entry at byte {offset}: {why}")]
    Tar {
        /// Offset of the entry's header in the unpacked archive.
        offset: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A file that has no place in a policy bundle, or that lacks.
    #[error("policy bundle: {path}: {why}")]
    File {
        /// Path inside the bundle or folder.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The folder could not be read (the caller's fault or the machine's).
    #[error("policy folder: {path}: {why}")]
    Folder {
        /// The path.
        path: String,
        /// The system's words.
        why: String,
    },
    /// The engine's parser or compiler refuses it.
    #[error("policy does not compile: {0}")]
    Compile(String),
    /// It compiles, but is not a policy of the role asked for.
    #[error("policy is no {role} policy: {why}")]
    Role {
        /// `host` or `workload`.
        role: &'static str,
        /// What is missing or too much.
        why: String,
    },
    /// A rule that leads back to itself.
    #[error("policy is recursive: {0}")]
    Recursive(String),
    /// A builtin that is not on the list of [`crate::limits::BUILTINS`].
    #[error("policy uses {builtin} ({place}): {why}")]
    Builtin {
        /// The builtin.
        builtin: String,
        /// File and line.
        place: String,
        /// Why it is refused.
        why: &'static str,
    },
    /// Calls are nested deeper than the limit.
    #[error("policy nests {got} rule calls, more than the limit of {limit}")]
    Depth {
        /// Longest chain of rule and function calls.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// The engine panicked (a bug of the engine, found by this policy).
    #[error("policy breaks the engine: {0}")]
    Engine(String),
}
