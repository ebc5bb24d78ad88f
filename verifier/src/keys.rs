//! The verifier's keys: files of mode 0600 in `keys/`, checked when they are read.

mod rotate;

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use countersign_tpm::alg::HashAlg;
use countersign_tpm::public::{Curve, Key, Public, Scheme, attributes};
use countersign_tpm::signature::Signature;
use countersign_wire::artefact;
use countersign_wire::trust::TrustBundle;
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _};
use rand_core::{Rng as _, UnwrapErr};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

pub use rotate::{Role, chain, rotate};

use crate::error::Error;

/// Longest file with a secret, bytes.
const SECRET: u64 = 64 * 1024;

/// The system's generator.
#[must_use]
pub const fn rng() -> UnwrapErr<getrandom::SysRng> {
    UnwrapErr(getrandom::SysRng)
}

/// Random bytes.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rng().fill_bytes(&mut bytes);
    bytes
}

/// All keys of a verifier.
pub struct Keys {
    approval: SigningKey,
    verdict: SigningKey,
    log: SigningKey,
    receipt: ring::hmac::Key,
    master: LessSafeKey,
    /// CA key (PKCS#8 DER).
    pub ca_key: Zeroizing<Vec<u8>>,
    /// CA certificate (DER).
    pub ca: Vec<u8>,
    /// The trust bundle, encoded.
    pub trust: Vec<u8>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

fn state(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::State { path: path.display().to_string(), reason: reason.to_string() }
}

/// Writes a file that only its owner may read; one that exists is refused.
///
/// # Errors
/// [`Error::State`].
pub fn write_secret(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    open.and_then(|mut file| {
        file.write_all(contents)?;
        file.sync_all()
    })
    .map_err(|e| state(path, e))
}

/// Reads a file that only its owner may read.
///
/// # Errors
/// [`Error::State`], also when others may read it.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let file = fs::File::open(path).map_err(|e| state(path, e))?;
    // Of the open file: the path may name another one by now.
    let metadata = file.metadata().map_err(|e| state(path, e))?;
    if metadata.mode() & 0o077 != 0 {
        return Err(state(path, format!("mode {:o}: others may read it; chmod 600", metadata.mode() & 0o777)));
    }
    let mut contents = Zeroizing::new(Vec::with_capacity(4096));
    file.take(SECRET.saturating_add(1)).read_to_end(&mut contents).map_err(|e| state(path, e))?;
    if u64::try_from(contents.len()).unwrap_or(u64::MAX) > SECRET {
        return Err(state(path, format!("more than {SECRET} bytes")));
    }
    Ok(contents)
}

fn folder(dir: &Path) -> PathBuf {
    dir.join("keys")
}

const FILES: [&str; 3] = ["approval", "verdict", "log"];

/// Makes all keys, the CA and the trust bundle.
///
/// # Errors
/// [`Error::State`]: the folder exists already, or cannot be written.
pub fn create(dir: &Path) -> Result<(), Error> {
    use p256::elliptic_curve::Generate as _;
    let keys = folder(dir);
    if keys.exists() {
        return Err(state(&keys, "exists already: this verifier is initialised"));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys).map_err(|e| state(&keys, e))?;
    let internal = |e: &dyn std::fmt::Display| Error::Internal(e.to_string());
    for name in FILES {
        let key = p256::SecretKey::generate_from_rng(&mut rng());
        let der = key.to_pkcs8_der().map_err(|e| internal(&e))?;
        write_secret(&keys.join(format!("{name}.p8")), der.as_bytes())?;
    }
    write_secret(&keys.join("receipt.key"), &random::<32>())?;
    write_secret(&keys.join("master.key"), &random::<32>())?;
    let ca_key = rcgen::KeyPair::generate().map_err(|e| internal(&e))?;
    write_secret(&keys.join("ca.p8"), &ca_key.serialize_der())?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("Countersign CA {}", hex::encode(random::<4>())));
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let ca = params.self_signed(&ca_key).map_err(|e| internal(&e))?;
    let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).map_err(|e| state(&dir.join(name), e));
    write("ca.pem", ca.pem().as_bytes())?;
    write("ca.der", ca.der())?;
    let signing = |name: &str| signing(&keys.join(format!("{name}.p8")));
    let log = signing("log")?;
    let bundle = TrustBundle {
        version: 1,
        ca: ca.der().to_vec(),
        approval_key: public(&signing("approval")?).to_bytes(),
        verdict_key: public(&signing("verdict")?).to_bytes(),
        log_key: log.verifying_key().to_public_key_der().map_err(|e| internal(&e))?.into_vec(),
        predecessor: None,
        signature: None,
    };
    write("trust.bundle", &artefact::to_file(&bundle))
}

fn signing(path: &Path) -> Result<SigningKey, Error> {
    SigningKey::from_pkcs8_der(&read_secret(path)?).map_err(|e| state(path, e))
}

/// TPMT_PUBLIC of an authority key, as the host loads it: attributes 00040040.
fn public(key: &SigningKey) -> Public {
    let point = key.verifying_key().to_sec1_point(false);
    let coordinate = |c: Option<&p256::FieldBytes>| c.map(|c| c.to_vec()).unwrap_or_default();
    Public {
        name_alg: HashAlg::Sha256,
        attributes: attributes::USER_WITH_AUTH | attributes::SIGN,
        auth_policy: Vec::new(),
        key: Key::Ecc {
            symmetric: None,
            scheme: Scheme::Ecdsa(HashAlg::Sha256),
            curve: Curve::P256,
            x: coordinate(point.x()),
            y: coordinate(point.y()),
        },
    }
}

