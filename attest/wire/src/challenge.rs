//! What the host asks before it quotes, and what the verifier answers.

use minicbor::{Decode, Encode};

use crate::cbor::message;
use crate::id::{HostId, Nonce, WorkloadId};
use crate::limits;
use crate::statement::Purpose;

/// Body of `POST /v1/challenge`. Unauthenticated: the AK's quote authenticates what follows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ChallengeRequest {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// Who asks.
    #[n(1)]
    pub host: HostId,
    /// What for.
    #[n(2)]
    pub purpose: Purpose,
    /// The workload, exactly when the purpose is `release`.
    #[n(3)]
    pub workload: Option<WorkloadId>,
}
message!(ChallengeRequest, "challenge request", limits::MESSAGE);

/// The PCRs of one bank that a quote must select.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Bank {
    /// TPM_ALG_ID of the bank.
    #[n(0)]
    pub alg: u16,
    /// PCR indices, ascending.
    #[n(1)]
    pub pcrs: Vec<u8>,
}

/// Answer to a [`ChallengeRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Challenge {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// 32 random bytes, one use.
    #[n(1)]
    pub nonce: Nonce,
    /// What for.
    #[n(2)]
    pub purpose: Purpose,
    /// Seconds from now after which the nonce is refused.
    #[n(3)]
    pub ttl_s: u32,
    /// The PCR selection wanted, one entry a bank.
    #[n(4)]
    pub selection: Vec<Bank>,
    /// Index of the first IMA entry wanted; those before it were appraised.
    #[n(5)]
    pub ima_from: u64,
    /// For a release: the sealed object wrapped to this host's EK.
    #[n(6)]
    pub import: Option<ImportBlob>,
    /// resetCount and restartCount of the attestation that saw the entries before `ima_from`. A host whose TPM says otherwise, or whose list is
    /// shorter, sends the whole list: it always may.
    #[n(7)]
    pub ima_boot: Option<(u32, u32)>,
    /// How far the last accepted attestation read the run log. A host whose TPM or log says otherwise sends the whole log: it always may.
    #[n(8)]
    pub run: Option<RunRead>,
}
message!(Challenge, "challenge", limits::MESSAGE);

/// How far a run log was read.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct RunRead {
    /// Entries read.
    #[n(0)]
    pub entries: u64,
    /// SHA-256 of the last one's line, with its newline.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub last: [u8; 32],
    /// resetCount of that attestation.
    #[n(2)]
    pub reset_count: u32,
    /// restartCount of that attestation.
    #[n(3)]
    pub restart_count: u32,
}

/// Input of TPM2_Import (TPM 2.0 Part 3, 13.3), outer wrap only.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ImportBlob {
    /// TPMT_PUBLIC of the sealed object.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub public: Vec<u8>,
    /// The outer-wrapped sensitive area (contents of TPM2B_PRIVATE).
    #[cbor(n(1), with = "minicbor::bytes")]
    pub duplicate: Vec<u8>,
    /// The encrypted seed (contents of TPM2B_ENCRYPTED_SECRET).
    #[cbor(n(2), with = "minicbor::bytes")]
    pub seed: Vec<u8>,
}
