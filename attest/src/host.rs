//! A host: enrolment, attestation and release, each under the machine-wide lock.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::Quote;
use countersign_tpm::ek::Template;
use countersign_tpm::ekcert::certified_key;
use countersign_tpm::import::Import;
use countersign_tpm::kdf::hmac;
use countersign_tpm::pcr::{BankSelection, PcrSelection, pcr_digest};
use countersign_tpm::public::Public;
use countersign_wire::answer::Answer;
use countersign_wire::artefact;
use countersign_wire::cbor;
use countersign_wire::challenge::{Challenge, ChallengeRequest};
use countersign_wire::enrol::{
    EkCertificate, EnrolChallenge, EnrolProof, EnrolRequest, Enrolled, HostCard, transcript,
};
use countersign_wire::evidence::{BankValues, Evidence, ImaPart, PcrValue};
use countersign_wire::id::{HostId, RunId, VerdictId, WorkloadId};
use countersign_wire::limits;
use countersign_wire::receipt::Receipt;
use countersign_wire::runlog::Event;
use countersign_wire::statement::{Label, Purpose, ReleaseRequest, Statement, qualifying_data};
use countersign_wire::trust::{JoinToken, TrustBundle};
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _};
use rustix::time::{ClockId, clock_gettime};
use zeroize::Zeroizing;

use crate::client::{Client, Identity};
use crate::config::Config;
use crate::endorsement::{Ak, AkBlob, Ek, find_certificates};
use crate::error::HostError;
use crate::journal::{Journal, RECEIPT};
use crate::random::system_rng;
use crate::state::{Lock, StateDir, read_bounded};
use crate::tpm::{Tpm, TpmAddress};
use crate::unseal::Waiting;
use crate::verdict::Denial;

/// A receipt that comes later than this after the lock was taken is given up (DESIGN.md section 3).
const RECEIPT_PATIENCE: Duration = Duration::from_secs(15);
/// How long to wait for another program of this host.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// Quotes made before giving up, when a PCR changes between quote and read.
const QUOTES: u32 = 8;

/// Called between the steps from challenge to extend; an error ends the operation there, as a kill would. For tests.
pub type Observer = Box<dyn FnMut(&'static str) -> Result<(), HostError> + Send>;

/// An enrolled (or soon to be enrolled) host.
pub struct Host {
    config: Config,
    state: StateDir,
    observer: Option<Observer>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What an accepted attestation returned.
#[derive(Debug)]
pub struct Attested {
    /// Names the verdict.
    pub verdict_id: VerdictId,
    /// The verdict document.
    pub verdict: Vec<u8>,
}

/// A released key and what came with it.
pub struct Released {
    /// The unsealed volume key.
    pub key: Zeroizing<Vec<u8>>,
    /// Names the verdict.
    pub verdict_id: VerdictId,
    /// The verdict document.
    pub verdict: Vec<u8>,
    /// Seconds that the run may go on without a new verdict.
    pub lease_s: u32,
    /// TPM commands that the release took.
    pub commands: u64,
}

impl std::fmt::Debug for Released {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Released").field("verdict_id", &self.verdict_id).finish_non_exhaustive()
    }
}

/// The host's keys as enrolled.
struct Keys {
    card: HostCard,
    template: Template,
    ek: Public,
    ak: AkBlob,
}

/// One operation under the lock.
struct Operation<'a> {
    host: &'a mut Host,
    _lock: Lock,
    started: Duration,
    tpm: Tpm,
}

