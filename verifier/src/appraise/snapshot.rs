//! What the appraisal is given beside the evidence: the host as enrolled, the challenge, policies and reference values.
//!
//! All of it is stored with the verdict and travels in the bundle, so that an auditor appraises the same inputs again.

use countersign_wire::challenge::Bank;
use countersign_wire::enrol::HostState;
use countersign_wire::id::{HostId, Nonce, PayloadRoot, PolicyDigest, VerdictId, WorkloadId};
use countersign_wire::receipt::Receipt;
use countersign_wire::statement::{Label, Purpose};
use minicbor::{Decode, Encode};

use super::ima::ImaContext;
use super::obligations::ReleasesOfBoot;
use super::remote::RemoteDecision;
use crate::ima::SavedBank;

/// A host as the verifier knew it when it issued the challenge.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct HostSnapshot {
    /// Host id.
    #[n(0)]
    pub host: HostId,
    /// Label for people.
    #[n(1)]
    pub name: String,
    /// Whether it may have anything.
    #[n(2)]
    pub state: HostState,
    /// Software TPM or development CA.
    #[n(3)]
    pub simulated: bool,
    /// Subject of the root that its EK certificate leads to, or `allow-list`.
    #[n(4)]
    pub ek_root: String,
    /// Manufacturer, model and version from the EK certificate.
    #[n(5)]
    pub tpm: Vec<Label>,
    /// TPMT_PUBLIC of the enrolled AK.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub ak_public: Vec<u8>,
    /// Name of the EK that parents it (2 bytes algorithm + digest).
    #[cbor(n(7), with = "minicbor::bytes")]
    pub ek_name: Vec<u8>,
    /// PCR that the run log is extended into.
    #[n(8)]
    pub run_pcr: u8,
    /// The last accepted attestation; none right after admission.
    #[n(9)]
    pub baseline: Option<Baseline>,
    /// Receipts of this baseline that can still tell something, ascending by number: those confirmed before the newest one are in the log that
    /// [`Baseline::run`] stands for.
    #[n(10)]
    pub receipts: Vec<StoredReceipt>,
    /// Epoch in which receipts that the database does not know were accepted once (`verifier-state-lost`).
    #[n(11)]
    pub lost_epoch: Option<u64>,
    /// Database version for the compare-and-swap; not appraised.
    #[n(12)]
    pub version: u64,
}

impl HostSnapshot {
    /// Whether a receipt's number is below that of the newest one known: not lost, then.
    pub(crate) fn is_past(&self, receipt: &Receipt) -> bool {
        self.receipts.iter().any(|stored| receipt.number < stored.receipt.number)
    }
}

/// What the last accepted attestation left.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Baseline {
    /// resetCount.
    #[n(0)]
    pub reset_count: u32,
    /// restartCount.
    #[n(1)]
    pub restart_count: u32,
    /// Clock, milliseconds.
    #[n(2)]
    pub clock_ms: u64,
    /// TPMS_CLOCK_INFO.safe.
    #[n(3)]
    pub safe: bool,
    /// Number of the life of the PCRs: rises whenever they were reset.
    #[n(4)]
    pub life: u64,
    /// How far the run log was read; none while it was empty.
    #[n(5)]
    pub run: Option<RunState>,
}

/// The run log as the last accepted quote proved it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct RunState {
    /// Entries.
    #[n(0)]
    pub entries: u64,
    /// SHA-256 of the last one's line, with its newline.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub last: [u8; 32],
    /// What the boot log left in the run PCR, in each quoted bank.
    #[n(2)]
    pub before: Vec<SavedBank>,
    /// What the log led to, in each quoted bank.
    #[n(3)]
    pub banks: Vec<SavedBank>,
}

/// Where a receipt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum ReceiptStatus {
    /// Sent to the host; whether it extended it is not known yet.
    #[n(0)]
    Issued,
    /// Seen in an accepted quote.
    #[n(1)]
    Confirmed,
    /// The next accepted quote lacked it: it must never appear.
    #[n(2)]
    Void,
}

