//! The owner's escrow: the one way back to the volume key (sif-format, section 8c).

use openssl::encrypt::{Decrypter, Encrypter};
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private, Public};
use openssl::rsa::{Padding, Rsa};
use zeroize::Zeroizing;

use crate::dsse;
use crate::error::SifError;

/// Type-specific bytes of our crypto message: PEM, RSA-OAEP.
pub(crate) const EXTRA: [u8; 8] = [2, 0, 0, 0, 0, 2, 0, 0];
/// Longest crypto message read, bytes: RSA-16384 takes 2.9 kB.
pub(crate) const MAX: u64 = 64 * 1024;

/// Who can open the image without a verifier.
pub enum Escrow {
    /// Whoever has the private half of this RSA key.
    Pem(PKey<Public>),
    /// Whoever knows this passphrase.
    Passphrase(Zeroizing<Vec<u8>>),
}

impl std::fmt::Debug for Escrow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pem(_) => "Escrow::Pem",
            Self::Passphrase(_) => "Escrow::Passphrase",
        })
    }
}

impl Escrow {
    /// Reads an RSA public key: `BEGIN RSA PUBLIC KEY` (which stock runtimes want) or `BEGIN PUBLIC KEY`.
    ///
    /// # Errors
    /// [`SifError::Key`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, SifError> {
        let key = Rsa::public_key_from_pem_pkcs1(pem).or_else(|_| Rsa::public_key_from_pem(pem));
        let key = key.map_err(|_| SifError::Key("the escrow key is no PEM RSA public key".into()))?;
        if key.size() < 256 {
            return Err(SifError::Key("the escrow key has fewer than 2048 bits".into()));
        }
        Ok(Self::Pem(PKey::from_rsa(key)?))
    }
}

/// What opens the escrow.
pub enum EscrowKey {
    /// The RSA private key.
    Pem(PKey<Private>),
    /// The passphrase.
    Passphrase(Zeroizing<Vec<u8>>),
}

impl std::fmt::Debug for EscrowKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pem(_) => "EscrowKey::Pem",
            Self::Passphrase(_) => "EscrowKey::Passphrase",
        })
    }
}

impl EscrowKey {
    /// Reads a PEM RSA private key.
    ///
    /// # Errors
    /// [`SifError::Key`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, SifError> {
        Self::from_encrypted_pem(pem, None)
    }

    /// As [`EscrowKey::from_pem`]; an encrypted key is opened with the passphrase.
    ///
    /// # Errors
    /// [`SifError::Key`].
    pub fn from_encrypted_pem(pem: &[u8], passphrase: Option<&[u8]>) -> Result<Self, SifError> {
        let key = dsse::private_key(pem, passphrase, "the escrow key is no PEM private key")?;
        if key.id() != openssl::pkey::Id::RSA {
            return Err(SifError::Key("the escrow key is no RSA key".into()));
        }
        Ok(Self::Pem(key))
    }
}

/// The crypto message: PEM `MESSAGE` of a DER OCTET STRING with the OAEP ciphertext.
pub(crate) fn wrap(key: &PKey<Public>, passphrase: &[u8]) -> Result<Vec<u8>, SifError> {
    use base64::Engine as _;
    let mut encrypter = Encrypter::new(key)?;
    encrypter.set_rsa_padding(Padding::PKCS1_OAEP)?;
    encrypter.set_rsa_oaep_md(MessageDigest::sha256())?;
    encrypter.set_rsa_mgf1_md(MessageDigest::sha256())?;
    let mut ciphertext = vec![0; encrypter.encrypt_len(passphrase)?];
    let n = encrypter.encrypt(passphrase, &mut ciphertext)?;
    ciphertext.truncate(n);
    let length = u16::try_from(n).map_err(|_| SifError::Key("the escrow key is too long".into()))?;
    let der = [&[0x04, 0x82][..], &length.to_be_bytes(), &ciphertext].concat();
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN MESSAGE-----\n");
    for (n, c) in text.chars().enumerate() {
        pem.push(c);
        if n % 64 == 63 {
            pem.push('\n');
        }
    }
    if !pem.ends_with('\n') {
        pem.push('\n');
    }
    pem.push_str("-----END MESSAGE-----\n");
    Ok(pem.into_bytes())
}

/// The passphrase in a crypto message.
pub(crate) fn unwrap(key: &PKey<Private>, pem: &[u8]) -> Result<Zeroizing<Vec<u8>>, SifError> {
    use base64::Engine as _;
    let bad = || SifError::Key("the image's crypto message is malformed".into());
    let text = std::str::from_utf8(pem).map_err(|_| bad())?;
    let body =
        text.trim().strip_prefix("-----BEGIN MESSAGE-----").and_then(|rest| rest.strip_suffix("-----END MESSAGE-----"));
    let body: String = body.ok_or_else(bad)?.chars().filter(|c| !c.is_whitespace()).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body).map_err(|_| bad())?;
    let ciphertext = match der.split_first_chunk::<4>() {
        Some(([0x04, 0x82, high, low], rest)) if usize::from(u16::from_be_bytes([*high, *low])) == rest.len() => rest,
        _ => return Err(bad()),
    };
    let mut decrypter = Decrypter::new(key)?;
    decrypter.set_rsa_padding(Padding::PKCS1_OAEP)?;
    decrypter.set_rsa_oaep_md(MessageDigest::sha256())?;
    decrypter.set_rsa_mgf1_md(MessageDigest::sha256())?;
    let wrong = |_| SifError::Key("this escrow key does not open the image".into());
    let mut passphrase = Zeroizing::new(vec![0; decrypter.decrypt_len(ciphertext).map_err(wrong)?]);
    let n = decrypter.decrypt(ciphertext, &mut passphrase).map_err(wrong)?;
    passphrase.truncate(n);
    Ok(passphrase)
}
