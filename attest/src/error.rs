//! What can go wrong on the host, and whose fault it is.

use std::path::PathBuf;

use countersign_wire::cbor::BadCbor;
use countersign_wire::problem::Problem;

use crate::exit::Exit;
use crate::host::Step;
use crate::tpm::TpmError;
use crate::unseal::UnsealError;

/// Why an answer of the verifier cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// It is not well-formed.
    #[error(transparent)]
    Malformed(#[from] BadCbor),
    /// It is well-formed, and not what was asked for.
    #[error("{0}")]
    Unexpected(String),
}

/// Why an operation on the host failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The configuration is not usable.
    #[error("{path}: {reason}")]
    Config {
        /// The file, or the option.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A file of the state folder cannot be read or written.
    #[error("{path}: {source}")]
    State {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The state folder does not hold what it should.
    #[error("state folder: {0}")]
    Corrupt(String),
    /// This host has not been enrolled.
    #[error("this host is not enrolled")]
    NotEnrolled,
    /// The join token is not one.
    #[error("join token: {0}")]
    Token(String),
    /// The TPM failed or refused.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The TPM refused to unseal.
    #[error("the TPM did not unseal the key: {0}")]
    Unseal(#[from] UnsealError),
    /// The TPM has no EK certificate.
    #[error("this TPM has no EK certificate that fits a known EK template")]
    NoCertificate,
    /// The verifier cannot be reached, or not in time.
    #[error("verifier at {url}: {reason}")]
    Unreachable {
        /// Its address.
        url: String,
        /// What failed.
        reason: String,
    },
    /// Whoever answers is not the verifier that this host pinned.
    #[error("verifier at {url}: its trust bundle has SHA-256 {got}, the join token names {want}")]
    Trust {
        /// Its address.
        url: String,
        /// Digest of what it sent.
        got: String,
        /// Digest that the token names.
        want: String,
    },
    /// The verifier refused the request.
    #[error("the verifier refused ({status}): {}", problem.title)]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it says.
        problem: Problem,
    },
    /// The verifier's answer cannot be used.
    #[error("the verifier's answer: {0}")]
    Answer(BadAnswer),
    /// The verifier's verdict is no.
    #[error("the verifier denied the {}", .0.purpose)]
    Denied(Box<crate::verdict::Denial>),
    /// A log could not be read whole.
    #[error("{path}: {reason}")]
    Log {
        /// The log.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// PCRs kept changing while they were quoted.
    #[error("PCRs changed during each of {0} quotes")]
    Moving(u32),
    /// The run log has no room for another entry of this kind: starts and findings end before attestations do, and these before ends of runs.
    #[error("the run log of this boot is full ({0} bytes)")]
    RunLogFull(usize),
    /// Whoever watches the operation ended it here.
    #[error("interrupted after {0:?}")]
    Interrupted(Step),
}

impl From<BadCbor> for HostError {
    fn from(malformed: BadCbor) -> Self {
        Self::Answer(BadAnswer::Malformed(malformed))
    }
}

impl HostError {
    /// An answer that is not what was asked for.
    pub(crate) fn unexpected(reason: impl Into<String>) -> Self {
        Self::Answer(BadAnswer::Unexpected(reason.into()))
    }

    /// The exit code for it.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Interrupted(_) => Exit::Other,
            Self::Config { .. } => Exit::Config,
            Self::State { .. } | Self::Corrupt(_) | Self::RunLogFull(_) => Exit::State,
            Self::NotEnrolled => Exit::NotEnrolled,
            Self::Token(_) => Exit::Token,
            Self::Tpm(TpmError::OtherTpm { .. }) => Exit::OtherTpm,
            Self::Tpm(_) | Self::Moving(_) => Exit::Tpm,
            Self::Unseal(_) => Exit::Unseal,
            Self::NoCertificate => Exit::NoCertificate,
            Self::Log { .. } => Exit::Log,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Trust { .. } => Exit::Trust,
            Self::Refused { .. } => Exit::Refused,
            Self::Answer(_) => Exit::Answer,
            Self::Denied(_) => Exit::Denied,
        }
    }

    /// What to do about it, as a command where there is one.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Config { .. } => "see the keys in `attest config`".into(),
            Self::State { source, .. } if source.kind() == std::io::ErrorKind::TimedOut => {
                "continue a program that is stopped (fg, or kill -CONT and its number), or end it; then run the command again".into()
            }
            Self::State { .. } => "use --state-dir with a folder that this user may write".into(),
            Self::Corrupt(_) => {
                "enrol again: attest enroll --token FILE (a token made with `verifier token new --host HOST`)".into()
            }
            Self::NotEnrolled => {
                "attest enroll --token FILE (the verifier's operator makes one with `verifier token new`)".into()
            }
            Self::Token(_) => "copy the token again, whole: it starts with csjoin1.".into(),
            Self::Tpm(TpmError::Transport { .. }) => {
                "check --tpm (device:/dev/tpmrm0 needs membership of the group tss; swtpm:unix=PATH a running swtpm)"
                    .into()
            }
            Self::Tpm(TpmError::OtherTpm { .. }) => {
                "use the state folder of this TPM (--state-dir), or a new one and enrol: attest enroll --token FILE"
                    .into()
            }
            Self::Tpm(_) => "run the command again; if it persists, reboot".into(),
            Self::Unseal(_) => "attest again: run the command again".into(),
            Self::NoCertificate => {
                "verifiers admit TPMs with an EK certificate of a trusted vendor only: check the TPM's firmware settings".into()
            }
            Self::Unreachable { .. } => "check the address in the token and that `verifier serve` runs there".into(),
            Self::Trust { .. } => {
                "ask the verifier's operator for a new token; if it names the same digest, somebody else answers".into()
            }
            Self::Refused { problem, .. } => problem.hint.clone().unwrap_or_else(|| "see the verifier's log".into()),
            Self::Answer(_) => "the verifier and this program are of different versions".into(),
            Self::Denied(denial) => denial.hint(),
            Self::Log { .. } => "check event_log, ima_log and systemd_log in the configuration".into(),
            Self::Moving(_) => "run the command again when the host is quieter".into(),
            Self::RunLogFull(_) => "reboot the host: a new boot begins a new run log".into(),
            Self::Interrupted(_) => String::new(),
        }
    }
}