impl Keys {
    /// Reads all keys of a state folder.
    ///
    /// # Errors
    /// [`Error::State`] names the file.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let _lock = rotate::lock(dir)?;
        rotate::finish(dir)?;
        let keys = folder(dir);
        let p8 = |name: &str| signing(&keys.join(format!("{name}.p8")));
        let master = read_secret(&keys.join("master.key"))?;
        let master =
            UnboundKey::new(&AES_256_GCM, &master).map_err(|_| state(&keys.join("master.key"), "not 32 bytes"))?;
        let path = dir.join("trust.bundle");
        let trust = rotate::bundle(&path)?;
        let named: TrustBundle = countersign_wire::cbor::decode(&trust).map_err(|e| state(&path, e))?;
        let (approval, verdict) = (p8("approval")?, p8("verdict")?);
        // Hosts pin the bundle: other keys would sign for nobody.
        if (named.approval_key, named.verdict_key) != (public(&approval).to_bytes(), public(&verdict).to_bytes()) {
            return Err(state(&path, "names other approval and verdict keys than those in keys/"));
        }
        let ca_path = dir.join("ca.der");
        Ok(Self {
            approval,
            verdict,
            log: p8("log")?,
            receipt: ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &read_secret(&keys.join("receipt.key"))?),
            master: LessSafeKey::new(master),
            ca_key: read_secret(&keys.join("ca.p8"))?,
            ca: fs::read(&ca_path).map_err(|e| state(&ca_path, e))?,
            trust,
        })
    }

    /// The approval key's public area.
    #[must_use]
    pub fn approval_public(&self) -> Public {
        public(&self.approval)
    }

    /// The verdict key's public area.
    #[must_use]
    pub fn verdict_public(&self) -> Public {
        public(&self.verdict)
    }

    pub(crate) fn sign_approval(&self, hash: &[u8; 32]) -> Result<Vec<u8>, Error> {
        sign(&self.approval, hash)
    }

    pub(crate) fn sign_verdict(&self, hash: &[u8; 32]) -> Result<Vec<u8>, Error> {
        sign(&self.verdict, hash)
    }

    /// ECDSA P-256 (DER) by the log key.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn sign_record(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        use p256::ecdsa::signature::Signer as _;
        let signature: p256::ecdsa::Signature =
            self.log.try_sign(message).map_err(|e| Error::Internal(e.to_string()))?;
        Ok(signature.to_der().as_bytes().to_vec())
    }

    /// The MAC of a receipt.
    #[must_use]
    pub fn receipt_mac(&self, input: &[u8]) -> [u8; 32] {
        ring::hmac::sign(&self.receipt, input).as_ref().try_into().unwrap_or_default()
    }

    /// Whether a receipt's MAC is this verifier's.
    #[must_use]
    pub fn receipt_is_genuine(&self, input: &[u8], mac: &[u8]) -> bool {
        ring::hmac::verify(&self.receipt, input, mac).is_ok()
    }

    /// Encrypts a secret under the master key, bound to what it belongs to.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn seal(&self, secret: &[u8], belongs_to: &[u8]) -> Result<Vec<u8>, Error> {
        let nonce = random::<NONCE_LEN>();
        let mut data = secret.to_vec();
        self.master
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(belongs_to), &mut data)
            .map_err(|_| Error::Internal("encryption under the master key".into()))?;
        Ok([nonce.as_slice(), &data].concat())
    }

    /// Decrypts what [`Keys::seal`] made.
    ///
    /// # Errors
    /// [`Error::Corrupt`]: another master key, or changed.
    pub fn unseal(&self, sealed: &[u8], belongs_to: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let corrupt = || Error::Corrupt("a stored key does not decrypt: another master key, or it was changed".into());
        let (nonce, data) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(corrupt)?;
        let mut data = Zeroizing::new(data.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.master.open_in_place(nonce, Aad::from(belongs_to), &mut data).map_err(|_| corrupt())?.len();
        data.truncate(length);
        Ok(data)
    }
}

fn sign(key: &SigningKey, hash: &[u8; 32]) -> Result<Vec<u8>, Error> {
    let signature: p256::ecdsa::Signature = key.sign_prehash(hash).map_err(|e| Error::Internal(e.to_string()))?;
    let (r, s) = (signature.r().to_bytes(), signature.s().to_bytes());
    Ok(Signature::Ecdsa { hash: HashAlg::Sha256, r: &r, s: &s }.to_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_that_others_may_read_are_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        create(dir.path()).unwrap();
        Keys::load(dir.path()).unwrap();
        for name in ["approval.p8", "verdict.p8", "log.p8", "receipt.key", "master.key", "ca.p8"] {
            let path = folder(dir.path()).join(name);
            for mode in [0o640, 0o604, 0o610] {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                let error = Keys::load(dir.path()).unwrap_err().to_string();
                assert!(error.contains(name) && error.contains("chmod 600"), "{error}");
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        assert!(create(dir.path()).is_err(), "keys are never overwritten");
    }

    #[test]
    fn stored_keys_are_bound_to_their_workload() {
        let dir = tempfile::TempDir::new().unwrap();
        create(dir.path()).unwrap();
        let keys = Keys::load(dir.path()).unwrap();
        let sealed = keys.seal(b"secret", b"one").unwrap();
        assert_eq!(**keys.unseal(&sealed, b"one").unwrap(), *b"secret");
        assert!(keys.unseal(&sealed, b"two").is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(keys.unseal(&changed, b"one").is_err());
        }
        assert!(keys.unseal(&sealed[..10], b"one").is_err());
        assert_ne!(keys.seal(b"secret", b"one").unwrap(), sealed, "a fresh nonce each time");
    }
}
