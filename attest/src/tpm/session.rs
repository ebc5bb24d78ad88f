//! Sessions: HMACs over commands and responses, and parameter encryption (TPM 2.0 Part 1, 19 and 21).

use countersign_tpm::alg::HashAlg;
use countersign_tpm::codec::{Malformed, Reader, Writer};
use countersign_tpm::kdf::{hmac, kdfa};
use countersign_tpm::wrap::{cfb_decrypt, cfb_encrypt};
use rand_core::Rng as _;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::TpmError;
use super::handle::RS_PW;
use crate::random::system_rng;

const CONTINUE: u8 = 0x01;
const DECRYPT: u8 = 0x20;
const ENCRYPT: u8 = 0x40;

/// A policy or HMAC session.
pub struct Session {
    /// TPM_HANDLE.
    pub handle: u32,
    /// authHash.
    pub hash: HashAlg,
    key: Zeroizing<Vec<u8>>,
    nonce_tpm: Vec<u8>,
    nonce_caller: Vec<u8>,
    aes_bits: u16,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("handle", &self.handle).field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// Which way parameters are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Encryption {
    /// The command's first parameter.
    pub command: bool,
    /// The response's first parameter.
    pub response: bool,
}

/// What a session is for (TPM_SE; TPM 2.0 Part 2, 6.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// Authorises by an authValue that it does not send.
    Hmac,
    /// Authorises by a policy.
    Policy,
}

impl SessionKind {
    pub(super) const fn id(self) -> u8 {
        match self {
            Self::Hmac => 0x00,
            Self::Policy => 0x01,
        }
    }
}

/// How a handle is authorised.
pub enum Auth<'a> {
    /// By an empty password.
    EmptyPassword,
    /// By a session.
    Session {
        /// The session.
        session: &'a mut Session,
        /// authValue of the entity: enters the HMAC key of HMAC sessions, not of policy sessions.
        auth_value: Zeroizing<Vec<u8>>,
        /// Whether the session stays open.
        keep: bool,
        /// Parameter encryption.
        encryption: Encryption,
    },
}

impl std::fmt::Debug for Auth<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::EmptyPassword => f.write_str("EmptyPassword"),
            Self::Session { session, .. } => write!(f, "Session({:#010x})", session.handle),
        }
    }
}

impl<'a> Auth<'a> {
    /// An HMAC session: proves the authValue without sending it. The session ends with the command.
    pub fn hmac(session: &'a mut Session, auth_value: &[u8]) -> Self {
        let auth_value = Zeroizing::new(auth_value.to_vec());
        Self::Session { session, auth_value, keep: false, encryption: Encryption::default() }
    }

    /// A policy session.
    pub fn policy(session: &'a mut Session, keep: bool, encryption: Encryption) -> Self {
        Self::Session { session, auth_value: Zeroizing::default(), keep, encryption }
    }

    pub(super) fn decrypts(&self) -> bool {
        matches!(self, Auth::Session { encryption, .. } if encryption.command)
    }

    pub(super) fn encrypts(&self) -> bool {
        matches!(self, Auth::Session { encryption, .. } if encryption.response)
    }

    /// Rolls nonceCaller.
    pub(super) fn begin(&mut self) {
        if let Auth::Session { session, .. } = self {
            session.nonce_caller = nonce(session.hash);
        }
    }

    fn attributes(keep: bool, encryption: Encryption) -> u8 {
        let mut bits = 0;
        if keep {
            bits |= CONTINUE;
        }
        if encryption.command {
            bits |= DECRYPT;
        }
        if encryption.response {
            bits |= ENCRYPT;
        }
        bits
    }

    /// TPMS_AUTH_COMMAND.
    pub(super) fn write(&self, writer: Writer, code: u32, names: &[u8], parameters: &[u8]) -> Result<Writer, TpmError> {
        match self {
            Auth::EmptyPassword => Ok(writer.u32_be(RS_PW).tpm2b(&[]).u8(0).tpm2b(&[])),
            Auth::Session { session, auth_value, keep, encryption } => {
                let attributes = Self::attributes(*keep, *encryption);
                let cp_hash = session.hash.digest(&[&code.to_be_bytes(), names, parameters]);
                let mac = session
                    .mac(auth_value, &[cp_hash.as_bytes(), &session.nonce_caller, &session.nonce_tpm, &[attributes]])?;
                Ok(writer.u32_be(session.handle).tpm2b(&session.nonce_caller).u8(attributes).tpm2b(&mac))
            }
        }
    }