/// A receipt in the database.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct StoredReceipt {
    /// The receipt.
    #[n(0)]
    pub receipt: Receipt,
    /// Where it stands.
    #[n(1)]
    pub status: ReceiptStatus,
    /// Life of the PCRs in which it was issued.
    #[n(2)]
    pub life: u64,
}

/// A challenge as issued.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ChallengeRecord {
    /// The nonce.
    #[n(0)]
    pub nonce: Nonce,
    /// To whom.
    #[n(1)]
    pub host: HostId,
    /// What for.
    #[n(2)]
    pub purpose: Purpose,
    /// PCR selection asked for.
    #[n(3)]
    pub selection: Vec<Bank>,
    /// First IMA entry asked for.
    #[n(4)]
    pub ima_from: u64,
    /// The workload, for a release.
    #[n(5)]
    pub workload: Option<WorkloadId>,
    /// When it was issued, milliseconds since 1970, database time.
    #[n(6)]
    pub issued_ms: i64,
    /// From when on it is refused.
    #[n(7)]
    pub expires_ms: i64,
}

/// A registered workload, as far as the appraisal needs it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct WorkloadRecord {
    /// Workload id.
    #[n(0)]
    pub id: WorkloadId,
    /// Payload root.
    #[n(1)]
    pub payload_root: PayloadRoot,
    /// SHA-256 of the policy bundle.
    #[n(2)]
    pub policy_digest: PolicyDigest,
    /// Label given at registration.
    #[n(3)]
    pub name: String,
    /// PCRs (SHA-256 bank) that every approval must cover.
    #[n(4)]
    pub least_selection: Vec<u8>,
}

/// All inputs of an appraisal but the evidence.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Context {
    /// Format version, 1.
    #[n(0)]
    pub version: u16,
    /// Id of the verdict to be made.
    #[n(1)]
    pub verdict_id: VerdictId,
    /// Database time of the decision, milliseconds since 1970.
    #[n(2)]
    pub now_ms: i64,
    /// The challenge.
    #[n(3)]
    pub challenge: ChallengeRecord,
    /// The host as stored with the challenge.
    #[n(4)]
    pub host: HostSnapshot,
    /// The workload, for a release of a registered one.
    #[n(5)]
    pub workload: Option<WorkloadRecord>,
    /// `data.countersign.reference` as JSON.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub reference: Vec<u8>,
    /// The host policy's bundle.
    #[cbor(n(7), with = "minicbor::bytes")]
    pub host_policy: Vec<u8>,
    /// The workload policy's bundle, for a release.
    #[cbor(n(8), with = "minicbor::bytes")]
    pub workload_policy: Option<Vec<u8>>,
    /// Whether simulated hosts may get a release (`dangerous_allow_simulated_hosts`).
    #[n(9)]
    pub allow_simulated: bool,
    /// The verifier's epoch; raised when a backup is restored.
    #[n(10)]
    pub epoch: u64,
    /// Receipts in the run log that the database does not know but whose MAC is the verifier's own: it lost state. The receipt key
    /// is needed to tell, so an auditor takes the verifier's word for it.
    #[n(11)]
    pub vouched: Vec<Receipt>,
    /// What the IMA list is appraised against, and from where on; none when there are neither sets nor an earlier list.
    #[n(12)]
    pub ima: Option<ImaContext>,
    /// For a release: how often the workload was released on this host, by boot. The verifier's own record, on its word.
    #[n(13)]
    pub released: Option<Vec<ReleasesOfBoot>>,
    /// Days that this verifier keeps evidence; none keeps it for ever.
    #[n(14)]
    pub evidence_days: Option<u32>,
    /// What an engine elsewhere said about the host policy; none where the embedded one decides alone.
    #[n(15)]
    pub remote: Option<RemoteDecision>,
    /// Why the host policy's bundle is too old to decide by; none when it is not.
    #[n(16)]
    pub stale: Option<String>,
}