impl Host {
    /// Opens the state folder; the TPM is opened for each operation.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn open(config: Config) -> Result<Self, HostError> {
        let state = StateDir::open(&config.state_dir)?;
        Ok(Self { config, state, observer: None })
    }

    /// Watches the steps of an operation. For tests.
    pub fn observe(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    fn reached(&mut self, step: &'static str) -> Result<(), HostError> {
        self.observer.as_mut().map_or(Ok(()), |observer| observer(step))
    }

    fn operation(&mut self) -> Result<Operation<'_>, HostError> {
        let lock = self.state.lock(LOCK_PATIENCE)?;
        let started = boot_time();
        let mut tpm = Tpm::connect(&self.config.tpm)?;
        if !matches!(self.config.tpm, TpmAddress::Device(_)) {
            tpm.flush_leftovers()?;
        }
        Ok(Operation { host: self, _lock: lock, started, tpm })
    }

    /// The host card of an enrolled host.
    ///
    /// # Errors
    /// [`HostError::NotEnrolled`].
    pub fn card(&self) -> Result<HostCard, HostError> {
        let file = self.state.read("host.card", limits::MESSAGE)?.ok_or(HostError::NotEnrolled)?;
        artefact::from_file(&file).map_err(|e| HostError::Corrupt(format!("host.card: {e}")))
    }

    /// The pinned trust bundle.
    ///
    /// # Errors
    /// [`HostError::NotEnrolled`].
    pub fn trust(&self) -> Result<(Vec<u8>, TrustBundle), HostError> {
        let file = self.state.read("trust.bundle", limits::MESSAGE)?.ok_or(HostError::NotEnrolled)?;
        let corrupt = |e: String| HostError::Corrupt(format!("trust.bundle: {e}"));
        let body = artefact::body::<TrustBundle>(&file).map_err(|e| corrupt(e.to_string()))?.to_vec();
        let trust = cbor::decode(&body).map_err(|e| corrupt(e.to_string()))?;
        Ok((body, trust))
    }

    fn keys(&self) -> Result<Keys, HostError> {
        let card = self.card()?;
        let corrupt = |e: String| HostError::Corrupt(format!("host.card: {e}"));
        let ek = Public::parse(&card.ek_public).map_err(|e| corrupt(e.to_string()))?;
        let template = Template::of(&ek).ok_or_else(|| corrupt("an EK of no known template".into()))?;
        let public = Public::parse(&card.ak_public).map_err(|e| corrupt(e.to_string()))?;
        let private = self.state.read("ak.private", limits::MESSAGE)?.ok_or(HostError::NotEnrolled)?;
        Ok(Keys { card, template, ek, ak: AkBlob { public, private } })
    }

    fn client(&self, with_identity: bool) -> Result<Client, HostError> {
        let url = self.state.read("verifier.url", 4096)?.ok_or(HostError::NotEnrolled)?;
        let url = String::from_utf8_lossy(&url).trim().to_owned();
        let (_, trust) = self.trust()?;
        let identity = if with_identity {
            let certificate = self.state.read("tls.crt", limits::MESSAGE)?.ok_or(HostError::NotEnrolled)?;
            let key = self.state.read("tls.key", 4096)?.ok_or(HostError::NotEnrolled)?;
            Some(Identity { certificate, key: Zeroizing::new(key) })
        } else {
            None
        };
        Client::new(&url, &trust.ca, identity, self.config.deadline)
    }

    /// Enrols this host: pins the verifier that the token names, proves the AK, and keeps the certificate. An EK that is known keeps its
    /// state; a lost answer is no loss, enrol again.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn enroll(&mut self, token: &JoinToken, name: &str) -> Result<Enrolled, HostError> {
        let patience = self.config.deadline;
        let trust_bytes = Client::fetch_trust(&token.url, &token.trust, patience)?;
        let trust: TrustBundle = cbor::decode(&trust_bytes)?;
        let client = Client::new(&token.url, &trust.ca, None, patience)?;
        self.operation()?.enroll(&client, token, &trust_bytes, &trust, name)
    }

    /// One attestation.
    ///
    /// # Errors
    /// [`HostError::Denied`] holds the verdict's reasons.
    pub fn attest(&mut self) -> Result<Attested, HostError> {
        let client = self.client(false)?;
        let answer = self.operation()?.attest(&client)?;
        Ok(Attested { verdict_id: answer.verdict_id, verdict: answer.verdict })
    }

    /// Asks for a workload's key, and lets the TPM unseal it.
    ///
    /// # Errors
    /// [`HostError::Denied`] and [`HostError::Unseal`] among others.
    pub fn release(&mut self, workload: WorkloadId, run: RunId) -> Result<Released, HostError> {
        let client = self.client(false)?;
        self.operation()?.release(&client, workload, run)
    }

    /// Writes an entry into the run log and extends it.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn log(&mut self, event: Event) -> Result<(), HostError> {
        let mut operation = self.operation()?;
        let mut journal = operation.journal()?;
        journal.append(&operation.host.state, &mut operation.tpm, event)
    }

    /// The evidence bundle of one of this host's verdicts, as a file; authenticated by the host's TLS certificate.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn bundle(&self, verdict: VerdictId) -> Result<Vec<u8>, HostError> {
        self.client(true)?.get(&format!("/v1/host/verdicts/{verdict}/bundle"))
    }
}

