//! DSSE envelopes (secure-systems-lab/dsse, protocol 1.0.2): the form that signed documents of this project have.
//!
//! What is signed is [`pae`] of type and payload. Keys are Ed25519, and ECDSA over P-256 with SHA-256 or P-384 with SHA-384 (signatures as ASN.1
//! DER); a key's id is the SHA-256 of its SubjectPublicKeyInfo, hex, and says nothing: only the signature counts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// An envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// Media type of the payload.
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// The payload, base64.
    pub payload: String,
    /// Signatures over [`pae`].
    pub signatures: Vec<EnvelopeSignature>,
}

/// One signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvelopeSignature {
    /// Which key claims to have signed. Not authenticated.
    pub keyid: String,
    /// The signature, base64.
    pub sig: String,
}

/// Why an envelope is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEnvelope {
    /// Not an envelope.
    #[error("no DSSE envelope: {0}")]
    Malformed(String),
    /// A payload of another type.
    #[error("the envelope holds {got:?}, not {want:?}")]
    Type {
        /// What it says.
        got: String,
        /// What was wanted.
        want: String,
    },
    /// A signature that no trusted key made, or none at all.
    #[error("no trusted key made the signature (it names {0:?})")]
    Untrusted(String),
    /// Not a public key.
    #[error("no Ed25519, P-256 or P-384 public key in PEM (BEGIN PUBLIC KEY)")]
    Key,
}

/// PAE of the DSSE specification: "DSSEv1" SP length(type) SP type SP length(payload) SP payload.
#[must_use]
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

impl Envelope {
    /// An envelope with one signature over [`pae`] of the same type and payload.
    #[must_use]
    pub fn new(payload_type: &str, payload: &[u8], keyid: String, signature: &[u8]) -> Self {
        Self {
            payload_type: payload_type.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![EnvelopeSignature { keyid, sig: STANDARD.encode(signature) }],
        }
    }

    /// Whether bytes look like an envelope.
    #[must_use]
    pub fn is(bytes: &[u8]) -> bool {
        serde_json::from_slice::<Self>(bytes).is_ok()
    }
}

/// A public key that is trusted to sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    kind: Kind,
    key: Vec<u8>,
    id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ed25519,
    P256,
    P384,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Ed25519, Self::P256, Self::P384];

    /// SubjectPublicKeyInfo in front of the key, and the key's length (RFC 8410, RFC 5480: each has one DER form).
    const fn spki(self) -> (&'static [u8], usize) {
        match self {
            Self::Ed25519 => (&[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00], 32),
            Self::P256 => (
                &[
                    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
                    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
                ],
                65,
            ),
            Self::P384 => (
                &[
                    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
                    0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
                ],
                97,
            ),
        }
    }
}

impl PublicKey {
    /// Reads `BEGIN PUBLIC KEY`.
    ///
    /// # Errors
    /// [`BadEnvelope::Key`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, BadEnvelope> {
        let text = std::str::from_utf8(pem).map_err(|_| BadEnvelope::Key)?;
        let (_, rest) = text.split_once("-----BEGIN PUBLIC KEY-----").ok_or(BadEnvelope::Key)?;
        let (body, _) = rest.split_once("-----END PUBLIC KEY-----").ok_or(BadEnvelope::Key)?;
        let body: String = body.split_whitespace().collect();
        Self::from_spki(&STANDARD.decode(body).map_err(|_| BadEnvelope::Key)?)
    }

    /// Reads a SubjectPublicKeyInfo (DER).
    ///
    /// # Errors
    /// [`BadEnvelope::Key`].
    pub fn from_spki(der: &[u8]) -> Result<Self, BadEnvelope> {
        let known = Kind::ALL.into_iter().find_map(|kind| {
            let (prefix, length) = kind.spki();
            der.strip_prefix(prefix).filter(|key| key.len() == length).map(|key| (kind, key.to_vec()))
        });
        let (kind, key) = known.ok_or(BadEnvelope::Key)?;
        Ok(Self { kind, key, id: hex::encode(Sha256::digest(der)) })
    }

    /// The key whose raw form this is: 32 bytes of Ed25519, or an uncompressed point.
    ///
    /// # Errors
    /// [`BadEnvelope::Key`]: of another length.
    pub fn from_raw(raw: &[u8]) -> Result<Self, BadEnvelope> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.spki().1 == raw.len()).ok_or(BadEnvelope::Key)?;
        Self::from_spki(&[kind.spki().0, raw].concat())
    }

    /// SHA-256 of the SubjectPublicKeyInfo, hex.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    fn made(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match self.kind {
            Kind::Ed25519 => &ED25519,
            Kind::P256 => &ECDSA_P256_SHA256_ASN1,
            Kind::P384 => &ECDSA_P384_SHA384_ASN1,
        };
        UnparsedPublicKey::new(algorithm, &self.key).verify(message, signature).is_ok()
    }
}

