//! A decision with all that it was made from, for others to check again (DESIGN.md section 11).

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use sha2::{Digest as _, Sha256};

use crate::cbor::message;
use crate::limits;

/// How the host's EK was certified when it was enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct EnrolmentRecord {
    /// The accepted EK certificate (DER); empty for an EK on the allow-list.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub ek_certificate: Vec<u8>,
    /// Intermediate certificates.
    #[n(1)]
    pub chain: Vec<ByteVec>,
    /// The curated root that it led to (DER).
    #[cbor(n(2), with = "minicbor::bytes")]
    pub root: Vec<u8>,
    /// When, seconds since 1970.
    #[n(3)]
    pub time: u64,
    /// TPMT_PUBLIC of the EK, rebuilt.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub ek_public: Vec<u8>,
}

/// Everything that a verdict was computed from, and the verdict.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Record {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// The appraisal's inputs beside the evidence (CBOR of the verifier's `Context`).
    #[cbor(n(1), with = "minicbor::bytes")]
    pub context: Vec<u8>,
    /// The evidence as received, uncompressed.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub evidence: Vec<u8>,
    /// The verdict document (JSON).
    #[cbor(n(3), with = "minicbor::bytes")]
    pub verdict: Vec<u8>,
    /// How the host was enrolled.
    #[n(4)]
    pub enrolment: EnrolmentRecord,
}
message!(Record, "record", limits::RECORD);

/// A record that its verifier vouches for: one file for an auditor.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Bundle {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// The verifier's trust bundle. An auditor compares its digest with one that he got elsewhere.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub trust: Vec<u8>,
    /// The [`Record`].
    #[cbor(n(2), with = "minicbor::bytes")]
    pub record: Vec<u8>,
    /// ECDSA P-256 (ASN.1 DER) by the trust bundle's log key over [`signed_message`].
    #[cbor(n(3), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
    /// The IMA reference sets that the record's context names by digest; none when it names none.
    #[n(4)]
    pub sets: Option<Vec<ByteVec>>,
}
message!(Bundle, "bundle", limits::RECORD + 2 * limits::MESSAGE + limits::REFERENCE_SETS);

/// What the log key signs: "countersign/record/v1" || SHA-256(record).
#[must_use]
pub fn signed_message(record: &[u8]) -> Vec<u8> {
    [b"countersign/record/v1".as_slice(), &Sha256::digest(record)].concat()
}
