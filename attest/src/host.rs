//! A host: enrolment, attestation and release, each under the machine-wide lock.

mod enrol;
mod evidence;
mod ima;
mod runs;
mod step;
mod trust;
mod verdict;

use std::time::{Duration, SystemTime};

use countersign_tpm::ak;
use countersign_tpm::ek::Template;
use countersign_tpm::public::Public;
use countersign_wire::artefact;
use countersign_wire::cbor;
use countersign_wire::enrol::{Enrolled, HostCard};
use countersign_wire::id::{RunId, VerdictId, WorkloadId};
use countersign_wire::limits;
use countersign_wire::obligations::Obligations;
use countersign_wire::runlog::Event;
use countersign_wire::trust::{JoinToken, TrustBundle};
use zeroize::Zeroizing;

use crate::client::{Client, Identity};
use crate::config::Config;
use crate::endorsement::{AkBlob, Ek};
use crate::error::HostError;
use crate::journal::{Journal, Read};
use crate::lease::{Lease, Leases, Renewal, boot_time};
use crate::state::{Lock, StateDir};
use crate::tpm::{Tpm, TpmAddress};

pub use runs::Running;
pub use step::{Observer, Step};
pub(crate) use trust::newest as newest_trust;

/// The reason of a verdict that would be one release too many.
const CAP_REACHED: &str = "cap-reached";
/// How long to wait for another program of this host.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// An enrolled (or soon to be enrolled) host.
pub struct Host {
    config: Config,
    state: StateDir,
    observer: Option<Observer>,
    ak: Option<ak::Kind>,
    only: Option<Template>,
    read: Read,
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
    /// The verdict document (JSON).
    pub verdict: Vec<u8>,
    /// What policy asks of this host, each value in its range.
    pub obligations: Obligations,
}

