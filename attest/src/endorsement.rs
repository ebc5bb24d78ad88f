//! The host's endorsement key and attestation key: found or made, and authorised by policy (DESIGN.md section 4).

use countersign_tpm::ak;
use countersign_tpm::alg::HashAlg;
use countersign_tpm::ek::Template;
use countersign_tpm::ekcert::{certified_key, from_nv};
use countersign_tpm::public::Public;
use zeroize::Zeroizing;

use crate::tpm::{Auth, Encryption, Hierarchy, Loaded, Session, SessionKind, Tpm, TpmError};

/// NV indices in which vendors keep intermediate certificates (EK Credential Profile 2.5, 2.2.1.5.2).
const CHAIN_FIRST: u32 = 0x01c0_0100;
const CHAIN_LAST: u32 = 0x01c0_01ff;
/// Handle at which enrolment makes the AK persistent.
const AK_HANDLE: u32 = 0x8101_C501;

/// An EK certificate in the TPM's NV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundCertificate {
    /// NV index.
    pub index: u32,
    /// DER.
    pub der: Vec<u8>,
    /// The template that its key fits.
    pub template: Template,
}

/// What the TPM's NV says about its EKs: certificates by ascending NV index, and intermediate certificates.
///
/// # Errors
/// [`TpmError`]; a TPM without certificates is none.
pub fn find_certificates(tpm: &mut Tpm) -> Result<(Vec<FoundCertificate>, Vec<Vec<u8>>), TpmError> {
    let mut certificates = Vec::new();
    for template in Template::ALL {
        let index = template.certificate_index();
        let Some(contents) = tpm.read_nv(index)? else { continue };
        let Ok(der) = from_nv(&contents) else { continue };
        let fits = certified_key(der).ok().and_then(|key| Template::rebuild(&key)).map(|(found, _)| found);
        if fits == Some(template) {
            certificates.push(FoundCertificate { index, der: der.to_vec(), template });
        }
    }
    let mut chain = Vec::new();
    for index in tpm.handles(CHAIN_FIRST)?.into_iter().filter(|index| (CHAIN_FIRST..=CHAIN_LAST).contains(index)) {
        if let Some(Ok(der)) = tpm.read_nv(index)?.as_deref().map(from_nv) {
            chain.push(der.to_vec());
        }
    }
    Ok((certificates, chain))
}

/// authValue of the endorsement hierarchy; empty where the owner of the machine has set none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EndorsementAuth(Zeroizing<Vec<u8>>);

impl EndorsementAuth {
    /// The value, without zeros at its end: the TPM drops them too (TPM 2.0 Part 1, 19.6.4.3).
    #[must_use]
    pub fn new(value: &[u8]) -> Self {
        let kept = value.iter().rposition(|&byte| byte != 0).map_or(0, |at| at.saturating_add(1));
        Self(Zeroizing::new(value.get(..kept).unwrap_or_default().to_vec()))
    }
}

impl std::fmt::Debug for EndorsementAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "EndorsementAuth(empty)" } else { "EndorsementAuth(set)" })
    }
}

/// An EK that can be used in this connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ek {
    /// Handle and public area.
    pub key: Loaded,
    /// Its template.
    pub template: Template,
    transient: bool,
    auth: EndorsementAuth,
}

impl Ek {
    /// Finds the EK at its persistent handle, if what is there is that template's key (TPM2_Clear removes it, and anybody may put another
    /// key there); otherwise makes it again from the template: the same key comes back.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::OtherTpm`] when the template makes another key than the expected one.
    pub fn open(
        tpm: &mut Tpm,
        template: Template,
        expected: Option<&Public>,
        auth: &EndorsementAuth,
    ) -> Result<Self, TpmError> {
        let auth = auth.clone();
        if let Some(key) = tpm.read_public(template.persistent_handle())? {
            let right = match expected {
                Some(expected) => key.public == *expected,
                None => Template::of(&key.public) == Some(template),
            };
            if right {
                return Ok(Self { key, template, transient: false, auth });
            }
        }
        let area = template.template();
        let key = if auth.0.is_empty() {
            tpm.create_primary(&area, &mut Auth::EmptyPassword)?
        } else {
            // Without an EK there is nothing yet to salt a session to.
            with_hmac(tpm, None, &auth, |tpm, auth| tpm.create_primary(&area, auth))?
        };
        match expected {
            Some(expected) if key.public != *expected => {
                tpm.flush(key.object.handle)?;
                Err(TpmError::OtherTpm { got: key.public.name(), want: expected.name() })
            }
            _ => Ok(Self { key, template, transient: true, auth }),
        }
    }

    /// Makes a transient EK persistent where the owner hierarchy allows that; false where it does not.
    pub fn make_persistent(&mut self, tpm: &mut Tpm) -> bool {
        let handle = self.template.persistent_handle();
        if !self.transient || tpm.evict_control(&self.key.object, handle).is_err() {
            return !self.transient;
        }
        // The transient copy is of no use any more; failing to remove it is found by the next command.
        let _ = tpm.flush(self.key.object.handle);
        self.key.object.handle = handle;
        self.transient = false;
        true
    }

