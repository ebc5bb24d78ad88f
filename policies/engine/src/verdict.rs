//! The verdict document: what the verifier decided, and every check on the way there.
//!
//! It is stored, sent to the host, put into bundles and printed; text and JSON come from these structs.

use std::collections::BTreeMap;

pub use countersign_wire::obligations::{Obligations, OnViolation, RuntimeFlag};
use serde::{Deserialize, Serialize};

/// One decision, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Document version, 1.
    pub version: u16,
    /// Verdict id, 32 hex digits.
    pub id: String,
    /// Host id, 64 hex digits.
    pub host: String,
    /// `attest` or `release`.
    pub purpose: String,
    /// When it was decided, milliseconds since 1970 by the database's clock.
    pub time_ms: i64,
    /// Whether everything agreed. Only `true` grants.
    pub allow: bool,
    /// True for a software TPM or a development CA: such a host is only as trustworthy as the machine that runs it.
    pub simulated: bool,
    /// Whether policy is enforced or only recorded.
    pub mode: Mode,
    /// Every check of the appraisal, in the order in which they are made.
    pub checks: Vec<Check>,
    /// Why not; empty exactly when `allow`.
    pub reasons: Vec<Reason>,
    /// What policy asks of the host when it allows.
    pub obligations: Obligations,
    /// Workload id, for a release.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub workload: Option<String>,
    /// Run id, for a release.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run: Option<String>,
    /// What was used to decide.
    pub basis: Basis,
}

/// Policies, data and engine of a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Basis {
    /// Engine and version, for example `regorus 0.14.1`.
    pub engine: String,
    /// SHA-256 (hex) of the host policy's bundle.
    pub host_policy: String,
    /// SHA-256 (hex) of the workload policy's bundle, for a release.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub workload_policy: Option<String>,
    /// Revision of the reference values.
    pub reference_revision: u64,
    /// SHA-256 (hex) of the reference values' JSON.
    pub reference_digest: String,
    /// SHA-256 (hex) of the evidence as received (uncompressed).
    pub evidence: String,
}

/// Whether a denial has consequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It has.
    Enforce,
    /// It is recorded only.
    AuditOnly,
}

/// One check of the appraisal. (Unknown fields are not refused: serde cannot together with `flatten`.)
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Stable id, for example `quote-signature`.
    pub id: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Outcome {
    /// It holds.
    Pass,
    /// It does not hold.
    Fail {
        /// What was found.
        got: String,
        /// What was expected.
        want: String,
        /// The event or field behind it, for example `event 23 (PCR 4, EV_EFI_BOOT_SERVICES_APPLICATION)`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        subject: Option<String>,
        /// What to do about it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        hint: Option<String>,
    },
    /// It was not reached or there was nothing to check.
    NotAppraised {
        /// Why.
        why: String,
    },
}

/// Who said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The appraisal: the evidence is not authentic.
    Appraisal,
    /// The operator's host policy.
    HostPolicy,
    /// The workload's own policy.
    WorkloadPolicy,
    /// A rule of the verifier (host state, simulated host, rate).
    Verifier,
}

/// One reason against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Who says so.
    pub source: Source,
    /// Stable id: a check's id, or the policy's reason id.
    pub id: String,
    /// One sentence.
    pub message: String,
    /// The event, file or field behind it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub subject: Option<String>,
    /// What was found.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub got: Option<String>,
    /// What was expected.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub want: Option<String>,
    /// What to do, as a command where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
}

/// What one policy said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Literal `allow == true`.
    pub allow: bool,
    /// The policy's reasons, sorted by id.
    pub reasons: Vec<Reason>,
    /// Its obligations.
    pub obligations: Obligations,
}

/// Digests by bank name, as used in inputs.
pub type Digests = BTreeMap<String, String>;
