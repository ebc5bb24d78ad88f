//! What the verifier answers to evidence.

use minicbor::{Decode, Encode};

use crate::cbor::message;
use crate::id::VerdictId;
use crate::limits;
use crate::receipt::Receipt;

/// Answer to `POST /v1/attest` and `POST /v1/release`, for accepted and for denied evidence alike (HTTP 200).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Answer {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// Names the stored verdict.
    #[n(1)]
    pub verdict_id: VerdictId,
    /// The verdict document (JSON, `countersign_policy::Verdict` in `docs/formats.md`).
    #[cbor(n(2), with = "minicbor::bytes")]
    pub verdict: Vec<u8>,
    /// Whether it allows. A convenience: the document says the same.
    #[n(3)]
    pub allow: bool,
    /// For an accepted attestation: to be logged and extended.
    #[n(4)]
    pub receipt: Option<Receipt>,
    /// For an accepted attestation that named a TLS key: its new certificate (DER).
    #[cbor(n(5), with = "minicbor::bytes")]
    pub certificate: Option<Vec<u8>>,
    /// For an accepted release.
    #[n(6)]
    pub release: Option<Release>,
    /// For denied evidence that the host's AK signed: why, as JSON of an [`Explanation`](crate::explanation::Explanation) of at most
    /// [`limits::EXPLANATION`] bytes. Absent where there is none; not recorded, decides nothing.
    #[cbor(n(7), with = "minicbor::bytes")]
    pub explanation: Option<Vec<u8>>,
}
message!(Answer, "answer", 16 * limits::MESSAGE);

/// The two signatures that the TPM wants before it unseals (DESIGN.md section 8).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Release {
    /// TPMT_PUBLIC of the approval key.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub approval_key: Vec<u8>,
    /// TPMT_PUBLIC of the verdict key.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub verdict_key: Vec<u8>,
    /// policyRef of both.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub policy_ref: [u8; 32],
    /// PCR selection of the approved policy, one bank.
    #[n(3)]
    pub selection: crate::challenge::Bank,
    /// pcrDigest of the approved PolicyPCR.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub pcr_digest: [u8; 32],
    /// resetCount that the approved PolicyCounterTimer wants.
    #[n(5)]
    pub reset_count: u32,
    /// restartCount that the approved PolicyCounterTimer wants.
    #[n(6)]
    pub restart_count: u32,
    /// Clock (ms) up to which the approved PolicyCounterTimer holds.
    #[n(7)]
    pub clock_limit: u64,
    /// TPMT_SIGNATURE by the approval key over SHA-256(approvedPolicy || policyRef).
    #[cbor(n(8), with = "minicbor::bytes")]
    pub approval: Vec<u8>,
    /// Seconds from StartAuthSession until the verdict expires, 1 to 300.
    #[n(9)]
    pub expiration: u32,
    /// TPMT_SIGNATURE by the verdict key over SHA-256(nonceTPM || expiration || cpHashA || policyRef).
    #[cbor(n(10), with = "minicbor::bytes")]
    pub verdict: Vec<u8>,
    /// Lease: seconds that the run may go on without a new verdict.
    #[n(11)]
    pub lease_s: u32,
}
