//! Unsealing under an approval and a verdict (DESIGN.md section 8).
//!
//! Before the verdict: [`Waiting::open`] loads the sealed object and opens the session that the verdict will be for.
//! After it: [`Waiting::unseal`] lets the TPM check both signatures, the PCRs and the clock.

use countersign_tpm::alg::HashAlg;
use countersign_tpm::import::Import;
use countersign_tpm::pcr::PcrSelection;
use countersign_tpm::policy::{Approved, Comparison, OFFSET_CLOCK, OFFSET_COUNTERS};
use countersign_tpm::public::Public;
use countersign_tpm::rc::ResponseCode;
use countersign_wire::answer::Release;
use countersign_wire::release::{approval_hash, unseal_cp_hash};
use zeroize::Zeroizing;

use crate::endorsement::Ek;
use crate::tpm::{Auth, Encryption, Object, Session, SessionKind, Tpm, TpmError};

/// How often the policy is run again when a PCR changes between PolicyPCR and Unseal. The TPM's own expiry of the verdict ends it sooner
/// on a TPM that takes long.
const RETRIES: u32 = 50;

/// A loaded sealed object and the session that waits for its verdict.
#[derive(Debug)]
pub struct Waiting {
    object: Object,
    session: Session,
    /// What TPM2_Import returned: later starts load it at once.
    pub private: Vec<u8>,
}

/// Why the TPM did not unseal.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    /// A step was refused.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The answer's keys or selection are not such as can be used.
    #[error("the verifier's release is not usable: {0}")]
    Release(String),
}

impl UnsealError {
    /// Whether a new quote and verdict may help: the session is gone (the TPM was reset or resumed), or PCRs or counters are no longer those
    /// that were quoted.
    #[must_use]
    pub const fn is_stale(&self) -> bool {
        match self {
            Self::Tpm(TpmError::Refused { code, .. }) => {
                matches!(code.base(), 0x084 | 0x126 | 0x128 | 0x910..=0x916 | 0x918..=0x91E)
            }
            Self::Tpm(_) | Self::Release(_) => false,
        }
    }
}

impl Waiting {
    /// Imports (unless `cached` is the private blob of an earlier import) and loads the object, and opens a policy session salted to the EK.
    ///
    /// # Errors
    /// [`TpmError`]; a cached blob that no longer loads is imported again.
    pub fn open(tpm: &mut Tpm, ek: &Ek, import: &Import, cached: Option<&[u8]>) -> Result<Self, TpmError> {
        let mut ek_session = ek.session(tpm)?;
        let loaded = match cached {
            Some(private) => {
                ek.authorise(tpm, &ek_session)?;
                let mut auth = Auth::policy(&mut ek_session, false, Encryption::default());
                match tpm.load(&ek.key.object, private, &import.public, &mut auth) {
                    Ok(object) => Some((object, private.to_vec())),
                    // Of before a TPM2_Clear, or damaged. A refused command leaves its session open, with the policy in it.
                    Err(TpmError::Refused { .. }) => {
                        tpm.policy_restart(&ek_session)?;
                        None
                    }
                    Err(e) => return Err(e),
                }
            }
            None => None,
        };
        let (object, private) = match loaded {
            Some(loaded) => loaded,
            None => {
                ek.authorise(tpm, &ek_session)?;
                let mut auth = Auth::policy(&mut ek_session, true, Encryption::default());
                let private = tpm.import(&ek.key.object, import, &mut auth)?;
                ek.authorise(tpm, &ek_session)?;
                let mut auth = Auth::policy(&mut ek_session, false, Encryption::default());
                (tpm.load(&ek.key.object, &private, &import.public, &mut auth)?, private)
            }
        };
        let session = tpm.start_session(SessionKind::Policy, HashAlg::Sha256, Some(&ek.key))?;
        Ok(Self { object, session, private })
    }

    /// Name of the loaded object: goes into the statement.
    #[must_use]
    pub fn object_name(&self) -> &[u8] {
        self.object.name.as_bytes()
    }

