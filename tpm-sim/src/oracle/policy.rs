//! Policy sessions of the second stack.

use countersign_tpm::alg::HashAlg;
use countersign_tpm::pcr::PcrSelection;
use countersign_tpm::public::Name;
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::ObjectHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::structures as tss;

use super::{AuthSession, ENDORSEMENT, Error, Loaded, Oracle, PolicySession, name_to_tss, selection_to_tss};

/// An ECDSA signature with SHA-256: r and s, big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EcdsaSignature<'a> {
    /// r.
    pub r: &'a [u8],
    /// s.
    pub s: &'a [u8],
}

impl EcdsaSignature<'_> {
    fn to_tss(self) -> Result<tss::Signature, Error> {
        let (r, s) = (tss::EccParameter::try_from(self.r)?, tss::EccParameter::try_from(self.s)?);
        Ok(tss::Signature::EcDsa(tss::EccSignature::create(HashingAlgorithm::Sha256, r, s)?))
    }
}

/// A policy or trial session in an [`Oracle`]'s TPM.
#[derive(Debug)]
pub struct PolicyOracle(PolicySession);

impl PolicyOracle {
    pub(super) fn new(session: AuthSession) -> Result<Self, Error> {
        Ok(Self(PolicySession::try_from(session)?))
    }

    pub(super) const fn session(&self) -> PolicySession {
        self.0
    }

    /// TPM2_PolicyGetDigest.
    ///
    /// # Errors
    /// The TPM refuses.
    pub fn digest(&self, oracle: &mut Oracle) -> Result<Vec<u8>, Error> {
        let digest = oracle.context.execute_without_session(|ctx| ctx.policy_get_digest(self.0))?;
        Ok(digest.value().to_vec())
    }

    /// TPM2_PolicySecret with the endorsement hierarchy and its empty password.
    ///
    /// # Errors
    /// The TPM refuses.
    pub fn secret_endorsement(&self, oracle: &mut Oracle) -> Result<(), Error> {
        let none = || (tss::Nonce::default(), tss::Digest::default(), tss::Nonce::default());
        let (nonce, cp_hash, policy_ref) = none();
        oracle.context.execute_with_session(Some(AuthSession::Password), |ctx| {
            ctx.policy_secret(self.0, ENDORSEMENT, nonce, cp_hash, policy_ref, None)
        })?;
        Ok(())
    }

    /// TPM2_PolicyOR.
    ///
    /// # Errors
    /// The session's digest is none of the branches.
    pub fn or(&self, oracle: &mut Oracle, branches: &[Vec<u8>]) -> Result<(), Error> {
        let mut list = tss::DigestList::new();
        for branch in branches {
            list.add(tss::Digest::try_from(branch.as_slice())?)?;
        }
        Ok(oracle.context.execute_without_session(|ctx| ctx.policy_or(self.0, list))?)
    }

    /// TPM2_PolicyPCR with a digest that is asked for, or with the PCRs as they are (empty).
    ///
    /// # Errors
    /// The PCRs are others.
    pub fn pcr(&self, oracle: &mut Oracle, selection: &PcrSelection, digest: &[u8]) -> Result<(), Error> {
        let (digest, selection) = (tss::Digest::try_from(digest)?, selection_to_tss(selection)?);
        Ok(oracle.context.execute_without_session(|ctx| ctx.policy_pcr(self.0, digest, selection))?)
    }

    /// TPM2_VerifySignature over SHA-256(approved || policyRef) and TPM2_PolicyAuthorize with its ticket.
    ///
    /// # Errors
    /// The signature does not verify, or the session's digest is not `approved`.
    pub fn authorize(
        &self,
        oracle: &mut Oracle,
        key: &Loaded,
        approved: &[u8],
        policy_ref: &[u8],
        signature: EcdsaSignature<'_>,
    ) -> Result<(), Error> {
        let signed = HashAlg::Sha256.digest(&[approved, policy_ref]);
        let (signed, signature) = (tss::Digest::try_from(signed.as_bytes())?, signature.to_tss()?);
        let ticket =
            oracle.context.execute_without_session(|ctx| ctx.verify_signature(key.handle, signed, signature))?;
        let name = Name::parse(&key.name).map_err(|_| Error::Form("a Name"))?;
        let name = name_to_tss(&name)?;
        let (approved, policy_ref) = (tss::Digest::try_from(approved)?, tss::Nonce::try_from(policy_ref)?);
        Ok(oracle
            .context
            .execute_without_session(|ctx| ctx.policy_authorize(self.0, approved, policy_ref, &name, ticket))?)
    }

    /// TPM2_PolicySigned in its loose form: no nonceTPM, no expiration, no cpHashA. What is signed is then
    /// SHA-256(00000000 || policyRef). Our verifier never signs this form: it can be replayed.
    ///
    /// # Errors
    /// The signature does not verify.
    pub fn signed_loosely(
        &self,
        oracle: &mut Oracle,
        key: &Loaded,
        policy_ref: &[u8],
        signature: EcdsaSignature<'_>,
    ) -> Result<(), Error> {
        let (policy_ref, signature) = (tss::Nonce::try_from(policy_ref)?, signature.to_tss()?);
        // tss-esapi wants some session here, though the command needs none: one that only encrypts the answer.
        let extra = oracle.start_session(SessionType::Hmac, HashAlg::Sha256)?;
        let (attributes, mask) = SessionAttributesBuilder::new().with_encrypt(true).build();
        oracle.context.tr_sess_set_attributes(extra, attributes, mask)?;
        let (none, cp_hash) = (tss::Nonce::default(), tss::Digest::default());
        let object = ObjectHandle::from(key.handle);
        let result = oracle.context.execute_with_session(Some(extra), |ctx| {
            ctx.policy_signed(self.0, object, none, cp_hash, policy_ref, None, signature)
        });
        oracle.flush_session(extra)?;
        result?;
        Ok(())
    }

    /// TPM2_FlushContext.
    ///
    /// # Errors
    /// The session is gone.
    pub fn end(self, oracle: &mut Oracle) -> Result<(), Error> {
        oracle.flush_session(AuthSession::from(self.0))
    }
}
