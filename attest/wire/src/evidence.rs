//! What the host sends: a quote, PCR values, logs and the statement.
//!
//! Nothing here is authenticated but `quote` (by `signature`), `pcrs` (through the quote's digest), `statement`
//! (through `extraData`) and, once they replay, the events' digests of the logs.

use minicbor::{Decode, Encode};

use crate::cbor::message;
use crate::id::{HostId, Nonce};
use crate::limits;

/// One PCR value.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct PcrValue {
    /// PCR index.
    #[n(0)]
    pub index: u8,
    /// Value, as long as the bank's digest.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub value: Vec<u8>,
}

/// The PCR values of one bank.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct BankValues {
    /// TPM_ALG_ID of the bank.
    #[n(0)]
    pub alg: u16,
    /// Values, ascending by index.
    #[n(1)]
    pub pcrs: Vec<PcrValue>,
}

/// A part of the kernel's binary IMA list.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ImaPart {
    /// Index of its first entry in the whole list.
    #[n(0)]
    pub from: u64,
    /// `binary_runtime_measurements`, from that entry on.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// Body of `POST /v1/attest` and `POST /v1/release` (zstd-compressed in transit, stored uncompressed).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Evidence {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// Who claims to send it.
    #[n(1)]
    pub host: HostId,
    /// The challenge that it answers.
    #[n(2)]
    pub nonce: Nonce,
    /// TPMS_ATTEST.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub quote: Vec<u8>,
    /// TPMT_SIGNATURE over `quote`.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
    /// The quoted PCR values.
    #[n(5)]
    pub pcrs: Vec<BankValues>,
    /// [`crate::statement::Statement`], as hashed into the quote.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub statement: Vec<u8>,
    /// `binary_bios_measurements`.
    #[cbor(n(7), with = "minicbor::bytes")]
    pub event_log: Option<Vec<u8>>,
    /// IMA list.
    #[n(8)]
    pub ima: Option<ImaPart>,
    /// systemd's `tpm2-measure.log`.
    #[cbor(n(9), with = "minicbor::bytes")]
    pub systemd_log: Option<Vec<u8>>,
    /// Our run log, or the part of it behind the entries that the challenge names.
    #[cbor(n(10), with = "minicbor::bytes")]
    pub run_log: Option<Vec<u8>>,
    /// Entries of the run log that come before `run_log`; none when it is the whole log.
    #[n(11)]
    pub run_from: Option<u64>,
}
message!(Evidence, "evidence", limits::EVIDENCE);
