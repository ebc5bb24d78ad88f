//! The second TPM stack: tpm2-tss, through tss-esapi 7.7.0, over a [`Sim`].
//!
//! It gives and takes plain bytes of the TPM specification, so that tests can hold `countersign_tpm` against it. tss-esapi's own
//! marshalling makes those bytes, and the TPM checks what it is given.
//!
//! What tss-esapi 7.7.0 cannot do, and what is therefore only checked against the TPM by our own client: the nonceTPM of a session
//! (so PolicySigned is used here in its loose form, which no verifier of ours signs) and PolicyCounterTimer.

mod p256;
mod policy;
mod relay;

use countersign_tpm::alg::HashAlg;
use countersign_tpm::credential::Credential;
use countersign_tpm::ek::Template;
use countersign_tpm::import::Import;
use countersign_tpm::pcr::PcrSelection;
use countersign_tpm::public::{Name, Public};
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{
    AuthHandle, KeyHandle, NvIndexTpmHandle, ObjectHandle, PersistentTpmHandle, SessionHandle, TpmHandle,
};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures as tss;
use tss_esapi::traits::{Marshall as _, UnMarshall as _};
use tss_esapi::tss2_esys::TPML_PCR_SELECTION;
use tss_esapi::{Context, TctiNameConf};

use crate::sim::Sim;
pub use policy::{EcdsaSignature, PolicyOracle};
use relay::Relay;

