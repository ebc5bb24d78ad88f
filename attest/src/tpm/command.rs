//! The commands that attestation, enrolment and release need (TPM 2.0 Part 3).

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::ClockInfo;
use countersign_tpm::codec::{Malformed, Reader, Writer};
use countersign_tpm::import::Import;
use countersign_tpm::limits;
use countersign_tpm::pcr::PcrSelection;
use countersign_tpm::policy::{Comparison, or_list};
use countersign_tpm::public::{ALG_AES, ALG_CFB, ALG_NULL, Key, Name, Public};
use countersign_tpm::rc::ResponseCode;
use countersign_tpm::wrap::{Use, seed};
use zeroize::Zeroizing;

use super::handle::RH_NULL;
use super::session::{Encryption, SessionKind, nonce};
use super::{Auth, Command, Hierarchy, Object, Session, Tpm, TpmError};
use crate::random::system_rng;

/// Largest structure in a response (a private area, a ticket, creation data).
const MAX: usize = 2048;
/// Bytes read from NV at once (TPM_PT_NV_BUFFER_MAX is at least 512 on every TPM seen).
const NV_CHUNK: u16 = 512;

/// An object that was just created or loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Handle and Name.
    pub object: Object,
    /// Its public area.
    pub public: Public,
}

/// A TPMT_TK_VERIFIED, as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket(Vec<u8>);

impl Tpm {
    fn simple(&mut self, name: &'static str, code: u32, parameters: Vec<u8>) -> Result<Vec<u8>, TpmError> {
        self.run(Command { name, code, handles: &[], parameters }, &mut [])
    }

