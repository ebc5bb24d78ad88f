//! Keys whose file signatures are accepted.

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::ima::{DigestKind, Entry, Field, FileSignature, SignatureKind};
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use rsa::pkcs1v15::Pkcs1v15Sign;
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::SubjectKeyIdentifier;

use super::modsig::{ModSig, Signer};

/// Longest certificate, in bytes.
const CERTIFICATE: usize = 8192;

/// A key from a certificate. Dates are not looked at, as the kernel does not either.
#[derive(Debug, Clone)]
pub struct Key {
    /// What IMA signatures call it: the last four bytes of its identifier, from the certificate and computed.
    ids: Vec<[u8; 4]>,
    /// What appended signatures call it: its certificate's issuer (DER) and serial number, or its identifier.
    issuer: Vec<u8>,
    serial: Vec<u8>,
    identifier: Option<Vec<u8>>,
    public: PublicKey,
    subject: String,
}

#[derive(Debug, Clone)]
enum PublicKey {
    Rsa(Box<rsa::PublicKey>),
    P256(Box<p256::ecdsa::VerifyingKey>),
    P384(Box<p384::ecdsa::VerifyingKey>),
}

/// Why a certificate gives no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// Not X.509.
    #[error("no X.509 certificate: {0}")]
    Malformed(String),
    /// A key of another kind.
    #[error("{0}: only RSA from 2048 to 4096 bits, P-256 and P-384 sign files")]
    Kind(String),
}

impl Key {
    /// Reads a certificate (DER).
    ///
    /// # Errors
    /// [`NoKey`].
    pub fn from_certificate(der: &[u8]) -> Result<Self, NoKey> {
        if der.len() > CERTIFICATE {
            return Err(NoKey::Malformed(format!("{} bytes, at most {CERTIFICATE}", der.len())));
        }
        let bad = |e: x509_cert::der::Error| NoKey::Malformed(e.to_string());
        let certificate = Certificate::from_der(der).map_err(bad)?;
        let tbs = certificate.tbs_certificate();
        let subject = tbs.subject().to_string();
        let spki = tbs.subject_public_key_info().to_der().map_err(bad)?;
        let bits = tbs.subject_public_key_info().subject_public_key.raw_bytes();
        let public = public_key(&spki).ok_or_else(|| NoKey::Kind(subject.clone()))?;
        let last = |id: &[u8]| id.last_chunk::<4>().copied();
        // RFC 5280 section 4.2.1.2, method 1; evmctl takes it unless it is told to take the certificate's.
        let mut ids: Vec<[u8; 4]> = last(HashAlg::Sha1.digest(&[bits]).as_bytes()).into_iter().collect();
        let stated = tbs.get_extension::<SubjectKeyIdentifier>().ok().flatten();
        let identifier = stated.map(|(_, stated)| stated.0.as_bytes().to_vec());
        ids.extend(identifier.as_deref().and_then(last));
        let (issuer, serial) = (tbs.issuer().to_der().map_err(bad)?, tbs.serial_number().as_bytes().to_vec());
        Ok(Self { ids, issuer, serial, identifier, public, subject })
    }

    /// The certificate's subject.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    fn is(&self, signer: Signer<'_>) -> bool {
        match signer {
            Signer::Issued { issuer, serial } => self.issuer == issuer && self.serial == serial,
            Signer::Key(identifier) => self.identifier.as_deref() == Some(identifier),
        }
    }

    fn signed(&self, digest: &Digest, signature: &[u8]) -> bool {
        match &self.public {
            PublicKey::Rsa(key) => {
                let scheme = Pkcs1v15Sign { hash_len: Some(digest.alg().size()), prefix: digest_info(digest.alg()) };
                key.verify(scheme, digest.as_bytes(), signature).is_ok()
            }
            PublicKey::P256(key) => p256::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(digest.as_bytes(), &signature).is_ok()),
            PublicKey::P384(key) => p384::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(digest.as_bytes(), &signature).is_ok()),
        }
    }
}

fn public_key(spki: &[u8]) -> Option<PublicKey> {
    use p256::pkcs8::DecodePublicKey as _;
    use rsa::traits::PublicKeyParts as _;
    if let Ok(key) = rsa::PublicKey::from_public_key_der(spki) {
        return (256..=512).contains(&key.size()).then(|| PublicKey::Rsa(Box::new(key)));
    }
    if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_der(spki) {
        return Some(PublicKey::P256(Box::new(key)));
    }
    p384::ecdsa::VerifyingKey::from_public_key_der(spki).ok().map(|key| PublicKey::P384(Box::new(key)))
}