/// What went wrong with the second stack.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The TPM or tpm2-tss refused.
    #[error("tpm2-tss: {0}")]
    Tss(#[from] tss_esapi::Error),
    /// The relay to swtpm's sockets.
    #[error("relay to swtpm: {0}")]
    Relay(#[from] std::io::Error),
    /// The TPM does not run.
    #[error(transparent)]
    Sim(#[from] crate::Error),
    /// tpm2-tss gave less than it promised.
    #[error("tpm2-tss gave no {0}")]
    Nothing(&'static str),
    /// A structure of ours that cannot be put into tss-esapi's types.
    #[error("{0} has no form in tss-esapi")]
    Form(&'static str),
}

/// A TPM behind tpm2-tss.
pub struct Oracle {
    // Dropped in this order: the context still talks through the relay.
    context: Context,
    _relay: Relay,
}

/// A key or sealed object that is loaded, with what the TPM says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Where tpm2-tss has it.
    pub handle: KeyHandle,
    /// TPMT_PUBLIC, as tss-esapi writes it.
    pub public: Vec<u8>,
    /// Name, as TPM2_ReadPublic says.
    pub name: Vec<u8>,
    /// Qualified Name, as TPM2_ReadPublic says.
    pub qualified_name: Vec<u8>,
}

/// An endorsement key; every use of it runs its policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ek {
    /// Its template.
    pub template: Template,
    /// The key.
    pub key: Loaded,
}

/// TPMS_ATTEST and TPMT_SIGNATURE, as tss-esapi writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    /// TPMS_ATTEST.
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
}

impl Oracle {
    /// Connects to a running TPM. Commands of others can come between those of this connection.
    ///
    /// # Errors
    /// The TPM does not run, or tpm2-tss cannot connect.
    pub fn connect(sim: &Sim) -> Result<Self, Error> {
        sim.running()?;
        let relay = Relay::start(sim.socket(), sim.control_socket().to_owned())?;
        let address: TctiNameConf = format!("swtpm:host=127.0.0.1,port={}", relay.port()).parse()?;
        Ok(Self { context: Context::new(address)?, _relay: relay })
    }

    /// tss-esapi itself, for what is not here.
    pub fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    /// What the TPM says about a loaded object.
    ///
    /// # Errors
    /// The TPM refuses.
    pub fn describe(&mut self, handle: KeyHandle) -> Result<Loaded, Error> {
        let (public, name, qualified_name) = self.context.execute_without_session(|ctx| ctx.read_public(handle))?;
        Ok(Loaded {
            handle,
            public: public.marshall()?,
            name: name.value().to_vec(),
            qualified_name: qualified_name.value().to_vec(),
        })
    }

    /// The EK that the manufacturer made persistent.
    ///
    /// # Errors
    /// There is none at the template's handle.
    pub fn ek(&mut self, template: Template) -> Result<Ek, Error> {
        let handle = TpmHandle::Persistent(PersistentTpmHandle::new(template.persistent_handle())?);
        let object = self.context.execute_without_session(|ctx| ctx.tr_from_tpm_public(handle))?;
        Ok(Ek { template, key: self.describe(KeyHandle::from(object))? })
    }

    /// Contents of an NV index that the owner may read, such as an EK certificate's.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn read_nv(&mut self, index: u32) -> Result<Vec<u8>, Error> {
        let index = NvIndexTpmHandle::new(index)?;
        Ok(self.context.execute_with_session(Some(AuthSession::Password), |ctx| {
            tss_esapi::abstraction::nv::read_full(ctx, NvAuth::Owner, index)
        })?)
    }

    /// TPM2_CreatePrimary with one of our templates, in the endorsement hierarchy.
    ///
    /// # Errors
    /// The TPM refuses the template.
    pub fn create_ek(&mut self, template: Template) -> Result<Ek, Error> {
        let public = to_tss(&template.template())?;
        let made = self.context.execute_with_session(Some(AuthSession::Password), |ctx| {
            ctx.create_primary(Hierarchy::Endorsement, public, None, None, None, None)
        })?;
        Ok(Ek { template, key: self.describe(made.key_handle)? })
    }

    /// TPM2_Create and TPM2_Load of a child of the EK, such as an AK.
    ///
    /// # Errors
    /// The TPM refuses the template.
    pub fn create(&mut self, ek: &Ek, template: &Public) -> Result<Loaded, Error> {
        let template = to_tss(template)?;
        let parent = ek.key.handle;
        let made = self
            .with_ek(ek, None, |ctx| ctx.create(parent, template, None, None, None, None))
            .map(|made| (made.out_private, made.out_public))?;
        self.load(ek, made)
    }

    fn load(&mut self, ek: &Ek, (private, public): (tss::Private, tss::Public)) -> Result<Loaded, Error> {
        let parent = ek.key.handle;
        let handle = self.with_ek(ek, None, |ctx| ctx.load(parent, private, public))?;
        self.describe(handle)
    }

    /// TPM2_Quote with the AK's own scheme.
    ///
    /// # Errors
    /// The TPM refuses.
    pub fn quote(&mut self, ak: &Loaded, nonce: &[u8], selection: &PcrSelection) -> Result<Quoted, Error> {
        let nonce = tss::Data::try_from(nonce)?;
        let selection = selection_to_tss(selection)?;
        let (attest, signature) = self.context.execute_with_session(Some(AuthSession::Password), |ctx| {
            ctx.quote(ak.handle, nonce, tss::SignatureScheme::Null, selection)
        })?;
        Ok(Quoted { attest: attest.marshall()?, signature: signature.marshall()? })
    }

    /// TPM2_MakeCredential, in the TPM.
    ///
    /// # Errors
    /// The TPM refuses.
    pub fn make_credential(&mut self, ek: &Ek, name: &[u8], secret: &[u8]) -> Result<Credential, Error> {
        let (secret, name) = (tss::Digest::try_from(secret)?, tss::Name::try_from(name.to_vec())?);
        let (blob, secret) =
            self.context.execute_without_session(|ctx| ctx.make_credential(ek.key.handle, secret, name))?;
        Ok(Credential { blob: blob.value().to_vec(), secret: secret.value().to_vec() })
    }

    /// TPM2_ActivateCredential.
    ///
    /// # Errors
    /// The credential is for another EK or object.
    pub fn activate_credential(&mut self, ek: &Ek, ak: &Loaded, credential: &Credential) -> Result<Vec<u8>, Error> {
        let blob = tss::IdObject::try_from(credential.blob.clone())?;
        let secret = tss::EncryptedSecret::try_from(credential.secret.clone())?;
        let (object, key) = (ak.handle, ek.key.handle);
        let opened =
            self.with_ek(ek, Some(AuthSession::Password), |ctx| ctx.activate_credential(object, key, blob, secret))?;
        Ok(opened.value().to_vec())
    }

    /// TPM2_Import and TPM2_Load of an import blob.
    ///
    /// # Errors
    /// The blob is for another EK, or was changed.
    pub fn import(&mut self, ek: &Ek, import: &Import) -> Result<Loaded, Error> {
        let public = to_tss(&import.public)?;
        let duplicate = tss::Private::try_from(import.duplicate.clone())?;
        let seed = tss::EncryptedSecret::try_from(import.seed.clone())?;
        let parent = ObjectHandle::from(ek.key.handle);
        let private = self.with_ek(ek, None, |ctx| {
            let none = tss::SymmetricDefinitionObject::Null;
            ctx.import(parent, None, public.clone(), duplicate, seed, none)
        })?;
        self.load(ek, (private, public))
    }

    /// TPM2_LoadExternal of a public key, in the owner hierarchy.
    ///
    /// # Errors
    /// The TPM refuses the key.
    pub fn load_external(&mut self, public: &Public) -> Result<Loaded, Error> {
        let public = to_tss(public)?;
        let handle = self.context.execute_without_session(|ctx| ctx.load_external_public(public, Hierarchy::Owner))?;
        self.describe(handle)
    }

    /// TPM2_Unseal under a policy session.
    ///
    /// # Errors
    /// The policy is not satisfied.
    pub fn unseal(&mut self, object: &Loaded, policy: &PolicyOracle) -> Result<Vec<u8>, Error> {
        let session = Some(AuthSession::from(policy.session()));
        let handle = ObjectHandle::from(object.handle);
        let data = self.context.execute_with_session(session, |ctx| ctx.unseal(handle))?;
        Ok(data.value().to_vec())
    }

    /// TPM2_FlushContext of a loaded object.
    ///
    /// # Errors
    /// It is not loaded, or persistent.
    pub fn flush(&mut self, object: &Loaded) -> Result<(), Error> {
        Ok(self.context.flush_context(ObjectHandle::from(object.handle))?)
    }

    /// Runs a command under the EK's policy; `first` is the session before it, for a command with two authorisations.
    fn with_ek<T>(
        &mut self,
        ek: &Ek,
        first: Option<AuthSession>,
        run: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, Error> {
        let policy = self.policy(ek.template.name_alg())?;
        policy.secret_endorsement(self)?;
        if let Some(branches) = ek.template.policy_or() {
            policy.or(self, &branches)?;
        }
        let session = Some(AuthSession::from(policy.session()));
        let sessions = if first.is_some() { (first, session, None) } else { (session, None, None) };
        let result = self.context.execute_with_sessions(sessions, run);
        policy.end(self)?;
        Ok(result?)
    }

    fn start_session(&mut self, kind: SessionType, alg: HashAlg) -> Result<AuthSession, Error> {
        let (cipher, alg) = (tss::SymmetricDefinition::AES_128_CFB, hash_to_tss(alg));
        let started =
            self.context.execute_without_session(|ctx| ctx.start_auth_session(None, None, None, kind, cipher, alg))?;
        started.ok_or(Error::Nothing("session"))
    }

    fn flush_session(&mut self, session: AuthSession) -> Result<(), Error> {
        Ok(self.context.flush_context(ObjectHandle::from(SessionHandle::from(session)))?)
    }

    /// A policy session.
    ///
    /// # Errors
    /// The TPM has none left.
    pub fn policy(&mut self, alg: HashAlg) -> Result<PolicyOracle, Error> {
        self.start_session(SessionType::Policy, alg).and_then(PolicyOracle::new)
    }

    /// A trial session: it only computes the policy digest.
    ///
    /// # Errors
    /// The TPM has none left.
    pub fn trial(&mut self, alg: HashAlg) -> Result<PolicyOracle, Error> {
        self.start_session(SessionType::Trial, alg).and_then(PolicyOracle::new)
    }
}

impl std::fmt::Debug for Oracle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Oracle").finish_non_exhaustive()
    }
}

