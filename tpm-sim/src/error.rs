//! What can go wrong with a simulated TPM.

use std::path::PathBuf;

use countersign_tpm::codec::Malformed;
use countersign_tpm::rc::ResponseCode;

/// Why a simulated TPM did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program of swtpm is not on this machine.
    #[error("{0} is not installed")]
    MissingTool(&'static str),
    /// A name that swtpm's certificate tools cannot take.
    #[error(
        "name {0:?}: only letters, digits, dot, dash and underscore are allowed, 1 to 64 of them, the first a letter or digit"
    )]
    Name(String),
    /// A path that swtpm's command line cannot take.
    #[error("path {path}: {why}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file could not be read or written.
    #[error("{what} {path}: {source}")]
    File {
        /// What was done to it.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The folder holds no simulated TPM.
    #[error("{0} holds no simulated TPM")]
    NotASim(PathBuf),
    /// The folder holds one already.
    #[error("{0} already holds a simulated TPM")]
    Exists(PathBuf),
    /// The folder's record is not one of ours.
    #[error("{path}: {why}")]
    Record {
        /// `sim.json`.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No PCR bank was chosen.
    #[error("a TPM needs at least one PCR bank")]
    NoBanks,
    /// swtpm_setup failed.
    #[error("swtpm_setup failed ({status}): {log}")]
    Manufacture {
        /// Its exit status.
        status: String,
        /// The end of its output.
        log: String,
    },
    /// swtpm ended or did not answer after its start.
    #[error("swtpm did not start: {0}")]
    Start(String),
    /// The TPM does not run.
    #[error("the TPM is not running")]
    NotRunning,
    /// The TPM runs already.
    #[error("the TPM is already running")]
    Running,
    /// Another program holds swtpm's only data connection.
    #[error("the TPM did not answer within {0} s: another program holds its only connection")]
    Busy(u64),
    /// The connection to swtpm failed.
    #[error("connection to the TPM, {what}: {source}")]
    Connection {
        /// What was done.
        what: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
    /// swtpm's control channel refused.
    #[error("swtpm refused the control command {command}: code {code:#x}")]
    Control {
        /// The command.
        command: &'static str,
        /// TPM_RESULT.
        code: u32,
    },
    /// The TPM refused.
    #[error("{command}: {code}")]
    Tpm {
        /// The TPM command.
        command: &'static str,
        /// Its response code.
        code: ResponseCode,
    },
    /// The TPM's answer has another form than the specification's.
    #[error("answer to {command}: {source}")]
    Answer {
        /// The TPM command.
        command: &'static str,
        /// What is wrong with it.
        source: Malformed,
    },
    /// A recorded log cannot be read.
    #[error("{log}: {why}")]
    Log {
        /// Which log.
        log: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A start-up locality that cannot be replayed.
    #[error("the boot started at locality {0}: only 0 and 3 can be replayed")]
    Locality(u8),
}

impl Error {
    /// For `map_err` after a file operation.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    /// What the user can do about it, if there is something.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::MissingTool(_) => Some("install it: sudo apt install swtpm swtpm-tools"),
            Self::Busy(_) => Some("end the other program, or cut the power: tpm-sim kill NAME"),
            Self::Running => Some("stop it first: tpm-sim stop NAME"),
            Self::NotRunning => Some("start it first: tpm-sim start NAME"),
            Self::NotASim(_) => Some("see which there are: tpm-sim list"),
            Self::Exists(_) => Some("take another name, or remove it first: tpm-sim destroy NAME"),
            Self::Path { .. } => Some("choose another folder with --state-dir"),
            Self::Name(_)
            | Self::File { .. }
            | Self::Record { .. }
            | Self::NoBanks
            | Self::Manufacture { .. }
            | Self::Start(_)
            | Self::Connection { .. }
            | Self::Control { .. }
            | Self::Tpm { .. }
            | Self::Answer { .. }
            | Self::Log { .. }
            | Self::Locality(_) => None,
        }
    }
}
