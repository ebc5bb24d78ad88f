//! The input document of both policies: facts that the appraisal authenticated, and nothing else.

use std::collections::BTreeMap;

use countersign_wire::facts::{Content, Facts};
use serde::{Deserialize, Serialize};

use crate::verdict::Digests;

/// The whole input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Document version, 1.
    pub version: u16,
    /// `attest`, `release`, or `run`: a released workload goes on, and is judged again with what its supervisor found.
    pub purpose: String,
    /// Time of the decision, milliseconds since 1970.
    pub time_ms: i64,
    /// The same as RFC 3339 text.
    pub time: String,
    /// Who is appraised.
    pub host: Host,
    /// The quote's own facts.
    pub quote: Quote,
    /// Quoted PCR values: bank name, then index as text, then hex.
    pub pcrs: BTreeMap<String, Digests>,
    /// Firmware's log; absent when the host sent none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub boot: Option<Boot>,
    /// The IMA list; absent when the host sent none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ima: Option<Ima>,
    /// The workload, for a release or a run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub workload: Option<Workload>,
    /// What was found while it runs, for a run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run: Option<Run>,
}

/// Enrolled facts of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Host id.
    pub id: String,
    /// Label. Not an identity.
    pub name: String,
    /// Software TPM or development CA.
    pub simulated: bool,
    /// Name (hex) of the AK.
    pub ak_name: String,
    /// Subject of the EK certificate's root, or `allow-list`.
    pub ek_root: String,
    /// TPM manufacturer, model and version from the EK certificate (TCG EK Credential Profile 3.1.2), where present.
    pub tpm: BTreeMap<String, String>,
}

/// Facts that the TPM signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quote {
    /// firmwareVersion, 16 hex digits.
    pub firmware_version: String,
    /// resetCount.
    pub reset_count: u32,
    /// restartCount.
    pub restart_count: u32,
    /// Clock, milliseconds under power.
    pub clock_ms: u64,
    /// TPMS_CLOCK_INFO.safe.
    pub safe: bool,
    /// TPM Resets since the last accepted attestation that nobody saw.
    pub skipped_resets: u32,
    /// True for the first accepted attestation of this baseline.
    pub first: bool,
}

/// Facts from the boot log, which replays to the quoted PCRs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// From an authenticated SecureBoot event of exactly one byte; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secure_boot: Option<bool>,
    /// ExitBootServices was reached.
    pub exit_boot_services: bool,
    /// What the events mean, each fact with its events and its strength: `input.boot.facts.secure_boot.value`. A fact that is only
    /// `named` rests on a name in the log, which no PCR vouches for.
    #[serde(default)]
    pub facts: Facts,
    /// Every event that extends a quoted PCR.
    pub events: Vec<Event>,
}

/// One event of the boot log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Index in the log, from 0.
    pub index: u32,
    /// PCR.
    pub pcr: u8,
    /// Type name (TCG PC Client PFP), or its number in hex. Not measured: the log only says so.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the quoted banks, hex.
    pub digests: Digests,
    /// True when the event's data hashes to its digest: then `text` is what was measured.
    pub authentic: bool,
    /// The data in words, where it is authentic and has a text form.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text: Option<String>,
}

/// Facts from the IMA list, over all its entries of this life of the PCRs: counts, and the first files of each kind, never the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ima {
    /// Entries that the quote covers, from the first one of this boot.
    pub entries: u64,
    /// Index of the first entry that came with this evidence; those before it were appraised earlier.
    pub from: u64,
    /// Violations: the kernel does not vouch for the file.
    pub violations: u64,
    /// The first 32 violations. What the list says about them is not authenticated.
    pub violating_files: Vec<ImaFile>,
    /// Whether entry 0 is the hash of the PCRs that the boot log leads to; absent when they were not quoted in its bank.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub boot_aggregate: Option<bool>,
    /// Later boot_aggregate entries: kernels that were started by kexec.
    pub kexecs: u64,
    /// At least one quoted bank holds hashes of its own, SHA-256 or longer. False when all of them are SHA-1 or SHA-1 with zeros behind it.
    pub strong: bool,
    /// The files against the reference sets; absent when there are no sets.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub appraisal: Option<ImaAppraisal>,
}

/// Entries against the reference sets. Violations and boot_aggregate are not among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImaAppraisal {
    /// Identity of the sets, hex.
    pub reference: String,
    /// Their names.
    pub sets: Vec<String>,
    /// The digest is in a set, for this path or for any.
    pub accepted: u64,
    /// The path is excluded.
    pub excluded: u64,
    /// An accepted key signed the file.
    pub signed: u64,
    /// Keys that were learned from the list.
    pub keys: u64,
    /// None of these.
    pub unknown: u64,
    /// The digest is on a deny-list.
    pub denied: u64,
    /// The first 32 unknown files.
    pub unknown_files: Vec<ImaFile>,
    /// The first 32 denied files.
    pub denied_files: Vec<ImaFile>,
}

/// One measured file that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImaFile {
    /// Index in the list.
    pub entry: u64,
    /// Path as the kernel logged it (lossy for other than UTF-8).
    pub path: String,
    /// `alg:hex`.
    pub digest: String,
    /// Why it is not accepted, in words.
    pub reason: String,
}

/// The workload of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Workload id.
    pub id: String,
    /// Payload root.
    pub payload_root: String,
    /// Policy digest.
    pub policy: String,
    /// Label given when it was registered.
    pub name: String,
}

/// A run that goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Findings of the run so far; more than are listed where the list is cut.
    pub total: u64,
    /// The findings, oldest first.
    pub findings: Vec<Finding>,
}

/// One thing that the supervisor found, from the run log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// What it is: an address, a file system, a capability.
    pub what: String,
    /// Where: a path, a process.
    #[serde(rename = "where")]
    pub place: String,
    /// Process id in the host's namespace, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<u32>,
    /// The process' executable, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub executable: Option<String>,
}

/// Kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// The verifier accepted the host no longer.
    AttestationDenied,
    /// A process has capabilities that it was not started with.
    CapabilityGained,
    /// A block of the image was not what its tree says.
    Integrity,
    /// The kernel loaded a module.
    KernelModuleLoaded,
    /// The lease ended without a new verdict.
    LeaseExpired,
    /// A process listens on a socket.
    ListeningSocket,
    /// The supervisor could not look at the run.
    MonitorBlind,
    /// A file system was mounted.
    NewMount,
    /// A process entered or made a namespace.
    NewNamespace,
    /// A process runs a file that is not in the image.
    ProcessNotInImage,
    /// A process is traced.
    Ptrace,
    /// The host, the workload or the run was revoked.
    Revoked,
    /// The clock went back, or far forward.
    TimeJump,
}

/// One accepted measurement: `data.countersign.reference.values[_]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceValue {
    /// Name of the set that it belongs to.
    pub name: String,
    /// Bank, for example `sha256`.
    pub bank: String,
    /// PCR.
    pub pcr: u8,
    /// Event type name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digest, hex.
    pub digest: String,
    /// What it is, in words: for explanations. Policies do not see it, so none can rest on a name. Absent in older sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
}

/// `data.countersign.reference`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Rises with every change.
    pub revision: u64,
    /// The accepted measurements, sorted.
    pub values: Vec<ReferenceValue>,
}
