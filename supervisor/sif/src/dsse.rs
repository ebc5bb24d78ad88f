//! DSSE signatures over an object group, as `apptainer verify --key` and `singularity verify --key` read them (sif-format, section 7b).
//!
//! To verify, the signed JSON is rebuilt from the file and compared byte for byte with the payload; so for PGP signatures too.

use std::fs::File;
use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use countersign_wire::dsse::{Envelope, pae};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Private, Public};
use openssl::sign::{Signer, Verifier};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::SifError;
use crate::format::{Descriptor, Sif};

const PAYLOAD_TYPE: &str = "application/vnd.sylabs.sif-metadata+json";
/// Longest signature object read.
pub(crate) const MAX: u64 = 1024 * 1024;

#[derive(Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Metadata {
    version: u16,
    header: HeaderDigest,
    objects: Vec<ObjectDigests>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct HeaderDigest {
    digest: String,
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct ObjectDigests {
    #[serde(rename = "relativeId")]
    relative_id: u32,
    #[serde(rename = "descriptorDigest")]
    descriptor_digest: String,
    #[serde(rename = "objectDigest")]
    object_digest: String,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    digest_text(&ring::digest::digest(&ring::digest::SHA256, bytes))
}

pub(crate) fn digest_text(digest: &ring::digest::Digest) -> String {
    format!("sha256:{}", hex::encode(digest))
}

/// SHA-256 of an object's bytes, read in pieces.
///
/// # Errors
/// Reading fails.
pub fn object_digest(file: &File, object: &Descriptor) -> Result<String, SifError> {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut reader = ReadAt { file, offset: object.offset, left: object.size };
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            return Ok(digest_text(&hash.finish()));
        }
        hash.update(buffer.get(..n).unwrap_or_default());
    }
}

/// Reads a span of a file without moving its position.
struct ReadAt<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl std::io::Read for ReadAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        use std::os::unix::fs::FileExt as _;
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(part) = buffer.get_mut(..want).filter(|part| !part.is_empty()) else { return Ok(0) };
        let n = self.file.read_at(part, self.offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let read = u64::try_from(n).unwrap_or(0);
        self.offset = self.offset.saturating_add(read);
        self.left = self.left.saturating_sub(read);
        Ok(n)
    }
}

/// The JSON that is signed: header, and the objects of a group with their digests, by ascending id.
fn payload(sif: &Sif, group: &[(&Descriptor, String)]) -> Result<Vec<u8>, SifError> {
    let lowest = group.iter().map(|(object, _)| object.id).min().unwrap_or(1);
    let objects = group.iter().map(|(object, digest_of)| {
        let relative_id = object.id.saturating_sub(lowest);
        ObjectDigests {
            relative_id,
            descriptor_digest: digest(&object.signed_bytes(relative_id)),
            object_digest: digest_of.clone(),
        }
    });
    let metadata = Metadata {
        version: 1,
        header: HeaderDigest { digest: digest(&sif.signed_header()) },
        objects: objects.collect(),
    };
    serde_json::to_vec(&metadata).map_err(|e| SifError::Signature(e.to_string()))
}

/// A public key that an owner signs with.
#[derive(Debug, Clone)]
pub struct SignerKey(PKey<Public>);

impl SignerKey {
    /// Reads `BEGIN PUBLIC KEY` (SPKI).
    ///
    /// # Errors
    /// [`SifError::Key`]: not PEM, or neither Ed25519, ECDSA P-256/P-384 nor RSA of 2048 bits and more.
    pub fn from_pem(pem: &[u8]) -> Result<Self, SifError> {
        let key = PKey::public_key_from_pem(pem).map_err(|_| SifError::Key("no PEM public key".into()))?;
        accepted(&key)?;
        Ok(Self(key))
    }

    /// `SHA256:...`, the OpenSSH fingerprint.
    ///
    /// # Errors
    /// [`SifError::Crypto`].
    pub fn id(&self) -> Result<String, SifError> {
        key_id(&self.0)
    }
}

