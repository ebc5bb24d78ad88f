//! What a host pins before it sends anything: the verifier's trust bundle, named by the join token.

use minicbor::{Decode, Encode};
use sha2::{Digest as _, Sha256};

use crate::cbor::message;
use crate::limits;

/// Answer to `GET /v1/trust` (content-addressed: the join token carries its SHA-256).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct TrustBundle {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// The CA certificate (DER) that signs the verifier's and the hosts' TLS certificates.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub ca: Vec<u8>,
    /// TPMT_PUBLIC of the approval key.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub approval_key: Vec<u8>,
    /// TPMT_PUBLIC of the verdict key.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub verdict_key: Vec<u8>,
    /// The key that signs evidence bundles (and, later, the log), SubjectPublicKeyInfo DER.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub log_key: Vec<u8>,
    /// SHA-256 of the bundle that this one replaces.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub predecessor: Option<[u8; 32]>,
    /// Signature of the CA key over the bundle without this field, for a bundle with a predecessor.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub signature: Option<Vec<u8>>,
}
message!(TrustBundle, "trust bundle", limits::MESSAGE);

impl TrustBundle {
    /// The digest by which tokens, auditors and transcripts name a bundle.
    #[must_use]
    pub fn digest(encoded: &[u8]) -> [u8; 32] {
        Sha256::digest(encoded).into()
    }
}

/// A join token, as an operator hands it to whoever installs a host: `csjoin1.` + base64url of this.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct JoinToken {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// `https://host:port` of the verifier.
    #[n(1)]
    pub url: String,
    /// SHA-256 of the trust bundle to pin.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub trust: [u8; 32],
    /// Public name of the token.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub id: [u8; 16],
    /// The secret; the verifier stores its hash only.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub secret: [u8; 32],
}
message!(JoinToken, "join token", 4096);

impl JoinToken {
    /// What the text form starts with.
    pub const PREFIX: &'static str = "csjoin1.";
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken").field("url", &self.url).field("id", &hex::encode(self.id)).finish_non_exhaustive()
    }
}
