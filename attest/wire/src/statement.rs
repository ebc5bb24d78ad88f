//! All that the host says beside the quote; the quote signs it through `qualifyingData` (DESIGN.md section 5).

use minicbor::{Decode, Encode};
use sha2::{Digest as _, Sha256};

use crate::cbor::message;
use crate::id::{Nonce, RunId, WorkloadId};
use crate::limits;
use crate::receipt::Receipt;

/// What a challenge, and the evidence that answers it, is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum Purpose {
    /// A verdict about the host.
    #[n(0)]
    Attest,
    /// A verdict about the host and a workload, and the key if it is good.
    #[n(1)]
    Release,
}

/// A label that the host gives itself. Never an identity, never appraised as a fact.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Label {
    /// Name, for example `hostname`.
    #[n(0)]
    pub name: String,
    /// Value.
    #[n(1)]
    pub value: String,
}

/// What a statement of purpose `release` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ReleaseRequest {
    /// The workload whose key is wanted.
    #[n(0)]
    pub workload: WorkloadId,
    /// The start that it is for.
    #[n(1)]
    pub run: RunId,
    /// TPM Name of the loaded sealed object (2 bytes algorithm + digest).
    #[cbor(n(2), with = "minicbor::bytes")]
    pub object_name: Vec<u8>,
    /// nonceTPM of the waiting policy session, 32 bytes.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub nonce_tpm: Vec<u8>,
}

/// The statement: hashed as received into the quote's `extraData`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Statement {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// Must equal the challenge's.
    #[n(1)]
    pub purpose: Purpose,
    /// Facts and program versions, as the host tells them.
    #[n(2)]
    pub labels: Vec<Label>,
    /// The newest receipt that the host has extended into its run PCR, in this or an earlier boot.
    #[n(3)]
    pub receipt: Option<Receipt>,
    /// SubjectPublicKeyInfo (DER) of the TLS key to be certified.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub tls_key: Option<Vec<u8>>,
    /// Present exactly when the purpose is `release`.
    #[n(5)]
    pub release: Option<ReleaseRequest>,
    /// The log checkpoint this host had seen before (none until the log exists).
    #[cbor(n(6), with = "minicbor::bytes")]
    pub old_checkpoint: Option<Vec<u8>>,
    /// The log checkpoint that the challenge carried (none until the log exists).
    #[cbor(n(7), with = "minicbor::bytes")]
    pub new_checkpoint: Option<Vec<u8>>,
}
message!(Statement, "statement", limits::MESSAGE);

/// SHA-256("countersign/quote/v1" || nonce || SHA-256(statement)): the quote's `extraData`.
#[must_use]
pub fn qualifying_data(nonce: &Nonce, statement: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"countersign/quote/v1");
    hash.update(nonce.0);
    hash.update(Sha256::digest(statement));
    hash.finalize().into()
}
