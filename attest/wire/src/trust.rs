//! What a host pins before it sends anything: the verifier's trust bundle, named by the join token.

use countersign_tpm::ek::CertifiedKey;
use countersign_tpm::ekcert::certified_key;
use countersign_tpm::public::Curve;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use sha2::{Digest as _, Sha256};

use crate::cbor::{self, BadCbor, message};
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

/// Most bundles in an answer to `GET /v1/trust/since/DIGEST`.
pub const TRANSITIONS: usize = 1000;

/// Answer to `GET /v1/trust/since/DIGEST`: the bundle with that digest, and all that replaced it, in order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct TrustChain {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// Encoded [`TrustBundle`]s.
    #[n(1)]
    pub bundles: Vec<ByteVec>,
}
message!(TrustChain, "trust chain", TRANSITIONS * limits::MESSAGE);

impl TrustChain {
    /// The newest bundle, when the chain begins with the pinned one and each bundle follows the one before it. A chain that goes back, or was
    /// made by anybody but the CA, leads nowhere.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn newest(&self, pinned: &[u8; 32]) -> Result<&[u8], BadTransition> {
        let [first, others @ ..] = self.bundles.as_slice() else { return Err(BadTransition::Other) };
        if TrustBundle::digest(first) != *pinned || others.len() > TRANSITIONS {
            return Err(BadTransition::Other);
        }
        let mut newest = first;
        for next in others {
            cbor::decode::<TrustBundle>(next)?.follows(newest)?;
            newest = next;
        }
        Ok(newest)
    }
}

/// Why a bundle does not replace another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTransition {
    /// No bundle.
    #[error(transparent)]
    Cbor(#[from] BadCbor),
    /// The chain begins elsewhere, or a bundle names another predecessor.
    #[error("it does not follow the pinned trust bundle")]
    Other,
    /// Not by the predecessor's CA key.
    #[error("it is not signed by the pinned CA's key")]
    Signature,
}

impl TrustBundle {
    /// What the CA key of the predecessor signs (ECDSA P-256, SHA-256): a label, then the bundle without its signature.
    #[must_use]
    pub fn signed_message(&self) -> Vec<u8> {
        let unsigned = Self { signature: None, ..self.clone() };
        [b"countersign/trust/v1".as_slice(), &cbor::encode(&unsigned)].concat()
    }

    /// Checks that this bundle replaces the one with this encoding: it names it, and that one's CA key signed it.
    ///
    /// # Errors
    /// [`BadTransition`].
    pub fn follows(&self, predecessor: &[u8]) -> Result<(), BadTransition> {
        if self.predecessor != Some(Self::digest(predecessor)) {
            return Err(BadTransition::Other);
        }
        let before: Self = cbor::decode(predecessor)?;
        let Ok(CertifiedKey::Ecc { curve: Curve::P256, x, y }) = certified_key(&before.ca) else {
            return Err(BadTransition::Signature);
        };
        let point = [&[4], x.as_slice(), &y].concat();
        let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_ASN1, point);
        let signature = self.signature.as_deref().unwrap_or_default();
        key.verify(&self.signed_message(), signature).map_err(|_| BadTransition::Signature)
    }

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