    /// TPM2_Startup(CLEAR or STATE). For simulators: firmware does it on real machines. An already started TPM is no error.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn startup(&mut self, state: bool) -> Result<(), TpmError> {
        let parameters = Writer::new().u16_be(state.into()).done();
        match self.simple("TPM2_Startup", 0x144, parameters) {
            Err(e) if e.code() == Some(ResponseCode::INITIALIZE) => Ok(()),
            other => other.map(drop),
        }
    }

    /// TPM2_Clear by the lockout hierarchy. For simulators.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn clear(&mut self) -> Result<(), TpmError> {
        let lockout = Object::permanent(Hierarchy::Lockout.handle());
        let command = Command { name: "TPM2_Clear", code: 0x126, handles: &[&lockout], parameters: Vec::new() };
        self.run(command, &mut [Auth::EmptyPassword]).map(drop)
    }

    /// TPM2_ReadClock: TPMS_CLOCK_INFO. Not signed: good for the host's own bookkeeping only.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn read_clock(&mut self) -> Result<ClockInfo, TpmError> {
        const NAME: &str = "TPM2_ReadClock";
        let answer = self.simple(NAME, 0x181, Vec::new())?;
        read(NAME, &answer, |reader| {
            reader.u64_be("time")?;
            let clock = reader.u64_be("clock")?;
            let reset_count = reader.u32_be("resetCount")?;
            let restart_count = reader.u32_be("restartCount")?;
            Ok(ClockInfo { clock, reset_count, restart_count, safe: reader.u8("safe")? == 1 })
        })
    }

    /// TPM2_GetCapability(TPM_CAP_HANDLES): handles from `first` on, of its kind.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn handles(&mut self, first: u32) -> Result<Vec<u32>, TpmError> {
        const NAME: &str = "TPM2_GetCapability";
        let parameters = Writer::new().u32_be(1).u32_be(first).u32_be(64).done();
        let answer = self.simple(NAME, 0x17A, parameters)?;
        read(NAME, &answer, |reader| {
            reader.u8("moreData")?;
            reader.u32_be("capability")?;
            let count = reader.u32_be("count")?;
            let mut handles = Vec::new();
            for _ in 0..count.min(64) {
                handles.push(reader.u32_be("handle")?);
            }
            Ok(handles)
        })
    }

    /// TPM2_GetCapability(TPM_CAP_TPM_PROPERTIES): one property.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn property(&mut self, property: u32) -> Result<Option<u32>, TpmError> {
        const NAME: &str = "TPM2_GetCapability";
        let parameters = Writer::new().u32_be(6).u32_be(property).u32_be(1).done();
        let answer = self.simple(NAME, 0x17A, parameters)?;
        read(NAME, &answer, |reader| {
            reader.u8("moreData")?;
            reader.u32_be("capability")?;
            let count = reader.u32_be("count")?;
            if count == 0 {
                return Ok(None);
            }
            let found = reader.u32_be("property")?;
            let value = reader.u32_be("value")?;
            Ok((found == property).then_some(value))
        })
    }

    /// Banks in which PCRs are allocated (TPM_CAP_PCRS).
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn banks(&mut self) -> Result<Vec<HashAlg>, TpmError> {
        const NAME: &str = "TPM2_GetCapability";
        let parameters = Writer::new().u32_be(5).u32_be(0).u32_be(1).done();
        let answer = self.simple(NAME, 0x17A, parameters)?;
        read(NAME, &answer, |reader| {
            reader.u8("moreData")?;
            reader.u32_be("capability")?;
            let selection = PcrSelection::read(reader)?;
            Ok(selection
                .0
                .iter()
                .filter(|bank| bank.bitmap != 0)
                .filter_map(|bank| HashAlg::from_id(bank.alg))
                .collect())
        })
    }

    /// TPM2_ReadPublic; `None` when there is nothing at the handle.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn read_public(&mut self, handle: u32) -> Result<Option<Loaded>, TpmError> {
        const NAME: &str = "TPM2_ReadPublic";
        let parameters = handle.to_be_bytes().to_vec();
        let answer = match self.simple(NAME, 0x173, parameters) {
            Err(e) if e.code().is_some_and(|code| code.base() == 0x08B) => return Ok(None),
            other => other?,
        };
        let public = read_prefix(NAME, &answer, |reader| Public::parse(reader.tpm2b(limits::PUBLIC, "outPublic")?));
        // A key of a kind that we do not know is none of ours.
        let Ok(public) = public else { return Ok(None) };
        Ok(Some(Loaded { object: Object { handle, name: public.name() }, public }))
    }

    /// TPM2_FlushContext.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn flush(&mut self, handle: u32) -> Result<(), TpmError> {
        self.simple("TPM2_FlushContext", 0x165, handle.to_be_bytes().to_vec()).map(drop)
    }

    /// TPM2_CreatePrimary in the endorsement hierarchy.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn create_primary(&mut self, template: &Public, auth: &mut Auth<'_>) -> Result<Loaded, TpmError> {
        const NAME: &str = "TPM2_CreatePrimary";
        let endorsement = Object::permanent(Hierarchy::Endorsement.handle());
        let parameters = creation(template);
        let command = Command { name: NAME, code: 0x131, handles: &[&endorsement], parameters };
        let (handle, answer) = self.run_for_handle(command, std::slice::from_mut(auth))?;
        let public = read_prefix(NAME, &answer, |reader| Public::parse(reader.tpm2b(limits::PUBLIC, "outPublic")?))?;
        Ok(Loaded { object: Object { handle, name: public.name() }, public })
    }

    /// TPM2_Create of a key under a storage key: (private blob, public area).
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn create(
        &mut self,
        parent: &Object,
        template: &Public,
        auth: &mut Auth<'_>,
    ) -> Result<(Vec<u8>, Public), TpmError> {
        const NAME: &str = "TPM2_Create";
        let command = Command { name: NAME, code: 0x153, handles: &[parent], parameters: creation(template) };
        let answer = self.run(command, std::slice::from_mut(auth))?;
        read_prefix(NAME, &answer, |reader| {
            let private = reader.tpm2b(MAX, "outPrivate")?.to_vec();
            Ok((private, Public::parse(reader.tpm2b(limits::PUBLIC, "outPublic")?)?))
        })
    }

    /// TPM2_Load.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn load(
        &mut self,
        parent: &Object,
        private: &[u8],
        public: &Public,
        auth: &mut Auth<'_>,
    ) -> Result<Object, TpmError> {
        let parameters = Writer::new().tpm2b(private).tpm2b(&public.to_bytes()).done();
        let command = Command { name: "TPM2_Load", code: 0x157, handles: &[parent], parameters };
        let (handle, _) = self.run_for_handle(command, std::slice::from_mut(auth))?;
        Ok(Object { handle, name: public.name() })
    }

    /// TPM2_LoadExternal of a public key under the owner hierarchy: a ticket from the null hierarchy would be void.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn load_external(&mut self, public: &Public) -> Result<Object, TpmError> {
        let parameters = Writer::new().tpm2b(&[]).tpm2b(&public.to_bytes()).u32_be(Hierarchy::Owner.handle()).done();
        let command = Command { name: "TPM2_LoadExternal", code: 0x167, handles: &[], parameters };
        let (handle, _) = self.run_for_handle(command, &mut [])?;
        Ok(Object { handle, name: public.name() })
    }

    /// TPM2_Import: the private blob that this TPM can load.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn import(&mut self, parent: &Object, import: &Import, auth: &mut Auth<'_>) -> Result<Vec<u8>, TpmError> {
        const NAME: &str = "TPM2_Import";
        let parameters = Writer::new()
            .tpm2b(&[])
            .tpm2b(&import.public.to_bytes())
            .tpm2b(&import.duplicate)
            .tpm2b(&import.seed)
            .u16_be(ALG_NULL)
            .done();
        let answer =
            self.run(Command { name: NAME, code: 0x156, handles: &[parent], parameters }, std::slice::from_mut(auth))?;
        read(NAME, &answer, |reader| Ok(reader.tpm2b(MAX, "outPrivate")?.to_vec()))
    }

    /// TPM2_ActivateCredential.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn activate_credential(
        &mut self,
        key: &Object,
        ek: &Object,
        blob: &[u8],
        secret: &[u8],
        ek_auth: Auth<'_>,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        const NAME: &str = "TPM2_ActivateCredential";
        let parameters = Writer::new().tpm2b(blob).tpm2b(secret).done();
        let command = Command { name: NAME, code: 0x147, handles: &[key, ek], parameters };
        let answer = Zeroizing::new(self.run(command, &mut [Auth::EmptyPassword, ek_auth])?);
        read(NAME, &answer, |reader| Ok(Zeroizing::new(reader.tpm2b(64, "certInfo")?.to_vec())))
    }

    /// TPM2_Quote with the key's own scheme: (TPMS_ATTEST, TPMT_SIGNATURE).
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn quote(
        &mut self,
        key: &Object,
        qualifying_data: &[u8],
        selection: &PcrSelection,
    ) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        const NAME: &str = "TPM2_Quote";
        let parameters = selection.write(Writer::new().tpm2b(qualifying_data).u16_be(ALG_NULL)).done();
        let command = Command { name: NAME, code: 0x158, handles: &[key], parameters };
        let answer = self.run(command, &mut [Auth::EmptyPassword])?;
        read(NAME, &answer, |reader| Ok((reader.tpm2b(limits::ATTEST, "quoted")?.to_vec(), reader.rest().to_vec())))
    }

    /// TPM2_PCR_Read until every selected PCR was read: (PCR, value) a bank.
    ///
    /// # Errors
    /// [`TpmError`]; a PCR that the TPM does not give is one.
    pub fn read_pcrs(&mut self, selection: &PcrSelection) -> Result<Vec<(HashAlg, u8, Digest)>, TpmError> {
        const NAME: &str = "TPM2_PCR_Read";
        let mut left = selection.clone();
        let mut values = Vec::new();
        while left.0.iter().any(|bank| bank.bitmap != 0) {
            let answer = self.simple(NAME, 0x17E, left.to_bytes())?;
            let (read_now, digests) = read(NAME, &answer, |reader| {
                reader.u32_be("pcrUpdateCounter")?;
                let selection = PcrSelection::read(reader)?;
                let count = reader.u32_be("count")?;
                let mut digests = Vec::new();
                for _ in 0..count.min(8) {
                    digests.push(reader.tpm2b(limits::DIGEST, "digest")?.to_vec());
                }
                Ok((selection, digests))
            })?;
            let mut digests = digests.into_iter();
            let before = values.len();
            for bank in &read_now.0 {
                for pcr in bank.pcrs() {
                    let alg = HashAlg::from_id(bank.alg);
                    let value = alg.zip(digests.next()).and_then(|(alg, value)| Digest::new(alg, &value));
                    let (Some(alg), Some(value)) = (alg, value) else {
                        return Err(TpmError::Unsupported(format!("{NAME}: no value for PCR {pcr}")));
                    };
                    values.push((alg, pcr, value));
                }
                for wanted in left.0.iter_mut().filter(|wanted| wanted.alg == bank.alg) {
                    wanted.bitmap &= !bank.bitmap;
                }
            }
            if values.len() == before {
                return Err(TpmError::Unsupported(format!("{NAME}: a selected PCR does not exist")));
            }
        }
        values.sort_by_key(|(alg, pcr, _)| (selection.0.iter().position(|bank| bank.alg == alg.id()), *pcr));
        Ok(values)
    }

    /// TPM2_PCR_Extend.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn extend(&mut self, pcr: u8, digests: &[Digest]) -> Result<(), TpmError> {
        let count = u32::try_from(digests.len()).unwrap_or(u32::MAX);
        let parameters = digests.iter().fold(Writer::new().u32_be(count), |writer, digest| {
            writer.u16_be(digest.alg().id()).raw(digest.as_bytes())
        });
        let target = Object::permanent(pcr.into());
        let command =
            Command { name: "TPM2_PCR_Extend", code: 0x182, handles: &[&target], parameters: parameters.done() };
        self.run(command, &mut [Auth::EmptyPassword]).map(drop)
    }

    /// TPM2_EvictControl by the owner with an empty authValue: makes a loaded object persistent, or removes a persistent one.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn evict_control(&mut self, object: &Object, persistent: u32) -> Result<(), TpmError> {
        let owner = Object::permanent(Hierarchy::Owner.handle());
        let command = Command {
            name: "TPM2_EvictControl",
            code: 0x120,
            handles: &[&owner, object],
            parameters: persistent.to_be_bytes().to_vec(),
        };
        self.run(command, &mut [Auth::EmptyPassword]).map(drop)
    }

    /// Contents of an NV index that anybody may read; `None` when it does not exist.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn read_nv(&mut self, index: u32) -> Result<Option<Vec<u8>>, TpmError> {
        const PUBLIC: &str = "TPM2_NV_ReadPublic";
        const READ: &str = "TPM2_NV_Read";
        let answer = match self.simple(PUBLIC, 0x169, index.to_be_bytes().to_vec()) {
            Err(e) if e.code().is_some_and(|code| code.base() == 0x08B) => return Ok(None),
            other => other?,
        };
        let (name, size) = read(PUBLIC, &answer, |reader| {
            let public = reader.tpm2b(MAX, "nvPublic")?;
            let size = public.split_last_chunk::<2>().map(|(_, size)| u16::from_be_bytes(*size));
            Ok((Name::parse(reader.tpm2b(limits::NAME, "nvName")?)?, size.unwrap_or_default()))
        })?;
        let nv = Object { handle: index, name };
        let mut contents: Vec<u8> = Vec::new();
        while contents.len() < usize::from(size) {
            let offset = u16::try_from(contents.len()).unwrap_or(u16::MAX);
            let length = size.saturating_sub(offset).min(NV_CHUNK);
            let parameters = Writer::new().u16_be(length).u16_be(offset).done();
            let command = Command { name: READ, code: 0x14E, handles: &[&nv, &nv], parameters };
            let answer = self.run(command, &mut [Auth::EmptyPassword])?;
            let chunk = read(READ, &answer, |reader| Ok(reader.tpm2b(MAX, "data")?.to_vec()))?;
            if chunk.is_empty() {
                break;
            }
            contents.extend(chunk);
        }
        Ok(Some(contents))
    }

    /// TPM2_StartAuthSession; salted to a key when one is given, so that only that key's TPM can know the session key. Parameters are then
    /// encrypted with AES-CFB of the key's own strength (128 or 256 bits).
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn start_session(
        &mut self,
        kind: SessionKind,
        hash: HashAlg,
        salt_to: Option<&Loaded>,
    ) -> Result<Session, TpmError> {
        const NAME: &str = "TPM2_StartAuthSession";
        let (salt, encrypted, key) = match salt_to {
            None => (Zeroizing::default(), Vec::new(), Object::permanent(RH_NULL)),
            Some(key) => {
                let (salt, encrypted) = seed(&key.public, Use::Secret, &mut system_rng())
                    .map_err(|e| TpmError::Unsupported(e.to_string()))?;
                (salt, encrypted, key.object.clone())
            }
        };
        let aes_bits = salt_to.map_or(128, |key| symmetric_bits(&key.public));
        let nonce_caller = nonce(hash);
        let writer = Writer::new().tpm2b(&nonce_caller).tpm2b(&encrypted).u8(kind.id());
        let writer = if salt.is_empty() {
            writer.u16_be(ALG_NULL)
        } else {
            writer.u16_be(ALG_AES).u16_be(aes_bits).u16_be(ALG_CFB)
        };
        let null = Object::permanent(RH_NULL);
        let parameters = writer.u16_be(hash.id()).done();
        let command = Command { name: NAME, code: 0x176, handles: &[&key, &null], parameters };
        let (handle, answer) = self.run_for_handle(command, &mut [])?;
        let nonce_tpm = read(NAME, &answer, |reader| Ok(reader.tpm2b(64, "nonceTPM")?.to_vec()))?;
        Session::new(handle, hash, &salt, nonce_caller, nonce_tpm, aes_bits)
    }

    /// TPM2_PolicySecret with a hierarchy.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn policy_secret(
        &mut self,
        session: &Session,
        hierarchy: Hierarchy,
        auth: &mut Auth<'_>,
    ) -> Result<(), TpmError> {
        let entity = Object::permanent(hierarchy.handle());
        let policy = Object::permanent(session.handle);
        let parameters = Writer::new().tpm2b(&[]).tpm2b(&[]).tpm2b(&[]).u32_be(0).done();
        let command = Command { name: "TPM2_PolicySecret", code: 0x151, handles: &[&entity, &policy], parameters };
        self.run(command, std::slice::from_mut(auth)).map(drop)
    }

    fn policy(
        &mut self,
        name: &'static str,
        code: u32,
        session: &Session,
        parameters: Vec<u8>,
    ) -> Result<(), TpmError> {
        let policy = Object::permanent(session.handle);
        self.run(Command { name, code, handles: &[&policy], parameters }, &mut []).map(drop)
    }

    /// TPM2_PolicyOR.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn policy_or(&mut self, session: &Session, branches: &[&[u8]]) -> Result<(), TpmError> {
        self.policy("TPM2_PolicyOR", 0x171, session, or_list(branches))
    }

    /// TPM2_PolicyPCR.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn policy_pcr(&mut self, session: &Session, digest: &[u8], selection: &PcrSelection) -> Result<(), TpmError> {
        let parameters = selection.write(Writer::new().tpm2b(digest)).done();
        self.policy("TPM2_PolicyPCR", 0x17F, session, parameters)
    }

    /// TPM2_PolicyCounterTimer.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn policy_counter_timer(
        &mut self,
        session: &Session,
        operand: &[u8],
        offset: u16,
        comparison: Comparison,
    ) -> Result<(), TpmError> {
        let parameters = Writer::new().tpm2b(operand).u16_be(offset).u16_be(comparison.id()).done();
        self.policy("TPM2_PolicyCounterTimer", 0x16D, session, parameters)
    }

    /// TPM2_PolicyAuthorize.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn policy_authorize(
        &mut self,
        session: &Session,
        approved: &[u8],
        policy_ref: &[u8],
        key: &Name,
        ticket: &Ticket,
    ) -> Result<(), TpmError> {
        let parameters = Writer::new().tpm2b(approved).tpm2b(policy_ref).tpm2b(key.as_bytes()).raw(&ticket.0).done();
        self.policy("TPM2_PolicyAuthorize", 0x16A, session, parameters)
    }

    /// TPM2_PolicySigned in the form that binds session, object and time.
    ///
    /// # Errors
    /// [`TpmError`].
    #[expect(clippy::too_many_arguments, reason = "the command has them")]
    pub fn policy_signed(
        &mut self,
        session: &Session,
        key: &Object,
        nonce_tpm: &[u8],
        cp_hash: &[u8],
        policy_ref: &[u8],
        expiration: u32,
        signature: &[u8],
    ) -> Result<(), TpmError> {
        let policy = Object::permanent(session.handle);
        let parameters =
            Writer::new().tpm2b(nonce_tpm).tpm2b(cp_hash).tpm2b(policy_ref).u32_be(expiration).raw(signature).done();
        let command = Command { name: "TPM2_PolicySigned", code: 0x160, handles: &[key, &policy], parameters };
        self.run(command, &mut []).map(drop)
    }

    /// TPM2_PolicyRestart.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn policy_restart(&mut self, session: &Session) -> Result<(), TpmError> {
        self.policy("TPM2_PolicyRestart", 0x180, session, Vec::new())
    }

    /// TPM2_PolicyGetDigest.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn policy_digest(&mut self, session: &Session) -> Result<Vec<u8>, TpmError> {
        const NAME: &str = "TPM2_PolicyGetDigest";
        let policy = Object::permanent(session.handle);
        let command = Command { name: NAME, code: 0x189, handles: &[&policy], parameters: Vec::new() };
        let answer = self.run(command, &mut [])?;
        read(NAME, &answer, |reader| Ok(reader.tpm2b(limits::DIGEST, "policyDigest")?.to_vec()))
    }

    /// TPM2_VerifySignature.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn verify_signature(&mut self, key: &Object, digest: &[u8], signature: &[u8]) -> Result<Ticket, TpmError> {
        let parameters = Writer::new().tpm2b(digest).raw(signature).done();
        let command = Command { name: "TPM2_VerifySignature", code: 0x177, handles: &[key], parameters };
        Ok(Ticket(self.run(command, &mut [])?))
    }

    /// TPM2_Unseal under a policy session; the response is encrypted and its HMAC checked. Closes the session.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn unseal(&mut self, object: &Object, session: &mut Session) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        const NAME: &str = "TPM2_Unseal";
        let encryption = Encryption { command: false, response: true };
        let command = Command { name: NAME, code: 0x15E, handles: &[object], parameters: Vec::new() };
        let answer = Zeroizing::new(self.run(command, &mut [Auth::policy(session, false, encryption)])?);
        read(NAME, &answer, |reader| Ok(Zeroizing::new(reader.tpm2b(limits::SEALED, "outData")?.to_vec())))
    }
}

/// Key bits of a storage key's own AES.
fn symmetric_bits(key: &Public) -> u16 {
    match &key.key {
        Key::Rsa { symmetric, .. } | Key::Ecc { symmetric, .. } => symmetric.unwrap_or(128),
        Key::Sealed { .. } => 128,
    }
}

/// Parameters of Create and CreatePrimary: no authValue, no data, no outside info, no creation PCRs.
fn creation(template: &Public) -> Vec<u8> {
    Writer::new()
        .tpm2b(&Writer::new().tpm2b(&[]).tpm2b(&[]).done())
        .tpm2b(&template.to_bytes())
        .tpm2b(&[])
        .u32_be(0)
        .done()
}

fn read<'a, T>(
    command: &'static str,
    answer: &'a [u8],
    parse: impl FnOnce(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<T, TpmError> {
    Reader::all(answer, "parameters", parse).map_err(|malformed| TpmError::Malformed { command, malformed })
}

/// As [`read`], for answers whose end does not matter (creation data, qualified names).
fn read_prefix<'a, T>(
    command: &'static str,
    answer: &'a [u8],
    parse: impl FnOnce(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<T, TpmError> {
    parse(&mut Reader::new(answer)).map_err(|malformed| TpmError::Malformed { command, malformed })
}