    /// Removes a transient EK from the TPM's slots.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn close(self, tpm: &mut Tpm) -> Result<(), TpmError> {
        if self.transient { tpm.flush(self.key.object.handle) } else { Ok(()) }
    }

    /// A session in which the EK's policy can be satisfied again and again: for several uses in a row.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn session(&self, tpm: &mut Tpm) -> Result<Session, TpmError> {
        tpm.start_session(SessionKind::Policy, self.template.name_alg(), None)
    }

    /// As [`Ek::session`], salted: for a response that is to be encrypted.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn salted_session(&self, tpm: &mut Tpm) -> Result<Session, TpmError> {
        tpm.start_session(SessionKind::Policy, self.template.name_alg(), Some(&self.key))
    }

    /// Satisfies the EK's policy in the session: PolicySecret, and for the high-range templates PolicyOR. Each use of the EK takes it up.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn authorise(&self, tpm: &mut Tpm, session: &Session) -> Result<(), TpmError> {
        if self.auth.0.is_empty() {
            tpm.policy_secret(session, Hierarchy::Endorsement, &mut Auth::EmptyPassword)?;
        } else {
            with_hmac(tpm, Some(&self.key), &self.auth, |tpm, auth| {
                tpm.policy_secret(session, Hierarchy::Endorsement, auth)
            })?;
        }
        if let Some([a, c]) = self.template.policy_or() {
            tpm.policy_or(session, &[&a, &c])?;
        }
        Ok(())
    }
}

/// Runs one command under an HMAC session that proves the endorsement authValue.
fn with_hmac<T>(
    tpm: &mut Tpm,
    salt_to: Option<&Loaded>,
    auth: &EndorsementAuth,
    command: impl FnOnce(&mut Tpm, &mut Auth<'_>) -> Result<T, TpmError>,
) -> Result<T, TpmError> {
    let mut session = tpm.start_session(SessionKind::Hmac, HashAlg::Sha256, salt_to)?;
    let outcome = command(tpm, &mut Auth::hmac(&mut session, &auth.0));
    if outcome.is_err() {
        // A refused command leaves its session open.
        let _ = tpm.flush(session.handle);
    }
    outcome
}

/// An attestation key as it lies in the state folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AkBlob {
    /// TPMT_PUBLIC.
    pub public: Public,
    /// Private blob, usable under its EK only.
    pub private: Vec<u8>,
}

/// An AK that can be used in this connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ak {
    /// Handle and public area.
    pub key: Loaded,
    transient: bool,
}

impl AkBlob {
    /// A new AK of the default kind under the EK.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn create(tpm: &mut Tpm, ek: &Ek) -> Result<Self, TpmError> {
        Self::create_as(tpm, ek, ak::Kind::default())
    }

    /// A new AK of this kind under the EK.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn create_as(tpm: &mut Tpm, ek: &Ek, kind: ak::Kind) -> Result<Self, TpmError> {
        let mut session = ek.session(tpm)?;
        ek.authorise(tpm, &session)?;
        let mut auth = Auth::policy(&mut session, false, Encryption::default());
        let (private, public) = tpm.create(&ek.key.object, &kind.template(), &mut auth)?;
        Ok(Self { public, private })
    }
}

impl Ak {
    /// The AK at its persistent handle, if it is this one.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn persistent(tpm: &mut Tpm, public: &Public) -> Result<Option<Self>, TpmError> {
        let found = tpm.read_public(AK_HANDLE)?.filter(|key| key.public == *public);
        Ok(found.map(|key| Self { key, transient: false }))
    }

    /// Loads the AK under its EK; the session is left authorised for nothing.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn load(tpm: &mut Tpm, ek: &Ek, blob: &AkBlob) -> Result<Self, TpmError> {
        let mut session = ek.session(tpm)?;
        ek.authorise(tpm, &session)?;
        let mut auth = Auth::policy(&mut session, false, Encryption::default());
        let object = tpm.load(&ek.key.object, &blob.private, &blob.public, &mut auth)?;
        Ok(Self { key: Loaded { object, public: blob.public.clone() }, transient: true })
    }

    /// The persistent AK, or the loaded one.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn open(tpm: &mut Tpm, ek: &Ek, blob: &AkBlob) -> Result<Self, TpmError> {
        match Self::persistent(tpm, &blob.public)? {
            Some(ak) => Ok(ak),
            None => Self::load(tpm, ek, blob),
        }
    }

    /// Makes the AK persistent where the owner hierarchy allows that, in place of an earlier one of ours; false where it does not.
    pub fn make_persistent(&mut self, tpm: &mut Tpm) -> bool {
        if !self.transient {
            return true;
        }
        if let Ok(Some(old)) = tpm.read_public(AK_HANDLE)
            && (!old.public.has(ak::ATTRIBUTES) || tpm.evict_control(&old.object, AK_HANDLE).is_err())
        {
            return false;
        }
        if tpm.evict_control(&self.key.object, AK_HANDLE).is_err() {
            return false;
        }
        let _ = tpm.flush(self.key.object.handle);
        self.key.object.handle = AK_HANDLE;
        self.transient = false;
        true
    }

    /// Removes a transient AK from the TPM's slots.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn close(self, tpm: &mut Tpm) -> Result<(), TpmError> {
        if self.transient { tpm.flush(self.key.object.handle) } else { Ok(()) }
    }

    /// Opens a credential: proves that this AK and this EK are in one TPM.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn activate(
        &self,
        tpm: &mut Tpm,
        ek: &Ek,
        credential: &[u8],
        secret: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let mut session = ek.salted_session(tpm)?;
        ek.authorise(tpm, &session)?;
        let encryption = Encryption { command: false, response: true };
        let auth = Auth::policy(&mut session, false, encryption);
        tpm.activate_credential(&self.key.object, &ek.key.object, credential, secret, auth)
    }
}