/// A released key and what came with it.
pub struct Released {
    /// The unsealed volume key.
    pub key: Zeroizing<Vec<u8>>,
    /// Names the verdict.
    pub verdict_id: VerdictId,
    /// The verdict document (JSON).
    pub verdict: Vec<u8>,
    /// Seconds that the run may go on without a new verdict.
    pub lease_s: u32,
    /// What the policies of host and workload ask of this host, each value in its range.
    pub obligations: Obligations,
    /// TPM commands from the sealed object's import or load to its unsealing.
    pub commands: u64,
    /// Time of those commands' round trips.
    pub tpm_time: Duration,
    /// Time of the whole operation, the wait for other programs of this host left out.
    pub total: Duration,
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

/// One operation: the lock is held, the TPM is connected.
struct Operation<'a> {
    host: &'a mut Host,
    _lock: Lock,
    /// When the lock was taken, on CLOCK_BOOTTIME.
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
        Ok(Self { config, state, observer: None, ak: None, only: None, read: Read::default() })
    }

    /// Enrolment makes an AK of this kind, also in place of one of another kind. Without it a kept AK stays, and a new one is of the default kind.
    pub const fn want_ak(&mut self, kind: ak::Kind) {
        self.ak = Some(kind);
    }

    /// Enrolment shows this EK alone. For tests.
    #[doc(hidden)]
    pub const fn show_only(&mut self, template: Template) {
        self.only = Some(template);
    }

    /// This TPM's EK as it would be enrolled: for the allow-list of a verifier, where the TPM has no certificate.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn endorsement_key(&mut self) -> Result<Public, HostError> {
        self.operation()?.endorsement_key()
    }

    /// Watches the steps of operations from now on, and may end one.
    pub fn observe(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    fn reached(&mut self, step: Step) -> Result<(), HostError> {
        self.observer.as_mut().map_or(Ok(()), |observer| observer(step))
    }

    fn connect(&self) -> Result<Tpm, HostError> {
        let mut tpm = Tpm::connect(&self.config.tpm)?;
        if !matches!(self.config.tpm, TpmAddress::Device(_)) {
            tpm.flush_leftovers()?;
        }
        Ok(tpm)
    }

    fn operation(&mut self) -> Result<Operation<'_>, HostError> {
        let lock = self.state.lock(LOCK_PATIENCE)?;
        let started = boot_time();
        let tpm = self.connect()?;
        self.reached(Step::Locked)?;
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

    /// The pinned trust bundle, encoded and decoded.
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

    /// The same host, for another thread.
    pub(crate) fn again(&self) -> Self {
        let (config, state) = (self.config.clone(), self.state.clone());
        Self { config, state, observer: None, ak: None, only: None, read: Read::default() }
    }

    /// How this host attests.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    fn client(&self, with_identity: bool) -> Result<Client, HostError> {
        self.client_within(self.config.deadline, with_identity)
    }

    /// A client of the pinned verifier that may take this long.
    pub(crate) fn client_within(&self, patience: Duration, with_identity: bool) -> Result<Client, HostError> {
        let (_, trust) = self.trust()?;
        let url = match &self.config.verifier {
            Some(url) => url.clone(),
            None => {
                let url = self.state.read("verifier.url", 4096)?.ok_or(HostError::NotEnrolled)?;
                String::from_utf8_lossy(&url).trim().to_owned()
            }
        };
        let identity = if with_identity {
            let certificate = self.state.read("tls.crt", limits::MESSAGE)?.ok_or(HostError::NotEnrolled)?;
            let key = self.state.read("tls.key", 4096)?.ok_or(HostError::NotEnrolled)?;
            Some(Identity { certificate, key: Zeroizing::new(key) })
        } else {
            None
        };
        Client::new(&url, &trust.ca, identity, patience)
    }

    /// Enrols this host: pins the verifier that the token names, proves the AK, and keeps the certificate. An EK that is known keeps its
    /// state; a lost answer is no loss, enrol again.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn enroll(&mut self, token: &JoinToken, name: &str) -> Result<Enrolled, HostError> {
        self.enroll_at(&token.url.clone(), &token.trust, Some(token), name)
    }

    /// Shows this host to a verifier that it has no token of: it waits there until an operator admits it. The verifier at `url` is pinned by
    /// the SHA-256 of its trust bundle, as a token would name it.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn enroll_without_token(&mut self, url: &str, trust: &[u8; 32], name: &str) -> Result<Enrolled, HostError> {
        self.enroll_at(url, trust, None, name)
    }

    fn enroll_at(
        &mut self,
        url: &str,
        trust: &[u8; 32],
        token: Option<&JoinToken>,
        name: &str,
    ) -> Result<Enrolled, HostError> {
        let url = self.config.verifier.clone().unwrap_or_else(|| url.to_owned());
        let trust = Client::fetch_trust(&url, trust, self.config.deadline)?;
        let mut outcome = self.operation()?.enroll(&url, token, &trust, name, 0);
        // The lowest one that the verifier accepts: others than the first may lead to a root that it trusts.
        for at in 1..Template::ALL.len() {
            let Err(refused) = outcome else { return outcome };
            if !enrol::another_may_do(&refused) {
                return Err(refused);
            }
            outcome = match self.operation()?.enroll(&url, token, &trust, name, at) {
                Err(HostError::NoCertificate) => return Err(refused),
                next => next,
            };
        }
        outcome
    }

    /// One attestation.
    ///
    /// # Errors
    /// [`HostError::Denied`] holds the verdict's reasons.
    pub fn attest(&mut self) -> Result<Attested, HostError> {
        self.trust()?;
        self.operation()?.attest()
    }

    /// New leases for all that runs on this host: the outcome that another program of the host has just had, when it is fresh enough for the
    /// shortest interval that any run asks for; else an attestation.
    ///
    /// # Errors
    /// [`HostError::Unreachable`] among others: then every run keeps the lease that it has. A denial is no error.
    pub fn renew(&mut self) -> Result<Renewal, HostError> {
        self.renew_since(Duration::ZERO)
    }

    /// As [`Host::renew`], with an outcome of this time (CLOCK_BOOTTIME, [`boot_time`]) or later: after an event that asks for one.
    ///
    /// # Errors
    /// As [`Host::renew`].
    pub fn renew_since(&mut self, since: Duration) -> Result<Renewal, HostError> {
        self.trust()?;
        // Without the lock first: programs that can share wait for nobody.
        if let Some(shared) = Leases::read(&self.state)?.shared(since) {
            return Ok(shared);
        }
        self.operation()?.renew(since)
    }

    /// The lease of a run as it stands now; `None` when it has none (it ended, is of another boot, or its record was changed).
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn lease(&self, run: RunId) -> Result<Option<Lease>, HostError> {
        Ok(Leases::read(&self.state)?.of(run))
    }

    /// Asks for a workload's key, and lets the TPM unseal it. A session that vanished, or PCRs that changed since the quote, get one fresh
    /// attempt.
    ///
    /// # Errors
    /// [`HostError::Denied`] and [`HostError::Unseal`] among others.
    pub fn release(&mut self, workload: WorkloadId, run: RunId) -> Result<Released, HostError> {
        self.trust()?;
        match self.operation()?.release(workload, run) {
            // A new operation: what this one holds of a receipt is given up with its lock.
            Err(HostError::Unseal(first)) if first.is_stale() => match self.operation()?.release(workload, run) {
                // The first attempt was counted though it gave no key: that is what went wrong.
                Err(HostError::Denied(denial)) if denial.reasons.iter().any(|reason| reason.id == CAP_REACHED) => {
                    Err(HostError::Unseal(first))
                }
                other => other,
            },
            other => other,
        }
    }

    /// Reads the run log, for an operation that shall not take long later.
    pub fn read_run_log(&mut self) {
        self.read = Read::now(&self.state);
    }

    /// This boot's run log as it lies on disk.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn run_log(&self) -> Result<Vec<u8>, HostError> {
        Journal::bytes(&self.state)
    }

    /// How full this boot's run log is for attestations, percent.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn run_log_filled(&self) -> Result<u64, HostError> {
        Journal::filled(&self.state)
    }

    /// Writes an entry into the run log and extends it.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn log(&mut self, event: Event) -> Result<(), HostError> {
        self.trust()?;
        self.operation()?.log(|_, _| vec![event])
    }

    /// Asks the pinned verifier whether it is ready; its clock, where it tells it.
    ///
    /// # Errors
    /// [`HostError::Unreachable`] among others.
    pub fn reach(&self) -> Result<Option<SystemTime>, HostError> {
        self.client(false)?.ready()
    }

    /// The evidence bundle of one of this host's verdicts, as a file; authenticated by the host's TLS certificate.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn bundle(&self, verdict: VerdictId) -> Result<Vec<u8>, HostError> {
        self.client(true)?.get(&format!("/v1/host/verdicts/{verdict}/bundle"))
    }
}

impl Operation<'_> {
    /// The enrolled EK. Before anything else touches the state folder: a folder of another TPM is refused here.
    fn ek(&mut self, keys: &Keys) -> Result<Ek, HostError> {
        let auth = self.host.config.endorsement_auth()?;
        Ok(Ek::open(&mut self.tpm, keys.template, Some(&keys.ek), &auth)?)
    }

    fn journal(&mut self, pcr: u8) -> Result<Journal, HostError> {
        let logs = self.host.boot_logs()?;
        let read = std::mem::take(&mut self.host.read);
        Journal::recover(&self.host.state, &mut self.tpm, pcr, &logs, read)
    }
}
