//! Exit codes of `attest`: one per kind of failure, listed in `--help`.

/// How `attest` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; for `now`, the verdict allows.
    Done,
    /// Output could not be written.
    Other,
    /// The command line is wrong.
    Usage,
    /// The configuration is wrong.
    Config,
    /// The state folder cannot be used.
    State,
    /// The host is not enrolled.
    NotEnrolled,
    /// The join token is not one.
    Token,
    /// The state folder belongs to another TPM.
    OtherTpm,
    /// `inspect` does not know the file.
    Unknown,
    /// The TPM failed or refused.
    Tpm,
    /// The TPM refused to unseal.
    Unseal,
    /// No EK certificate.
    NoCertificate,
    /// A log could not be read.
    Log,
    /// Reference values could not be learned, or a set is not one.
    Learn,
    /// The verifier cannot be reached in time.
    Unreachable,
    /// Somebody else answers for the verifier.
    Trust,
    /// The verifier refused the request.
    Refused,
    /// The verifier's answer is malformed.
    Answer,
    /// The verdict is no.
    Denied,
}

impl Exit {
    /// All of them, by code.
    pub const ALL: [Self; 19] = [
        Self::Done,
        Self::Other,
        Self::Usage,
        Self::Config,
        Self::State,
        Self::NotEnrolled,
        Self::Token,
        Self::OtherTpm,
        Self::Unknown,
        Self::Tpm,
        Self::Unseal,
        Self::NoCertificate,
        Self::Log,
        Self::Learn,
        Self::Unreachable,
        Self::Trust,
        Self::Refused,
        Self::Answer,
        Self::Denied,
    ];

    /// The code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Other => 1,
            Self::Usage => 2,
            Self::Config => 3,
            Self::State => 4,
            Self::NotEnrolled => 5,
            Self::Token => 6,
            Self::OtherTpm => 7,
            Self::Unknown => 8,
            Self::Tpm => 10,
            Self::Unseal => 11,
            Self::NoCertificate => 12,
            Self::Log => 13,
            Self::Learn => 14,
            Self::Unreachable => 20,
            Self::Trust => 21,
            Self::Refused => 22,
            Self::Answer => 23,
            Self::Denied => 30,
        }
    }

    /// What it means.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Done => "done; for `now`: the verdict allows",
            Self::Other => "output could not be written",
            Self::Usage => "usage",
            Self::Config => "configuration",
            Self::State => "state folder",
            Self::NotEnrolled => "this host is not enrolled",
            Self::Token => "join token",
            Self::OtherTpm => "the state folder belongs to another TPM",
            Self::Unknown => "no artefact that `inspect` knows, or a damaged one",
            Self::Tpm => "the TPM failed or refused",
            Self::Unseal => "the TPM refused to unseal",
            Self::NoCertificate => "the TPM has no EK certificate of a known kind",
            Self::Log => "a log could not be read",
            Self::Learn => "reference values could not be learned, or a set is none or not signed",
            Self::Unreachable => "the verifier cannot be reached in time",
            Self::Trust => "another verifier answers than the one pinned",
            Self::Refused => "the verifier refused the request",
            Self::Answer => "the verifier's answer is malformed",
            Self::Denied => "the verdict is no",
        }
    }

    /// The table for `--help`.
    #[must_use]
    pub fn table() -> String {
        Self::ALL.iter().map(|exit| format!("\n  {:>3}  {}", exit.code(), exit.words())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_ascending_and_below_100() {
        for pair in Exit::ALL.windows(2) {
            assert!(pair[0].code() < pair[1].code());
        }
        assert!(Exit::ALL.iter().all(|exit| exit.code() < 100));
    }
}
