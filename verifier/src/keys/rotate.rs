//! New approval and verdict keys, and the trust bundles that lead to them (DESIGN.md section 4).
//!
//! The new trust bundle names its predecessor and is signed by the CA key; those before it are kept in `trust/`, so a host that comes back walks
//! from the one that it has pinned to the newest. Order of the files: the old bundle, the new key beside the old one, the new bundle (from
//! here on it counts), the new key in its place. What a crash leaves undone, the next start does.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use countersign_wire::artefact;
use countersign_wire::trust::{TRANSITIONS, TrustBundle, TrustChain};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _};

use super::{folder, public, read_secret, rng, signing, state, write_secret};
use crate::error::Error;

/// A key that can be rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Signs which PCR values are accepted.
    Approval,
    /// Signs that one session may unseal.
    Verdict,
}

impl Role {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Approval => "approval",
            Self::Verdict => "verdict",
        }
    }
}

fn key_file(dir: &Path, role: Role) -> PathBuf {
    folder(dir).join(format!("{}.p8", role.name()))
}

fn next_file(dir: &Path, role: Role) -> PathBuf {
    folder(dir).join(format!("{}.p8.next", role.name()))
}

fn bundle_file(dir: &Path, digest: &[u8; 32]) -> PathBuf {
    dir.join("trust").join(format!("{}.bundle", hex::encode(digest)))
}

/// The present trust bundle, encoded.
pub(super) fn bundle(path: &Path) -> Result<Vec<u8>, Error> {
    let file = fs::read(path).map_err(|e| state(path, e))?;
    Ok(artefact::body::<TrustBundle>(&file).map_err(|e| state(path, e))?.to_vec())
}

fn decoded(path: &Path, encoded: &[u8]) -> Result<TrustBundle, Error> {
    countersign_wire::cbor::decode(encoded).map_err(|e| state(path, e))
}

/// Writes a file as a whole, durably.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(path);
    let made = || -> std::io::Result<()> {
        fs::create_dir_all(parent)?;
        let new = path.with_extension("new");
        let mut file = fs::File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        fs::File::open(parent)?.sync_all()
    };
    made().map_err(|e| state(path, e))
}

/// Makes a new key and a trust bundle with it; the digests of the old bundle and the new one.
///
/// # Errors
/// [`Error::State`]; the old key counts then.
pub fn rotate(dir: &Path, role: Role) -> Result<([u8; 32], [u8; 32]), Error> {
    use p256::elliptic_curve::Generate as _;
    finish(dir)?;
    let internal = |e: &dyn std::fmt::Display| Error::Internal(e.to_string());
    let path = dir.join("trust.bundle");
    let old = bundle(&path)?;
    let was = TrustBundle::digest(&old);
    write(&bundle_file(dir, &was), &artefact::to_file(&decoded(&path, &old)?))?;
    let key = p256::SecretKey::generate_from_rng(&mut rng());
    let der = key.to_pkcs8_der().map_err(|e| internal(&e))?;
    write_secret(&next_file(dir, role), der.as_bytes())?;
    let key = public(&SigningKey::from(key)).to_bytes();
    let mut new = TrustBundle { predecessor: Some(was), signature: None, ..decoded(&path, &old)? };
    match role {
        Role::Approval => new.approval_key = key,
        Role::Verdict => new.verdict_key = key,
    }
    let ca_path = folder(dir).join("ca.p8");
    let ca = SigningKey::from_pkcs8_der(&read_secret(&ca_path)?).map_err(|e| state(&ca_path, e))?;
    let signature: p256::ecdsa::Signature = ca.try_sign(&new.signed_message()).map_err(|e| internal(&e))?;
    new.signature = Some(signature.to_der().as_bytes().to_vec());
    new.follows(&old).map_err(|e| state(&path, e))?;
    let now = TrustBundle::digest(&countersign_wire::cbor::encode(&new));
    write(&path, &artefact::to_file(&new))?;
    finish(dir)?;
    Ok((was, now))
}

/// Does what a crash left undone: a key that the trust bundle names goes to its place, one that it does not name is forgotten.
pub(super) fn finish(dir: &Path) -> Result<(), Error> {
    for role in [Role::Approval, Role::Verdict] {
        let next = next_file(dir, role);
        if !next.exists() {
            continue;
        }
        let path = dir.join("trust.bundle");
        let trust = decoded(&path, &bundle(&path)?)?;
        let named = match role {
            Role::Approval => trust.approval_key,
            Role::Verdict => trust.verdict_key,
        };
        let counts = signing(&next).is_ok_and(|key| public(&key).to_bytes() == named);
        let done = if counts { fs::rename(&next, key_file(dir, role)) } else { fs::remove_file(&next) };
        done.and_then(|()| fs::File::open(folder(dir))?.sync_all()).map_err(|e| state(&next, e))?;
    }
    Ok(())
}

/// The trust bundle with this digest and all that replaced it; none when this verifier never had it.
///
/// # Errors
/// [`Error::State`]: a bundle cannot be read.
pub fn chain(dir: &Path, current: &[u8], from: &[u8; 32]) -> Result<Option<TrustChain>, Error> {
    let mut bundles = vec![current.to_vec()];
    while bundles.len() <= TRANSITIONS {
        let Some(oldest) = bundles.last() else { return Ok(None) };
        if TrustBundle::digest(oldest) == *from {
            bundles.reverse();
            return Ok(Some(TrustChain { version: 1, bundles: bundles.into_iter().map(Into::into).collect() }));
        }
        let Some(before) = decoded(&dir.join("trust.bundle"), oldest)?.predecessor else { return Ok(None) };
        bundles.push(bundle(&bundle_file(dir, &before))?);
    }
    Ok(None)
}
