//! The signatures of a plain SIF, verified before it is protected.
//!
//! As `apptainer verify` and `singularity verify` do it: every object is in a group, every group has a signature, every signature found must hold,
//! by a trusted key of its kind, over exactly the group's objects. A signature of a kind for which no key is given is an error.

use std::collections::BTreeMap;
use std::fs::File;

use crate::dsse::{self, SignerKey, object_digest};
use crate::error::SifError;
use crate::format::{Descriptor, GROUP, Sif, data_type, read_object};
use crate::pgp::{Keyring, is_clear_signed};

/// Whose signatures are asked for.
#[derive(Debug, Default)]
pub struct Trusted {
    /// Keys of DSSE signatures.
    pub dsse: Vec<SignerKey>,
    /// Keys of PGP signatures.
    pub pgp: Option<Keyring>,
}

impl Trusted {
    /// Whether anybody's are.
    #[must_use]
    pub const fn any(&self) -> bool {
        !self.dsse.is_empty() || self.pgp.is_some()
    }
}

/// What was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Key ids (`SHA256:...`) and PGP fingerprints of the signers.
    pub signers: Vec<String>,
    /// Digest of the primary partition, as it was signed.
    pub partition: String,
}

/// Verifies every signature of a SIF.
///
/// # Errors
/// [`SifError::Signature`] says what is wrong.
pub fn verify(file: &File, sif: &Sif, trusted: &Trusted) -> Result<Verified, SifError> {
    let mut groups: BTreeMap<u32, Vec<&Descriptor>> = BTreeMap::new();
    let mut signatures: Vec<&Descriptor> = Vec::new();
    for object in &sif.objects {
        if object.data_type == data_type::SIGNATURE {
            signatures.push(object);
        } else if object.group > GROUP {
            groups.entry(object.group).or_default().push(object);
        } else {
            return Err(SifError::Signature(format!("object {} ({}) is in no group", object.id, object.name())));
        }
    }
    let primary = sif.primary()?;
    let mut digests: BTreeMap<u32, String> = BTreeMap::new();
    let mut signers = Vec::new();
    for (group, objects) in &mut groups {
        objects.sort_by_key(|object| object.id);
        let number = group & !GROUP;
        let mut own = signatures.iter().filter(|signature| signature.link == *group).peekable();
        if own.peek().is_none() {
            return Err(SifError::Signature(format!("object group {number} is not signed")));
        }
        for signature in own {
            let bytes = read_object(file, signature, dsse::MAX)?;
            let mut digest_of = |object: &Descriptor| {
                if let Some(known) = digests.get(&object.id) {
                    return Ok(Some(known.clone()));
                }
                let digest = object_digest(file, object)?;
                digests.insert(object.id, digest.clone());
                Ok(Some(digest))
            };
            let id = signature.id;
            let no_key = |kind: &str, option: &str| {
                SifError::Signature(format!("object {id} is a {kind} signature, and {option} names no key for it"))
            };
            signers.push(if is_clear_signed(&bytes) {
                let keyring = trusted.pgp.as_ref().ok_or_else(|| no_key("PGP", "--input-pgp"))?;
                let (text, signer) = keyring.verify(&bytes)?;
                dsse::covers(&text, sif, objects, &mut digest_of)?;
                signer
            } else if trusted.dsse.is_empty() {
                return Err(no_key("DSSE", "--input-signer"));
            } else {
                dsse::verify(&bytes, sif, objects, &trusted.dsse, &mut digest_of)?
            });
        }
    }
    if let Some(stray) = signatures.iter().find(|signature| !groups.contains_key(&signature.link)) {
        return Err(SifError::Signature(format!("object {} is a signature over no group", stray.id)));
    }
    signers.sort();
    signers.dedup();
    let partition = digests.remove(&primary.id);
    let partition = partition.ok_or_else(|| SifError::Signature("the primary partition is not signed".into()))?;
    Ok(Verified { signers, partition })
}
