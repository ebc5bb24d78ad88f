//! The steps of an operation, for tests that end it between two of them.

use crate::error::HostError;

/// A step that an operation has just completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The machine-wide lock is held.
    Locked,
    /// The challenge is there.
    Challenged,
    /// The sealed object is loaded and its session waits (release only).
    Waiting,
    /// The quote and everything beside it are ready.
    Quoted,
    /// The verifier's answer is there.
    Answered,
    /// The key is unsealed (release only).
    Unsealed,
    /// The receipt is in the run log, on disk.
    Logged,
    /// The receipt is in the run PCR.
    Extended,
    /// The receipt is noted as the newest.
    Noted,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 9] = [
        Self::Locked,
        Self::Challenged,
        Self::Waiting,
        Self::Quoted,
        Self::Answered,
        Self::Unsealed,
        Self::Logged,
        Self::Extended,
        Self::Noted,
    ];
}

/// Called after each step; an error ends the operation there, as a kill would.
pub type Observer = Box<dyn FnMut(Step) -> Result<(), HostError> + Send>;