/// CLOCK_BOOTTIME: goes on while the machine sleeps.
fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// A log file; `None` when none is configured or the file does not exist.
fn read_log(path: Option<&Path>, max: usize) -> Result<Option<Vec<u8>>, HostError> {
    let Some(path) = path else { return Ok(None) };
    let bad = |e: std::io::Error| HostError::Log { path: path.to_owned(), reason: e.to_string() };
    match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(bad(e)),
        Ok(file) => read_bounded(file, max).map(Some).map_err(bad),
    }
}

impl Operation<'_> {
    fn journal(&mut self) -> Result<Journal, HostError> {
        let boot_log = read_log(self.host.config.event_log.as_deref(), limits::EVENT_LOG)?;
        let systemd = read_log(self.host.config.systemd_log.as_deref(), limits::SYSTEMD_LOG)?;
        let pcr = self.host.card().map_or(self.host.config.run_pcr, |card| card.run_pcr);
        Journal::recover(&self.host.state, &mut self.tpm, pcr, boot_log.as_deref(), systemd.as_deref())
    }

    fn enroll(
        &mut self,
        client: &Client,
        token: &JoinToken,
        trust_bytes: &[u8],
        trust: &TrustBundle,
        name: &str,
    ) -> Result<Enrolled, HostError> {
        let state = self.host.state.clone();
        let (certificates, chain) = find_certificates(&mut self.tpm)?;
        // The one with the lowest NV index is the identity; a TPM without certificates shows its RSA EK, for an allow-list.
        let (template, expected) = match certificates.first() {
            Some(first) => (first.template, certified_key(&first.der).ok().and_then(|key| Template::rebuild(&key))),
            None => (Template::Rsa2048, None),
        };
        let mut ek = Ek::open(&mut self.tpm, template, expected.as_ref().map(|(_, public)| public))?;
        ek.make_persistent(&mut self.tpm);
        let ek_public = ek.key.public.clone();
        let spki = ek_public.spki().ok_or(HostError::NoCertificate)?;
        let host = HostId::of_ek_spki(&spki);
        let kept = self.host.keys().ok().filter(|keys| keys.ek == ek_public);
        if kept.is_none() && self.host.card().is_ok_and(|card| card.host != host) {
            return Err(HostError::Corrupt("the folder belongs to another TPM".into()));
        }
        // The enrolled AK stays, unless this TPM no longer loads it (TPM2_Clear) or the token asks for a new baseline.
        let loaded = match &kept {
            Some(keys) => Ak::load(&mut self.tpm, &ek, &keys.ak).ok().map(|ak| (keys.ak.clone(), ak)),
            None => None,
        };
        let (blob, mut ak) = match loaded {
            Some(found) => found,
            None => {
                let blob = AkBlob::create(&mut self.tpm, &ek)?;
                let ak = Ak::load(&mut self.tpm, &ek, &blob)?;
                (blob, ak)
            }
        };
        let card = HostCard {
            version: 1,
            host,
            ek_public: ek_public.to_bytes(),
            ek_certificates: certificates
                .iter()
                .map(|found| EkCertificate { nv_index: found.index, der: found.der.clone() })
                .collect(),
            chain: chain.into_iter().map(Into::into).collect(),
            ak_public: blob.public.to_bytes(),
            run_pcr: self.host.config.run_pcr,
        };
        let (tls_key, tls_public) = tls_key(&state)?;
        let secret = [token.id.as_slice(), &token.secret].concat();
        let request = EnrolRequest {
            version: 1,
            token: Some(secret),
            card: card.clone(),
            tls_key: tls_public.clone(),
            name: name.to_owned(),
        };
        let challenge: EnrolChallenge = client.post("/v1/enrol", &request)?;
        let opened = ak.activate(&mut self.tpm, &ek, &challenge.credential, &challenge.secret)?;
        let digest = TrustBundle::digest(trust_bytes);
        let transcript = transcript(&card.ek_public, &card.ak_public, &tls_public, &token.id, &digest);
        let proof = hmac(HashAlg::Sha256, &opened, &[&transcript])
            .ok_or_else(|| HostError::Corrupt("HMAC-SHA256 is missing".into()))?;
        // What the verifier is about to admit must be on disk before it does: a lost answer is then no loss.
        state.write("ak.private", &blob.private)?;
        state.write("host.card", &artefact::to_file(&card))?;
        state.write("tls.key", &tls_key)?;
        let proof = EnrolProof { version: 1, id: challenge.id, proof: proof.as_bytes().to_vec() };
        let enrolled: Enrolled = client.post("/v1/enrol/proof", &proof)?;
        if enrolled.host != host {
            return Err(HostError::Corrupt(format!(
                "the verifier takes this host for {}, its EK says {host}",
                enrolled.host
            )));
        }
        state.write("trust.bundle", &artefact::to_file(trust))?;
        state.write("verifier.url", token.url.as_bytes())?;
        if let Some(certificate) = &enrolled.certificate {
            state.write("tls.crt", certificate)?;
        }
        ak.make_persistent(&mut self.tpm);
        ak.close(&mut self.tpm)?;
        ek.close(&mut self.tpm)?;
        Ok(enrolled)
    }

    fn challenge(
        &mut self,
        client: &Client,
        keys: &Keys,
        purpose: Purpose,
        workload: Option<WorkloadId>,
    ) -> Result<Challenge, HostError> {
        let request = ChallengeRequest { version: 1, host: keys.card.host, purpose, workload };
        let challenge: Challenge = client.post("/v1/challenge", &request)?;
        self.host.reached("challenged")?;
        if challenge.purpose != purpose {
            return Err(HostError::Corrupt("the verifier's challenge is for another purpose".into()));
        }
        Ok(challenge)
    }

    fn attest(&mut self, client: &Client) -> Result<Answer, HostError> {
        let keys = self.host.keys()?;
        let mut journal = self.journal()?;
        self.host.reached("locked")?;
        let challenge = self.challenge(client, &keys, Purpose::Attest, None)?;
        let ak = Ak::open(&mut self.tpm, keys.template, &keys.ek, &keys.ak)?;
        let evidence = self.evidence(&keys, &ak, &challenge, None);
        ak.close(&mut self.tpm)?;
        let evidence = evidence?;
        self.host.reached("quoted")?;
        let answer: Answer = client.post_compressed("/v1/attest", &evidence)?;
        self.host.reached("answered")?;
        self.accept(&mut journal, &keys, answer)
    }

    fn release(&mut self, client: &Client, workload: WorkloadId, run: RunId) -> Result<Released, HostError> {
        let keys = self.host.keys()?;
        let mut journal = self.journal()?;
        let challenge = self.challenge(client, &keys, Purpose::Release, Some(workload))?;
        let Some(blob) = &challenge.import else {
            return Err(HostError::Corrupt("the verifier's challenge carries no sealed object".into()));
        };
        let public = Public::parse(&blob.public).map_err(|e| HostError::Corrupt(format!("sealed object: {e}")))?;
        let import = Import { public, duplicate: blob.duplicate.clone(), seed: blob.seed.clone() };
        let cache = format!("imports/{workload}");
        let cached = self.cached_import(&cache, &import)?;
        let before = self.tpm.commands();
        let ek = Ek::open(&mut self.tpm, keys.template, Some(&keys.ek))?;
        let waiting = Waiting::open(&mut self.tpm, &ek, &import, cached.as_deref())?;
        if cached.as_deref() != Some(waiting.private.as_slice()) {
            let name = import.public.name();
            self.host.state.write(&cache, &[name.as_bytes(), &waiting.private].concat())?;
        }
        let request = ReleaseRequest {
            workload,
            run,
            object_name: waiting.object_name().to_vec(),
            nonce_tpm: waiting.nonce_tpm().to_vec(),
        };
        ek.close(&mut self.tpm)?;
        let ak = Ak::open(&mut self.tpm, keys.template, &keys.ek, &keys.ak)?;
        let evidence = self.evidence(&keys, &ak, &challenge, Some(request));
        ak.close(&mut self.tpm)?;
        let outcome = evidence.and_then(|evidence| client.post_compressed::<Answer>("/v1/release", &evidence));
        let answer = match outcome {
            Ok(answer) => answer,
            Err(e) => {
                waiting.close(&mut self.tpm);
                return Err(e);
            }
        };
        let release = match (answer.allow, &answer.release) {
            (true, Some(release)) => release.clone(),
            _ => {
                waiting.close(&mut self.tpm);
                return Err(HostError::Denied(Box::new(Denial::read(&answer.verdict))));
            }
        };
        self.check_keys(&release)?;
        let key = waiting.unseal(&mut self.tpm, &release)?;
        let commands = self.tpm.commands().saturating_sub(before);
        let answer = self.accept(&mut journal, &keys, answer)?;
        Ok(Released { key, verdict_id: answer.verdict_id, verdict: answer.verdict, lease_s: release.lease_s, commands })
    }

    /// The private blob of an earlier import of this very object.
    fn cached_import(&self, cache: &str, import: &Import) -> Result<Option<Vec<u8>>, HostError> {
        let Some(file) = self.host.state.read(cache, limits::MESSAGE)? else { return Ok(None) };
        Ok(file.strip_prefix(import.public.name().as_bytes()).map(<[u8]>::to_vec))
    }

    /// The keys of a release are those of the pinned trust bundle.
    fn check_keys(&self, release: &countersign_wire::answer::Release) -> Result<(), HostError> {
        let (_, trust) = self.host.trust()?;
        if release.approval_key != trust.approval_key || release.verdict_key != trust.verdict_key {
            return Err(HostError::Corrupt("the release is signed with keys that this host has not pinned".into()));
        }
        Ok(())
    }

    /// Quote and everything beside it. PCRs that change between quote and read are quoted again.
    fn evidence(
        &mut self,
        keys: &Keys,
        ak: &Ak,
        challenge: &Challenge,
        release: Option<ReleaseRequest>,
    ) -> Result<Vec<u8>, HostError> {
        let state = self.host.state.clone();
        let (_, tls_public) = tls_key(&state)?;
        let newest = state.read(RECEIPT, 64)?.and_then(|bytes| Receipt::from_bytes(&bytes));
        let label = |name: &str, value: String| Label { name: name.into(), value };
        let statement = Statement {
            version: 1,
            purpose: challenge.purpose,
            labels: vec![
                label("hostname", rustix::system::uname().nodename().to_string_lossy().into_owned()),
                label("kernel", rustix::system::uname().release().to_string_lossy().into_owned()),
                label("attest", env!("CARGO_PKG_VERSION").into()),
            ],
            receipt: newest,
            tls_key: Some(tls_public),
            release,
            old_checkpoint: None,
            new_checkpoint: None,
        };
        let statement = cbor::encode(&statement);
        let extra = qualifying_data(&challenge.nonce, &statement);
        let banks = challenge.selection.iter().map(|bank| {
            let alg = HashAlg::from_id(bank.alg);
            alg.map(|alg| BankSelection::new(alg, &bank.pcrs))
        });
        let selection: Option<Vec<BankSelection>> = banks.collect();
        let selection =
            PcrSelection(selection.ok_or_else(|| HostError::Corrupt("the challenge asks for an unknown bank".into()))?);
        for _ in 0..QUOTES {
            let (quote, signature) = self.tpm.quote(&ak.key.object, &extra, &selection)?;
            let values = self.tpm.read_pcrs(&selection)?;
            let digests: Vec<Digest> = values.iter().map(|(_, _, value)| *value).collect();
            let quoted = Quote::parse(&quote).map_err(|e| HostError::Corrupt(format!("the TPM's quote: {e}")))?;
            let alg = match quoted.pcr_digest.len() {
                48 => HashAlg::Sha384,
                _ => HashAlg::Sha256,
            };
            if quoted.pcr_digest != pcr_digest(alg, &digests).as_bytes() {
                continue;
            }
            let pcrs = challenge.selection.iter().map(|bank| BankValues {
                alg: bank.alg,
                pcrs: values
                    .iter()
                    .filter(|(alg, ..)| alg.id() == bank.alg)
                    .map(|(_, index, value)| PcrValue { index: *index, value: value.as_bytes().to_vec() })
                    .collect(),
            });
            let config = &self.host.config;
            let ima = read_log(config.ima_log.as_deref(), limits::IMA_LIST)?;
            let evidence = Evidence {
                version: 1,
                host: keys.card.host,
                nonce: challenge.nonce,
                quote,
                signature,
                pcrs: pcrs.collect(),
                statement,
                event_log: read_log(config.event_log.as_deref(), limits::EVENT_LOG)?,
                ima: ima.map(|bytes| ImaPart { from: 0, bytes }),
                systemd_log: read_log(config.systemd_log.as_deref(), limits::SYSTEMD_LOG)?,
                run_log: Some(Journal::bytes(&state)?),
            };
            return Ok(cbor::encode(&evidence));
        }
        Err(HostError::Moving(QUOTES))
    }

    /// Takes an answer in: a denial is an error; an accepted one leaves its receipt in the run log, if it came in time.
    fn accept(&mut self, journal: &mut Journal, keys: &Keys, answer: Answer) -> Result<Answer, HostError> {
        if !answer.allow {
            return Err(HostError::Denied(Box::new(Denial::read(&answer.verdict))));
        }
        let state = self.host.state.clone();
        let in_time = boot_time().saturating_sub(self.started) < RECEIPT_PATIENCE;
        if let Some(receipt) = answer.receipt.as_ref().filter(|_| in_time) {
            let digests = journal.write(&state, Event::receipt(keys.card.host, receipt))?;
            self.host.reached("logged")?;
            self.tpm.extend(keys.card.run_pcr, &digests)?;
            self.host.reached("extended")?;
            state.write(RECEIPT, &receipt.to_bytes())?;
        }
        if let Some(certificate) = &answer.certificate {
            state.write("tls.crt", certificate)?;
        }
        Ok(answer)
    }
}

/// This host's TLS key (PKCS#8) and its SubjectPublicKeyInfo; made at the first use.
fn tls_key(state: &StateDir) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), HostError> {
    let corrupt = |e: String| HostError::Corrupt(format!("tls.key: {e}"));
    let secret = match state.read("tls.key", 4096)?.map(Zeroizing::new) {
        Some(pkcs8) => p256::SecretKey::from_pkcs8_der(&pkcs8).map_err(|e| corrupt(e.to_string()))?,
        None => {
            use p256::elliptic_curve::Generate as _;
            p256::SecretKey::generate_from_rng(&mut system_rng())
        }
    };
    let pkcs8 = secret.to_pkcs8_der().map_err(|e| corrupt(e.to_string()))?;
    let public = secret.public_key().to_public_key_der().map_err(|e| corrupt(e.to_string()))?;
    Ok((Zeroizing::new(pkcs8.as_bytes().to_vec()), public.into_vec()))
}