    /// TPMS_AUTH_RESPONSE: rolls nonceTPM; whether the HMAC is right.
    pub(super) fn check(&mut self, reader: &mut Reader<'_>, code: u32, parameters: &[u8]) -> Result<bool, Malformed> {
        let nonce = reader.tpm2b(64, "nonceTPM")?;
        let attributes = reader.u8("sessionAttributes")?;
        let mac = reader.tpm2b(64, "hmac")?;
        match self {
            Auth::EmptyPassword => Ok(mac.is_empty()),
            Auth::Session { session, auth_value, .. } => {
                nonce.clone_into(&mut session.nonce_tpm);
                let rp_hash = session.hash.digest(&[&0u32.to_be_bytes(), &code.to_be_bytes(), parameters]);
                let parts = [rp_hash.as_bytes(), nonce, &session.nonce_caller, &[attributes]];
                Ok(session.mac(auth_value, &parts).is_ok_and(|want| bool::from(want.as_slice().ct_eq(mac))))
            }
        }
    }
}

impl Session {
    /// A session as TPM2_StartAuthSession answered: sessionKey from the salt (Part 1, 19.6.8).
    pub(super) fn new(
        handle: u32,
        hash: HashAlg,
        salt: &[u8],
        nonce_caller: Vec<u8>,
        nonce_tpm: Vec<u8>,
        aes_bits: u16,
    ) -> Result<Self, TpmError> {
        let bits = u16::try_from(hash.size().saturating_mul(8)).unwrap_or(u16::MAX);
        let key = if salt.is_empty() {
            Zeroizing::default()
        } else {
            kdfa(hash, salt, "ATH", &nonce_tpm, &nonce_caller, bits).ok_or_else(|| unsupported(hash))?
        };
        Ok(Self { handle, hash, key, nonce_tpm, nonce_caller, aes_bits })
    }

    /// nonceTPM: what a verdict for this session signs.
    #[must_use]
    pub fn nonce_tpm(&self) -> &[u8] {
        &self.nonce_tpm
    }

    fn hmac_key(&self, auth_value: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([self.key.as_slice(), auth_value].concat())
    }

    fn mac(&self, auth_value: &[u8], parts: &[&[u8]]) -> Result<Vec<u8>, TpmError> {
        let key = self.hmac_key(auth_value);
        if key.is_empty() {
            return Ok(Vec::new());
        }
        let mac = hmac(self.hash, &key, parts).ok_or_else(|| unsupported(self.hash))?;
        Ok(mac.as_bytes().to_vec())
    }

    /// Key and IV of AES-CFB for one direction (Part 1, 21.3).
    fn cfb(&self, auth_value: &[u8], newer: &[u8], older: &[u8]) -> Result<(Zeroizing<Vec<u8>>, [u8; 16]), TpmError> {
        let key = self.hmac_key(auth_value);
        let bits = self.aes_bits.saturating_add(128);
        let derived = kdfa(self.hash, &key, "CFB", newer, older, bits).ok_or_else(|| unsupported(self.hash))?;
        let (key, iv) = derived.split_last_chunk::<16>().ok_or_else(|| unsupported(self.hash))?;
        Ok((Zeroizing::new(key.to_vec()), *iv))
    }

    pub(super) fn encrypt_command(&self, auth_value: &[u8], parameters: &mut [u8]) -> Result<(), TpmError> {
        let (key, iv) = self.cfb(auth_value, &self.nonce_caller, &self.nonce_tpm)?;
        match first_parameter(parameters).map(|data| cfb_encrypt(&key, &iv, data)) {
            Some(true) => Ok(()),
            Some(false) | None => Err(TpmError::Unsupported("a command parameter cannot be encrypted".into())),
        }
    }

    pub(super) fn decrypt_response(&self, auth_value: &[u8], parameters: &mut [u8]) -> Result<(), TpmError> {
        let (key, iv) = self.cfb(auth_value, &self.nonce_tpm, &self.nonce_caller)?;
        match first_parameter(parameters).map(|data| cfb_decrypt(&key, &iv, data)) {
            Some(true) => Ok(()),
            Some(false) | None => Err(TpmError::Unsupported("a response parameter cannot be decrypted".into())),
        }
    }
}

/// The contents of the TPM2B at the start.
fn first_parameter(parameters: &mut [u8]) -> Option<&mut [u8]> {
    let (size, rest) = parameters.split_first_chunk_mut::<2>()?;
    rest.get_mut(..usize::from(u16::from_be_bytes(*size)))
}

fn unsupported(hash: HashAlg) -> TpmError {
    TpmError::Unsupported(format!("sessions with {hash}"))
}

/// Random bytes as long as the hash's digest.
pub(super) fn nonce(hash: HashAlg) -> Vec<u8> {
    let mut bytes = vec![0; hash.size()];
    system_rng().fill_bytes(&mut bytes);
    bytes
}