fn accepted<T: openssl::pkey::HasPublic>(key: &PKey<T>) -> Result<(), SifError> {
    let good = match key.id() {
        Id::ED25519 => true,
        Id::EC => matches!(key.ec_key()?.group().curve_name(), Some(Nid::X9_62_PRIME256V1 | Nid::SECP384R1)),
        Id::RSA => key.bits() >= 2048,
        _ => false,
    };
    if good {
        Ok(())
    } else {
        Err(SifError::Key("only Ed25519, ECDSA P-256 or P-384, and RSA from 2048 bits sign images".into()))
    }
}

/// The OpenSSH fingerprint (RFC 4253 section 6.6, RFC 5656 section 3.1, RFC 8709 section 4), as stock tools write it. Advisory only.
fn key_id<T: openssl::pkey::HasPublic>(key: &PKey<T>) -> Result<String, SifError> {
    let string = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes()[..], bytes].concat();
    // A positive mpint: a zero in front of a set top bit.
    let mpint = |number: &openssl::bn::BigNumRef| {
        let bytes = number.to_vec();
        if bytes.first().is_some_and(|first| first & 0x80 != 0) {
            string(&[&[0], &bytes[..]].concat())
        } else {
            string(&bytes)
        }
    };
    let wire = match key.id() {
        Id::ED25519 => [string(b"ssh-ed25519"), string(&key.raw_public_key()?)].concat(),
        Id::RSA => {
            let key = key.rsa()?;
            [string(b"ssh-rsa"), mpint(key.e()), mpint(key.n())].concat()
        }
        _ => {
            let key = key.ec_key()?;
            let curve: &[u8] = if key.group().curve_name() == Some(Nid::SECP384R1) { b"nistp384" } else { b"nistp256" };
            let mut context = openssl::bn::BigNumContext::new()?;
            let form = openssl::ec::PointConversionForm::UNCOMPRESSED;
            let point = key.public_key().to_bytes(key.group(), form, &mut context)?;
            [string(&[b"ecdsa-sha2-", curve].concat()), string(curve), string(&point)].concat()
        }
    };
    Ok(format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(wire))))
}

/// A private key from PEM, never with a question on the terminal.
pub(crate) fn private_key(pem: &[u8], passphrase: Option<&[u8]>, none: &str) -> Result<PKey<Private>, SifError> {
    let mut encrypted = false;
    let key = PKey::private_key_from_pem_callback(pem, |buffer| {
        encrypted = true;
        let given = passphrase.unwrap_or_default();
        // A passphrase that does not fit opens nothing.
        let Some(place) = buffer.get_mut(..given.len()) else { return Ok(0) };
        place.copy_from_slice(given);
        Ok(given.len())
    });
    key.map_err(|_| {
        SifError::Key(match (encrypted, passphrase) {
            (false, _) => none.to_owned(),
            (true, None) => "the private key is encrypted, and no passphrase is given".into(),
            (true, Some(_)) => "the passphrase does not open the private key".into(),
        })
    })
}

/// An owner's private key.
pub struct OwnerKey(PKey<Private>);

impl std::fmt::Debug for OwnerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnerKey").finish_non_exhaustive()
    }
}

impl OwnerKey {
    /// Reads a PEM private key (PKCS#8, SEC 1 or PKCS#1).
    ///
    /// # Errors
    /// [`SifError::Key`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, SifError> {
        Self::from_encrypted_pem(pem, None)
    }

    /// As [`OwnerKey::from_pem`]; an encrypted key is opened with the passphrase.
    ///
    /// # Errors
    /// [`SifError::Key`], also for an encrypted key without a passphrase, or with another one.
    pub fn from_encrypted_pem(pem: &[u8], passphrase: Option<&[u8]>) -> Result<Self, SifError> {
        let key = private_key(pem, passphrase, "no PEM private key")?;
        accepted(&key)?;
        Ok(Self(key))
    }

    /// The envelope over a group whose object digests are given.
    ///
    /// # Errors
    /// [`SifError::Crypto`].
    pub fn sign(&self, sif: &Sif, group: &[(&Descriptor, String)]) -> Result<Vec<u8>, SifError> {
        let payload = payload(sif, group)?;
        let message = pae(PAYLOAD_TYPE, &payload);
        let mut signer = if self.0.id() == Id::ED25519 {
            Signer::new_without_digest(&self.0)?
        } else {
            Signer::new(MessageDigest::sha256(), &self.0)?
        };
        let signature = signer.sign_oneshot_to_vec(&message)?;
        let envelope = Envelope::new(PAYLOAD_TYPE, &payload, key_id(&self.0)?, &signature);
        serde_json::to_vec(&envelope).map_err(|e| SifError::Signature(e.to_string()))
    }
}