fn to_tss(public: &Public) -> Result<tss::Public, Error> {
    Ok(tss::Public::unmarshall(&public.to_bytes())?)
}

fn name_to_tss(name: &Name) -> Result<tss::Name, Error> {
    Ok(tss::Name::try_from(name.as_bytes().to_vec())?)
}

const fn hash_to_tss(alg: HashAlg) -> HashingAlgorithm {
    match alg {
        HashAlg::Sha1 => HashingAlgorithm::Sha1,
        HashAlg::Sha256 => HashingAlgorithm::Sha256,
        HashAlg::Sha384 => HashingAlgorithm::Sha384,
        HashAlg::Sha512 => HashingAlgorithm::Sha512,
    }
}

/// Built from the plain structure: tss-esapi's own builder puts banks in a random order, and the order is part of what is hashed.
fn selection_to_tss(selection: &PcrSelection) -> Result<tss::PcrSelectionList, Error> {
    let count = u32::try_from(selection.0.len()).unwrap_or(u32::MAX);
    let mut list = TPML_PCR_SELECTION { count, ..Default::default() };
    if selection.0.len() > list.pcrSelections.len() {
        return Err(Error::Form("so many banks"));
    }
    for (to, bank) in list.pcrSelections.iter_mut().zip(&selection.0) {
        let [a, b, c, 0] = bank.bitmap.to_le_bytes() else { return Err(Error::Form("a PCR above 23")) };
        (to.hash, to.sizeofSelect, to.pcrSelect) = (bank.alg, 3, [a, b, c, 0]);
    }
    Ok(tss::PcrSelectionList::try_from(list)?)
}

/// The endorsement hierarchy, as PolicySecret names it.
const ENDORSEMENT: AuthHandle = AuthHandle::Endorsement;
