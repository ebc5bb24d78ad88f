//! PGP signatures, as `apptainer sign` and `singularity sign` make them by default: the signed JSON in an OpenPGP clear-signed text
//! (sif-format, section 7a).

use pgp::composed::{CleartextSignedMessage, Deserializable as _, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::Signature;
use pgp::types::{KeyDetails, VerifyingKey};

use crate::error::SifError;

/// Longest keyring read, bytes.
const KEYRING: usize = 16 << 20;
/// What a clear-signed text begins with (RFC 9580, section 7).
const CLEAR: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";

/// Whether a signature object is a clear-signed text.
pub(crate) fn is_clear_signed(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(CLEAR)
}

/// Public keys that are trusted.
#[derive(Debug, Clone)]
pub struct Keyring(Vec<SignedPublicKey>);

fn bad(why: impl std::fmt::Display) -> SifError {
    SifError::Signature(format!("PGP: {why}"))
}

impl Keyring {
    /// Reads exported public keys, armoured or binary.
    ///
    /// # Errors
    /// [`SifError::Key`]: no keys, or one whose own signatures do not hold.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SifError> {
        let no_keys = |e: &dyn std::fmt::Display| SifError::Key(format!("no PGP public keys: {e}"));
        if bytes.len() > KEYRING {
            return Err(no_keys(&format!("more than {KEYRING} bytes")));
        }
        let (found, _) = SignedPublicKey::from_reader_many(bytes).map_err(|e| no_keys(&e))?;
        let keys: Vec<SignedPublicKey> = found.collect::<Result<_, _>>().map_err(|e| no_keys(&e))?;
        if keys.is_empty() {
            return Err(no_keys(&"the file holds none"));
        }
        for key in &keys {
            key.verify_bindings().map_err(|e| no_keys(&e))?;
        }
        Ok(Self(keys))
    }

    /// The text that is signed, without its last line's end, and the fingerprint of the primary key of whoever signed it.
    pub(crate) fn verify(&self, message: &[u8]) -> Result<(String, String), SifError> {
        let text = std::str::from_utf8(message).map_err(|_| bad("not text"))?;
        let (message, _) = CleartextSignedMessage::from_string(text).map_err(bad)?;
        let [signature] = message.signatures() else {
            return Err(bad(format!("{} signatures in one text", message.signatures().len())));
        };
        let strong = [HashAlgorithm::Sha224, HashAlgorithm::Sha256, HashAlgorithm::Sha384, HashAlgorithm::Sha512];
        let hash = signature.hash_alg().filter(|hash| strong.contains(hash));
        hash.ok_or_else(|| bad(format!("hash algorithm {:?} is not accepted", signature.hash_alg())))?;
        if signature.signature_expiration_time().is_some_and(|life| life.as_secs() != 0) {
            return Err(bad("a signature that expires"));
        }
        let text = message.signed_text();
        for key in &self.0 {
            if let Some(state) = signed_by(key, signature, &text) {
                state?;
                let signed = text.trim_end_matches(['\r', '\n']).to_owned();
                return Ok((signed, hex::encode_upper(key.fingerprint().as_bytes())));
            }
        }
        let named = signature.issuer_fingerprint();
        let named = named.first().map_or_else(String::new, |by| format!(" (it names {by})"));
        Err(bad(format!("not by a trusted key{named}")))
    }
}

/// Whether this key, or one of its signing subkeys, made the signature; an error when that key was not to sign then.
fn signed_by(key: &SignedPublicKey, signature: &Signature, text: &str) -> Option<Result<(), SifError>> {
    let own: Vec<&Signature> =
        key.details.users.iter().flat_map(|user| &user.signatures).chain(&key.details.direct_signatures).collect();
    if verifies(&key.primary_key, signature, text) {
        return Some(usable(key, &key.primary_key, &own, signature));
    }
    let sub = key.public_subkeys.iter().find(|sub| verifies(&sub.key, signature, text))?;
    let signs = sub.signatures.iter().any(|binding| binding.key_flags().sign());
    if !signs {
        return Some(Err(bad("by a subkey that is not for signing")));
    }
    let bindings: Vec<&Signature> = sub.signatures.iter().collect();
    Some(usable(key, &key.primary_key, &own, signature).and_then(|()| usable(key, &sub.key, &bindings, signature)))
}

fn verifies(key: &impl VerifyingKey, signature: &Signature, text: &str) -> bool {
    signature.verify(key, text.as_bytes()).is_ok()
}

/// A revoked key signs nothing, and an expired one nothing any more: by its newest own signature, at the time that the signature states.
fn usable(
    key: &SignedPublicKey,
    part: &impl KeyDetails,
    own: &[&Signature],
    signature: &Signature,
) -> Result<(), SifError> {
    use pgp::packet::SignatureType::{KeyRevocation, SubkeyRevocation};
    let revoked = own.iter().any(|own| matches!(own.typ(), Some(KeyRevocation | SubkeyRevocation)));
    if revoked || !key.details.revocation_signatures.is_empty() {
        return Err(bad("by a revoked key"));
    }
    let made = signature.created().ok_or_else(|| bad("a signature without a time"))?.as_secs();
    let newest = own.iter().max_by_key(|own| own.created().map_or(0, |time| time.as_secs()));
    let life = newest.and_then(|own| own.key_expiration_time()).map_or(0, |life| life.as_secs());
    let born = part.created_at().as_secs();
    if made < born || (life != 0 && made > born.saturating_add(life)) {
        return Err(bad("by a key that was not valid at the time of the signature"));
    }
    Ok(())
}