/// DigestInfo in front of a hash (RFC 8017 section 9.2, note 1).
fn digest_info(alg: HashAlg) -> Box<[u8]> {
    let (oid, total, size) = match alg {
        HashAlg::Sha1 => return Box::new([]),
        HashAlg::Sha256 => (1, 0x31, 32),
        HashAlg::Sha384 => (2, 0x41, 48),
        HashAlg::Sha512 => (3, 0x51, 64),
    };
    Box::new([
        0x30, total, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, oid, 0x05, 0x00, 0x04,
        size,
    ])
}

/// Keys by their identifiers.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    keys: Vec<Key>,
}

impl Keyring {
    /// Adds a key.
    pub fn add(&mut self, key: Key) {
        self.keys.push(key);
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether one of these keys signed the entry's file.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn check(&self, entry: &Entry<'_>) -> Result<(), String> {
        self.check_with(None, entry)
    }

    /// As [`Keyring::check`], with a second ring beside this one. An appended signature counts where there is none of the file's own, or none that
    /// a key here could have made (`appraise_type=imasig|modsig`); one that a known key is said to have made has to be good.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn check_with(&self, more: Option<&Self>, entry: &Entry<'_>) -> Result<(), String> {
        let Some(appended) = entry.field(Field::Modsig).filter(|appended| !appended.is_empty()) else {
            return self.check_own(more, entry);
        };
        if entry.signature.is_empty() {
            return self.check_appended(more, entry, appended);
        }
        let own = self.check_own(more, entry);
        if own.is_ok() || FileSignature::parse(entry.signature).is_ok_and(|signature| self.knows(more, &signature)) {
            return own;
        }
        own.or_else(|own| {
            self.check_appended(more, entry, appended).map_err(|appended| format!("{own}; appended: {appended}"))
        })
    }

    fn knows(&self, more: Option<&Self>, signature: &FileSignature<'_>) -> bool {
        let mut all = self.keys.iter().chain(more.iter().flat_map(|ring| &ring.keys));
        all.any(|key| key.ids.contains(&signature.key_id))
    }

    /// The file's own signature: over the digest that the list has.
    fn check_own(&self, more: Option<&Self>, entry: &Entry<'_>) -> Result<(), String> {
        let signature = FileSignature::parse(entry.signature).map_err(|e| e.to_string())?;
        let kind_fits = match entry.digest_kind {
            DigestKind::Unsaid => true,
            DigestKind::File => signature.kind == SignatureKind::File,
            DigestKind::Verity => signature.kind == SignatureKind::Verity,
        };
        if !kind_fits {
            return Err("the signature is over another kind of digest than the list has".into());
        }
        let name = signature.hash.name();
        if name.as_bytes() != entry.digest_alg {
            let alg = String::from_utf8_lossy(entry.digest_alg).into_owned();
            return Err(format!("the signature is over a {name} digest, the list has {alg}"));
        }
        let digest = signature.signed_digest(entry.digest).filter(|digest| digest.alg() != HashAlg::Sha1);
        let digest = digest.ok_or_else(|| format!("{name} signatures are not accepted"))?;
        let named = |key: &Key| key.ids.contains(&signature.key_id);
        self.signed_by(more, named, &digest, signature.signature, || hex::encode(signature.key_id))
    }

    /// An appended signature: over the digest that the list has of the file without it (`d-modsig`).
    fn check_appended(&self, more: Option<&Self>, entry: &Entry<'_>, appended: &[u8]) -> Result<(), String> {
        let appended = ModSig::parse(appended)?;
        let (alg, content) = entry.modsig_digest().ok_or("no digest of the file without its appended signature")?;
        let name = appended.hash.name();
        if name.as_bytes() != alg {
            let alg = String::from_utf8_lossy(alg).into_owned();
            return Err(format!("the appended signature is over a {name} digest, the list has {alg}"));
        }
        let digest = appended.signed_digest(content)?;
        self.signed_by(
            more,
            |key| key.is(appended.signer),
            &digest,
            appended.signature,
            || match appended.signer {
                Signer::Issued { serial, .. } => format!("with serial number {}", hex::encode(serial)),
                Signer::Key(identifier) => hex::encode(identifier),
            },
        )
    }

    /// Whether a key that is named signed the digest.
    fn signed_by(
        &self,
        more: Option<&Self>,
        named: impl Fn(&Key) -> bool,
        digest: &Digest,
        signature: &[u8],
        name: impl FnOnce() -> String,
    ) -> Result<(), String> {
        let all = self.keys.iter().chain(more.iter().flat_map(|ring| &ring.keys));
        let mut known = false;
        for key in all.filter(|key| named(key)) {
            known = true;
            if key.signed(digest, signature) {
                return Ok(());
            }
        }
        if known {
            Err("the signature does not verify".into())
        } else {
            Err(format!("signed by key {}, which is in no keyring", name()))
        }
    }
}
