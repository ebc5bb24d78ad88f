//! Exit codes: ours are 200 to 219, one per failing stage; all others are the workload's own.

use countersign_attest::HostError;
use countersign_sif::SifError;
use countersign_wire::explanation::Explanation;

/// The table in `--help`.
pub const TABLE: &str = "\
Exit codes (all others are the workload's own; a signal that ends a run gives 128 + its number):
  200 usage               201 configuration       202 image unreadable    203 image's signature
  204 image's bindings    205 not enrolled        206 TPM                 207 verifier unreachable
  208 verifier refused    209 denied              210 not unsealed        211 program missing/old
  212 namespaces or FUSE  213 start failed        214 image was changed   215 escrow key
  216 protect or grant    217 ended by monitor    218 decryptor died      219 other";

/// A stage that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Command line.
    Usage,
    /// Configuration file or state folder.
    Configuration,
    /// The image is no SIF of ours.
    Image,
    /// Its signature is missing, foreign or void.
    Signature,
    /// Its objects do not belong together.
    Binding,
    /// The host was not enrolled.
    NotEnrolled,
    /// The TPM failed.
    Tpm,
    /// The verifier did not answer.
    Unreachable,
    /// The verifier refused the request.
    Refused,
    /// The verdict is no.
    Denied,
    /// The TPM did not unseal the key.
    Unseal,
    /// A program that is needed is missing or too old.
    Missing,
    /// Namespaces or FUSE are not to be had.
    Namespaces,
    /// The workload could not be started.
    Start,
    /// A block of the image was changed.
    Integrity,
    /// The escrow key does not open the image.
    Escrow,
    /// The image could not be protected, or its key not be granted to this host.
    Protect,
    /// The run was ended for what its monitor found.
    Violation,
    /// The decryptor ended early.
    Decryptor,
    /// Anything else.
    Other,
}

impl Stage {
    /// All of them, in the order of their codes from 200 on.
    pub const ALL: [Self; 20] = [
        Self::Usage,
        Self::Configuration,
        Self::Image,
        Self::Signature,
        Self::Binding,
        Self::NotEnrolled,
        Self::Tpm,
        Self::Unreachable,
        Self::Refused,
        Self::Denied,
        Self::Unseal,
        Self::Missing,
        Self::Namespaces,
        Self::Start,
        Self::Integrity,
        Self::Escrow,
        Self::Protect,
        Self::Violation,
        Self::Decryptor,
        Self::Other,
    ];

    /// Its exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        let position = Self::ALL.iter().position(|stage| *stage == self).unwrap_or(19);
        u8::try_from(position.saturating_add(200)).unwrap_or(219)
    }
}

/// Why a command failed: stage, one line, more lines, and what to do. Crosses from the decryptor to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// The stage.
    pub stage: Stage,
    /// One line.
    pub error: String,
    /// A denial's reasons, in words; empty where there is an explanation.
    pub words: String,
    /// What to do.
    pub hint: String,
    /// A denial's explanation by the verifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Box<Explanation>>,
}

impl Failure {
    /// A failure without further words.
    #[must_use]
    pub fn new(stage: Stage, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { stage, error: error.into(), words: String::new(), hint: hint.into(), explanation: None }
    }

    /// What is printed below the error: the explanation, or the words.
    #[must_use]
    pub fn details(&self) -> String {
        match &self.explanation {
            Some(explanation) => format!("{}\n", explanation.words()),
            None => self.words.clone(),
        }
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        let stage = match &error {
            HostError::Config { .. }
            | HostError::State { .. }
            | HostError::Corrupt(_)
            | HostError::RunLogFull(_)
            | HostError::Log { .. } => Stage::Configuration,
            HostError::NotEnrolled | HostError::Token(_) | HostError::NoCertificate => Stage::NotEnrolled,
            HostError::Tpm(_) | HostError::Moving(_) => Stage::Tpm,
            HostError::Unseal(_) => Stage::Unseal,
            HostError::Unreachable { .. } => Stage::Unreachable,
            HostError::Trust { .. } | HostError::Refused { .. } | HostError::Answer(_) => Stage::Refused,
            HostError::Denied(_) => Stage::Denied,
            HostError::Interrupted(_) => Stage::Other,
        };
        let (error_words, hint) = (error.to_string(), error.hint());
        let denial = if let HostError::Denied(denial) = error { Some(denial) } else { None };
        // The words of an explanation are made where they are printed.
        let words = denial.as_ref().filter(|denial| denial.explanation.is_none()).map(|denial| denial.words());
        let words = words.unwrap_or_default();
        let explanation = denial.and_then(|denial| denial.explanation);
        Self { stage, error: error_words, words, hint, explanation }
    }
}

impl From<SifError> for Failure {
    fn from(error: SifError) -> Self {
        let (stage, hint) = match &error {
            SifError::Io(_) | SifError::Malformed(_) | SifError::Structure(_) => {
                (Stage::Image, "it is no image of `supervisor protect`, or was damaged: copy it again from its owner")
            }
            SifError::Signature(_) => {
                (Stage::Signature, "give the owner's public key with --signer; a changed image must be copied again")
            }
            SifError::Binding(_) => {
                (Stage::Binding, "the image's policy or numbers were exchanged: copy it again from its owner")
            }
            SifError::Integrity { .. } => {
                (Stage::Integrity, "copy the image again from its owner; supervisor inspect --full checks all of it")
            }
            SifError::Key(_) => (Stage::Escrow, "check the key file"),
            SifError::Program { .. } => {
                (Stage::Protect, "check that the input can be read, and the free space in the output's folder")
            }
            SifError::Missing { .. } => {
                (Stage::Missing, "apt-get install cryptsetup-bin squashfs-tools squashfuse fuse3 bubblewrap")
            }
            SifError::Crypto(_) => (Stage::Other, ""),
        };
        Self::new(stage, error.to_string(), hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_code_a_stage() {
        let codes: Vec<u8> = Stage::ALL.iter().map(|stage| stage.code()).collect();
        assert_eq!(codes, (200..=219).collect::<Vec<u8>>());
        let codes = [Stage::Denied, Stage::Integrity, Stage::Violation, Stage::Other].map(Stage::code);
        assert_eq!(codes, [209, 214, 217, 219]);
    }
}