    /// nonceTPM of the waiting session: goes into the statement.
    #[must_use]
    pub fn nonce_tpm(&self) -> &[u8] {
        self.session.nonce_tpm()
    }

    /// Satisfies the object's policy with the verifier's two signatures, and unseals.
    ///
    /// # Errors
    /// [`UnsealError`]: the response code says in words which of the conditions failed.
    pub fn unseal(mut self, tpm: &mut Tpm, release: &Release) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let mut keys = Vec::new();
        let secret = self.try_unseal(tpm, release, &mut keys);
        // A failure here leaves a slot taken until the connection ends; the secret is good all the same.
        for handle in keys.into_iter().chain([self.object.handle]) {
            let _ = tpm.flush(handle);
        }
        if secret.is_err() {
            let _ = tpm.flush(self.session.handle);
        }
        secret
    }

    /// Loads the authority keys (`loaded` gets their handles), satisfies the policy and unseals; the TPM closes the session with the last.
    fn try_unseal(
        &mut self,
        tpm: &mut Tpm,
        release: &Release,
        loaded: &mut Vec<u32>,
    ) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let key = |bytes: &[u8], which: &str| {
            Public::parse(bytes).map_err(|e| UnsealError::Release(format!("{which} key: {e}")))
        };
        let approval_key = key(&release.approval_key, "approval")?;
        let verdict_key = key(&release.verdict_key, "verdict")?;
        let alg = HashAlg::from_id(release.selection.alg)
            .ok_or_else(|| UnsealError::Release(format!("bank {:#06x}", release.selection.alg)))?;
        let approved = Approved {
            reset_count: release.reset_count,
            restart_count: release.restart_count,
            clock_limit: release.clock_limit,
            selection: PcrSelection::single(alg, &release.selection.pcrs),
            pcr_digest: release.pcr_digest,
        };
        let approval = tpm.load_external(&approval_key)?;
        loaded.push(approval.handle);
        let digest = approval_hash(&approved.digest(), &release.policy_ref);
        let ticket = tpm.verify_signature(&approval, &digest, &release.approval)?;
        let verdict = tpm.load_external(&verdict_key)?;
        loaded.push(verdict.handle);
        let nonce = self.session.nonce_tpm().to_vec();
        let cp_hash = unseal_cp_hash(self.object.name.as_bytes());
        let mut tries: u32 = 0;
        loop {
            // From here to the end nothing else of ours extends a PCR: the caller holds the machine-wide lock.
            let policy = |tpm: &mut Tpm, session: &Session| {
                tpm.policy_counter_timer(session, &approved.counters(), OFFSET_COUNTERS, Comparison::Equal)?;
                let limit = approved.clock_limit.to_be_bytes();
                tpm.policy_counter_timer(session, &limit, OFFSET_CLOCK, Comparison::AtMost)?;
                tpm.policy_pcr(session, &approved.pcr_digest, &approved.selection)?;
                let reference = &release.policy_ref;
                tpm.policy_authorize(session, &approved.digest(), reference, &approval.name, &ticket)?;
                let signature = &release.verdict;
                tpm.policy_signed(session, &verdict, &nonce, &cp_hash, reference, release.expiration, signature)
            };
            let outcome = policy(tpm, &self.session).and_then(|()| tpm.unseal(&self.object, &mut self.session));
            match outcome {
                Err(e) if e.code() == Some(ResponseCode::PCR_CHANGED) && tries < RETRIES => {
                    tries = tries.saturating_add(1);
                    tpm.policy_restart(&self.session)?;
                }
                other => return Ok(other?),
            }
        }
    }

    /// The loaded object and the waiting session, to go on in another way than [`Waiting::unseal`].
    #[must_use]
    pub fn into_parts(self) -> (Object, Session) {
        (self.object, self.session)
    }

    /// Gives up: frees the object and the session.
    pub fn close(self, tpm: &mut Tpm) {
        let _ = tpm.flush(self.object.handle);
        let _ = tpm.flush(self.session.handle);
    }
}
