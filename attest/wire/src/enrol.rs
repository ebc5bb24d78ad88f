//! Enrolment: prove that an AK lives in the TPM of a certified EK (DESIGN.md section 4).

use minicbor::{Decode, Encode};
use sha2::{Digest as _, Sha256};

use crate::cbor::message;
use crate::id::{EnrolmentId, HostId};
use crate::limits;

/// Where an EK certificate or chain was found.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct EkCertificate {
    /// NV index of the certificate.
    #[n(0)]
    pub nv_index: u32,
    /// DER, cut to its length.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub der: Vec<u8>,
}

/// What an owner needs for an offline grant, learned from the host (`attest show`).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct HostCard {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// Host id.
    #[n(1)]
    pub host: HostId,
    /// TPMT_PUBLIC of the EK, as the host says it; the verifier rebuilds it from the certificate.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub ek_public: Vec<u8>,
    /// EK certificates.
    #[n(3)]
    pub ek_certificates: Vec<EkCertificate>,
    /// Intermediate certificates from NV (DER).
    #[cbor(n(4))]
    pub chain: Vec<minicbor::bytes::ByteVec>,
    /// TPMT_PUBLIC of the AK.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub ak_public: Vec<u8>,
    /// PCR that the run log is extended into.
    #[n(6)]
    pub run_pcr: u8,
}
message!(HostCard, "host card", limits::MESSAGE);

/// Body of `POST /v1/enrol`.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct EnrolRequest {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// The join token's id and secret; none when a host that is already known comes back, or waits for an
    /// operator to admit it.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub token: Option<Vec<u8>>,
    /// EK, certificates and AK.
    #[n(2)]
    pub card: HostCard,
    /// SubjectPublicKeyInfo (DER) of the TLS key to be certified.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub tls_key: Vec<u8>,
    /// A label for people, for example the host name. Never an identity.
    #[n(4)]
    pub name: String,
}

impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the token's secret.
        f.debug_struct("EnrolRequest").field("card", &self.card).field("name", &self.name).finish_non_exhaustive()
    }
}
message!(EnrolRequest, "enrolment request", 4 * limits::MESSAGE);

/// Answer to an [`EnrolRequest`]: a credential that only this EK and AK together can open.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct EnrolChallenge {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// Names this enrolment in the second message.
    #[n(1)]
    pub id: EnrolmentId,
    /// TPM2B_ID_OBJECT contents.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub credential: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET contents.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub secret: Vec<u8>,
    /// The same for each further EK that was shown and is accepted, by ascending NV index: opened by all of them and one AK, they are one
    /// TPM's and one identity. None when there are none.
    #[n(4)]
    pub others: Option<Vec<OtherEk>>,
}

/// A credential for a further EK of the TPM.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct OtherEk {
    /// NV index of its certificate.
    #[n(0)]
    pub nv_index: u32,
    /// TPMT_PUBLIC, rebuilt from the certificate.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub ek_public: Vec<u8>,
    /// TPM2B_ID_OBJECT contents.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub credential: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET contents.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub secret: Vec<u8>,
}
message!(EnrolChallenge, "enrolment challenge", limits::MESSAGE);

/// Body of `POST /v1/enrol/proof`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct EnrolProof {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// From the challenge.
    #[n(1)]
    pub id: EnrolmentId,
    /// HMAC-SHA256(activated secrets one behind the other, SHA-256(transcript)).
    #[cbor(n(2), with = "minicbor::bytes")]
    pub proof: Vec<u8>,
}
message!(EnrolProof, "enrolment proof", limits::MESSAGE);

/// The state of a host at the verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum HostState {
    /// Proved its TPM; nobody has admitted it yet.
    #[n(0)]
    Pending,
    /// Admitted.
    #[n(1)]
    Active,
    /// Contradicted itself, or an operator stopped it; may attest, gets nothing.
    #[n(2)]
    Suspended,
    /// Never again.
    #[n(3)]
    Revoked,
}

/// Answer to an [`EnrolProof`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Enrolled {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// Who the verifier takes this host for.
    #[n(1)]
    pub host: HostId,
    /// Its state now.
    #[n(2)]
    pub state: HostState,
    /// The 24-hour TLS certificate (DER), for an active host.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub certificate: Option<Vec<u8>>,
}
message!(Enrolled, "enrolment answer", limits::MESSAGE);

/// SHA-256 over the length-prefixed parts that both sides saw: what the enrolment proof authenticates. The EKs are those whose credentials are
/// opened, the host's own first.
#[must_use]
pub fn transcript(eks: &[&[u8]], ak_public: &[u8], tls_key: &[u8], token_id: &[u8], trust: &[u8; 32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"countersign/enrol/v1");
    for part in eks.iter().copied().chain([ak_public, tls_key, token_id, trust.as_slice()]) {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
