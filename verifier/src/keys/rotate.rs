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
    let _lock = lock(dir)?;
    finish(dir)?;
    let internal = |e: &dyn std::fmt::Display| Error::Internal(e.to_string());
    let path = dir.join("trust.bundle");
    let old = bundle(&path)?;
    let was = TrustBundle::digest(&old);
    write(&bundle_file(dir, &was), &artefact::to_file(&decoded(&path, &old)?))?;
    let key = p256::SecretKey::generate_from_rng(&mut rng());
    let der = key.to_pkcs8_der().map_err(|e| internal(&e))?;
    let next = next_file(dir, role);
    write_secret(&next, der.as_bytes())?;
    let key = public(&SigningKey::from(key)).to_bytes();
    let mut new = TrustBundle { predecessor: Some(was), signature: None, ..decoded(&path, &old)? };
    match role {
        Role::Approval => new.approval_key.clone_from(&key),
        Role::Verdict => new.verdict_key.clone_from(&key),
    }
    let ca_path = folder(dir).join("ca.p8");
    let ca = SigningKey::from_pkcs8_der(&read_secret(&ca_path)?).map_err(|e| state(&ca_path, e))?;
    let signature: p256::ecdsa::Signature = ca.try_sign(&new.signed_message()).map_err(|e| internal(&e))?;
    new.signature = Some(signature.to_der().as_bytes().to_vec());
    new.follows(&old).map_err(|e| state(&path, e))?;
    let now = TrustBundle::digest(&countersign_wire::cbor::encode(&new));
    // A bundle that names a key which is not there would leave a verifier that signs for nobody.
    if public(&signing(&next)?).to_bytes() != key {
        return Err(state(&next, "another key than the one that was made"));
    }
    write(&path, &artefact::to_file(&new))?;
    finish(dir)?;
    Ok((was, now))
}

/// Held while keys are read, rotated or put in their places: the folder itself, so that there is no file of another owner in it.
pub(super) fn lock(dir: &Path) -> Result<fs::File, Error> {
    let keys = folder(dir);
    fs::File::open(&keys).and_then(|held| held.lock().map(|()| held)).map_err(|e| state(&keys, e))
}

/// Does what a crash left undone, under the lock: a key that the trust bundle names goes to its place, one that it does not name is forgotten.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Keys, create};

    fn verifier() -> (tempfile::TempDir, [u8; 32]) {
        let dir = tempfile::TempDir::new().unwrap();
        create(dir.path()).unwrap();
        let first = TrustBundle::digest(&Keys::load(dir.path()).unwrap().trust);
        (dir, first)
    }

    #[test]
    fn every_earlier_bundle_leads_to_the_newest() {
        let (dir, first) = verifier();
        let before = Keys::load(dir.path()).unwrap();
        let (was, second) = rotate(dir.path(), Role::Approval).unwrap();
        let (second_again, third) = rotate(dir.path(), Role::Verdict).unwrap();
        assert_eq!((was, second_again), (first, second));
        let keys = Keys::load(dir.path()).unwrap();
        assert_eq!(TrustBundle::digest(&keys.trust), third);
        assert_ne!(keys.approval_public(), before.approval_public());
        assert_ne!(keys.verdict_public(), before.verdict_public());
        for (from, steps) in [(first, 3), (second, 2), (third, 1)] {
            let found = chain(dir.path(), &keys.trust, &from).unwrap().unwrap();
            assert_eq!(found.bundles.len(), steps);
            assert_eq!(found.newest(&from).unwrap(), keys.trust);
            // It begins with what is pinned, or leads nowhere.
            assert!(found.newest(&[7; 32]).is_err());
        }
        assert!(chain(dir.path(), &keys.trust, &[7; 32]).unwrap().is_none());
        // A step left out, turned round, or changed in any byte of its end (the signature).
        let all = chain(dir.path(), &keys.trust, &first).unwrap().unwrap();
        for order in [[0, 2, 1], [0, 0, 1], [0, 1, 1]] {
            let bundles = order.into_iter().map(|n| all.bundles[n].clone()).collect();
            assert!(TrustChain { version: 1, bundles }.newest(&first).is_err());
        }
        let skipped = TrustChain { version: 1, bundles: vec![all.bundles[0].clone(), all.bundles[2].clone()] };
        assert!(skipped.newest(&first).is_err());
        for back in 1..70 {
            let mut changed = all.clone();
            let bytes = &mut changed.bundles[2];
            let at = bytes.len() - back;
            bytes[at] ^= 1;
            assert!(changed.newest(&first).is_err(), "{back}");
        }
        assert!(TrustChain { version: 1, bundles: Vec::new() }.newest(&first).is_err());
    }

    #[test]
    fn others_may_load_while_keys_are_rotated() {
        let (dir, _) = verifier();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        while !done.load(std::sync::atomic::Ordering::SeqCst) {
                            Keys::load(dir.path())?;
                        }
                        Ok::<_, Error>(())
                    })
                })
                .collect();
            let rotated: Vec<_> = (0..30).map(|_| rotate(dir.path(), Role::Approval)).collect();
            done.store(true, std::sync::atomic::Ordering::SeqCst);
            for reader in readers {
                reader.join().unwrap().unwrap();
            }
            let mut last = None;
            for step in rotated {
                let (was, now) = step.unwrap();
                assert!(last.is_none_or(|last| last == was));
                last = Some(now);
            }
        });
        Keys::load(dir.path()).unwrap();
    }

    #[test]
    fn a_crash_leaves_the_old_key_or_the_new_one() {
        let (dir, first) = verifier();
        // Before the bundle: the new key is nobody's.
        let key = fs::read(key_file(dir.path(), Role::Approval)).unwrap();
        write_secret(&next_file(dir.path(), Role::Approval), &fs::read(key_file(dir.path(), Role::Verdict)).unwrap())
            .unwrap();
        assert_eq!(TrustBundle::digest(&Keys::load(dir.path()).unwrap().trust), first);
        assert!(!next_file(dir.path(), Role::Approval).exists());
        // After it: the new key counts, and goes to its place.
        let (_, second) = rotate(dir.path(), Role::Approval).unwrap();
        let (at, next) = (key_file(dir.path(), Role::Approval), next_file(dir.path(), Role::Approval));
        let new = fs::read(&at).unwrap();
        fs::rename(&at, &next).unwrap();
        write_secret(&at, &key).unwrap();
        assert_eq!(TrustBundle::digest(&Keys::load(dir.path()).unwrap().trust), second);
        assert_eq!((fs::read(&at).unwrap() == new, next.exists()), (true, false));
        // Keys that the bundle does not name sign for nobody.
        fs::write(&at, &key).unwrap();
        assert!(Keys::load(dir.path()).unwrap_err().to_string().contains("names other"));
    }
}