/// Verifies an envelope by one of the trusted keys over exactly this group of objects. `digest_of` gives the digest of an object that is read now;
/// `None` takes the one in the payload (for the partition and its tree, which the signed root binds block by block).
///
/// # Errors
/// [`SifError::Signature`] says what is wrong.
pub fn verify(
    envelope: &[u8],
    sif: &Sif,
    group: &[&Descriptor],
    trusted: &[SignerKey],
    mut digest_of: impl FnMut(&Descriptor) -> Result<Option<String>, SifError>,
) -> Result<String, SifError> {
    let bad = |why: &str| SifError::Signature(why.to_owned());
    let envelope: Envelope =
        serde_json::from_slice(envelope).map_err(|e| SifError::Signature(format!("no DSSE envelope: {e}")))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(bad("another payload type"));
    }
    let given = STANDARD.decode(&envelope.payload).map_err(|_| bad("the payload is not base64"))?;
    let message = pae(PAYLOAD_TYPE, &given);
    let mut signer = None;
    // Every signature in the envelope must be by a trusted key.
    for signature in &envelope.signatures {
        let bytes = STANDARD.decode(&signature.sig).map_err(|_| bad("a signature is not base64"))?;
        let found = trusted.iter().find(|key| holds(key, &message, &bytes).unwrap_or(false));
        let found =
            found.ok_or_else(|| SifError::Signature(format!("not by a trusted key (it names {})", signature.keyid)))?;
        signer = Some(found.id()?);
    }
    let signer = signer.ok_or_else(|| bad("the envelope holds no signature"))?;
    covers(&given, sif, group, &mut digest_of)?;
    Ok(signer)
}

/// Checks that a signed JSON states exactly this group of objects; `digest_of` as for [`verify`].
pub(crate) fn covers(
    given: &[u8],
    sif: &Sif,
    group: &[&Descriptor],
    digest_of: &mut dyn FnMut(&Descriptor) -> Result<Option<String>, SifError>,
) -> Result<(), SifError> {
    let claimed: Metadata = serde_json::from_slice(given).map_err(|e| SifError::Signature(format!("payload: {e}")))?;
    if claimed.objects.len() != group.len() {
        return Err(SifError::Signature(format!(
            "{} objects are signed, the group has {}",
            claimed.objects.len(),
            group.len()
        )));
    }
    let mut digests = Vec::new();
    for (object, claimed) in group.iter().zip(&claimed.objects) {
        let digest = digest_of(object)?.unwrap_or_else(|| claimed.object_digest.clone());
        if digest != claimed.object_digest {
            let name = object.name();
            let name = if name.is_empty() { String::new() } else { format!(" ({name})") };
            return Err(SifError::Signature(format!("object {}{name} is not what was signed", object.id)));
        }
        digests.push((*object, digest));
    }
    if payload(sif, &digests)? != given {
        return Err(SifError::Signature("the image's header or descriptors are not what was signed".into()));
    }
    Ok(())
}

fn holds(key: &SignerKey, message: &[u8], signature: &[u8]) -> Result<bool, SifError> {
    let mut verifier = if key.0.id() == Id::ED25519 {
        Verifier::new_without_digest(&key.0)?
    } else {
        Verifier::new(MessageDigest::sha256(), &key.0)?
    };
    Ok(verifier.verify_oneshot(signature, message)?)
}
