//! Signed reference sets: DSSE envelopes.

use countersign_wire::dsse::{self, Envelope, PublicKey};
use countersign_wire::refset::{PAYLOAD_TYPE, ReferenceSet};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;

use super::LearnError;

/// The envelope over a set's canonical form, by a private key (PKCS#8 PEM: Ed25519, P-256 or P-384); and the key's id.
///
/// # Errors
/// [`LearnError::Key`].
pub fn sign(set: &ReferenceSet, key: &[u8]) -> Result<(Vec<u8>, String), LearnError> {
    let bad = |e: &dyn std::fmt::Display| LearnError::Key(e.to_string());
    let payload = set.to_json().map_err(|e| bad(&e))?;
    let message = dsse::pae(PAYLOAD_TYPE, &payload);
    let der =
        PrivatePkcs8KeyDer::from_pem_slice(key).map_err(|e| bad(&format!("no PKCS#8 private key in PEM: {e}")))?;
    let der = der.secret_pkcs8_der();
    let random = SystemRandom::new();
    let (public, signature) = if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        (pair.public_key().as_ref().to_vec(), pair.sign(&message).as_ref().to_vec())
    } else {
        let algorithms = [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING];
        let pair = algorithms.into_iter().find_map(|algorithm| EcdsaKeyPair::from_pkcs8(algorithm, der, &random).ok());
        let pair = pair.ok_or_else(|| bad(&"the key is none of Ed25519, P-256 and P-384"))?;
        let signature = pair.sign(&random, &message).map_err(|e| bad(&e))?;
        (pair.public_key().as_ref().to_vec(), signature.as_ref().to_vec())
    };
    let id = PublicKey::from_raw(&public).map_err(|e| bad(&e))?.id().to_owned();
    let envelope = Envelope::new(PAYLOAD_TYPE, &payload, id.clone(), &signature);
    Ok((serde_json::to_vec(&envelope).map_err(|e| bad(&e))?, id))
}

/// The set in an envelope that one of these public keys (PEM) signed; and the signer's id.
///
/// # Errors
/// [`LearnError::Key`].
pub fn open(envelope: &[u8], keys: &[Vec<u8>]) -> Result<(ReferenceSet, String), LearnError> {
    let bad = |e: &dyn std::fmt::Display| LearnError::Key(e.to_string());
    let keys = keys.iter().map(|pem| PublicKey::from_pem(pem)).collect::<Result<Vec<_>, _>>().map_err(|e| bad(&e))?;
    let (payload, signer) = dsse::open(envelope, PAYLOAD_TYPE, &keys).map_err(|e| bad(&e))?;
    Ok((ReferenceSet::parse(&payload).map_err(|e| bad(&e))?, signer.id().to_owned()))
}
