//! What can go wrong at the verifier, and how it is told to the other side.

use countersign_wire::problem::Problem;

/// Why a request or a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side's request is not acceptable.
    #[error("{}", .0.title)]
    Request(Problem),
    /// Too many requests; seconds to wait.
    #[error("too many requests")]
    Busy(u32),
    /// The state folder or one of its files.
    #[error("{path}: {reason}")]
    State {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The database.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// A stored value cannot be read back.
    #[error("database: {0}")]
    Corrupt(String),
    /// Something of ours that does not fail.
    #[error("internal: {0}")]
    Internal(String),
}

impl Error {
    /// A refused request: stable id, one sentence, and what to do.
    #[must_use]
    pub fn request(id: &str, title: impl Into<String>, hint: Option<&str>) -> Self {
        Self::Request(Problem { id: id.to_owned(), title: title.into(), detail: None, hint: hint.map(str::to_owned) })
    }

    /// HTTP status and body. Database and internal errors say no more than that they happened.
    #[must_use]
    pub fn problem(&self) -> (u16, Problem) {
        let generic = |id: &str, title: &str| Problem { id: id.into(), title: title.into(), detail: None, hint: None };
        match self {
            Self::Request(problem) => (
                match problem.id.as_str() {
                    "unauthorized" => 401,
                    "host-unknown" | "workload-unknown" | "workload-withdrawn" | "not-found" => 404,
                    "challenge-closed" | "conflict" => 409,
                    "timeout" => 408,
                    "too-large" => 413,
                    _ => 400,
                },
                problem.clone(),
            ),
            Self::Busy(seconds) => (429, generic("busy", &format!("too many requests; wait {seconds} s"))),
            Self::State { .. } | Self::Database(_) | Self::Corrupt(_) | Self::Internal(_) => {
                (500, generic("internal", "the verifier failed; its log says why"))
            }
        }
    }

    /// Exit code of the command line; the table stands in `--help`.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Request(_) | Self::Busy(_) => 20,
            Self::State { .. } => 4,
            Self::Database(_) | Self::Corrupt(_) => 5,
            Self::Internal(_) => 1,
        }
    }

    /// What to do.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Request(problem) => problem.hint.clone().unwrap_or_default(),
            Self::Busy(seconds) => format!("wait {seconds} s"),
            Self::State { .. } => "verifier init --state-dir DIR makes a state folder".into(),
            Self::Database(_) | Self::Corrupt(_) => {
                "check the disk and the folder's permissions; restore a backup".into()
            }
            Self::Internal(_) => String::new(),
        }
    }
}