/// Opens an envelope: its payload, and the key that signed it. Every signature in it must be by a trusted key.
///
/// # Errors
/// [`BadEnvelope`].
pub fn open<'k>(
    bytes: &[u8],
    payload_type: &str,
    trusted: &'k [PublicKey],
) -> Result<(Vec<u8>, &'k PublicKey), BadEnvelope> {
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| BadEnvelope::Malformed(e.to_string()))?;
    if envelope.payload_type != payload_type {
        return Err(BadEnvelope::Type { got: envelope.payload_type, want: payload_type.to_owned() });
    }
    let decode = |field: &str, text: &str| {
        STANDARD.decode(text).map_err(|_| BadEnvelope::Malformed(format!("{field} is not base64")))
    };
    let payload = decode("payload", &envelope.payload)?;
    let message = pae(payload_type, &payload);
    let mut signer = None;
    for signature in &envelope.signatures {
        let bytes = decode("sig", &signature.sig)?;
        let found = trusted.iter().find(|key| key.made(&message, &bytes));
        signer = Some(found.ok_or_else(|| BadEnvelope::Untrusted(signature.keyid.clone()))?);
    }
    let signer = signer.ok_or_else(|| BadEnvelope::Untrusted(String::new()))?;
    Ok((payload, signer))
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    };

    use super::*;

    const TYPE: &str = "application/vnd.test+json";

    #[test]
    fn pae_of_the_specification() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn signed_is_opened_and_nothing_else() {
        let random = SystemRandom::new();
        let ed = Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref()).unwrap();
        let ecdsa = |algorithm| {
            let der = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
            EcdsaKeyPair::from_pkcs8(algorithm, der.as_ref(), &random).unwrap()
        };
        let (p256, p384) = (ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING), ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING));
        let message = pae(TYPE, b"payload");
        let signed = [
            (PublicKey::from_raw(ed.public_key().as_ref()).unwrap(), ed.sign(&message).as_ref().to_vec()),
            (
                PublicKey::from_raw(p256.public_key().as_ref()).unwrap(),
                p256.sign(&random, &message).unwrap().as_ref().to_vec(),
            ),
            (
                PublicKey::from_raw(p384.public_key().as_ref()).unwrap(),
                p384.sign(&random, &message).unwrap().as_ref().to_vec(),
            ),
        ];
        for (n, (key, signature)) in signed.iter().enumerate() {
            let envelope = Envelope::new(TYPE, b"payload", key.id().to_owned(), signature);
            let bytes = serde_json::to_vec(&envelope).unwrap();
            assert!(Envelope::is(&bytes));
            let (payload, signer) = open(&bytes, TYPE, std::slice::from_ref(key)).unwrap();
            assert_eq!((payload.as_slice(), signer), (&b"payload"[..], key));
            assert!(matches!(open(&bytes, "text/plain", std::slice::from_ref(key)), Err(BadEnvelope::Type { .. })));
            let (other, other_signature) = &signed[(n + 1) % 3];
            assert!(matches!(open(&bytes, TYPE, std::slice::from_ref(other)), Err(BadEnvelope::Untrusted(_))));
            let changed = Envelope::new(TYPE, b"payloae", key.id().to_owned(), signature);
            assert!(open(&serde_json::to_vec(&changed).unwrap(), TYPE, std::slice::from_ref(key)).is_err());
            // A second signature that nobody here trusts spoils the first.
            let mut two = envelope.clone();
            two.signatures.push(Envelope::new(TYPE, b"", String::new(), other_signature).signatures.remove(0));
            assert!(open(&serde_json::to_vec(&two).unwrap(), TYPE, std::slice::from_ref(key)).is_err());
            let mut none = envelope;
            none.signatures.clear();
            assert!(open(&serde_json::to_vec(&none).unwrap(), TYPE, std::slice::from_ref(key)).is_err());
        }
        assert_eq!(PublicKey::from_spki(b"nothing"), Err(BadEnvelope::Key));
        assert_eq!(
            PublicKey::from_pem(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"),
            Err(BadEnvelope::Key)
        );
    }
}
